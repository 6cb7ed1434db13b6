//! Linear layers with batch normalization and ReLU on CUDA: a head as one operation on the tape.

use super::NetworkContext;
use crate::heads::{Block, Head, check_width};
use dfdx::prelude::{Cuda, HasShape, PutTape, ReshapeTo, SplitTape, Tape as _};
use pauc_cuda::feature_map::MapShape;
use pauc_cuda::matmul::MatrixRef;
use pauc_cuda::norm::{BatchNorm, Relu};
use pauc_cuda::tensor::{self, Contiguous};
use pauc_cuda::{Buffer, Precision, View, elementwise, memory, rows};
use pauc_traits::cuda::OnDevice;
use pauc_traits::encoder::{Images, Layer};
use pauc_traits::{Encoder, Error, ImageShape, Param, Pass, Result, Taped};
use std::cell::RefCell;
use std::rc::Rc;

/// The linear outputs of a block and the state of their normalization.
#[derive(Debug)]
struct PreNorm {
    linear: Buffer,
    norm: BatchNorm,
}

/// The values that a forward pass keeps for the backward pass.
#[derive(Debug)]
struct Workspace {
    context: NetworkContext,
    rows: usize,
    /// The head's input and each block's output.
    outputs: Vec<Buffer>,
    /// Per block, if it has a normalization.
    pre_norm: Vec<Option<PreNorm>>,
}

impl Workspace {
    fn new(context: &NetworkContext, blocks: &[Block<Cuda>], rows: usize) -> pauc_cuda::Result<Self> {
        let on = &context.on;
        let mut outputs = vec![Buffer::uninit(on, rows * blocks[0].inputs)?];
        let mut pre_norm = Vec::new();
        for block in blocks {
            outputs.push(Buffer::uninit(on, rows * block.outputs)?);
            pre_norm.push(match block.norm {
                Some(_) => Some(PreNorm {
                    linear: Buffer::uninit(on, rows * block.outputs)?,
                    norm: BatchNorm::new(on, block.outputs)?,
                }),
                None => None,
            });
        }
        Ok(Workspace { context: context.clone(), rows, outputs, pre_norm })
    }

    /// Returns the output of the last block.
    fn forward(&mut self, blocks: &[Block<Cuda>], x: View<'_>, pass: Pass) -> pauc_cuda::Result<View<'_>> {
        memory::copy(&self.context.on, x, self.outputs[0].view_mut())?;
        for (i, block) in blocks.iter().enumerate() {
            self.block_forward(i, block, pass)?;
        }
        Ok(self.outputs[blocks.len()].view())
    }

    /// Computes the output of block `i`.
    fn block_forward(&mut self, i: usize, block: &Block<Cuda>, pass: Pass) -> pauc_cuda::Result<()> {
        let (context, rows) = (&self.context, self.rows);
        let on = &context.on;
        let (before, after) = self.outputs.split_at_mut(i + 1);
        let (x, to) = (&before[i], &mut after[0]);
        let (weight, bias) = (block.weight.value(), block.bias.as_ref().map(|b| b.value()));
        let x = MatrixRef::new(x.view(), rows, block.inputs);
        let w = MatrixRef::new(weight.view(), block.outputs, block.inputs).t();
        let (Some(params), Some(PreNorm { linear, norm })) = (&block.norm, &mut self.pre_norm[i]) else {
            context.product(x, w, 0.0, to.view_mut())?;
            if bias.is_some() || block.relu {
                rows::bias(on, to.view_mut(), block.outputs, bias.as_deref(), block.relu)?;
            }
            return Ok(());
        };
        context.product(x, w, 0.0, linear.view_mut())?;
        if bias.is_some() {
            rows::bias(on, linear.view_mut(), block.outputs, bias.as_deref(), false)?;
        }
        let y = (linear.view().into(), MapShape::matrix(rows, block.outputs));
        let (running, affine) = (params.running(), [&params.gamma, &params.beta]);
        if pass == Pass::Eval {
            running.set(on, norm, affine)?;
        } else if rows < 2 {
            let message = format!(
                "{}: batch statistics need at least 2 samples: raise the batch size or leave out `batch_norm`",
                params.gamma.name
            );
            return Err(pauc_cuda::Error::Length { operation: "mlp head", message });
        } else {
            running.measure(on, norm, y, affine)?;
        }
        norm.apply(on, y, None, block.relu, to.view_mut().into(), None)
    }

    /// Computes the gradient of the input, if requested, from that of the outputs. The gradients of the
    /// parameters are accumulated.
    fn backward(
        &mut self,
        blocks: &[Block<Cuda>],
        dy: View<'_>,
        to_input: bool,
    ) -> pauc_cuda::Result<Buffer> {
        let mut g = Buffer::copy_of(&self.context.on, dy)?;
        for (i, block) in blocks.iter().enumerate().rev() {
            self.block_parameters_backward(i, block, &mut g)?;
            if i > 0 || to_input {
                let mut dx = Buffer::uninit(&self.context.on, self.rows * block.inputs)?;
                let weight = block.weight.value();
                let w = MatrixRef::new(weight.view(), block.outputs, block.inputs);
                let d = MatrixRef::new(g.view(), self.rows, block.outputs);
                self.context.product(d, w, 0.0, dx.view_mut())?;
                g = dx;
            }
        }
        Ok(g)
    }

    /// Accumulates the gradients of the parameters of block `i`. Replaces the gradient of the block's output
    /// by that of the linear layer's output.
    fn block_parameters_backward(
        &mut self,
        i: usize,
        block: &Block<Cuda>,
        g: &mut Buffer,
    ) -> pauc_cuda::Result<()> {
        let (on, rows) = (&self.context.on, self.rows);
        match (&block.norm, &mut self.pre_norm[i]) {
            (Some(params), Some(PreNorm { linear, norm })) => {
                let (mut gamma, mut beta) = (params.gamma.grad_mut(), params.beta.grad_mut());
                let y = (linear.view().into(), MapShape::matrix(rows, block.outputs));
                let (relu, mut g) = (if block.relu { Relu::Own } else { Relu::No }, g.view_mut().into());
                norm.parameter_gradients(on, (&mut g, None), relu, y, (&mut gamma, &mut beta), false)?;
                norm.input_gradient(on, &mut g, relu, y, None, None)?;
            }
            _ if block.relu => rows::relu_gradient(on, self.outputs[i + 1].view(), g.view_mut())?,
            _ => {}
        }
        let d = MatrixRef::new(g.view(), rows, block.outputs);
        let x = MatrixRef::new(self.outputs[i].view(), rows, block.inputs);
        self.context.product(d.t(), x, 1.0, block.weight.grad_mut().view_mut())?;
        match &block.bias {
            Some(bias) => rows::column_sums(on, g.view(), &mut bias.grad_mut()),
            None => Ok(()),
        }
    }
}

/// Workspaces not in use by any pass.
#[derive(Clone, Debug)]
struct Idle {
    context: NetworkContext,
    workspaces: Rc<RefCell<Vec<Workspace>>>,
}

impl Idle {
    fn new(context: NetworkContext) -> Self {
        Idle { context, workspaces: Rc::default() }
    }

    /// Takes a workspace for a batch of `rows`.
    fn take(&self, blocks: &[Block<Cuda>], rows: usize) -> pauc_cuda::Result<Workspace> {
        let mut workspaces = self.workspaces.borrow_mut();
        match workspaces.iter().position(|w| w.rows == rows) {
            Some(i) => Ok(workspaces.swap_remove(i)),
            None => {
                // Keep at most one workspace of another batch size.
                workspaces.truncate(1);
                Workspace::new(&self.context, blocks, rows)
            }
        }
    }

    fn give(&self, workspace: Workspace) {
        self.workspaces.borrow_mut().push(workspace);
    }

    /// Creates an empty pool on the same device with the same precision, for a duplicate.
    fn empty(&self) -> Self {
        Idle::new(self.context.clone())
    }
}

/// A perceptron on pixels.
pub(super) struct Perceptron {
    device: Cuda,
    input: ImageShape,
    blocks: Rc<Vec<Block<Cuda>>>,
    idle: Idle,
}

impl Perceptron {
    /// Creates a perceptron of at least one layer of weight and bias, each followed by ReLU.
    pub(super) fn new(
        device: &Cuda,
        input: ImageShape,
        layers: Vec<[Param<Cuda>; 2]>,
        precision: Precision,
    ) -> Result<Self> {
        let block = |[weight, bias]: [Param<Cuda>; 2]| Block {
            inputs: weight.shape[1],
            outputs: weight.shape[0],
            weight,
            bias: Some(bias),
            norm: None,
            relu: true,
        };
        Ok(Perceptron {
            device: device.clone(),
            input,
            blocks: Rc::new(layers.into_iter().map(block).collect()),
            idle: Idle::new(NetworkContext::new(device, precision)?),
        })
    }
}

impl Encoder<Cuda> for Perceptron {
    fn feature_dim(&self) -> usize {
        self.blocks.last().map_or(0, |b| b.outputs)
    }

    fn forward(&mut self, images: Images<Cuda>, pass: Pass) -> Result<Taped<(usize, usize), f32, Cuda>> {
        let (batch, height, width, channels) = *images.shape();
        let got = ImageShape { height, width, channels };
        if got != self.input || batch == 0 {
            let message = format!("was built for images of {}, got {batch} of {got}", self.input);
            return Err(Error::shape("mlp encoder", message));
        }
        let pixels = Contiguous::new(images).on_device()?;
        let mut workspace = self.idle.take(&self.blocks, batch).on_device()?;
        let output = workspace.forward(&self.blocks, pixels.view(), pass).on_device()?;
        let y = tensor::to_tensor(&self.device, output, (batch, self.feature_dim())).on_device()?;
        let mut tape = pauc_traits::Tape::default();
        if pass != Pass::Train {
            self.idle.give(workspace);
            return Ok(y.put_tape(tape));
        }
        let (blocks, idle, from) = (self.blocks.clone(), self.idle.clone(), y.ghost());
        tape.add_backward_op(move |gradients| {
            workspace.backward(&blocks, tensor::gradient(gradients.get_or_alloc_mut(&from)?), false)?;
            idle.give(workspace);
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn parameters(&self) -> Vec<Param<Cuda>> {
        Block::parameters(&self.blocks)
    }

    fn statistics(&self) -> Vec<Param<Cuda>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<Cuda>>> {
        let blocks = self.blocks.iter().map(|b| b.duplicate(&self.device)).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(Perceptron {
            device: self.device.clone(),
            input: self.input,
            blocks: Rc::new(blocks),
            idle: self.idle.empty(),
        }))
    }

    fn has_fixed_order(&self) -> bool {
        true
    }

    fn layers(&self) -> Vec<Layer> {
        self.blocks.iter().map(Block::layer).collect()
    }
}

/// A head on CUDA.
#[derive(Debug)]
pub(super) struct MlpHead {
    device: Cuda,
    blocks: Rc<Vec<Block<Cuda>>>,
    idle: Idle,
}

impl MlpHead {
    /// Creates a head of at least one block.
    pub(super) fn new(device: &Cuda, blocks: Vec<Block<Cuda>>, precision: Precision) -> Result<Self> {
        let idle = Idle::new(NetworkContext::new(device, precision)?);
        Ok(MlpHead { device: device.clone(), blocks: Rc::new(blocks), idle })
    }
}

impl Head<Cuda> for MlpHead {
    fn output_dim(&self) -> usize {
        self.blocks.last().map_or(0, |b| b.outputs)
    }

    fn forward(
        &mut self,
        x: Taped<(usize, usize), f32, Cuda>,
        pass: Pass,
    ) -> Result<Taped<(usize, usize), f32, Cuda>> {
        let (rows, width) = *x.shape();
        check_width("mlp head", width, self.blocks[0].inputs)?;
        let (x, mut tape) = x.try_contiguous().map_err(Error::device)?.split_tape();
        let mut workspace = self.idle.take(&self.blocks, rows).on_device()?;
        let dense = Contiguous::new(x.clone()).on_device()?;
        let output = workspace.forward(&self.blocks, dense.view(), pass).on_device()?;
        let y = tensor::to_tensor(&self.device, output, (rows, self.output_dim())).on_device()?;
        if pass != Pass::Train {
            self.idle.give(workspace);
            return Ok(y.put_tape(tape));
        }
        let (blocks, idle) = (self.blocks.clone(), self.idle.clone());
        let (from, to) = (y.ghost(), x.ghost());
        tape.add_backward_op(move |gradients| {
            let dx =
                workspace.backward(&blocks, tensor::gradient(gradients.get_or_alloc_mut(&from)?), true)?;
            let sum = tensor::gradient_mut(gradients.get_or_alloc_mut(&to)?);
            elementwise::add(&idle.context.on, sum, 1.0, dx.view())?;
            idle.give(workspace);
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn parameters(&self) -> Vec<Param<Cuda>> {
        Block::parameters(&self.blocks)
    }

    fn statistics(&self) -> Vec<Param<Cuda>> {
        Block::statistics(&self.blocks)
    }

    fn duplicate(&self) -> Result<Box<dyn Head<Cuda>>> {
        let blocks = self.blocks.iter().map(|b| b.duplicate(&self.device)).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(MlpHead {
            device: self.device.clone(),
            blocks: Rc::new(blocks),
            idle: self.idle.empty(),
        }))
    }

    fn layers(&self) -> Vec<Layer> {
        self.blocks.iter().map(Block::layer).collect()
    }
}
