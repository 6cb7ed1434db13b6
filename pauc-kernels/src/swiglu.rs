//! SwiGLU, SiLU(a) ⊙ b of rows (a, b) with SiLU(a) = a/(1 + e⁻ᵃ), and its derivative (Shazeer 2020).
//!
//! These functions run on the calling thread.

use crate::simd::dispatched;

/// Elements processed at once: two AVX-512 registers.
const LANES: usize = 32;

/// Returns 1/(1 + e⁻ᵃ). The exponential is that of a number below zero, which does not overflow.
#[inline(always)]
fn sigmoid(a: f32) -> f32 {
    // In this order, the result for NaN is NaN.
    let magnitude = if a < 0.0 { -a } else { a };
    let e = crate::softmax::exp(-magnitude);
    let numerator = if a < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

// Compilers turn indices over fixed lanes into vector registers.
#[allow(clippy::needless_range_loop)]
mod body {
    use super::{LANES, sigmoid};

    #[inline(always)]
    pub fn swiglu(x: &[f32], y: &mut [f32]) {
        let (a, b) = x.split_at(y.len());
        let (mut a, mut b, mut y) = (a.chunks_exact(LANES), b.chunks_exact(LANES), y.chunks_exact_mut(LANES));
        for ((a, b), y) in (&mut a).zip(&mut b).zip(&mut y) {
            for l in 0..LANES {
                y[l] = a[l] * sigmoid(a[l]) * b[l];
            }
        }
        for ((a, b), y) in a.remainder().iter().zip(b.remainder()).zip(y.into_remainder()) {
            *y = a * sigmoid(*a) * b;
        }
    }

    /// Returns the gradients of a and b, and the value.
    #[inline(always)]
    fn gradient(a: f32, b: f32, dy: f32) -> [f32; 3] {
        let s = sigmoid(a);
        let silu = a * s;
        [dy * b * (s + silu * (1.0 - s)), dy * silu, silu * b]
    }

    #[inline(always)]
    pub fn swiglu_backward(x: &mut [f32], dy: &[f32], y: &mut [f32]) {
        let (a, b) = x.split_at_mut(y.len());
        let (mut a, mut b) = (a.chunks_exact_mut(LANES), b.chunks_exact_mut(LANES));
        let (mut y, dy) = (y.chunks_exact_mut(LANES), dy.chunks_exact(LANES));
        let rest = dy.remainder();
        for (((a, b), y), dy) in (&mut a).zip(&mut b).zip(&mut y).zip(dy) {
            for l in 0..LANES {
                [a[l], b[l], y[l]] = gradient(a[l], b[l], dy[l]);
            }
        }
        let rest = y.into_remainder().iter_mut().zip(rest);
        for ((a, b), (y, dy)) in a.into_remainder().iter_mut().zip(b.into_remainder()).zip(rest) {
            [*a, *b, *y] = gradient(*a, *b, *dy);
        }
    }
}

dispatched! {
    /// y ← SiLU(a) ⊙ b of a row.
    ///
    /// # Shapes
    /// x (a, b) of twice the length of y
    pub(super) fn swiglu(x: &[f32], y: &mut [f32])
}
dispatched! {
    /// y ← SiLU(a) ⊙ b of a row, and then x ← the gradients of a and b.
    ///
    /// # Shapes
    /// x (a, b) of twice the length of y and ∂y
    pub(super) fn swiglu_backward(x: &mut [f32], dy: &[f32], y: &mut [f32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::assert_within;
    use pauc_testing::tolerance::f32;

    #[test]
    fn values_and_slopes_are_those_of_the_definition() {
        let a: Vec<f32> = (-1003..1003).map(|i| i as f32 / 50.0).collect();
        let b: Vec<f32> = a.iter().map(|a| 1.5 * (3.0 * a).sin()).collect();
        let dy: Vec<f32> = a.iter().map(|a| 1.0 + 0.5 * a.cos()).collect();
        let before = [&a[..], &b].concat();
        let (mut x, mut y, mut alone) = (before.clone(), vec![0.0; a.len()], vec![0.0; a.len()]);
        swiglu(&before, &mut alone);
        swiglu_backward(&mut x, &dy, &mut y);
        assert_eq!(alone, y);
        for i in 0..a.len() {
            let [a, b, dy] = [a[i], b[i], dy[i]].map(f64::from);
            let s = 1.0 / (1.0 + (-a).exp());
            // The exponential has the relative error of its argument.
            let operations = 12 + a.abs() as usize;
            assert_within!(y[i], a * s * b, f32(operations, (a * b).abs()), "value at {a}");
            let slope = s + a * s * (1.0 - s);
            let size = dy * b.abs() * (1.0 + a.abs());
            assert_within!(x[i], dy * b * slope, f32(operations, size), "slope of a at {a}");
            assert_within!(
                x[alone.len() + i],
                dy * a * s,
                f32(operations, (dy * a).abs()),
                "slope of b at {a}"
            );
        }
    }

    #[test]
    fn extremes_are_kept() {
        let mut y = [1.0; 4];
        swiglu(&[f32::NAN, 1e30, -1e30, -0.0, 1.0, 2.0, 2.0, 1.0], &mut y);
        assert!(y[0].is_nan());
        assert_eq!(y[1..], [2e30, 0.0, 0.0]);
    }
}
