//! Nearest neighbors: products through cuBLAS, one tile at a time, each followed by a selection of the
//! highest scores. The order is that of the search on the host: by descending score, equal scores by
//! ascending row number.

use crate::kernel_args::{In, Out, args};
use crate::matmul::{MatrixRef, product};
use crate::{Buffer, Context, Error, Result};

/// The maximum number of neighbors per query.
pub const MAX_NEIGHBORS: usize = 1024;
/// Elements per tile of scores: 256 MiB.
const TILE: usize = 1 << 26;
/// Bank rows per tile.
const BANK_ROWS: usize = 1 << 15;

/// Returns the `k` bank rows with the highest score for each query, best first, as (score, row number). The
/// score is q·r, plus the row's `shift` if given. If the bank has fewer than `k` rows, all are returned. Rows
/// whose score is −∞ or NaN are left out.
///
/// The bank passes through device memory in parts, so it may be larger than that memory.
///
/// # Shapes
/// queries (M, D), bank (N, D), shift N → M lists
///
/// # Errors
/// If lengths disagree, `k` is above [`MAX_NEIGHBORS`], or the device fails.
pub fn top_k(
    on: &Context,
    queries: &[f32],
    bank: &[f32],
    dim: usize,
    shift: Option<&[f32]>,
    k: usize,
) -> Result<Vec<Vec<(f32, u32)>>> {
    let is_matrix = |v: &[f32]| dim > 0 && v.len().is_multiple_of(dim) && v.len() / dim <= u32::MAX as usize;
    let fits = is_matrix(queries) && is_matrix(bank) && shift.is_none_or(|s| s.len() * dim == bank.len());
    if !fits || k > MAX_NEIGHBORS {
        let (q, n) = (queries.len(), bank.len());
        let message = format!("cannot find {k} neighbors of {q} values in {n} values, in rows of {dim}");
        return Err(Error::Length { operation: "nearest neighbors", message });
    }
    let (m, n) = (queries.len() / dim, bank.len() / dim);
    let k = k.min(n);
    if k == 0 || m == 0 {
        return Ok(vec![Vec::new(); m]);
    }
    let device = on.device();
    let queries = Buffer::from_host(on, queries)?;
    let shift = shift.map(|s| Buffer::from_host(on, s)).transpose()?;
    // Per query: a sorted list of up to k scores, their row numbers, and the length of the list.
    let (mut best, mut numbers) = (Buffer::zeros(on, m * k)?, device.alloc_zeros::<u32>(m * k)?);
    let mut counts = device.alloc_zeros::<u32>(m)?;
    let tile_rows = BANK_ROWS.min(n);
    let tile_queries = (TILE / tile_rows).clamp(1, m);
    let mut scores = Buffer::uninit(on, tile_queries * tile_rows)?;
    for (part, bank) in bank.chunks(tile_rows * dim).enumerate() {
        let (start, rows) = (part * tile_rows, bank.len() / dim);
        let bank = Buffer::from_host(on, bank)?;
        for from in (0..m).step_by(tile_queries) {
            let count = tile_queries.min(m - from);
            let x = queries.view().part(from * dim, count * dim);
            let (a, b) = (MatrixRef::new(x, count, dim), MatrixRef::new(bank.view(), rows, dim).t());
            product(on, a, b, 0.0, scores.view_mut())?;
            let lists = from * k..(from + count) * k;
            let args = args![
                In(&scores),
                In(shift.as_ref()),
                start as u32,
                rows as u32,
                k as u32,
                Out(best.view_mut().part(lists.start, lists.len())),
                Out(numbers.slice_mut(lists)),
                Out(counts.slice_mut(from..from + count)),
            ];
            // SAFETY: one block for each of `count` queries. The product wrote `count` rows of scores; lists
            // and counts were sliced to `count`. The shift has one element per bank row, as checked. k is at
            // most MAX_NEIGHBORS, the kernel's LONGEST.
            unsafe { on.launch("pauc_highest", count, args) }?;
        }
    }
    let (best, numbers) = (best.to_host()?, on.download(&numbers)?);
    let counts = on.download(&counts)?;
    let lists = best.chunks_exact(k).zip(numbers.chunks_exact(k)).zip(&counts);
    let pairs = |((best, numbers), count): ((&[f32], &[u32]), &u32)| {
        best.iter().copied().zip(numbers.iter().copied()).take(*count as usize).collect()
    };
    Ok(lists.map(pairs).collect())
}
