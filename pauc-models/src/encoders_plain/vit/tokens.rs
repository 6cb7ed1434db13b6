//! The tokens of a vision transformer: embedded patches, class token, registers and positions.

use super::Transformer;
use super::block::TokenRows;
use crate::encoders_plain::{Leaf, linear};
use dfdx::prelude::*;
use pauc_traits::encoder::Images;
use pauc_traits::{Compute, Error, Param, Result};

/// Tokens by image, (B, T, width).
type Tokens<D, T> = Tensor<(usize, usize, usize), f32, D, T>;

impl<D: Compute> Transformer<D> {
    /// Returns one row per patch, with its values in the order (C, patch row, patch column). Shape
    /// (B·patches, C·p²).
    pub(super) fn patches(&self, images: Images<D>) -> Result<TokenRows<D, NoneTape>, <D as HasErr>::Err> {
        let (batch, height, width, channels) = *images.shape();
        let p = self.plan.patch;
        let split = (batch, height / p, p, width / p, p, channels);
        let rows = (batch * self.plan.patches(), self.plan.pixels());
        images.try_reshape_like(&split)?.try_permute::<_, Axes6<0, 1, 3, 5, 2, 4>>()?.try_reshape_like(&rows)
    }

    /// Returns the first block's input: class token and registers, if any, before the embedded patches of each image, with
    /// positions added.
    pub(super) fn tokens<T: Leaf<D>>(
        &self,
        batch: usize,
        patches: TokenRows<D, T>,
    ) -> Result<TokenRows<D, T>> {
        let plan = &self.plan;
        let embedded = linear(patches, &self.embedding)?;
        let mut x = embedded.try_reshape_like(&(batch, plan.patches(), plan.width)).map_err(Error::device)?;
        if !plan.prefix_positions {
            x = self.add_positions(x)?;
        }
        for prefix in [&self.registers, &self.class_token].into_iter().flatten() {
            let prefix = self.repeated(batch, prefix)?;
            x = (prefix, x).try_concat_along(Axis::<1>).map_err(Error::device)?;
        }
        if plan.prefix_positions {
            x = self.add_positions(x)?;
        }
        x.try_reshape_like(&(batch * plan.tokens(), plan.width)).map_err(Error::device)
    }

    /// Repeats tokens for each image.
    fn repeated<T: Leaf<D>>(&self, batch: usize, tokens: &Param<D>) -> Result<Tokens<D, T>> {
        let (count, width) = (tokens.shape[1], self.plan.width);
        let shape = (batch, count, width);
        let tokens = T::leaf(&self.device, tokens, (count, width))?;
        // The sum gives the broadcast tokens their own memory.
        let repeated = tokens.try_broadcast_like::<_, Axis<0>>(&shape).and_then(|t| {
            let zeros: Tensor<(usize, usize, usize), f32, D> = self.device.try_zeros_like(&shape)?;
            t.try_add(zeros)
        });
        repeated.map_err(Error::device)
    }

    fn add_positions<T: Leaf<D>>(&self, x: Tokens<D, T>) -> Result<Tokens<D, T>> {
        let (learned, width) = (self.plan.positions(), self.plan.width);
        let mut positions = T::leaf(&self.device, &self.positions, (learned, width))?;
        if let Some(matrix) = &self.resampling {
            let matrix = self.device.buffer_tensor(matrix, (x.shape().1, learned))?;
            positions = matrix.put_tape(T::default()).try_matmul(positions).map_err(Error::device)?;
        }
        let repeated = positions.try_broadcast_like::<_, Axis<0>>(x.shape()).map_err(Error::device)?;
        x.try_add(repeated).map_err(Error::device)
    }
}
