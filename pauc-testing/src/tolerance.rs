//! Tolerances of computed values, derived from the computation.
//!
//! Rounding: the relative error of one operation is at most u = ε/2. A chain of `n` operations (a sum of `n`
//! terms in any order, an inner product of length `n` with or without fused multiply-add) has an error of at
//! most γₙ·Σ|terms| with γₙ = n·u/(1 − n·u); see Higham, *Accuracy and Stability of Numerical Algorithms*,
//! chapter 3. If values cancel, Σ|terms| is larger than the result, and so is the relative error.
//!
//! Samples: a frequency or a mean of `n` independent draws has a standard deviation. An error of six of them
//! occurs about once in 500 million cases.

/// Unit roundoff of `f32`, half the distance from 1 to the next number. The factor covers the rounding of the
/// oracle itself in `f64`.
pub const UNIT_F32: f64 = (1.0 + 1.0 / (1u64 << 20) as f64) / (1u64 << 24) as f64;
/// Unit roundoff of `f64`.
pub const UNIT_F64: f64 = f64::EPSILON / 2.0;
/// The number of standard deviations that a mean of independent draws may be off.
pub const SIGMAS: f64 = 6.0;

fn gamma(operations: usize, unit: f64) -> f64 {
    let nu = operations as f64 * unit;
    if nu < 1.0 { nu / (1.0 - nu) } else { f64::INFINITY }
}

/// Returns the largest rounding error of `operations` successive operations in `f32` on terms whose absolute
/// values sum to `magnitude`.
pub fn f32(operations: usize, magnitude: f64) -> f64 {
    gamma(operations, UNIT_F32) * magnitude
}

/// Returns six standard deviations of a random walk of `operations` roundings in `f32`, relative to the
/// value. Use it where the bound of [`f32()`] is far too large to be useful.
///
/// Rounding errors of long sums with terms of both signs behave like independent ones, spread over ±u with a
/// standard deviation of at most u/√3 (Higham and Mary, *A New Approach to Probabilistic Rounding Error
/// Analysis*, 2019). Partial sums are no larger than the whole, so the estimate is on average two or three
/// times too large.
pub fn random_walk(operations: usize) -> f64 {
    SIGMAS * (operations as f64 / 3.0).sqrt() * UNIT_F32
}

/// Like [`f32()`], for two computations in `f64` that are compared with each other; each may be off.
pub fn f64(operations: usize, magnitude: f64) -> f64 {
    2.0 * gamma(operations, UNIT_F64) * magnitude
}

/// Returns the error of a central difference (f(x + h) − f(x − h))/2h of a function computed in `f64` by
/// `operations` successive operations: h²/6·|f‴| of truncation, and the rounding of two values of size
/// `value`, divided by 2h.
pub fn central_difference(step: f64, third_derivative: f64, operations: usize, value: f64) -> f64 {
    step * step / 6.0 * third_derivative + gamma(operations, UNIT_F64) * value / step
}

/// Returns the allowed error of the frequency of an event of probability `p` in `draws` draws: [`SIGMAS`]
/// deviations.
pub fn frequency(p: f64, draws: usize) -> f64 {
    mean((p * (1.0 - p)).sqrt(), draws)
}

/// Returns the allowed error of the mean of `draws` independent draws: [`SIGMAS`] times σ/√n.
pub fn mean(deviation: f64, draws: usize) -> f64 {
    SIGMAS * deviation / (draws as f64).sqrt()
}

/// Returns the allowed error of the variance of `draws` independent draws: [`SIGMAS`] times σ²·√((κ − 1)/n),
/// where κ is the kurtosis (3 for a normal, 9/5 for a uniform distribution).
pub fn variance(variance: f64, kurtosis: f64, draws: usize) -> f64 {
    mean(variance * (kurtosis - 1.0).sqrt(), draws)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worst_case_sum_stays_below_its_bound() {
        // Each addition of 2⁻²⁵ to numbers just above 1 rounds to the nearest and loses almost half a unit.
        let term = f32::from_bits(1.0f32.to_bits() + 1) / 2f32.powi(25);
        let (mut sum, n) = (1.0f32, 1000);
        (0..n).for_each(|_| sum += term);
        let exact = 1.0 + n as f64 * f64::from(term);
        let off = (f64::from(sum) - exact).abs();
        assert!(off <= f32(n, exact) && off >= 0.4 * f32(n, exact), "{off:e} of {:e}", f32(n, exact));
    }

    #[test]
    fn a_sum_of_both_signs_walks_at_random() {
        let values = crate::inputs::noise(4000, 5);
        let (sum, exact) = values.iter().fold((0f32, 0f64), |(s, e), v| (s + v, e + f64::from(*v)));
        // A sum of terms of both signs is never larger than a few times √n.
        let off = (f64::from(sum) - exact).abs();
        assert!(off <= random_walk(4000) * 4000f64.sqrt() && off > 0.0, "{off:e}");
        assert!(random_walk(4000) < 0.1 * f32(4000, 1.0));
    }

    #[test]
    fn a_central_difference_is_as_exact_as_promised() {
        for step in [1e-2, 1e-4, 1e-6] {
            let numeric = ((1.0f64 + step).sin() - (1.0f64 - step).sin()) / (2.0 * step);
            let off = (numeric - 1f64.cos()).abs();
            assert!(off <= central_difference(step, 1.0, 2, 1.0), "{step}: {off:e}");
        }
    }

    #[test]
    fn frequencies_of_a_fair_coin() {
        assert!((frequency(0.5, 10_000) - 6.0 * 0.005).abs() < 1e-15);
        assert!((variance(1.0, 3.0, 200) - 6.0 * 0.1).abs() < 1e-15);
    }
}
