//! Matrix products, through cuBLAS.

use crate::feature_map::{FeatureMap, MapShape, MapSlice, MapSliceMut, convert};
use crate::{Buffer, Context, Element, Error, Precision, Result, ViewMut};
use cudarc::cublas::result::{gemm_ex, sgemm, sgemm_strided_batched};
use cudarc::cublas::sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use std::time::Instant;

/// A borrowed row-major matrix as an operand of a product, optionally transposed.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    values: MapSlice<'a>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'a> MatrixRef<'a> {
    /// Creates a matrix (`rows`, `cols`). Products check the number of values.
    pub fn new(values: impl Into<MapSlice<'a>>, rows: usize, cols: usize) -> Self {
        MatrixRef { values: values.into(), rows, cols, transposed: false }
    }

    /// Returns the transpose.
    pub fn t(self) -> Self {
        MatrixRef { transposed: !self.transposed, ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    fn operation(&self) -> cublasOperation_t {
        if self.transposed { CUBLAS_OP_T } else { CUBLAS_OP_N }
    }

    /// Returns the leading dimension.
    fn pitch(&self) -> i32 {
        self.cols as i32
    }
}

/// Checks the operands of `count` products with `c` result elements in total. Returns (m, k, n) of each
/// product.
fn check(
    operation: &'static str,
    count: usize,
    (a, b): (MatrixRef<'_>, MatrixRef<'_>),
    c: usize,
) -> Result<[usize; 3]> {
    let ((m, k), (inner, n)) = (a.shape(), b.shape());
    let fits = a.values.len() >= count * m * k && b.values.len() >= count * k * n && c >= count * m * n;
    if k == inner && fits && [m, n, k, count].into_iter().all(|size| size <= i32::MAX as usize) {
        return Ok([m, k, n]);
    }
    let message = format!("cannot multiply {count} times {m}×{k} by {inner}×{n} into {c} elements");
    Err(Error::Length { operation, message })
}

/// Returns cuBLAS's name of an element type.
pub(crate) fn data_type(element: Element) -> cudaDataType {
    match element {
        Element::F32 => cudaDataType::CUDA_R_32F,
        Element::Bf16 => cudaDataType::CUDA_R_16BF,
        Element::F16 => cudaDataType::CUDA_R_16F,
    }
}

/// `c ← a·b + beta·c`, row-major, with any element types, accumulated in `f32`. Operands of `f32` are not
/// rounded.
///
/// # Shapes
/// `a` (m, k), `b` (k, n), `c` (m, n)
///
/// # Errors
/// If shapes disagree, or the device fails.
pub fn product<'c>(
    on: &Context,
    a: MatrixRef<'_>,
    b: MatrixRef<'_>,
    beta: f32,
    c: impl Into<MapSliceMut<'c>>,
) -> Result<()> {
    rounded_product(on, Precision::F32, a, b, beta, c)
}

/// Like [`product`], with operands of `f32` rounded to `precision`.
///
/// # Errors
/// As [`product`].
pub fn rounded_product<'c>(
    on: &Context,
    precision: Precision,
    a: MatrixRef<'_>,
    b: MatrixRef<'_>,
    beta: f32,
    c: impl Into<MapSliceMut<'c>>,
) -> Result<()> {
    let c = c.into();
    let [m, k, n] = check("product", 1, (a, b), c.len())?;
    if m * n == 0 {
        return Ok(());
    }
    let handle = on.blas(precision)?;
    let (rows, cols, inner) = (n as i32, m as i32, k as i32);
    let (op_b, op_a) = (b.operation(), a.operation());
    let (left, right, to) = (b.values.address(), a.values.address(), c.address());
    let elements = [b.values.element(), a.values.element(), c.element()];
    // cuBLAS is column-major: it sees the transposes, and computes cᵀ = bᵀ·aᵀ.
    if elements == [Element::F32; 3] {
        let (left, right, to) = (left as *const f32, right as *const f32, to as *mut f32);
        // SAFETY: `check` has established that the three slices hold contiguous matrices of these sizes. Host
        // pointers are read before the call returns.
        unsafe {
            let (ldb, lda) = (b.pitch(), a.pitch());
            sgemm(handle, op_b, op_a, rows, cols, inner, &1.0, left, ldb, right, lda, &beta, to, rows)?;
        }
        return Ok(());
    }
    let [type_b, type_a, type_c] = elements.map(data_type);
    let alpha = 1f32;
    // SAFETY: `check` has established that the three slices hold contiguous matrices of these sizes, with the
    // element types passed here. Host pointers are read before the call returns.
    unsafe {
        gemm_ex(
            handle,
            op_b,
            op_a,
            rows,
            cols,
            inner,
            std::ptr::from_ref(&alpha).cast(),
            left as *const _,
            type_b,
            b.pitch(),
            right as *const _,
            type_a,
            a.pitch(),
            std::ptr::from_ref(&beta).cast(),
            to as *mut _,
            type_c,
            rows,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )?;
    }
    Ok(())
}

/// [`rounded_product`] of `count` pairs of `f32` matrices. The matrices of an operand are contiguous, and so
/// are the results.
///
/// # Shapes
/// `a` (`count`, m, k), `b` (`count`, k, n), `c` (`count`, m, n)
///
/// # Errors
/// As [`product`].
pub fn batched_product(
    on: &Context,
    precision: Precision,
    count: usize,
    (a, b): (MatrixRef<'_>, MatrixRef<'_>),
    beta: f32,
    c: ViewMut<'_>,
) -> Result<()> {
    const OPERATION: &str = "batched product";
    let [m, k, n] = check(OPERATION, count, (a, b), c.len())?;
    if [a, b].iter().any(|operand| operand.values.element() != Element::F32) {
        let message = "expected operands of f32".into();
        return Err(Error::Length { operation: OPERATION, message });
    }
    if count * m * n == 0 {
        return Ok(());
    }
    let handle = on.blas(precision)?;
    // Column-major, as in `product`.
    // SAFETY: `check` has established that the three slices hold `count` contiguous matrices of these sizes,
    // one after the other. Host pointers are read before the call returns.
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
            b.pitch(),
            (k * n) as i64,
            a.values.address() as *const f32,
            a.pitch(),
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

/// Measures the floating-point operations per second of a product of large square matrices, with the element
/// type of feature maps at this precision. Returns the best of several runs.
///
/// # Errors
/// If the device fails.
pub fn product_rate(on: &Context, precision: Precision) -> Result<f64> {
    let element = Element::of(precision);
    // Shorter products measure the launch; larger ones need too much memory.
    const LONG_ENOUGH: f64 = 1e-3;
    const LARGEST: usize = 8192;
    let mut n = 128;
    loop {
        // Numbers that use all mantissa bits: a device is faster with zeros.
        let line: Vec<f32> = (0..n).map(|i| (1.7 * i as f32).sin()).collect();
        let line = Buffer::from_host(on, &line)?;
        let uninit = |len| FeatureMap::uninit(on, len, element);
        let (mut vector, mut a, mut c) = (uninit(n)?, uninit(n * n)?, uninit(n * n)?);
        convert(on, line.view().into(), n, (vector.slice_mut(), MapShape::matrix(1, n)))?;
        let vector = vector.slice();
        let (column, row) = (MatrixRef::new(vector, n, 1), MatrixRef::new(vector, 1, n));
        rounded_product(on, precision, column, row, 0.0, a.slice_mut())?;
        let a = MatrixRef::new(a.slice(), n, n);
        let mut least = f64::INFINITY;
        for _ in 0..5 {
            on.device().synchronize()?;
            let start = Instant::now();
            rounded_product(on, precision, a, a.t(), 0.0, c.slice_mut())?;
            on.device().synchronize()?;
            least = least.min(start.elapsed().as_secs_f64());
        }
        if least > LONG_ENOUGH || n == LARGEST {
            return Ok(2.0 * (n as f64).powi(3) / least);
        }
        n *= 2;
    }
}
