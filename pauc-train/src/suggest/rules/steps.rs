//! The optimizer's steps.

use super::Choice;
use crate::suggest::count;
use crate::suggest::machine::Machine;
use crate::suggest::negatives::power_of_two;

/// Steps that a run should have, if it can: fewer, larger batches learn less in the same time.
const STEPS: usize = 2000;

pub(super) fn batch(machine: &Machine, images: usize, presentations: usize) -> Choice<usize> {
    let most = if machine.is_gpu { 512 } else { 256 };
    let by_steps = power_of_two(presentations / STEPS).clamp(32, most);
    let batch = by_steps.min(power_of_two(images / 2)).max(2);
    let steps = (images / batch).max(1);
    let why = if batch < by_steps {
        format!("at most half of the {} training images", count(images))
    } else {
        format!("at least {STEPS} steps if possible, and 32 to {most} images per step")
    };
    Choice::new(batch, format!("{why}: {} steps per epoch.", count(steps)))
}

/// Values that an encoder keeps per pixel of an image and view, roughly.
const KEPT_PER_PIXEL: usize = 250;

/// Splits a batch whose activations would take more than a quarter of the memory.
pub(super) fn micro_batch(machine: &Machine, size: usize, batch: usize) -> Option<Choice<usize>> {
    let memory = machine.memory.filter(|_| !machine.is_gpu)?;
    let per_image = 2 * 4 * KEPT_PER_PIXEL * size * size;
    let fitting = power_of_two((memory / 4) as usize / per_image).max(2);
    let why = format!(
        "{} of memory: the activations of {fitting} images at a time take less than a quarter.",
        crate::memory::bytes(memory.into())
    );
    (fitting < batch).then(|| Choice::new(fitting, why))
}

pub(super) fn learning_rate(batch: usize) -> Choice<f64> {
    let exact = (0.1 * (batch as f64 / 128.0).sqrt()).clamp(0.02, 0.2);
    let rounded = (exact * 100.0).round() / 100.0;
    Choice::new(rounded, format!("0.1 for batches of 128, with the square root of the batch: {batch}."))
}
