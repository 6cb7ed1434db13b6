//! Products of `f32` matrices on fp16 tensor cores. Each number is split into the sum of two fp16 numbers, a
//! high and a low part. Of the four products of parts, low times low is dropped. The error is about 2⁻²² of
//! the largest element, comparable to `f32` rounding. Products accumulate in `f32`.

use crate::feature_map::FeatureMap;
use crate::kernel_args::{In, Out, args};
use crate::matmul::{self, MatrixRef};
use crate::{Buffer, Context, Element, Error, Precision, Result, View, ViewMut};
use cudarc::cublas::result::gemm_strided_batched_ex;
use cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_N;
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cudaDataType};
use std::ops::Range;

/// The side of a matrix in a product: rows of the left operand are multiplied with rows of the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A split matrix, scaled by a power of two that brings its largest number to the upper end of fp16's range.
#[derive(Debug)]
pub(crate) struct SplitMatrix {
    /// (`rows`, 3·`dim`): low, high and high parts of a left operand; high, low and high parts of a right
    /// operand. The inner product of two such rows sums the three products of parts.
    parts: FeatureMap,
    rows: usize,
    dim: usize,
    /// The inverse of the power of two, a single number.
    inverse_scale: Buffer,
}

impl SplitMatrix {
    /// Splits rows of `dim` numbers.
    pub fn new(on: &Context, x: View<'_>, dim: usize, side: Side) -> Result<Self> {
        let (n, rows) = (x.len(), x.len() / dim.max(1));
        let blocks = n.div_ceil(on.threads()).clamp(1, on.enough_blocks());
        let (mut largest, mut inverse_scale) = (Buffer::uninit(on, blocks)?, Buffer::uninit(on, 1)?);
        let mut parts = FeatureMap::uninit(on, 3 * n, Element::F16)?;
        let args = args![n, In(x), Out(&mut largest)];
        // SAFETY: x has n elements, and `largest` was allocated with one element per block.
        unsafe { on.launch("pauc_largest", blocks, args) }?;
        let (d, is_right) = (dim as u32, side == Side::Right);
        let (to, scale) = (Out(parts.slice_mut()), Out(&mut inverse_scale));
        let args = args![n, In(x), d, is_right, In(&largest), blocks as u32, to, scale];
        let threads = if dim.is_multiple_of(4) { n / 4 } else { n };
        // SAFETY: x has n elements. `parts` was allocated with 3·n elements, `largest` with `blocks`, and the
        // scale with one.
        unsafe { on.launch_over("pauc_split_f16", threads.max(1), args) }?;
        Ok(SplitMatrix { parts, rows, dim, inverse_scale })
    }

    /// Returns the factor for products with the parts.
    pub fn inverse_scale(&self) -> &Buffer {
        &self.inverse_scale
    }

    /// Returns a range of rows as an operand of a product.
    fn rows(&self, range: Range<usize>) -> Result<MatrixRef<'_>> {
        if range.end > self.rows {
            let message = format!("rows {range:?} of {}", self.rows);
            return Err(Error::Length { operation: "rows of a split matrix", message });
        }
        let width = 3 * self.dim;
        let values = self.parts.slice().part(range.start * width, range.len() * width);
        Ok(MatrixRef::new(values, range.len(), width))
    }
}

/// Computes inner products of all rows of `a` with some of `b`. They still have to be multiplied by both
/// inverse scales.
///
/// # Shapes
/// `a` (N, D), `range` of the rows of `b` (M, D), `to` (N, `range`)
pub(crate) fn product(
    on: &Context,
    a: &SplitMatrix,
    b: &SplitMatrix,
    range: Range<usize>,
    to: ViewMut<'_>,
) -> Result<()> {
    matmul::product(on, a.rows(0..a.rows)?, b.rows(range)?.t(), 0.0, to)
}

/// The number of rows per partial sum, for high and for low parts of weights. Tensor cores round every
/// addition toward zero, so the error grows with the length of a sum. Low parts are smaller by 2¹¹, so their
/// sums may be longer.
const SUM_LENGTH: [usize; 2] = [1024, 8192];

/// Weights of rows for each of n queries, as split numbers, and the sums of the weighted rows.
#[derive(Debug)]
pub(crate) struct WeightedSums {
    n: usize,
    dim: usize,
    /// Per query: the high parts of its weights, then the low parts. Kernels write them.
    pub weights: FeatureMap,
    /// Partial sums: of high parts of weights with high and low parts of rows, (n, 2·dim) each; and of low
    /// parts of weights with high parts of rows, (n, dim) each.
    pub sums: [Buffer; 2],
}

impl WeightedSums {
    /// Allocates up to `max_rows` weights for each of `n` queries.
    pub fn new(on: &Context, n: usize, max_rows: usize, dim: usize) -> Result<Self> {
        let [high, low] = SUM_LENGTH.map(|length| max_rows.div_ceil(length) * n * dim);
        Ok(WeightedSums {
            n,
            dim,
            weights: FeatureMap::uninit(on, 2 * n * max_rows, Element::F16)?,
            sums: [Buffer::uninit(on, 2 * high)?, Buffer::uninit(on, low)?],
        })
    }

    /// Multiplies the weights by a range of rows, one row per weight of a query. Returns the number of
    /// partial sums of each kind.
    pub fn multiply(&mut self, on: &Context, rows: &SplitMatrix, range: Range<usize>) -> Result<[usize; 2]> {
        let (t, (n, dim)) = (range.len(), (self.n, self.dim));
        let counts = SUM_LENGTH.map(|length| t.div_ceil(length));
        let fits = 2 * n * t <= self.weights.len()
            && 2 * counts[0] * n * dim <= self.sums[0].len()
            && counts[1] * n * dim <= self.sums[1].len();
        let countable = [n, dim, 2 * t, 3 * dim].iter().all(|s| *s <= i32::MAX as usize);
        if rows.dim != dim || range.end > rows.rows || !fits || !countable {
            let message =
                format!("cannot sum {n} times {range:?} weights over {} rows of {}", rows.rows, rows.dim);
            return Err(Error::Length { operation: "weighted rows", message });
        }
        let bank = rows.parts.slice().part(range.start * 3 * dim, t * 3 * dim).address();
        let weights = self.weights.slice().address();
        for (part, width) in [(0, 2 * dim), (1, dim)] {
            let length = SUM_LENGTH[part];
            // One call for all sums of full length, and another for the remainder.
            for (first, count, summed) in [(0, t / length, length), (t / length, 1, t % length)] {
                if count * summed == 0 {
                    continue;
                }
                let sums = Sums { n, width, summed, count };
                let from_rows = bank + (first * length * 3 * dim * Element::F16.bytes()) as u64;
                let from_weights = weights + ((part * t + first * length) * Element::F16.bytes()) as u64;
                let to = self.sums[part].address() + (first * n * width * size_of::<f32>()) as u64;
                // SAFETY: `fits` and the check of the range have established the memory of all sums: `first`
                // sums precede these, and their `count · summed` rows are within t.
                unsafe {
                    sums.compute(
                        on,
                        (from_rows, 3 * dim, length * 3 * dim),
                        (from_weights, 2 * t, length),
                        to,
                    )?;
                }
            }
        }
        Ok(counts)
    }
}

/// `count` matrices (`n`, `width`) of sums over `summed` rows each.
struct Sums {
    n: usize,
    width: usize,
    summed: usize,
    count: usize,
}

impl Sums {
    /// Multiplies fp16 matrices into `f32` results. An operand is given by its address, the distance between
    /// its rows, and the distance between the matrices of successive sums.
    ///
    /// # Safety
    /// At the operands' addresses there are `count` times `summed` rows of `width` values, and n rows of as
    /// many weights. Memory at `to` is valid for writes of the sums.
    unsafe fn compute(
        &self,
        on: &Context,
        (rows, row_pitch, row_stride): (u64, usize, usize),
        (weights, weight_pitch, weight_stride): (u64, usize, usize),
        to: u64,
    ) -> Result<()> {
        let (alpha, beta) = (1f32, 0f32);
        // cuBLAS is column-major: it sees the transposes.
        // SAFETY: the caller guarantees the device memory. Host pointers are read before the call returns.
        unsafe {
            gemm_strided_batched_ex(
                on.blas(Precision::F32)?,
                CUBLAS_OP_N,
                CUBLAS_OP_N,
                self.width as i32,
                self.n as i32,
                self.summed as i32,
                std::ptr::from_ref(&alpha).cast(),
                rows as *const _,
                cudaDataType::CUDA_R_16F,
                row_pitch as i32,
                row_stride as i64,
                weights as *const _,
                cudaDataType::CUDA_R_16F,
                weight_pitch as i32,
                weight_stride as i64,
                std::ptr::from_ref(&beta).cast(),
                to as *mut _,
                cudaDataType::CUDA_R_32F,
                self.width as i32,
                (self.n * self.width) as i64,
                self.count as i32,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )?;
        }
        Ok(())
    }
}
