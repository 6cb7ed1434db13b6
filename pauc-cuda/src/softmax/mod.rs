//! Cross-entropy of a softmax over inner products with large banks, with its gradient. Large logit matrices
//! are computed in tiles. The definition is that of `pauc_kernels::softmax::cross_entropy`. Products with
//! banks use `split_f16`.

mod passes;

use crate::kernel_args::{In, Out, args};
use crate::matmul::{MatrixRef, product};
use crate::{Buffer, Context, Error, Result, View, same_length};
use cudarc::driver::CudaSlice;
use passes::{Gradient, Logits, Positive, State};

pub use pauc_kernels::softmax::Scale;

/// Candidates that every query is compared with, in device memory.
pub type Bank<'a> = pauc_kernels::softmax::Bank<'a, View<'a>>;
/// The positive of each query, in device memory.
pub type Positives<'a> = pauc_kernels::softmax::Positives<View<'a>>;
/// A value, possibly not computed yet, and its gradient with respect to the queries.
pub type Graded = pauc_kernels::softmax::Graded<Buffer, Buffer>;

/// The maximum number of logits in memory. A logit takes four bytes, and its weight in the gradient another
/// four.
#[derive(Clone, Copy, Debug)]
pub struct LogitBudget {
    /// Up to this many logits are kept from the first pass for the second.
    pub kept: usize,
    /// Above that, logits are computed in tiles of this size, once per pass.
    pub tile: usize,
}

impl Default for LogitBudget {
    /// 256 MiB of kept logits, or 64 MiB per tile; with weights, twice that.
    fn default() -> Self {
        LogitBudget { kept: 1 << 26, tile: 1 << 24 }
    }
}

/// Computes mean_i −log [ e^{s_i q_i·k_i} / (e^{s_i q_i·k_i} + Σ_c e^{s_c q_i·c}) ] over the rows c of all
/// banks, and its gradient with respect to q. `positives` are the keys k with their scales s.
///
/// # Shapes
/// `queries` (B, D), each bank (M, D)
///
/// # Errors
/// If sizes disagree, or the device fails.
pub fn cross_entropy(
    on: &Context,
    queries: View<'_>,
    positives: Positives<'_>,
    banks: &[Bank<'_>],
    dim: usize,
) -> Result<Graded> {
    cross_entropy_within(on, LogitBudget::default(), queries, positives, banks, dim)
}

/// [`cross_entropy`] within a memory budget.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_within(
    on: &Context,
    budget: LogitBudget,
    queries: View<'_>,
    positives: Positives<'_>,
    banks: &[Bank<'_>],
    dim: usize,
) -> Result<Graded> {
    let (n, counts) = check(queries, positives, banks, dim)?;
    let mut logits = Logits::new(on, budget, (queries, n, dim), banks, &counts)?;
    let positives = Positive::new(on, positives, banks)?;
    let mut state = State::new(on, queries, dim, &positives, &logits)?;
    // First the sums, then the gradient. Logits that are not kept are computed in both passes.
    for tile in logits.tiles() {
        logits.compute(on, &tile)?;
        state.add_to_sums(on, &logits, &tile)?;
    }
    let mut gradient = Gradient::new(on, n, dim, logits.tile_rows)?;
    for tile in logits.tiles() {
        logits.compute(on, &tile)?;
        gradient.add(on, &state, &logits, &tile)?;
    }
    gradient.finish(on, &state, &positives, &logits)
}

/// Returns the number of queries and the number of rows of each bank.
///
/// # Errors
/// If sizes disagree.
fn check(
    queries: View<'_>,
    positives: Positives<'_>,
    banks: &[Bank<'_>],
    dim: usize,
) -> Result<(usize, Vec<usize>)> {
    let refuse = |message: String| Err(Error::Length { operation: "cross-entropy", message });
    let n = queries.len() / dim.max(1);
    if n == 0 || queries.len() != n * dim {
        return refuse(format!("{} values do not form rows of {dim}", queries.len()));
    }
    match positives {
        Positives::Rows(rows, _) if rows.len() != n * dim => {
            return refuse(format!(
                "{} values are not a positive for each of {n} queries of {dim}",
                rows.len()
            ));
        }
        Positives::Own if banks.first().is_none_or(|b| b.own.is_none()) => {
            return refuse("positives are rows of the first bank, which names none for the queries".into());
        }
        _ => {}
    }
    let mut counts = Vec::new();
    for bank in banks {
        let m = bank.rows.len() / dim;
        let own_fits = bank.own.is_none_or(|own| own.len() == n && own.iter().all(|j| *j < m));
        let scale_fits = if let Scale::Each(scales) = bank.scale { scales.len() == m } else { true };
        if bank.rows.len() != m * dim || m > i32::MAX as usize || !own_fits || !scale_fits {
            let message = format!(
                "sizes of a bank disagree: {} values in rows of {dim} with {:?}",
                bank.rows.len(),
                bank.scale
            );
            return refuse(message.chars().take(200).collect());
        }
        counts.push(m);
    }
    Ok((n, counts))
}

/// Computes Σ a·b over all elements, in `f64`, and rounds it to one `f32`.
///
/// # Errors
/// If lengths differ, there are 2³² elements or more, or the device fails.
pub fn dot(on: &Context, a: View<'_>, b: View<'_>) -> Result<Buffer> {
    const OPERATION: &str = "inner product";
    let len = same_length(OPERATION, &[a.len(), b.len()])?;
    let too_long = |_| Error::Length {
        operation: OPERATION,
        message: format!("expected fewer than 2³² elements, got {len}"),
    };
    let len = u32::try_from(len).map_err(too_long)?;
    let (mut dot, mut largest) = (Buffer::uninit(on, 1)?, Buffer::uninit(on, 1)?);
    let (scale, own) = (Buffer::from_host(on, &[1.0])?, None::<&CudaSlice<u32>>);
    let args = args![In(a), In(b), In(own), In(&scale), true, len, Out(&mut dot), Out(&mut largest)];
    // SAFETY: one block for one row of `len` elements, the length of a and b, with one scale. The results
    // have one element.
    unsafe { on.launch("pauc_row_dots", 1, args) }?;
    Ok(dot)
}

/// Returns the mean of the first n numbers.
fn mean(on: &Context, numbers: &CudaSlice<f64>, n: usize) -> Result<Buffer> {
    let mut mean = Buffer::uninit(on, 1)?;
    // SAFETY: callers allocated `numbers` with n elements. The single block writes one number.
    unsafe { on.launch("pauc_mean", 1, args![In(numbers), n as u32, Out(&mut mean)]) }?;
    Ok(mean)
}

/// [`cross_entropy`] of N rows, each compared with all others. The positive of row i is row i + N/2 (mod N),
/// as in `pauc_kernels::softmax::in_batch`. The gradient is with respect to the rows, as queries and as
/// candidates.
///
/// # Shapes
/// `rows` (N, D), N even
///
/// # Errors
/// If sizes disagree, or the device fails.
pub fn in_batch(on: &Context, rows: View<'_>, dim: usize, scale: f32) -> Result<Graded> {
    let n = rows.len() / dim.max(1);
    if dim == 0 || n == 0 || !n.is_multiple_of(2) || rows.len() != n * dim || n > 1 << 20 {
        let message = format!("{} values do not form pairs of rows of {dim}, at most 2²⁰ rows", rows.len());
        return Err(Error::Length { operation: "cross-entropy of pairs", message });
    }
    let device = on.device();
    let mut scores = Buffer::uninit(on, n * n)?;
    let z = MatrixRef::new(rows, n, dim);
    product(on, z, z.t(), 0.0, scores.view_mut())?;
    let mut largest = Buffer::from_host(on, &vec![f32::NEG_INFINITY; n])?;
    let (mut sums, mut losses) = (device.alloc_zeros::<f64>(n)?, device.alloc_zeros::<f64>(n)?);
    let own = on.upload(&(0..n as u32).collect::<Vec<_>>())?;
    let one_scale = Buffer::from_host(on, &[scale])?;
    let (n32, first, absent) = (n as u32, 0u32, None::<&Buffer>);
    let args = args![
        In(&scores),
        In(&one_scale),
        true,
        In(&own),
        first,
        n32,
        In(absent),
        In(absent),
        Out(&mut largest),
        Out(&mut sums)
    ];
    // SAFETY: one block for each of n rows of n scores. `own`, `largest` and `sums` have n elements, and one
    // scale is shared by all.
    unsafe { on.launch("pauc_softmax_sums", n, args) }?;
    let args = args![n32, Out(&mut scores), scale, In(&largest), In(&sums), Out(&mut losses)];
    // SAFETY: one block for each of n rows of n scores; `largest`, `sums` and `losses` have n elements.
    unsafe { on.launch("pauc_softmax_pairs", n, args) }?;
    let mut gradient = Buffer::uninit(on, n * dim)?;
    let weights = MatrixRef::new(scores.view(), n, n);
    product(on, weights, z, 0.0, gradient.view_mut())?;
    product(on, weights.t(), z, 1.0, gradient.view_mut())?;
    Ok(Graded { value: mean(on, &losses, n)?, gradient })
}
