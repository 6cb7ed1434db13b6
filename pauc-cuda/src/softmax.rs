//! Cross-entropy of a softmax over inner products with large banks, with its gradient: a tile of logits at a time, so that
//! the matrix of all of them never exists. The definition is that of `pauc_kernels::softmax::cross_entropy`.

use crate::memory::ViewMut;
use crate::rows::{Factor, product};
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::driver::DevicePtr;

/// Elements of a tile of logits: 64 MiB.
const TILE: usize = 1 << 24;

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
            Some(own) => Some(device.htod_sync_copy(&own.iter().map(|j| *j as u32).collect::<Vec<_>>())?),
            None => None,
        };
        parts.push((bank.rows, m, Buffer::from_host(on, bank.scale)?, uniform, own));
    }
    let widest = parts.iter().map(|p| p.1).max().unwrap_or(0);
    let tile = (TILE / n).clamp(1, widest.max(1));
    let scores = Buffer::any(on, n * tile)?;
    // First the sums, then the gradient: the logits of a tile are computed twice rather than kept.
    for second in [false, true] {
        for (rows, m, scale, uniform, own) in &parts {
            let own = own.as_ref().map_or(0, |own| *own.device_ptr());
            for start in (0..*m).step_by(tile) {
                let t = tile.min(m - start);
                let some = rows.part(start * dim, t * dim);
                let to = ViewMut::of(&scores, n * t);
                product(on, Factor::new(queries, n, dim), Factor::new(some, t, dim).t(), 0.0, to)?;
                if !second {
                    let args =
                        args![&scores, scale, *uniform, own, start as u32, t as u32, &largest, sums_at];
                    // SAFETY: n rows of t scores; all else has n elements, or one a candidate as said.
                    unsafe { on.launch("pauc_softmax_sums", n, args) }?;
                    continue;
                }
                let share = 1.0 / n as f32;
                let args = args![
                    n * t,
                    &scores,
                    scale,
                    *uniform,
                    own,
                    start as u32,
                    t as u32,
                    &logits,
                    &largest,
                    sums_at,
                    share
                ];
                // SAFETY: as above.
                unsafe { on.launch_over("pauc_softmax_weights", n * t, args) }?;
                let weights = Factor::new(scores.view().first(n * t), n, t);
                product(on, weights, Factor::new(some, t, dim), 1.0, gradient.view_mut())?;
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
}
