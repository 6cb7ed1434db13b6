//! The vision transformer on CUDA: one operation on the tape.

use super::NetworkContext;
use crate::encoders_plain::{Mlp, Pool, Transformer, TransformerBlock, TransformerPlan as Plan};
use dfdx::prelude::{Cuda, HasShape, PutTape, Tape as _};
use pauc_cuda::matmul::MatrixRef;
use pauc_cuda::tensor::{self, Contiguous};
use pauc_cuda::transformer::{self, RowMoments, TokenShape};
use pauc_cuda::{Buffer, Context, Precision, Result as Device, View, elementwise, rows};
use pauc_traits::cuda::OnDevice;
use pauc_traits::encoder::{Images, Layer, LayerDepths};
use pauc_traits::{Encoder, Error, ImageShape, Param, Pass, Result, Taped};
use std::rc::Rc;

/// ε of layer normalization.
const EPSILON: f32 = crate::encoders_plain::LAYER_NORM_EPSILON as f32;

/// The values that attention keeps for its backward pass.
#[derive(Debug)]
struct Attention {
    /// q, k and v per head, each (B·H, T, d).
    heads: [Buffer; 3],
    /// softmax(q·kᵀ/√d), (B·H, T, T).
    weights: Buffer,
    /// The outputs, (B·T, W).
    mixed: Buffer,
}

/// The values that a block keeps for its backward pass.
#[derive(Debug)]
struct Kept {
    x: Buffer,
    moments1: RowMoments,
    normed1: Buffer,
    attention: Attention,
    middle: Buffer,
    moments2: RowMoments,
    normed2: Buffer,
    hidden: Buffer,
    activated: Buffer,
}

/// The values that a pass keeps for its backward pass.
#[derive(Debug)]
struct Activations {
    shape: TokenShape,
    patches: Buffer,
    blocks: Vec<Kept>,
    last: Buffer,
    pooled: Buffer,
    moments: RowMoments,
}

/// Computes `y ← x·Wᵀ + b`.
fn linear(context: &NetworkContext, x: View<'_>, [weight, bias]: &[Param<Cuda>; 2]) -> Device<Buffer> {
    let outputs = bias.len();
    let inputs = weight.len() / outputs;
    let count = x.len() / inputs;
    let mut y = Buffer::uninit(&context.on, count * outputs)?;
    let weight = weight.value();
    let w = MatrixRef::new(weight.view(), outputs, inputs);
    context.product(MatrixRef::new(x, count, inputs), w.t(), 0.0, y.view_mut())?;
    rows::bias(&context.on, y.view_mut(), outputs, Some(&bias.value()), false)?;
    Ok(y)
}

/// Accumulates the gradients of [`linear`]'s weight and bias.
fn linear_parameter_gradients(
    context: &NetworkContext,
    dy: View<'_>,
    x: View<'_>,
    [weight, bias]: &[Param<Cuda>; 2],
) -> Device<()> {
    let outputs = bias.len();
    let inputs = weight.len() / outputs;
    let count = x.len() / inputs;
    let d = MatrixRef::new(dy, count, outputs);
    context.product(d.t(), MatrixRef::new(x, count, inputs), 1.0, weight.grad_mut().view_mut())?;
    rows::column_sums(&context.on, dy, &mut bias.grad_mut())
}

/// Returns the gradient of [`linear`]'s input. Accumulates those of weight and bias.
fn linear_gradient(
    context: &NetworkContext,
    dy: View<'_>,
    x: View<'_>,
    layer: &[Param<Cuda>; 2],
) -> Device<Buffer> {
    linear_parameter_gradients(context, dy, x, layer)?;
    let [weight, bias] = layer;
    let outputs = bias.len();
    let d = MatrixRef::new(dy, dy.len() / outputs, outputs);
    let mut dx = Buffer::uninit(&context.on, x.len())?;
    let weight = weight.value();
    let w = MatrixRef::new(weight.view(), outputs, weight.len() / outputs);
    context.product(d, w, 0.0, dx.view_mut())?;
    Ok(dx)
}

fn layer_norm(on: &Context, x: View<'_>, [gamma, beta]: &[Param<Cuda>; 2]) -> Device<(Buffer, RowMoments)> {
    let mut moments = RowMoments::new(on, x.len() / gamma.len())?;
    let mut y = Buffer::uninit(on, x.len())?;
    transformer::layer_norm(on, x, [&gamma.value(), &beta.value()], EPSILON, y.view_mut(), &mut moments)?;
    Ok((y, moments))
}

/// Adds the gradient of [`layer_norm`]'s input to `dx`.
fn layer_norm_gradient(
    on: &Context,
    dy: View<'_>,
    x: View<'_>,
    [gamma, beta]: &[Param<Cuda>; 2],
    moments: &RowMoments,
    dx: &mut Buffer,
) -> Device<()> {
    let to = [&mut *gamma.grad_mut(), &mut *beta.grad_mut()];
    transformer::layer_norm_gradient(on, dy, x, &gamma.value(), moments, to, dx.view_mut())
}

/// Returns `a + b`.
fn sum(on: &Context, a: View<'_>, b: View<'_>) -> Device<Buffer> {
    let mut sum = Buffer::copy_of(on, a)?;
    elementwise::add(on, sum.view_mut(), 1.0, b)?;
    Ok(sum)
}

/// The matrix (T, d) of the first head of the first image; those of the other heads and images follow it.
fn by_head(m: &Buffer, shape: TokenShape) -> MatrixRef<'_> {
    MatrixRef::new(m.view(), shape.tokens, shape.width / shape.heads)
}

/// Allocates a matrix of tokens for each of queries, keys and values.
fn query_key_value(on: &Context, shape: TokenShape) -> Device<[Buffer; 3]> {
    let tokens = || Buffer::uninit(on, shape.len());
    Ok([tokens()?, tokens()?, tokens()?])
}

/// Computes softmax(q·kᵀ/√d)·v for each head; the heads are concatenated in rows.
fn attend(context: &NetworkContext, shape: TokenShape, qkv: &Buffer) -> Device<Attention> {
    let on = &context.on;
    let (d, head_count) = (shape.width / shape.heads, shape.batch * shape.heads);
    let mut heads = query_key_value(on, shape)?;
    for (n, part) in heads.iter_mut().enumerate() {
        transformer::split_heads(on, qkv.view(), (n, 3), shape, part.view_mut())?;
    }
    let [q, k, v] = heads.each_ref().map(|part| by_head(part, shape));
    let mut weights = Buffer::uninit(on, shape.attention_len())?;
    context.batched_product(head_count, q, k.t(), 0.0, weights.view_mut())?;
    transformer::softmax(on, weights.view_mut(), 1.0 / (d as f32).sqrt(), shape.tokens)?;
    let mut by_heads = Buffer::uninit(on, shape.len())?;
    let p = MatrixRef::new(weights.view(), shape.tokens, shape.tokens);
    context.batched_product(head_count, p, v, 0.0, by_heads.view_mut())?;
    let mut mixed = Buffer::uninit(on, shape.len())?;
    transformer::merge_heads(on, by_heads.view(), (0, 1), shape, mixed.view_mut())?;
    Ok(Attention { heads, weights, mixed })
}

/// Computes the gradient of concatenated queries, keys and values from that of [`attend`]'s outputs.
fn attend_gradient(
    context: &NetworkContext,
    shape: TokenShape,
    attention: &Attention,
    d_mixed: &Buffer,
) -> Device<Buffer> {
    let on = &context.on;
    let (d, head_count) = (shape.width / shape.heads, shape.batch * shape.heads);
    let mut d_heads = Buffer::uninit(on, shape.len())?;
    transformer::split_heads(on, d_mixed.view(), (0, 1), shape, d_heads.view_mut())?;
    let d_heads = by_head(&d_heads, shape);
    let [q, k, v] = attention.heads.each_ref().map(|part| by_head(part, shape));
    let p = MatrixRef::new(attention.weights.view(), shape.tokens, shape.tokens);
    let mut d_weights = Buffer::uninit(on, shape.attention_len())?;
    context.batched_product(head_count, d_heads, v.t(), 0.0, d_weights.view_mut())?;
    let mut parts = query_key_value(on, shape)?;
    let [dq, dk, dv] = parts.each_mut().map(Buffer::view_mut);
    context.batched_product(head_count, p.t(), d_heads, 0.0, dv)?;
    let scale = 1.0 / (d as f32).sqrt();
    transformer::softmax_gradient(on, attention.weights.view(), scale, shape.tokens, d_weights.view_mut())?;
    let ds = MatrixRef::new(d_weights.view(), shape.tokens, shape.tokens);
    context.batched_product(head_count, ds, k, 0.0, dq)?;
    context.batched_product(head_count, ds.t(), q, 0.0, dk)?;
    let mut qkv = Buffer::uninit(on, 3 * shape.len())?;
    for (n, part) in parts.iter().enumerate() {
        transformer::merge_heads(on, part.view(), (n, 3), shape, qkv.view_mut())?;
    }
    Ok(qkv)
}

fn block_forward(
    context: &NetworkContext,
    block: &TransformerBlock<Cuda>,
    shape: TokenShape,
    x: Buffer,
) -> Device<(Buffer, Kept)> {
    let on = &context.on;
    let (normed1, moments1) = layer_norm(on, x.view(), &block.norm1)?;
    let qkv = linear(context, normed1.view(), &block.qkv)?;
    let attention = attend(context, shape, &qkv)?;
    let attended = linear(context, attention.mixed.view(), &block.projection)?;
    let middle = sum(on, x.view(), attended.view())?;
    let (normed2, moments2) = layer_norm(on, middle.view(), &block.norm2)?;
    let hidden = linear(context, normed2.view(), &block.fc1)?;
    let mut activated = Buffer::uninit(on, hidden.len())?;
    transformer::gelu(on, hidden.view(), activated.view_mut())?;
    let out = linear(context, activated.view(), &block.fc2)?;
    let y = sum(on, middle.view(), out.view())?;
    let kept = Kept { x, moments1, normed1, attention, middle, moments2, normed2, hidden, activated };
    Ok((y, kept))
}

/// Computes the gradient of a block's input from that of its output.
fn block_backward(
    context: &NetworkContext,
    block: &TransformerBlock<Cuda>,
    shape: TokenShape,
    kept: &Kept,
    mut g: Buffer,
) -> Device<Buffer> {
    let on = &context.on;
    // y = middle + fc2(gelu(fc1(norm2(middle)))).
    let mut through = linear_gradient(context, g.view(), kept.activated.view(), &block.fc2)?;
    transformer::gelu_gradient(on, kept.hidden.view(), through.view_mut())?;
    let through = linear_gradient(context, through.view(), kept.normed2.view(), &block.fc1)?;
    layer_norm_gradient(on, through.view(), kept.middle.view(), &block.norm2, &kept.moments2, &mut g)?;
    // middle = x + projection(heads(norm1(x))).
    let attention = &kept.attention;
    let d_mixed = linear_gradient(context, g.view(), attention.mixed.view(), &block.projection)?;
    let qkv = attend_gradient(context, shape, attention, &d_mixed)?;
    let through = linear_gradient(context, qkv.view(), kept.normed1.view(), &block.qkv)?;
    layer_norm_gradient(on, through.view(), kept.x.view(), &block.norm1, &kept.moments1, &mut g)?;
    Ok(g)
}

/// Returns the positions of the images' grid if they are not the learned ones.
fn resampled_positions(context: &NetworkContext, net: &Transformer<Cuda>) -> Device<Option<Buffer>> {
    let Some(matrix) = &net.resampling else { return Ok(None) };
    let (tokens, learned, width) = (net.plan.tokens(), net.plan.positions(), net.plan.width);
    let mut positions = Buffer::uninit(&context.on, tokens * width)?;
    let values = net.positions.value();
    let matrix = MatrixRef::new(matrix.view(), tokens, learned);
    context.product(matrix, MatrixRef::new(values.view(), learned, width), 0.0, positions.view_mut())?;
    Ok(Some(positions))
}

/// Adds the gradient of resampled positions to that of the learned ones.
fn resampled_gradient(
    context: &NetworkContext,
    net: &Transformer<Cuda>,
    matrix: &Buffer,
    d_positions: &Buffer,
) -> Device<()> {
    let (tokens, learned, width) = (net.plan.tokens(), net.plan.positions(), net.plan.width);
    let matrix = MatrixRef::new(matrix.view(), tokens, learned);
    let d_positions = MatrixRef::new(d_positions.view(), tokens, width);
    context.product(matrix.t(), d_positions, 1.0, net.positions.grad_mut().view_mut())
}

fn forward(
    context: &NetworkContext,
    net: &Transformer<Cuda>,
    images: View<'_>,
    batch: usize,
) -> Device<(Buffer, Activations)> {
    let (on, plan) = (&context.on, &net.plan);
    let input = plan.input;
    let shape = TokenShape { batch, tokens: plan.tokens(), width: plan.width, heads: plan.heads };
    let mut patches = Buffer::uninit(on, images.len())?;
    let size = (input.height, input.width, input.channels);
    transformer::patches(on, images, size, plan.patch, patches.view_mut())?;
    let embedded = linear(context, patches.view(), &net.embedding)?;
    let mut x = Buffer::uninit(on, shape.len())?;
    let token = net.class_token.as_ref().map(Param::value);
    let (learned, resampled) = (net.positions.value(), resampled_positions(context, net)?);
    let positions = resampled.as_ref().unwrap_or(&learned);
    transformer::assemble(on, embedded.view(), token.as_deref(), positions, shape, x.view_mut())?;
    let mut blocks = Vec::new();
    for block in &net.blocks {
        let (y, kept) = block_forward(context, block, shape, x)?;
        blocks.push(kept);
        x = y;
    }
    let mut pooled = Buffer::uninit(on, batch * plan.width)?;
    transformer::pool(on, x.view(), shape, plan.pool == Pool::Mean, pooled.view_mut())?;
    let (features, moments) = layer_norm(on, pooled.view(), &net.norm)?;
    Ok((features, Activations { shape, patches, blocks, last: x, pooled, moments }))
}

fn backward(
    context: &NetworkContext,
    net: &Transformer<Cuda>,
    pass: &Activations,
    dy: View<'_>,
) -> Device<()> {
    let (on, shape) = (&context.on, pass.shape);
    let mut pooled = Buffer::zeros(on, pass.pooled.len())?;
    layer_norm_gradient(on, dy, pass.pooled.view(), &net.norm, &pass.moments, &mut pooled)?;
    let mut g = Buffer::uninit(on, pass.last.len())?;
    transformer::pool_gradient(on, pooled.view(), shape, net.plan.pool == Pool::Mean, g.view_mut())?;
    for (block, kept) in net.blocks.iter().zip(&pass.blocks).rev() {
        g = block_backward(context, block, shape, kept, g)?;
    }
    let mut d_patches = Buffer::uninit(on, shape.batch * net.plan.patches() * shape.width)?;
    let mut token = net.class_token.as_ref().map(Param::grad_mut);
    let (d_token, d_all) = (token.as_deref_mut(), d_patches.view_mut());
    if let Some(matrix) = &net.resampling {
        let mut d_positions = Buffer::zeros(on, shape.tokens * shape.width)?;
        transformer::assemble_gradient(on, g.view(), shape, &mut d_positions, d_token, d_all)?;
        resampled_gradient(context, net, matrix, &d_positions)?;
    } else {
        let mut d_positions = net.positions.grad_mut();
        transformer::assemble_gradient(on, g.view(), shape, &mut d_positions, d_token, d_all)?;
    }
    linear_parameter_gradients(context, d_patches.view(), pass.patches.view(), &net.embedding)
}

/// Returns whether the fused operation computes this network. The others run in dfdx's operations.
pub(super) fn is_fused(plan: &Plan) -> bool {
    let is_plain = plan.mlp == Mlp::Gelu && plan.layer_scale.is_none() && plan.drop_path == 0.0;
    is_plain && plan.registers == 0 && plan.positioned_prefix() == plan.prefix()
}

/// A vision transformer on CUDA, see [`is_fused`].
pub(super) struct VisionTransformer {
    context: NetworkContext,
    net: Rc<Transformer<Cuda>>,
}

impl VisionTransformer {
    /// Creates the CUDA network with the parameters of a network in plain operations.
    pub(super) fn new(net: Transformer<Cuda>, precision: Precision) -> Result<Self> {
        let context = NetworkContext::new(&net.device, precision)?;
        Ok(VisionTransformer { context, net: Rc::new(net) })
    }
}

impl Encoder<Cuda> for VisionTransformer {
    fn feature_dim(&self) -> usize {
        self.net.plan.width
    }

    fn forward(&mut self, images: Images<Cuda>, pass: Pass) -> Result<Taped<(usize, usize), f32, Cuda>> {
        let (batch, height, width, channels) = *images.shape();
        let (got, input) = (ImageShape { height, width, channels }, self.net.plan.input);
        if got != input || batch == 0 {
            let message = format!("was built for images of {input}, got {batch} of {got}");
            return Err(Error::shape("vision transformer", message));
        }
        let images = Contiguous::new(images).on_device()?;
        let (features, kept) = forward(&self.context, &self.net, images.view(), batch).on_device()?;
        let shape = (batch, self.net.plan.width);
        let y = tensor::to_tensor(&self.net.device, features.view(), shape).on_device()?;
        let mut tape = pauc_traits::Tape::default();
        if pass == Pass::Train {
            let (context, net, from) = (self.context.clone(), self.net.clone(), y.ghost());
            tape.add_backward_op(move |gradients| {
                let gradient = tensor::gradient(gradients.get_or_alloc_mut(&from)?);
                Ok(backward(&context, &net, &kept, gradient)?)
            });
        }
        Ok(y.put_tape(tape))
    }

    fn parameters(&self) -> Vec<Param<Cuda>> {
        self.net.parameters()
    }

    fn statistics(&self) -> Vec<Param<Cuda>> {
        Vec::new()
    }

    fn depths(&self) -> Option<LayerDepths> {
        self.net.depths()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<Cuda>>> {
        Ok(Box::new(VisionTransformer { context: self.context.clone(), net: Rc::new(self.net.copy()?) }))
    }

    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<Cuda>>> {
        let net = Rc::new(self.net.resized_to(input)?);
        Ok(Box::new(VisionTransformer { context: self.context.clone(), net }))
    }

    fn has_fixed_order(&self) -> bool {
        true
    }

    fn layers(&self) -> Vec<Layer> {
        self.net.layers()
    }
}
