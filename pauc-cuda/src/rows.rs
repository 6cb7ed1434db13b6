//! Operations on the rows of a matrix: unit length, bias, ReLU, column sums.

use crate::kernel_args::{In, Out, args};
use crate::tensor::{self, Contiguous, Matrix};
use crate::{Buffer, Context, Error, Result, View, ViewMut};
use dfdx::prelude::{HasShape, ZerosTensor};

/// Columns that a block of `pauc_column_sums` sums.
const COLUMNS_PER_BLOCK: usize = 8;

/// Scales rows to unit length, z = x / √(‖x‖² + ε), and returns z with the factors 1 / √(‖x‖² + ε).
///
/// # Shapes
/// `x` (N, D) → z (N, D), factors N
///
/// # Errors
/// If the device fails.
pub fn unit(x: &Matrix, epsilon: f32) -> Result<(Matrix, Buffer)> {
    let (device, (n, dim)) = (x.device().clone(), *x.shape());
    let (on, x) = (Context::of(&device)?, Contiguous::new(x.clone())?);
    let mut z: Matrix = device.try_zeros_like(&(n, dim))?;
    let mut inverse = Buffer::uninit(&on, n)?;
    let to = tensor::new_elements_mut(&mut z)?;
    let args = args![In(x.view()), dim as u32, epsilon, Out(to), Out(&mut inverse)];
    // SAFETY: x and z are contiguous (n, dim), and `inverse` was allocated with n elements. One block per
    // row.
    unsafe { on.launch("pauc_unit", n, args) }?;
    Ok((z, inverse))
}

/// `dx ← dx +` the gradient of [`unit()`], (g − (g·z)·z) times the factors.
///
/// # Shapes
/// `z`, `g` and `dx` (N, D), `inverse` N
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn unit_gradient(
    z: &Contiguous<(usize, usize)>,
    g: View<'_>,
    inverse: &Buffer,
    dx: ViewMut<'_>,
) -> Result<()> {
    let (n, z) = (inverse.len(), z.view());
    if n == 0 || z.len() != g.len() || z.len() != dx.len() || !z.len().is_multiple_of(n) {
        let message =
            format!("{}, {} and {} values do not form {n} rows of one length", z.len(), g.len(), dx.len());
        return Err(Error::Length { operation: "gradient of unit rows", message });
    }
    let args = args![In(z), In(g), In(inverse), (z.len() / n) as u32, Out(dx)];
    // SAFETY: the check above has established that all matrices have n rows of one length, and a factor for
    // each row.
    unsafe { inverse.context()?.launch("pauc_unit_gradient", n, args) }
}

/// `y ← ReLU?(y + bias)` for rows of `cols` values.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn bias(on: &Context, y: ViewMut<'_>, cols: usize, bias: Option<&Buffer>, relu: bool) -> Result<()> {
    if bias.is_some_and(|b| b.len() != cols) || cols == 0 || !y.len().is_multiple_of(cols) {
        let message = format!("{} values do not form rows of {cols}, the length of a bias", y.len());
        return Err(Error::Length { operation: "bias", message });
    }
    let n = y.len();
    // SAFETY: y has n elements and the bias has one per column, as checked. The kernel does not read a null
    // bias.
    unsafe { on.launch_over("pauc_bias", n, args![n, cols as u32, In(bias), relu, Out(y)]) }
}

/// `g ← g` where `out > 0`, and 0 elsewhere.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn relu_gradient(on: &Context, out: View<'_>, g: ViewMut<'_>) -> Result<()> {
    let n = crate::same_length("gradient of relu", &[out.len(), g.len()])?;
    // SAFETY: `same_length` has checked that both have n elements.
    unsafe { on.launch_over("pauc_relu_gradient", n, args![n, In(out), Out(g)]) }
}

/// `sums ← sums +` the sum of each column.
///
/// # Shapes
/// `x` (N, C), `sums` C
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn column_sums(on: &Context, x: View<'_>, sums: &mut Buffer) -> Result<()> {
    let cols = sums.len();
    if cols == 0 || !x.len().is_multiple_of(cols) {
        let message = format!("{} values do not form rows of {cols}", x.len());
        return Err(Error::Length { operation: "sums of columns", message });
    }
    let args = args![In(x), (x.len() / cols) as u32, cols as u32, Out(sums)];
    // SAFETY: the check above has established that x has whole rows of `cols` values, the number of sums.
    unsafe { on.launch("pauc_column_sums", cols.div_ceil(COLUMNS_PER_BLOCK), args) }
}
