//! The vision transformer on the CPU: an [`Encoder`] whose pass is one operation on dfdx's tape.

mod workspace;

use super::passes::Passes;
use crate::encoders_plain::Transformer;
use dfdx::prelude::{Cpu, HasShape};
use pauc_kernels::simd::Simd;
use pauc_traits::encoder::{Draws, Images, Layer, LayerDepths};
use pauc_traits::{Encoder, Error, ImageShape, Param, Pass, Result, Taped};
use std::rc::Rc;
use workspace::Workspace;

/// A vision transformer on the CPU.
pub(crate) struct Network {
    plain: Rc<Transformer<Cpu>>,
    simd: Simd,
    passes: Passes<Workspace>,
}

impl Network {
    /// Creates a network with the parameters of one in plain operations.
    ///
    /// # Errors
    /// If this machine does not have the instructions that were asked for.
    pub fn new(plain: Transformer<Cpu>) -> Result<Self> {
        let simd = Simd::detect().map_err(|e| Error::config(e.to_string()))?;
        Ok(Self::with(plain, simd))
    }

    fn with(plain: Transformer<Cpu>, simd: Simd) -> Self {
        let passes = Passes::new(&plain.device, |keep| Workspace::new(&plain.plan, simd, keep));
        Network { plain: Rc::new(plain), simd, passes }
    }

    /// Runs a pass, in which images skip what blocks add if there are draws.
    fn pass(
        &mut self,
        images: Images<Cpu>,
        pass: Pass,
        draws: Option<&Draws>,
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        let batch = self.plain.batch_of(*images.shape())?;
        let factors = draws.map(|draws| self.plain.factors(batch, draws)).transpose()?.flatten();
        let plain = self.plain.clone();
        self.passes.run(
            &images,
            pass,
            self.plain.plan.width,
            |work, images| work.forward(&self.plain, images, factors),
            move |work, d_features| work.backward(&plain, d_features),
        )
    }
}

impl Encoder<Cpu> for Network {
    fn feature_dim(&self) -> usize {
        self.plain.plan.width
    }

    fn forward(&mut self, images: Images<Cpu>, pass: Pass) -> Result<Taped<(usize, usize), f32, Cpu>> {
        self.pass(images, pass, None)
    }

    fn forward_drawn(
        &mut self,
        images: Images<Cpu>,
        pass: Pass,
        draws: &Draws,
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        self.pass(images, pass, Some(draws))
    }

    fn parameters(&self) -> Vec<Param<Cpu>> {
        self.plain.parameters()
    }

    fn depths(&self) -> Option<LayerDepths> {
        self.plain.depths()
    }

    fn statistics(&self) -> Vec<Param<Cpu>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<Cpu>>> {
        Ok(Box::new(Self::with(self.plain.copy()?, self.simd)))
    }

    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<Cpu>>> {
        Ok(Box::new(Self::with(self.plain.resized_to(input)?, self.simd)))
    }

    fn layers(&self) -> Vec<Layer> {
        self.plain.layers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoders_plain::{Mlp, Pool, Size, VisionTransformer};
    use crate::network::backward_with;
    use dfdx::prelude::TensorFromVec;
    use pauc_testing::assert_within;
    use pauc_testing::inputs::noise;
    use pauc_traits::{Count, DropRate, Positive};

    const IMAGE: ImageShape = ImageShape { height: 8, width: 12, channels: 3 };
    const OTHER: ImageShape = ImageShape { height: 12, width: 8, channels: 3 };
    const BATCH: usize = 5;

    /// A network of whole vectors: heads of 16 values.
    fn small() -> VisionTransformer {
        VisionTransformer {
            size: Size::Custom { width: Count::lit(48), heads: Count::lit(3) },
            patch: Count::lit(2),
            depth: Count::lit(3),
            ..VisionTransformer::default()
        }
    }

    /// Returns the features of a training pass, and the gradients of all parameters.
    fn pass(encoder: &mut dyn Encoder<Cpu>, shape: ImageShape) -> (Vec<f32>, Vec<Vec<f32>>) {
        let images = noise(BATCH * shape.len(), 3);
        let dims = (BATCH, shape.height, shape.width, shape.channels);
        let images = Cpu::default().tensor_from_vec(images, dims);
        let draws = Draws { seed: 1, step: 9, images: (0..BATCH as u64).map(|i| (i, 0)).collect() };
        let features = encoder.forward_drawn(images, Pass::Train, &draws).unwrap();
        let values = features.as_vec();
        backward_with(features, noise(values.len(), 7), None).unwrap();
        let gradients = encoder.parameters().iter().map(|p| p.grad().clone()).collect();
        (values, gradients)
    }

    #[test]
    fn it_equals_plain_operations() {
        let options = [
            small(),
            VisionTransformer { mlp: Mlp::SwiGlu, layer_scale: Some(Positive::lit(0.3)), ..small() },
            VisionTransformer { pool: Pool::Mean, registers: 2, prefix_positions: false, ..small() },
            VisionTransformer { drop_path: DropRate::lit(0.6), registers: 1, ..small() },
        ];
        for config in options {
            for shape in [IMAGE, OTHER] {
                let plain = config.plain(&Cpu::default(), IMAGE, 4).unwrap();
                let mut plain = if shape == IMAGE { plain } else { plain.resized_to(shape).unwrap() };
                let mut fused = Network::new(plain.copy().unwrap()).unwrap();
                let (want, want_gradients) = pass(&mut plain, shape);
                let (got, got_gradients) = pass(&mut fused, shape);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    // Features are normalized, after some hundred sums of about a hundred products.
                    assert_within!(*got, f64::from(*want), 1e-4, "{config:?} feature {i}");
                }
                let gradients = got_gradients.iter().zip(&want_gradients).zip(fused.parameters());
                for ((got, want), parameter) in gradients {
                    // Errors of a sum are relative to its largest terms.
                    let size = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
                    for (i, (got, want)) in got.iter().zip(want).enumerate() {
                        let tolerance = 1e-3 * f64::from(size);
                        assert_within!(
                            *got,
                            f64::from(*want),
                            tolerance,
                            "{config:?} {} {i}",
                            parameter.name
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn passes_without_gradients_share_two_blocks_of_memory() {
        let plain = small().plain(&Cpu::default(), IMAGE, 4).unwrap();
        let mut network = Network::new(plain).unwrap();
        let images = noise(BATCH * IMAGE.len(), 3);
        let dims = (BATCH, IMAGE.height, IMAGE.width, IMAGE.channels);
        let images = Cpu::default().tensor_from_vec(images, dims);
        let trained = network.forward(images.clone(), Pass::Train).unwrap().as_vec();
        let inferred = network.forward(images, Pass::Eval).unwrap().as_vec();
        assert_eq!(trained, inferred);
    }
}
