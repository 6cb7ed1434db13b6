//! The assignment of slots to the maps, outputs and gradients of a network's passes.

use super::{
    Backward, Conv, F16_GRADIENT, F16_INPUT, F16Slot, Forward, Keep, Operands, ReluSlot, Slot, shape,
};
use crate::encoders::blueprint::{Blueprint, Map, Step};
use pauc_cuda::conv::Convolution;
use pauc_cuda::feature_map::MapShape;
use pauc_cuda::{Error, Precision, Result};

/// Such networks are refused before they are scheduled.
const PRE_ACTIVATED: Error = Error::Internal("pre-activation networks run on the CPU only");

/// Returns the layer if a map is the normalization and ReLU of that layer alone, without a residual.
fn source(plan: &Blueprint, map: Map) -> Option<usize> {
    plan.steps.iter().find_map(|s| match *s {
        Step::Conv { layer, output, residual: None, .. } if output == map => Some(layer),
        _ => None,
    })
}

/// Returns whether a map is written by a normalized convolution, not by pooling.
fn is_normalized(plan: &Blueprint, map: Map) -> bool {
    plan.steps.iter().any(|s| matches!(s, Step::Conv { output, .. } if *output == map))
}

/// Returns whether a layer's gradient for a map that already has one is kept apart until both are read. If a
/// normalization reads the gradient of the map anyway, that is cheaper than cuDNN's accumulation.
fn adds_later(plan: &Blueprint, layer: usize, map: Map) -> bool {
    !Convolution::is_matmul(plan.layers[layer].geometry) && is_normalized(plan, map)
}

/// Walks through the steps of a network and assigns slots.
pub(super) struct Scheduler<'a> {
    plan: &'a Blueprint,
    keep: Keep,
    precision: Precision,
    /// The number of elements per image of each slot.
    pub slots: Vec<usize>,
    pub f16_slots: Vec<usize>,
    /// Free slots, for reuse by the next map or gradient of the same size.
    spare: Vec<Slot>,
    /// The outputs of convolutions, by layer.
    outputs: Vec<Option<Slot>>,
    /// Normalized maps; `None` for maps that a later step normalizes.
    maps: Vec<Option<Slot>>,
    f16_maps: Vec<Option<F16Slot>>,
    /// The gradients of maps during accumulation.
    gradients: Vec<Option<Slot>>,
    /// Gradients still to be added to them, see [`adds_later`].
    extra_gradients: Vec<Option<Slot>>,
    /// The map in [`F16_INPUT`].
    converted: Option<Map>,
}

/// Returns a slot that an earlier step must have written.
fn written(slot: Option<Slot>) -> Result<Slot> {
    slot.ok_or(Error::Internal("steps of a blueprint read only maps that earlier steps have written"))
}

impl<'a> Scheduler<'a> {
    pub fn new(plan: &'a Blueprint, keep: Keep, precision: Precision) -> Self {
        let none = vec![None; plan.maps.len()];
        Scheduler {
            plan,
            keep,
            precision,
            slots: Vec::new(),
            f16_slots: vec![0; 2],
            spare: Vec::new(),
            outputs: vec![None; plan.layers.len()],
            maps: none.clone(),
            f16_maps: vec![None; plan.maps.len()],
            gradients: none.clone(),
            extra_gradients: none,
            converted: None,
        }
    }

    fn shape(&self, map: Map) -> MapShape {
        shape(self.plan, map, 1, self.precision)
    }

    /// Takes a slot for a map or its gradient: a free one of the same size, or a new one.
    fn take(&mut self, map: Map) -> Slot {
        let len = self.shape(map).len();
        if let Some(i) = self.spare.iter().position(|slot| self.slots[slot.0] == len) {
            return self.spare.swap_remove(i);
        }
        self.slots.push(len);
        Slot(self.slots.len() - 1)
    }

    /// Frees the slot of a map.
    fn release_map(&mut self, map: Map) {
        self.spare.extend(self.maps[map].take());
    }

    /// Returns whether a map is recomputed when the backward pass reads it.
    fn is_recomputed(&self, map: Map) -> bool {
        self.keep == Keep::Sources && source(self.plan, map).is_some()
    }

    fn has_f16_gradient(&self, layer: usize) -> bool {
        Convolution::has_f16_weight_gradient(self.plan.layers[layer].geometry, self.precision)
    }

    /// Returns whether a map is also written in fp16 for weight gradients, which is cheaper than a later
    /// conversion.
    fn has_f16_copy(&self, map: Map) -> bool {
        let reads = |s: &Step| match *s {
            Step::Conv { layer, input, .. } | Step::Shortcut { layer, input, .. } => {
                input == map && self.has_f16_gradient(layer)
            }
            Step::Sum { .. } | Step::Bare { .. } | Step::MaxPool { .. } => false,
        };
        self.keep == Keep::All
            && self.plan.maps[map].channels.is_multiple_of(8)
            && is_normalized(self.plan, map)
            && self.plan.steps.iter().any(reads)
    }

    /// Returns whether a step after `step` reads a map.
    fn is_read_after(&self, step: usize, map: Map) -> bool {
        self.plan.steps[step + 1..].iter().any(|s| s.reads().contains(&Some(map)))
    }

    /// Schedules the forward pass.
    pub fn forward(&mut self) -> Result<Vec<Forward>> {
        let plan = self.plan;
        let images = self.take(0);
        self.maps[0] = Some(images);
        let mut operations = vec![Forward::Load { to: images }];
        for (i, step) in plan.steps.iter().enumerate() {
            match *step {
                Step::Conv { layer, input, output, residual } => {
                    let conv = Conv { layer, input, output };
                    let y = self.convolve(conv, &mut operations)?;
                    let out = self.take(output);
                    let f16 = self.has_f16_copy(output).then(|| {
                        self.f16_slots.push(self.shape(output).len());
                        F16Slot(self.f16_slots.len() - 1)
                    });
                    let residual = match residual.map(|map| (map, plan.maps[map].pending)) {
                        None => None,
                        Some((map, None)) => Some((written(self.maps[map])?, None)),
                        Some((_, Some(layer))) => Some((written(self.outputs[layer])?, Some(layer))),
                    };
                    operations.push(Forward::Normalize { conv, y, residual, out, f16 });
                    (self.maps[output], self.f16_maps[output]) = (Some(out), f16);
                }
                Step::Shortcut { layer, input, output } => {
                    self.convolve(Conv { layer, input, output }, &mut operations)?;
                }
                Step::Sum { .. } | Step::Bare { .. } => return Err(PRE_ACTIVATED),
                Step::MaxPool { input, output } => {
                    let (x, y) = (written(self.maps[input])?, self.take(output));
                    operations.push(Forward::MaxPool { input, output, x, y });
                    self.maps[output] = Some(y);
                }
            }
            self.release_after(i);
        }
        operations.push(Forward::CellMean { x: written(self.maps[plan.maps.len() - 1])? });
        Ok(operations)
    }

    fn convolve(&mut self, conv: Conv, operations: &mut Vec<Forward>) -> Result<Slot> {
        let (y, x) = (self.take(conv.output), written(self.maps[conv.input])?);
        operations.push(Forward::Convolve { conv, x, y });
        self.outputs[conv.layer] = Some(y);
        Ok(y)
    }

    /// Frees the slots that the forward pass does not keep after step `i`.
    fn release_after(&mut self, i: usize) {
        let (plan, step) = (self.plan, self.plan.steps[i]);
        if let (Keep::Nothing, Step::Conv { layer, .. }) = (self.keep, step) {
            self.spare.extend(self.outputs[layer].take());
        }
        for map in step.reads().into_iter().flatten() {
            if self.keep == Keep::All || self.is_read_after(i, map) {
                continue;
            }
            match (self.keep, plan.maps[map].pending) {
                (Keep::Nothing, Some(layer)) => self.spare.extend(self.outputs[layer].take()),
                (Keep::Nothing, None) => self.release_map(map),
                _ if self.is_recomputed(map) => self.release_map(map),
                _ => {}
            }
        }
    }

    /// Schedules the backward pass, after the forward pass.
    pub fn backward(&mut self) -> Result<Vec<Backward>> {
        let plan = self.plan;
        let last = plan.maps.len() - 1;
        let dx = self.take(last);
        self.gradients[last] = Some(dx);
        let mut operations = vec![Backward::CellMean { dx }];
        for step in plan.steps.iter().rev() {
            match *step {
                Step::Conv { layer, input, output, residual } => {
                    let Some(g) = self.gradients[output].take() else { continue };
                    let conv = Conv { layer, input, output };
                    let Some(residual) = residual else {
                        self.layer_backward(conv, g, None, ReluSlot::Own, &mut operations)?;
                        continue;
                    };
                    // g masked by ReLU is the gradient of the residual, so the gradient of y needs its own
                    // memory.
                    let (dy, out) = (self.take(output), written(self.maps[output])?);
                    self.layer_backward(conv, g, Some(dy), ReluSlot::Output(out), &mut operations)?;
                    self.give(residual, g, &mut operations);
                }
                Step::Shortcut { layer, input, output } => {
                    let Some(g) = self.gradients[output].take() else { continue };
                    self.layer_backward(
                        Conv { layer, input, output },
                        g,
                        None,
                        ReluSlot::No,
                        &mut operations,
                    )?;
                }
                Step::Sum { .. } | Step::Bare { .. } => return Err(PRE_ACTIVATED),
                Step::MaxPool { input, output } => {
                    let Some(dy) = self.gradients[output].take() else { continue };
                    let dx = self.take(input);
                    operations.push(Backward::MaxPool { input, output, dy, dx });
                    self.give(input, dx, &mut operations);
                    self.spare.push(dy);
                }
            }
        }
        Ok(operations)
    }

    /// Schedules the gradients of a layer's parameters and input, given the gradient `g` of its output.
    fn layer_backward(
        &mut self,
        conv: Conv,
        g: Slot,
        dy: Option<Slot>,
        relu: ReluSlot,
        operations: &mut Vec<Backward>,
    ) -> Result<()> {
        let Conv { layer, input, output } = conv;
        self.recompute(input, operations)?;
        let (y, f16) = (written(self.outputs[layer])?, self.has_f16_gradient(layer));
        if f16 {
            self.f16_slots[F16_GRADIENT.0] = self.f16_slots[F16_GRADIENT.0].max(self.shape(output).len());
        }
        let extra = self.extra_gradients[output].take();
        operations.push(Backward::Norm { conv, g, extra, relu, y, dy, f16 });
        self.spare.extend(extra);
        let dy = dy.unwrap_or(g);
        let x = written(self.maps[input])?;
        let operands = if f16 { self.f16_operands(input, x) } else { Operands::Plain { x, dy } };
        operations.push(Backward::Weight { conv, operands });
        // The gradient of the images is not needed.
        if input != 0 {
            self.input_gradient(conv, dy, operations);
        }
        self.spare.push(dy);
        if self.is_recomputed(output) {
            self.release_map(output);
        }
        Ok(())
    }

    /// Returns the operands of a weight gradient in fp16: the map's fp16 copy, or a conversion of the map
    /// unless the operation before has already converted it.
    fn f16_operands(&mut self, input: Map, x: Slot) -> Operands {
        if let Some(copy) = self.f16_maps[input] {
            return Operands::F16 { x: copy, convert: None };
        }
        let len = Convolution::f16_shape(self.shape(input)).len();
        self.f16_slots[F16_INPUT.0] = self.f16_slots[F16_INPUT.0].max(len);
        let is_converted = self.converted.replace(input) == Some(input);
        Operands::F16 { x: F16_INPUT, convert: (!is_converted).then_some(x) }
    }

    fn input_gradient(&mut self, conv: Conv, dy: Slot, operations: &mut Vec<Backward>) {
        let input = conv.input;
        let before = self.gradients[input];
        let later = before.is_some()
            && self.extra_gradients[input].is_none()
            && adds_later(self.plan, conv.layer, input);
        let (dx, accumulate) = match before.filter(|_| !later) {
            Some(sum) => (sum, true),
            None => (self.take(input), false),
        };
        operations.push(Backward::Input { conv, dy, dx, accumulate });
        if later { self.extra_gradients[input] = Some(dx) } else { self.gradients[input] = Some(dx) }
    }

    /// Recomputes a map that was not kept from the output of its convolution.
    fn recompute(&mut self, map: Map, operations: &mut Vec<Backward>) -> Result<()> {
        let (Some(layer), None) = (source(self.plan, map), self.maps[map]) else { return Ok(()) };
        let (out, y) = (self.take(map), written(self.outputs[layer])?);
        operations.push(Backward::Recompute { layer, map, y, out });
        self.maps[map] = Some(out);
        Ok(())
    }

    /// Passes on the gradient of a map, adding it to the gradient that is already there.
    fn give(&mut self, map: Map, from: Slot, operations: &mut Vec<Backward>) {
        match self.gradients[map] {
            None => self.gradients[map] = Some(from),
            Some(to) => {
                operations.push(Backward::Add { map, from, to });
                self.spare.push(from);
            }
        }
    }
}
