//! A network's maps and gradients on CUDA, and the passes over them.

use crate::encoders::blueprint::{Blueprint, Map, State, Step};
use crate::encoders::workspace::{EPSILON, MOMENTUM, Statistics};
use dfdx::prelude::Cuda;
use pauc_cuda::conv::{Convolution, Math, Work};
use pauc_cuda::maps::{self, Chosen, Maps};
use pauc_cuda::norm::Norm;
use pauc_cuda::{Buffer, Context, Error, Result, View, elementwise};
use pauc_traits::profile::named;
use std::rc::Rc;

/// Which maps a forward pass keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// All, for the backward pass.
    All,
    /// Those that cannot be made again from one convolution's output, which is kept in any case.
    Sources,
    /// None: memory is used again once it has been read.
    Nothing,
}

impl Keep {
    /// Whether a map is made again when the backward pass reads it.
    fn makes_again(self, plan: &Blueprint, map: Map) -> bool {
        self == Keep::Sources && source(plan, map).is_some()
    }
}

/// The layer whose normalisation and ReLU alone make a map.
fn source(plan: &Blueprint, map: Map) -> Option<usize> {
    plan.steps.iter().find_map(|s| match *s {
        Step::Conv { layer, output, residual: None, .. } if output == map => Some(layer),
        _ => None,
    })
}

/// The last step that reads a map.
fn last_reader(plan: &Blueprint, map: Map) -> Option<usize> {
    plan.steps.iter().rposition(|s| s.reads().contains(&Some(map)))
}

/// Elements of the maps, gradients and features of a training pass: the very memory that [`Workspace`] takes, counted with
/// lengths in place of buffers.
pub(super) fn planned(plan: &Blueprint, batch: usize, keep: Keep) -> usize {
    #[derive(Default)]
    struct Pool {
        spare: Vec<usize>,
        total: usize,
    }
    impl Pool {
        fn take(&mut self, len: usize) -> usize {
            match self.spare.iter().position(|l| *l == len) {
                Some(i) => self.spare.swap_remove(i),
                None => {
                    self.total += len;
                    len
                }
            }
        }
    }
    let len = |map: Map| shape(plan, map, batch).len();
    let mut pool = Pool { total: batch * plan.feature_dim(), ..Pool::default() };
    pool.take(len(0));
    for (i, step) in plan.steps.iter().enumerate() {
        match *step {
            Step::Conv { output, .. } => {
                pool.take(len(output));
                pool.take(len(output));
            }
            Step::Shortcut { output, .. } | Step::MaxPool { output, .. } => {
                pool.take(len(output));
            }
        }
        for map in step.reads().into_iter().flatten() {
            if keep.makes_again(plan, map) && last_reader(plan, map) == Some(i) {
                pool.spare.push(len(map));
            }
        }
    }
    let last = plan.maps.len() - 1;
    let mut there: Vec<bool> = (0..=last).map(|map| !keep.makes_again(plan, map) || map == last).collect();
    let mut gradients = vec![false; plan.maps.len()];
    pool.take(len(last));
    gradients[last] = true;
    for step in plan.steps.iter().rev() {
        let (input, output) = match *step {
            Step::Conv { input, output, .. }
            | Step::Shortcut { input, output, .. }
            | Step::MaxPool { input, output } => (input, output),
        };
        if !gradients[output] {
            continue;
        }
        if matches!(step, Step::MaxPool { .. }) {
            let dx = pool.take(len(input));
            if std::mem::replace(&mut gradients[input], true) {
                pool.spare.push(dx);
            }
            pool.spare.push(len(output));
            continue;
        }
        if matches!(step, Step::Conv { .. }) && !std::mem::replace(&mut there[output], true) {
            pool.take(len(output));
        }
        let dy = pool.take(len(output));
        if !std::mem::replace(&mut there[input], true) {
            pool.take(len(input));
        }
        if input != 0 && !std::mem::replace(&mut gradients[input], true) {
            pool.take(len(input));
        }
        pool.spare.push(dy);
        if keep.makes_again(plan, output) {
            pool.spare.push(len(output));
        }
        match *step {
            Step::Conv { residual: Some(r), .. } if !gradients[r] => gradients[r] = true,
            _ => pool.spare.push(len(output)),
        }
    }
    pool.total
}

struct LayerState {
    conv: Option<Convolution>,
    norm: Norm,
    /// The convolution's output, before normalisation.
    y: Option<Buffer>,
}

/// Memory for one batch at a time. Grows to the largest batch it has seen, and is then reused.
pub(super) struct Workspace {
    on: Rc<Context>,
    math: Math,
    keep: Keep,
    capacity: usize,
    /// Elements of the buffers that were made since it grew.
    taken: usize,
    layers: Vec<LayerState>,
    /// What convolutions use while they run.
    work: Work,
    /// Normalised maps; none for those that a later step normalises.
    maps: Vec<Option<Buffer>>,
    /// Which pixel each maximum came from, by output map.
    chosen: Vec<Option<Chosen>>,
    /// Gradients of maps, while they are being gathered.
    gradients: Vec<Option<Buffer>>,
    features: Option<Buffer>,
    /// Buffers that wait for the next map or gradient of their size.
    spare: Vec<Buffer>,
}

/// The shape of a map for a batch.
fn shape(plan: &Blueprint, map: Map, batch: usize) -> Maps {
    let m = plan.maps[map];
    Maps { batch, channels: m.channels, height: m.height, width: m.width }
}

/// A map that an earlier step has written.
fn written(map: &Option<Buffer>) -> Result<View<'_>> {
    map.as_ref().map(Buffer::view).ok_or(Error::Length {
        operation: "a network's pass",
        message: "a map is read before it is written".into(),
    })
}

impl Workspace {
    pub(super) fn new(on: &Rc<Context>, plan: &Blueprint, keep: Keep) -> Result<Self> {
        let mut layers = Vec::new();
        for l in &plan.layers {
            layers.push(LayerState { conv: None, norm: Norm::new(on, l.geometry.outputs)?, y: None });
        }
        Ok(Workspace {
            on: on.clone(),
            math: on.math(),
            keep,
            capacity: 0,
            taken: 0,
            layers,
            work: Work::default(),
            maps: Vec::new(),
            chosen: Vec::new(),
            gradients: Vec::new(),
            features: None,
            spare: Vec::new(),
        })
    }

    fn grow(&mut self, plan: &Blueprint, batch: usize) -> Result<()> {
        if batch > self.capacity {
            self.capacity = batch;
            self.spare.clear();
            self.maps = plan.maps.iter().map(|_| None).collect();
            self.gradients = plan.maps.iter().map(|_| None).collect();
            self.chosen = plan.maps.iter().map(|_| None).collect();
            self.layers.iter_mut().for_each(|l| l.y = None);
            self.taken = batch * plan.feature_dim();
            self.features = Some(Buffer::any(&self.on, self.taken)?);
        }
        for (l, of) in self.layers.iter_mut().zip(&plan.layers) {
            if l.conv.as_ref().is_none_or(|c| c.batch() != batch) {
                l.conv = Some(Convolution::new(&self.on, of.geometry, batch, self.math)?);
            }
        }
        Ok(())
    }

    /// Features (B, F) of images (B, H, W, C).
    pub(super) fn forward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cuda>,
        (images, batch): (View<'_>, usize),
        statistics: Statistics,
    ) -> Result<View<'_>> {
        self.grow(plan, batch)?;
        let on = self.on.clone();
        let mut pixels = self.open(plan, 0)?;
        maps::channels_first(&on, images, shape(plan, 0, batch), &mut pixels)?;
        self.maps[0] = Some(pixels);
        for (i, step) in plan.steps.iter().enumerate() {
            match *step {
                Step::Conv { layer, input, output, residual } => {
                    self.convolve(plan, state, batch, (layer, input, output), statistics)?;
                    let mut out = self.open(plan, output)?;
                    let _span = named(|| plan.layers[layer].norm.as_str().into());
                    let added = match residual {
                        None => None,
                        Some(r) => Some(match plan.maps[r].pending {
                            None => (written(&self.maps[r])?, None),
                            Some(l) => (written(&self.layers[l].y)?, Some(&self.layers[l].norm)),
                        }),
                    };
                    let l = &self.layers[layer];
                    let flat = shape(plan, output, batch).flat();
                    l.norm.apply(&on, written(&l.y)?, flat, added, true, out.view_mut())?;
                    self.maps[output] = Some(out);
                }
                Step::Shortcut { layer, input, output } => {
                    self.convolve(plan, state, batch, (layer, input, output), statistics)?;
                }
                Step::MaxPool { input, output } => {
                    let mut out = self.open(plan, output)?;
                    let (from, to) = (shape(plan, input, batch), shape(plan, output, batch));
                    let mut chosen = match self.chosen[output].take() {
                        Some(chosen) => chosen,
                        None => Chosen::new(&on, shape(plan, output, self.capacity).len())?,
                    };
                    let x = (written(&self.maps[input])?, from);
                    maps::max_pool(&on, x, (out.view_mut(), to), &mut chosen)?;
                    self.chosen[output] = Some(chosen);
                    self.maps[output] = Some(out);
                }
            }
            match self.keep {
                Keep::All => {}
                Keep::Sources => {
                    for map in step.reads().into_iter().flatten() {
                        if self.keep.makes_again(plan, map) && last_reader(plan, map) == Some(i) {
                            self.take(map);
                        }
                    }
                }
                Keep::Nothing => self.release(plan, i),
            }
        }
        let last = plan.maps.len() - 1;
        if let Some(features) = &mut self.features {
            let x = (written(&self.maps[last])?, shape(plan, last, batch));
            maps::cell_mean(&on, x, plan.grid, features)?;
        }
        if self.keep == Keep::Nothing {
            self.take(last);
        }
        Ok(written(&self.features)?.first(batch * plan.feature_dim()))
    }

    /// The memory of a map to be written.
    fn open(&mut self, plan: &Blueprint, map: Map) -> Result<Buffer> {
        match self.maps[map].take() {
            Some(before) => Ok(before),
            None => self.buffer(plan, map),
        }
    }

    /// Takes a map's memory back.
    fn take(&mut self, map: Map) {
        self.spare.extend(self.maps[map].take());
    }

    /// Takes back the memory of what step `i` was the last to read.
    fn release(&mut self, plan: &Blueprint, i: usize) {
        let read_later = |map: Map| plan.steps[i + 1..].iter().any(|s| s.reads().contains(&Some(map)));
        if let Step::Conv { layer, .. } = plan.steps[i] {
            self.spare.extend(self.layers[layer].y.take());
        }
        for map in plan.steps[i].reads().into_iter().flatten().filter(|m| !read_later(*m)) {
            match plan.maps[map].pending {
                Some(layer) => self.spare.extend(self.layers[layer].y.take()),
                None => self.take(map),
            }
        }
    }

    /// The convolution of a layer, and its normalisation's scale and shift.
    fn convolve(
        &mut self,
        plan: &Blueprint,
        state: &State<Cuda>,
        batch: usize,
        (layer, input, output): (usize, Map, Map),
        statistics: Statistics,
    ) -> Result<()> {
        let on = self.on.clone();
        let mut y = match self.layers[layer].y.take() {
            Some(y) => y,
            None => self.buffer(plan, output)?,
        };
        let x = written(&self.maps[input])?;
        let l = &mut self.layers[layer];
        if let Some(conv) = &l.conv {
            let _span = named(|| plan.layers[layer].name.as_str().into());
            conv.forward(&on, &mut self.work, x, &state.parameters[3 * layer].value(), y.view_mut())?;
        }
        let _span = named(|| plan.layers[layer].norm.as_str().into());
        let (mean, variance) = (&state.statistics[2 * layer], &state.statistics[2 * layer + 1]);
        match statistics {
            Statistics::Batch => {
                let flat = shape(plan, output, batch).flat();
                if flat.batch * flat.pixels < 2 {
                    let norm = &plan.layers[layer].norm;
                    let message =
                        format!("{norm}: a single value has no variance: use a batch of at least 2 images");
                    return Err(Error::Length { operation: "batch normalisation", message });
                }
                let running = (&mut *mean.value_mut(), &mut *variance.value_mut());
                l.norm.measure(&on, y.view(), flat, running, MOMENTUM)?;
            }
            Statistics::Running => l.norm.set(&on, &mean.value(), &variance.value())?,
        }
        let [gamma, beta] = [1, 2].map(|i| state.parameters[3 * layer + i].value());
        l.norm.prepare(&on, &gamma, &beta, EPSILON as f32)?;
        l.y = Some(y);
        Ok(())
    }

    /// Adds to the parameters' gradients, given that of the features of the last forward pass, whose statistics came
    /// from the batch.
    pub(super) fn backward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cuda>,
        (d_features, batch): (View<'_>, usize),
    ) -> Result<()> {
        let on = self.on.clone();
        let last = plan.maps.len() - 1;
        let mut d_last = self.buffer(plan, last)?;
        let to = (d_last.view_mut(), shape(plan, last, batch));
        maps::cell_mean_gradient(&on, d_features, plan.grid, to)?;
        self.gradients[last] = Some(d_last);
        for step in plan.steps.iter().rev() {
            match *step {
                Step::Conv { layer, input, output, residual } => {
                    let Some(mut g) = self.gradients[output].take() else { continue };
                    self.layer_backward(plan, state, batch, (layer, input, output), &mut g, true)?;
                    match residual {
                        Some(r) => self.give(r, g)?,
                        None => self.spare.push(g),
                    }
                }
                Step::Shortcut { layer, input, output } => {
                    let Some(mut g) = self.gradients[output].take() else { continue };
                    self.layer_backward(plan, state, batch, (layer, input, output), &mut g, false)?;
                    self.spare.push(g);
                }
                Step::MaxPool { input, output } => {
                    let Some(g) = self.gradients[output].take() else { continue };
                    let mut dx = self.buffer(plan, input)?;
                    let (from, to) = (shape(plan, input, batch), shape(plan, output, batch));
                    if let Some(chosen) = &self.chosen[output] {
                        maps::max_pool_gradient(&on, (g.view(), to), chosen, (dx.view_mut(), from))?;
                    }
                    self.give(input, dx)?;
                    self.spare.push(g);
                }
            }
        }
        debug_assert_eq!(self.taken, planned(plan, self.capacity, self.keep), "memory is planned");
        Ok(())
    }

    /// From the gradient of a layer's output to those of its parameters and its input; masks `g` by ReLU if `relu`.
    fn layer_backward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cuda>,
        batch: usize,
        (layer, input, output): (usize, Map, Map),
        g: &mut Buffer,
        relu: bool,
    ) -> Result<()> {
        let on = self.on.clone();
        if relu {
            self.make_again(plan, output, batch)?;
        }
        let mut dy = self.buffer(plan, output)?;
        self.make_again(plan, input, batch)?;
        let l = &mut self.layers[layer];
        {
            let _span = named(|| plan.layers[layer].norm.as_str().into());
            let out = if relu { Some(written(&self.maps[output])?) } else { None };
            let mut gamma = state.parameters[3 * layer + 1].grad_mut();
            let mut beta = state.parameters[3 * layer + 2].grad_mut();
            let (flat, to) = (shape(plan, output, batch).flat(), (&mut *gamma, &mut *beta));
            l.norm.backward(&on, g, out, written(&l.y)?, flat, to, dy.view_mut())?;
        }
        let weight = &state.parameters[3 * layer];
        if let Some(conv) = &l.conv {
            let _span = named(|| format!("{} weight", plan.layers[layer].name).into());
            let x = written(&self.maps[input])?;
            conv.weight_gradient(&on, &mut self.work, x, dy.view(), &mut weight.grad_mut())?;
        }
        if input != 0 {
            let _span = named(|| format!("{} input", plan.layers[layer].name).into());
            let (mut dx, beta) = match self.gradients[input].take() {
                Some(dx) => (dx, 1.0),
                None => (self.buffer(plan, input)?, 0.0),
            };
            if let Some(conv) = &self.layers[layer].conv {
                let to = (dx.view_mut(), beta);
                conv.input_gradient(&on, &mut self.work, dy.view(), &weight.value(), to)?;
            }
            self.gradients[input] = Some(dx);
        }
        self.spare.push(dy);
        if self.keep.makes_again(plan, output) {
            self.take(output);
        }
        Ok(())
    }

    /// Makes a map that was not kept from its convolution's output.
    fn make_again(&mut self, plan: &Blueprint, map: Map, batch: usize) -> Result<()> {
        let (Some(layer), None) = (source(plan, map), &self.maps[map]) else { return Ok(()) };
        let mut out = self.buffer(plan, map)?;
        let (l, flat) = (&self.layers[layer], shape(plan, map, batch).flat());
        l.norm.apply(&self.on, written(&l.y)?, flat, None, true, out.view_mut())?;
        self.maps[map] = Some(out);
        Ok(())
    }

    /// Hands a map's gradient over, adding it to what is there.
    fn give(&mut self, map: Map, g: Buffer) -> Result<()> {
        match &mut self.gradients[map] {
            None => self.gradients[map] = Some(g),
            Some(sum) => {
                elementwise::add(&self.on, sum.view_mut(), 1.0, g.view())?;
                self.spare.push(g);
            }
        }
        Ok(())
    }

    /// A buffer of any content for a map or its gradient.
    fn buffer(&mut self, plan: &Blueprint, map: Map) -> Result<Buffer> {
        let len = shape(plan, map, self.capacity).len();
        match self.spare.iter().position(|b| b.len() == len) {
            Some(i) => Ok(self.spare.swap_remove(i)),
            None => {
                self.taken += len;
                Buffer::any(&self.on, len)
            }
        }
    }
}
