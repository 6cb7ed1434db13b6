//! The memory of a convolutional network on CUDA, and the kernels of its passes.

use super::schedule::{
    Backward, Conv, F16_GRADIENT, F16_INPUT, F16Slot, Forward, Keep, Operands, ReluSlot, Schedule, Slot,
    shape, split_elements,
};
use crate::batch_moments::RunningStatistics;
use crate::encoders::blueprint::{Blueprint, Map, State, Step};
use crate::encoders::workspace::Statistics;
use dfdx::prelude::Cuda;
use pauc_cuda::conv::{Convolution, Scratch};
use pauc_cuda::feature_map::{self, FeatureMap, MapShape, MapSlice};
use pauc_cuda::norm::{BatchNorm, Relu};
use pauc_cuda::pooling::{self, ArgMax};
use pauc_cuda::{Buffer, Context, Element, Error, Precision, Result, View};
use pauc_traits::trace::named;
use std::rc::Rc;

/// The memory of the slots of a schedule, allocated at the first write.
struct Memory {
    on: Rc<Context>,
    element: Element,
    /// The largest batch that the memory is for.
    batch: usize,
    slots: Vec<Option<FeatureMap>>,
    f16_slots: Vec<Option<FeatureMap>>,
}

impl Memory {
    fn new(on: &Rc<Context>, schedule: &Schedule, batch: usize, element: Element) -> Self {
        let [slots, f16_slots] = schedule.slot_counts().map(|n| (0..n).map(|_| None).collect());
        Memory { on: on.clone(), element, batch, slots, f16_slots }
    }

    /// Returns the content of a slot.
    fn read(&self, slot: Slot) -> Result<MapSlice<'_>> {
        self.slots[slot.0]
            .as_ref()
            .map(FeatureMap::slice)
            .ok_or(Error::Internal("slots are written before they are read"))
    }

    fn read_f16(&self, slot: F16Slot) -> Result<MapSlice<'_>> {
        self.f16_slots[slot.0]
            .as_ref()
            .map(FeatureMap::slice)
            .ok_or(Error::Internal("slots are written before they are read"))
    }

    /// Takes the memory of a slot for writing; it must be [put back](Memory::put).
    fn take(&mut self, schedule: &Schedule, slot: Slot) -> Result<FeatureMap> {
        let len = schedule.slot_len(slot, self.batch);
        self.slots[slot.0].take().map_or_else(|| FeatureMap::uninit(&self.on, len, self.element), Ok)
    }

    fn take_f16(&mut self, schedule: &Schedule, slot: F16Slot) -> Result<FeatureMap> {
        let len = schedule.f16_slot_len(slot, self.batch);
        self.f16_slots[slot.0].take().map_or_else(|| FeatureMap::uninit(&self.on, len, Element::F16), Ok)
    }

    fn put(&mut self, slot: Slot, map: FeatureMap) {
        self.slots[slot.0] = Some(map);
    }

    fn put_f16(&mut self, slot: F16Slot, map: FeatureMap) {
        self.f16_slots[slot.0] = Some(map);
    }
}

struct LayerState {
    /// `None` before the first pass.
    conv: Option<Convolution>,
    norm: BatchNorm,
}

impl LayerState {
    fn conv(&self) -> Result<&Convolution> {
        self.conv.as_ref().ok_or(Error::Internal("`grow` creates all convolutions"))
    }
}

/// The settings of a pass.
#[derive(Clone, Copy)]
struct Pass<'a> {
    plan: &'a Blueprint,
    state: &'a State<Cuda>,
    batch: usize,
    precision: Precision,
}

impl Pass<'_> {
    fn shape(&self, map: Map) -> MapShape {
        shape(self.plan, map, self.batch, self.precision)
    }
}

/// Memory for one batch at a time. It grows to the largest batch seen, and is then reused.
pub(super) struct Workspace {
    on: Rc<Context>,
    precision: Precision,
    schedule: Rc<Schedule>,
    layers: Vec<LayerState>,
    memory: Memory,
    /// The scratch memory of convolutions.
    scratch: Scratch,
    /// The source pixel of each maximum, by output map.
    arg_max: Vec<Option<ArgMax>>,
    features: Buffer,
}

impl Workspace {
    pub(super) fn new(on: &Rc<Context>, plan: &Blueprint, keep: Keep, precision: Precision) -> Result<Self> {
        let mut layers = Vec::new();
        for l in &plan.layers {
            layers.push(LayerState { conv: None, norm: BatchNorm::new(on, l.geometry.outputs)? });
        }
        let schedule = Rc::new(Schedule::new(plan, keep, precision)?);
        Ok(Workspace {
            memory: Memory::new(on, &schedule, 0, Element::of(precision)),
            on: on.clone(),
            precision,
            schedule,
            layers,
            scratch: Scratch::default(),
            arg_max: plan.maps.iter().map(|_| None).collect(),
            features: Buffer::uninit(on, 0)?,
        })
    }

    /// Returns the bytes of maps, gradients and features for a batch, and of split convolution operands if
    /// there are any. If the device fails to report whether operands are split, that error surfaces again
    /// when a convolution is created.
    pub(super) fn bytes(&self, plan: &Blueprint, batch: usize) -> usize {
        let splits = Convolution::splits_operands(&self.on, self.precision).unwrap_or_default();
        let split = if splits { split_elements(plan, batch, self.precision) } else { 0 };
        self.schedule.bytes(batch, Element::of(self.precision))
            + (split + batch * plan.feature_dim()) * size_of::<f32>()
    }

    /// Allocates memory for a batch, and creates convolutions for its size.
    fn grow(&mut self, plan: &Blueprint, batch: usize) -> Result<()> {
        if batch > self.memory.batch {
            self.memory = Memory::new(&self.on, &self.schedule, batch, Element::of(self.precision));
            self.arg_max = plan.maps.iter().map(|_| None).collect();
            self.features = Buffer::uninit(&self.on, batch * plan.feature_dim())?;
        }
        for step in &plan.steps {
            let (Step::Conv { layer, input, .. } | Step::Shortcut { layer, input, .. }) = *step else {
                continue;
            };
            let (input, l) = (shape(plan, input, batch, self.precision), &mut self.layers[layer]);
            if l.conv.as_ref().is_none_or(|c| c.input() != input) {
                let geometry = plan.layers[layer].geometry;
                l.conv = Some(Convolution::new(&self.on, geometry, input, self.precision)?);
            }
        }
        Ok(())
    }

    /// Computes features (B, F) of images (B, H, W, C).
    pub(super) fn forward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cuda>,
        (images, batch): (View<'_>, usize),
        statistics: Statistics,
    ) -> Result<View<'_>> {
        self.grow(plan, batch)?;
        let (on, schedule) = (self.on.clone(), self.schedule.clone());
        let pass = Pass { plan, state, batch, precision: self.precision };
        for operation in &schedule.forward {
            match *operation {
                Forward::Load { to } => {
                    let mut pixels = self.memory.take(&schedule, to)?;
                    let target = (pixels.slice_mut(), pass.shape(0));
                    feature_map::convert(&on, images.into(), plan.input.channels, target)?;
                    self.memory.put(to, pixels);
                }
                Forward::Convolve { conv, x, y } => self.convolve(pass, conv, (x, y), statistics)?,
                Forward::Normalize { conv, y, residual, out, f16 } => {
                    self.normalize(pass, conv, y, residual, (out, f16))?;
                }
                Forward::MaxPool { input, output, x, y } => self.max_pool(pass, (input, x), (output, y))?,
                Forward::CellMean { x } => {
                    let x = (self.memory.read(x)?, pass.shape(plan.maps.len() - 1));
                    pooling::cell_mean(&on, x, plan.grid, &mut self.features)?;
                }
            }
        }
        Ok(self.features.view().first(batch * plan.feature_dim()))
    }

    /// Runs the convolution of a layer, and computes the coefficients of its normalization.
    fn convolve(
        &mut self,
        pass: Pass<'_>,
        Conv { layer, output, .. }: Conv,
        (x, y): (Slot, Slot),
        statistics: Statistics,
    ) -> Result<()> {
        let Pass { plan, state, .. } = pass;
        let (on, shape) = (self.on.clone(), pass.shape(output));
        let mut out = self.memory.take(&self.schedule, y)?;
        let l = &mut self.layers[layer];
        {
            let _span = named(|| plan.layers[layer].name.as_str().into());
            let weight = state.parameters[3 * layer].value();
            let conv = l.conv.as_mut().ok_or(Error::Internal("`grow` creates all convolutions"))?;
            conv.forward(&on, &mut self.scratch, self.memory.read(x)?, &weight, out.slice_mut())?;
        }
        let _span = named(|| plan.layers[layer].norm_name().into());
        let [mean, variance] = [0, 1].map(|i| &state.statistics[2 * layer + i]);
        let running = RunningStatistics { mean, variance };
        let affine = [1, 2].map(|i| &state.parameters[3 * layer + i]);
        match statistics {
            Statistics::Batch if shape.pixels() < 2 => {
                let norm = plan.layers[layer].norm_name();
                let message =
                    format!("{norm}: a single value has no variance: use a batch of at least 2 images");
                return Err(Error::Length { operation: "batch normalization", message });
            }
            Statistics::Batch => running.measure(&on, &mut l.norm, (out.slice(), shape), affine)?,
            Statistics::Running => running.set(&on, &mut l.norm, affine)?,
        }
        self.memory.put(y, out);
        Ok(())
    }

    /// Runs the normalization of a layer, with residual and ReLU.
    fn normalize(
        &mut self,
        pass: Pass<'_>,
        Conv { layer, output, .. }: Conv,
        y: Slot,
        residual: Option<(Slot, Option<usize>)>,
        (out, f16): (Slot, Option<F16Slot>),
    ) -> Result<()> {
        let mut map = self.memory.take(&self.schedule, out)?;
        let mut copy = f16.map(|slot| self.memory.take_f16(&self.schedule, slot)).transpose()?;
        let _span = named(|| pass.plan.layers[layer].norm_name().into());
        let residual = match residual {
            None => None,
            Some((slot, pending)) => {
                Some((self.memory.read(slot)?, pending.map(|layer| &self.layers[layer].norm)))
            }
        };
        let y = (self.memory.read(y)?, pass.shape(output));
        let as_f16 = copy.as_mut().map(FeatureMap::slice_mut);
        self.layers[layer].norm.apply(&self.on, y, residual, true, map.slice_mut(), as_f16)?;
        self.memory.put(out, map);
        if let (Some(slot), Some(copy)) = (f16, copy) {
            self.memory.put_f16(slot, copy);
        }
        Ok(())
    }

    fn max_pool(&mut self, pass: Pass<'_>, (input, x): (Map, Slot), (output, y): (Map, Slot)) -> Result<()> {
        let mut out = self.memory.take(&self.schedule, y)?;
        let mut arg_max = match self.arg_max[output].take() {
            Some(arg_max) => arg_max,
            None => {
                let largest = shape(pass.plan, output, self.memory.batch, self.precision);
                ArgMax::new(&self.on, largest.len())?
            }
        };
        let (from, to) = ((self.memory.read(x)?, pass.shape(input)), (out.slice_mut(), pass.shape(output)));
        pooling::max_pool(&self.on, from, to, &mut arg_max)?;
        self.arg_max[output] = Some(arg_max);
        self.memory.put(y, out);
        Ok(())
    }

    /// Accumulates the gradients of the parameters, given that of the features of the last forward pass,
    /// which must have used batch statistics.
    pub(super) fn backward(
        &mut self,
        plan: &Blueprint,
        state: &State<Cuda>,
        (d_features, batch): (View<'_>, usize),
    ) -> Result<()> {
        let (on, schedule) = (self.on.clone(), self.schedule.clone());
        let pass = Pass { plan, state, batch, precision: self.precision };
        for operation in &schedule.backward {
            match *operation {
                Backward::CellMean { dx } => {
                    let mut out = self.memory.take(&schedule, dx)?;
                    let to = (out.slice_mut(), pass.shape(plan.maps.len() - 1));
                    pooling::cell_mean_gradient(&on, d_features, plan.grid, to)?;
                    self.memory.put(dx, out);
                }
                Backward::Recompute { layer, map, y, out } => {
                    let mut again = self.memory.take(&schedule, out)?;
                    let y = (self.memory.read(y)?, pass.shape(map));
                    self.layers[layer].norm.apply(&on, y, None, true, again.slice_mut(), None)?;
                    self.memory.put(out, again);
                }
                Backward::Norm { conv, g, extra, relu, y, dy, f16 } => {
                    self.norm_gradients(pass, conv, (g, extra), relu, y, (dy, f16))?;
                }
                Backward::Weight { conv, operands } => self.weight_gradient(pass, conv, operands)?,
                Backward::Input { conv, dy, dx, accumulate } => {
                    self.input_gradient(pass, conv, dy, (dx, accumulate))?;
                }
                Backward::MaxPool { input, output, dy, dx } => {
                    let mut out = self.memory.take(&schedule, dx)?;
                    let arg_max = self.arg_max[output].as_ref();
                    let arg_max =
                        arg_max.ok_or(Error::Internal("the forward pass keeps the indices of all maxima"))?;
                    let from = (self.memory.read(dy)?, pass.shape(output));
                    pooling::max_pool_gradient(&on, from, arg_max, (out.slice_mut(), pass.shape(input)))?;
                    self.memory.put(dx, out);
                }
                Backward::Add { map, from, to } => {
                    let mut sum = self.memory.take(&schedule, to)?;
                    let target = (sum.slice_mut(), pass.shape(map));
                    feature_map::add(&on, self.memory.read(from)?, target)?;
                    self.memory.put(to, sum);
                }
            }
        }
        Ok(())
    }

    /// Computes the gradients of a layer's normalization.
    fn norm_gradients(
        &mut self,
        pass: Pass<'_>,
        Conv { layer, output, .. }: Conv,
        (g, extra): (Slot, Option<Slot>),
        relu: ReluSlot,
        y: Slot,
        (dy, f16): (Option<Slot>, bool),
    ) -> Result<()> {
        let (on, schedule, memory) = (&self.on, &self.schedule, &mut self.memory);
        let mut of_output = memory.take(schedule, g)?;
        let mut of_y = dy.map(|slot| memory.take(schedule, slot)).transpose()?;
        let mut of_y_f16 = f16.then(|| memory.take_f16(schedule, F16_GRADIENT)).transpose()?;
        let _span = named(|| pass.plan.layers[layer].norm_name().into());
        let relu = match relu {
            ReluSlot::No => Relu::No,
            ReluSlot::Own => Relu::Own,
            ReluSlot::Output(slot) => Relu::Output(memory.read(slot)?),
        };
        let (y, extra) =
            ((memory.read(y)?, pass.shape(output)), extra.map(|slot| memory.read(slot)).transpose()?);
        let mut d_gamma = pass.state.parameters[3 * layer + 1].grad_mut();
        let mut d_beta = pass.state.parameters[3 * layer + 2].grad_mut();
        let (norm, mut g_slice) = (&mut self.layers[layer].norm, of_output.slice_mut());
        norm.parameter_gradients(on, (&mut g_slice, extra), relu, y, (&mut d_gamma, &mut d_beta), f16)?;
        let to = (of_y.as_mut().map(FeatureMap::slice_mut), of_y_f16.as_mut().map(FeatureMap::slice_mut));
        norm.input_gradient(on, &mut g_slice, relu, y, to.0, to.1)?;
        memory.put(g, of_output);
        if let (Some(slot), Some(map)) = (dy, of_y) {
            memory.put(slot, map);
        }
        if let Some(map) = of_y_f16 {
            memory.put_f16(F16_GRADIENT, map);
        }
        Ok(())
    }

    /// Accumulates the weight gradient of a convolution.
    fn weight_gradient(
        &mut self,
        pass: Pass<'_>,
        Conv { layer, .. }: Conv,
        operands: Operands,
    ) -> Result<()> {
        let _span = named(|| format!("{} weight", pass.plan.layers[layer].name).into());
        let (on, memory, scratch, l) = (&self.on, &mut self.memory, &mut self.scratch, &self.layers[layer]);
        let (conv, dw) = (l.conv()?, &mut pass.state.parameters[3 * layer].grad_mut());
        match operands {
            Operands::Plain { x, dy } => {
                conv.weight_gradient(on, scratch, memory.read(x)?, memory.read(dy)?, dw)
            }
            Operands::F16 { x, convert } => {
                if let Some(from) = convert {
                    let mut converted = memory.take_f16(&self.schedule, F16_INPUT)?;
                    let to = (converted.slice_mut(), Convolution::f16_shape(conv.input()));
                    feature_map::convert(on, memory.read(from)?, conv.input().channels, to)?;
                    memory.put_f16(F16_INPUT, converted);
                }
                let dy = l.norm.scaled_f16(memory.read_f16(F16_GRADIENT)?);
                conv.weight_gradient_f16(on, scratch, memory.read_f16(x)?, dy, dw)
            }
        }
    }

    /// Computes the input gradient of a convolution.
    fn input_gradient(
        &mut self,
        pass: Pass<'_>,
        Conv { layer, .. }: Conv,
        dy: Slot,
        (dx, accumulate): (Slot, bool),
    ) -> Result<()> {
        let _span = named(|| format!("{} input", pass.plan.layers[layer].name).into());
        let mut out = self.memory.take(&self.schedule, dx)?;
        let (dy, weight) = (self.memory.read(dy)?, pass.state.parameters[3 * layer].value());
        let to = (out.slice_mut(), if accumulate { 1.0 } else { 0.0 });
        self.layers[layer].conv()?.input_gradient(&self.on, &mut self.scratch, dy, &weight, to)?;
        self.memory.put(dx, out);
        Ok(())
    }
}
