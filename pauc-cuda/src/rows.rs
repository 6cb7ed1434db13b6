//! Matrices of rows: products, biases, ReLU, sums of columns.

use crate::field::{Element, Elements, ElementsMut, Field, Maps};
use crate::memory::{Dense, Matrix, ViewMut};
use crate::{Buffer, Context, Error, Result, View, args, maps};
use cudarc::cublas::result::{gemm_ex, sgemm, sgemm_strided_batched};
use cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use dfdx::prelude::{HasShape, ZerosTensor};
use std::time::Instant;

/// Columns that a block of `pauc_column_sums` adds up.
const COLUMNS: usize = 8;

/// A matrix as a product reads it: row-major, transposed or not.
#[derive(Clone, Copy, Debug)]
pub struct Factor<'a> {
    values: Elements<'a>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'a> Factor<'a> {
    /// A matrix of `rows` × `cols`.
    pub fn new(values: impl Into<Elements<'a>>, rows: usize, cols: usize) -> Self {
        Factor { values: values.into(), rows, cols, transposed: false }
    }

    /// Its transpose.
    pub fn t(self) -> Self {
        Factor { transposed: !self.transposed, ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    fn operation(&self) -> cublasOperation_t {
        if self.transposed { CUBLAS_OP_T } else { CUBLAS_OP_N }
    }
}

/// Rows, inner length and columns of `count` products into so many elements.
fn sizes(
    operation: &'static str,
    count: usize,
    (a, b): (Factor<'_>, Factor<'_>),
    c: usize,
) -> Result<[usize; 3]> {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    let fits = a.values.len() >= count * m * k && b.values.len() >= count * k * n && c >= count * m * n;
    if k == inner && fits && [m, n, k, count].into_iter().all(|size| size <= i32::MAX as usize) {
        return Ok([m, k, n]);
    }
    let message = format!("{count} times {m}×{k} and {inner}×{n} into {c} elements");
    Err(Error::Length { operation, message })
}

/// `c ← a·b + beta·c`, all row-major. Elements may differ; sums have 24 bits.
///
/// # Errors
/// If shapes disagree, or the device fails.
pub fn product<'c>(
    on: &Context,
    a: Factor<'_>,
    b: Factor<'_>,
    beta: f32,
    c: impl Into<ElementsMut<'c>>,
) -> Result<()> {
    let c = c.into();
    let [m, k, n] = sizes("product", 1, (a, b), c.read().len())?;
    if m * n == 0 {
        return Ok(());
    }
    let handle = *on.blas()?.handle();
    let kinds = [b.values.element(), a.values.element(), c.read().element()];
    let (rows, cols, inner, ldb, lda) = (n as i32, m as i32, k as i32, b.cols as i32, a.cols as i32);
    let (left, right, to) = (b.values.address(), a.values.address(), c.address());
    // cuBLAS counts by columns: it sees the transposes, and cᵀ = bᵀ·aᵀ.
    if kinds == [Element::F32; 3] {
        let (left, right, to) = (left as *const f32, right as *const f32, to as *mut f32);
        // SAFETY: the matrices have the sizes, their rows follow one another, and the factors are read before this returns.
        unsafe {
            let (of_b, of_a) = (b.operation(), a.operation());
            sgemm(handle, of_b, of_a, rows, cols, inner, &1.0, left, ldb, right, lda, &beta, to, rows)?;
        }
        return Ok(());
    }
    let [of_b, of_a, of_c] = kinds.map(|e| match e {
        Element::F32 => cudaDataType::CUDA_R_32F,
        Element::Bf16 => cudaDataType::CUDA_R_16BF,
        Element::F16 => cudaDataType::CUDA_R_16F,
    });
    let one = 1f32;
    // SAFETY: as above, with elements of the kinds that are said.
    unsafe {
        gemm_ex(
            handle,
            b.operation(),
            a.operation(),
            rows,
            cols,
            inner,
            std::ptr::from_ref(&one).cast(),
            left as *const _,
            of_b,
            ldb,
            right as *const _,
            of_a,
            lda,
            std::ptr::from_ref(&beta).cast(),
            to as *mut _,
            of_c,
            rows,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )?;
    }
    Ok(())
}

/// [`product`] of `count` pairs of matrices of `f32` that follow one another, each pair into a matrix of its own.
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
    let [m, k, n] = sizes("products", count, (a, b), c.len())?;
    if [a, b].iter().any(|f| f.values.element() != Element::F32) {
        let message = "factors are not of f32".into();
        return Err(Error::Length { operation: "products", message });
    }
    if count * m * n == 0 {
        return Ok(());
    }
    let handle = *on.blas()?.handle();
    // As in `product`.
    // SAFETY: the matrices have the sizes and follow one another, and the factors are read before this returns.
    unsafe {
        sgemm_strided_batched(
            handle,
            b.operation(),
            a.operation(),
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

/// Floating-point operations a second in a product of large square matrices, rounded as [`Context::math`] says: the best of several.
///
/// # Errors
/// If the device fails.
pub fn product_rate(on: &Context) -> Result<f64> {
    let element = on.math().element();
    // What takes less time than this shows how long it takes to start, and what is larger than that wants much memory.
    const LONG: f64 = 1e-3;
    const MOST: usize = 8192;
    let mut n = 128;
    loop {
        // Numbers of all digits: a device is faster with zeros.
        let line: Vec<f32> = (0..n).map(|i| (1.7 * i as f32).sin()).collect();
        let line = Buffer::from_host(on, &line)?;
        let any = |len| Field::any(on, len, element);
        let (mut few, mut a, mut c) = (any(n)?, any(n * n)?, any(n * n)?);
        maps::pixels(on, line.view().into(), n, (few.elements_mut(), Maps::rows(1, n)))?;
        let few = few.elements();
        product(on, Factor::new(few, n, 1), Factor::new(few, 1, n), 0.0, a.elements_mut())?;
        let a = Factor::new(a.elements(), n, n);
        let mut least = f64::INFINITY;
        for _ in 0..5 {
            on.device().synchronize()?;
            let start = Instant::now();
            product(on, a, a.t(), 0.0, c.elements_mut())?;
            on.device().synchronize()?;
            least = least.min(start.elapsed().as_secs_f64());
        }
        if least > LONG || n == MOST {
            return Ok(2.0 * (n as f64).powi(3) / least);
        }
        n *= 2;
    }
}

/// Rows of unit length, z = x / √(‖x‖² + ε), and the factors 1 / √(‖x‖² + ε).
///
/// # Errors
/// If the device fails.
pub fn unit(x: &Matrix, epsilon: f32) -> Result<(Matrix, Buffer)> {
    let (device, (n, dim)) = (x.device().clone(), *x.shape());
    let (on, x) = (Context::of(&device)?, Dense::new(x.clone())?);
    let z: Matrix = device.try_zeros_like(&(n, dim))?;
    let inverse = Buffer::any(&on, n)?;
    let args = args![x.view(), dim as u32, epsilon, ViewMut::part_of(&z, 0, n * dim)?, &inverse];
    // SAFETY: both matrices are n rows of dim, and there is a factor a row.
    unsafe { on.launch("pauc_unit", n, args) }?;
    Ok((z, inverse))
}

/// `dx ← dx +` the gradient of [`unit()`], (g − (g·z)·z) times the factors.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn unit_gradient(
    z: &Dense<(usize, usize)>,
    g: View<'_>,
    inverse: &Buffer,
    dx: ViewMut<'_>,
) -> Result<()> {
    let (n, z) = (inverse.len(), z.view());
    if n == 0 || z.len() != g.len() || z.len() != dx.len() || !z.len().is_multiple_of(n) {
        let message = format!("{}, {} and {} values in {n} rows", z.len(), g.len(), dx.len());
        return Err(Error::Length { operation: "gradient of unit rows", message });
    }
    let args = args![z, g, inverse, (z.len() / n) as u32, dx];
    // SAFETY: all matrices are of n rows, and there is a factor a row.
    unsafe { inverse.context()?.launch("pauc_unit_gradient", n, args) }
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
    unsafe { on.launch("pauc_column_sums", cols.div_ceil(COLUMNS), args) }
}
