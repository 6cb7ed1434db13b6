//! A network as a run trains it: encoder, projector and, where a term predicts keys, a predictor.

use crate::device::NetworkDevice;
use crate::heads::{Head, HeadConfig};
use dfdx::prelude::{Axis, HasShape, NoneTape, Tensor, TryConcatAlong, TryMul};
use pauc_traits::encoder::{Images, Layer};
use pauc_traits::{
    BuildOptions, Compute, Encoder, EncoderConfig, Error, ImageShape, Param, Pass, Pixels, Result, Taped, ops,
};

/// The number of the projector among a network's parts, for its initial weights; the encoder's is 0.
const PROJECTOR: u64 = 1;
/// The number of the predictor; terms' own matrices draw from a stream of theirs.
const PREDICTOR: u64 = 2;

/// An encoder, a projector, and maybe a predictor.
pub struct Network<D: NetworkDevice> {
    device: D,
    options: BuildOptions,
    input: ImageShape,
    encoder: Box<dyn Encoder<D>>,
    /// The encoder for images of other sizes, made when the first of them come.
    resized: Vec<(ImageShape, Box<dyn Encoder<D>>)>,
    projector: Box<dyn Head<D>>,
    predictor: Option<Box<dyn Head<D>>>,
}

/// Rows of a head's outputs with their tape.
pub type TapedRows<D> = Taped<(usize, usize), f32, D>;

/// What a network makes of a batch.
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

    /// A network of an encoder that was built for images of `input` with the same options, and of a new projector.
    ///
    /// # Errors
    /// If the configuration makes no sense, or the device fails.
    pub fn from_encoder(
        device: &D,
        encoder: Box<dyn Encoder<D>>,
        projector: &HeadConfig,
        input: ImageShape,
        options: BuildOptions,
    ) -> Result<Self> {
        let projector = device.head(projector, encoder.feature_dim(), PROJECTOR, options)?;
        let device = device.clone();
        Ok(Network { device, options, input, encoder, resized: Vec::new(), projector, predictor: None })
    }

    /// Builds a predictor behind the projector, as BYOL and SimSiam have it.
    ///
    /// # Errors
    /// If predictions are not as wide as embeddings, or the device fails.
    pub fn add_predictor(&mut self, predictor: &HeadConfig) -> Result<()> {
        let embedding = self.embedding_dim();
        let predictor = self.device.head(predictor, embedding, PREDICTOR, self.options)?;
        let prediction = predictor.output_dim();
        if prediction != embedding {
            return Err(Error::config(format!("predictions are {prediction} wide, embeddings {embedding}")));
        }
        self.predictor = Some(predictor);
        Ok(())
    }

    /// What the predictor makes of embeddings, on a tape of its own that begins at them; `None` without a predictor.
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

    /// The shape of the images that the network was built for.
    pub fn input(&self) -> ImageShape {
        self.input
    }

    /// The width F of the features.
    pub fn feature_dim(&self) -> usize {
        self.encoder.feature_dim()
    }

    /// The width D of the embeddings.
    pub fn embedding_dim(&self) -> usize {
        self.projector.output_dim()
    }

    /// The features and embeddings of a batch. At most one training pass may wait for its backward pass.
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

    /// The features of a batch alone, with the tape of the encoder in [`Pass::Train`]: what a classifier is put on.
    ///
    /// # Shapes
    /// images (B, H, W, C) → (B, F)
    ///
    /// # Errors
    /// As [`Network::forward`].
    pub fn forward_features(&mut self, images: Images<D>, pass: Pass) -> Result<TapedRows<D>> {
        self.encoder.forward(images, pass)
    }

    /// The features and embeddings of images of one size after those of another, which the projector sees as one batch.
    ///
    /// # Shapes
    /// images (Bᵢ, Hᵢ, Wᵢ, C), at least one such batch → features (ΣBᵢ, F), embeddings (ΣBᵢ, D)
    ///
    /// # Errors
    /// If the encoder cannot take a size, or the device fails.
    pub fn forward_sizes(&mut self, batches: Vec<Images<D>>, pass: Pass) -> Result<Output<D>> {
        let mut all: Option<TapedRows<D>> = None;
        for images in batches {
            let (_, height, width, channels) = *images.shape();
            let features = self.encoder_for(ImageShape { height, width, channels })?.forward(images, pass)?;
            all = Some(match all {
                None => features,
                Some(before) => (before, features).try_concat_along(Axis::<0>).map_err(Error::device)?,
            });
        }
        let features = all.ok_or_else(|| Error::shape("network", "there are no images"))?;
        let constant = features.retaped::<NoneTape>();
        Ok(Output { features: constant, embeddings: self.projector.forward(features, pass)? })
    }

    fn encoder_for(&mut self, shape: ImageShape) -> Result<&mut dyn Encoder<D>> {
        if shape == self.input {
            return Ok(&mut *self.encoder);
        }
        let index = match self.resized.iter().position(|r| r.0 == shape) {
            Some(index) => index,
            None => {
                self.resized.push((shape, self.encoder.resized(shape)?));
                self.resized.len() - 1
            }
        };
        Ok(&mut *self.resized[index].1)
    }

    /// The features and embeddings of any number of images in evaluation mode, `chunk` of them at a time.
    ///
    /// # Shapes
    /// pixels: N images, each (H, W, C)
    ///
    /// # Errors
    /// If the pixels are no whole number of images, or the device fails.
    pub fn embed(&mut self, pixels: &Pixels, chunk: usize) -> Result<Embedded> {
        let ImageShape { height, width, channels } = self.input;
        let image = self.input.len();
        if image == 0 || !pixels.len().is_multiple_of(image) {
            let message = format!("{} values are no whole number of {} images", pixels.len(), self.input);
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

    /// The encoder's learnable parameters under names of their own, as files of weights have them.
    pub fn encoder_parameters(&self) -> Vec<Param<D>> {
        self.encoder.parameters()
    }

    /// The encoder's running statistics under names of their own.
    pub fn encoder_statistics(&self) -> Vec<Param<D>> {
        self.encoder.statistics()
    }

    /// The learnable parameters in a fixed order, named `encoder.…`, `projector.…` and `predictor.…`.
    pub fn parameters(&self) -> Vec<Param<D>> {
        let predictor = self.predictor.iter().flat_map(|p| prefixed("predictor.", p.parameters()));
        self.followed_parameters().into_iter().chain(predictor).collect()
    }

    /// State that is saved but not learnt, in a fixed order, named like the parameters.
    pub fn statistics(&self) -> Vec<Param<D>> {
        let predictor = self.predictor.iter().flat_map(|p| prefixed("predictor.", p.statistics()));
        self.followed_statistics().into_iter().chain(predictor).collect()
    }

    /// The parameters that a momentum branch has too and that it follows: all but the predictor's.
    pub fn followed_parameters(&self) -> Vec<Param<D>> {
        let projector = prefixed("projector.", self.projector.parameters());
        prefixed("encoder.", self.encoder.parameters()).chain(projector).collect()
    }

    /// The statistics that a momentum branch has too: all but the predictor's.
    pub fn followed_statistics(&self) -> Vec<Param<D>> {
        let projector = prefixed("projector.", self.projector.statistics());
        prefixed("encoder.", self.encoder.statistics()).chain(projector).collect()
    }

    /// A network of its own with the same parameters and statistics but without predictor: the start of a momentum
    /// branch.
    ///
    /// # Errors
    /// If the device fails.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Network {
            device: self.device.clone(),
            options: self.options,
            input: self.input,
            encoder: self.encoder.duplicate()?,
            resized: Vec::new(),
            projector: self.projector.duplicate()?,
            predictor: None,
        })
    }

    /// [`Encoder::has_fixed_order`].
    pub fn has_fixed_order(&self) -> bool {
        self.encoder.has_fixed_order()
    }

    /// [`Encoder::memory`].
    pub fn encoder_memory(&self, batch: usize) -> Option<usize> {
        self.encoder.memory(batch)
    }

    /// The layers in forward order, named like the parameters.
    pub fn layers(&self) -> Vec<Layer> {
        let prefixed = |prefix: &'static str, layers: Vec<Layer>| {
            layers.into_iter().map(move |l| Layer { name: format!("{prefix}{}", l.name), ..l })
        };
        let encoder = prefixed("encoder.", self.encoder.layers());
        let predictor = self.predictor.iter().flat_map(|p| prefixed("predictor.", p.layers()));
        encoder.chain(prefixed("projector.", self.projector.layers())).chain(predictor).collect()
    }
}

/// Parameters under names that begin with the part of the network that they belong to.
fn prefixed<D: Compute>(part: &'static str, params: Vec<Param<D>>) -> impl Iterator<Item = Param<D>> {
    params.into_iter().map(move |p| p.prefixed(part))
}

/// Runs a network's backward pass from given gradients ∂L/∂x at its embeddings or features, row-major, and at its predictions if
/// there are any. The parameters' gradients are added to.
///
/// # Errors
/// If a gradient has another size than its outputs, or the device fails.
pub fn backward_with<D: Compute>(
    embeddings: Taped<(usize, usize), f32, D>,
    gradient: Vec<f32>,
    predictions: Option<(TapedRows<D>, Vec<f32>)>,
) -> Result<()> {
    let rows = |outputs: TapedRows<D>, gradient: Vec<f32>| {
        let shape = *outputs.shape();
        if gradient.len() != shape.0 * shape.1 {
            let message = format!("{} values for embeddings of {}×{}", gradient.len(), shape.0, shape.1);
            return Err(Error::shape("gradient of the embeddings", message));
        }
        let gradient = outputs.device().try_tensor_from_vec(gradient, shape).map_err(Error::device)?;
        Ok((outputs, gradient))
    };
    let (embeddings, gradient) = rows(embeddings, gradient)?;
    backward_with_rows(embeddings, gradient, predictions.map(|(p, g)| rows(p, g)).transpose()?)
}

/// [`backward_with`] gradients in the device's memory.
///
/// # Errors
/// If a gradient has another shape than its outputs, or the device fails.
pub fn backward_with_rows<D: Compute>(
    embeddings: TapedRows<D>,
    gradient: ops::Matrix<f32, D>,
    predictions: Option<(TapedRows<D>, ops::Matrix<f32, D>)>,
) -> Result<()> {
    let mut sum = surrogate(embeddings, gradient)?;
    if let Some((predictions, gradient)) = predictions {
        // The predictions' tape begins at the embeddings, where the tape of the whole network ends.
        sum = sum + surrogate(predictions, gradient)?;
    }
    dfdx::prelude::Backward::try_backward(sum).map_err(Error::device)?;
    Ok(())
}

/// Σ x·G, whose derivative with respect to x is G.
fn surrogate<D: Compute>(
    embeddings: TapedRows<D>,
    gradient: ops::Matrix<f32, D>,
) -> Result<pauc_traits::Value<f32, D>> {
    let (got, want) = (*gradient.shape(), *embeddings.shape());
    if got != want {
        let message = format!("{got:?} for embeddings of {want:?}");
        return Err(Error::shape("gradient of the embeddings", message));
    }
    Ok(ops::total(embeddings.try_mul(gradient).map_err(Error::device)?))
}
