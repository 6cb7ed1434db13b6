//! Cross-entropy of a softmax over inner products with large banks, with its gradient: where the matrix of all logits would be
//! large, a tile of them at a time. The definition is that of `pauc_kernels::softmax::cross_entropy`.

use crate::memory::ViewMut;
use crate::rows::{Factor, product};
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::driver::DevicePtr;

/// Elements of a tile of logits: 64 MiB.
const TILE: usize = 1 << 24;
/// Logits that are kept from the first pass for the second rather than computed again: 512 MiB.
const KEPT: usize = 1 << 27;

/// Candidates that every query is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Bank<'a> {
    /// M rows of D.
    pub rows: View<'a>,
    /// What inner products are multiplied with: one number for all candidates, or one for each.
    pub scale: &'a [f32],
    /// For each query the row that is not one of its negatives because it is its positive.
    pub own: Option<&'a [usize]>,
}

/// A value and its gradient with respect to the queries.
#[derive(Debug)]
pub struct Graded {
    /// The mean over queries.
    pub value: f64,
    /// (B, D).
    pub gradient: Buffer,
}

/// mean_i −log [ e^{s_i q_i·k_i} / (e^{s_i q_i·k_i} + Σ_c e^{s_c q_i·c}) ] over the rows c of all banks, and its gradient with
/// respect to q. `positives` are the keys k with their scales s.
///
/// # Shapes
/// `queries` and `positives` (B, D), `scales` (B,), each bank (M, D)
///
/// # Errors
/// If sizes disagree, or the device fails.
pub fn cross_entropy(
    on: &Context,
    queries: View<'_>,
    positives: View<'_>,
    scales: &[f32],
    banks: &[Bank<'_>],
    dim: usize,
) -> Result<Graded> {
    on.in_f32(|| {
        let n = scales.len();
        let wrong = |message: String| Error::Length { operation: "cross-entropy", message };
        if dim == 0 || n == 0 || queries.len() != n * dim || positives.len() != n * dim {
            return Err(wrong(format!(
                "{} and {} values for {n} queries of {dim}",
                queries.len(),
                positives.len()
            )));
        }
        let device = on.device();
        let scale = Buffer::from_host(on, scales)?;
        let logits = Buffer::any(on, n)?;
        // SAFETY: both have n rows of dim, scales and logits n elements.
        unsafe { on.launch("pauc_row_dots", n, args![queries, positives, &scale, dim as u32, &logits]) }?;
        let mut largest = Buffer::any(on, n)?;
        crate::elementwise::copy(on, logits.view(), largest.view_mut())?;
        let sums = device.alloc_zeros::<f64>(n)?;
        let losses = device.alloc_zeros::<f64>(n)?;
        let (sums_at, losses_at) = (*sums.device_ptr(), *losses.device_ptr());
        let mut gradient = Buffer::zeros(on, n * dim)?;
        // What banks need on the device, once for both passes.
        let mut parts = Vec::new();
        for bank in banks {
            let m = bank.rows.len() / dim;
            let uniform = bank.scale.len() == 1;
            let own = bank.own.map_or(Ok(()), |own| {
                if own.len() == n && own.iter().all(|j| *j < m) { Ok(()) } else { Err(()) }
            });
            if bank.rows.len() != m * dim
                || m > i32::MAX as usize
                || (!uniform && bank.scale.len() != m)
                || own.is_err()
            {
                return Err(wrong(format!(
                    "a bank of {} values in rows of {dim} with {} scales",
                    bank.rows.len(),
                    bank.scale.len()
                )));
            }
            let own = match bank.own {
                Some(own) => Some(on.upload(&own.iter().map(|j| *j as u32).collect::<Vec<_>>())?),
                None => None,
            };
            parts.push((bank.rows, m, Buffer::from_host(on, bank.scale)?, uniform, own));
        }
        let all: usize = parts.iter().map(|p| p.1).sum();
        let kept = n * all <= KEPT;
        let widest = parts.iter().map(|p| p.1).max().unwrap_or(0).max(1);
        let tile = if kept { widest } else { (TILE / n).clamp(1, widest) };
        let scores = Buffer::any(on, n * if kept { all } else { tile })?;
        // First the sums, then the gradient: what is not kept of the logits is computed twice.
        for second in [false, true] {
            let mut from = 0;
            for (rows, m, scale, uniform, own) in &parts {
                let own = own.as_ref().map_or(0, |own| *own.device_ptr());
                for start in (0..*m).step_by(tile) {
                    let t = tile.min(m - start);
                    let some = rows.part(start * dim, t * dim);
                    let here = scores.view().part(from, n * t);
                    if !(second && kept) {
                        let to = ViewMut::of(&scores, from, n * t);
                        product(on, Factor::new(queries, n, dim), Factor::new(some, t, dim).t(), 0.0, to)?;
                    }
                    let (first, t32) = (start as u32, t as u32);
                    if second {
                        let (n32, share) = (n as u32, 1.0 / n as f32);
                        let blocks = (on.enough_blocks() / n).clamp(1, t.div_ceil(on.threads()));
                        let args = args![
                            n32, here, scale, *uniform, own, first, t32, &logits, &largest, sums_at, share
                        ];
                        // SAFETY: n rows of t scores; all else has n elements, or one a candidate as said.
                        unsafe { on.launch("pauc_softmax_weights", n * blocks, args) }?;
                        let (weights, some) = (Factor::new(here, n, t), Factor::new(some, t, dim));
                        product(on, weights, some, 1.0, gradient.view_mut())?;
                    } else {
                        let args = args![here, scale, *uniform, own, first, t32, &largest, sums_at];
                        // SAFETY: as above.
                        unsafe { on.launch("pauc_softmax_sums", n, args) }?;
                    }
                    from += if kept { n * t } else { 0 };
                }
            }
        }
        let args = args![
            &logits,
            positives,
            &scale,
            dim as u32,
            &largest,
            sums_at,
            1.0f32 / n as f32,
            losses_at,
            &gradient
        ];
        // SAFETY: n rows of dim, and n elements of all else.
        unsafe { on.launch("pauc_softmax_finish", n, args) }?;
        let losses = device.dtoh_sync_copy(&losses)?;
        Ok(Graded { value: losses.iter().sum::<f64>() / n as f64, gradient })
    })
}

/// The same for N rows of which each is compared with all others, and its positive is the one N/2 further on; as
/// `pauc_kernels::softmax::in_batch` defines it. The gradient is that of the rows, as queries and as candidates.
///
/// # Shapes
/// `rows` (N, D), N even
///
/// # Errors
/// If sizes disagree, or the device fails.
pub fn in_batch(on: &Context, rows: View<'_>, dim: usize, scale: f32) -> Result<Graded> {
    let n = rows.len() / dim.max(1);
    if dim == 0 || n == 0 || !n.is_multiple_of(2) || rows.len() != n * dim || n > 1 << 20 {
        let message = format!("{} values in pairs of rows of {dim}", rows.len());
        return Err(Error::Length { operation: "cross-entropy of pairs", message });
    }
    on.in_f32(|| {
        let device = on.device();
        let scores = Buffer::any(on, n * n)?;
        let z = Factor::new(rows, n, dim);
        product(on, z, z.t(), 0.0, ViewMut::of(&scores, 0, n * n))?;
        let largest = Buffer::from_host(on, &vec![f32::NEG_INFINITY; n])?;
        let (sums, losses) = (device.alloc_zeros::<f64>(n)?, device.alloc_zeros::<f64>(n)?);
        let own = on.upload(&(0..n as u32).collect::<Vec<_>>())?;
        let uniform = Buffer::from_host(on, &[scale])?;
        let (sums_at, losses_at, own_at) = (*sums.device_ptr(), *losses.device_ptr(), *own.device_ptr());
        let (n32, from) = (n as u32, 0u32);
        // SAFETY: n rows of n scores, and n elements of all else.
        unsafe {
            let args = args![&scores, &uniform, true, own_at, from, n32, &largest, sums_at];
            on.launch("pauc_softmax_sums", n, args)?;
            let args = args![n32, &scores, scale, &largest, sums_at, losses_at];
            on.launch("pauc_softmax_pairs", n, args)?;
        }
        let mut gradient = Buffer::any(on, n * dim)?;
        let weights = Factor::new(scores.view(), n, n);
        product(on, weights, z, 0.0, gradient.view_mut())?;
        product(on, weights.t(), z, 1.0, gradient.view_mut())?;
        let losses = device.dtoh_sync_copy(&losses)?;
        Ok(Graded { value: losses.iter().sum::<f64>() / n as f64, gradient })
    })
}
