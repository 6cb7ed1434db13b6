//! One pass over memory for each optimiser step: parameters, gradients and state together.
//!
//! Elements are independent, so any partition gives the same bits; the one sum here runs over fixed blocks in `f64`.

use crate::threads::Each;
use rayon::prelude::*;

/// Elements of one unit of work.
const BLOCK: usize = 1 << 14;

/// The constants of [`sgd`].
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// η.
    pub lr: f32,
    /// μ.
    pub momentum: f32,
    /// λ.
    pub weight_decay: f32,
    /// Factor on the decayed gradient, 1 but for LARS.
    pub adaptation: f32,
    /// Whether the step looks ahead along the momentum.
    pub nesterov: bool,
}

/// d = a·(g + λw); v ← μv + d; w ← w − η·(v, or d + μv with Nesterov).
///
/// # Panics
/// If the lengths differ.
pub fn sgd(w: &mut [f32], g: &[f32], v: &mut [f32], step: Sgd) {
    assert_eq!((g.len(), v.len()), (w.len(), w.len()), "sgd");
    let Sgd { lr, momentum, weight_decay, adaptation, nesterov } = step;
    let blocks = w.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(v.par_chunks_mut(BLOCK));
    blocks.each(|((w, g), v)| {
        for ((w, g), v) in w.iter_mut().zip(g).zip(v) {
            let d = adaptation * (g + weight_decay * *w);
            *v = momentum * *v + d;
            *w -= lr * if nesterov { d + momentum * *v } else { *v };
        }
    });
}

/// The constants of [`adamw`].
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// η.
    pub lr: f64,
    /// β₁ and β₂.
    pub betas: (f64, f64),
    /// ε.
    pub epsilon: f64,
    /// λ.
    pub weight_decay: f64,
    /// The number of this step, from 1.
    pub step: u64,
}

/// w ← (1 − ηλ)w; m ← β₁m + (1 − β₁)g; s ← β₂s + (1 − β₂)g²; w ← w − η·m̂/(√ŝ + ε), with m̂ = m/(1 − β₁ᵗ) and
/// ŝ = s/(1 − β₂ᵗ).
///
/// # Panics
/// If the lengths differ.
pub fn adamw(w: &mut [f32], g: &[f32], m: &mut [f32], s: &mut [f32], step: AdamW) {
    assert_eq!((g.len(), m.len(), s.len()), (w.len(), w.len(), w.len()), "adamw");
    let t = step.step as f64;
    let (beta1, beta2) = step.betas;
    let rate = (step.lr / (1.0 - beta1.powf(t))) as f32;
    let correction = (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32;
    let (keep, epsilon) = ((1.0 - step.lr * step.weight_decay) as f32, step.epsilon as f32);
    let (beta1, new1) = (beta1 as f32, (1.0 - beta1) as f32);
    let (beta2, new2) = (beta2 as f32, (1.0 - beta2) as f32);
    let state = m.par_chunks_mut(BLOCK).zip(s.par_chunks_mut(BLOCK));
    w.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(state).each(|((w, g), (m, s))| {
        for (((w, g), m), s) in w.iter_mut().zip(g).zip(m).zip(s) {
            *m = beta1 * *m + new1 * g;
            *s = beta2 * *s + new2 * g * g;
            *w = keep * *w - rate * *m / (correction * s.sqrt() + epsilon);
        }
    });
}

/// `to ← momentum·to + (1 − momentum)·from`, the exponential moving average. With a momentum of 0 it is a copy.
///
/// # Panics
/// If the lengths differ.
pub fn average(to: &mut [f32], from: &[f32], momentum: f64) {
    assert_eq!(to.len(), from.len(), "average");
    if momentum == 0.0 {
        return to.copy_from_slice(from);
    }
    // The rate is rounded from the difference in f64: 1 − 0.9999 in f32 is off by 6e-4 of itself.
    let rate = (1.0 - momentum) as f32;
    to.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK)).each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += (f - *t) * rate);
    });
}

/// Σ x².
pub fn squared_norm(x: &[f32]) -> f64 {
    const LANES: usize = 16;
    let block = |x: &[f32]| {
        // Independent sums: one alone would wait for each addition before it starts the next.
        let mut sums = [0f64; LANES];
        let (lanes, rest) = x.as_chunks::<LANES>();
        for lane in lanes {
            sums.iter_mut().zip(lane).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
        }
        sums.iter_mut().zip(rest).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
        sums.iter().sum::<f64>()
    };
    // Collected first: a parallel sum would add in an order that depends on the threads.
    let mut sums = vec![0.0; x.len().div_ceil(BLOCK)];
    sums.par_iter_mut().zip(x.par_chunks(BLOCK)).each(|(sum, x)| *sum = block(x));
    sums.iter().sum()
}

/// x ← factor·x.
pub fn scale(x: &mut [f32], factor: f64) {
    x.par_chunks_mut(BLOCK).each(|x| x.iter_mut().for_each(|v| *v *= factor as f32));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than two blocks and a remainder.
    const N: usize = 2 * BLOCK + 5;

    fn wave(phase: f32) -> Vec<f32> {
        (0..N).map(|i| (phase + 0.37 * i as f32).sin()).collect()
    }

    fn close(got: &[f32], want: impl Fn(usize) -> f64) {
        for (i, g) in got.iter().enumerate() {
            assert!((f64::from(*g) - want(i)).abs() < 1e-6, "{i}: {g} for {}", want(i));
        }
    }

    #[test]
    fn sgd_equals_its_formula_element_by_element() {
        for nesterov in [false, true] {
            let (mut w, g, mut v) = (wave(0.0), wave(1.0), wave(2.0));
            let step = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.01, adaptation: 0.5, nesterov };
            sgd(&mut w, &g, &mut v, step);
            let (w0, v0) = (wave(0.0), wave(2.0));
            let d = |i: usize| 0.5 * (f64::from(g[i]) + 0.01 * f64::from(w0[i]));
            let v1 = |i: usize| 0.9 * f64::from(v0[i]) + d(i);
            close(&v, v1);
            close(&w, |i| f64::from(w0[i]) - 0.1 * if nesterov { d(i) + 0.9 * v1(i) } else { v1(i) });
        }
    }

    #[test]
    fn adamw_equals_its_formula_element_by_element() {
        let (mut w, g, mut m) = (wave(0.0), wave(1.0), wave(2.0));
        let mut s: Vec<f32> = wave(3.0).iter().map(|v| v * v + 0.1).collect();
        let s0 = s.clone();
        let step = AdamW { lr: 0.01, betas: (0.9, 0.99), epsilon: 1e-8, weight_decay: 0.1, step: 3 };
        adamw(&mut w, &g, &mut m, &mut s, step);
        let (w0, m0) = (wave(0.0), wave(2.0));
        let m1 = |i: usize| 0.9 * f64::from(m0[i]) + 0.1 * f64::from(g[i]);
        let s1 = |i: usize| 0.99 * f64::from(s0[i]) + 0.01 * f64::from(g[i]).powi(2);
        close(&m, m1);
        close(&s, s1);
        close(&w, |i| {
            let (m, s) = (m1(i) / (1.0 - 0.9f64.powi(3)), s1(i) / (1.0 - 0.99f64.powi(3)));
            f64::from(w0[i]) * (1.0 - 0.001) - 0.01 * m / (s.sqrt() + 1e-8)
        });
    }

    #[test]
    fn averages_and_norms_equal_their_formulas() {
        let (mut to, from) = (wave(0.0), wave(1.0));
        average(&mut to, &from, 0.9999);
        let t0 = wave(0.0);
        for i in 0..N {
            let moved = f64::from(to[i]) - f64::from(t0[i]);
            let want = (f64::from(from[i]) - f64::from(t0[i])) * 1e-4;
            assert!((moved - want).abs() < 1e-7, "{i}");
        }
        average(&mut to, &from, 0.0);
        assert_eq!(to, from, "no momentum is a copy");
        let want: f64 = from.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!((squared_norm(&from) - want).abs() < 1e-9 * want);
        scale(&mut to, 0.5);
        close(&to, |i| 0.5 * f64::from(from[i]));
    }

    #[test]
    fn the_norm_has_the_same_bits_for_every_number_of_threads() {
        let x = wave(0.5);
        let run =
            |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| squared_norm(&x));
        assert_eq!(run(1).to_bits(), run(3).to_bits());
    }
}
