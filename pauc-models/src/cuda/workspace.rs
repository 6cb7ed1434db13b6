//! A network's maps and gradients on CUDA, and the passes over them.

use super::layout::{Keep, factors, is_halved, last_reader, lies_apart, planned_elements, shape, source};
use crate::encoders::blueprint::{Blueprint, Map, State, Step};
use crate::encoders::workspace::{EPSILON, MOMENTUM, Statistics};
use dfdx::prelude::Cuda;
use pauc_cuda::conv::{Convolution, Math, Work};
use pauc_cuda::field::{Element, Elements, Field, Maps};
use pauc_cuda::maps::{self, Chosen};
use pauc_cuda::norm::{Norm, Relu};
use pauc_cuda::{Buffer, Context, Error, Result, View};
use pauc_traits::profile::named;
use std::rc::Rc;

/// What follows a normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    Relu,
    /// A sum with a residual, and ReLU.
    Residual,
}

struct LayerState {
    conv: Option<Convolution>,
    norm: Norm,
    /// The convolution's output, before normalisation.
    y: Option<Field>,
}

/// The factors of one gradient of weights: [`factors`].
struct Halves {
    input: Field,
    gradient: Field,
    /// The map that `input` holds.
    of: Option<Map>,
}

/// Memory for one batch at a time. Grows to the largest batch it has seen, and is then reused.
pub(super) struct Workspace {
    on: Rc<Context>,
    math: Math,
    keep: Keep,
    capacity: usize,
    /// Elements of the fields that were made since it grew.
    taken: usize,
    layers: Vec<LayerState>,
    /// What convolutions use while they run.
    work: Work,
    /// None before the first backward pass.
    halves: Option<Halves>,
    /// Maps as halves: [`is_halved`].
    halved: Vec<Option<Field>>,
    /// Normalised maps; none for those that a later step normalises.
    maps: Vec<Option<Field>>,
    /// Which pixel each maximum came from, by output map.
    chosen: Vec<Option<Chosen>>,
    /// Gradients of maps, while they are being gathered.
    gradients: Vec<Option<Field>>,
    /// Parts of them that are still to be added: [`lies_apart`].
    apart: Vec<Option<Field>>,
    features: Option<Buffer>,
    /// Fields that wait for the next map or gradient of their size.
    spare: Vec<Field>,
}

/// A map that an earlier step has written.
fn written(map: &Option<Field>) -> Result<Elements<'_>> {
    map.as_ref().map(Field::elements).ok_or(Error::Length {
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
            halves: None,
            halved: Vec::new(),
            maps: Vec::new(),
            chosen: Vec::new(),
            gradients: Vec::new(),
            apart: Vec::new(),
            features: None,
            spare: Vec::new(),
        })
    }

    /// How products are rounded.
    pub(super) fn math(&self) -> Math {
        self.math
    }

    /// Whether factors of convolutions are taken apart. A device that does not say so says it again when it is asked for one.
    pub(super) fn takes_parts(&self) -> bool {
        Convolution::takes_parts(&self.on, self.math).unwrap_or_default()
    }

    fn grow(&mut self, plan: &Blueprint, batch: usize) -> Result<()> {
        if batch > self.capacity {
            self.capacity = batch;
            self.spare.clear();
            self.maps = plan.maps.iter().map(|_| None).collect();
            self.halved = plan.maps.iter().map(|_| None).collect();
            self.halves = None;
            self.gradients = plan.maps.iter().map(|_| None).collect();
            self.apart = plan.maps.iter().map(|_| None).collect();
            self.chosen = plan.maps.iter().map(|_| None).collect();
            self.layers.iter_mut().for_each(|l| l.y = None);
            self.taken = 0;
            self.features = Some(Buffer::any(&self.on, batch * plan.feature_dim())?);
        }
        for step in &plan.steps {
            let (Step::Conv { layer, input, .. } | Step::Shortcut { layer, input, .. }) = *step else {
                continue;
            };
            let (input, l) = (shape(plan, input, batch, self.math), &mut self.layers[layer]);
            if l.conv.as_ref().is_none_or(|c| c.input() != input) {
                l.conv = Some(Convolution::new(&self.on, plan.layers[layer].geometry, input, self.math)?);
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
        let to = (pixels.elements_mut(), self.shape(plan, 0, batch));
        maps::pixels(&on, images.into(), plan.input.channels, to)?;
        self.maps[0] = Some(pixels);
        for (i, step) in plan.steps.iter().enumerate() {
            match *step {
                Step::Conv { layer, input, output, residual } => {
                    self.convolve(plan, state, batch, (layer, input, output), statistics)?;
                    let mut out = self.open(plan, output)?;
                    let mut halved = self.open_halved(plan, output)?;
                    let _span = named(|| plan.layers[layer].norm.as_str().into());
                    let added = match residual {
                        None => None,
                        Some(r) => Some(match plan.maps[r].pending {
                            None => (written(&self.maps[r])?, None),
                            Some(l) => (written(&self.layers[l].y)?, Some(&self.layers[l].norm)),
                        }),
                    };
                    let l = &self.layers[layer];
                    let y = (written(&l.y)?, self.shape(plan, output, batch));
                    let as_halves = halved.as_mut().map(Field::elements_mut);
                    l.norm.apply(&on, y, added, true, out.elements_mut(), as_halves)?;
                    (self.maps[output], self.halved[output]) = (Some(out), halved);
                }
                Step::Shortcut { layer, input, output } => {
                    self.convolve(plan, state, batch, (layer, input, output), statistics)?;
                }
                Step::MaxPool { input, output } => {
                    let mut out = self.open(plan, output)?;
                    let (from, to) = (self.shape(plan, input, batch), self.shape(plan, output, batch));
                    let mut chosen = match self.chosen[output].take() {
                        Some(chosen) => chosen,
                        None => Chosen::new(&on, self.shape(plan, output, self.capacity).len())?,
                    };
                    let x = (written(&self.maps[input])?, from);
                    maps::max_pool(&on, x, (out.elements_mut(), to), &mut chosen)?;
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
        let maps = self.shape(plan, last, batch);
        if let Some(features) = &mut self.features {
            maps::cell_mean(&on, (written(&self.maps[last])?, maps), plan.grid, features)?;
        }
        if self.keep == Keep::Nothing {
            self.take(last);
        }
        let features = self.features.as_ref().map(Buffer::view);
        Ok(features.ok_or(Error::Address)?.first(batch * plan.feature_dim()))
    }

    fn shape(&self, plan: &Blueprint, map: Map, batch: usize) -> Maps {
        shape(plan, map, batch, self.math)
    }

    /// The memory of a map to be written.
    fn open(&mut self, plan: &Blueprint, map: Map) -> Result<Field> {
        match self.maps[map].take() {
            Some(before) => Ok(before),
            None => self.field(plan, map),
        }
    }

    /// The memory of a map's halves to be written, if it has any.
    fn open_halved(&mut self, plan: &Blueprint, map: Map) -> Result<Option<Field>> {
        if !is_halved(plan, self.keep, map, self.math) {
            return Ok(None);
        }
        if let Some(before) = self.halved[map].take() {
            return Ok(Some(before));
        }
        let len = self.shape(plan, map, self.capacity).len();
        self.taken += len.div_ceil(2);
        Field::any(&self.on, len, Element::F16).map(Some)
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
            None => self.field(plan, output)?,
        };
        let (x, maps) = (written(&self.maps[input])?, self.shape(plan, output, batch));
        let l = &mut self.layers[layer];
        if let Some(conv) = &mut l.conv {
            let _span = named(|| plan.layers[layer].name.as_str().into());
            let weight = state.parameters[3 * layer].value();
            conv.forward(&on, &mut self.work, x, &weight, y.elements_mut())?;
        }
        let _span = named(|| plan.layers[layer].norm.as_str().into());
        let (mean, variance) = (&state.statistics[2 * layer], &state.statistics[2 * layer + 1]);
        let [gamma, beta] = [1, 2].map(|i| state.parameters[3 * layer + i].value());
        let affine = (&*gamma, &*beta, EPSILON as f32);
        match statistics {
            Statistics::Batch => {
                if maps.pixels() < 2 {
                    let norm = &plan.layers[layer].norm;
                    let message =
                        format!("{norm}: a single value has no variance: use a batch of at least 2 images");
                    return Err(Error::Length { operation: "batch normalisation", message });
                }
                let running = (&mut *mean.value_mut(), &mut *variance.value_mut(), MOMENTUM);
                l.norm.measure(&on, (y.elements(), maps), running, affine)?;
            }
            Statistics::Running => l.norm.set(&on, (&mean.value(), &variance.value()), affine)?,
        }
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
        let mut d_last = self.field(plan, last)?;
        let to = (d_last.elements_mut(), self.shape(plan, last, batch));
        maps::cell_mean_gradient(&on, d_features, plan.grid, to)?;
        self.gradients[last] = Some(d_last);
        self.halves = Some(match self.halves.take() {
            Some(there) => Halves { of: None, ..there },
            None => {
                let lens = factors(plan, self.capacity, self.keep, self.math);
                self.taken += lens.iter().map(|len| len.div_ceil(2)).sum::<usize>();
                let [input, gradient] = lens.map(|len| Field::any(&on, len, Element::F16));
                Halves { input: input?, gradient: gradient?, of: None }
            }
        });
        for step in plan.steps.iter().rev() {
            match *step {
                Step::Conv { layer, input, output, residual } => {
                    let Some(g) = self.gradients[output].take() else { continue };
                    let after = if residual.is_some() { After::Residual } else { After::Relu };
                    let g = self.layer_backward(plan, state, batch, (layer, input, output), g, after)?;
                    if let (Some(r), Some(g)) = (residual, g) {
                        self.give(plan, (r, batch), g)?;
                    }
                }
                Step::Shortcut { layer, input, output } => {
                    let Some(g) = self.gradients[output].take() else { continue };
                    self.layer_backward(plan, state, batch, (layer, input, output), g, After::Nothing)?;
                }
                Step::MaxPool { input, output } => {
                    let Some(g) = self.gradients[output].take() else { continue };
                    let mut dx = self.field(plan, input)?;
                    let (from, to) = (self.shape(plan, input, batch), self.shape(plan, output, batch));
                    if let Some(chosen) = &self.chosen[output] {
                        maps::max_pool_gradient(&on, (g.elements(), to), chosen, (dx.elements_mut(), from))?;
                    }
                    self.give(plan, (input, batch), dx)?;
                    self.spare.push(g);
                }
            }
        }
        debug_assert_eq!(self.taken, self.planned(plan), "memory is planned");
        Ok(())
    }

    /// Elements of maps and gradients, as [`planned`] counts them.
    fn planned(&self, plan: &Blueprint) -> usize {
        planned_elements(plan, self.capacity, self.keep, self.math)
    }

    /// From the gradient of a layer's output to those of its parameters and its input. Where a residual was added, what ReLU
    /// leaves of `g` is returned, for the residual.
    fn layer_backward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cuda>,
        batch: usize,
        (layer, input, output): (usize, Map, Map),
        mut g: Field,
        after: After,
    ) -> Result<Option<Field>> {
        let on = self.on.clone();
        let mut dy = if after == After::Residual { Some(self.field(plan, output)?) } else { None };
        self.make_again(plan, input, batch)?;
        let maps = self.shape(plan, output, batch);
        let l = &mut self.layers[layer];
        let as_halves = l.conv.as_ref().and_then(Convolution::halves);
        let mut halves = self.halves.as_mut().filter(|_| as_halves.is_some());
        {
            let _span = named(|| plan.layers[layer].norm.as_str().into());
            let relu = match after {
                After::Nothing => Relu::No,
                After::Relu => Relu::Own,
                After::Residual => Relu::Output(written(&self.maps[output])?),
            };
            let mut gamma = state.parameters[3 * layer + 1].grad_mut();
            let mut beta = state.parameters[3 * layer + 2].grad_mut();
            let (y, mut g) = ((written(&l.y)?, maps), g.elements_mut());
            let apart = self.apart[output].take();
            let more = apart.as_ref().map(Field::elements);
            l.norm.own_gradient(&on, (&mut g, more), relu, y, (&mut gamma, &mut beta), halves.is_some())?;
            let halved = halves.as_mut().map(|h| h.gradient.elements_mut());
            l.norm.input_gradient(&on, &mut g, relu, y, dy.as_mut().map(Field::elements_mut), halved)?;
            self.spare.extend(apart);
        }
        let (dy, rest) = match dy {
            Some(dy) => (dy, Some(g)),
            None => (g, None),
        };
        let weight = &state.parameters[3 * layer];
        if let Some(conv) = &l.conv {
            let _span = named(|| format!("{} weight", plan.layers[layer].name).into());
            let (x, dw) = (written(&self.maps[input])?, &mut weight.grad_mut());
            match (as_halves, halves) {
                (Some(as_halves), Some(halves)) => {
                    let kept = &self.halved[input];
                    if kept.is_none() && halves.of.replace(input) != Some(input) {
                        let to = (halves.input.elements_mut(), as_halves);
                        maps::pixels(&on, x, conv.input().channels, to)?;
                    }
                    let x = kept.as_ref().unwrap_or(&halves.input).elements();
                    let dy = l.norm.halved(halves.gradient.elements());
                    conv.weight_gradient_of_halves(&on, &mut self.work, x, dy, dw)?;
                }
                _ => conv.weight_gradient(&on, &mut self.work, x, dy.elements(), dw)?,
            }
        }
        if input != 0 {
            let _span = named(|| format!("{} input", plan.layers[layer].name).into());
            let there = self.gradients[input].take();
            let apart = there.is_some() && self.apart[input].is_none() && lies_apart(plan, layer, input);
            let (before, there) = if apart { (there, None) } else { (None, there) };
            let (mut dx, beta) = match there {
                Some(dx) => (dx, 1.0),
                None => (self.field(plan, input)?, 0.0),
            };
            if let Some(conv) = &self.layers[layer].conv {
                let to = (dx.elements_mut(), beta);
                conv.input_gradient(&on, &mut self.work, dy.elements(), &weight.value(), to)?;
            }
            match before {
                None => self.gradients[input] = Some(dx),
                Some(before) => (self.gradients[input], self.apart[input]) = (Some(before), Some(dx)),
            }
        }
        self.spare.push(dy);
        if self.keep.makes_again(plan, output) {
            self.take(output);
        }
        Ok(rest)
    }

    /// Makes a map that was not kept from its convolution's output.
    fn make_again(&mut self, plan: &Blueprint, map: Map, batch: usize) -> Result<()> {
        let (Some(layer), None) = (source(plan, map), &self.maps[map]) else { return Ok(()) };
        let mut out = self.field(plan, map)?;
        let (l, maps) = (&self.layers[layer], self.shape(plan, map, batch));
        l.norm.apply(&self.on, (written(&l.y)?, maps), None, true, out.elements_mut(), None)?;
        self.maps[map] = Some(out);
        Ok(())
    }

    /// Hands a map's gradient over, adding it to what is there.
    fn give(&mut self, plan: &Blueprint, (map, batch): (Map, usize), g: Field) -> Result<()> {
        let maps = self.shape(plan, map, batch);
        match &mut self.gradients[map] {
            None => self.gradients[map] = Some(g),
            Some(sum) => {
                maps::add(&self.on, g.elements(), (sum.elements_mut(), maps))?;
                self.spare.push(g);
            }
        }
        Ok(())
    }

    /// A field of any content for a map or its gradient.
    fn field(&mut self, plan: &Blueprint, map: Map) -> Result<Field> {
        let len = self.shape(plan, map, self.capacity).len();
        match self.spare.iter().position(|b| b.len() == len) {
            Some(i) => Ok(self.spare.swap_remove(i)),
            None => {
                self.taken += len;
                Field::any(&self.on, len, self.math.element())
            }
        }
    }
}
