//! The passes of a convolutional network as lists of operations on slots of memory.
//!
//! The slot of each feature map and gradient, and when a slot is reused, depend only on the blueprint, on the
//! maps that are kept, and on the precision. The schedule is computed once, here. [`super::workspace`]
//! executes the operations. The network's memory is that of the slots.
//!
//! | module | contents |
//! |---|---|
//! | `scheduler` | walks through the steps of a network and assigns slots |

mod scheduler;
#[cfg(test)]
mod tests;

use crate::encoders::blueprint::{Blueprint, Map, Step};
use pauc_cuda::feature_map::MapShape;
use pauc_cuda::{Element, Precision, Result};
use scheduler::Scheduler;

/// The maps that a forward pass keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// All, for the backward pass.
    All,
    /// Activation checkpointing: only maps that cannot be recomputed from the output of one convolution. That
    /// output is always kept.
    Sources,
    /// None: there is no backward pass, and memory is reused once it has been read.
    Nothing,
}

/// The memory of a feature map, of the output of a convolution, or of a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub usize);

/// The memory of a map or gradient in fp16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct F16Slot(pub usize);

/// The input of a convolution whose weight gradient is computed in fp16. It is the only input that a backward
/// pass converts.
pub(super) const F16_INPUT: F16Slot = F16Slot(0);
/// The output gradient of such a convolution.
pub(super) const F16_GRADIENT: F16Slot = F16Slot(1);

/// The layer, input map and output map of a convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    pub layer: usize,
    pub input: Map,
    pub output: Map,
}

/// An operation of a forward pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Forward {
    /// Loads images into map 0, with padded channels.
    Load { to: Slot },
    /// y ← conv(x), and computes the coefficients of its normalization.
    Convolve { conv: Conv, x: Slot, y: Slot },
    /// out ← ReLU(norm(y) + residual). The normalization of the residual's layer may still be pending.
    Normalize {
        conv: Conv,
        y: Slot,
        residual: Option<(Slot, Option<usize>)>,
        out: Slot,
        f16: Option<F16Slot>,
    },
    /// Max pooling.
    MaxPool { input: Map, output: Map, x: Slot, y: Slot },
    /// Features ← means of the cells of the last map.
    CellMean { x: Slot },
}

/// The source of the ReLU mask of a normalization: [`pauc_cuda::norm::Relu`].
#[derive(Clone, Copy, Debug)]
pub(super) enum ReluSlot {
    No,
    Own,
    Output(Slot),
}

/// The operands of a weight gradient.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operands {
    /// Map and gradient in the network's precision.
    Plain { x: Slot, dy: Slot },
    /// Both in fp16, the gradient in [`F16_GRADIENT`]. If `convert` is given, it is first converted to `x`.
    F16 { x: F16Slot, convert: Option<Slot> },
}

/// An operation of a backward pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Backward {
    /// dx ← the gradient of the last map from that of the features.
    CellMean { dx: Slot },
    /// out ← ReLU(norm(y)), a map that the forward pass did not keep.
    Recompute { layer: usize, map: Map, y: Slot, out: Slot },
    /// The gradients of a normalization. `extra` is first added to `g`. The gradient of y is written to `dy`,
    /// or over `g` if `dy` is `None`, and with `f16` also to [`F16_GRADIENT`].
    Norm { conv: Conv, g: Slot, extra: Option<Slot>, relu: ReluSlot, y: Slot, dy: Option<Slot>, f16: bool },
    /// Accumulates the weight gradient of a convolution.
    Weight { conv: Conv, operands: Operands },
    /// dx ← the input gradient of a convolution; added to dx if `accumulate`.
    Input { conv: Conv, dy: Slot, dx: Slot, accumulate: bool },
    /// dx ← the gradient of max pooling.
    MaxPool { input: Map, output: Map, dy: Slot, dx: Slot },
    /// to ← to + from, two gradients of one map.
    Add { map: Map, from: Slot, to: Slot },
}

/// The operations of both passes, and the slots they use.
#[derive(Debug)]
pub(super) struct Schedule {
    pub forward: Vec<Forward>,
    /// Empty with [`Keep::Nothing`].
    pub backward: Vec<Backward>,
    /// The number of elements per image of each slot.
    slots: Vec<usize>,
    f16_slots: Vec<usize>,
}

impl Schedule {
    /// Schedules the passes of a network.
    ///
    /// # Errors
    /// If a step of the blueprint reads a map that no earlier step writes.
    pub(super) fn new(plan: &Blueprint, keep: Keep, precision: Precision) -> Result<Self> {
        let mut scheduler = Scheduler::new(plan, keep, precision);
        let forward = scheduler.forward()?;
        let backward = if keep == Keep::Nothing { Vec::new() } else { scheduler.backward()? };
        Ok(Schedule { forward, backward, slots: scheduler.slots, f16_slots: scheduler.f16_slots })
    }

    /// Returns the numbers of slots: those in the network's precision, and those in fp16.
    pub(super) fn slot_counts(&self) -> [usize; 2] {
        [self.slots.len(), self.f16_slots.len()]
    }

    /// Returns the number of elements of a slot for a batch.
    pub(super) fn slot_len(&self, slot: Slot, batch: usize) -> usize {
        batch * self.slots[slot.0]
    }

    /// Returns the number of elements of an fp16 slot for a batch.
    pub(super) fn f16_slot_len(&self, slot: F16Slot, batch: usize) -> usize {
        batch * self.f16_slots[slot.0]
    }

    /// Returns the bytes of all slots for a batch.
    pub(super) fn bytes(&self, batch: usize, element: Element) -> usize {
        let words = self.f16_slots.iter().map(|per_image| (batch * per_image).div_ceil(2));
        batch * self.slots.iter().sum::<usize>() * element.bytes() + words.sum::<usize>() * size_of::<f32>()
    }
}

/// Returns the shape of a map for a batch.
pub(super) fn shape(plan: &Blueprint, map: Map, batch: usize, precision: Precision) -> MapShape {
    let m = plan.maps[map];
    let channels = if map == 0 { Element::of(precision).padded_channels(m.channels) } else { m.channels };
    MapShape { batch, height: m.height, width: m.width, channels }
}

/// Returns the number of elements that split operands need for a batch: the parts of both operands in the
/// largest product of each kind (input and weights, input and output gradient, output gradient and weights).
pub(super) fn split_elements(plan: &Blueprint, batch: usize, precision: Precision) -> usize {
    let mut most = [0, 0];
    for step in &plan.steps {
        if let Step::Conv { layer, input, output, .. } | Step::Shortcut { layer, input, output } = *step {
            let g = plan.layers[layer].geometry;
            let [input, output] = [input, output].map(|map| shape(plan, map, batch, precision));
            let weights = g.outputs * g.kernel * g.kernel * input.channels;
            most = [most[0].max(input.len()).max(output.len()), most[1].max(output.len()).max(weights)];
        }
    }
    2 * (most[0] + most[1])
}
