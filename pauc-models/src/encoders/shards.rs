//! The passes of a convolutional network over several shards at once. Each step runs on one shard after the other, and
//! each normalization takes the moments of all shards of the batch. Every shard has its own workspace, so its values
//! do not depend on which shards pass together.

use super::blueprint::{Blueprint, State};
use super::workspace::{Workspace, running};
use crate::batch_moments::{BatchMoments, merge, total};
use dfdx::prelude::Cpu;
use pauc_traits::Result;
use pauc_traits::shards::ShardExchange;

/// A shard in a pass.
pub(super) struct Shard<'a> {
    pub work: &'a mut Workspace,
    /// Parameters with gradients of their own, and the network's running statistics.
    pub state: &'a State<Cpu>,
}

/// Computes the features (n, F) of the images (n, H, W, C) of each shard.
///
/// # Errors
/// If a normalization has a single value.
pub(super) fn forward(
    plan: &Blueprint,
    shards: &mut [Shard<'_>],
    images: &[Vec<f32>],
    exchange: &dyn ShardExchange,
) -> Result<Vec<Vec<f32>>> {
    let batch = images.first().map_or(0, Vec::len) / plan.input.len();
    for (shard, images) in shards.iter_mut().zip(images) {
        shard.work.begin(plan, (images, batch));
    }
    for step in 0..plan.steps.len() {
        let mut measured = None;
        for shard in shards.iter_mut() {
            measured = shard.work.measure_step(plan, shard.state, (step, batch));
        }
        if let Some((layer, rows)) = measured {
            normalize_together(plan, shards, (layer, rows), exchange)?;
        }
        shards.iter_mut().for_each(|shard| shard.work.apply_step(plan, (step, batch)));
    }
    Ok(shards.iter_mut().map(|shard| shard.work.features(plan, batch)).collect())
}

/// Sets scale and shift of a layer's normalization from the moments of all shards, and moves the running statistics once.
/// `rows`: the values per channel in a shard.
fn normalize_together(
    plan: &Blueprint,
    shards: &mut [Shard<'_>],
    (layer, rows): (usize, usize),
    exchange: &dyn ShardExchange,
) -> Result<()> {
    let name = plan.layers[layer].norm_name();
    let merged = merge(shards.iter_mut().map(|shard| shard.work.norm(layer).sums()), rows, exchange, name)?;
    for shard in shards.iter_mut() {
        shard.work.take_merged(plan, shard.state, layer, &merged);
    }
    if let Some(first) = shards.first_mut() {
        let norm = first.work.norm(layer);
        let (mean, variance) = (&norm.mean[..], &norm.variance[..]);
        running(plan, first.state, layer).update(BatchMoments { count: merged.count, mean, variance });
    }
    Ok(())
}

/// Accumulates the gradients of each shard's parameters, given those of its features.
pub(super) fn backward(
    plan: &Blueprint,
    shards: &mut [Shard<'_>],
    d_features: &[Vec<f32>],
    exchange: &dyn ShardExchange,
) {
    let mut batch = 0;
    for (shard, d_features) in shards.iter_mut().zip(d_features) {
        batch = shard.work.begin_backward(plan, d_features);
    }
    for step in (0..plan.steps.len()).rev() {
        let mut masked = None;
        for shard in shards.iter_mut() {
            masked = shard.work.mask_step(plan, shard.state, (step, batch));
        }
        if let Some((layer, rows)) = masked {
            let own: Vec<Vec<f64>> =
                shards.iter_mut().map(|shard| shard.work.norm(layer).sums().concat()).collect();
            let (totals, count) = total(own.iter().map(Vec::as_slice), exchange);
            let (of_g, of_gy) = totals.split_at(totals.len() / 2);
            shards.iter_mut().for_each(|shard| shard.work.norm(layer).set_sums(of_g, of_gy, rows * count));
        }
        for shard in shards.iter_mut() {
            shard.work.differentiate_step(plan, shard.state, (step, batch));
        }
    }
}
