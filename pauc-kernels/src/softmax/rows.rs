//! The loops over rows of logits, for every instruction set.

use super::Part;
use crate::simd::dispatched;

/// Elements that the row loops process at once: two AVX-512 registers.
const LANES: usize = 32;

/// Returns exp(x) for x ≤ 0, within 2 units in the last place; 0 below −87. Multiply-add is always fused, so
/// that all instruction sets give the same bits. Where the processor has no such instruction, it is a slow
/// call.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let fma = |a: f32, b: f32, c: f32| a.mul_add(b, c);
    // x = n·ln 2 + r with |r| ≤ ln 2/2. Adding 1.5·2²³ rounds to the nearest integer and leaves it in the low
    // bits.
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
// Compilers turn indices over fixed lanes into vector registers.
#[allow(clippy::needless_range_loop)]
pub(super) mod body {
    use super::{LANES, exp};
    use crate::softmax::Part;

    /// Returns the largest `at(a_j, b_j)`.
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
    pub fn fold(
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
                let shrink = if *top == f32::NEG_INFINITY { 0.0 } else { exp(*top - highest) };
                *sum *= shrink;
                pull.iter_mut().for_each(|p| *p *= shrink);
                *top = highest;
            } else if *top == f32::NEG_INFINITY {
                // The row has only the query's own positive.
                row.fill(0.0);
                continue;
            }
            let mut lanes = [0.0f32; LANES];
            let shift = *top;
            let mut chunks = row.chunks_exact_mut(LANES);
            let mut scales = scale.chunks_exact(LANES);
            for (v, s) in (&mut chunks).zip(&mut scales) {
                for l in 0..LANES {
                    let e = exp(v[l] * s[l] - shift);
                    lanes[l] += e;
                    v[l] = e * s[l];
                }
            }
            for (v, s) in chunks.into_remainder().iter_mut().zip(scales.remainder()) {
                let e = exp(*v * s - shift);
                lanes[0] += e;
                *v = e * s;
            }
            *sum += lanes.iter().sum::<f32>();
        }
    }

    #[inline(always)]
    pub fn sum_exp(row: &[f32]) -> (f32, f32) {
        let top = largest(row, row, |v, _| v);
        if top == f32::NEG_INFINITY {
            return (top, 0.0);
        }
        let mut lanes = [0.0f32; LANES];
        let chunks = row.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().map(|v| exp(v - top)).sum();
        for v in chunks {
            for l in 0..LANES {
                lanes[l] += exp(v[l] - top);
            }
        }
        (top, lanes.iter().sum::<f32>() + rest)
    }

    #[inline(always)]
    pub fn exp_add(row: &mut [f32], shift: f32, columns: &mut [f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = row.chunks_exact_mut(LANES);
        let mut below = columns.chunks_exact_mut(LANES);
        for (v, sum) in (&mut chunks).zip(&mut below) {
            for l in 0..LANES {
                let e = exp(v[l] - shift);
                lanes[l] += e;
                sum[l] += e;
                v[l] = e;
            }
        }
        for ((v, sum), lane) in chunks.into_remainder().iter_mut().zip(below.into_remainder()).zip(&mut lanes)
        {
            *v = exp(*v - shift);
            *lane += *v;
            *sum += *v;
        }
        lanes.iter().sum()
    }

    #[inline(always)]
    pub fn times_both(row: &mut [f32], own: f32, others: &[f32]) {
        for (v, other) in row.iter_mut().zip(others) {
            *v *= own + other;
        }
    }

    #[inline(always)]
    pub fn both_probabilities(row: &mut [f32], own: f32, others: &[f32]) {
        for (v, other) in row.iter_mut().zip(others) {
            *v = exp(*v - own) + exp(*v - other);
        }
    }
}

dispatched! {
    /// Replaces a tile of inner products by exp(scale·product − top)·scale, and merges maxima and sums into
    /// the part.
    pub(super) fn fold(logits: &mut [f32], size: (usize, usize), scale: &[f32], dim: usize, part: &mut Part)
}
dispatched! {
    /// Returns the largest element and Σ exp(element − largest).
    pub(super) fn sum_exp(row: &[f32]) -> (f32, f32)
}
dispatched! {
    /// Replaces each element by exp(element − shift), adds it to its column's sum, and returns the sum of the
    /// row.
    pub(super) fn exp_add(row: &mut [f32], shift: f32, columns: &mut [f32]) -> f32
}
dispatched! {
    /// Replaces each exponential by the sum of its probabilities in its row and in its column: v·(own +
    /// other), with inverses of sums.
    pub(super) fn times_both(row: &mut [f32], own: f32, others: &[f32])
}
dispatched! {
    /// Replaces each logit by the sum of its probabilities in its row and in its column: exp(v − own) + exp(v
    /// − other).
    pub(super) fn both_probabilities(row: &mut [f32], own: f32, others: &[f32])
}
