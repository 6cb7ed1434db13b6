//! The vision transformer on CUDA: one operation on the tape.

use crate::encoders_plain::{Pool, Transformer, TransformerBlock};
use dfdx::prelude::{Cuda, HasShape, PutTape, Tape as _};
use pauc_cuda::matmul::MatrixRef;
use pauc_cuda::tensor::{self, Contiguous};
use pauc_cuda::transformer::{self, RowMoments, TokenShape};
use pauc_cuda::{Buffer, Context, Result as Device, View, elementwise, matmul, rows};
use pauc_traits::cuda::OnDevice;
use pauc_traits::encoder::{Images, Layer};
use pauc_traits::{Encoder, Error, ImageShape, Param, Pass, Result, Taped};
use std::rc::Rc;

/// ε of layer normalization.
const EPSILON: f32 = 1e-6;

/// What a block keeps for its backward pass.
#[derive(Debug)]
struct Kept {
    x: Buffer,
    moments1: RowMoments,
    normed1: Buffer,
    /// q, k and v by head.
    heads: [Buffer; 3],
    attention: Buffer,
    mixed: Buffer,
    middle: Buffer,
    moments2: RowMoments,
    normed2: Buffer,
    hidden: Buffer,
    activated: Buffer,
}

/// What a pass keeps for its backward pass.
#[derive(Debug)]
struct Activations {
    shape: TokenShape,
    patches: Buffer,
    blocks: Vec<Kept>,
    last: Buffer,
    pooled: Buffer,
    moments: RowMoments,
}

/// `y ← x·Wᵀ + b`.
fn linear(on: &Context, x: View<'_>, [weight, bias]: &[Param<Cuda>; 2]) -> Device<Buffer> {
    let outputs = bias.len();
    let inputs = weight.len() / outputs;
    let count = x.len() / inputs;
    let mut y = Buffer::uninit(on, count * outputs)?;
    let weight = weight.value();
    let w = MatrixRef::new(weight.view(), outputs, inputs);
    matmul::product(on, MatrixRef::new(x, count, inputs), w.t(), 0.0, y.view_mut())?;
    rows::bias(on, y.view_mut(), outputs, Some(&bias.value()), false)?;
    Ok(y)
}

/// The gradient of [`linear`]'s input. Those of weight and bias are accumulated.
fn linear_gradient(
    on: &Context,
    dy: View<'_>,
    x: View<'_>,
    [weight, bias]: &[Param<Cuda>; 2],
    to_input: bool,
) -> Device<Option<Buffer>> {
    let outputs = bias.len();
    let inputs = weight.len() / outputs;
    let count = x.len() / inputs;
    let d = MatrixRef::new(dy, count, outputs);
    matmul::product(on, d.t(), MatrixRef::new(x, count, inputs), 1.0, weight.grad_mut().view_mut())?;
    rows::column_sums(on, dy, &mut bias.grad_mut())?;
    if !to_input {
        return Ok(None);
    }
    let mut dx = Buffer::uninit(on, count * inputs)?;
    let weight = weight.value();
    matmul::product(on, d, MatrixRef::new(weight.view(), outputs, inputs), 0.0, dx.view_mut())?;
    Ok(Some(dx))
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

/// `a + b`.
fn sum(on: &Context, a: View<'_>, b: View<'_>) -> Device<Buffer> {
    let mut sum = Buffer::copy_of(on, a)?;
    elementwise::add(on, sum.view_mut(), 1.0, b)?;
    Ok(sum)
}

/// The matrix (T, d) of the first head of the first image; those of the others follow.
fn by_head(m: &Buffer, shape: TokenShape) -> MatrixRef<'_> {
    MatrixRef::new(m.view(), shape.tokens, shape.width / shape.heads)
}

fn block_forward(
    on: &Context,
    block: &TransformerBlock<Cuda>,
    shape: TokenShape,
    x: Buffer,
) -> Device<(Buffer, Kept)> {
    let TokenShape { batch, tokens: count, width, heads } = shape;
    let (d, head_count) = (width / heads, batch * heads);
    let (normed1, moments1) = layer_norm(on, x.view(), &block.norm1)?;
    let qkv = linear(on, normed1.view(), &block.qkv)?;
    let mut parts = [
        Buffer::uninit(on, shape.len())?,
        Buffer::uninit(on, shape.len())?,
        Buffer::uninit(on, shape.len())?,
    ];
    for (n, part) in parts.iter_mut().enumerate() {
        transformer::split_heads(on, qkv.view(), (n, 3), shape, part.view_mut())?;
    }
    let [q, k, v] = &parts;
    let mut attention = Buffer::uninit(on, shape.attention_len())?;
    matmul::batched_product(
        on,
        head_count,
        by_head(q, shape),
        by_head(k, shape).t(),
        0.0,
        attention.view_mut(),
    )?;
    transformer::softmax(on, attention.view_mut(), 1.0 / (d as f32).sqrt(), count)?;
    let mut by_heads = Buffer::uninit(on, shape.len())?;
    let p = MatrixRef::new(attention.view(), count, count);
    matmul::batched_product(on, head_count, p, by_head(v, shape), 0.0, by_heads.view_mut())?;
    let mut mixed = Buffer::uninit(on, shape.len())?;
    transformer::merge_heads(on, by_heads.view(), (0, 1), shape, mixed.view_mut())?;
    let attended = linear(on, mixed.view(), &block.projection)?;
    let middle = sum(on, x.view(), attended.view())?;
    let (normed2, moments2) = layer_norm(on, middle.view(), &block.norm2)?;
    let hidden = linear(on, normed2.view(), &block.fc1)?;
    let mut activated = Buffer::uninit(on, hidden.len())?;
    transformer::gelu(on, hidden.view(), activated.view_mut())?;
    let out = linear(on, activated.view(), &block.fc2)?;
    let y = sum(on, middle.view(), out.view())?;
    let kept = Kept {
        x,
        moments1,
        normed1,
        heads: parts,
        attention,
        mixed,
        middle,
        moments2,
        normed2,
        hidden,
        activated,
    };
    Ok((y, kept))
}

/// From the gradient of a block's output to that of its input.
fn block_backward(
    on: &Context,
    block: &TransformerBlock<Cuda>,
    shape: TokenShape,
    kept: &Kept,
    g: Buffer,
) -> Device<Buffer> {
    let TokenShape { batch, tokens: count, width, heads } = shape;
    let (d, head_count) = (width / heads, batch * heads);
    let missing =
        || pauc_cuda::Error::Length { operation: "gradient", message: "of an input is missing".into() };
    // y = middle + fc2(gelu(fc1(norm2(middle)))).
    let through = linear_gradient(on, g.view(), kept.activated.view(), &block.fc2, true)?;
    let mut through = through.ok_or_else(missing)?;
    transformer::gelu_gradient(on, kept.hidden.view(), through.view_mut())?;
    let through =
        linear_gradient(on, through.view(), kept.normed2.view(), &block.fc1, true)?.ok_or_else(missing)?;
    let mut g = g;
    layer_norm_gradient(on, through.view(), kept.middle.view(), &block.norm2, &kept.moments2, &mut g)?;
    // middle = x + projection(heads(norm1(x))).
    let mixed =
        linear_gradient(on, g.view(), kept.mixed.view(), &block.projection, true)?.ok_or_else(missing)?;
    let mut d_heads = Buffer::uninit(on, shape.len())?;
    transformer::split_heads(on, mixed.view(), (0, 1), shape, d_heads.view_mut())?;
    let [q, k, v] = &kept.heads;
    let p = MatrixRef::new(kept.attention.view(), count, count);
    let mut d_attention = Buffer::uninit(on, shape.attention_len())?;
    matmul::batched_product(
        on,
        head_count,
        by_head(&d_heads, shape),
        by_head(v, shape).t(),
        0.0,
        d_attention.view_mut(),
    )?;
    let mut parts = [
        Buffer::uninit(on, shape.len())?,
        Buffer::uninit(on, shape.len())?,
        Buffer::uninit(on, shape.len())?,
    ];
    matmul::batched_product(on, head_count, p.t(), by_head(&d_heads, shape), 0.0, parts[2].view_mut())?;
    let scale = 1.0 / (d as f32).sqrt();
    transformer::softmax_gradient(on, kept.attention.view(), scale, count, d_attention.view_mut())?;
    let ds = MatrixRef::new(d_attention.view(), count, count);
    matmul::batched_product(on, head_count, ds, by_head(k, shape), 0.0, parts[0].view_mut())?;
    matmul::batched_product(on, head_count, ds.t(), by_head(q, shape), 0.0, parts[1].view_mut())?;
    let mut qkv = Buffer::uninit(on, 3 * shape.len())?;
    for (n, part) in parts.iter().enumerate() {
        transformer::merge_heads(on, part.view(), (n, 3), shape, qkv.view_mut())?;
    }
    let through =
        linear_gradient(on, qkv.view(), kept.normed1.view(), &block.qkv, true)?.ok_or_else(missing)?;
    layer_norm_gradient(on, through.view(), kept.x.view(), &block.norm1, &kept.moments1, &mut g)?;
    Ok(g)
}

fn forward(
    on: &Context,
    net: &Transformer<Cuda>,
    images: View<'_>,
    batch: usize,
) -> Device<(Buffer, Activations)> {
    let plan = &net.plan;
    let input = plan.input;
    let shape = TokenShape { batch, tokens: plan.tokens(), width: plan.width, heads: plan.heads };
    let mut patches = Buffer::uninit(on, images.len())?;
    let size = (input.height, input.width, input.channels);
    transformer::patches(on, images, size, plan.patch, patches.view_mut())?;
    let embedded = linear(on, patches.view(), &net.embedding)?;
    let mut x = Buffer::uninit(on, shape.len())?;
    let token = net.class_token.as_ref().map(Param::value);
    transformer::assemble(
        on,
        embedded.view(),
        token.as_deref(),
        &net.positions.value(),
        shape,
        x.view_mut(),
    )?;
    let mut blocks = Vec::new();
    for block in &net.blocks {
        let (y, kept) = block_forward(on, block, shape, x)?;
        blocks.push(kept);
        x = y;
    }
    let mut pooled = Buffer::uninit(on, batch * plan.width)?;
    transformer::pool(on, x.view(), shape, plan.pool == Pool::Mean, pooled.view_mut())?;
    let (features, moments) = layer_norm(on, pooled.view(), &net.norm)?;
    Ok((features, Activations { shape, patches, blocks, last: x, pooled, moments }))
}

fn backward(on: &Context, net: &Transformer<Cuda>, pass: &Activations, dy: View<'_>) -> Device<()> {
    let shape = pass.shape;
    let mut pooled = Buffer::zeros(on, pass.pooled.len())?;
    layer_norm_gradient(on, dy, pass.pooled.view(), &net.norm, &pass.moments, &mut pooled)?;
    let mut g = Buffer::uninit(on, pass.last.len())?;
    transformer::pool_gradient(on, pooled.view(), shape, net.plan.pool == Pool::Mean, g.view_mut())?;
    for (block, kept) in net.blocks.iter().zip(&pass.blocks).rev() {
        g = block_backward(on, block, shape, kept, g)?;
    }
    let mut d_patches = Buffer::uninit(on, shape.batch * net.plan.patches() * shape.width)?;
    let mut token = net.class_token.as_ref().map(Param::grad_mut);
    let d_token = token.as_deref_mut();
    transformer::assemble_gradient(
        on,
        g.view(),
        shape,
        &mut net.positions.grad_mut(),
        d_token,
        d_patches.view_mut(),
    )?;
    linear_gradient(on, d_patches.view(), pass.patches.view(), &net.embedding, false)?;
    Ok(())
}

/// A vision transformer on CUDA.
pub(super) struct VisionTransformer {
    on: Rc<Context>,
    net: Rc<Transformer<Cuda>>,
}

impl VisionTransformer {
    /// With the parameters of a network in plain operations.
    pub(super) fn new(net: Transformer<Cuda>) -> Result<Self> {
        let on = Context::of(&net.device).on_device()?;
        Ok(VisionTransformer { on, net: Rc::new(net) })
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
        let (features, kept) = forward(&self.on, &self.net, images.view(), batch).on_device()?;
        let shape = (batch, self.net.plan.width);
        let y = tensor::to_tensor(&self.net.device, features.view(), shape).on_device()?;
        let mut tape = pauc_traits::Tape::default();
        if pass == Pass::Train {
            let (on, net, from) = (self.on.clone(), self.net.clone(), y.ghost());
            tape.add_backward_op(move |gradients| {
                let gradient = tensor::gradient(gradients.get_or_alloc_mut(&from)?);
                Ok(backward(&on, &net, &kept, gradient)?)
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

    fn duplicate(&self) -> Result<Box<dyn Encoder<Cuda>>> {
        Ok(Box::new(Self::new(self.net.copy()?)?))
    }

    fn has_fixed_order(&self) -> bool {
        true
    }

    fn layers(&self) -> Vec<Layer> {
        self.net.layers()
    }
}
