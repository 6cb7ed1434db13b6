//! The network of a vision transformer, in plain operations.

use super::block::{Block, Dropped, TokenRows};
use super::{Plan, Pool};
use crate::encoders_plain::{Leaf, layer_norm};
use crate::{drop_path, positions};
use dfdx::prelude::*;
use pauc_traits::encoder::{Draws, Images, Layer, LayerDepths};
use pauc_traits::{Compute, Encoder, Error, ImageShape, Param, Pass, Result, Taped};
use std::rc::Rc;

/// The network of a [`VisionTransformer`](super::VisionTransformer), in plain operations.
pub struct Transformer<D: Compute> {
    pub(crate) device: D,
    pub(crate) plan: Plan,
    pub(crate) class_token: Option<Param<D>>,
    pub(crate) registers: Option<Param<D>>,
    pub(crate) positions: Param<D>,
    /// The matrix from the learned positions to those of the images, (positions of tokens, learned positions); `None` if
    /// they are the same.
    pub(crate) resampling: Option<Rc<D::Buffer>>,
    pub(crate) embedding: [Param<D>; 2],
    pub(crate) blocks: Vec<Block<D>>,
    pub(crate) norm: [Param<D>; 2],
}

/// The factors of dropped paths by branch and image, see [`drop_path::factors`]. A block has two branches.
type Factors = Vec<Vec<f32>>;

impl<D: Compute> Transformer<D> {
    /// Copies the values into a new network.
    pub(crate) fn copy(&self) -> Result<Self> {
        self.map(&|p| p.deep_clone(&self.device))
    }

    /// Returns the network for images of another size, with the same parameters.
    pub(crate) fn resized_to(&self, input: ImageShape) -> Result<Self> {
        let plan = self.plan.resized(input)?;
        let (from, to) = (plan.grid, plan.image_grid());
        let resampling = if from == to {
            None
        } else {
            let matrix = positions::matrix(plan.positioned_prefix(), from, to);
            Some(Rc::new(self.device.upload(&matrix)?))
        };
        Ok(Transformer { plan, resampling, ..self.map(&|p| Ok(p.clone()))? })
    }

    /// Creates a network from a function of each parameter.
    fn map(&self, f: &impl Fn(&Param<D>) -> Result<Param<D>>) -> Result<Self> {
        let pair = |[weight, bias]: &[Param<D>; 2]| Ok([f(weight)?, f(bias)?]);
        Ok(Transformer {
            device: self.device.clone(),
            plan: self.plan,
            class_token: self.class_token.as_ref().map(f).transpose()?,
            registers: self.registers.as_ref().map(f).transpose()?,
            positions: f(&self.positions)?,
            resampling: self.resampling.clone(),
            embedding: pair(&self.embedding)?,
            blocks: self.blocks.iter().map(|b| b.map(f)).collect::<Result<_>>()?,
            norm: pair(&self.norm)?,
        })
    }

    /// Returns the parameters that make tokens from pixels.
    fn embedded(&self) -> impl Iterator<Item = &Param<D>> {
        let tokens = self.class_token.iter().chain(&self.registers);
        tokens.chain([&self.positions]).chain(&self.embedding)
    }

    /// Returns the factors of dropped paths of a pass.
    pub(crate) fn factors(&self, batch: usize, draws: &Draws) -> Result<Option<Factors>> {
        if self.plan.drop_path == 0.0 {
            return Ok(None);
        }
        let rates: Vec<f64> = self.plan.drop_rates().into_iter().flat_map(|rate| [rate, rate]).collect();
        drop_path::factors(draws, batch, &rates).map(Some)
    }

    /// Returns the number of images in a tensor of this shape.
    ///
    /// # Errors
    /// If the network was built for images of another shape.
    pub(crate) fn batch_of(
        &self,
        (batch, height, width, channels): (usize, usize, usize, usize),
    ) -> Result<usize> {
        let got = ImageShape { height, width, channels };
        if got != self.plan.input {
            let message = format!("was built for images of {}, got {got}", self.plan.input);
            return Err(Error::shape("vision transformer", message));
        }
        Ok(batch)
    }

    fn pass(
        &self,
        images: Images<D>,
        pass: Pass,
        draws: Option<&Draws>,
    ) -> Result<Taped<(usize, usize), f32, D>> {
        let batch = self.batch_of(*images.shape())?;
        let factors = draws.map(|draws| self.factors(batch, draws)).transpose()?.flatten();
        let patches = self.patches(images).map_err(Error::device)?;
        match pass {
            Pass::Train => self.run(batch, patches.put_tape(OwnedTape::default()), factors.as_ref()),
            Pass::Momentum | Pass::Eval => {
                Ok(self.run(batch, patches, factors.as_ref())?.put_tape(OwnedTape::default()))
            }
        }
    }

    fn run<T: Leaf<D>>(
        &self,
        batch: usize,
        patches: TokenRows<D, T>,
        factors: Option<&Factors>,
    ) -> Result<TokenRows<D, T>> {
        let mut x = self.tokens(batch, patches)?;
        for (i, block) in self.blocks.iter().enumerate() {
            pauc_traits::stop::check()?;
            let dropped = factors.map(|f| Dropped { attention: &f[2 * i], perceptron: &f[2 * i + 1] });
            x = block.forward(&self.plan, batch, x, dropped)?;
        }
        let pooled = self.pooled(batch, x).map_err(Error::device)?;
        layer_norm(pooled, &self.norm)
    }

    /// Returns the class token of each image, or the mean of its patches.
    fn pooled<T: Leaf<D>>(
        &self,
        batch: usize,
        x: TokenRows<D, T>,
    ) -> Result<TokenRows<D, T>, <D as HasErr>::Err> {
        let (tokens, width, registers) = (self.plan.tokens(), self.plan.width, self.plan.registers);
        let x = x.try_reshape_like(&(batch, tokens, width))?;
        match self.plan.pool {
            Pool::Class => x.try_slice((.., 0..1, ..))?.try_reshape_like(&(batch, width)),
            Pool::Mean if registers == 0 => x.try_mean::<_, Axis<1>>(),
            Pool::Mean => {
                let patches = x.try_slice((.., registers..tokens, ..))?;
                patches.try_reshape_like(&(batch, tokens - registers, width))?.try_mean::<_, Axis<1>>()
            }
        }
    }
}

impl<D: Compute> Encoder<D> for Transformer<D> {
    fn feature_dim(&self) -> usize {
        self.plan.width
    }

    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>> {
        self.pass(images, pass, None)
    }

    fn forward_drawn(
        &mut self,
        images: Images<D>,
        pass: Pass,
        draws: &Draws,
    ) -> Result<Taped<(usize, usize), f32, D>> {
        self.pass(images, pass, Some(draws))
    }

    fn parameters(&self) -> Vec<Param<D>> {
        let blocks = self.blocks.iter().flat_map(Block::params);
        self.embedded().chain(blocks).chain(&self.norm).cloned().collect()
    }

    fn depths(&self) -> Option<LayerDepths> {
        let mut of = vec![0; self.embedded().count()];
        for (i, block) in self.blocks.iter().enumerate() {
            of.extend(block.params().map(|_| i + 1));
        }
        let last = self.blocks.len() + 1;
        of.extend(self.norm.iter().map(|_| last));
        Some(LayerDepths { of, groups: last + 1 })
    }

    fn statistics(&self) -> Vec<Param<D>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<D>>> {
        Ok(Box::new(self.copy()?))
    }

    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<D>>> {
        Ok(Box::new(self.resized_to(input)?))
    }

    fn layers(&self) -> Vec<Layer> {
        let (tokens, width) = (self.plan.tokens(), self.plan.width);
        let layer =
            |name: String, output: &[usize], parameters, multiply_adds: usize, algorithm: &str| Layer {
                name,
                output: output.to_vec(),
                parameters,
                multiply_adds: multiply_adds as u64,
                algorithm: algorithm.into(),
            };
        let count = |params: &[Param<D>]| params.iter().map(Param::len).sum::<usize>();
        let embedded = self.embedded().map(Param::len).sum();
        let work = self.plan.patches() * self.plan.pixels() * width;
        let mut all = vec![layer("patch_embed".into(), &[tokens, width], embedded, work, "patches, linear")];
        // Four matrices of width², those of the perceptron, q·kᵀ, and its product with v.
        let perceptron = width * (self.plan.fc1_outputs() + self.plan.hidden);
        let work = tokens * (4 * width * width + perceptron) + 2 * tokens * tokens * width;
        for (i, block) in self.blocks.iter().enumerate() {
            let parameters = block.params().map(Param::len).sum();
            all.push(layer(
                format!("blocks.{i}"),
                &[tokens, width],
                parameters,
                work,
                "attention, perceptron",
            ));
        }
        let name = self.norm[0].name.trim_end_matches(".weight").to_string();
        all.push(layer(name, &[width], count(&self.norm), 0, "pool, layer norm"));
        all
    }
}
