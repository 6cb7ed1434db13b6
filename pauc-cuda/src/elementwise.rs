//! Sums and multiples of vectors in device memory.

use crate::kernel_args::{In, Out, args};
use crate::{Buffer, Context, Result, View, ViewMut, same_length};

/// `y ← y + a·x`.
///
/// # Errors
/// If the lengths differ, or the device fails.
pub fn add(on: &Context, y: ViewMut<'_>, a: f32, x: View<'_>) -> Result<()> {
    let n = same_length("add", &[y.len(), x.len()])?;
    // SAFETY: `same_length` has checked that both have n elements.
    unsafe { on.launch_over("pauc_add", n, args![n, a, In(x), Out(y)]) }
}

/// `y ← y + a[0]·b·x`.
///
/// # Errors
/// If the lengths differ, `a` is not a single number, or the device fails.
pub fn add_times(on: &Context, y: ViewMut<'_>, a: &Buffer, b: f32, x: View<'_>) -> Result<()> {
    let n = same_length("add", &[y.len(), x.len()])?;
    same_length("add a single factor", &[a.len(), 1])?;
    // SAFETY: `same_length` has checked that x and y have n elements, and `a` one.
    unsafe { on.launch_over("pauc_add_times", n, args![n, In(a), b, In(x), Out(y)]) }
}

/// `x ← a·x`.
///
/// # Errors
/// If the device fails.
pub fn scale(x: &mut Buffer, a: f32) -> Result<()> {
    let (on, n) = (x.context()?, x.len());
    // SAFETY: the buffer has n elements.
    unsafe { on.launch_over("pauc_scale", n, args![n, a, Out(x)]) }
}
