//! The values and gradients of a vision transformer on the CPU, and the passes over them.
//!
//! All values are rows of tokens, image by image.

use super::super::windows::{convolution_gradients, convolve, first};
use crate::encoders_plain::{Mlp, Pool, Transformer, TransformerBlock as Block, TransformerPlan as Plan};
use dfdx::prelude::Cpu;
use pauc_kernels::attention::{self, Heads, Kept};
use pauc_kernels::buffer::Buffer;
use pauc_kernels::gemm::{Strides, gemm};
use pauc_kernels::inverted_bottleneck::{self, Activation};
use pauc_kernels::layer_norm;
use pauc_kernels::patches::Patches;
use pauc_kernels::residual::{Output, OutputGradients, Paths};
use pauc_kernels::simd::Simd;
use pauc_traits::trace::named;
use pauc_traits::{Param, Result, stop};
use std::cell::{Ref, RefMut};

/// The values of a block. Without a backward pass, all blocks share two of these, and `hidden` is empty.
#[derive(Default)]
struct Values {
    /// The input.
    x: Buffer,
    /// The input of the perceptron.
    middle: Buffer,
    /// q, k and v.
    qkv: Buffer,
    /// The outputs of all heads.
    mixed: Buffer,
    /// The values of the perceptron before its activation.
    hidden: Buffer,
}

/// Memory for one batch at a time. It grows to the largest batch seen, and is then reused.
pub(super) struct Workspace {
    simd: Simd,
    /// Whether values are kept for a backward pass.
    keep: bool,
    /// The patches of the images.
    patches: Buffer,
    /// The embedded patches, or their gradients.
    embedded: Buffer,
    blocks: Vec<Values>,
    /// The output of the last block.
    last: Buffer,
    /// The class tokens, or means over patches.
    pooled: Buffer,
    /// The factors on what each branch adds to each image, if the last pass had any.
    factors: Option<Vec<Vec<f32>>>,
    work: Work,
}

/// Memory that layers share.
#[derive(Default)]
struct Work {
    packed: Buffer,
    /// The gradient of the current values, and that of what a branch adds.
    gradient: Buffer,
    added: Buffer,
    attention: attention::Work,
    perceptron: inverted_bottleneck::Work,
}

fn values(pair: &[Param<Cpu>; 2]) -> [Ref<'_, Vec<f32>>; 2] {
    pair.each_ref().map(Param::value)
}

fn gradients(pair: &[Param<Cpu>; 2]) -> [RefMut<'_, Vec<f32>>; 2] {
    pair.each_ref().map(Param::grad_mut)
}

/// The windows of the patches.
fn windows(plan: &Plan, batch: usize) -> Patches {
    let input = plan.input;
    Patches { batch, height: input.height, width: input.width, channels: input.channels, side: plan.patch }
}

impl Workspace {
    pub fn new(plan: &Plan, simd: Simd, keep: bool) -> Self {
        let count = if keep { plan.depth } else { 2 };
        Workspace {
            simd,
            keep,
            patches: Buffer::default(),
            embedded: Buffer::default(),
            blocks: (0..count).map(|_| Values::default()).collect(),
            last: Buffer::default(),
            pooled: Buffer::default(),
            factors: None,
            work: Work::default(),
        }
    }

    /// Computes features (B, width) of images (B, H, W, C). `factors` are those on what each branch adds to each image.
    pub fn forward(
        &mut self,
        network: &Transformer<Cpu>,
        (images, batch): (&[f32], usize),
        factors: Option<Vec<Vec<f32>>>,
    ) -> Result<Vec<f32>> {
        self.factors = factors;
        self.embed(network, images, batch)?;
        for (i, block) in network.blocks.iter().enumerate() {
            stop::check()?;
            self.forward_block(&network.plan, block, i, batch);
        }
        let _span = named(|| network.norm[0].name.as_str().into());
        self.pool(&network.plan, batch);
        let [gamma, beta] = values(&network.norm);
        let pooled = &self.pooled[..batch * network.plan.width];
        let mut features = vec![0.0; pooled.len()];
        layer_norm::forward(self.simd, pooled, [&gamma, &beta], &mut features);
        Ok(features)
    }

    /// Computes the tokens of all images: class token and registers, if any, before the embedded patches, with positions
    /// added.
    fn embed(&mut self, network: &Transformer<Cpu>, images: &[f32], batch: usize) -> Result<()> {
        let _span = named(|| "patch_embed".into());
        let (plan, windows) = (&network.plan, windows(&network.plan, batch));
        let patches = first(&mut self.patches, windows.rows() * windows.row());
        windows.gather(images, patches);
        let embedded = first(&mut self.embedded, windows.rows() * plan.width);
        convolve(windows, &network.embedding, &mut self.work.packed, patches, embedded);
        let (prefix, patches) = (plan.prefix() * plan.width, plan.patches() * plan.width);
        let mut start = Vec::with_capacity(prefix);
        for tokens in [&network.class_token, &network.registers].into_iter().flatten() {
            start.extend_from_slice(&tokens.value());
        }
        let positions = positions(network)?;
        let skipped = prefix + patches - positions.len();
        let x = first(&mut self.blocks[0].x, batch * (prefix + patches));
        for (x, embedded) in x.chunks_exact_mut(prefix + patches).zip(embedded.chunks_exact(patches)) {
            x[..prefix].copy_from_slice(&start);
            x[prefix..].copy_from_slice(embedded);
            x[skipped..].iter_mut().zip(&positions).for_each(|(x, p)| *x += p);
        }
        Ok(())
    }

    fn forward_block(&mut self, plan: &Plan, block: &Block<Cpu>, i: usize, batch: usize) {
        let tokens = batch * plan.tokens() * plan.width;
        let (is_last, slot) = (i + 1 == plan.depth, if self.keep { i } else { i % 2 });
        let mut values = std::mem::take(&mut self.blocks[slot]);
        {
            let _span = named(|| block.qkv[0].name.as_str().into());
            let (x, middle) = (&values.x[..tokens], first(&mut values.middle, tokens));
            let kept = self.keep.then(|| Kept {
                qkv: first(&mut values.qkv, 3 * tokens),
                mixed: first(&mut values.mixed, tokens),
            });
            let paths = paths(&self.factors, 2 * i, plan);
            with_attention(block, paths, |w| attention::forward(self.simd, w, heads(plan), x, kept, middle));
        }
        let _span = named(|| block.fc1[0].name.as_str().into());
        let middle = &values.middle[..tokens];
        let joined = batch * plan.tokens() * plan.fc1_outputs();
        let hidden = self.keep.then(|| first(&mut values.hidden, joined));
        let next = self.next(slot);
        let to = if is_last { &mut self.last } else { &mut self.blocks[next].x };
        let (y, paths) = (first(to, tokens), paths(&self.factors, 2 * i + 1, plan));
        with_perceptron(plan, block, paths, |w| {
            inverted_bottleneck::forward(self.simd, w, (middle, middle), hidden, y);
        });
        self.blocks[slot] = values;
    }

    /// Computes the class token of each image, or the mean of its patches.
    fn pool(&mut self, plan: &Plan, batch: usize) {
        let (width, image) = (plan.width, plan.tokens() * plan.width);
        let pooled = first(&mut self.pooled, batch * width);
        for (pooled, x) in pooled.chunks_exact_mut(width).zip(self.last.chunks_exact(image)) {
            match plan.pool {
                Pool::Class => pooled.copy_from_slice(&x[..width]),
                Pool::Mean => {
                    pooled.fill(0.0);
                    for row in x[plan.registers * width..].chunks_exact(width) {
                        pooled.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                    pooled.iter_mut().for_each(|sum| *sum /= plan.patches() as f32);
                }
            }
        }
    }

    /// Accumulates the gradients of the parameters, given that of the features of the last forward pass, which must
    /// have kept its values.
    pub fn backward(&mut self, network: &Transformer<Cpu>, d_features: &[f32]) {
        let plan = &network.plan;
        let batch = d_features.len() / plan.width;
        let mut g = std::mem::take(&mut self.work.gradient);
        let tokens = first(&mut g, batch * plan.tokens() * plan.width);
        self.backward_pool(network, d_features, tokens);
        for (i, block) in network.blocks.iter().enumerate().rev() {
            self.backward_perceptron(plan, block, i, tokens);
            self.backward_attention(plan, block, i, tokens);
        }
        self.backward_embed(network, batch, tokens);
        self.work.gradient = g;
    }

    /// g ← the gradient of the last block's output.
    fn backward_pool(&self, network: &Transformer<Cpu>, d_features: &[f32], g: &mut [f32]) {
        let _span = named(|| format!("{} gradient", network.norm[0].name).into());
        let plan = &network.plan;
        let (width, image) = (plan.width, plan.tokens() * plan.width);
        let mut d_pooled = d_features.to_vec();
        let gamma = network.norm[0].value();
        let [mut d_gamma, mut d_beta] = gradients(&network.norm);
        let pooled = &self.pooled[..d_pooled.len()];
        layer_norm::backward(self.simd, pooled, &gamma, &mut d_pooled, [&mut d_gamma, &mut d_beta]);
        g.fill(0.0);
        for (g, d) in g.chunks_exact_mut(image).zip(d_pooled.chunks_exact(width)) {
            match plan.pool {
                Pool::Class => g[..width].copy_from_slice(d),
                Pool::Mean => {
                    for row in g[plan.registers * width..].chunks_exact_mut(width) {
                        row.iter_mut().zip(d).for_each(|(g, d)| *g = d / plan.patches() as f32);
                    }
                }
            }
        }
    }

    /// Turns the gradient of a block's output into that of its perceptron's input.
    fn backward_perceptron(&mut self, plan: &Plan, block: &Block<Cpu>, i: usize, g: &mut [f32]) {
        let _span = named(|| format!("{} gradient", block.fc1[0].name).into());
        let values = &mut self.blocks[i];
        let hidden = &mut values.hidden[..g.len() / plan.width * plan.fc1_outputs()];
        let operands = (&values.middle[..g.len()], hidden, &*g);
        let added = first(&mut self.work.added, g.len());
        let ([mut gamma, mut beta], [mut w1, mut b1]) = (gradients(&block.norm2), gradients(&block.fc1));
        let ([mut weight, mut bias], mut scale) = (gradients(&block.fc2), scale_gradient(&block.scale2));
        let fc2 = OutputGradients {
            weight: &mut weight,
            bias: &mut bias,
            scale: scale.as_deref_mut().map(|s| &mut s[..]),
        };
        let to =
            inverted_bottleneck::Gradients { norm: [&mut gamma, &mut beta], fc1: [&mut w1, &mut b1], fc2 };
        let (simd, work, paths) =
            (self.simd, &mut self.work.perceptron, paths(&self.factors, 2 * i + 1, plan));
        with_perceptron(plan, block, paths, |w| {
            inverted_bottleneck::backward(simd, w, work, operands, to, added);
        });
        g.iter_mut().zip(&*added).for_each(|(g, d)| *g += d);
    }

    /// Turns the gradient of the input of a block's perceptron into that of the block's input.
    fn backward_attention(&mut self, plan: &Plan, block: &Block<Cpu>, i: usize, g: &mut [f32]) {
        let _span = named(|| format!("{} gradient", block.qkv[0].name).into());
        let Values { x, qkv, mixed, .. } = &mut self.blocks[i];
        let kept = Kept { qkv: &mut qkv[..3 * g.len()], mixed: &mut mixed[..g.len()] };
        let ([mut gamma, mut beta], [mut w1, mut b1]) = (gradients(&block.norm1), gradients(&block.qkv));
        let ([mut weight, mut bias], mut scale) =
            (gradients(&block.projection), scale_gradient(&block.scale1));
        let projection = OutputGradients {
            weight: &mut weight,
            bias: &mut bias,
            scale: scale.as_deref_mut().map(|s| &mut s[..]),
        };
        let to = attention::Gradients { norm: [&mut gamma, &mut beta], qkv: [&mut w1, &mut b1], projection };
        let (simd, work, paths) = (self.simd, &mut self.work.attention, paths(&self.factors, 2 * i, plan));
        with_attention(block, paths, |w| {
            attention::backward(simd, w, heads(plan), work, (&x[..g.len()], kept), to, g);
        });
    }

    /// Accumulates the gradients of what makes tokens from pixels, given that of the tokens.
    fn backward_embed(&mut self, network: &Transformer<Cpu>, batch: usize, g: &[f32]) {
        let _span = named(|| "patch_embed gradient".into());
        let (plan, windows) = (&network.plan, windows(&network.plan, batch));
        let (prefix, patches) = (plan.prefix() * plan.width, plan.patches() * plan.width);
        let embedded = first(&mut self.embedded, windows.rows() * plan.width);
        let mut sums = vec![0f64; prefix + patches];
        for (g, embedded) in g.chunks_exact(prefix + patches).zip(embedded.chunks_exact_mut(patches)) {
            embedded.copy_from_slice(&g[prefix..]);
            sums.iter_mut().zip(g).for_each(|(sum, g)| *sum += f64::from(*g));
        }
        let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
        let mut rest = &sums[..];
        for tokens in [&network.class_token, &network.registers].into_iter().flatten() {
            let (own, others) = rest.split_at(tokens.len());
            tokens.grad_mut().iter_mut().zip(own).for_each(|(d, g)| *d += g);
            rest = others;
        }
        let skipped = if plan.prefix_positions { 0 } else { prefix };
        add_position_gradient(network, &sums[skipped..]);
        let rows = &self.patches[..windows.rows() * windows.row()];
        convolution_gradients(windows, &network.embedding, &mut self.work.packed, rows, embedded);
    }

    /// Returns the slot of the block after that in `slot`.
    fn next(&self, slot: usize) -> usize {
        if self.keep { slot + 1 } else { 1 - slot }
    }
}

/// Returns the positions of the tokens that have some, interpolated if the images have another size.
fn positions(network: &Transformer<Cpu>) -> Result<Vec<f32>> {
    let (learned, width) = (network.positions.value(), network.plan.width);
    let Some(matrix) = network.resampling.as_deref() else { return Ok(learned.clone()) };
    let from = learned.len() / width;
    let to = matrix.len() / from;
    let mut positions = vec![0.0; to * width];
    let (a, b) = ((&matrix[..], Strides::row_major(from)), (&learned[..], Strides::row_major(width)));
    gemm((to, width, from), 1.0, a, b, 0.0, (&mut positions, Strides::row_major(width)));
    Ok(positions)
}

/// Adds to the gradient of the learned positions, given that of what [`positions`] returned.
fn add_position_gradient(network: &Transformer<Cpu>, d_positions: &[f32]) {
    let (mut gradient, width) = (network.positions.grad_mut(), network.plan.width);
    let Some(matrix) = network.resampling.as_deref() else {
        gradient.iter_mut().zip(d_positions).for_each(|(d, g)| *d += g);
        return;
    };
    let (from, to) = (gradient.len() / width, d_positions.len() / width);
    let (a, b) = ((&matrix[..], Strides::transposed(from)), (d_positions, Strides::row_major(width)));
    gemm((from, width, to), 1.0, a, b, 1.0, (&mut gradient[..], Strides::row_major(width)));
}

fn heads(plan: &Plan) -> Heads {
    Heads { tokens: plan.tokens(), heads: plan.heads }
}

/// Returns the factors on the rows of the images in a branch.
fn paths<'a>(factors: &'a Option<Vec<Vec<f32>>>, branch: usize, plan: &Plan) -> Option<Paths<'a>> {
    factors.as_ref().map(|factors| Paths { factors: &factors[branch], rows: plan.tokens() })
}

fn scale_gradient(scale: &Option<Param<Cpu>>) -> Option<RefMut<'_, Vec<f32>>> {
    scale.as_ref().map(Param::grad_mut)
}

/// Calls `f` with the weights of a block's attention.
fn with_attention(block: &Block<Cpu>, paths: Option<Paths<'_>>, f: impl FnOnce(&attention::Weights<'_>)) {
    let [norm, qkv, projection] = [&block.norm1, &block.qkv, &block.projection].map(values);
    let scale = block.scale1.as_ref().map(Param::value);
    let scale = scale.as_ref().map(|scale| &scale[..]);
    f(&attention::Weights {
        norm: [&norm[0], &norm[1]],
        qkv: [&qkv[0], &qkv[1]],
        projection: Output { weight: &projection[0], bias: &projection[1], scale, paths },
    });
}

/// Calls `f` with the weights of a block's perceptron.
fn with_perceptron(
    plan: &Plan,
    block: &Block<Cpu>,
    paths: Option<Paths<'_>>,
    f: impl FnOnce(&inverted_bottleneck::Weights<'_>),
) {
    let [norm, fc1, fc2] = [&block.norm2, &block.fc1, &block.fc2].map(values);
    let scale = block.scale2.as_ref().map(Param::value);
    let scale = scale.as_ref().map(|scale| &scale[..]);
    f(&inverted_bottleneck::Weights {
        norm: [&norm[0], &norm[1]],
        fc1: [&fc1[0], &fc1[1]],
        activation: match plan.mlp {
            Mlp::Gelu => Activation::Gelu,
            Mlp::SwiGlu => Activation::SwiGlu,
        },
        fc2: Output { weight: &fc2[0], bias: &fc2[1], scale, paths },
    });
}
