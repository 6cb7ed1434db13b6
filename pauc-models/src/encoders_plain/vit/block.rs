//! A block of a vision transformer: attention and perceptron.

use super::{Mlp, Plan};
use crate::encoders_plain::{Leaf, gelu, layer_norm, linear};
use dfdx::prelude::*;
use pauc_traits::{Compute, Error, Param, Result};

/// Token matrices, (B·T, width).
pub(super) type TokenRows<D, T> = Tensor<(usize, usize), f32, D, T>;

/// The parameters of a block.
pub(crate) struct Block<D: Compute> {
    pub norm1: [Param<D>; 2],
    pub qkv: [Param<D>; 2],
    pub projection: [Param<D>; 2],
    pub scale1: Option<Param<D>>,
    pub norm2: [Param<D>; 2],
    pub fc1: [Param<D>; 2],
    pub fc2: [Param<D>; 2],
    pub scale2: Option<Param<D>>,
}

/// The factors of dropped paths: on what attention and perceptron add for each image.
#[derive(Clone, Copy)]
pub(super) struct Dropped<'a> {
    pub attention: &'a [f32],
    pub perceptron: &'a [f32],
}

impl<D: Compute> Block<D> {
    /// Returns the parameters in timm's order.
    pub fn params(&self) -> impl Iterator<Item = &Param<D>> {
        let Block { norm1, qkv, projection, scale1, norm2, fc1, fc2, scale2 } = self;
        let first = [norm1, qkv, projection].into_iter().flatten().chain(scale1);
        first.chain([norm2, fc1, fc2].into_iter().flatten()).chain(scale2)
    }

    /// Creates a block from a function of each parameter.
    pub fn map(&self, f: &impl Fn(&Param<D>) -> Result<Param<D>>) -> Result<Self> {
        let pair = |[weight, bias]: &[Param<D>; 2]| Ok([f(weight)?, f(bias)?]);
        Ok(Block {
            norm1: pair(&self.norm1)?,
            qkv: pair(&self.qkv)?,
            projection: pair(&self.projection)?,
            scale1: self.scale1.as_ref().map(f).transpose()?,
            norm2: pair(&self.norm2)?,
            fc1: pair(&self.fc1)?,
            fc2: pair(&self.fc2)?,
            scale2: self.scale2.as_ref().map(f).transpose()?,
        })
    }

    pub(super) fn forward<T: Leaf<D>>(
        &self,
        plan: &Plan,
        batch: usize,
        x: TokenRows<D, T>,
        dropped: Option<Dropped<'_>>,
    ) -> Result<TokenRows<D, T>> {
        let attended = self.attention(plan, batch, layer_norm(x.with_empty_tape(), &self.norm1)?)?;
        let attended = scaled(attended, self.scale1.as_ref(), dropped.map(|d| d.attention))?;
        let x = x.try_add(attended).map_err(Error::device)?;
        let mixed = self.perceptron(plan, layer_norm(x.with_empty_tape(), &self.norm2)?)?;
        let mixed = scaled(mixed, self.scale2.as_ref(), dropped.map(|d| d.perceptron))?;
        x.try_add(mixed).map_err(Error::device)
    }

    fn perceptron<T: Leaf<D>>(&self, plan: &Plan, x: TokenRows<D, T>) -> Result<TokenRows<D, T>> {
        let hidden = linear(x, &self.fc1)?;
        let hidden = match plan.mlp {
            Mlp::Gelu => gelu(hidden)?,
            Mlp::SwiGlu => gated(hidden, plan.hidden).map_err(Error::device)?,
        };
        linear(hidden, &self.fc2)
    }

    /// Computes softmax(q·kᵀ/√d)·v for each image and head, and projects the outputs of the heads.
    fn attention<T: Leaf<D>>(
        &self,
        plan: &Plan,
        batch: usize,
        x: TokenRows<D, T>,
    ) -> Result<TokenRows<D, T>> {
        let (width, heads, tokens) = (plan.width, plan.heads, plan.tokens());
        let mixed = self.heads(linear(x, &self.qkv)?, (batch, tokens, heads, width / heads));
        linear(mixed.map_err(Error::device)?, &self.projection)
    }

    fn heads<T: Leaf<D>>(
        &self,
        qkv: TokenRows<D, T>,
        split: (usize, usize, usize, usize),
    ) -> Result<TokenRows<D, T>, <D as HasErr>::Err> {
        let (batch, tokens, heads, dim) = split;
        let width = heads * dim;
        let part = |x: TokenRows<D, T>, n: usize| {
            x.try_slice((.., n * width..(n + 1) * width))?.try_reshape_like(&split)
        };
        let q = part(qkv.with_empty_tape(), 0)?.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
        let k = part(qkv.with_empty_tape(), 1)?.try_permute::<_, Axes4<0, 2, 3, 1>>()?;
        let v = part(qkv, 2)?.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
        let logits = q.try_mul(1.0 / (dim as f32).sqrt())?.try_matmul(k)?;
        let mixed = logits.try_softmax::<Axis<3>>()?.try_matmul(v)?;
        mixed.try_permute::<_, Axes4<0, 2, 1, 3>>()?.try_reshape_like(&(batch * tokens, width))
    }
}

/// Computes SiLU(a) ⊙ b of rows (a, b), each of `width` values.
fn gated<D: Compute, T: Leaf<D>>(
    x: TokenRows<D, T>,
    width: usize,
) -> Result<TokenRows<D, T>, <D as HasErr>::Err> {
    let rows = (x.shape().0, width);
    let gate = x.with_empty_tape().try_slice((.., 0..width))?.try_reshape_like(&rows)?;
    let value = x.try_slice((.., width..2 * width))?.try_reshape_like(&rows)?;
    let sigmoid = gate.with_empty_tape().try_sigmoid()?;
    gate.try_mul(sigmoid)?.try_mul(value)
}

/// Multiplies each channel by LayerScale, and the tokens of each image by their factor.
///
/// # Shapes
/// x (B·T, width), `scale` (width), one factor for each of B images
fn scaled<D: Compute, T: Leaf<D>>(
    mut x: TokenRows<D, T>,
    scale: Option<&Param<D>>,
    factors: Option<&[f32]>,
) -> Result<TokenRows<D, T>> {
    let (device, shape) = (x.device().clone(), *x.shape());
    if let Some(scale) = scale {
        let scale = T::leaf(&device, scale, (shape.1,))?;
        let scale = scale.try_broadcast_like::<_, Axis<0>>(&shape).map_err(Error::device)?;
        x = x.try_mul(scale).map_err(Error::device)?;
    }
    if let Some(factors) = factors.filter(|factors| factors.iter().any(|f| *f != 1.0)) {
        let tokens = shape.0 / factors.len();
        let by_token = factors.iter().flat_map(|f| std::iter::repeat_n(*f, tokens)).collect();
        let multiplied = || {
            let by_token = device.try_tensor_from_vec(by_token, (shape.0,))?;
            x.try_mul(by_token.try_broadcast_like::<_, Axis<1>>(&shape)?)
        };
        return multiplied().map_err(Error::device);
    }
    Ok(x)
}
