//! The feature maps and gradients of a network on the CPU, and the passes over them.
//!
//! On CUDA, the passes are lists of operations on numbered slots, created once per network; nothing is
//! decided while they run. Here, a step chooses its memory as it runs, and fuses operations into the
//! convolution, such as statistics, ReLU, or the mask of the gradient. So the two share neither steps nor
//! buffers, and there is no common trait.

use super::blueprint::{Blueprint, Map, State, Step};
use crate::batch_moments::{BatchMoments, EPSILON, MergedMoments, RunningStatistics};
use dfdx::prelude::Cpu;
use pauc_kernels::buffer::Buffer;
use pauc_kernels::conv::{After, Algorithm, Convolution, Work};
use pauc_kernels::layout::{Layout, add_pixels, copy_pixels};
use pauc_kernels::norm::{self, Norm, Relu, Residual};
use pauc_kernels::pool;
use pauc_kernels::simd::{CHANNELS, Simd};
use pauc_traits::trace::named;
use pauc_traits::{Error, Result, stop};

/// Whether normalization uses batch or running statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statistics {
    Batch,
    Running,
}

struct LayerState {
    conv: Convolution,
    norm: Norm,
    /// The output of the convolution, before normalization.
    y: Buffer,
    /// Whether the gradient of the output has been masked by ReLU and summed for the normalization's
    /// gradient.
    masked: bool,
}

/// Memory for one batch at a time. It grows to the largest batch seen, and is then reused.
pub(super) struct Workspace {
    simd: Simd,
    /// Whether maps are kept for a backward pass. Otherwise their memory is reused once they have been read.
    keep: bool,
    capacity: usize,
    layers: Vec<LayerState>,
    /// The scratch memory of convolutions.
    work: Work,
    /// Normalized maps with halo; empty for maps that a later step normalizes.
    maps: Vec<Buffer>,
    /// The source pixel of each maximum, by output map.
    chosen: Vec<Vec<u8>>,
    /// Gradients of maps, without halo, during accumulation.
    gradients: Vec<Option<Buffer>>,
    /// Free buffers with halo, by layout without batch; empty if `keep`.
    halos: Vec<(Layout, Buffer)>,
    /// The output gradient of the current convolution, as large as the largest. Its halo is that of the
    /// layout.
    dy: (Option<Layout>, Buffer),
    /// Free flat buffers, for reuse by a map or gradient of the same size.
    spare: Vec<Buffer>,
}

/// The layouts of a network's maps for a batch.
struct Layouts<'a> {
    plan: &'a Blueprint,
    batch: usize,
}

impl Layouts<'_> {
    fn pitch(&self, map: Map) -> usize {
        let channels = self.plan.maps[map].channels;
        if map == 0 { channels } else { channels.next_multiple_of(CHANNELS) }
    }

    fn flat(&self, map: Map) -> Layout {
        let m = self.plan.maps[map];
        Layout::flat(self.batch, m.height, m.width, self.pitch(map))
    }

    fn haloed(&self, map: Map) -> Layout {
        let m = self.plan.maps[map];
        // Hidden layers have kernels of at most 3×3. The halo of the image is the padding of the first layer.
        let halo = if map == 0 { self.plan.layers[0].geometry.padding } else { 1 };
        Layout::haloed(self.batch, m.height, m.width, self.pitch(map), halo)
    }
}

impl Workspace {
    pub(super) fn new(plan: &Blueprint, simd: Simd, algorithms: &[Algorithm], keep: bool) -> Self {
        let layer = |(l, a): (&super::blueprint::ConvNorm, &Algorithm)| LayerState {
            conv: Convolution::new(l.geometry, *a),
            norm: Norm::new(l.geometry.output_pitch()),
            y: Buffer::default(),
            masked: false,
        };
        Workspace {
            simd,
            keep,
            capacity: 0,
            layers: plan.layers.iter().zip(algorithms).map(layer).collect(),
            work: Work::default(),
            maps: Vec::new(),
            chosen: Vec::new(),
            gradients: Vec::new(),
            halos: Vec::new(),
            dy: Default::default(),
            spare: Vec::new(),
        }
    }

    fn grow(&mut self, plan: &Blueprint, batch: usize) {
        if batch <= self.capacity {
            return;
        }
        self.capacity = batch;
        self.maps = vec![Buffer::default(); plan.maps.len()];
        self.chosen = vec![Vec::new(); plan.maps.len()];
        self.layers.iter_mut().for_each(|l| l.y = Buffer::default());
        self.gradients = vec![None; plan.maps.len()];
        self.halos.clear();
        self.dy = Default::default();
        self.spare.clear();
    }

    /// Computes features (B, F) of images (B, H, W, C).
    pub(super) fn forward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        (images, batch): (&[f32], usize),
        statistics: Statistics,
    ) -> Result<Vec<f32>> {
        self.begin(plan, (images, batch));
        for step in 0..plan.steps.len() {
            match statistics {
                Statistics::Running => {
                    // A training step is never cut short: it would have moved the statistics of some layers.
                    stop::check()?;
                    self.run_step(plan, state, (step, batch));
                }
                Statistics::Batch => {
                    if let Some((layer, count)) = self.measure_step(plan, state, (step, batch)) {
                        self.take_measured(plan, state, layer, count)?;
                    }
                    self.apply_step(plan, (step, batch));
                }
            }
        }
        Ok(self.features(plan, batch))
    }

    /// Takes the images (B, H, W, C) of a pass.
    pub(super) fn begin(&mut self, plan: &Blueprint, (images, batch): (&[f32], usize)) {
        self.grow(plan, batch);
        let layouts = Layouts { plan, batch };
        self.open(plan, 0);
        copy_pixels((images, layouts.flat(0)), (&mut self.maps[0], layouts.haloed(0)));
    }

    /// Returns the features (B, F) after the last step.
    pub(super) fn features(&mut self, plan: &Blueprint, batch: usize) -> Vec<f32> {
        let (layouts, last) = (Layouts { plan, batch }, plan.maps.len() - 1);
        let mut features = vec![0.0; batch * plan.feature_dim()];
        plan.features().forward((&self.maps[last], layouts.haloed(last)), &mut features);
        if !self.keep {
            self.close(plan, last);
        }
        features
    }

    /// Runs a step with running statistics.
    fn run_step(&mut self, plan: &Blueprint, state: &State<Cpu>, (i, batch): (usize, usize)) {
        let layouts = Layouts { plan, batch };
        match plan.steps[i] {
            Step::Conv { layer, input, output, residual } => {
                self.convolve_applying(plan, state, &layouts, (layer, input, output), residual);
            }
            Step::Shortcut { layer, input, output } => {
                self.convolve(plan, state, &layouts, (layer, input, output), false);
                self.take_running(plan, state, layer);
            }
            Step::Sum { layer, input, sum, residual, .. } => {
                self.convolve(plan, state, &layouts, (layer, input, sum), false);
                self.add_residual(plan, &layouts, layer, residual);
                self.take_running(plan, state, layer);
                return self.apply_step(plan, (i, batch));
            }
            Step::Bare { layer, input, output } => {
                self.convolve(plan, state, &layouts, (layer, input, output), false);
            }
            Step::MaxPool { input, output } => self.max_pool(plan, &layouts, (input, output)),
        }
        self.end_step(plan, i);
    }

    /// Runs a step up to its normalization, and measures the moments of the batch. Returns the layer that normalizes,
    /// and the number of values per channel.
    pub(super) fn measure_step(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        (i, batch): (usize, usize),
    ) -> Option<(usize, usize)> {
        let layouts = Layouts { plan, batch };
        match plan.steps[i] {
            Step::Conv { layer, input, output, .. } => {
                self.open(plan, output);
                self.convolve(plan, state, &layouts, (layer, input, output), true);
                Some((layer, layouts.flat(output).pixels()))
            }
            Step::Shortcut { layer, input, output } => {
                self.convolve(plan, state, &layouts, (layer, input, output), true);
                Some((layer, layouts.flat(output).pixels()))
            }
            Step::Sum { layer, input, sum, residual, .. } => {
                self.convolve(plan, state, &layouts, (layer, input, sum), false);
                self.add_residual(plan, &layouts, layer, residual);
                let _span = named(|| plan.layers[layer].norm_name().into());
                let (l, flat) = (&mut self.layers[layer], layouts.flat(sum));
                l.norm.measure(self.simd, (&l.y, flat));
                Some((layer, flat.pixels()))
            }
            Step::Bare { layer, input, output } => {
                self.convolve(plan, state, &layouts, (layer, input, output), false);
                None
            }
            Step::MaxPool { input, output } => {
                self.max_pool(plan, &layouts, (input, output));
                None
            }
        }
    }

    /// Runs the rest of a step, from the normalization on, whose scale and shift are set.
    pub(super) fn apply_step(&mut self, plan: &Blueprint, (i, batch): (usize, usize)) {
        let layouts = Layouts { plan, batch };
        if let Step::Conv { layer, output, residual, .. } = plan.steps[i] {
            self.normalize(plan, &layouts, (layer, output), residual);
        } else if let Step::Sum { layer, output, .. } = plan.steps[i] {
            self.open(plan, output);
            self.normalize(plan, &layouts, (layer, output), None);
        }
        self.end_step(plan, i);
    }

    /// Normalizes the output of a layer, with residual and ReLU.
    fn normalize(
        &mut self,
        plan: &Blueprint,
        layouts: &Layouts<'_>,
        (layer, output): (usize, Map),
        residual: Option<Map>,
    ) {
        let _span = named(|| plan.layers[layer].norm_name().into());
        let mut out = std::mem::take(&mut self.maps[output]);
        let l = &self.layers[layer];
        let (y, to) = ((&l.y[..], layouts.flat(output)), (&mut out[..], layouts.haloed(output)));
        norm::apply(self.simd, &l.norm, y, self.residual(plan, layouts, residual), true, to);
        self.maps[output] = out;
    }

    fn max_pool(&mut self, plan: &Blueprint, layouts: &Layouts<'_>, (input, output): (Map, Map)) {
        self.open(plan, output);
        self.chosen[output].resize(layouts.flat(output).len(), 0);
        let mut out = std::mem::take(&mut self.maps[output]);
        let from = (&self.maps[input][..], layouts.haloed(input));
        pool::max_forward(from, (&mut out, layouts.haloed(output)), &mut self.chosen[output]);
        self.maps[output] = out;
    }

    fn end_step(&mut self, plan: &Blueprint, i: usize) {
        if !self.keep {
            self.release(plan, i);
        }
    }

    /// Allocates memory with halo for a map, if it has none.
    fn open(&mut self, plan: &Blueprint, map: Map) {
        if !self.maps[map].is_empty() {
            return;
        }
        let layout = Layouts { plan, batch: self.capacity }.haloed(map);
        let same = |(l, _): &(Layout, Buffer)| *l == layout.with_batch(0);
        let large_enough = || {
            let all = self.halos.iter().enumerate().filter(|(_, (_, b))| b.len() >= layout.len());
            all.min_by_key(|(_, (_, b))| b.len()).map(|(i, _)| i)
        };
        self.maps[map] = match self.halos.iter().position(same).or_else(large_enough) {
            None => Buffer::zeros(layout.len()),
            Some(i) => {
                let (was, mut buffer) = self.halos.swap_remove(i);
                if was != layout.with_batch(0) {
                    layout.clear_halo(&mut buffer);
                }
                buffer
            }
        };
    }

    /// Frees the memory of a map.
    fn close(&mut self, plan: &Blueprint, map: Map) {
        if !self.maps[map].is_empty() {
            let layout = Layouts { plan, batch: 0 }.haloed(map);
            self.halos.push((layout, std::mem::take(&mut self.maps[map])));
        }
    }

    /// Frees the memory of maps that step `i` was the last to read.
    fn release(&mut self, plan: &Blueprint, i: usize) {
        let read_later = |map: Map| plan.steps[i + 1..].iter().any(|s| s.reads().contains(&Some(map)));
        let done = match plan.steps[i] {
            Step::Conv { layer, .. } => Some(layer),
            Step::Sum { layer, sum, .. } if !read_later(sum) => Some(layer),
            _ => None,
        };
        if let Some(layer) = done {
            let y = std::mem::take(&mut self.layers[layer].y);
            // Running statistics need no buffer.
            self.spare.extend((!y.is_empty()).then_some(y));
        }
        for map in plan.steps[i].reads().into_iter().flatten().filter(|m| !read_later(*m)) {
            match plan.maps[map].held_by() {
                Some(layer) => self.spare.push(std::mem::take(&mut self.layers[layer].y)),
                None => self.close(plan, map),
            }
        }
    }

    /// Returns the residual that a step adds before ReLU.
    fn residual<'a>(
        &'a self,
        plan: &Blueprint,
        layouts: &Layouts<'_>,
        map: Option<Map>,
    ) -> Option<Residual<'a>> {
        map.map(|r| match plan.maps[r].pending {
            None => Residual { values: &self.maps[r], layout: layouts.haloed(r), norm: None },
            Some(l) => {
                let l = &self.layers[l];
                Residual { values: &l.y, layout: layouts.flat(r), norm: Some(&l.norm) }
            }
        })
    }

    /// Runs a convolution with fused normalization by running statistics, residual and ReLU.
    fn convolve_applying(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        layouts: &Layouts<'_>,
        (layer, input, output): (usize, Map, Map),
        residual: Option<Map>,
    ) {
        self.open(plan, output);
        self.take_running(plan, state, layer);
        let _span = named(|| plan.layers[layer].name.as_str().into());
        let (mut out, mut work) = (std::mem::take(&mut self.maps[output]), std::mem::take(&mut self.work));
        let l = &self.layers[layer];
        let x = (&self.maps[input][..], layouts.haloed(input));
        let weight = state.parameters[plan.weight(layer)].value();
        let residual = self.residual(plan, layouts, residual);
        let after = After::Apply { norm: &l.norm, residual, relu: true };
        l.conv.forward(self.simd, &mut work, x, &weight, (&mut out[..], layouts.haloed(output)), after);
        self.maps[output] = out;
        self.work = work;
    }

    /// Runs the convolution of a layer, and measures the moments of its output if `measures`.
    fn convolve(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        layouts: &Layouts<'_>,
        (layer, input, output): (usize, Map, Map),
        measures: bool,
    ) {
        if self.layers[layer].y.is_empty() {
            self.layers[layer].y = self.buffer(plan, output);
        }
        let _span = named(|| plan.layers[layer].name.as_str().into());
        let l = &mut self.layers[layer];
        let x = (&self.maps[input][..], layouts.haloed(input));
        let weight = state.parameters[plan.weight(layer)].value();
        let after = if measures { After::Measure(&mut l.norm) } else { After::Nothing };
        let to = (&mut l.y[..], layouts.flat(output));
        l.conv.forward(self.simd, &mut self.work, x, &weight, to, after);
    }

    /// Sets scale and shift of a layer's normalization from the measured moments of `count` values, and moves
    /// the running statistics.
    ///
    /// # Errors
    /// If there is a single value, which has no variance.
    fn take_measured(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        layer: usize,
        count: usize,
    ) -> Result<()> {
        if count < 2 {
            let message = "a single value has no variance: use a batch of at least 2 images";
            return Err(Error::shape(plan.layers[layer].norm_name(), message));
        }
        let _span = named(|| plan.layers[layer].norm_name().into());
        let norm = &mut self.layers[layer].norm;
        running(plan, state, layer).update(BatchMoments {
            count,
            mean: &norm.mean,
            variance: &norm.variance,
        });
        prepare(norm, plan, state, layer);
        Ok(())
    }

    /// Sets scale and shift of a layer's normalization from moments of a larger batch.
    pub(super) fn take_merged(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        layer: usize,
        merged: &MergedMoments,
    ) {
        let norm = &mut self.layers[layer].norm;
        norm.set_moments(&merged.mean, &merged.squares, merged.count);
        prepare(norm, plan, state, layer);
    }

    /// Returns the normalization of a layer.
    pub(super) fn norm(&mut self, layer: usize) -> &mut Norm {
        &mut self.layers[layer].norm
    }

    /// Adds a map that a layer holds to the output of another layer.
    fn add_residual(&mut self, plan: &Blueprint, layouts: &Layouts<'_>, layer: usize, residual: Option<Map>) {
        let Some((map, from)) = residual.and_then(|map| plan.maps[map].raw.map(|from| (map, from))) else {
            return;
        };
        let mut y = std::mem::take(&mut self.layers[layer].y);
        let flat = layouts.flat(map);
        add_pixels((&self.layers[from].y, flat), (&mut y, flat));
        self.layers[layer].y = y;
    }

    /// Sets scale and shift of a layer's normalization from the running statistics.
    fn take_running(&mut self, plan: &Blueprint, state: &State<Cpu>, layer: usize) {
        let RunningStatistics { mean, variance } = running(plan, state, layer);
        let channels = plan.layers[layer].geometry.outputs;
        let norm = &mut self.layers[layer].norm;
        norm.mean[..channels].copy_from_slice(&mean.value());
        norm.variance[..channels].copy_from_slice(&variance.value());
        prepare(norm, plan, state, layer);
    }

    /// Accumulates the gradients of the parameters, given that of the features of the last forward pass,
    /// which must have used batch statistics.
    pub(super) fn backward(&mut self, plan: &Blueprint, state: &State<Cpu>, d_features: &[f32]) {
        let batch = self.begin_backward(plan, d_features);
        for step in (0..plan.steps.len()).rev() {
            self.mask_step(plan, state, (step, batch));
            self.differentiate_step(plan, state, (step, batch));
        }
        debug_assert!(self.gradients.iter().all(Option::is_none));
    }

    /// Takes the gradient of the features. Returns the number of images.
    pub(super) fn begin_backward(&mut self, plan: &Blueprint, d_features: &[f32]) -> usize {
        let batch = d_features.len() / plan.feature_dim();
        let (layouts, last) = (Layouts { plan, batch }, plan.maps.len() - 1);
        let mut d_last = self.buffer(plan, last);
        plan.features().backward(d_features, (&mut d_last, layouts.flat(last)));
        self.gradients[last] = Some(d_last);
        batch
    }

    /// Masks the gradient of a step's output by ReLU, sums it for the gradient of the normalization, and computes the
    /// gradients of γ and β. Returns the layer that normalizes, and the number of values per channel.
    pub(super) fn mask_step(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        (i, batch): (usize, usize),
    ) -> Option<(usize, usize)> {
        let (Step::Conv { layer, output, .. }
        | Step::Shortcut { layer, output, .. }
        | Step::Sum { layer, output, .. }) = plan.steps[i]
        else {
            return None;
        };
        let (layouts, mut g) = (Layouts { plan, batch }, self.gradients[output].take()?);
        let flat = layouts.flat(output);
        let _span = named(|| plan.layers[layer].norm_name().into());
        let l = &mut self.layers[layer];
        if !std::mem::take(&mut l.masked) {
            let relu = relu(&plan.steps[i], &self.maps, &layouts);
            l.norm.mask(self.simd, (&mut g, flat), relu, &l.y);
        }
        let [mut gamma, mut beta] = [1, 2].map(|i| state.parameters[plan.weight(layer) + i].grad_mut());
        l.norm.parameter_gradients(&mut gamma, &mut beta);
        self.gradients[output] = Some(g);
        Some((layer, flat.pixels()))
    }

    /// Computes the gradients of a step's weight and input, after [`Workspace::mask_step`].
    pub(super) fn differentiate_step(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        (i, batch): (usize, usize),
    ) {
        let (layouts, step) = (Layouts { plan, batch }, plan.steps[i]);
        let (Step::Conv { output, .. }
        | Step::Shortcut { output, .. }
        | Step::Sum { output, .. }
        | Step::Bare { output, .. }
        | Step::MaxPool { output, .. }) = step;
        let Some(mut g) = self.gradients[output].take() else { return };
        match step {
            Step::Conv { layer, input, .. } | Step::Shortcut { layer, input, .. } => {
                self.norm_backward(plan, &layouts, (layer, output), &g);
                self.conv_backward(plan, state, &layouts, i, (layer, input, output));
            }
            Step::Sum { .. } => self.sum_backward(plan, state, &layouts, i, &mut g),
            Step::Bare { layer, input, .. } => {
                self.prepare_dy(plan, layouts.haloed(output));
                copy_pixels((&g, layouts.flat(output)), (&mut self.dy.1, layouts.haloed(output)));
                self.conv_backward(plan, state, &layouts, i, (layer, input, output));
            }
            Step::MaxPool { input, .. } => {
                let mut dx = self.buffer(plan, input);
                let source = (&g[..], layouts.flat(output));
                pool::max_backward(source, &self.chosen[output], (&mut dx, layouts.flat(input)));
                self.give(input, dx);
            }
        }
        match step {
            Step::Conv { residual: Some(r), .. } | Step::Sum { residual: Some(r), .. } => self.give(r, g),
            _ => self.spare.push(g),
        }
    }

    /// The convolution and sum of [`Step::Sum`]. Turns `g` into the gradient of the sum.
    fn sum_backward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        layouts: &Layouts<'_>,
        i: usize,
        g: &mut [f32],
    ) {
        let Step::Sum { layer, input, sum, output, .. } = plan.steps[i] else { return };
        self.norm_backward(plan, layouts, (layer, output), g);
        let (flat, halo) = (layouts.flat(sum), layouts.haloed(sum));
        if let Some(later) = self.gradients[sum].take() {
            add_pixels((&later, flat), (&mut self.dy.1, halo));
            self.spare.push(later);
        }
        copy_pixels((&self.dy.1, halo), (g, flat));
        self.conv_backward(plan, state, layouts, i, (layer, input, sum));
    }

    /// Computes the gradients of a convolution's weight and input from that of its output in `self.dy`.
    fn conv_backward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        layouts: &Layouts<'_>,
        i: usize,
        (layer, input, output): (usize, Map, Map),
    ) {
        {
            let _span = named(|| format!("{} weight", plan.layers[layer].name).into());
            let x = (&self.maps[input][..], layouts.haloed(input));
            let dy = (&self.dy.1[..], layouts.haloed(output));
            let mut weight = state.parameters[plan.weight(layer)].grad_mut();
            self.layers[layer].conv.weight_gradient(self.simd, &mut self.work, x, dy, &mut weight);
        }
        if input != 0 {
            self.conv_input_backward(plan, state, layouts, i, (layer, input, output));
        }
    }

    /// Computes the gradient of a convolution's output in `self.dy` from the masked gradient `g` of its layer's output.
    fn norm_backward(
        &mut self,
        plan: &Blueprint,
        layouts: &Layouts<'_>,
        (layer, output): (usize, Map),
        g: &[f32],
    ) {
        let (flat, halo) = (layouts.flat(output), layouts.haloed(output));
        self.prepare_dy(plan, halo);
        let _span = named(|| plan.layers[layer].norm_name().into());
        let l = &mut self.layers[layer];
        l.norm.input_gradient(self.simd, (g, flat), &l.y, (&mut self.dy.1, halo));
    }

    /// Makes room for an output gradient in `self.dy`, with a halo of zeros.
    fn prepare_dy(&mut self, plan: &Blueprint, halo: Layout) {
        let (layout, dy) = &mut self.dy;
        if *layout != Some(halo) {
            let largest = Layouts { plan, batch: self.capacity };
            dy.grow((1..plan.maps.len()).map(|map| largest.haloed(map).len()).max().unwrap_or(0));
            halo.clear_halo(dy);
            *layout = Some(halo);
        }
    }

    /// Accumulates the input gradient of a convolution, given its output gradient in `self.dy`.
    fn conv_input_backward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cpu>,
        layouts: &Layouts<'_>,
        i: usize,
        (layer, input, output): (usize, Map, Map),
    ) {
        let _span = named(|| format!("{} input", plan.layers[layer].name).into());
        let weight = state.parameters[plan.weight(layer)].value();
        let dx = self.gradients[input].take();
        let add = dx.is_some();
        let mut dx = dx.unwrap_or_else(|| self.buffer(plan, input));
        let conv = self.layers[layer].conv;
        let to = (&mut dx[..], layouts.flat(input), add);
        // The last summand of a map's gradient is masked by the map's ReLU as it is added.
        let source = plan.last_summand(i);
        let mut norm = source.map(|(layer, _)| std::mem::take(&mut self.layers[layer].norm));
        let after = match (&mut norm, source) {
            (Some(norm), Some((layer, step))) => {
                let relu = relu(&plan.steps[step], &self.maps, layouts);
                After::Mask { norm, relu, y: &self.layers[layer].y }
            }
            _ => After::Nothing,
        };
        let dy = (&self.dy.1[..], layouts.haloed(output));
        conv.input_gradient(self.simd, &mut self.work, dy, &weight, to, after);
        if let (Some(norm), Some((layer, _))) = (norm, source) {
            (self.layers[layer].norm, self.layers[layer].masked) = (norm, true);
        }
        self.gradients[input] = Some(dx);
    }

    /// Passes on the gradient of a map, adding it to the gradient that is already there.
    fn give(&mut self, map: Map, g: Buffer) {
        match &mut self.gradients[map] {
            None => self.gradients[map] = Some(g),
            Some(sum) => {
                sum.iter_mut().zip(g.iter()).for_each(|(s, g)| *s += g);
                self.spare.push(g);
            }
        }
    }

    /// Returns a flat buffer with arbitrary content for a map or its gradient.
    fn buffer(&mut self, plan: &Blueprint, map: Map) -> Buffer {
        let len = Layouts { plan, batch: self.capacity }.flat(map).len();
        let spare = self.spare.iter().position(|b| b.len() == len);
        spare.map_or_else(|| Buffer::zeros(len), |i| self.spare.swap_remove(i))
    }
}

/// Returns the running statistics of a layer.
pub(super) fn running<'a>(
    plan: &Blueprint,
    state: &'a State<Cpu>,
    layer: usize,
) -> RunningStatistics<'a, Cpu> {
    let [mean, variance] = [0, 1].map(|i| &state.statistics[plan.running_mean(layer) + i]);
    RunningStatistics { mean, variance }
}

/// Computes scale and shift from mean, variance, γ and β.
fn prepare(norm: &mut Norm, plan: &Blueprint, state: &State<Cpu>, layer: usize) {
    let [gamma, beta] = [1, 2].map(|i| state.parameters[plan.weight(layer) + i].value());
    norm.prepare(&gamma, &beta, EPSILON);
}

/// Returns the source of the ReLU mask of a step.
fn relu<'a>(step: &Step, maps: &'a [Buffer], layouts: &Layouts<'_>) -> Relu<'a> {
    match *step {
        Step::Conv { residual: None, .. } | Step::Sum { .. } => Relu::Own,
        Step::Conv { output, .. } => Relu::Output(&maps[output], layouts.haloed(output)),
        Step::Shortcut { .. } | Step::Bare { .. } | Step::MaxPool { .. } => Relu::None,
    }
}
