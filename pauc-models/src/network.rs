//! The network that a run trains: encoder, projector and, if a term predicts keys, a predictor.

mod shards;

use crate::device::NetworkDevice;
use crate::heads::{Head, HeadConfig};
use dfdx::prelude::{Axis, HasShape, NoneTape, Tensor, TryConcatAlong, TryMul};
use pauc_traits::encoder::{Draws, Images, Layer, LayerDepths};
use pauc_traits::{
    BuildOptions, Compute, Encoder, EncoderConfig, Error, ImageShape, Param, Pass, Pixels, Result, Taped, ops,
};

/// The number of the projector among the parts of a network, for its initial weights. The encoder's is 0.
const PROJECTOR: u64 = 1;
/// The number of the predictor. The matrices of terms have their own random stream.
const PREDICTOR: u64 = 2;

/// An encoder, a projector and an optional predictor.
pub struct Network<D: NetworkDevice> {
    device: D,
    options: BuildOptions,
    input: ImageShape,
    encoder: Box<dyn Encoder<D>>,
    /// The encoder for images of other sizes and for further outstanding passes, created when they are first needed.
    others: Vec<(Slot, Box<dyn Encoder<D>>)>,
    projector: Box<dyn Head<D>>,
    predictor: Option<Box<dyn Head<D>>>,
    /// For each of several shards that pass together, parameters with gradients of its own; see
    /// [`Network::forward_shards`].
    shards: Vec<Vec<Param<D>>>,
}

/// What an encoder's workspace is for: the shape of its images, and the number of the outstanding pass.
type Slot = (ImageShape, usize);

/// Rows of a head's outputs with their tape.
pub type TapedRows<D> = Taped<(usize, usize), f32, D>;

/// The outputs of a network for a batch.
#[derive(Debug)]
pub struct Output<D: Compute> {
    /// The encoder's features h, (B, F), without a tape.
    pub features: Tensor<(usize, usize), f32, D>,
    /// The projector's outputs x, (B, D), with the tape of the whole network in [`Pass::Train`].
    pub embeddings: Taped<(usize, usize), f32, D>,
}

/// Features and embeddings of many images, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedded {
    /// (N, F).
    pub features: Vec<f32>,
    /// (N, D), raw projector outputs.
    pub embeddings: Vec<f32>,
}

impl<D: NetworkDevice> Network<D> {
    /// Builds a network for images of `input`.
    ///
    /// # Errors
    /// If the configurations do not fit the images, or the device fails.
    pub fn build(
        device: &D,
        encoder: &dyn EncoderConfig<D>,
        projector: &HeadConfig,
        input: ImageShape,
        options: BuildOptions,
    ) -> Result<Self> {
        Self::from_encoder(device, encoder.build(device, input, options)?, projector, input, options)
    }

    /// Creates a network from an encoder built for images of `input` with the same options, and a new
    /// projector.
    ///
    /// # Errors
    /// If the configuration is invalid, or the device fails.
    pub fn from_encoder(
        device: &D,
        encoder: Box<dyn Encoder<D>>,
        projector: &HeadConfig,
        input: ImageShape,
        options: BuildOptions,
    ) -> Result<Self> {
        let projector = device.head(projector, encoder.feature_dim(), PROJECTOR, options)?;
        let device = device.clone();
        Ok(Network {
            device,
            options,
            input,
            encoder,
            others: Vec::new(),
            projector,
            predictor: None,
            shards: Vec::new(),
        })
    }

    /// Adds a predictor after the projector, as in BYOL and SimSiam.
    ///
    /// # Errors
    /// If predictions and embeddings differ in width, or the device fails.
    pub fn add_predictor(&mut self, predictor: &HeadConfig) -> Result<()> {
        let embedding = self.embedding_dim();
        let predictor = self.device.head(predictor, embedding, PREDICTOR, self.options)?;
        let prediction = predictor.output_dim();
        if prediction != embedding {
            return Err(Error::config(format!(
                "predictions have width {prediction}; expected {embedding}, the width of embeddings"
            )));
        }
        self.predictor = Some(predictor);
        Ok(())
    }

    /// Returns the predictions for embeddings, on a new tape that starts at the embeddings; `None` without a
    /// predictor.
    ///
    /// # Shapes
    /// x (B, D) → (B, D)
    ///
    /// # Errors
    /// If the device fails.
    pub fn predict(
        &mut self,
        embeddings: &Tensor<(usize, usize), f32, D>,
        pass: Pass,
    ) -> Result<Option<TapedRows<D>>> {
        self.predictor.as_mut().map(|p| p.forward(embeddings.retaped(), pass)).transpose()
    }

    /// Returns the shape of the images that the network was built for.
    pub fn input(&self) -> ImageShape {
        self.input
    }

    /// Returns the width F of the features.
    pub fn feature_dim(&self) -> usize {
        self.encoder.feature_dim()
    }

    /// Returns the width D of the embeddings.
    pub fn embedding_dim(&self) -> usize {
        self.projector.output_dim()
    }

    /// Returns the features and embeddings of a batch. At most one training pass may be outstanding.
    ///
    /// # Shapes
    /// images (B, H, W, C) → features (B, F), embeddings (B, D)
    ///
    /// # Errors
    /// If the images have another shape than the network was built for, or the device fails.
    pub fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Output<D>> {
        let features = self.encoder.forward(images, pass)?;
        let constant = features.retaped::<NoneTape>();
        Ok(Output { features: constant, embeddings: self.projector.forward(features, pass)? })
    }

    /// Returns the features of a batch in training, with the encoder's tape, for a classifier on top.
    ///
    /// # Shapes
    /// images (B, H, W, C) → (B, F)
    ///
    /// # Errors
    /// As [`Network::forward`], or if the draws are not those of the images.
    pub fn forward_features(&mut self, images: Images<D>, draws: &Draws) -> Result<TapedRows<D>> {
        self.encoder.forward_drawn(images, Pass::Train, draws)
    }

    /// Returns the features and embeddings of batches with different image sizes, concatenated. The projector
    /// sees them as one batch.
    ///
    /// # Shapes
    /// images (Bᵢ, Hᵢ, Wᵢ, C), at least one such batch → features (ΣBᵢ, F), embeddings (ΣBᵢ, D)
    ///
    /// # Errors
    /// If the encoder cannot take a size, or the device fails.
    pub fn forward_sizes(&mut self, batches: Vec<Images<D>>, pass: Pass) -> Result<Output<D>> {
        self.forward_all(batches.into_iter().map(|images| (images, None)), pass, 0)
    }

    /// As [`Network::forward_sizes`] in training, with random decisions in the encoder. Training passes with
    /// different numbers may be outstanding together; see [`Network::has_passes`].
    ///
    /// # Errors
    /// As [`Network::forward_sizes`], or if the draws of a batch are not those of its images.
    pub fn forward_drawn(
        &mut self,
        batches: Vec<(Images<D>, Draws)>,
        pass: Pass,
        number: usize,
    ) -> Result<Output<D>> {
        self.forward_all(batches.into_iter().map(|(images, draws)| (images, Some(draws))), pass, number)
    }

    /// Returns whether `count` training passes may be outstanding together. Each has its own workspace.
    pub fn has_passes(&mut self, count: usize) -> bool {
        let input = self.input;
        (0..count).all(|number| self.encoder_for((input, number)).is_ok())
    }

    fn forward_all(
        &mut self,
        batches: impl Iterator<Item = (Images<D>, Option<Draws>)>,
        pass: Pass,
        number: usize,
    ) -> Result<Output<D>> {
        let mut all: Option<TapedRows<D>> = None;
        for (images, draws) in batches {
            let (_, height, width, channels) = *images.shape();
            let encoder = self.encoder_for((ImageShape { height, width, channels }, number))?;
            let features = match draws {
                None => encoder.forward(images, pass)?,
                Some(draws) => encoder.forward_drawn(images, pass, &draws)?,
            };
            all = Some(match all {
                None => features,
                Some(before) => (before, features).try_concat_along(Axis::<0>).map_err(Error::device)?,
            });
        }
        let features = all.ok_or_else(|| Error::shape("network", "there are no images"))?;
        let constant = features.retaped::<NoneTape>();
        Ok(Output { features: constant, embeddings: self.projector.forward(features, pass)? })
    }

    fn encoder_for(&mut self, slot: Slot) -> Result<&mut dyn Encoder<D>> {
        if slot == (self.input, 0) {
            return Ok(&mut *self.encoder);
        }
        let index = match self.others.iter().position(|other| other.0 == slot) {
            Some(index) => index,
            None => {
                self.others.push((slot, self.encoder.resized(slot.0)?));
                self.others.len() - 1
            }
        };
        Ok(&mut *self.others[index].1)
    }

    /// Returns the features and embeddings of any number of images in evaluation mode, in chunks of `chunk`
    /// images.
    ///
    /// # Shapes
    /// pixels: N images, each (H, W, C)
    ///
    /// # Errors
    /// If the number of pixels is not a multiple of the image size, or the device fails.
    pub fn embed(&mut self, pixels: &Pixels, chunk: usize) -> Result<Embedded> {
        let ImageShape { height, width, channels } = self.input;
        let image = self.input.len();
        if image == 0 || !pixels.len().is_multiple_of(image) {
            let message =
                format!("{} values are not a multiple of the size of an image, {}", pixels.len(), self.input);
            return Err(Error::shape("embed", message));
        }
        let mut all = Embedded::default();
        let chunk = image * chunk.max(1);
        for start in (0..pixels.len()).step_by(chunk) {
            let part = start..(start + chunk).min(pixels.len());
            let shape = (part.len() / image, height, width, channels);
            let images = self.device.images(&[pixels], part, shape)?;
            let output = self.forward(images, Pass::Eval)?;
            all.features.extend(ops::to_host(&output.features)?);
            all.embeddings.extend(ops::to_host(&output.embeddings)?);
        }
        Ok(all)
    }

    /// Returns the encoder's learnable parameters with unprefixed names, as in weight files.
    pub fn encoder_parameters(&self) -> Vec<Param<D>> {
        self.encoder.parameters()
    }

    /// See [`Encoder::depths`].
    pub fn encoder_depths(&self) -> Option<LayerDepths> {
        self.encoder.depths()
    }

    /// Returns the encoder's running statistics with unprefixed names, as in weight files.
    pub fn encoder_statistics(&self) -> Vec<Param<D>> {
        self.encoder.statistics()
    }

    /// Returns the learnable parameters in a fixed order, named `encoder.…`, `projector.…` and `predictor.…`.
    pub fn parameters(&self) -> Vec<Param<D>> {
        let predictor = self.predictor.iter().flat_map(|p| prefixed("predictor.", p.parameters()));
        self.followed_parameters().into_iter().chain(predictor).collect()
    }

    /// Returns state that is saved but not learned, in a fixed order, named like the parameters.
    pub fn statistics(&self) -> Vec<Param<D>> {
        let predictor = self.predictor.iter().flat_map(|p| prefixed("predictor.", p.statistics()));
        self.followed_statistics().into_iter().chain(predictor).collect()
    }

    /// Returns the parameters that a momentum branch follows: all but the predictor's.
    pub fn followed_parameters(&self) -> Vec<Param<D>> {
        let projector = prefixed("projector.", self.projector.parameters());
        prefixed("encoder.", self.encoder.parameters()).chain(projector).collect()
    }

    /// Returns the statistics that a momentum branch follows: all but the predictor's.
    pub fn followed_statistics(&self) -> Vec<Param<D>> {
        let projector = prefixed("projector.", self.projector.statistics());
        prefixed("encoder.", self.encoder.statistics()).chain(projector).collect()
    }

    /// Copies the network without its predictor: the start of a momentum branch.
    ///
    /// # Errors
    /// If the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Network {
            device: self.device.clone(),
            options: self.options,
            input: self.input,
            encoder: self.encoder.duplicate()?,
            others: Vec::new(),
            projector: self.projector.duplicate()?,
            predictor: None,
            shards: Vec::new(),
        })
    }

    /// See [`Encoder::has_fixed_order`].
    pub fn has_fixed_order(&self) -> bool {
        self.encoder.has_fixed_order()
    }

    /// See [`Encoder::memory`].
    pub fn encoder_memory(&self, batch: usize) -> Option<usize> {
        self.encoder.memory(batch)
    }

    /// Returns the layers in forward order, named like the parameters.
    pub fn layers(&self) -> Vec<Layer> {
        let prefixed = |prefix: &'static str, layers: Vec<Layer>| {
            layers.into_iter().map(move |l| Layer { name: format!("{prefix}{}", l.name), ..l })
        };
        let encoder = prefixed("encoder.", self.encoder.layers());
        let predictor = self.predictor.iter().flat_map(|p| prefixed("predictor.", p.layers()));
        encoder.chain(prefixed("projector.", self.projector.layers())).chain(predictor).collect()
    }
}

/// Prefixes the names of parameters with their part of the network.
fn prefixed<D: Compute>(part: &'static str, params: Vec<Param<D>>) -> impl Iterator<Item = Param<D>> {
    params.into_iter().map(move |p| p.prefixed(part))
}

/// Runs the backward pass of a network from given gradients ∂L/∂x at its embeddings or features, row-major,
/// and at its predictions, if any. Accumulates the gradients of the parameters.
///
/// # Errors
/// If the size of a gradient is not that of its outputs, or the device fails.
pub fn backward_with<D: Compute>(
    embeddings: Taped<(usize, usize), f32, D>,
    gradient: Vec<f32>,
    predictions: Option<(TapedRows<D>, Vec<f32>)>,
) -> Result<()> {
    let rows = |outputs: TapedRows<D>, gradient: Vec<f32>| {
        let shape = *outputs.shape();
        if gradient.len() != shape.0 * shape.1 {
            let message =
                format!("{} values; expected those of embeddings, {}×{}", gradient.len(), shape.0, shape.1);
            return Err(Error::shape("gradient of the embeddings", message));
        }
        let gradient = outputs.device().try_tensor_from_vec(gradient, shape).map_err(Error::device)?;
        Ok((outputs, gradient))
    };
    let (embeddings, gradient) = rows(embeddings, gradient)?;
    backward_with_rows(embeddings, gradient, predictions.map(|(p, g)| rows(p, g)).transpose()?)
}

/// As [`backward_with`], with gradients in device memory.
///
/// # Errors
/// If the shape of a gradient is not that of its outputs, or the device fails.
pub fn backward_with_rows<D: Compute>(
    embeddings: TapedRows<D>,
    gradient: ops::Matrix<f32, D>,
    predictions: Option<(TapedRows<D>, ops::Matrix<f32, D>)>,
) -> Result<()> {
    let mut sum = surrogate(embeddings, gradient)?;
    if let Some((predictions, gradient)) = predictions {
        // The tape of the predictions starts at the embeddings, where the tape of the whole network ends.
        sum = sum + surrogate(predictions, gradient)?;
    }
    dfdx::prelude::Backward::try_backward(sum).map_err(Error::device)?;
    Ok(())
}

/// Returns Σ x·G, whose derivative with respect to x is G.
fn surrogate<D: Compute>(
    embeddings: TapedRows<D>,
    gradient: ops::Matrix<f32, D>,
) -> Result<pauc_traits::Value<f32, D>> {
    let (got, want) = (*gradient.shape(), *embeddings.shape());
    if got != want {
        let message = format!("shape {got:?}; expected that of the embeddings, {want:?}");
        return Err(Error::shape("gradient of the embeddings", message));
    }
    Ok(ops::total(embeddings.try_mul(gradient).map_err(Error::device)?))
}
