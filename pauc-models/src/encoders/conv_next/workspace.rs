//! The maps and gradients of a ConvNeXt on the CPU, and the passes over them.
//!
//! All maps are rows of pixels, channels last, without halo.

use super::parameters::{Block, Pair, Parameters};
use super::plan::{Plan, Stage};
use crate::encoders::windows::{convolution_gradients, convolve, first};
use dfdx::prelude::Cpu;
use pauc_kernels::buffer::Buffer;
use pauc_kernels::inverted_bottleneck::{self, Activation, Gradients, Weights};
use pauc_kernels::layout::Layout;
use pauc_kernels::pool::CellMean;
use pauc_kernels::residual::{Output, OutputGradients, Paths};
use pauc_kernels::simd::Simd;
use pauc_kernels::{layer_norm, linear};
use pauc_traits::trace::named;
use pauc_traits::{Result, stop};

/// The maps of a stage. Without a backward pass, blocks share two of `x`, and one of the others.
#[derive(Default)]
struct Maps {
    /// The input of each block, and then the output of the last one.
    x: Vec<Buffer>,
    /// The outputs of the depthwise convolutions.
    convolved: Vec<Buffer>,
    /// The hidden values of the perceptrons before GELU; none without a backward pass.
    hidden: Vec<Buffer>,
}

/// Memory for one batch at a time. It grows to the largest batch seen, and is then reused.
pub(super) struct Workspace {
    simd: Simd,
    /// Whether maps are kept for a backward pass.
    keep: bool,
    /// The patches of the images.
    patches: Buffer,
    /// The patches after the stem's convolution.
    stem: Buffer,
    stages: Vec<Maps>,
    /// The means over the last maps.
    pooled: Buffer,
    /// The factors of the last pass on what each block adds to each image, if it had any.
    factors: Option<Vec<Vec<f32>>>,
    work: Work,
}

/// Memory that layers share.
#[derive(Default)]
struct Work {
    packed: Buffer,
    normed: Buffer,
    gathered: Buffer,
    /// The gradient of the current map, and that of another.
    gradients: [Buffer; 2],
    depthwise: Buffer,
    perceptron: inverted_bottleneck::Work,
}

impl Workspace {
    pub fn new(plan: &Plan, simd: Simd, keep: bool) -> Self {
        let buffers = |count: usize| vec![Buffer::default(); count];
        let maps = |depth: usize| match keep {
            true => Maps { x: buffers(depth + 1), convolved: buffers(depth), hidden: buffers(depth) },
            false => Maps { x: buffers(2), convolved: buffers(1), hidden: Vec::new() },
        };
        Workspace {
            simd,
            keep,
            patches: Buffer::default(),
            stem: Buffer::default(),
            stages: plan.stages.iter().map(|s| maps(s.depth)).collect(),
            pooled: Buffer::default(),
            factors: None,
            work: Work::default(),
        }
    }

    /// Returns the place of map `i` among those that share memory.
    fn slot(&self, i: usize, count: usize) -> usize {
        if self.keep { i } else { i % count }
    }

    /// Computes features (B, F) of images (B, H, W, C). `factors` are those on what each block adds to each image.
    pub fn forward(
        &mut self,
        plan: &Plan,
        parameters: &Parameters<Cpu>,
        (images, batch): (&[f32], usize),
        factors: Option<Vec<Vec<f32>>>,
    ) -> Result<Vec<f32>> {
        self.factors = factors;
        self.forward_stem(plan, parameters, images, batch);
        for (i, blocks) in parameters.blocks.iter().enumerate() {
            if i > 0 {
                self.forward_downsample(plan, parameters, i, batch);
            }
            for (j, block) in blocks.iter().enumerate() {
                stop::check()?;
                self.forward_block(plan, block, (i, j), batch);
            }
        }
        let (_span, last) = (named(|| "head.norm".into()), plan.last());
        let x = self.slot(last.depth, 2);
        let x = &self.stages[plan.stages.len() - 1].x[x];
        let pooled = first(&mut self.pooled, batch * last.width);
        mean_of(last.width).forward((x, Layout::flat(batch, last.rows, last.columns, last.width)), pooled);
        let mut features = vec![0.0; pooled.len()];
        let [gamma, beta] = parameters.head.each_ref().map(|p| p.value());
        layer_norm::forward(self.simd, pooled, [&gamma, &beta], &mut features);
        Ok(features)
    }

    fn forward_stem(&mut self, plan: &Plan, parameters: &Parameters<Cpu>, images: &[f32], batch: usize) {
        let _span = named(|| "stem".into());
        let (windows, values) = (plan.stem(batch), plan.stages[0].maps(batch).values());
        windows.gather(images, first(&mut self.patches, windows.rows() * windows.row()));
        let patches = &self.patches[..windows.rows() * windows.row()];
        let stem = first(&mut self.stem, values);
        convolve(windows, &parameters.stem, &mut self.work.packed, patches, stem);
        let [gamma, beta] = parameters.stem_norm.each_ref().map(|p| p.value());
        layer_norm::forward(self.simd, stem, [&gamma, &beta], first(&mut self.stages[0].x[0], values));
    }

    /// Computes the first map of stage `i` from the last one of the stage before.
    fn forward_downsample(&mut self, plan: &Plan, parameters: &Parameters<Cpu>, i: usize, batch: usize) {
        let _span = named(|| format!("stages.{i}.downsample").into());
        let windows = plan.windows(i - 1, batch);
        self.gather_normed(plan, parameters, i, batch);
        let gathered = &self.work.gathered[..windows.rows() * windows.row()];
        let to = first(&mut self.stages[i].x[0], plan.stages[i].maps(batch).values());
        convolve(windows, &parameters.downsamples[i - 1].conv, &mut self.work.packed, gathered, to);
    }

    /// Normalizes the last map of the stage before stage `i`, and gathers its windows.
    fn gather_normed(&mut self, plan: &Plan, parameters: &Parameters<Cpu>, i: usize, batch: usize) {
        let windows = plan.windows(i - 1, batch);
        let x = self.slot(plan.stages[i - 1].depth, 2);
        let x = &self.stages[i - 1].x[x][..windows.values()];
        let [gamma, beta] = parameters.downsamples[i - 1].norm.each_ref().map(|p| p.value());
        let normed = first(&mut self.work.normed, windows.values());
        layer_norm::forward(self.simd, x, [&gamma, &beta], normed);
        windows.gather(normed, first(&mut self.work.gathered, windows.rows() * windows.row()));
    }

    fn forward_block(&mut self, plan: &Plan, block: &Block<Cpu>, (i, j): (usize, usize), batch: usize) {
        let (stage, maps) = (plan.stages[i], plan.stages[i].maps(batch));
        let values = maps.values();
        let [from, to] = [j, j + 1].map(|x| self.slot(x, 2));
        let convolved = self.slot(j, 1);
        let Maps { x, convolved: all_convolved, hidden } = &mut self.stages[i];
        let convolved = first(&mut all_convolved[convolved], values);
        {
            let _span = named(|| block.depthwise[0].name.as_str().into());
            let [weight, bias] = block.depthwise.each_ref().map(|p| p.value());
            maps.forward(self.simd, &x[from][..values], &weight, &bias, convolved);
        }
        let _span = named(|| block.fc1[0].name.as_str().into());
        let mut y = std::mem::take(&mut x[to]);
        let hidden = hidden.get_mut(j).map(|h| first(h, maps.batch * stage.pixels() * stage.hidden()));
        let factors = self.factors.as_ref().map(|f| &f[plan.first_block(i) + j][..]);
        with_weights(block, paths(factors, stage), |w| {
            let operands = (&*convolved, &x[from][..values]);
            inverted_bottleneck::forward(self.simd, w, operands, hidden, first(&mut y, values));
        });
        x[to] = y;
    }

    /// Accumulates the gradients of the parameters, given that of the features of the last forward pass, which must
    /// have kept its maps.
    pub fn backward(&mut self, plan: &Plan, parameters: &Parameters<Cpu>, d_features: &[f32]) {
        let last = plan.last();
        let batch = d_features.len() / last.width;
        let mut g = std::mem::take(&mut self.work.gradients[0]);
        self.backward_head(plan, parameters, d_features, &mut g);
        for (i, blocks) in parameters.blocks.iter().enumerate().rev() {
            let values = plan.stages[i].maps(batch).values();
            for (j, block) in blocks.iter().enumerate().rev() {
                self.backward_block(plan, block, (i, j), batch, &mut g[..values]);
            }
            if i > 0 {
                self.backward_downsample(plan, parameters, i, batch, &mut g);
            }
        }
        self.backward_stem(plan, parameters, batch, &mut g);
        self.work.gradients[0] = g;
    }

    /// Computes the gradient of the last map.
    fn backward_head(
        &mut self,
        plan: &Plan,
        parameters: &Parameters<Cpu>,
        d_features: &[f32],
        g: &mut Buffer,
    ) {
        let (_span, last) = (named(|| "head.norm".into()), plan.last());
        let batch = d_features.len() / last.width;
        let mut d_pooled = d_features.to_vec();
        let pooled = &self.pooled[..d_pooled.len()];
        normalize_backward(self.simd, &parameters.head, pooled, &mut d_pooled);
        let layout = Layout::flat(batch, last.rows, last.columns, last.width);
        mean_of(last.width).backward(&d_pooled, (first(g, last.maps(batch).values()), layout));
    }

    /// Turns the gradient of a block's output into that of its input.
    fn backward_block(
        &mut self,
        plan: &Plan,
        block: &Block<Cpu>,
        (i, j): (usize, usize),
        batch: usize,
        g: &mut [f32],
    ) {
        let (simd, stage, maps) = (self.simd, plan.stages[i], plan.stages[i].maps(batch));
        let (values, hidden) = (maps.values(), batch * stage.pixels() * stage.hidden());
        let Maps { x, convolved, hidden: all_hidden } = &mut self.stages[i];
        let d_convolved = first(&mut self.work.gradients[1], values);
        {
            let _span = named(|| format!("{} gradient", block.fc1[0].name).into());
            let operands = (&convolved[j][..values], &mut all_hidden[j][..hidden], &*g);
            let factors = self.factors.as_ref().map(|f| &f[plan.first_block(i) + j][..]);
            let (paths, work) = (paths(factors, stage), &mut self.work.perceptron);
            perceptron_backward(simd, (block, paths), work, operands, d_convolved);
        }
        let _span = named(|| format!("{} gradient", block.depthwise[0].name).into());
        let [weight, bias] = &block.depthwise;
        let (mut d_weight, mut d_bias) = (weight.grad_mut(), bias.grad_mut());
        let (x, work) = (&x[j][..values], &mut self.work.depthwise);
        maps.weight_gradient(simd, x, d_convolved, work, &mut d_weight, &mut d_bias);
        maps.add_input_gradient(simd, d_convolved, &weight.value(), g);
    }

    /// Turns the gradient of the first map of stage `i` into that of the last map of the stage before.
    fn backward_downsample(
        &mut self,
        plan: &Plan,
        parameters: &Parameters<Cpu>,
        i: usize,
        batch: usize,
        g: &mut Buffer,
    ) {
        let _span = named(|| format!("stages.{i}.downsample gradient").into());
        let (windows, stage) = (plan.windows(i - 1, batch), plan.stages[i]);
        self.gather_normed(plan, parameters, i, batch);
        let gathered = &mut self.work.gathered[..windows.rows() * windows.row()];
        let d_output = &g[..stage.maps(batch).values()];
        let conv = &parameters.downsamples[i - 1].conv;
        convolution_gradients(windows, conv, &mut self.work.packed, gathered, d_output);
        // The packed weights are those of this convolution again.
        let sizes = (windows.row(), stage.width);
        let packed = first(&mut self.work.packed, sizes.0 * sizes.1);
        windows.pack(&conv[0].value(), packed);
        linear::linear_input_gradient(sizes, d_output, packed, gathered);
        let d_normed = first(g, windows.values());
        windows.scatter(gathered, d_normed);
        let x = &self.stages[i - 1].x[plan.stages[i - 1].depth][..windows.values()];
        normalize_backward(self.simd, &parameters.downsamples[i - 1].norm, x, d_normed);
    }

    fn backward_stem(&mut self, plan: &Plan, parameters: &Parameters<Cpu>, batch: usize, g: &mut Buffer) {
        let _span = named(|| "stem gradient".into());
        let (windows, values) = (plan.stem(batch), plan.stages[0].maps(batch).values());
        let g = &mut g[..values];
        normalize_backward(self.simd, &parameters.stem_norm, &self.stem[..values], g);
        let patches = &self.patches[..windows.rows() * windows.row()];
        convolution_gradients(windows, &parameters.stem, &mut self.work.packed, patches, g);
    }
}

/// Averages whole maps.
fn mean_of(channels: usize) -> CellMean {
    CellMean { channels, grid: 1 }
}

/// Turns an output gradient of a normalization into that of its input x, and accumulates those of γ and β.
fn normalize_backward(simd: Simd, [gamma, beta]: &Pair<Cpu>, x: &[f32], g: &mut [f32]) {
    let (mut d_gamma, mut d_beta) = (gamma.grad_mut(), beta.grad_mut());
    layer_norm::backward(simd, x, &gamma.value(), g, [&mut d_gamma, &mut d_beta]);
}

/// Returns the factors on the rows of the images in a stage.
fn paths(factors: Option<&[f32]>, stage: Stage) -> Option<Paths<'_>> {
    factors.map(|factors| Paths { factors, rows: stage.pixels() })
}

/// Calls `f` with the weights of a block after its depthwise convolution.
fn with_weights(block: &Block<Cpu>, paths: Option<Paths<'_>>, f: impl FnOnce(&Weights<'_>)) {
    let [norm, fc1, fc2] = [&block.norm, &block.fc1, &block.fc2].map(|p| p.each_ref().map(|p| p.value()));
    let scale = block.scale.value();
    f(&Weights {
        norm: [&norm[0], &norm[1]],
        fc1: [&fc1[0], &fc1[1]],
        activation: Activation::Gelu,
        fc2: Output { weight: &fc2[0], bias: &fc2[1], scale: Some(&scale), paths },
    });
}

/// See [`inverted_bottleneck::backward`].
fn perceptron_backward(
    simd: Simd,
    (block, paths): (&Block<Cpu>, Option<Paths<'_>>),
    work: &mut inverted_bottleneck::Work,
    operands: (&[f32], &mut [f32], &[f32]),
    d_convolved: &mut [f32],
) {
    let [mut norm, mut fc1, mut fc2] =
        [&block.norm, &block.fc1, &block.fc2].map(|p| p.each_ref().map(|p| p.grad_mut()));
    let mut scale = block.scale.grad_mut();
    let [[g1, g2], [w1, b1], [w2, b2]] = [&mut norm, &mut fc1, &mut fc2];
    let fc2 = OutputGradients { weight: w2, bias: b2, scale: Some(&mut scale) };
    let gradients = Gradients { norm: [g1, g2], fc1: [w1, b1], fc2 };
    with_weights(block, paths, |w| {
        inverted_bottleneck::backward(simd, w, work, operands, gradients, d_convolved)
    });
}
