//! GELU, x·Φ(x) with the distribution function Φ of the normal distribution, and its derivative.
//!
//! Φ is computed by formula 7.1.26 of Abramowitz and Stegun, *Handbook of Mathematical Functions*, whose absolute
//! error is below 0.75·10⁻⁷: as good as an `f32` near 1. These functions run on the calling thread.

use crate::simd::dispatched;

/// The largest absolute error of Φ by the formula, without rounding.
#[cfg(test)]
const ERROR: f64 = 0.75e-7;
/// Elements processed at once: two AVX-512 registers.
const LANES: usize = 32;

/// Returns Φ(x), and the density φ(x) of the normal distribution.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    // In this order, the result for NaN is NaN.
    let z = if x < 0.0 { -x } else { x };
    let bell = crate::softmax::exp(-0.5 * z * z);
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let mut p = 1.061_405_4 * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * bell;
    let below = if x < 0.0 { tail } else { 1.0 - tail };
    (below, bell * 0.398_942_3)
}

// Compilers turn indices over fixed lanes into vector registers.
#[allow(clippy::needless_range_loop)]
mod body {
    use super::{LANES, normal};

    #[inline(always)]
    pub fn gelu(x: &mut [f32]) {
        let mut chunks = x.chunks_exact_mut(LANES);
        for x in &mut chunks {
            for l in 0..LANES {
                x[l] *= normal(x[l]).0;
            }
        }
        for x in chunks.into_remainder() {
            *x *= normal(*x).0;
        }
    }

    #[inline(always)]
    pub fn gelu_backward(x: &mut [f32], dy: &[f32], y: &mut [f32]) {
        let (mut xs, mut ys) = (x.chunks_exact_mut(LANES), y.chunks_exact_mut(LANES));
        let gradients = dy.chunks_exact(LANES);
        let rest = gradients.remainder();
        for ((x, y), dy) in (&mut xs).zip(&mut ys).zip(gradients) {
            for l in 0..LANES {
                let (below, density) = normal(x[l]);
                y[l] = x[l] * below;
                x[l] = dy[l] * (below + x[l] * density);
            }
        }
        for ((x, y), dy) in xs.into_remainder().iter_mut().zip(ys.into_remainder()).zip(rest) {
            let (below, density) = normal(*x);
            *y = *x * below;
            *x = dy * (below + *x * density);
        }
    }
}

dispatched! {
    /// x ← x·Φ(x).
    pub(super) fn gelu(x: &mut [f32])
}
dispatched! {
    /// y ← x·Φ(x), and then x ← ∂y·(Φ(x) + x·φ(x)), the gradient of the input.
    ///
    /// # Shapes
    /// all of one length
    pub(super) fn gelu_backward(x: &mut [f32], dy: &[f32], y: &mut [f32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::assert_within;
    use pauc_testing::tolerance::f32;

    /// Φ(x) by the power series of its integral, or its asymptotic value.
    fn phi(x: f64) -> f64 {
        if x.abs() > 8.0 {
            return if x > 0.0 { 1.0 } else { 0.0 };
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..400 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    #[test]
    fn values_and_slopes_are_those_of_the_definition() {
        let at: Vec<f32> = (-3000..=3000).map(|i| i as f32 / 300.0).collect();
        let (mut x, mut y, mut alone) = (at.clone(), vec![0.0; at.len()], at.clone());
        let dy: Vec<f32> = at.iter().map(|x| 1.0 + 0.5 * x.sin()).collect();
        gelu(&mut alone);
        gelu_backward(&mut x, &dy, &mut y);
        assert_eq!(alone, y);
        for (((x, y), got), dy) in at.iter().zip(&y).zip(&x).zip(&dy) {
            let (x, dy) = (f64::from(*x), f64::from(*dy));
            // The polynomial's terms have both signs: its rounding is that of their magnitudes, below 3.2.
            let rounding = ERROR + f32(12, 2.0);
            assert_within!(*y, x * phi(x), x.abs() * rounding, "value at {x}");
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let want = dy * (phi(x) + x * density);
            // The exponential has the relative error of its argument.
            let bell = x.abs() * density * f32(8 + (x * x) as usize, 1.0);
            assert_within!(*got, want, dy * (2.0 * rounding + bell), "slope at {x}");
        }
    }

    #[test]
    fn extremes_are_kept() {
        let mut x = [f32::NAN, 1e30, -1e30, 0.0, -0.0, f32::INFINITY];
        gelu(&mut x);
        assert!(x[0].is_nan());
        assert_eq!(x[1..], [1e30, 0.0, 0.0, 0.0, f32::INFINITY]);
    }
}
