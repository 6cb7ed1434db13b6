//! Cross-entropy of a softmax over inner products with large banks, with its gradient: where the matrix of all logits would be
//! large, a tile of them at a time. The definition is that of `pauc_kernels::softmax::cross_entropy`. Products with banks are those
//! of the module `halves`.

use crate::halves::{self, Halves, Side, Weights};
use crate::memory::ViewMut;
use crate::rows::{Factor, product};
use crate::{Buffer, Context, Error, Result, View, args};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::ops::Range;

/// Logits that lie in memory at once; each takes four bytes, and its weight in the gradient as many.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// So many are kept from the first pass for the second.
    pub kept: usize,
    /// Of more, so many are computed at a time, twice.
    pub tile: usize,
}

impl Default for Room {
    /// Half a gigabyte for what is kept, and a quarter of that otherwise.
    fn default() -> Self {
        Room { kept: 1 << 26, tile: 1 << 24 }
    }
}

/// What inner products are multiplied with.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// One number for all candidates.
    Same(f32),
    /// The inverse of one for each.
    Over(&'a [f32]),
}

/// Candidates that every query is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Bank<'a> {
    /// M rows of D.
    pub rows: View<'a>,
    /// Of its inner products.
    pub scale: Scale<'a>,
    /// For each query the row that is not one of its negatives because it is its positive.
    pub own: Option<&'a [usize]>,
}

/// What each query is drawn to.
#[derive(Clone, Copy, Debug)]
pub enum Positives<'a> {
    /// Rows (B, D), and what inner products with them are multiplied with.
    Rows(View<'a>, f32),
    /// Its own row of the first bank, with the scale that this has there.
    Own,
}

/// A value and its gradient with respect to the queries.
#[derive(Debug)]
pub struct Graded {
    /// The mean over queries: one number, which the device need not have come to yet.
    pub value: Buffer,
    /// (B, D).
    pub gradient: Buffer,
}

/// A bank on the device.
struct Candidates {
    rows: Halves,
    count: usize,
    /// One for all, or one for each.
    scale: Buffer,
    /// The largest of them.
    most: f32,
    own: Option<CudaSlice<u32>>,
}

/// The least size of all.
fn least(of: &[f32]) -> f32 {
    // Eight at a time, which compilers make one instruction of.
    let smaller = |a: f32, b: f32| if b < a { b } else { a };
    let (eights, rest) = of.as_chunks::<8>();
    let each = eights
        .iter()
        .fold([f32::INFINITY; 8], |least, v| std::array::from_fn(|i| smaller(least[i], v[i].abs())));
    each.into_iter().chain(rest.iter().map(|v| v.abs())).fold(f32::INFINITY, smaller)
}

impl Candidates {
    fn new(on: &Context, rows: Halves, bank: &Bank<'_>, count: usize) -> Result<Self> {
        let (scale, most) = match bank.scale {
            Scale::Same(s) => (Buffer::from_host(on, &[s])?, s.abs()),
            Scale::Over(each) => {
                let scale = Buffer::from_host(on, each)?;
                // SAFETY: there are as many.
                unsafe { on.launch_over("pauc_inverse", each.len(), args![each.len(), &scale]) }?;
                (scale, 1.0 / least(each))
            }
        };
        let most = if most > 0.0 && most.is_finite() { most } else { 1.0 };
        let own = match bank.own {
            Some(own) => Some(on.upload(&own.iter().map(|j| *j as u32).collect::<Vec<_>>())?),
            None => None,
        };
        Ok(Candidates { rows, count, scale, most, own })
    }

    fn own(&self) -> u64 {
        self.own.as_ref().map_or(0, |own| *own.device_ptr())
    }
}

/// mean_i −log [ e^{s_i q_i·k_i} / (e^{s_i q_i·k_i} + Σ_c e^{s_c q_i·c}) ] over the rows c of all banks, and its gradient with
/// respect to q. `positives` are the keys k with their scales s.
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
    cross_entropy_in(on, Room::default(), queries, positives, banks, dim)
}

/// How many rows each bank has.
///
/// # Errors
/// If sizes disagree.
fn counts(
    queries: View<'_>,
    positives: Positives<'_>,
    banks: &[Bank<'_>],
    dim: usize,
) -> Result<(usize, Vec<usize>)> {
    let wrong = |message: String| Err(Error::Length { operation: "cross-entropy", message });
    let n = queries.len() / dim.max(1);
    if n == 0 || queries.len() != n * dim {
        return wrong(format!("{} values in rows of {dim}", queries.len()));
    }
    match positives {
        Positives::Rows(rows, _) if rows.len() != n * dim => {
            return wrong(format!("{} values of positives for {n} queries of {dim}", rows.len()));
        }
        Positives::Own if banks.first().is_none_or(|b| b.own.is_none()) => {
            return wrong("positives are to be rows of a bank that does not say which".into());
        }
        _ => {}
    }
    let mut counts = Vec::new();
    for bank in banks {
        let m = bank.rows.len() / dim;
        let own = bank.own.is_none_or(|own| own.len() == n && own.iter().all(|j| *j < m));
        let scale = if let Scale::Over(each) = bank.scale { each.len() == m } else { true };
        if bank.rows.len() != m * dim || m > i32::MAX as usize || !own || !scale {
            let message =
                format!("a bank of {} values in rows of {dim} with {:?}", bank.rows.len(), bank.scale);
            return wrong(message.chars().take(200).collect());
        }
        counts.push(m);
    }
    Ok((n, counts))
}

/// [`cross_entropy`] in so much memory.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_in(
    on: &Context,
    room: Room,
    queries: View<'_>,
    positives: Positives<'_>,
    banks: &[Bank<'_>],
    dim: usize,
) -> Result<Graded> {
    let (n, counts) = counts(queries, positives, banks, dim)?;
    on.in_f32(|| {
        let device = on.device();
        let all: usize = counts.iter().sum();
        let kept = n * all <= room.kept;
        let widest = counts.iter().copied().max().unwrap_or(0).max(1);
        let tile = if kept { widest } else { (room.tile / n).clamp(1, widest) };
        let scores = Buffer::any(on, n * if kept { all } else { tile })?;
        let left = Halves::new(on, queries, dim, Side::Left)?;
        let multiply = |right: &Halves, rows: Range<usize>, from: usize| {
            let to = ViewMut::of(&scores, from, n * rows.len());
            halves::product(on, &left, right, rows, to)
        };
        // What is kept is computed first, so that the device works while the rest is prepared.
        let (mut candidates, mut from) = (Vec::new(), 0);
        for (bank, m) in banks.iter().zip(&counts) {
            let right = Halves::new(on, bank.rows, dim, Side::Right)?;
            if kept && *m > 0 {
                multiply(&right, 0..*m, from)?;
                from += n * m;
            }
            candidates.push(Candidates::new(on, right, bank, *m)?);
        }
        let one;
        let (rows, scale, at) = match (positives, candidates.first()) {
            (Positives::Own, Some(first)) => (banks[0].rows, &first.scale, first.own()),
            (Positives::Rows(rows, s), _) => {
                one = Buffer::from_host(on, &[s])?;
                (rows, &one, 0)
            }
            (Positives::Own, None) => return Err(Error::Address),
        };
        let uniform = scale.len() == 1;
        let (logits, largest, d) = (Buffer::any(on, n)?, Buffer::any(on, n)?, dim as u32);
        let args = args![queries, rows, at, scale, uniform, d, &logits, &largest];
        // SAFETY: n queries of dim, and as many rows or the bank's; one scale or one for each of its rows; n of the others.
        unsafe { on.launch("pauc_row_dots", n, args) }?;
        let sums = device.alloc_zeros::<f64>(n)?;
        let losses = device.alloc_zeros::<f64>(n)?;
        let (sums_at, losses_at) = (*sums.device_ptr(), *losses.device_ptr());
        let gradient = Buffer::zeros(on, n * dim)?;
        let mut weights = Weights::new(on, n, tile, dim)?;
        let share = 1.0 / n as f32;
        // First the sums, then the gradient: what is not kept of the logits is computed twice.
        for second in [false, true] {
            let mut from = 0;
            for c in &candidates {
                for start in (0..c.count).step_by(tile) {
                    let t = tile.min(c.count - start);
                    let here = scores.view().part(from, n * t);
                    if !kept {
                        multiply(&c.rows, start..start + t, from)?;
                    }
                    let (first, t32, own, same) = (start as u32, t as u32, c.own(), c.scale.len() == 1);
                    let (a, b) = (left.unit(), c.rows.unit());
                    if second {
                        let n32 = n as u32;
                        let blocks = (on.enough_blocks() / n).clamp(1, t.div_ceil(on.threads()));
                        let to = weights.halves.elements();
                        let args = args![
                            n32, here, &c.scale, same, c.most, own, first, t32, a, b, &largest, sums_at, to
                        ];
                        // SAFETY: n rows of t scores and of two weights for each; all else has n elements, or one a candidate
                        // or one as said.
                        unsafe { on.launch("pauc_softmax_weights", n * blocks, args) }?;
                        let [both, lower] = weights.multiply(on, &c.rows, start..start + t)?;
                        let len = n * dim;
                        let args = args![
                            len,
                            d,
                            both as u32,
                            lower as u32,
                            &weights.products[0],
                            &weights.products[1],
                            b,
                            c.most,
                            &logits,
                            &largest,
                            sums_at,
                            share,
                            &gradient
                        ];
                        // SAFETY: the products have so many parts of 2·n·dim and n·dim elements; all else as above.
                        unsafe { on.launch_over("pauc_softmax_gather", len, args) }?;
                    } else {
                        let args = args![here, &c.scale, same, own, first, t32, a, b, &largest, sums_at];
                        // SAFETY: as above.
                        unsafe { on.launch("pauc_softmax_sums", n, args) }?;
                    }
                    from += if kept { n * t } else { 0 };
                }
            }
        }
        let args =
            args![&logits, rows, at, scale, uniform, d, &largest, sums_at, share, losses_at, &gradient];
        // SAFETY: n rows of dim, as above, and n elements of all else.
        unsafe { on.launch("pauc_softmax_finish", n, args) }?;
        Ok(Graded { value: mean(on, losses_at, n)?, gradient })
    })
}

/// The mean of n numbers.
fn mean(on: &Context, losses: u64, n: usize) -> Result<Buffer> {
    let mean = Buffer::any(on, 1)?;
    // SAFETY: there are n losses, and one number is written.
    unsafe { on.launch("pauc_mean", 1, args![losses, n as u32, &mean]) }?;
    Ok(mean)
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
            let one = 0u64;
            let args = args![&scores, &uniform, true, own_at, from, n32, one, one, &largest, sums_at];
            on.launch("pauc_softmax_sums", n, args)?;
            let args = args![n32, &scores, scale, &largest, sums_at, losses_at];
            on.launch("pauc_softmax_pairs", n, args)?;
        }
        let mut gradient = Buffer::any(on, n * dim)?;
        let weights = Factor::new(scores.view(), n, n);
        product(on, weights, z, 0.0, gradient.view_mut())?;
        product(on, weights.t(), z, 1.0, gradient.view_mut())?;
        Ok(Graded { value: mean(on, losses_at, n)?, gradient })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_size_is_found_in_any_place() {
        for n in [1, 7, 8, 9, 31] {
            for at in 0..n {
                let mut all: Vec<f32> = (0..n).map(|i| 3.0 + i as f32).collect();
                all[at] = -0.5;
                assert_eq!(least(&all), 0.5, "{at} of {n}");
            }
        }
        assert_eq!(least(&[]), f32::INFINITY);
    }
}
