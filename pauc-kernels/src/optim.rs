//! Optimizer steps in one pass over memory: parameters, gradients and state together.
//!
//! Elements are independent, so any partition gives the same bits. The only sum runs over fixed blocks in
//! `f64`.

use crate::threads::Each;
use rayon::prelude::*;

/// Elements per unit of work.
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
    /// A factor on the decayed gradient, 1 except for LARS.
    pub adaptation: f32,
    /// Whether to use Nesterov momentum.
    pub nesterov: bool,
}

/// d = a·(g + λw); v ← μv + d; w ← w − η·(v, or d + μv with Nesterov).
///
/// # Shapes
/// w n, g n, v n
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
/// # Shapes
/// w n, g n, m n, s n
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

/// `to ← momentum·to + (1 − momentum)·from`, the exponential moving average. With momentum 0 it copies.
///
/// # Shapes
/// to n, from n
///
/// # Panics
/// If the lengths differ.
pub fn average(to: &mut [f32], from: &[f32], momentum: f64) {
    assert_eq!(to.len(), from.len(), "average");
    if momentum == 0.0 {
        return to.copy_from_slice(from);
    }
    // Computed in f64, since 1 − 0.9999 in f32 has a relative error of 6e-4.
    let rate = (1.0 - momentum) as f32;
    to.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK)).each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += (f - *t) * rate);
    });
}

/// Returns Σ x².
///
/// # Shapes
/// x n
pub fn squared_norm(x: &[f32]) -> f64 {
    const LANES: usize = 16;
    let block = |x: &[f32]| {
        // Independent sums: a single one would wait for each addition before it starts the next.
        let mut sums = [0f64; LANES];
        let (lanes, rest) = x.as_chunks::<LANES>();
        for lane in lanes {
            sums.iter_mut().zip(lane).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
        }
        sums.iter_mut().zip(rest).for_each(|(s, v)| *s += f64::from(*v) * f64::from(*v));
        sums.iter().sum::<f64>()
    };
    // Collected first, since a parallel sum would add in an order that depends on the threads.
    let mut sums = vec![0.0; x.len().div_ceil(BLOCK)];
    sums.par_iter_mut().zip(x.par_chunks(BLOCK)).each(|(sum, x)| *sum = block(x));
    sums.iter().sum()
}

/// x ← factor·x.
///
/// # Shapes
/// x n
pub fn scale(x: &mut [f32], factor: f64) {
    x.par_chunks_mut(BLOCK).each(|x| x.iter_mut().for_each(|v| *v *= factor as f32));
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{Rounded, assert_within, inputs, tolerance};

    fn exact(values: &[f32]) -> Vec<Rounded> {
        values.iter().map(|v| Rounded::exact(*v)).collect()
    }

    /// More than two blocks and a remainder.
    const N: usize = 2 * BLOCK + 5;

    fn wave(phase: f32) -> Vec<f32> {
        inputs::wave(N, phase, 0.37)
    }

    fn admitted(got: &[f32], want: impl Fn(usize) -> Rounded) {
        for (i, got) in got.iter().enumerate() {
            assert!(want(i).admits(*got), "{i}: {got} for {}", want(i));
        }
    }

    /// A factor rounded to `f32` before use.
    fn factor(value: f64) -> Rounded {
        Rounded::within(value, 0.0).round()
    }

    #[test]
    fn sgd_equals_its_formula_element_by_element() {
        for nesterov in [false, true] {
            let (mut w, g, mut v) = (wave(0.0), wave(1.0), wave(2.0));
            let step = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.01, adaptation: 0.5, nesterov };
            sgd(&mut w, &g, &mut v, step);
            let (w0, v0) = (exact(&wave(0.0)), exact(&wave(2.0)));
            let d = |i: usize| factor(0.5) * (Rounded::exact(g[i]) + factor(0.01) * w0[i]);
            let v1 = |i: usize| factor(0.9) * v0[i] + d(i);
            admitted(&v, v1);
            admitted(&w, |i| w0[i] - factor(0.1) * if nesterov { d(i) + factor(0.9) * v1(i) } else { v1(i) });
        }
    }

    #[test]
    fn adamw_equals_its_formula_element_by_element() {
        let (mut w, g, mut m) = (wave(0.0), wave(1.0), wave(2.0));
        let mut s: Vec<f32> = wave(3.0).iter().map(|v| v * v + 0.1).collect();
        let (w0, m0, s0) = (exact(&wave(0.0)), exact(&wave(2.0)), exact(&s));
        let step = AdamW { lr: 0.01, betas: (0.9, 0.99), epsilon: 1e-8, weight_decay: 0.1, step: 3 };
        adamw(&mut w, &g, &mut m, &mut s, step);
        let gradient = exact(&g);
        let m1 = |i: usize| factor(0.9) * m0[i] + factor(0.1) * gradient[i];
        let s1 = |i: usize| factor(0.99) * s0[i] + factor(0.01) * gradient[i] * gradient[i];
        admitted(&m, m1);
        admitted(&s, s1);
        admitted(&w, |i| {
            let m = m1(i) / factor(1.0 - 0.9f64.powi(3));
            let s = s1(i) / factor(1.0 - 0.99f64.powi(3));
            w0[i] * factor(1.0 - 0.001) - factor(0.01) * m / (s.sqrt() + factor(1e-8))
        });
    }

    #[test]
    fn averages_and_norms_equal_their_formulas() {
        let (mut to, from) = (wave(0.0), wave(1.0));
        average(&mut to, &from, 0.9999);
        let (t0, f0) = (exact(&wave(0.0)), exact(&from));
        admitted(&to, |i| t0[i] + factor(1e-4) * (f0[i] - t0[i]));
        // The step is 10⁻⁴ of the difference: without it, the values would not be admitted.
        assert!((0..N).any(|i| !(t0[i] + factor(1e-4) * (f0[i] - t0[i])).admits(t0[i].value as f32)));
        average(&mut to, &from, 0.0);
        assert_eq!(to, from, "without momentum, it copies");
        let want: f64 = from.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert_within!(squared_norm(&from), want, tolerance::f64(N, want));
        scale(&mut to, 0.5);
        admitted(&to, |i| factor(0.5) * f0[i]);
    }

    #[test]
    fn the_norm_has_the_same_bits_for_every_number_of_threads() {
        let x = wave(0.5);
        let run =
            |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| squared_norm(&x));
        assert_eq!(run(1).to_bits(), run(3).to_bits());
    }
}
