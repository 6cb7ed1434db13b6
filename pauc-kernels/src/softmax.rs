//! Cross-entropy of a softmax over inner products, with its gradient, streaming over tiles of the candidates.
//!
//! Value and gradient come out of one call, and neither the logits nor the probabilities of all candidates ever exist
//! at once: a tile of logits is computed, exponentiated against a running maximum and folded into the gradient.
//!
//! The positive of a query is handled apart from its negatives. So a saturated softmax keeps its precision: the
//! value is ln(1 + Σ exp(negative − positive)), not a difference of large numbers, and the positive's share of the
//! gradient is the negatives' probability, not one minus its own.

use crate::gemm::{Strides, gemm};
use rayon::prelude::*;

/// Candidates in one tile of logits.
const TILE: usize = 512;
/// Queries in one tile of logits.
const ROWS: usize = 256;
/// The bank is cut into at most this many parts that may run at the same time. It does not depend on the number of
/// threads, so neither do the results.
const PARTS: usize = 16;
/// Rows of one task of [`in_batch`].
const BLOCK: usize = 128;
/// [`in_batch`] keeps the logits between its two passes up to this many, and computes them again beyond.
const KEPT: usize = 1 << 20;
/// Logits that differ by less have exponentials that single precision holds side by side.
const SPREAD: f32 = 80.0;

/// What the inner products with candidates are multiplied with.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a> {
    /// The same for all: 1/τ.
    Uniform(f32),
    /// One for each candidate: 1/φ.
    Each(&'a [f32]),
}

/// Candidates that every query is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Bank<'a> {
    /// M rows of D.
    pub rows: &'a [f32],
    /// The scale of their logits.
    pub scale: Scale<'a>,
    /// For each query the row that is not one of its negatives because it is its positive.
    pub own: Option<&'a [usize]>,
}

/// A value and the gradient of that value.
#[derive(Clone, Debug, PartialEq)]
pub struct Graded {
    /// The mean over queries.
    pub value: f64,
    /// The gradient with respect to the queries, row-major.
    pub gradient: Vec<f32>,
}

/// mean_i −log [ e^{s_i q_i·k_i} / (e^{s_i q_i·k_i} + Σ_c e^{s_c q_i·c}) ] over the rows c of all banks, and its gradient with
/// respect to q. `positives` are the keys k with their scales s.
///
/// # Shapes
/// `queries` and `positives` (B, D), `scales` (B,), each bank (M, D). The gradient is (B, D).
///
/// # Panics
/// If sizes do not agree, or `own` names a row that is not there.
pub fn cross_entropy(
    queries: &[f32],
    positives: &[f32],
    scales: &[f32],
    banks: &[Bank<'_>],
    dim: usize,
) -> Graded {
    let n = scales.len();
    assert!(dim > 0 && queries.len() == n * dim && positives.len() == n * dim, "{n} queries of {dim}");
    for bank in banks {
        let m = bank.rows.len() / dim;
        assert_eq!(bank.rows.len(), m * dim, "a bank of whole rows of {dim}");
        assert!(
            !matches!(bank.scale, Scale::Each(s) if s.len() != m),
            "one scale for each of {m} candidates"
        );
        let own = |own: &[usize]| own.len() == n && own.iter().all(|j| *j < m);
        assert!(bank.own.is_none_or(own), "one row below {m} for each of {n} queries");
    }
    crate::threads::inside(|| cross_entropy_inside(queries, positives, scales, banks, dim))
}

fn cross_entropy_inside(
    queries: &[f32],
    positives: &[f32],
    scales: &[f32],
    banks: &[Bank<'_>],
    dim: usize,
) -> Graded {
    let n = scales.len();
    let mut gradient = vec![0.0; n * dim];
    let losses: Vec<f64> = gradient
        .chunks_mut(ROWS * dim)
        .enumerate()
        .flat_map(|(block, gradient)| {
            let from = block * ROWS;
            let rows = from..from + gradient.len() / dim;
            let span = rows.start * dim..rows.end * dim;
            let parts: Vec<Part> =
                banks.iter().flat_map(|bank| bank.parts(dim, &queries[span.clone()], rows.clone())).collect();
            finish(&queries[span.clone()], &positives[span], &scales[rows], &parts, gradient, n)
        })
        .collect();
    Graded { value: losses.iter().sum::<f64>() / n.max(1) as f64, gradient }
}

/// What a part of a bank contributes to a block of queries.
struct Part {
    /// The largest logit of each query.
    top: Vec<f32>,
    /// Σ exp(logit − top).
    sum: Vec<f32>,
    /// Σ exp(logit − top)·scale·candidate, (rows, D).
    pull: Vec<f32>,
}

impl Bank<'_> {
    fn parts(&self, dim: usize, queries: &[f32], rows: std::ops::Range<usize>) -> Vec<Part> {
        let m = self.rows.len() / dim;
        let tiles = m.div_ceil(TILE);
        let per_part = tiles.div_ceil(PARTS).max(1) * TILE;
        let spans: Vec<_> = (0..m).step_by(per_part).map(|from| from..(from + per_part).min(m)).collect();
        let part = |span: std::ops::Range<usize>| self.part(dim, queries, rows.clone(), span);
        spans.into_par_iter().with_max_len(1).map(part).collect()
    }

    fn part(
        &self,
        dim: usize,
        queries: &[f32],
        rows: std::ops::Range<usize>,
        span: std::ops::Range<usize>,
    ) -> Part {
        let n = rows.len();
        let mut part = Part { top: vec![f32::NEG_INFINITY; n], sum: vec![0.0; n], pull: vec![0.0; n * dim] };
        let width = TILE.min(span.len());
        let mut logits = vec![0.0; n * width];
        let uniform = if let Scale::Uniform(s) = self.scale { vec![s; width] } else { Vec::new() };
        for from in span.clone().step_by(TILE) {
            let count = TILE.min(span.end - from);
            let candidates = &self.rows[from * dim..(from + count) * dim];
            let scale = match self.scale {
                Scale::Uniform(_) => &uniform[..count],
                Scale::Each(s) => &s[from..from + count],
            };
            let tile = Strides::row_major(width);
            let (rows_of, columns_of) = (Strides::row_major(dim), Strides::transposed(dim));
            gemm(
                (n, count, dim),
                1.0,
                (queries, rows_of),
                (candidates, columns_of),
                0.0,
                (&mut logits, tile),
            );
            if let Some(own) = self.own {
                for (row, own) in logits.chunks_mut(width).zip(&own[rows.clone()]) {
                    if (from..from + count).contains(own) {
                        row[own - from] = f32::NEG_INFINITY;
                    }
                }
            }
            fold(&mut logits, (width, count), scale, dim, &mut part);
            gemm(
                (n, dim, count),
                1.0,
                (&logits, tile),
                (candidates, rows_of),
                1.0,
                (&mut part.pull, rows_of),
            );
        }
        part
    }
}

/// Adds the parts of a block of queries and their positives up: the losses, and the gradient of their mean over `n`.
fn finish(
    queries: &[f32],
    positives: &[f32],
    scales: &[f32],
    parts: &[Part],
    gradient: &mut [f32],
    n: usize,
) -> Vec<f64> {
    let dim = queries.len() / scales.len();
    let one = |(i, gradient): (usize, &mut [f32])| {
        let key = &positives[i * dim..(i + 1) * dim];
        let positive = (scales[i] * dot(&queries[i * dim..(i + 1) * dim], key)) as f64;
        let top = parts.iter().map(|p| p.top[i] as f64).fold(positive, f64::max);
        let weights: Vec<f64> = parts.iter().map(|p| (p.top[i] as f64 - top).exp()).collect();
        let negatives: f64 = parts.iter().zip(&weights).map(|(p, w)| p.sum[i] as f64 * w).sum();
        let own = (positive - top).exp();
        let total = (own + negatives) * n as f64;
        for (p, w) in parts.iter().zip(&weights) {
            let w = (w / total) as f32;
            let pull = &p.pull[i * dim..(i + 1) * dim];
            gradient.iter_mut().zip(pull).for_each(|(g, p)| *g += w * p);
        }
        let push = (scales[i] as f64 * negatives / total) as f32;
        gradient.iter_mut().zip(key).for_each(|(g, k)| *g -= push * k);
        if positive == top { negatives.ln_1p() } else { (own + negatives).ln() + top - positive }
    };
    gradient.chunks_exact_mut(dim).enumerate().map(one).collect()
}

/// What [`in_batch`] keeps of a row between its passes.
struct Row {
    /// Its loss.
    loss: f64,
    /// log Σ exp of all its candidates.
    lse: f32,
    /// The probability of its negatives.
    negatives: f64,
    /// 1/Σ exp(logit − ceiling), where there is a ceiling.
    inverse: f32,
}

impl Row {
    /// From the positive's logit, and Σ exp(logit − top) of the negatives; `near` if no logit exceeds `top` or is so far
    /// below it that its exponential vanishes.
    fn new(positive: f64, (top, sum): (f32, f64), near: bool) -> Row {
        let top = f64::from(top);
        let shift = if near { top } else { top.max(positive) };
        let (own, negatives) = ((positive - shift).exp(), sum * (top - shift).exp());
        let lse = (own + negatives).ln() + shift;
        Row {
            loss: if near || positive == shift { (negatives / own).ln_1p() } else { lse - positive },
            lse: lse as f32,
            negatives: negatives / (own + negatives),
            inverse: (1.0 / (own + negatives)) as f32,
        }
    }
}

/// In-batch InfoNCE over the 2B rows of z = [z⁰; z¹] and its gradient with respect to z: the positive of row a is row
/// a ± B, its candidates are all rows but itself.
///
/// Where no two logits are so far apart that the exponential of one vanishes beside the other's, all are taken against
/// one ceiling, max ‖z‖²/τ. Then exp(logit) is the same seen from its row and from its column, and computed once.
///
/// # Shapes
/// (2B, D), an even number of rows → gradient (2B, D).
///
/// # Panics
/// If the length of `z` is not an even multiple of `dim`.
pub fn in_batch(z: &[f32], dim: usize, temperature: f32) -> Graded {
    let n = z.len() / dim.max(1);
    assert!(dim > 0 && z.len() == n * dim && n.is_multiple_of(2), "an even number of rows of {dim}");
    crate::threads::inside(|| in_batch_inside(z, n, dim, 1.0 / temperature))
}

fn in_batch_inside(z: &[f32], n: usize, dim: usize, scale: f32) -> Graded {
    let largest = z.chunks_exact(dim).map(|row| dot(row, row)).fold(0.0, f32::max);
    let ceiling = scale * largest;
    if n * n <= KEPT && 2.0 * ceiling < SPREAD {
        in_batch_kept(z, n, dim, scale, ceiling)
    } else {
        in_batch_streamed(z, n, dim, scale)
    }
}

/// The tiles on and above the diagonal of a square of `blocks` blocks, row by row.
fn upper(blocks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..blocks).flat_map(move |i| (i..blocks).map(move |j| (i, j)))
}

/// [`in_batch`] against one ceiling. Logits, exponentials and weights are symmetric matrices: only the tiles on and above the
/// diagonal exist.
fn in_batch_kept(z: &[f32], n: usize, dim: usize, scale: f32, ceiling: f32) -> Graded {
    let half = n / 2;
    let blocks = n.div_ceil(BLOCK);
    let size = |block: usize| BLOCK.min(n - block * BLOCK);
    let rows_of = |block: usize| &z[block * BLOCK * dim..][..size(block) * dim];
    let (row_major, transposed) = (Strides::row_major(dim), Strides::transposed(dim));
    let places: Vec<(usize, usize)> = upper(blocks).collect();
    let mut tiles = vec![0.0; places.len() * BLOCK * BLOCK];
    // exp(logit − ceiling) of the candidates, and their sums over rows and over columns.
    let measure = |((i, j), tile): (&(usize, usize), &mut [f32])| -> Sums {
        let (rows, columns) = (size(*i), size(*j));
        let tile = &mut tile[..rows * columns];
        let wide = Strides::row_major(columns);
        gemm(
            (rows, columns, dim),
            scale,
            (rows_of(*i), row_major),
            (rows_of(*j), transposed),
            0.0,
            (tile, wide),
        );
        let mut sums = Sums { rows: vec![0.0; rows], columns: vec![0.0; columns], positives: Vec::new() };
        for (r, row) in tile.chunks_exact_mut(columns).enumerate() {
            let a = i * BLOCK + r;
            let column = |b: usize| b.checked_sub(j * BLOCK).filter(|c| *c < columns);
            if let Some(c) = column(a) {
                row[c] = f32::NEG_INFINITY;
            }
            // The partner of the first half of the rows lies above the diagonal, that of the second half below.
            if a < half
                && let Some(c) = column(a + half)
            {
                sums.positives.push((a, row[c]));
                row[c] = f32::NEG_INFINITY;
            }
            if i == j
                && a >= half
                && let Some(c) = column(a - half)
            {
                row[c] = f32::NEG_INFINITY;
            }
            sums.rows[r] = exp_add(row, ceiling, &mut sums.columns);
        }
        sums
    };
    let chunks = tiles.par_chunks_mut(BLOCK * BLOCK).with_max_len(1);
    let sums: Vec<Sums> = places.par_iter().with_max_len(1).zip(chunks).map(measure).collect();
    let (mut negatives, mut positives) = (vec![0.0f64; n], vec![0.0f64; half]);
    for ((i, j), sums) in places.iter().zip(&sums) {
        let mut add = |block: usize, part: &[f32]| {
            negatives[block * BLOCK..].iter_mut().zip(part).for_each(|(s, p)| *s += f64::from(*p));
        };
        add(*i, &sums.rows);
        if i != j {
            add(*j, &sums.columns);
        }
        sums.positives.iter().for_each(|(a, logit)| positives[*a] = f64::from(*logit));
    }
    let rows: Vec<Row> = negatives
        .iter()
        .enumerate()
        .map(|(a, sum)| Row::new(positives[a % half], (ceiling, *sum), true))
        .collect();
    let inverses: Vec<f32> = rows.iter().map(|r| r.inverse).collect();
    // W_ab = P_ab + P_ba, and −(negatives' probability) of both for partners; the gradient is W·z/(τ·n).
    let weigh = |((i, j), tile): (&(usize, usize), &mut [f32])| {
        let (rows_here, columns) = (size(*i), size(*j));
        let others = &inverses[j * BLOCK..][..columns];
        for (r, row) in tile[..rows_here * columns].chunks_exact_mut(columns).enumerate() {
            let a = i * BLOCK + r;
            times_both(row, inverses[a], others);
            let partner = (a + half) % n;
            if let Some(c) = partner.checked_sub(j * BLOCK).filter(|c| *c < columns) {
                row[c] = -(rows[a].negatives + rows[partner].negatives) as f32;
            }
        }
    };
    places
        .par_iter()
        .with_max_len(1)
        .zip(tiles.par_chunks_mut(BLOCK * BLOCK).with_max_len(1))
        .for_each(weigh);
    let tile_at = |i: usize, j: usize| {
        // Tiles of the rows of blocks before i, and those before j in its own.
        let at = i * blocks - i * i.saturating_sub(1) / 2 + (j - i);
        &tiles[at * BLOCK * BLOCK..][..size(i) * size(j)]
    };
    let pull = |(j, gradient): (usize, &mut [f32])| {
        for i in 0..blocks {
            // Below the diagonal stands the transpose of what is above it.
            let (tile, strides) = if i < j {
                (tile_at(i, j), Strides::transposed(size(j)))
            } else {
                (tile_at(j, i), Strides::row_major(size(i)))
            };
            let keep = if i == 0 { 0.0 } else { 1.0 };
            let shape = (size(j), dim, size(i));
            gemm(
                shape,
                scale / n as f32,
                (tile, strides),
                (rows_of(i), row_major),
                keep,
                (gradient, row_major),
            );
        }
    };
    let mut gradient = vec![0.0; n * dim];
    gradient.par_chunks_mut(BLOCK * dim).with_max_len(1).enumerate().for_each(pull);
    Graded { value: rows.iter().map(|r| r.loss).sum::<f64>() / n.max(1) as f64, gradient }
}

/// What a tile adds to the sums of its rows and, mirrored, to those of its columns.
struct Sums {
    rows: Vec<f32>,
    columns: Vec<f32>,
    /// The logits of rows with their partners.
    positives: Vec<(usize, f32)>,
}

/// [`in_batch`] in memory of O(n·[`BLOCK`]): logits are computed once more for the gradient.
fn in_batch_streamed(z: &[f32], n: usize, dim: usize, scale: f32) -> Graded {
    let partner = |a: usize| (a + n / 2) % n;
    let (row_major, transposed) = (Strides::row_major(dim), Strides::transposed(dim));
    let wide = Strides::row_major(n);
    // The scaled inner products of a block of rows with all rows.
    let logits = |block: usize, rows: usize| {
        let mut out = vec![0.0; rows * n];
        let of = &z[block * BLOCK * dim..][..rows * dim];
        gemm((rows, n, dim), scale, (of, row_major), (z, transposed), 0.0, (&mut out, wide));
        out
    };
    let measure = |block: usize| -> Vec<Row> {
        let first = block * BLOCK;
        let one = |(i, row): (usize, &mut [f32])| {
            let a = first + i;
            let positive = f64::from(row[partner(a)]);
            row[a] = f32::NEG_INFINITY;
            row[partner(a)] = f32::NEG_INFINITY;
            let (top, sum) = sum_exp(row);
            Row::new(positive, (top, f64::from(sum)), false)
        };
        logits(block, BLOCK.min(n - first)).chunks_exact_mut(n).enumerate().map(one).collect()
    };
    let rows: Vec<Vec<Row>> = (0..n.div_ceil(BLOCK)).into_par_iter().with_max_len(1).map(measure).collect();
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    let of_all: Vec<f32> = rows.iter().map(|r| r.lse).collect();
    let pull = |(block, gradient): (usize, &mut [f32])| {
        let here = gradient.len() / dim;
        let mut weights = logits(block, here);
        for (i, row) in weights.chunks_exact_mut(n).enumerate() {
            let a = block * BLOCK + i;
            both_probabilities(row, of_all[a], &of_all);
            row[a] = 0.0;
            row[partner(a)] = -(rows[a].negatives + rows[partner(a)].negatives) as f32;
        }
        gemm((here, dim, n), scale / n as f32, (&weights, wide), (z, row_major), 0.0, (gradient, row_major));
    };
    let mut gradient = vec![0.0; n * dim];
    gradient.par_chunks_mut(BLOCK * dim).with_max_len(1).enumerate().for_each(pull);
    Graded { value: rows.iter().map(|r| r.loss).sum::<f64>() / n.max(1) as f64, gradient }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        (0..8).for_each(|l| lanes[l] += a[l] * b[l]);
    }
    lanes.iter().sum::<f32>() + rest
}

/// Elements that the row loops handle at once: two AVX-512 registers.
const LANES: usize = 32;

/// exp(x) for x ≤ 0, within 2 units in the last place; 0 below −87.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    let fma = |a: f32, b: f32, c: f32| if FMA { a.mul_add(b, c) } else { a * b + c };
    // x = n·ln 2 + r with |r| ≤ ln 2/2. Adding 1.5·2²³ rounds to the nearest whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `max`, which would turn NaN into a number.
    let y = if x < -87.0 { -87.0 } else { x };
    let t = fma(y, std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    // ln 2 in two pieces, the first exact in few bits.
    let r = fma(n, 2.121_944_4e-4, fma(n, -0.693_359_4, y));
    let mut p = fma(1.987_569_1e-4, r, 1.398_199_9e-3);
    p = fma(p, r, 8.333_452e-3);
    p = fma(p, r, 4.166_579_6e-2);
    p = fma(p, r, 1.666_666_5e-1);
    p = fma(p, r, 0.5);
    let e = fma(p, r * r, r) + 1.0;
    let two_to_n = f32::from_bits(t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e * two_to_n }
}

/// The loops over rows, written once and compiled for every instruction set.
// Indices over fixed lanes are what the compiler turns into vector registers.
#[allow(clippy::needless_range_loop)]
mod body {
    use super::{LANES, Part, exp};

    /// The largest `at(a_j, b_j)`.
    #[inline(always)]
    fn largest(a: &[f32], b: &[f32], at: impl Fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest = a.remainder().iter().zip(b.remainder());
        let rest = rest.map(|(a, b)| at(*a, *b)).fold(f32::NEG_INFINITY, f32::max);
        for (a, b) in a.zip(b) {
            for l in 0..LANES {
                let v = at(a[l], b[l]);
                lanes[l] = if v > lanes[l] { v } else { lanes[l] };
            }
        }
        lanes.into_iter().fold(rest, f32::max)
    }

    #[inline(always)]
    pub fn fold<const FMA: bool>(
        logits: &mut [f32],
        (width, count): (usize, usize),
        scale: &[f32],
        dim: usize,
        part: &mut Part,
    ) {
        let Part { top, sum, pull } = part;
        let state = top.iter_mut().zip(sum).zip(pull.chunks_exact_mut(dim));
        for (row, ((top, sum), pull)) in logits.chunks_mut(width).zip(state) {
            let (row, scale) = (&mut row[..count], &scale[..count]);
            let highest = largest(row, scale, |v, s| v * s);
            if highest > *top {
                let shrink = if *top == f32::NEG_INFINITY { 0.0 } else { exp::<FMA>(*top - highest) };
                *sum *= shrink;
                pull.iter_mut().for_each(|p| *p *= shrink);
                *top = highest;
            } else if *top == f32::NEG_INFINITY {
                // Only the query's own positive was here.
                row.fill(0.0);
                continue;
            }
            let mut lanes = [0.0f32; LANES];
            let shift = *top;
            let mut chunks = row.chunks_exact_mut(LANES);
            let mut scales = scale.chunks_exact(LANES);
            for (v, s) in (&mut chunks).zip(&mut scales) {
                for l in 0..LANES {
                    let e = exp::<FMA>(v[l] * s[l] - shift);
                    lanes[l] += e;
                    v[l] = e * s[l];
                }
            }
            for (v, s) in chunks.into_remainder().iter_mut().zip(scales.remainder()) {
                let e = exp::<FMA>(*v * s - shift);
                lanes[0] += e;
                *v = e * s;
            }
            *sum += lanes.iter().sum::<f32>();
        }
    }

    #[inline(always)]
    pub fn sum_exp<const FMA: bool>(row: &[f32]) -> (f32, f32) {
        let top = largest(row, row, |v, _| v);
        if top == f32::NEG_INFINITY {
            return (top, 0.0);
        }
        let mut lanes = [0.0f32; LANES];
        let chunks = row.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().map(|v| exp::<FMA>(v - top)).sum();
        for v in chunks {
            for l in 0..LANES {
                lanes[l] += exp::<FMA>(v[l] - top);
            }
        }
        (top, lanes.iter().sum::<f32>() + rest)
    }

    #[inline(always)]
    pub fn exp_add<const FMA: bool>(row: &mut [f32], shift: f32, columns: &mut [f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        let mut below = columns.chunks_exact_mut(LANES);
        for (v, sum) in (&mut chunks).zip(&mut below) {
            for l in 0..LANES {
                let e = exp::<FMA>(v[l] - shift);
                lanes[l] += e;
                sum[l] += e;
                v[l] = e;
            }
        }
        for ((v, sum), lane) in chunks.into_remainder().iter_mut().zip(below.into_remainder()).zip(&mut lanes)
        {
            *v = exp::<FMA>(*v - shift);
            *lane += *v;
            *sum += *v;
        }
        lanes.iter().sum()
    }

    #[inline(always)]
    pub fn times_both<const FMA: bool>(row: &mut [f32], own: f32, others: &[f32]) {
        for (v, other) in row.iter_mut().zip(others) {
            *v *= own + other;
        }
    }

    #[inline(always)]
    pub fn both_probabilities<const FMA: bool>(row: &mut [f32], own: f32, others: &[f32]) {
        for (v, other) in row.iter_mut().zip(others) {
            *v = exp::<FMA>(*v - own) + exp::<FMA>(*v - other);
        }
    }
}

/// Declares a function that runs its `body` compiled for the best instruction set of the machine.
macro_rules! dispatched {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)?) => {
        $(#[$doc])*
        fn $name($($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $ty),*) $(-> $out)? {
                    body::$name::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $out)? {
                    body::$name::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the machine has AVX-512F, as was just asked; the body is safe code.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the machine has AVX2 and FMA, as was just asked; the body is safe code.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // Where fused multiply-add is not part of every machine of the architecture, it is a slow call.
            body::$name::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}

dispatched! {
    /// Replaces a tile of inner products by exp(scale·product − top)·scale, and folds maxima and sums into the part.
    fn fold(logits: &mut [f32], size: (usize, usize), scale: &[f32], dim: usize, part: &mut Part)
}
dispatched! {
    /// The largest element and Σ exp(element − largest).
    fn sum_exp(row: &[f32]) -> (f32, f32)
}
dispatched! {
    /// Replaces each element by exp(element − shift), adds it to its column's sum, and gives the sum of the row.
    fn exp_add(row: &mut [f32], shift: f32, columns: &mut [f32]) -> f32
}
dispatched! {
    /// Replaces each exponential by its probability in its row and in its column: v·(own + other), the inverses of sums.
    fn times_both(row: &mut [f32], own: f32, others: &[f32])
}
dispatched! {
    /// Replaces each logit by its probability in its row and in its column: exp(v − own) + exp(v − other).
    fn both_probabilities(row: &mut [f32], own: f32, others: &[f32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(n: usize, dim: usize, phase: f64) -> Vec<f32> {
        let raw: Vec<f64> =
            (0..n * dim).map(|i| (phase + 1.3 * i as f64 + 0.01 * (i * i % 97) as f64).sin()).collect();
        let unit = |row: &[f64]| {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-9);
            row.iter().map(|v| (v / norm) as f32).collect::<Vec<_>>()
        };
        raw.chunks(dim).flat_map(unit).collect()
    }

    fn dot64(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum()
    }

    /// The loss and its gradient in double precision, one query at a time.
    fn reference(q: &[f32], k: &[f32], scales: &[f32], banks: &[Bank<'_>], dim: usize) -> (f64, Vec<f64>) {
        let n = scales.len();
        let (mut value, mut gradient) = (0.0, vec![0.0; n * dim]);
        for i in 0..n {
            let query = &q[i * dim..(i + 1) * dim];
            let mut all = vec![(scales[i] as f64, &k[i * dim..(i + 1) * dim])];
            for bank in banks {
                for (j, c) in bank.rows.chunks(dim).enumerate() {
                    let s = match bank.scale {
                        Scale::Uniform(s) => s,
                        Scale::Each(s) => s[j],
                    };
                    if bank.own.is_none_or(|own| own[i] != j) {
                        all.push((s as f64, c));
                    }
                }
            }
            let logits: Vec<f64> = all.iter().map(|(s, c)| s * dot64(query, c)).collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|l| (l - top).exp()).sum();
            value += (sum.ln() + top - logits[0]) / n as f64;
            for (c, ((s, row), l)) in all.iter().zip(&logits).enumerate() {
                let p = (l - top).exp() / sum - if c == 0 { 1.0 } else { 0.0 };
                for d in 0..dim {
                    gradient[i * dim + d] += p * s * row[d] as f64 / n as f64;
                }
            }
        }
        (value, gradient)
    }

    fn close(got: &Graded, (value, gradient): (f64, Vec<f64>)) -> Result<(), TestCaseError> {
        prop_assert!((got.value - value).abs() < 2e-5 * value.abs().max(1.0), "{} for {value}", got.value);
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut got.gradient.iter().zip(&gradient).map(|(g, w)| *g as f64 - w));
        let size = norm(&mut gradient.iter().copied());
        prop_assert!(off <= 1e-4 * size + 1e-7, "gradient off by {off:e} of {size:e}");
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn banks_equal_the_loop(
            n in 1usize..300, m in 1usize..1200, extra in 0usize..40, dim in 1usize..40,
            tau in 0.01f32..1.0, own: bool, each: bool,
        ) {
            let (q, k) = (rows(n, dim, 0.1), rows(n, dim, 0.15));
            let (bank, more) = (rows(m, dim, 3.0), rows(extra, dim, 5.0));
            let phi: Vec<f32> = (0..m).map(|j| 1.0 / (tau * (1.0 + 0.5 * (j as f32).sin()))).collect();
            let owners: Vec<usize> = (0..n).map(|i| i * 7 % m).collect();
            let banks = [
                Bank {
                    rows: &bank,
                    scale: if each { Scale::Each(&phi) } else { Scale::Uniform(1.0 / tau) },
                    own: own.then_some(&owners[..]),
                },
                Bank { rows: &more, scale: Scale::Uniform(1.0 / tau), own: None },
            ];
            let scales = vec![1.0 / tau; n];
            let got = cross_entropy(&q, &k, &scales, &banks, dim);
            close(&got, reference(&q, &k, &scales, &banks, dim))?;
        }

        #[test]
        fn in_batch_equals_the_loop(half in 1usize..150, dim in 1usize..40, tau in 0.01f32..1.0) {
            let n = 2 * half;
            let mut z = rows(n, dim, 0.3);
            // Views of one sample resemble each other.
            for i in 0..half * dim { z[half * dim + i] = 0.8 * z[i] + 0.2 * z[half * dim + i]; }
            let got = in_batch(&z, dim, tau);
            close(&got, in_batch_reference(&z, dim, tau))?;
        }
    }

    /// Through [`reference`] with every row's own bank, plus the transposed share of the gradient.
    fn in_batch_reference(z: &[f32], dim: usize, tau: f32) -> (f64, Vec<f64>) {
        let n = z.len() / dim;
        let (mut value, mut gradient) = (0.0, vec![0.0; n * dim]);
        let row = |a: usize| &z[a * dim..(a + 1) * dim];
        for a in 0..n {
            let logits: Vec<f64> = (0..n).map(|b| dot64(row(a), row(b)) / tau as f64).collect();
            let top = (0..n).filter(|b| *b != a).map(|b| logits[b]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..n).filter(|b| *b != a).map(|b| (logits[b] - top).exp()).sum();
            let partner = (a + n / 2) % n;
            value += (sum.ln() + top - logits[partner]) / n as f64;
            for b in (0..n).filter(|b| *b != a) {
                let p = ((logits[b] - top).exp() / sum - f64::from(u8::from(b == partner)))
                    / (n as f64 * tau as f64);
                for d in 0..dim {
                    gradient[a * dim + d] += p * row(b)[d] as f64;
                    gradient[b * dim + d] += p * row(a)[d] as f64;
                }
            }
        }
        (value, gradient)
    }

    #[test]
    fn one_ceiling_for_all_and_one_for_each_row_agree_at_the_border() {
        let (n, dim) = (96, 16);
        let z = rows(n, dim, 0.7);
        // Unit rows spread by 2/τ: τ on both sides of 2/SPREAD.
        for tau in [1.999 / SPREAD, 2.001 / SPREAD] {
            close(&in_batch(&z, dim, tau), in_batch_reference(&z, dim, tau)).unwrap();
        }
        // Opposite rows are as far apart as rows can be, and still have their share in the gradient.
        let mut opposite = vec![0.0f32; 4 * 2];
        for (i, x) in [1.0, -1.0, -1.0, 1.0].into_iter().enumerate() {
            opposite[2 * i] = x;
        }
        for tau in [0.026, 0.02, 1.0] {
            let got = in_batch(&opposite, 2, tau);
            let (value, _) = in_batch_reference(&opposite, 2, tau);
            assert!((got.value - value).abs() < 1e-6 * value, "{tau}: {} for {value}", got.value);
        }
    }

    #[test]
    fn large_batches_compute_logits_twice_and_agree() {
        let (n, dim) = (1100, 8);
        assert!(n * n > KEPT);
        let z = rows(n, dim, 0.3);
        close(&in_batch(&z, dim, 0.2), in_batch_reference(&z, dim, 0.2)).unwrap();
    }

    #[test]
    fn every_instruction_set_computes_the_exponential() {
        for i in 0..=200_000 {
            let x = -100.0 * i as f32 / 200_000.0;
            let want = (x as f64).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                let off = (got as f64 - want).abs();
                assert!(
                    off <= 2.0 * f32::EPSILON as f64 * want || (x < -86.9 && off < 1e-37),
                    "exp({x}) = {got}"
                );
            }
        }
        assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!((exp::<false>(0.0), exp::<true>(0.0)), (1.0, 1.0));
        let row: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
        let ((top, fast), (plain_top, plain)) = (sum_exp(&row), body::sum_exp::<false>(&row));
        assert!(top == plain_top && (fast - plain).abs() < 1e-5 * plain);
    }

    #[test]
    fn the_number_of_threads_does_not_matter() {
        let (n, m, dim) = (40, 3000, 16);
        let (q, k, bank, z) = (rows(n, dim, 0.1), rows(n, dim, 0.2), rows(m, dim, 1.0), rows(200, dim, 2.0));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let banks = [Bank { rows: &bank, scale: Scale::Uniform(5.0), own: None }];
            pool.install(|| (cross_entropy(&q, &k, &vec![5.0; n], &banks, dim), in_batch(&z, dim, 0.1)))
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn not_a_number_anywhere_is_seen() {
        let (q, bank) = (rows(3, 4, 0.0), rows(70, 4, 1.0));
        for poisoned in 0..3 {
            let (mut q, mut k, mut bank) = (q.clone(), q.clone(), bank.clone());
            [&mut q, &mut k, &mut bank][poisoned][6] = f32::NAN;
            let banks = [Bank { rows: &bank, scale: Scale::Uniform(5.0), own: None }];
            assert!(cross_entropy(&q, &k, &[5.0; 3], &banks, 4).value.is_nan(), "{poisoned}");
        }
        let mut z = rows(80, 4, 0.5);
        z[5] = f32::NAN;
        assert!(in_batch(&z, 4, 0.2).value.is_nan());
    }

    #[test]
    fn nothing_to_compare_with_is_zero() {
        let q = rows(3, 4, 0.0);
        let lonely = cross_entropy(&q, &q, &[5.0; 3], &[], 4);
        assert_eq!((lonely.value, lonely.gradient), (0.0, vec![0.0; 12]));
        let own: Vec<usize> = vec![0];
        let bank = Bank { rows: &q[..4], scale: Scale::Uniform(5.0), own: Some(&own) };
        assert_eq!(cross_entropy(&q[..4], &q[..4], &[5.0], &[bank], 4).value, 0.0);
        let pair = in_batch(&q[..8], 4, 0.2);
        assert_eq!((pair.value, pair.gradient), (0.0, vec![0.0; 8]));
    }
}
