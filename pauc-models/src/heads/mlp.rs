//! The multi-layer perceptron.

mod shards;

use self::shards::Shard;
use super::{Head, check_width};
use crate::batch_moments::{BatchMoments, EPSILON, RunningStatistics};
use crate::bounds::width;
use crate::init::uniform;
use dfdx::prelude::*;
use pauc_kernels::linear as kernel;
use pauc_traits::encoder::Layer;
use pauc_traits::graph::{self, Graph};
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::shards::ShardGroup;
use pauc_traits::{Compute, Count, Error, NetworkSize, Param, Pass, Result, Taped, component};
use std::cell::RefCell;
use std::rc::Rc;

component! {
    /// A multi-layer perceptron: Linear → [BatchNorm] → ReLU, repeated; the last layer has no ReLU.
    ///
    /// Parameters are named as in PyTorch's `nn.Sequential(Linear, BatchNorm1d, ReLU, Linear, …)` and
    /// initialized in the same way: weights and biases of linear layers are uniform in ±1/√inputs.
    ///
    /// # Shapes
    /// (B, F) → (B, last of `dims`)
    ///
    /// Source: SimCLR (Chen et al. 2020), MoCo v2. With `last_batch_norm`, the head of Barlow Twins and
    /// SimSiam.
    pub struct Mlp {
        /// The output widths of the layers. The last one is the width of the embeddings.
        pub dims: Vec<Count>,
        /// Whether each linear layer but the last is followed by batch normalization.
        pub batch_norm: bool = false,
        /// Whether linear layers have biases.
        pub bias: bool = true,
        /// Whether the last linear layer is followed by batch normalization, with scale and shift.
        pub last_batch_norm: bool = false,
    }
}

impl Mlp {
    /// Counts the parameters and activations for features of width `input`.
    ///
    /// # Errors
    /// If `dims` is empty, or a width is beyond its bound.
    pub(crate) fn size(&self, input: usize) -> Result<NetworkSize> {
        if self.dims.is_empty() {
            return Err(Error::config("`dims` of `Mlp` is empty: give at least the width of the embeddings"));
        }
        let mut size = NetworkSize { output: input, parameters: 0, activations: 0 };
        for (i, dim) in self.dims.iter().enumerate() {
            size.add_linear(width("dims", dim.get())?, self.bias);
            let is_last = i + 1 == self.dims.len();
            if if is_last { self.last_batch_norm } else { self.batch_norm } {
                size.parameters += 2 * dim.get() as u64;
            }
        }
        Ok(size)
    }

    /// See [`super::HeadConfig::add_to`].
    pub(crate) fn add_to(&self, graph: &mut Graph, x: &graph::Value, prefix: &str) -> graph::Value {
        let (mut x, mut index) = (x.clone(), 0);
        for i in 0..self.dims.len() {
            let is_last = i + 1 == self.dims.len();
            let [weight, bias] = ["weight", "bias"].map(|part| format!("{prefix}{index}.{part}"));
            x = graph.linear(&x, &weight, self.bias.then_some(bias.as_str()));
            index += 1;
            if if is_last { self.last_batch_norm } else { self.batch_norm } {
                x = graph.batch_norm(&x, &format!("{prefix}{index}"), EPSILON as f32);
                index += 1;
            }
            if !is_last {
                x = graph.node("Relu", &[&x], &[]);
                index += 1;
            }
        }
        x
    }
}

/// The parameters and running statistics of batch normalization.
#[derive(Debug)]
pub(crate) struct BatchNorm<D: Compute> {
    pub gamma: Param<D>,
    pub beta: Param<D>,
    pub mean: Param<D>,
    pub variance: Param<D>,
}

impl<D: Compute> BatchNorm<D> {
    pub fn running(&self) -> RunningStatistics<'_, D> {
        RunningStatistics { mean: &self.mean, variance: &self.variance }
    }
}

/// A linear layer with its normalization and ReLU.
#[derive(Debug)]
pub(crate) struct Block<D: Compute> {
    pub inputs: usize,
    pub outputs: usize,
    pub weight: Param<D>,
    pub bias: Option<Param<D>>,
    pub norm: Option<BatchNorm<D>>,
    pub relu: bool,
}

/// The values that a pass keeps for its backward pass.
#[derive(Debug, Default)]
struct Workspace {
    /// The head's input, and the output of each block but the last.
    inputs: Vec<Vec<f32>>,
    /// Per block with batch normalization: standardized pre-activations and their variances.
    standardised: Vec<(Vec<f32>, Vec<f32>)>,
    /// Two gradient buffers, used alternately.
    gradients: [Vec<f32>; 2],
}

/// Creates the blocks of a head for features of width `input`, on any device.
///
/// # Errors
/// If `dims` is empty, or the device fails.
pub(crate) fn blocks<D: Compute>(
    device: &D,
    config: &Mlp,
    input: usize,
    seed: u64,
    network: u64,
) -> Result<Vec<Block<D>>> {
    config.size(input)?;
    let (mut blocks, mut inputs, mut index, mut drawn) = (Vec::new(), input, 0, 0);
    for (i, outputs) in config.dims.iter().map(|d| d.get()).enumerate() {
        let last = i + 1 == config.dims.len();
        let bound = 1.0 / (inputs as f32).sqrt();
        let mut linear = |name: &str, shape: &[usize], role| {
            drawn += 1;
            let values = uniform(&mut stream(seed, Purpose::Init, network, drawn, 0), bound, shape);
            Param::new(device, format!("{index}.{name}"), shape, role, &values)
        };
        let weight = linear("weight", &[outputs, inputs], Role::Weight)?;
        let bias = config.bias.then(|| linear("bias", &[outputs], Role::Bias)).transpose()?;
        index += 1;
        let normed = if last { config.last_batch_norm } else { config.batch_norm };
        let constant = |name: &str, role, value| {
            Param::new(device, format!("{index}.{name}"), &[outputs], role, &vec![value; outputs])
        };
        let norm = if normed {
            Some(BatchNorm {
                gamma: constant("weight", Role::Norm, 1.0)?,
                beta: constant("bias", Role::Norm, 0.0)?,
                mean: constant("running_mean", Role::Statistic, 0.0)?,
                variance: constant("running_var", Role::Statistic, 1.0)?,
            })
        } else {
            None
        };
        index += usize::from(normed) + usize::from(!last);
        blocks.push(Block { inputs, outputs, weight, bias, norm, relu: !last });
        inputs = outputs;
    }
    Ok(blocks)
}

impl<D: Compute> Block<D> {
    /// Returns the learnable parameters of blocks in order.
    pub fn parameters(blocks: &[Self]) -> Vec<Param<D>> {
        let mut all = Vec::new();
        for block in blocks {
            all.push(block.weight.clone());
            all.extend(block.bias.clone());
            all.extend(block.norm.iter().flat_map(|n| [n.gamma.clone(), n.beta.clone()]));
        }
        all
    }

    /// Returns the running statistics of blocks in order.
    pub fn statistics(blocks: &[Self]) -> Vec<Param<D>> {
        let norms = blocks.iter().filter_map(|b| b.norm.as_ref());
        norms.flat_map(|n| [n.mean.clone(), n.variance.clone()]).collect()
    }

    /// Returns the blocks with other parameters, in the order of [`Block::parameters`], and the same statistics.
    fn with_parameters(blocks: &[Self], parameters: &[Param<D>]) -> Vec<Self> {
        let mut next = parameters.iter();
        // If there are too few, the rest keep their own.
        let mut take = |own: &Param<D>| next.next().unwrap_or(own).clone();
        let mut with = |block: &Self| Block {
            weight: take(&block.weight),
            bias: block.bias.as_ref().map(&mut take),
            norm: block.norm.as_ref().map(|n| BatchNorm {
                gamma: take(&n.gamma),
                beta: take(&n.beta),
                mean: n.mean.clone(),
                variance: n.variance.clone(),
            }),
            ..*block
        };
        blocks.iter().map(&mut with).collect()
    }

    /// Copies the block into new parameters.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn duplicate(&self, device: &D) -> Result<Self> {
        let copy = |p: &Param<D>| p.deep_clone(device);
        let norm = |n: &BatchNorm<D>| {
            Ok(BatchNorm {
                gamma: copy(&n.gamma)?,
                beta: copy(&n.beta)?,
                mean: copy(&n.mean)?,
                variance: copy(&n.variance)?,
            })
        };
        Ok(Block {
            weight: copy(&self.weight)?,
            bias: self.bias.as_ref().map(copy).transpose()?,
            norm: self.norm.as_ref().map(norm).transpose()?,
            ..*self
        })
    }

    /// Describes the block, for `explain`.
    pub fn layer(&self) -> Layer {
        let name = self.weight.name.trim_end_matches(".weight").to_string();
        let biases = if self.bias.is_some() { self.outputs } else { 0 };
        let norms = if self.norm.is_some() { 2 * self.outputs } else { 0 };
        let algorithm = match (&self.norm, self.relu) {
            (Some(_), true) => "linear, batch norm, relu",
            (Some(_), false) => "linear, batch norm",
            (None, true) => "linear, relu",
            (None, false) => "linear",
        };
        Layer {
            name,
            output: vec![self.outputs],
            parameters: self.weight.len() + biases + norms,
            multiply_adds: (self.inputs * self.outputs) as u64,
            algorithm: algorithm.into(),
        }
    }
}

/// [`Mlp`] on the CPU: the whole head is one operation on the tape.
#[derive(Debug)]
pub struct MlpHead {
    device: Cpu,
    blocks: Rc<Vec<Block<Cpu>>>,
    idle: Rc<RefCell<Vec<Workspace>>>,
}

impl MlpHead {
    /// Builds the head for features of width `input`.
    ///
    /// # Errors
    /// If `dims` is empty.
    pub fn new(device: &Cpu, config: &Mlp, input: usize, seed: u64, network: u64) -> Result<Self> {
        let blocks = blocks(device, config, input, seed, network)?;
        Ok(MlpHead { device: device.clone(), blocks: Rc::new(blocks), idle: Rc::default() })
    }
}

impl Block<Cpu> {
    /// Returns the block's output. `kept` receives the values for the backward pass.
    fn forward(
        &self,
        x: &[f32],
        pass: Pass,
        kept: &mut (Vec<f32>, Vec<f32>),
        y: &mut Vec<f32>,
    ) -> Result<()> {
        let Some(norm) = &self.norm else {
            self.linear(x, y);
            if self.relu {
                kernel::relu(y);
            }
            return Ok(());
        };
        let (x_hat, variance) = kept;
        self.linear(x, x_hat);
        if pass == Pass::Eval {
            kernel::standardize(x_hat, &norm.mean.value(), &norm.variance.value(), EPSILON as f32);
        } else {
            norm.standardise_batch(x.len() / self.inputs, x_hat, variance)?;
        }
        y.resize(x_hat.len(), 0.0);
        kernel::scale_and_shift(x_hat, &norm.gamma.value(), &norm.beta.value(), self.relu, y);
        Ok(())
    }

    /// Computes the linear part.
    fn linear(&self, x: &[f32], y: &mut Vec<f32>) {
        y.resize(x.len() / self.inputs * self.outputs, 0.0);
        let bias = self.bias.as_ref().map(|b| b.value());
        let bias = bias.as_ref().map(|b| b.as_slice());
        kernel::linear((self.inputs, self.outputs), x, &self.weight.value(), bias, y);
    }

    /// Turns `dy` into the gradient of the pre-activations, accumulates the gradients of the parameters, and
    /// writes the gradient of the input to `dx`, if given.
    fn backward(
        &self,
        x: &[f32],
        kept: &(Vec<f32>, Vec<f32>),
        output: Option<&[f32]>,
        dy: &mut [f32],
        dx: &mut Vec<f32>,
    ) {
        if let Some(output) = output {
            kernel::relu_backward(output, dy);
        }
        if let Some(norm) = &self.norm {
            let (gamma, mut dgamma, mut dbeta) =
                (norm.gamma.value(), norm.gamma.grad_mut(), norm.beta.grad_mut());
            kernel::batch_norm_backward(
                &kept.0,
                &gamma,
                &kept.1,
                EPSILON as f32,
                dy,
                &mut dgamma,
                &mut dbeta,
            );
        }
        self.linear_backward(x, dy, dx);
    }

    /// The backward pass of the linear part.
    fn linear_backward(&self, x: &[f32], dy: &[f32], dx: &mut Vec<f32>) {
        let size = (self.inputs, self.outputs);
        kernel::linear_weight_gradient(size, x, dy, &mut self.weight.grad_mut());
        if let Some(bias) = &self.bias {
            kernel::bias_gradient(dy, &mut bias.grad_mut());
        }
        dx.resize(x.len(), 0.0);
        kernel::linear_input_gradient(size, dy, &self.weight.value(), dx);
    }
}

impl BatchNorm<Cpu> {
    fn standardise_batch(&self, rows: usize, x: &mut [f32], variance: &mut Vec<f32>) -> Result<()> {
        if rows < 2 {
            let message =
                "batch statistics need at least 2 samples: raise the batch size or leave out `batch_norm`";
            return Err(Error::shape(self.gamma.name.as_str(), message));
        }
        let mut mean = vec![0.0; self.gamma.len()];
        variance.resize(mean.len(), 0.0);
        kernel::moments(x, &mut mean, variance);
        kernel::standardize(x, &mean, variance, EPSILON as f32);
        self.running().update(BatchMoments { count: rows, mean: &mean, variance });
        Ok(())
    }
}

impl Workspace {
    fn forward(&mut self, blocks: &[Block<Cpu>], pass: Pass) -> Result<Vec<f32>> {
        self.inputs.resize_with(blocks.len(), Vec::new);
        self.standardised.resize_with(blocks.len(), Default::default);
        let mut output = Vec::new();
        for (i, block) in blocks.iter().enumerate() {
            let (inputs, rest) = self.inputs.split_at_mut(i + 1);
            let y = rest.first_mut().unwrap_or(&mut output);
            block.forward(&inputs[i], pass, &mut self.standardised[i], y)?;
        }
        Ok(output)
    }

    /// Adds the gradient of the input to `dx`.
    fn backward(&mut self, blocks: &[Block<Cpu>], dy: &[f32], dx: &mut [f32]) {
        let [current, next] = &mut self.gradients;
        current.clear();
        current.extend_from_slice(dy);
        for (i, block) in blocks.iter().enumerate().rev() {
            let output = block.relu.then(|| self.inputs[i + 1].as_slice());
            block.backward(&self.inputs[i], &self.standardised[i], output, current, next);
            std::mem::swap(current, next);
        }
        dx.iter_mut().zip(current.iter()).for_each(|(d, g)| *d += g);
    }
}

impl Head<Cpu> for MlpHead {
    fn output_dim(&self) -> usize {
        self.blocks.last().map_or(0, |b| b.outputs)
    }

    fn forward(
        &mut self,
        x: Taped<(usize, usize), f32, Cpu>,
        pass: Pass,
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        let (rows, width) = *x.shape();
        check_width("mlp head", width, self.blocks[0].inputs)?;
        let (x, mut tape) = x.try_contiguous().map_err(Error::device)?.split_tape();
        let mut work = self.idle.borrow_mut().pop().unwrap_or_default();
        work.inputs.resize_with(self.blocks.len(), Vec::new);
        work.inputs[0].resize(rows * width, 0.0);
        x.copy_into(&mut work.inputs[0]);
        let output = work.forward(&self.blocks, pass)?;
        let shape = (rows, self.output_dim());
        let y = self.device.try_tensor_from_vec(output, shape).map_err(Error::device)?;
        if pass != Pass::Train {
            self.idle.borrow_mut().push(work);
            return Ok(y.put_tape(tape));
        }
        let (blocks, idle) = (self.blocks.clone(), self.idle.clone());
        let (from, to) = (y.ghost(), x.ghost());
        tape.add_backward_op(move |gradients| {
            let dy = std::mem::take(&mut **gradients.get_or_alloc_mut(&from)?);
            work.backward(&blocks, &dy, gradients.get_or_alloc_mut(&to)?);
            **gradients.get_or_alloc_mut(&from)? = dy;
            idle.borrow_mut().push(work);
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn normalizes_shards(&self) -> bool {
        true
    }

    fn forward_shards(
        &mut self,
        x: Taped<(usize, usize), f32, Cpu>,
        pass: Pass,
        group: &ShardGroup,
        parameters: &[Vec<Param<Cpu>>],
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        let (rows, width) = *x.shape();
        check_width("mlp head", width, self.blocks[0].inputs)?;
        let (x, mut tape) = x.try_contiguous().map_err(Error::device)?.split_tape();
        let (all, dim) = (x.as_vec(), self.output_dim());
        let shard = |(i, parameters): (usize, &Vec<_>)| {
            let work = self.idle.borrow_mut().pop().unwrap_or_default();
            Shard::new(&self.blocks, parameters, work, group.take(i, &all, width))
        };
        let mut shards: Vec<Shard> = parameters.iter().take(group.count).enumerate().map(shard).collect();
        shards::forward(&mut shards, &*group.exchange)?;
        let mut outputs = vec![0.0; rows * dim];
        for (i, shard) in shards.iter().enumerate() {
            group.put(i, shard.output(), dim, &mut outputs);
        }
        let y = self.device.try_tensor_from_vec(outputs, (rows, dim)).map_err(Error::device)?;
        let (group, idle) = (group.clone(), self.idle.clone());
        if pass != Pass::Train {
            idle.borrow_mut().extend(shards.into_iter().map(Shard::into_workspace));
            return Ok(y.put_tape(tape));
        }
        let (from, to) = (y.ghost(), x.ghost());
        tape.add_backward_op(move |gradients| {
            let dy = gradients.get_or_alloc_mut(&from)?;
            let mut own: Vec<_> = (0..group.count).map(|i| group.take(i, dy, dim)).collect();
            shards::backward(&shards, &mut own, &*group.exchange);
            let mut dx = vec![0.0; rows * width];
            own.iter().enumerate().for_each(|(i, own)| group.put(i, own, width, &mut dx));
            let sum = gradients.get_or_alloc_mut(&to)?;
            sum.iter_mut().zip(dx).for_each(|(sum, d)| *sum += d);
            idle.borrow_mut().extend(shards.into_iter().map(Shard::into_workspace));
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn parameters(&self) -> Vec<Param<Cpu>> {
        Block::parameters(&self.blocks)
    }

    fn statistics(&self) -> Vec<Param<Cpu>> {
        Block::statistics(&self.blocks)
    }

    fn duplicate(&self) -> Result<Box<dyn Head<Cpu>>> {
        let blocks = self.blocks.iter().map(|b| b.duplicate(&self.device)).collect::<Result<_>>()?;
        Ok(Box::new(MlpHead { device: self.device.clone(), blocks: Rc::new(blocks), idle: Rc::default() }))
    }

    fn layers(&self) -> Vec<Layer> {
        self.blocks.iter().map(Block::layer).collect()
    }
}
