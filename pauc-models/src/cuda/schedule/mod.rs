//! The passes of a convolutional network as lists of operations on slots of memory.
//!
//! Which map or gradient lies where, and when its memory is used again, depends only on the blueprint, on
//! what is kept and on the precision. It is decided here, once. [`super::workspace`] carries the operations
//! out, and the memory that a network takes is that of the slots.
//!
//! | module | contents |
//! |---|---|
//! | `scheduler` | the pass through a network's steps that assigns slots |

mod scheduler;
#[cfg(test)]
mod tests;

use crate::encoders::blueprint::{Blueprint, Map, Step};
use pauc_cuda::feature_map::MapShape;
use pauc_cuda::{Element, Precision, Result};
use scheduler::Scheduler;

/// Which maps a forward pass keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// All, for the backward pass.
    All,
    /// For the backward pass, those that cannot be recomputed from one convolution's output. That is kept in
    /// any case.
    Sources,
    /// None: there is no backward pass, and memory is used again once it has been read.
    Nothing,
}

/// Memory of a map, of a convolution's output or of a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub usize);

/// Memory of a map or gradient in fp16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct F16Slot(pub usize);

/// The input of a convolution whose gradient of the weights is in fp16: the only one of a backward pass that
/// is converted there.
pub(super) const F16_INPUT: F16Slot = F16Slot(0);
/// The gradient of the output of such a convolution.
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
    /// Images become map 0, with more channels.
    Load { to: Slot },
    /// y ← conv(x), and the coefficients of its normalization.
    Convolve { conv: Conv, x: Slot, y: Slot },
    /// out ← ReLU(norm(y) + residual), where the residual may have a layer whose normalization is still to be
    /// applied.
    Normalize {
        conv: Conv,
        y: Slot,
        residual: Option<(Slot, Option<usize>)>,
        out: Slot,
        f16: Option<F16Slot>,
    },
    /// The maximum of windows.
    MaxPool { input: Map, output: Map, x: Slot, y: Slot },
    /// Features ← means of cells of the last map.
    CellMean { x: Slot },
}

/// The ReLU behind a normalization, as its gradient needs it: [`pauc_cuda::norm::Relu`].
#[derive(Clone, Copy, Debug)]
pub(super) enum ReluSlot {
    No,
    Own,
    Output(Slot),
}

/// What the gradient of the weights reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operands {
    /// Map and gradient as they are.
    Plain { x: Slot, dy: Slot },
    /// Both in fp16, the gradient in [`F16_GRADIENT`]. `convert` is what has to be converted to `x` before.
    F16 { x: F16Slot, convert: Option<Slot> },
}

/// An operation of a backward pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Backward {
    /// dx ← the gradient of the last map from that of the features.
    CellMean { dx: Slot },
    /// out ← ReLU(norm(y)): a map that the forward pass did not keep.
    Recompute { layer: usize, map: Map, y: Slot, out: Slot },
    /// The gradients of a normalization: `extra` is added to `g`, and that of y is written to `dy`, or in
    /// place of `g` without one; to [`F16_GRADIENT`] too if `f16`.
    Norm { conv: Conv, g: Slot, extra: Option<Slot>, relu: ReluSlot, y: Slot, dy: Option<Slot>, f16: bool },
    /// Accumulates the gradient of a convolution's weights.
    Weight { conv: Conv, operands: Operands },
    /// dx ← the gradient of a convolution's input, added to what is there if `accumulate`.
    Input { conv: Conv, dy: Slot, dx: Slot, accumulate: bool },
    /// dx ← the gradient of the maximum of windows.
    MaxPool { input: Map, output: Map, dy: Slot, dx: Slot },
    /// to ← to + from, gradients of one map.
    Add { map: Map, from: Slot, to: Slot },
}

/// The operations of both passes, and the slots that they use.
#[derive(Debug)]
pub(super) struct Schedule {
    pub forward: Vec<Forward>,
    /// None with [`Keep::Nothing`].
    pub backward: Vec<Backward>,
    /// Elements per image of each slot.
    slots: Vec<usize>,
    f16_slots: Vec<usize>,
}

impl Schedule {
    /// The passes of a network.
    ///
    /// # Errors
    /// If steps of the blueprint read what no step has written.
    pub(super) fn new(plan: &Blueprint, keep: Keep, precision: Precision) -> Result<Self> {
        let mut scheduler = Scheduler::new(plan, keep, precision);
        let forward = scheduler.forward()?;
        let backward = if keep == Keep::Nothing { Vec::new() } else { scheduler.backward()? };
        Ok(Schedule { forward, backward, slots: scheduler.slots, f16_slots: scheduler.f16_slots })
    }

    /// The numbers of slots: of elements as the precision has them, and of fp16.
    pub(super) fn slot_counts(&self) -> [usize; 2] {
        [self.slots.len(), self.f16_slots.len()]
    }

    /// Elements of a slot for a batch.
    pub(super) fn slot_len(&self, slot: Slot, batch: usize) -> usize {
        batch * self.slots[slot.0]
    }

    /// Elements of a slot of fp16 for a batch.
    pub(super) fn f16_slot_len(&self, slot: F16Slot, batch: usize) -> usize {
        batch * self.f16_slots[slot.0]
    }

    /// Bytes of all slots for a batch.
    pub(super) fn bytes(&self, batch: usize, element: Element) -> usize {
        let words = self.f16_slots.iter().map(|per_image| (batch * per_image).div_ceil(2));
        batch * self.slots.iter().sum::<usize>() * element.bytes() + words.sum::<usize>() * size_of::<f32>()
    }
}

/// The shape of a map for a batch.
pub(super) fn shape(plan: &Blueprint, map: Map, batch: usize, precision: Precision) -> MapShape {
    let m = plan.maps[map];
    let channels = if map == 0 { Element::of(precision).padded_channels(m.channels) } else { m.channels };
    MapShape { batch, height: m.height, width: m.width, channels }
}

/// Elements, for a batch, of the parts of both operands of the largest product of each kind, if operands are
/// split: of an input and weights, an input and an output's gradient, or that and weights.
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
