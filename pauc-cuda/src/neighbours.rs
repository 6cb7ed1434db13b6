//! Nearest neighbours: products through cuBLAS, tile by tile, with the selection of the highest behind them. The order is that
//! of the search on the host: by descending score, and equal scores by ascending number.

use crate::rows::{Factor, product};
use crate::{Buffer, Context, Error, Result, args};
use cudarc::driver::DevicePtr;

/// The most neighbours of a query.
pub const MOST: usize = 1024;
/// Elements of a tile of scores: 256 MiB.
const TILE: usize = 1 << 26;
/// Rows of the bank in a tile.
const BANK: usize = 1 << 15;

/// The `k` rows of the bank with the highest score for each query, best first: their scores q·r, plus the row's `shift` where
/// there is one, and their numbers. All rows of a bank of fewer; rows of an infinitely low score are left out.
///
/// The bank passes through the device's memory in parts, and may be larger than that.
///
/// # Shapes
/// queries (M, D), bank (N, D), shift N → M lists
///
/// # Errors
/// If lengths disagree, `k` is above [`MOST`], or the device fails.
pub fn highest(
    on: &Context,
    queries: &[f32],
    bank: &[f32],
    dim: usize,
    shift: Option<&[f32]>,
    k: usize,
) -> Result<Vec<Vec<(f32, u32)>>> {
    let whole = |v: &[f32]| dim > 0 && v.len().is_multiple_of(dim) && v.len() / dim <= u32::MAX as usize;
    let fits = whole(queries) && whole(bank) && shift.is_none_or(|s| s.len() * dim == bank.len());
    if !fits || k > MOST {
        let (q, n) = (queries.len(), bank.len());
        let message = format!("{k} of {n} values for {q} values in rows of {dim}");
        return Err(Error::Length { operation: "highest", message });
    }
    let (m, n) = (queries.len() / dim, bank.len() / dim);
    let k = k.min(n);
    if k == 0 || m == 0 {
        return Ok(vec![Vec::new(); m]);
    }
    let device = on.device();
    let queries = Buffer::from_host(on, queries)?;
    let shift = shift.map(|s| Buffer::from_host(on, s)).transpose()?;
    let (best, numbers) = (Buffer::zeros(on, m * k)?, device.alloc_zeros::<u32>(m * k)?);
    let counts = device.alloc_zeros::<u32>(m)?;
    let u32_at = |start: u64, place: usize| start + (place * size_of::<u32>()) as u64;
    let rows = BANK.min(n);
    let some = (TILE / rows).clamp(1, m);
    let mut scores = Buffer::any(on, some * rows)?;
    for (part, bank) in bank.chunks(rows * dim).enumerate() {
        let (start, t) = (part * rows, bank.len() / dim);
        let bank = Buffer::from_host(on, bank)?;
        for from in (0..m).step_by(some) {
            let q = some.min(m - from);
            let x = queries.view().part(from * dim, q * dim);
            product(
                on,
                Factor::new(x, q, dim),
                Factor::new(bank.view(), t, dim).t(),
                0.0,
                scores.view_mut(),
            )?;
            let args = args![
                &scores,
                shift.as_ref().map_or(0, Buffer::address),
                start as u32,
                t as u32,
                k as u32,
                best.view().part(from * k, q * k),
                u32_at(*numbers.device_ptr(), from * k),
                u32_at(*counts.device_ptr(), from),
            ];
            // SAFETY: q rows of t scores, a shift for each row of the bank, and of q queries lists of k and their lengths.
            unsafe { on.launch("pauc_highest", q, args) }?;
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
