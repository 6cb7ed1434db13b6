//! Passes of several shards at once, whose batch normalization takes the statistics of the whole batch.

use super::{Network, Output, TapedRows};
use crate::device::NetworkDevice;
use dfdx::prelude::Merge;
use dfdx::prelude::{Axes3, Axis, HasShape, NoneTape, PutTape, SplitTape, Tape as _, Tensor, TryConcatAlong};
use dfdx::tensor_ops::{PermuteTo, ReshapeTo};
use pauc_traits::encoder::{Draws, Images};
use pauc_traits::shards::ShardGroup;
use pauc_traits::{Error, ImageShape, Param, Pass, Result, ops};

/// Images of one size, with the source of their random decisions in training.
type DrawnImages<D> = (Images<D>, Option<Draws>);

impl<D: NetworkDevice> Network<D> {
    /// Returns whether [`Network::forward_shards`] is possible.
    pub fn normalizes_shards(&self) -> bool {
        let heads = [Some(&self.projector), self.predictor.as_ref()];
        let encoder = self.encoder.statistics().is_empty() || self.encoder.normalizes_shards();
        encoder && heads.into_iter().flatten().all(|head| head.normalizes_shards())
    }

    /// As [`Network::forward_sizes`] with batch statistics, for several shards at once: the statistics are those of all
    /// shards of the batch, including those of other processes. The numbers of a shard do not depend on which shards
    /// pass together.
    ///
    /// With [`Pass::Train`], the backward pass adds to the gradients of [`Network::parameters_of_shard`] instead of those of
    /// [`Network::parameters`]. The images are ordered as [`ShardGroup`] says.
    ///
    /// # Errors
    /// As [`Network::forward_sizes`], if the encoder or a head cannot do this, or another process has failed.
    pub fn forward_shards(
        &mut self,
        batches: Vec<DrawnImages<D>>,
        pass: Pass,
        group: &ShardGroup,
    ) -> Result<Output<D>> {
        let of_encoder = self.encoder.parameters().len();
        let parameters = self.shard_parameters(pass, group.count, 0)?;
        let mut all: Option<TapedRows<D>> = None;
        for batch in batches {
            let features = self.features_of_shards(batch, pass, group, &parameters)?;
            all = Some(match all {
                None => features,
                Some(before) => (before, features).try_concat_along(Axis::<0>).map_err(Error::device)?,
            });
        }
        let features = all.ok_or_else(|| Error::shape("network", "there are no images"))?;
        let constant = features.retaped::<NoneTape>();
        let parameters = self.shard_parameters(pass, group.count, of_encoder)?;
        let embeddings = self.projector.forward_shards(features, pass, group, &parameters)?;
        group.exchange.check()?;
        Ok(Output { features: constant, embeddings })
    }

    /// As [`Network::predict`], for the embeddings of [`Network::forward_shards`].
    ///
    /// # Errors
    /// As [`Network::forward_shards`].
    pub fn predict_shards(
        &mut self,
        embeddings: &Tensor<(usize, usize), f32, D>,
        pass: Pass,
        group: &ShardGroup,
    ) -> Result<Option<TapedRows<D>>> {
        let followed = self.followed_parameters().len();
        let parameters = self.shard_parameters(pass, group.count, followed)?;
        let Some(predictor) = &mut self.predictor else { return Ok(None) };
        let predictions = predictor.forward_shards(embeddings.retaped(), pass, group, &parameters)?;
        group.exchange.check()?;
        Ok(Some(predictions))
    }

    /// Returns the parameters of a shard, in the order of [`Network::parameters`]: they share the network's values, and
    /// have the gradients of the shard. There are none before the first training pass.
    pub fn parameters_of_shard(&self, shard: usize) -> &[Param<D>] {
        self.shards.get(shard).map_or(&[], Vec::as_slice)
    }

    /// Returns each shard's parameters, from the parameter with number `from` on. Without a backward pass, they are the
    /// network's own.
    fn shard_parameters(&mut self, pass: Pass, count: usize, from: usize) -> Result<Vec<Vec<Param<D>>>> {
        let own = self.parameters();
        if pass != Pass::Train {
            return Ok(vec![own[from..].to_vec(); count]);
        }
        while self.shards.len() < count {
            let with_own_gradient = |p: &Param<D>| p.with_own_gradient(&self.device);
            self.shards.push(own.iter().map(with_own_gradient).collect::<Result<_>>()?);
        }
        Ok(self.shards[..count].iter().map(|shard| shard[from..].to_vec()).collect())
    }

    /// Returns the features of images of one size.
    fn features_of_shards(
        &mut self,
        (images, draws): DrawnImages<D>,
        pass: Pass,
        group: &ShardGroup,
        parameters: &[Vec<Param<D>>],
    ) -> Result<TapedRows<D>> {
        let (_, height, width, channels) = *images.shape();
        let encoder = self.encoder_for((ImageShape { height, width, channels }, 0))?;
        if encoder.normalizes_shards() || !encoder.statistics().is_empty() {
            return encoder.forward_shards(images, pass, group, parameters);
        }
        self.features_one_by_one((images, draws), pass, group, parameters)
    }

    /// Passes one shard after the other through an encoder without batch normalization.
    fn features_one_by_one(
        &mut self,
        (images, draws): DrawnImages<D>,
        pass: Pass,
        group: &ShardGroup,
        parameters: &[Vec<Param<D>>],
    ) -> Result<TapedRows<D>> {
        let (rows, height, width, channels) = *images.shape();
        let (shape, own) = (ImageShape { height, width, channels }, self.encoder.parameters());
        let pixels = ops::to_host(&images)?;
        let mut all: Option<TapedRows<D>> = None;
        for (shard, parameters) in parameters.iter().enumerate() {
            let (images, of_shard) = (group.take(shard, &pixels, shape.len()), rows / group.count);
            let images = ops::constant(&self.device, images, (of_shard, height, width, channels));
            let number = if pass == Pass::Train { shard } else { 0 };
            let encoder = self.encoder_for((shape, number))?;
            // In the backward pass, the encoder's operations run between these two.
            let mut tape = pauc_traits::Tape::default();
            tape.add_backward_op(swap_gradients(&own, parameters));
            let features = match &draws {
                None => encoder.forward(images, pass)?,
                Some(draws) => {
                    let of_rows = group.rows(shard, rows).flatten().map(|row| draws.images[row]);
                    let draws = Draws { images: of_rows.collect(), ..*draws };
                    encoder.forward_drawn(images, pass, &draws)?
                }
            };
            let (features, of_encoder) = features.split_tape();
            tape = tape.merge(of_encoder);
            tape.add_backward_op(swap_gradients(&own, parameters));
            let features = features.put_tape(tape);
            all = Some(match all {
                None => features,
                Some(before) => (before, features).try_concat_along(Axis::<0>).map_err(Error::device)?,
            });
        }
        let all = all.ok_or_else(|| Error::shape("network", "there are no shards"))?;
        by_view(all, group)
    }
}

/// Returns an operation that swaps the gradients of two lists of parameters.
fn swap_gradients<D: NetworkDevice, G>(
    first: &[Param<D>],
    second: &[Param<D>],
) -> impl FnOnce(&mut G) -> Result<(), D::Err> + 'static {
    let (first, second) = (first.to_vec(), second.to_vec());
    move |_| {
        for (a, b) in first.iter().zip(&second) {
            std::mem::swap(&mut *a.grad_mut(), &mut *b.grad_mut());
        }
        Ok(())
    }
}

/// Reorders rows from shard by shard to view by view; within a view, they are ordered by shard.
///
/// # Shapes
/// (count·V·samples, F) → (V·count·samples, F)
fn by_view<D: NetworkDevice>(rows: TapedRows<D>, group: &ShardGroup) -> Result<TapedRows<D>> {
    let (all, width) = *rows.shape();
    let views = all / (group.count * group.samples).max(1);
    if views <= 1 || group.count == 1 {
        return Ok(rows);
    }
    let by_shard = (group.count, views, group.samples * width);
    let rows = rows.try_reshape_like(&by_shard).map_err(Error::device)?;
    let rows = rows.try_permute::<(usize, usize, usize), Axes3<1, 0, 2>>().map_err(Error::device)?;
    rows.try_reshape_like(&(all, width)).map_err(Error::device)
}
