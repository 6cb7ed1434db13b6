//! Vectors in the device's memory: sums, moving averages, norms, steps of optimisers.

use crate::context::THREADS;
use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View, args};
use pauc_kernels::optim::{AdamW, Sgd};

fn same(operation: &'static str, lengths: &[usize]) -> Result<usize> {
    if lengths.iter().all(|l| *l == lengths[0]) {
        return Ok(lengths[0]);
    }
    Err(Error::Length { operation, message: format!("lengths {lengths:?} differ") })
}

/// `y ← y + a·x`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn add(on: &Context, y: ViewMut<'_>, a: f32, x: View<'_>) -> Result<()> {
    let n = same("add", &[y.len(), x.len()])?;
    // SAFETY: both have n elements.
    unsafe { on.launch_over("pauc_add", n, args![n, a, x, y]) }
}

/// `y ← y + a[0]·b·x`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn add_times(on: &Context, y: ViewMut<'_>, a: &Buffer, b: f32, x: View<'_>) -> Result<()> {
    let n = same("add", &[y.len(), x.len()])?;
    same("add a single factor", &[a.len(), 1])?;
    // SAFETY: both have n elements, and the factor is one.
    unsafe { on.launch_over("pauc_add_times", n, args![n, a, b, x, y]) }
}

/// `to ← from`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn copy(on: &Context, from: View<'_>, to: ViewMut<'_>) -> Result<()> {
    let n = same("copy", &[from.len(), to.len()])?;
    // SAFETY: both have n elements, and one is borrowed to be written.
    unsafe { on.launch_over("pauc_copy", n, args![n, from, to]) }
}

/// `x ← a·x`.
///
/// # Errors
/// If the device fails.
pub fn scale(x: &mut Buffer, a: f32) -> Result<()> {
    let n = x.len();
    // SAFETY: it has n elements.
    unsafe { x.context()?.launch_over("pauc_scale", n, args![n, a, x]) }
}

/// `to ← to + rate·(from − to)`; with a rate of 1 it is a copy.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn average(to: &mut Buffer, from: &Buffer, rate: f32) -> Result<()> {
    let n = same("moving average", &[to.len(), from.len()])?;
    let on = to.context()?;
    if rate == 1.0 {
        return copy(&on, from.view(), to.view_mut());
    }
    // SAFETY: both have n elements.
    unsafe { on.launch_over("pauc_average", n, args![n, rate, from, to]) }
}

/// Σ x² of each of several buffers, each in one fixed order. All are asked for before the first is waited for.
///
/// # Errors
/// If the device fails.
pub fn squared_norms(on: &Context, of: &[&Buffer]) -> Result<Vec<f64>> {
    let blocks = |b: &Buffer| b.len().div_ceil(8 * THREADS as usize).clamp(1, 1024);
    let all: usize = of.iter().map(|b| blocks(b)).sum();
    let sums = on.device().alloc_zeros::<f64>(all.max(1))?;
    let mut at = *cudarc::driver::DevicePtr::device_ptr(&sums);
    for x in of {
        // SAFETY: x has as many elements as said, and each block writes one of the sums.
        unsafe { on.launch("pauc_square_sums", blocks(x), args![x.len(), *x, at]) }?;
        at += (blocks(x) * size_of::<f64>()) as u64;
    }
    let sums = on.device().dtoh_sync_copy(&sums)?;
    let mut rest = &sums[..];
    let each = of.iter().map(|x| {
        let (own, after) = rest.split_at(blocks(x));
        rest = after;
        own.iter().sum()
    });
    Ok(each.collect())
}

/// d = a·(g + λw); v ← μv + d; w ← w − η·(v, or d + μv with Nesterov).
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn sgd(w: &mut Buffer, g: &Buffer, v: &mut Buffer, step: Sgd) -> Result<()> {
    let n = same("sgd", &[w.len(), g.len(), v.len()])?;
    let Sgd { lr, momentum, weight_decay, adaptation, nesterov } = step;
    let args = args![n, &*w, g, v, lr, momentum, weight_decay, adaptation, nesterov];
    // SAFETY: all have n elements.
    unsafe { w.context()?.launch_over("pauc_sgd", n, args) }
}

/// w ← (1 − ηλ)w; m ← β₁m + (1 − β₁)g; s ← β₂s + (1 − β₂)g²; w ← w − η·m̂/(√ŝ + ε), with m̂ = m/(1 − β₁ᵗ) and
/// ŝ = s/(1 − β₂ᵗ).
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn adamw(w: &mut Buffer, g: &Buffer, m: &mut Buffer, s: &mut Buffer, step: AdamW) -> Result<()> {
    let n = same("adamw", &[w.len(), g.len(), m.len(), s.len()])?;
    let (t, (beta1, beta2)) = (step.step as f64, step.betas);
    let rate = (step.lr / (1.0 - beta1.powf(t))) as f32;
    let correction = (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32;
    let (keep, epsilon) = ((1.0 - step.lr * step.weight_decay) as f32, step.epsilon as f32);
    let (new1, new2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
    let args =
        args![n, &*w, g, m, s, rate, correction, keep, epsilon, beta1 as f32, new1, beta2 as f32, new2];
    // SAFETY: all have n elements.
    unsafe { w.context()?.launch_over("pauc_adamw", n, args) }
}
