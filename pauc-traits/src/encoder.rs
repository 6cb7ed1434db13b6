//! Encoders: images in, features out, with a tape between.

use crate::registry::Component;
use crate::{Compute, ImageShape, Param, Result, Taped};
use dfdx::prelude::Tensor;
use pauc_kernels::precision::Precision;

/// A batch of images, normalized, channels last: (B, H, W, C).
pub type Images<D> = Tensor<(usize, usize, usize, usize), f32, D>;

/// How a network is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Training: batch statistics, running statistics updated, operations recorded on the tape.
    Train,
    /// The momentum branch: batch statistics, running statistics updated, nothing recorded.
    Momentum,
    /// Evaluation: running statistics, nothing recorded.
    Eval,
}

/// One layer, for `explain`.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The layer's name, the prefix of its parameters.
    pub name: String,
    /// The shape of one image's output, channels last.
    pub output: Vec<usize>,
    /// The number of learnable parameters.
    pub parameters: usize,
    /// Multiply-adds of one image's forward pass.
    pub multiply_adds: u64,
    /// How the layer is computed, where there is a choice; empty otherwise.
    pub algorithm: String,
}

/// A network that maps images to feature vectors. It owns its parameters, activations and workspace.
pub trait Encoder<D: Compute> {
    /// The width F of the features.
    fn feature_dim(&self) -> usize;

    /// The features of a batch.
    ///
    /// With [`Pass::Train`] the result carries a tape whose backward pass adds to the gradients of
    /// [`Encoder::parameters`]; at most one such pass may be outstanding. Otherwise the tape is empty.
    ///
    /// # Shapes
    /// images (B, H, W, C) → features (B, F)
    ///
    /// # Errors
    /// If the images have another shape than the encoder was built for, or the device fails.
    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>>;

    /// The learnable parameters in a fixed order.
    fn parameters(&self) -> Vec<Param<D>>;

    /// State that is saved but not learnt, such as running statistics, in a fixed order.
    fn statistics(&self) -> Vec<Param<D>>;

    /// An encoder of its own with the same parameters and statistics: the start of a momentum branch.
    ///
    /// # Errors
    /// If the device fails.
    fn duplicate(&self) -> Result<Box<dyn Encoder<D>>>;

    /// The same network for images of another size: it has the very parameters and statistics of this one, and a
    /// workspace and an outstanding pass of its own.
    ///
    /// # Errors
    /// If the images are too small, or parameters depend on their size, which is what encoders say that do not
    /// implement this.
    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<D>>> {
        let message = format!("this encoder takes images of one size only, and not also {input}");
        Err(crate::Error::shape("encoder", message))
    }

    /// Whether its sums have a fixed order on every device, so that it gives the same bits every time. Networks made of dfdx's
    /// operations have not: on CUDA they add as it comes.
    fn has_fixed_order(&self) -> bool {
        false
    }

    /// Bytes of the device's memory that a training pass of so many images takes beside parameters, where that is planned
    /// ahead.
    fn memory(&self, _batch: usize) -> Option<usize> {
        None
    }

    /// The layers in forward order.
    fn layers(&self) -> Vec<Layer>;
}

/// How a network works on a GPU. It is chosen when the network is built, and stays with it and its duplicates.
/// The CPU has nothing to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// How products are rounded.
    pub precision: Precision,
    /// Whether activations that a normalization and a ReLU can recompute are not kept for the backward pass.
    pub recompute: bool,
}

/// What a network is built with, besides its configuration and the shape of the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Selects the random streams of the initial weights.
    pub seed: u64,
    /// For networks that have CUDA code of their own. Plain dfdx operations have nothing to choose.
    pub device: DeviceOptions,
}

impl BuildOptions {
    /// A seed, and the default of everything else.
    pub fn seed(seed: u64) -> Self {
        BuildOptions { seed, device: DeviceOptions::default() }
    }
}

/// A registered encoder: its configuration, from which networks are built.
pub trait EncoderConfig<D: Compute>: Component {
    /// Builds the network for images of `input`, with initial weights from the streams of `options.seed`.
    ///
    /// # Errors
    /// If the input is too small for the strides, has the wrong number of channels, or the device fails.
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>>;
}
