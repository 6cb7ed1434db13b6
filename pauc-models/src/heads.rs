//! Heads: the projector between features and embeddings.

mod mlp;

#[cfg(feature = "cuda")]
pub(crate) use mlp::{Block, blocks};
pub use mlp::{Mlp, MlpHead};

use dfdx::prelude::HasShape;
use pauc_traits::encoder::Layer;
use pauc_traits::graph::{self, Graph};
use pauc_traits::shards::ShardGroup;
use pauc_traits::{Compute, Error, NetworkSize, Param, Pass, Result, Taped};
use serde::{Deserialize, Serialize};

/// A head as a recipe names it: `Mlp(dims: [256, 128])` or `Identity`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum HeadConfig {
    /// A multi-layer perceptron.
    Mlp(Mlp),
    /// Features are the embeddings.
    Identity,
}

impl HeadConfig {
    /// Counts the parameters and activations for features of width `input`.
    ///
    /// # Errors
    /// If the head has no layers, or a width is beyond its bound.
    pub fn size(&self, input: usize) -> Result<NetworkSize> {
        match self {
            HeadConfig::Mlp(mlp) => mlp.size(input),
            HeadConfig::Identity => Ok(NetworkSize { output: input, parameters: 0, activations: 0 }),
        }
    }

    /// Adds the head in evaluation mode to a graph, and returns its outputs. `prefix` is that of its parameters in
    /// the file of weights, such as `projector.`.
    ///
    /// # Shapes
    /// features (N, F) → (N, D)
    pub fn add_to(&self, graph: &mut Graph, features: &graph::Value, prefix: &str) -> graph::Value {
        match self {
            HeadConfig::Mlp(mlp) => mlp.add_to(graph, features, prefix),
            HeadConfig::Identity => features.clone(),
        }
    }

    /// Returns whether it has batch normalization, which needs at least two images.
    pub fn has_batch_norm(&self) -> bool {
        match self {
            HeadConfig::Mlp(mlp) => mlp.last_batch_norm || (mlp.batch_norm && mlp.dims.len() > 1),
            HeadConfig::Identity => false,
        }
    }
}

/// A network from feature vectors to embeddings, with its parameters and workspace.
pub trait Head<D: Compute> {
    /// Returns the width D of the embeddings.
    fn output_dim(&self) -> usize;

    /// Returns the embeddings of a batch of features.
    ///
    /// With [`Pass::Train`], the result has the input's tape extended by the head's backward pass. That pass
    /// adds to the gradients of [`Head::parameters`] and reads their values, so change them only afterward.
    /// Otherwise the tape is empty.
    ///
    /// # Shapes
    /// x (B, F) → (B, D)
    ///
    /// # Errors
    /// If the features do not have the width that the head was built for, or the device fails.
    fn forward(
        &mut self,
        x: Taped<(usize, usize), f32, D>,
        pass: Pass,
    ) -> Result<Taped<(usize, usize), f32, D>>;

    /// Returns whether [`Head::forward_shards`] is implemented; by default it is not.
    fn normalizes_shards(&self) -> bool {
        false
    }

    /// As [`Head::forward`] with batch statistics, for several shards at once; see [`Encoder::forward_shards`].
    ///
    /// # Shapes
    /// x (V·count·samples, F), ordered as [`ShardGroup`] says → (V·count·samples, D)
    ///
    /// # Errors
    /// As [`Head::forward`], or if the head cannot do this (the default implementation).
    ///
    /// [`Encoder::forward_shards`]: pauc_traits::Encoder::forward_shards
    fn forward_shards(
        &mut self,
        x: Taped<(usize, usize), f32, D>,
        pass: Pass,
        group: &ShardGroup,
        parameters: &[Vec<Param<D>>],
    ) -> Result<Taped<(usize, usize), f32, D>> {
        let _ = (x, pass, group, parameters);
        Err(ShardGroup::refused_by("head"))
    }

    /// Returns the learnable parameters in a fixed order.
    fn parameters(&self) -> Vec<Param<D>>;

    /// Returns state that is saved but not learned, in a fixed order.
    fn statistics(&self) -> Vec<Param<D>>;

    /// Returns a copy with its own parameters and statistics.
    fn duplicate(&self) -> Result<Box<dyn Head<D>>>;

    /// Returns the layers in forward order.
    fn layers(&self) -> Vec<Layer>;
}

/// The head that returns the features unchanged.
#[derive(Clone, Debug)]
pub struct Identity {
    width: usize,
}

impl Identity {
    /// Creates the head for features of the given width.
    pub fn new(width: usize) -> Self {
        Identity { width }
    }
}

impl<D: Compute> Head<D> for Identity {
    fn output_dim(&self) -> usize {
        self.width
    }
    fn forward(
        &mut self,
        x: Taped<(usize, usize), f32, D>,
        _: Pass,
    ) -> Result<Taped<(usize, usize), f32, D>> {
        check_width("identity head", x.shape().1, self.width)?;
        Ok(x)
    }
    fn normalizes_shards(&self) -> bool {
        true
    }
    fn forward_shards(
        &mut self,
        x: Taped<(usize, usize), f32, D>,
        pass: Pass,
        _: &ShardGroup,
        _: &[Vec<Param<D>>],
    ) -> Result<Taped<(usize, usize), f32, D>> {
        self.forward(x, pass)
    }
    fn parameters(&self) -> Vec<Param<D>> {
        Vec::new()
    }
    fn statistics(&self) -> Vec<Param<D>> {
        Vec::new()
    }
    fn duplicate(&self) -> Result<Box<dyn Head<D>>> {
        Ok(Box::new(self.clone()))
    }
    fn layers(&self) -> Vec<Layer> {
        Vec::new()
    }
}

pub(crate) fn check_width(operation: &str, got: usize, want: usize) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::shape(operation, format!("was built for features of width {want}, got {got}")))
}
