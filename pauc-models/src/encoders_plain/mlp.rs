//! The multi-layer perceptron on pixels.

use super::{Leaf, linear};
use crate::bounds::width;
use crate::device::NetworkDevice;
use crate::init::uniform;
use dfdx::prelude::*;
use pauc_traits::encoder::{Images, Layer};
use pauc_traits::graph::{self, Attribute, Graph};
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{
    BuildOptions, Compute, Count, Encoder, EncoderConfig, Error, ImageShape, NetworkSize, Param, Pass,
    Result, Taped, component,
};

component! {
    /// A multi-layer perceptron on the flattened pixels: Linear → ReLU, repeated.
    ///
    /// For small images and quick checks, and as an example of an encoder in plain dfdx operations. Weights
    /// and biases start uniform in ±1/√inputs, as in PyTorch's `nn.Linear`. Parameters are named as in
    /// `nn.Sequential(Linear, ReLU, Linear, ReLU, …)`.
    ///
    /// # Shapes
    /// (B, H, W, C) → (B, last of `dims`), non-negative
    pub struct MlpEncoder: Encoder {
        /// The widths of the layers. The last one is the width of the features.
        pub dims: Vec<Count> = vec![Count::lit(256), Count::lit(128)],
    }
}

impl<D: NetworkDevice> EncoderConfig<D> for MlpEncoder {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        self.size_of(input)?;
        let (mut layers, mut inputs) = (Vec::new(), input.len());
        for (i, outputs) in self.dims.iter().map(|d| d.get()).enumerate() {
            let bound = 1.0 / (inputs as f32).sqrt();
            let drawn = |n: usize, shape: &[usize]| {
                uniform(&mut stream(options.seed, Purpose::Init, 0, (2 * i + n) as u64, 0), bound, shape)
            };
            let (w, b) = ([outputs, inputs], [outputs]);
            layers.push([
                Param::new(device, format!("{}.weight", 2 * i), &w, Role::Weight, &drawn(0, &w))?,
                Param::new(device, format!("{}.bias", 2 * i), &b, Role::Bias, &drawn(1, &b))?,
            ]);
            inputs = outputs;
        }
        device.perceptron(input, layers, options.device)
    }

    fn size(&self, input: ImageShape) -> Result<Option<NetworkSize>> {
        self.size_of(input).map(Some)
    }

    fn graph(&self, _: ImageShape, graph: &mut Graph, images: &graph::Value) -> Result<Option<graph::Value>> {
        // The pixels' channels come last.
        let pixels = graph.node("Transpose", &[images], &[("perm", Attribute::Ints(vec![0, 2, 3, 1]))]);
        let mut x = graph.node("Flatten", &[&pixels], &[("axis", Attribute::Int(1))]);
        for i in 0..self.dims.len() {
            let [weight, bias] = ["weight", "bias"].map(|part| format!("{}.{part}", 2 * i));
            x = graph.linear(&x, &weight, Some(&bias));
            x = graph.node("Relu", &[&x], &[]);
        }
        Ok(Some(x))
    }
}

impl MlpEncoder {
    fn size_of(&self, input: ImageShape) -> Result<NetworkSize> {
        if self.dims.is_empty() {
            return Err(Error::config(
                "`dims` of `MlpEncoder` is empty: give at least the width of the features",
            ));
        }
        let mut size = NetworkSize { output: input.len(), parameters: 0, activations: 0 };
        for dim in &self.dims {
            size.add_linear(width("dims", dim.get())?, true);
        }
        Ok(size)
    }
}

/// The network in plain operations: weight and bias of each layer.
pub(crate) struct Perceptron<D: Compute> {
    device: D,
    input: ImageShape,
    layers: Vec<[Param<D>; 2]>,
}

impl<D: Compute> Perceptron<D> {
    /// Creates a network of these layers.
    pub(crate) fn new(device: &D, input: ImageShape, layers: Vec<[Param<D>; 2]>) -> Self {
        Perceptron { device: device.clone(), input, layers }
    }

    fn run<T: Leaf<D>>(
        &self,
        mut x: Tensor<(usize, usize), f32, D, T>,
    ) -> Result<Tensor<(usize, usize), f32, D, T>> {
        for layer in &self.layers {
            x = linear(x, layer)?.try_relu().map_err(Error::device)?;
        }
        Ok(x)
    }
}

impl<D: Compute> Encoder<D> for Perceptron<D> {
    fn feature_dim(&self) -> usize {
        self.layers.last().map_or(0, |[_, bias]| bias.len())
    }

    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>> {
        let (batch, height, width, channels) = *images.shape();
        let got = ImageShape { height, width, channels };
        if got != self.input {
            let message = format!("was built for images of {}, got {got}", self.input);
            return Err(Error::shape("mlp encoder", message));
        }
        let pixels = images.try_reshape_like(&(batch, self.input.len())).map_err(Error::device)?;
        match pass {
            Pass::Train => self.run(pixels.put_tape(OwnedTape::default())),
            Pass::Momentum | Pass::Eval => Ok(self.run(pixels)?.put_tape(OwnedTape::default())),
        }
    }

    fn parameters(&self) -> Vec<Param<D>> {
        self.layers.iter().flatten().cloned().collect()
    }

    fn statistics(&self) -> Vec<Param<D>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<D>>> {
        let copy = |[w, b]: &[Param<D>; 2]| Ok([w.deep_clone(&self.device)?, b.deep_clone(&self.device)?]);
        let layers = self.layers.iter().map(copy).collect::<Result<_>>()?;
        Ok(Box::new(Perceptron::new(&self.device, self.input, layers)))
    }

    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<D>>> {
        if input != self.input {
            let message = format!("this encoder takes images of a single size; it cannot also take {input}");
            return Err(Error::shape("encoder", message));
        }
        Ok(Box::new(Perceptron::new(&self.device, self.input, self.layers.clone())))
    }

    fn layers(&self) -> Vec<Layer> {
        let layer = |[w, b]: &[Param<D>; 2]| Layer {
            name: w.name.trim_end_matches(".weight").into(),
            output: b.shape.clone(),
            parameters: w.len() + b.len(),
            multiply_adds: w.len() as u64,
            algorithm: "linear, relu".into(),
        };
        self.layers.iter().map(layer).collect()
    }
}
