//! Matrices of rows: products, biases, ReLU, sums of columns.

use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::cublas::result::{sgemm, sgemm_strided_batched};
use cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};

/// A matrix as a product reads it: row-major, transposed or not.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    values: View<'a>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'a> Factor<'a> {
    /// A matrix of `rows` × `cols`.
    pub fn new(values: View<'a>, rows: usize, cols: usize) -> Self {
        Factor { values, rows, cols, transposed: false }
    }

    /// Its transpose.
    pub fn t(self) -> Self {
        Factor { transposed: !self.transposed, ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }
}

/// `c ← a·b + beta·c`, all row-major.
///
/// # Errors
/// If shapes disagree, or the device fails.
pub fn product(on: &Context, a: Factor<'_>, b: Factor<'_>, beta: f32, c: ViewMut<'_>) -> Result<()> {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    let fits = a.values.len() >= m * k && b.values.len() >= k * n && c.len() >= m * n;
    let largest = [m, n, k].into_iter().max().unwrap_or(0);
    if k != inner || !fits || largest > i32::MAX as usize {
        let message = format!("{m}×{k} times {inner}×{n} into {} elements", c.len());
        return Err(Error::Length { operation: "product", message });
    }
    if m * n == 0 {
        return Ok(());
    }
    let operation = |f: &Factor<'_>| if f.transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
    let handle = *on.blas()?.handle();
    // cuBLAS counts by columns: it sees the transposes, and cᵀ = bᵀ·aᵀ.
    // SAFETY: the matrices have the sizes, their rows follow one another, and the factors are read before this returns.
    unsafe {
        sgemm(
            handle,
            operation(&b),
            operation(&a),
            n as i32,
            m as i32,
            k as i32,
            &1.0,
            b.values.address() as *const f32,
            b.cols as i32,
            a.values.address() as *const f32,
            a.cols as i32,
            &beta,
            c.address() as *mut f32,
            n as i32,
        )?;
    }
    Ok(())
}

/// [`product`] of `count` pairs of matrices that follow one another, each pair into a matrix of its own.
///
/// # Errors
/// As [`product`].
pub fn products(
    on: &Context,
    count: usize,
    a: Factor<'_>,
    b: Factor<'_>,
    beta: f32,
    c: ViewMut<'_>,
) -> Result<()> {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    let fits = a.values.len() >= count * m * k && b.values.len() >= count * k * n && c.len() >= count * m * n;
    let largest = [m, n, k, count].into_iter().max().unwrap_or(0);
    if k != inner || !fits || largest > i32::MAX as usize {
        let message = format!("{count} times {m}×{k} and {inner}×{n} into {} elements", c.len());
        return Err(Error::Length { operation: "products", message });
    }
    if count * m * n == 0 {
        return Ok(());
    }
    let operation = |f: &Factor<'_>| if f.transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
    let handle = *on.blas()?.handle();
    // As in `product`.
    // SAFETY: the matrices have the sizes and follow one another, and the factors are read before this returns.
    unsafe {
        sgemm_strided_batched(
            handle,
            operation(&b),
            operation(&a),
            n as i32,
            m as i32,
            k as i32,
            &1.0,
            b.values.address() as *const f32,
            b.cols as i32,
            (k * n) as i64,
            a.values.address() as *const f32,
            a.cols as i32,
            (m * k) as i64,
            &beta,
            c.address() as *mut f32,
            n as i32,
            (m * n) as i64,
            count as i32,
        )?;
    }
    Ok(())
}

/// `y ← ReLU?(y + bias)` for rows of as many values as `cols`.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn bias(on: &Context, y: ViewMut<'_>, cols: usize, bias: Option<&Buffer>, relu: bool) -> Result<()> {
    if bias.is_some_and(|b| b.len() != cols) || cols == 0 || !y.len().is_multiple_of(cols) {
        let message = format!("{} values in rows of {cols}", y.len());
        return Err(Error::Length { operation: "bias", message });
    }
    let (n, b) = (y.len(), bias.map_or(0, Buffer::address));
    // SAFETY: y has n elements, the bias one a column, and an absent one is address 0.
    unsafe { on.launch_over("pauc_bias", n, args![n, cols as u32, b, relu, y]) }
}

/// `g ← g` where `out > 0`, and 0 elsewhere.
///
/// # Errors
/// If lengths differ, or the device fails.
pub fn relu_gradient(on: &Context, out: View<'_>, g: ViewMut<'_>) -> Result<()> {
    if out.len() != g.len() {
        let message = format!("{} and {} values", out.len(), g.len());
        return Err(Error::Length { operation: "gradient of relu", message });
    }
    let n = g.len();
    // SAFETY: both have n elements.
    unsafe { on.launch_over("pauc_relu_gradient", n, args![n, out, g]) }
}

/// `sums ← sums +` the sum of each column.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn column_sums(on: &Context, x: View<'_>, sums: &mut Buffer) -> Result<()> {
    let cols = sums.len();
    if cols == 0 || !x.len().is_multiple_of(cols) {
        let message = format!("{} values in rows of {cols}", x.len());
        return Err(Error::Length { operation: "sums of columns", message });
    }
    let args = args![x, (x.len() / cols) as u32, cols as u32, sums];
    // SAFETY: x has whole rows.
    unsafe { on.launch("pauc_column_sums", cols.div_ceil(32), args) }
}
