//! Products of `f32` matrices on tensor cores: each number is the sum of two halves with eleven digits each, and of the four
//! products of halves the smallest is left out. What that leaves away is some 2⁻²² of the largest number, about as much as `f32`
//! rounds away; sums have 24 bits.

use crate::field::{Element, Field};
use crate::memory::ViewMut;
use crate::rows::{self, Factor};
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::cublas::result::gemm_strided_batched_ex;
use cudarc::cublas::sys::cublasOperation_t::CUBLAS_OP_N;
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cudaDataType};
use std::ops::Range;

/// Which factor of a product: rows of the one meet rows of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A matrix as halves: rows of three times as many, times a power of two that brings the largest number to the upper end of what
/// halves can be.
#[derive(Debug)]
pub(crate) struct Halves {
    field: Field,
    rows: usize,
    dim: usize,
    /// What takes the power of two back.
    unit: Buffer,
}

impl Halves {
    /// Of rows of `dim` numbers.
    pub fn new(on: &Context, x: View<'_>, dim: usize, side: Side) -> Result<Self> {
        let (n, rows) = (x.len(), x.len() / dim.max(1));
        let blocks = n.div_ceil(on.threads()).clamp(1, on.enough_blocks());
        let (found, unit) = (Buffer::any(on, blocks)?, Buffer::any(on, 1)?);
        let mut field = Field::any(on, 3 * n, Element::F16)?;
        let (d, second) = (dim as u32, side == Side::Right);
        // SAFETY: x has n elements, the halves three times as many, and a block writes one number.
        unsafe {
            on.launch("pauc_largest", blocks, args![n, x, &found])?;
            let args = args![n, x, d, second, &found, blocks as u32, &field.elements_mut(), &unit];
            on.launch_over("pauc_halves", (if dim.is_multiple_of(4) { n / 4 } else { n }).max(1), args)?;
        }
        Ok(Halves { field, rows, dim, unit })
    }

    /// What products are to be multiplied with.
    pub fn unit(&self) -> &Buffer {
        &self.unit
    }

    /// Some of its rows, one after the other.
    fn part(&self, rows: Range<usize>) -> Result<Factor<'_>> {
        let width = 3 * self.dim;
        let values = self.field.elements().part(rows.start * width, rows.len() * width);
        if rows.end > self.rows {
            let message = format!("rows {rows:?} of {}", self.rows);
            return Err(Error::Length { operation: "rows of halves", message });
        }
        Ok(Factor::new(values, rows.len(), width))
    }
}

/// Inner products of all rows of `a` with some of `b`, still to be multiplied with both units.
pub(crate) fn product(
    on: &Context,
    a: &Halves,
    b: &Halves,
    some: Range<usize>,
    to: ViewMut<'_>,
) -> Result<()> {
    rows::product(on, a.part(0..a.rows)?, b.part(some)?.t(), 0.0, to)
}

/// How many rows a sum of products goes over before it is put aside, since tensor cores round towards zero with every addition: of
/// upper halves of weights, and of lower ones, which are smaller by 2¹¹.
const SUMMED: [usize; 2] = [1024, 8192];

/// Weights of rows, as halves, and what they give.
#[derive(Debug)]
pub(crate) struct Weights {
    n: usize,
    dim: usize,
    /// For each of n rows the upper halves of its weights, then the lower ones.
    pub halves: Field,
    /// Of upper halves with upper and lower ones, (n, 2·dim) a part; of lower halves with upper ones, (n, dim).
    pub products: [Buffer; 2],
}

impl Weights {
    /// For up to `most` weights in each of `n` rows.
    pub fn new(on: &Context, n: usize, most: usize, dim: usize) -> Result<Self> {
        let [both, lower] = SUMMED.map(|s| most.div_ceil(s) * n * dim);
        Ok(Weights {
            n,
            dim,
            halves: Field::any(on, 2 * n * most, Element::F16)?,
            products: [Buffer::any(on, 2 * both)?, Buffer::any(on, lower)?],
        })
    }

    /// Multiplies the weights with some rows, as many as each row has weights now; into how many parts of each of the products is
    /// returned.
    pub fn multiply(&mut self, on: &Context, rows: &Halves, some: Range<usize>) -> Result<[usize; 2]> {
        let (t, (n, dim)) = (some.len(), (self.n, self.dim));
        let parts = SUMMED.map(|s| t.div_ceil(s));
        let fits = 2 * n * t <= self.halves.len()
            && 2 * parts[0] * n * dim <= self.products[0].len()
            && parts[1] * n * dim <= self.products[1].len();
        let sizes = [n, dim, 2 * t, 3 * dim].iter().all(|s| *s <= i32::MAX as usize);
        if rows.dim != dim || some.end > rows.rows || !fits || !sizes {
            let message = format!("{n} times {some:?} weights for {} rows of {}", rows.rows, rows.dim);
            return Err(Error::Length { operation: "weighted rows", message });
        }
        let handle = *on.blas()?.handle();
        let (one, zero) = (1f32, 0f32);
        let bank = rows.field.elements().address() + (some.start * 3 * dim * 2) as u64;
        let weights = self.halves.elements().address();
        for (which, width) in [(0, 2 * dim), (1, dim)] {
            let whole = SUMMED[which];
            // All parts but what is left over, and that.
            for (first, count, summed) in [(0, t / whole, whole), (t / whole, 1, t % whole)] {
                if count * summed == 0 {
                    continue;
                }
                let from = bank + (first * whole * 3 * dim * 2) as u64;
                let left = weights + ((which * t + first * whole) * 2) as u64;
                let to = self.products[which].address() + (first * n * width * 4) as u64;
                // cuBLAS counts by columns: it sees the transposes.
                // SAFETY: weights have rows of 2·t, of which `summed` are read in each part, the rows' halves have 3·dim, of
                // which `width` are, and there is room for all parts.
                unsafe {
                    gemm_strided_batched_ex(
                        handle,
                        CUBLAS_OP_N,
                        CUBLAS_OP_N,
                        width as i32,
                        n as i32,
                        summed as i32,
                        std::ptr::from_ref(&one).cast(),
                        from as *const _,
                        cudaDataType::CUDA_R_16F,
                        3 * dim as i32,
                        (whole * 3 * dim) as i64,
                        left as *const _,
                        cudaDataType::CUDA_R_16F,
                        2 * t as i32,
                        whole as i64,
                        std::ptr::from_ref(&zero).cast(),
                        to as *mut _,
                        cudaDataType::CUDA_R_32F,
                        width as i32,
                        (n * width) as i64,
                        count as i32,
                        cublasComputeType_t::CUBLAS_COMPUTE_32F,
                        cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                    )?;
                }
            }
        }
        Ok(parts)
    }
}
