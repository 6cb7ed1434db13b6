//! An encoder made of plain dfdx operations.

use dfdx::prelude::*;
use pauc_traits::encoder::{Images, Layer};
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{
    BuildOptions, Compute, Count, Encoder, EncoderConfig, Error, ImageShape, Param, Pass, Result, Taped,
    component,
};
use rand::Rng;

component! {
    /// One linear layer with ReLU on the pixels: y = max(0, x·W + b).
    ///
    /// # Shapes
    /// images (B, H, W, C) → features (B, width)
    ///
    /// Source: the paper or code that this follows.
    pub struct EncoderTemplate: Encoder {
        /// The width of the features.
        pub width: Count = Count::lit(64),
    }
}

impl<D: Compute> EncoderConfig<D> for EncoderTemplate {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        let (inputs, width) = (input.len(), self.width.get());
        // Uniform in ±√(6/inputs), which keeps the variance of activations after a ReLU (He et al. 2015).
        let bound = (6.0 / inputs as f32).sqrt();
        let mut rng = stream(options.seed, Purpose::Init, 0, 0, 0);
        let values: Vec<f32> = (0..inputs * width).map(|_| rng.gen_range(-bound..bound)).collect();
        let weight = Param::new(device, "weight", &[inputs, width], Role::Weight, &values)?;
        let bias = Param::new(device, "bias", &[width], Role::Bias, &vec![0.0; width])?;
        Ok(Box::new(Network { device: device.clone(), input, weight, bias }))
    }
}

struct Network<D: Compute> {
    device: D,
    input: ImageShape,
    weight: Param<D>,
    bias: Param<D>,
}

impl<D: Compute> Encoder<D> for Network<D> {
    fn feature_dim(&self) -> usize {
        self.bias.len()
    }

    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>> {
        let (b, h, w, c) = *images.shape();
        let ImageShape { height, width, channels } = self.input;
        if (h, w, c) != (height, width, channels) {
            let message = format!("expected images of {}, got {h}×{w}×{c}", self.input);
            return Err(Error::shape("EncoderTemplate", message));
        }
        let (inputs, features) = (self.input.len(), self.feature_dim());
        let weight = self.weight.traced(&self.device, (inputs, features))?;
        let bias = self.bias.traced(&self.device, (features,))?;
        let pixels = images.reshape_like(&(b, inputs)).retaped::<OwnedTape<f32, D>>();
        let out = (pixels.matmul(weight) + bias.broadcast_like::<_, Axis<0>>(&(b, features))).relu();
        // Only training passes keep their tape.
        Ok(if pass == Pass::Train { out } else { out.split_tape().0.retaped() })
    }

    fn parameters(&self) -> Vec<Param<D>> {
        vec![self.weight.clone(), self.bias.clone()]
    }

    fn statistics(&self) -> Vec<Param<D>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<D>>> {
        Ok(Box::new(Network {
            device: self.device.clone(),
            input: self.input,
            weight: self.weight.deep_clone(&self.device)?,
            bias: self.bias.deep_clone(&self.device)?,
        }))
    }

    fn layers(&self) -> Vec<Layer> {
        vec![Layer {
            name: "linear".into(),
            output: vec![self.feature_dim()],
            parameters: self.weight.len() + self.bias.len(),
            multiply_adds: self.weight.len() as u64,
            algorithm: String::new(),
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ImageShape = ImageShape { height: 2, width: 2, channels: 1 };

    fn build(dev: &Cpu) -> Box<dyn Encoder<Cpu>> {
        EncoderTemplate { width: Count::lit(3) }.build(dev, SHAPE, BuildOptions::seed(3)).unwrap()
    }

    /// Two images.
    fn images(dev: &Cpu) -> Images<Cpu> {
        dev.tensor_from_vec((0..8).map(|i| (i as f32 * 1.3).sin()).collect(), (2, 2, 2, 1))
    }

    #[test]
    fn features_equal_plain_loops() {
        let dev = Cpu::default();
        let mut net = build(&dev);
        let (pixels, weight) = (images(&dev).as_vec(), net.parameters()[0].value().clone());
        let features = net.forward(images(&dev), Pass::Eval).unwrap().as_vec();
        for (i, feature) in features.iter().enumerate() {
            let (image, unit) = (i / 3, i % 3);
            let want: f64 =
                (0..4).map(|p| f64::from(pixels[image * 4 + p]) * f64::from(weight[p * 3 + unit])).sum();
            // Rounding of four products of numbers up to 1 and √(6/4), and of their sum.
            let allowed = 8.0 * f64::from(f32::EPSILON) * 4.0 * 1.5f64.sqrt();
            assert!((f64::from(*feature) - want.max(0.0)).abs() <= allowed, "{feature} for {want}");
        }
    }

    #[test]
    fn the_gradient_of_a_weight_agrees_with_plain_loops() {
        let dev = Cpu::default();
        let mut net = build(&dev);
        let pixels = images(&dev).as_vec();
        let out = net.forward(images(&dev), Pass::Train).unwrap();
        let features = out.as_vec();
        // The derivative of ½Σy² with respect to a weight is Σ x·y; y is 0 where the ReLU is inactive.
        (out.square().sum::<Rank0, _>() * 0.5).backward();
        let gradient = net.parameters()[0].grad().clone();
        for (i, got) in gradient.iter().enumerate() {
            let (p, unit) = (i / 3, i % 3);
            let want = pixels[p] * features[unit] + pixels[4 + p] * features[3 + unit];
            assert!((got - want).abs() <= 8.0 * f32::EPSILON * 8.0, "{i}: {got} for {want}");
        }
    }

    #[test]
    fn a_duplicate_has_parameters_of_its_own() {
        let dev = Cpu::default();
        let net = build(&dev);
        let copy = net.duplicate().unwrap();
        net.parameters()[0].value_mut()[0] += 1.0;
        assert_ne!(net.parameters()[0].value()[0], copy.parameters()[0].value()[0]);
    }

    #[test]
    fn images_of_another_shape_are_refused() {
        let dev = Cpu::default();
        let message = match build(&dev).forward(dev.zeros_like(&(2, 3, 2, 1)), Pass::Eval) {
            Ok(_) => String::new(),
            Err(e) => e.to_string(),
        };
        assert!(message.contains("expected images of 2×2×1, got 3×2×1"), "{message}");
    }
}
