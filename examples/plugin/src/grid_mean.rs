//! An encoder, written with plain dfdx operations.

use dfdx::prelude::*;
use pauc_traits::encoder::{Images, Layer};
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{
    BuildOptions, Compute, Count, Encoder, EncoderConfig, Error, ImageShape, Param, Pass, Result, Taped,
    component, ops,
};
use rand::Rng;

component! {
    /// Averages the image over a coarse grid and applies one linear layer with ReLU: a minimal encoder.
    ///
    /// # Shapes
    /// images (B, H, W, C) → grid means (B, cells²·C) → features (B, width)
    pub struct GridMean: Encoder {
        /// The number of cells along each side of the grid.
        pub cells: Count = Count::lit(7),
        /// The width of the features.
        pub width: Count = Count::lit(64),
    }
}

impl<D: Compute> EncoderConfig<D> for GridMean {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        let (cells, width) = (self.cells.get(), self.width.get());
        if cells > input.height || cells > input.width {
            let message =
                format!("{cells} cells per side do not fit into images of {input}: use a smaller `cells`");
            return Err(Error::shape("grid", message));
        }
        let inputs = cells * cells * input.channels;
        let mut rng = stream(options.seed, Purpose::Init, 0, 0, 0);
        let bound = (6.0 / inputs as f32).sqrt();
        let values: Vec<f32> = (0..inputs * width).map(|_| rng.gen_range(-bound..bound)).collect();
        let weight = Param::new(device, "weight", &[inputs, width], Role::Weight, &values)?;
        let bias = Param::new(device, "bias", &[width], Role::Bias, &vec![0.0; width])?;
        Ok(Box::new(Network { device: device.clone(), input, cells, weight, bias }))
    }
}

struct Network<D: Compute> {
    device: D,
    input: ImageShape,
    cells: usize,
    weight: Param<D>,
    bias: Param<D>,
}

impl<D: Compute> Network<D> {
    /// Returns the linear map from pixels to grid means, (H·W·C, cells²·C).
    fn averaging(&self) -> Tensor<(usize, usize), f32, D> {
        let ImageShape { height, width, channels } = self.input;
        let (n, columns) = (self.input.len(), self.cells * self.cells * channels);
        let cell = |at: usize, size: usize| at * self.cells / size;
        let of = |i: usize| {
            let (y, x, c) = (i / (width * channels), i / channels % width, i % channels);
            (cell(y, height) * self.cells + cell(x, width)) * channels + c
        };
        let mut sizes = vec![0f32; columns];
        (0..n).for_each(|i| sizes[of(i)] += 1.0);
        let mut map = vec![0f32; n * columns];
        (0..n).for_each(|i| map[i * columns + of(i)] = 1.0 / sizes[of(i)]);
        ops::constant(&self.device, map, (n, columns))
    }
}

impl<D: Compute> Encoder<D> for Network<D> {
    fn feature_dim(&self) -> usize {
        self.bias.len()
    }

    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>> {
        let (b, h, w, c) = *images.shape();
        let ImageShape { height, width, channels } = self.input;
        if (h, w, c) != (height, width, channels) {
            return Err(Error::shape("grid", format!("got images of {h}×{w}×{c}, expected {}", self.input)));
        }
        let means = images.reshape_like(&(b, self.input.len())).matmul(self.averaging());
        let (inputs, features) = (self.weight.shape[0], self.feature_dim());
        let weight = self.weight.traced(&self.device, (inputs, features))?;
        let bias = self.bias.traced(&self.device, (features,))?;
        let out = means.retaped::<OwnedTape<f32, D>>().matmul(weight);
        let out = (out + bias.broadcast_like::<_, Axis<0>>(&(b, features))).relu();
        // Only training passes keep the tape.
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
            cells: self.cells,
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

    #[test]
    fn the_gradient_of_a_weight_agrees_with_finite_differences() {
        let dev = Cpu::default();
        let shape = ImageShape { height: 5, width: 4, channels: 1 };
        let config = GridMean { cells: Count::lit(2), width: Count::lit(3) };
        let mut net = EncoderConfig::<Cpu>::build(&config, &dev, shape, BuildOptions::seed(3)).unwrap();
        let pixels: Vec<f32> = (0..40).map(|i| (i as f32 * 1.3).sin()).collect();
        let images = || dev.tensor_from_vec(pixels.clone(), (2, 5, 4, 1));
        net.forward(images(), Pass::Train).unwrap().square().sum::<Rank0, _>().backward();
        let weight = net.parameters()[0].clone();
        for i in 0..weight.len() {
            let still = weight.value()[i];
            let mut shifted = |by: f32| {
                weight.value_mut()[i] = still + by;
                let out = net.forward(images(), Pass::Eval).unwrap().as_vec();
                weight.value_mut()[i] = still;
                out
            };
            // As long as no ReLU switches, the loss is quadratic in a weight: differences have no truncation
            // error, and a wide step keeps their rounding small.
            let step = 1.0f32 / 16.0;
            let (above, below) = (shifted(step), shifted(-step));
            assert!(above.iter().zip(&below).all(|(a, b)| (*a > 0.0) == (*b > 0.0)), "{i}: a unit switches");
            let squares = |out: &[f32]| out.iter().map(|v| (*v as f64).powi(2)).sum::<f64>();
            let numeric = (squares(&above) - squares(&below)) / (2.0 * step as f64);
            let gradient = weight.grad()[i] as f64;
            // An output is a sum over four means of twenty pixels, with weights up to √(6/4). It is off by at
            // most the rounding of 26 operations on numbers that sum to 4·√(6/4). Its square is off by twice
            // the output times that. Two outputs read a weight, above and below. The gradient contains their
            // means, which are rounded too.
            let off = 26.0 * f32::EPSILON as f64 / 2.0 * 4.0 * 1.5f64.sqrt();
            let largest = above.iter().chain(&below).fold(0.0f32, |m, v| m.max(*v)) as f64;
            let allowed = 2.0 * 2.0 * largest * off * (1.0 / step as f64 + 2.0);
            assert!((numeric - gradient).abs() <= allowed, "{i}: {numeric} for {gradient} ± {allowed}");
        }
        assert!(net.forward(dev.zeros_like(&(2, 4, 4, 1)), Pass::Eval).is_err());
    }
}
