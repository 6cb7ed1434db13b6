//! Inputs that tests share. All are functions of their arguments, so every run sees the same numbers.

/// sin(phase + step·i), in `f32`.
pub fn wave(n: usize, phase: f32, step: f32) -> Vec<f32> {
    (0..n).map(|i| (phase + step * i as f32).sin()).collect()
}

/// Like [`wave`], in `f64`.
pub fn wave_f64(n: usize, phase: f64, step: f64) -> Vec<f64> {
    (0..n).map(|i| (phase + step * i as f64).sin()).collect()
}

/// sin(phase + 1.3·i + cos(0.37·i)), in `f32`: smooth and without a period.
pub fn irregular(n: usize, phase: f32) -> Vec<f32> {
    (0..n).map(|i| (phase + 1.3 * i as f32 + (0.37 * i as f32).cos()).sin()).collect()
}

/// Like [`irregular`], in `f64`.
pub fn irregular_f64(n: usize, phase: f64) -> Vec<f64> {
    (0..n).map(|i| (phase + 1.3 * i as f64 + (0.37 * i as f64).cos()).sin()).collect()
}

/// Returns values within 1 of the `groups` centers 0, gap, 2·gap, …; the groups take turns.
pub fn groups(n: usize, groups: usize, gap: f32) -> Vec<f32> {
    (0..n).map(|i| ((i * i) as f32 * 0.37).sin() + gap * (i % groups) as f32).collect()
}

/// Returns numbers spread evenly over [−1, 1), like independent draws.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(GOLDEN) | 1;
    (0..n).map(|_| (next(&mut state) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// 2⁶⁴ divided by the golden ratio: its multiples differ in all bits.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Marsaglia's xorshift.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Changes numbers by a relative amount, each up or down at random. It imitates the effect of rounding on the
/// inputs of a computation.
#[derive(Clone, Debug)]
pub struct Perturbation {
    size: f64,
    state: u64,
}

impl Perturbation {
    /// Multiplies by the factors 1 + `size` and 1 − `size`. Another `draw` has other signs.
    pub fn new(size: f64, draw: u64) -> Self {
        Perturbation { size, state: draw.wrapping_add(1).wrapping_mul(GOLDEN) }
    }

    /// Returns the next number, changed.
    pub fn apply(&mut self, value: f64) -> f64 {
        let up = next(&mut self.state) >> 40 & 1 == 0;
        value * if up { 1.0 + self.size } else { 1.0 - self.size }
    }

    /// Changes the next numbers in place.
    pub fn apply_all(&mut self, values: &mut [f64]) {
        values.iter_mut().for_each(|v| *v = self.apply(*v));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance;

    #[test]
    fn noise_is_even_and_depends_on_the_seed() {
        let values = noise(30_000, 3);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 30_000.0;
        let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 30_000.0;
        assert!(mean.abs() < tolerance::mean((1.0f64 / 3.0).sqrt(), 30_000), "{mean}");
        // The variance of a square is 1/5 − 1/9.
        assert!((square - 1.0 / 3.0).abs() < tolerance::mean((4.0f64 / 45.0).sqrt(), 30_000), "{square}");
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        assert_ne!(values, noise(30_000, 4));
    }

    #[test]
    fn a_perturbation_goes_up_and_down_evenly() {
        let mut values = vec![2.0; 10_000];
        Perturbation::new(0.25, 7).apply_all(&mut values);
        let ups = values.iter().filter(|v| **v == 2.5).count();
        assert!(values.iter().all(|v| [1.5, 2.5].contains(v)));
        assert!((ups as f64 / 10_000.0 - 0.5).abs() < tolerance::frequency(0.5, 10_000), "{ups}");
        let mut others = vec![2.0; 10_000];
        Perturbation::new(0.25, 8).apply_all(&mut others);
        assert_ne!(values, others);
    }

    #[test]
    fn waves_are_their_formulas() {
        assert_eq!(wave(3, 0.5, 0.25)[2], 1f32.sin());
        assert_eq!(wave_f64(3, 0.5, 0.25)[2], 1f64.sin());
        assert_eq!(irregular(1, 0.5)[0], 1.5f32.sin());
        assert_eq!(irregular_f64(1, 0.5)[0], 1.5f64.sin());
        assert_eq!(groups(5, 3, 10.0)[3], 10.0 * 0.0 + (9.0f32 * 0.37).sin());
    }
}
