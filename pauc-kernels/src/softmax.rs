//! Cross-entropy of a softmax over inner products, with its gradient, streamed over tiles of candidates.
//!
//! One call computes value and gradient. Neither the logits nor the probabilities of all candidates are in
//! memory at the same time: a tile of logits is computed, exponentiated relative to a running maximum and
//! accumulated into the gradient.
//!
//! The positive of a query is kept separate from its negatives. So a saturated softmax keeps its precision:
//! the value is ln(1 + Σ exp(negative − positive)), not a difference of large numbers, and the positive's
//! share of the gradient is the negatives' probability, not one minus its own.

mod in_batch;
mod rows;
#[cfg(test)]
mod tests;

pub use in_batch::in_batch;

use crate::gemm::{Strides, gemm};
use rayon::prelude::*;
pub(crate) use rows::exp;
use rows::fold;
use std::borrow::Cow;

/// Candidates per tile of logits.
const TILE: usize = 512;
/// Queries per tile of logits.
const ROWS: usize = 256;
/// The maximum number of parts of a bank, which may run concurrently. It does not depend on the number of
/// threads, so neither do the results.
const PARTS: usize = 16;

/// The factors from inner products with candidates to logits: inverse temperatures.
#[derive(Clone, Copy, Debug)]
pub enum Scale<'a, E = f32> {
    /// The same for all candidates: 1/τ.
    Uniform(E),
    /// One per candidate: 1/φ.
    Each(&'a [E]),
}

/// Candidates that every query is compared with. `Rows` is the type of matrices on a device.
#[derive(Clone, Copy, Debug)]
pub struct Bank<'a, Rows = &'a [f32], E = f32> {
    /// M rows of D.
    pub rows: Rows,
    /// The scale of their logits.
    pub scale: Scale<'a, E>,
    /// For each query, the row that is its positive and so not one of its negatives.
    pub own: Option<&'a [usize]>,
}

/// The positive of each query. `Rows` is the type of matrices on a device.
#[derive(Clone, Copy, Debug)]
pub enum Positives<Rows, E = f32> {
    /// B rows of D, and the scale of their logits.
    Rows(Rows, E),
    /// The query's own row of the first bank, with its scale there.
    Own,
}

/// A value and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Graded<Value = f64, Gradient = Vec<f32>> {
    /// The mean over queries.
    pub value: Value,
    /// The gradient with respect to the queries, row-major.
    pub gradient: Gradient,
}

/// Computes mean_i −log [ e^{s_i q_i·k_i} / (e^{s_i q_i·k_i} + Σ_c e^{s_c q_i·c}) ] over the rows c of all
/// banks, and its gradient with respect to q. `positives` are the keys k with their scales s.
///
/// # Shapes
/// `queries` and `positives` (B, D), each bank (M, D). The gradient is (B, D).
///
/// # Panics
/// If sizes disagree, `own` names a row that does not exist, or positives are own rows but there is no first
/// bank that names them.
pub fn cross_entropy(
    queries: &[f32],
    positives: Positives<&[f32]>,
    banks: &[Bank<'_>],
    dim: usize,
) -> Graded {
    assert!(
        dim > 0 && queries.len().is_multiple_of(dim),
        "{} values do not form rows of {dim}",
        queries.len()
    );
    let n = queries.len() / dim;
    for bank in banks {
        let m = bank.rows.len() / dim;
        assert_eq!(bank.rows.len(), m * dim, "a bank must have whole rows of {dim}");
        assert!(
            !matches!(bank.scale, Scale::Each(s) if s.len() != m),
            "expected one scale for each of {m} candidates"
        );
        let own = |own: &[usize]| own.len() == n && own.iter().all(|j| *j < m);
        assert!(bank.own.is_none_or(own), "expected one row below {m} for each of {n} queries");
    }
    let keys = match positives {
        Positives::Rows(rows, scale) => Keys { rows: Cow::Borrowed(rows), scales: vec![scale; n] },
        Positives::Own => banks
            .first()
            .and_then(|bank| bank.own_keys(dim))
            .expect("own positives need a first bank that names them"),
    };
    assert_eq!(keys.rows.len(), n * dim, "expected a positive for each of {n} queries of {dim}");
    crate::threads::inside(|| cross_entropy_inside(queries, &keys, banks, dim))
}

/// The positive of each query (B, D), and the scale of its logit.
struct Keys<'a> {
    rows: Cow<'a, [f32]>,
    scales: Vec<f32>,
}

fn cross_entropy_inside(queries: &[f32], keys: &Keys<'_>, banks: &[Bank<'_>], dim: usize) -> Graded {
    let n = keys.scales.len();
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
            finish(&queries[span.clone()], &keys.rows[span], &keys.scales[rows], &parts, gradient, n)
        })
        .collect();
    Graded { value: losses.iter().sum::<f64>() / n.max(1) as f64, gradient }
}

/// The contribution of a part of a bank to a block of queries.
struct Part {
    /// The largest logit of each query.
    top: Vec<f32>,
    /// Σ exp(logit − top).
    sum: Vec<f32>,
    /// Σ exp(logit − top)·scale·candidate, (rows, D).
    pull: Vec<f32>,
}

impl Bank<'_> {
    /// Returns the own rows of all queries; `None` if the bank does not name them.
    fn own_keys(&self, dim: usize) -> Option<Keys<'static>> {
        let own = self.own?;
        let rows = own.iter().flat_map(|j| &self.rows[j * dim..(j + 1) * dim]).copied().collect();
        let scale = |j: &usize| match self.scale {
            Scale::Uniform(s) => s,
            Scale::Each(s) => s[*j],
        };
        Some(Keys { rows, scales: own.iter().map(scale).collect() })
    }

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

/// Combines the parts of a block of queries with their positives: returns the losses, and writes the gradient
/// of their mean over `n`.
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

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a8.zip(b8) {
        (0..8).for_each(|l| lanes[l] += a[l] * b[l]);
    }
    lanes.iter().sum::<f32>() + rest
}
