//! Vectors in the device's memory: sums and copies.

use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View, args};

pub(crate) fn same(operation: &'static str, lengths: &[usize]) -> Result<usize> {
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
