//! Encoders: networks from images to features, recorded on a tape.

use crate::graph::{self, Graph};
use crate::registry::Component;
use crate::rng::{Purpose, Stream, stream};
use crate::shards::ShardGroup;
use crate::{Compute, ImageShape, Param, Result, Taped};
use dfdx::prelude::Tensor;
use pauc_kernels::precision::Precision;

/// A batch of images, normalized, channels last: (B, H, W, C).
pub type Images<D> = Tensor<(usize, usize, usize, usize), f32, D>;

/// The mode in which a network runs.
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
    /// The multiply-adds of one image's forward pass.
    pub multiply_adds: u64,
    /// The algorithm of the layer, if there is a choice; empty otherwise.
    pub algorithm: String,
}

/// The size of a network for one image, counted before the network is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkSize {
    /// The width of the output.
    pub output: usize,
    /// The number of learnable parameters.
    pub parameters: u64,
    /// The number of values that a training pass keeps for its backward pass, or fewer.
    pub activations: u64,
}

impl NetworkSize {
    /// Adds a linear layer after the current output.
    pub fn add_linear(&mut self, outputs: usize, bias: bool) {
        let (from, to) = (self.output as u64, outputs as u64);
        self.parameters += from * to + if bias { to } else { 0 };
        self.activations += to;
        self.output = outputs;
    }
}

/// The source of a training pass's random decisions. They depend on the step, the sample and the view, but not on how a
/// batch is split, on threads, or on earlier passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    /// The seed of the run.
    pub seed: u64,
    /// The optimizer step.
    pub step: u64,
    /// The id of the sample and the number of the view of each image.
    pub images: Vec<(u64, u64)>,
}

impl Draws {
    /// Returns the random numbers of each image, in order.
    pub fn streams(&self) -> impl Iterator<Item = Stream> + '_ {
        let of =
            |(sample, view): &(u64, u64)| stream(self.seed, Purpose::DropPath, self.step, *sample, *view);
        self.images.iter().map(of)
    }
}

/// How deep each parameter of an encoder is, for learning rates that decay from layer to layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDepths {
    /// The depth of each of [`Encoder::parameters`]: 0 for what reads the pixels, then one more per block. What follows the
    /// last block has the depth `groups - 1`, like the heads.
    pub of: Vec<usize>,
    /// The number of depths.
    pub groups: usize,
}

impl LayerDepths {
    /// Returns the factor on the learning rate of each parameter: `decay` to the power of its distance from the last group.
    pub fn factors(&self, decay: f64) -> Vec<f64> {
        let last = self.groups.saturating_sub(1);
        self.of.iter().map(|depth| decay.powi(last.saturating_sub(*depth) as i32)).collect()
    }
}

/// A network that maps images to feature vectors. It owns its parameters, activations and workspace.
pub trait Encoder<D: Compute> {
    /// Returns the width F of the features.
    fn feature_dim(&self) -> usize;

    /// Computes the features of a batch.
    ///
    /// With [`Pass::Train`] the result carries a tape whose backward pass adds to the gradients of
    /// [`Encoder::parameters`]. At most one such pass may be outstanding. Otherwise the tape is empty.
    ///
    /// # Shapes
    /// images (B, H, W, C) → features (B, F)
    ///
    /// # Errors
    /// If the shape of the images differs from the one that the encoder was built for, or the device fails.
    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>>;

    /// As [`Encoder::forward`] in training, with random decisions such as dropped paths. The default has none.
    ///
    /// Without [`Pass::Train`] nothing is recorded, but the decisions are the same.
    ///
    /// # Errors
    /// As [`Encoder::forward`], or if `draws` has another number of images.
    fn forward_drawn(
        &mut self,
        images: Images<D>,
        pass: Pass,
        draws: &Draws,
    ) -> Result<Taped<(usize, usize), f32, D>> {
        let _ = draws;
        self.forward(images, pass)
    }

    /// Returns whether [`Encoder::forward_shards`] is implemented; by default it is not. Encoders without batch
    /// normalization do not need it.
    fn normalizes_shards(&self) -> bool {
        false
    }

    /// As [`Encoder::forward`] with batch statistics, for several shards at once. The statistics are those of all shards of
    /// the batch, including those of other processes.
    ///
    /// Each shard has its own `parameters`: those of [`Encoder::parameters`], or parameters that share their values but
    /// receive the gradient of this shard alone. Neither rows nor gradients depend on which shards pass together.
    ///
    /// # Shapes
    /// images (V·count·samples, H, W, C), ordered as [`ShardGroup`] says → features (V·count·samples, F)
    ///
    /// # Errors
    /// As [`Encoder::forward`], or if the encoder cannot do this (the default implementation).
    fn forward_shards(
        &mut self,
        images: Images<D>,
        pass: Pass,
        shards: &ShardGroup,
        parameters: &[Vec<Param<D>>],
    ) -> Result<Taped<(usize, usize), f32, D>> {
        let _ = (images, pass, shards, parameters);
        Err(ShardGroup::refused_by("encoder"))
    }

    /// Returns the learnable parameters in a fixed order.
    fn parameters(&self) -> Vec<Param<D>>;

    /// Returns the depth of each parameter; `None` (the default) if the layers have no order.
    fn depths(&self) -> Option<LayerDepths> {
        None
    }

    /// Returns the state that is saved but not learned, such as running statistics, in a fixed order.
    fn statistics(&self) -> Vec<Param<D>>;

    /// Returns an independent encoder with the same parameters and statistics, for a momentum branch.
    ///
    /// # Errors
    /// If the device fails.
    fn duplicate(&self) -> Result<Box<dyn Encoder<D>>>;

    /// Returns the same network for images of another size. It shares the parameters and statistics of this
    /// one, and has its own workspace and its own outstanding pass.
    ///
    /// # Errors
    /// If the images are too small, or parameters depend on the image size (the default implementation).
    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<D>>> {
        let message = format!("this encoder takes images of a single size; it cannot also take {input}");
        Err(crate::Error::shape("encoder", message))
    }

    /// Returns whether its sums have a fixed order on every device, so that results are identical bit by bit.
    /// That does not hold for networks of dfdx's operations: dfdx's CUDA reductions use atomics and are not
    /// deterministic.
    fn has_fixed_order(&self) -> bool {
        false
    }

    /// Returns the bytes of device memory that a training pass with this number of images needs in addition
    /// to parameters, if they are planned ahead.
    fn memory(&self, _batch: usize) -> Option<usize> {
        None
    }

    /// Returns the layers in forward order.
    fn layers(&self) -> Vec<Layer>;
}

/// The GPU settings of a network. They are chosen when the network is built, and also apply to its
/// duplicates. The CPU ignores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The precision of matrix products.
    pub precision: Precision,
    /// Whether to recompute the outputs of normalization and ReLU in the backward pass instead of keeping
    /// them.
    pub recompute: bool,
}

/// The options for building a network, in addition to its configuration and the shape of the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Selects the random streams of the initial weights.
    pub seed: u64,
    /// For networks with CUDA code of their own. Plain dfdx operations ignore it.
    pub device: DeviceOptions,
}

impl BuildOptions {
    /// Returns options with a seed and defaults.
    pub fn seed(seed: u64) -> Self {
        BuildOptions { seed, device: DeviceOptions::default() }
    }
}

/// A registered encoder: a configuration from which networks are built.
pub trait EncoderConfig<D: Compute>: Component {
    /// Builds the network for images of `input`, with initial weights from the streams of `options.seed`.
    ///
    /// # Errors
    /// If the input is too small for the strides, has the wrong number of channels, or the device fails.
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>>;

    /// Counts the network for images of `input` without building it; `None` (the default) if that is not
    /// known. A known size is held against the memory of the machine before any weight is drawn.
    ///
    /// # Errors
    /// As [`EncoderConfig::build`], except for those of the device.
    fn size(&self, input: ImageShape) -> Result<Option<NetworkSize>> {
        let _ = input;
        Ok(None)
    }

    /// Adds the network in evaluation mode to a graph, for export, and returns its features, (N, F). `images` are
    /// normalized, (N, C, H, W) with H and W of `input`. Parameters have their names in [`Encoder::parameters`].
    /// By default there is no graph.
    ///
    /// # Errors
    /// As [`EncoderConfig::build`], except for those of the device.
    fn graph(
        &self,
        input: ImageShape,
        graph: &mut Graph,
        images: &graph::Value,
    ) -> Result<Option<graph::Value>> {
        let _ = (input, graph, images);
        Ok(None)
    }

    /// Returns the model of timm that has these parameters under the same names, for images of `input`. By
    /// default there is none.
    ///
    /// # Errors
    /// If timm has no such model. The message says what differs.
    fn timm(&self, input: ImageShape) -> Result<TimmModel> {
        let _ = input;
        Err(crate::Error::config("timm has no such encoder"))
    }
}

/// A model of [timm](https://huggingface.co/docs/timm), PyTorch's library of image encoders.
#[derive(Clone, Debug, PartialEq)]
pub struct TimmModel {
    /// Its name, the first argument of `timm.create_model`.
    pub architecture: String,
    /// Further arguments of that function, besides those for the number of classes and channels.
    pub arguments: Vec<(&'static str, TimmArgument)>,
    /// How its features become one vector: `avg` or `token`.
    pub global_pool: &'static str,
    /// The name of its first convolution.
    pub first_conv: &'static str,
    /// The name of its classifier, which the encoder lacks.
    pub classifier: &'static str,
}

/// An argument of a [`TimmModel`].
#[derive(Clone, Debug, PartialEq)]
pub enum TimmArgument {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(usize),
    /// A number.
    Float(f64),
    /// A pair, such as rows and columns.
    Pair([usize; 2]),
    /// A list of integers.
    Ints(Vec<usize>),
    /// A text.
    Text(&'static str),
}
