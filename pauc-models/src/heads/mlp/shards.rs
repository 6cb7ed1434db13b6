//! The passes of a head over several shards at once. Each layer runs on one shard after the other, and each
//! normalization takes the moments of all shards of the batch.

use super::{Block, Workspace};
use crate::batch_moments::{BatchMoments, EPSILON, merge, total};
use dfdx::prelude::Cpu;
use pauc_kernels::linear as kernel;
use pauc_traits::shards::ShardExchange;
use pauc_traits::{Param, Result};

/// A shard in a pass: layers with gradients of their own, and the values that it keeps. Input i + 1 is the output of
/// layer i.
pub(super) struct Shard {
    blocks: Vec<Block<Cpu>>,
    work: Workspace,
}

impl Shard {
    /// Creates a shard with these parameters, in the order of [`Block::parameters`].
    ///
    /// # Shapes
    /// x (n, F), row-major
    pub fn new(blocks: &[Block<Cpu>], parameters: &[Param<Cpu>], mut work: Workspace, x: Vec<f32>) -> Self {
        work.inputs.resize_with(blocks.len() + 1, Vec::new);
        work.standardised.resize_with(blocks.len(), Default::default);
        work.inputs[0] = x;
        Shard { blocks: Block::with_parameters(blocks, parameters), work }
    }

    /// Returns the outputs after a forward pass, row-major.
    pub fn output(&self) -> &[f32] {
        self.work.inputs.last().map_or(&[], Vec::as_slice)
    }

    /// Ends the pass.
    pub fn into_workspace(self) -> Workspace {
        self.work
    }

    /// Runs a layer up to its normalization, or all of it if it has none.
    fn begin(&mut self, layer: usize) {
        let (block, work) = (&self.blocks[layer], &mut self.work);
        let (inputs, outputs) = work.inputs.split_at_mut(layer + 1);
        if block.norm.is_some() {
            return block.linear(&inputs[layer], &mut work.standardised[layer].0);
        }
        block.linear(&inputs[layer], &mut outputs[0]);
        if block.relu {
            kernel::relu(&mut outputs[0]);
        }
    }

    /// Runs the rest of a layer with normalization.
    fn normalize(&mut self, layer: usize, mean: &[f32], variance: &[f32]) {
        let (block, work) = (&self.blocks[layer], &mut self.work);
        let Some(norm) = &block.norm else { return };
        let ((x_hat, kept), y) = (&mut work.standardised[layer], &mut work.inputs[layer + 1]);
        kernel::standardize(x_hat, mean, variance, EPSILON as f32);
        variance.clone_into(kept);
        y.resize(x_hat.len(), 0.0);
        kernel::scale_and_shift(x_hat, &norm.gamma.value(), &norm.beta.value(), block.relu, y);
    }

    /// Masks the gradient `dy` of a layer's output by ReLU. With normalization, accumulates the gradients of γ and β, and
    /// returns the sums for the gradient of its input.
    fn mask(&self, layer: usize, dy: &mut [f32]) -> Vec<[f64; 2]> {
        let block = &self.blocks[layer];
        if block.relu {
            kernel::relu_backward(&self.work.inputs[layer + 1], dy);
        }
        let Some(norm) = &block.norm else { return Vec::new() };
        let x_hat = &self.work.standardised[layer].0;
        kernel::batch_norm_sums(x_hat, dy, &mut norm.gamma.grad_mut(), &mut norm.beta.grad_mut())
    }

    /// Turns the masked gradient `dy` of a layer's output into that of its input, and accumulates that of the linear
    /// layer's parameters. `sums`: those of a batch of `count` rows.
    fn differentiate(&self, layer: usize, (sums, count): (&[[f64; 2]], usize), dy: &mut Vec<f32>) {
        let block = &self.blocks[layer];
        if let Some(norm) = &block.norm {
            let (x_hat, variance) = &self.work.standardised[layer];
            let variance = (&variance[..], EPSILON as f32);
            kernel::batch_norm_input_gradient(x_hat, &norm.gamma.value(), variance, (sums, count), dy);
        }
        let mut dx = Vec::new();
        block.linear_backward(&self.work.inputs[layer], dy, &mut dx);
        *dy = dx;
    }
}

/// Computes the outputs of each shard.
///
/// # Errors
/// If a normalization has a single row.
pub(super) fn forward(shards: &mut [Shard], exchange: &dyn ShardExchange) -> Result<()> {
    let layers = shards.first().map_or(0, |shard| shard.blocks.len());
    for layer in 0..layers {
        shards.iter_mut().for_each(|shard| shard.begin(layer));
        let block = &shards[0].blocks[layer];
        let Some(norm) = &block.norm else { continue };
        let moments =
            |shard: &Shard| kernel::centered_squares(&shard.work.standardised[layer].0, block.outputs);
        let own: Vec<[Vec<f64>; 2]> = shards.iter().map(moments).collect();
        let rows = shards[0].work.standardised[layer].0.len() / block.outputs;
        let own = own.iter().map(|[mean, squares]| [&mean[..], &squares[..]]);
        let merged = merge(own, rows, exchange, &norm.gamma.name)?;
        let count = merged.count;
        let mean: Vec<f32> = merged.mean.iter().map(|m| *m as f32).collect();
        let variance: Vec<f32> = merged.squares.iter().map(|sum| (sum / count as f64) as f32).collect();
        norm.running().update(BatchMoments { count, mean: &mean, variance: &variance });
        shards.iter_mut().for_each(|shard| shard.normalize(layer, &mean, &variance));
    }
    Ok(())
}

/// Turns the gradients of each shard's outputs into those of its inputs, and accumulates the gradients of its
/// parameters.
pub(super) fn backward(shards: &[Shard], gradients: &mut [Vec<f32>], exchange: &dyn ShardExchange) {
    let layers = shards.first().map_or(0, |shard| shard.blocks.len());
    for layer in (0..layers).rev() {
        let both = shards.iter().zip(gradients.iter_mut());
        let own: Vec<Vec<[f64; 2]>> = both.map(|(shard, dy)| shard.mask(layer, dy)).collect();
        let (totals, count) = match shards[0].blocks[layer].norm {
            Some(_) => total(own.iter().map(|sums| sums.as_flattened()), exchange),
            None => Default::default(),
        };
        let rows = shards[0].work.inputs[layer].len() / shards[0].blocks[layer].inputs;
        let totals = totals.as_chunks().0;
        for (shard, dy) in shards.iter().zip(gradients.iter_mut()) {
            shard.differentiate(layer, (totals, rows * count), dy);
        }
    }
}
