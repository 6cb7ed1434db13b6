//! Expectations over independent random unit vectors, for the chance levels of terms.

/// E f(u·v) for independent uniform unit vectors u, v in `dim` dimensions.
///
/// The cosine's density is proportional to (1 − s²)^((D−3)/2). With s = cos θ the expectation is ∫ f(cos θ)
/// sin^(D−2) θ dθ / ∫ sin^(D−2) θ dθ over \[0, π\], computed by the midpoint rule at 8192 points.
///
/// For `dim` 1, returns the mean over the two cosines ±1; 0 is treated as 1.
pub fn expectation(dim: usize, f: impl Fn(f64) -> f64) -> f64 {
    if dim <= 1 {
        return 0.5 * (f(1.0) + f(-1.0));
    }
    const POINTS: usize = 8192;
    let power = (dim - 2) as f64;
    let (mut sum, mut mass) = (0.0, 0.0);
    for i in 0..POINTS {
        let (sin, cos) = ((i as f64 + 0.5) * std::f64::consts::PI / POINTS as f64).sin_cos();
        let weight = sin.powf(power);
        sum += weight * f(cos);
        mass += weight;
    }
    sum / mass
}

/// log E exp(−t·‖u − v‖²) for random unit vectors: the chance level of [`crate::regularizers::Uniformity`].
pub fn uniformity(dim: usize, t: f64) -> f64 {
    // Shifted by the value at u·v = 0, so that a large t does not underflow.
    -2.0 * t + expectation(dim, |s| (2.0 * t * s).exp()).ln()
}

/// E ‖u − v‖^α for random unit vectors: 2 at α = 2.
pub fn distance(dim: usize, alpha: f64) -> f64 {
    expectation(dim, |s| (2.0 - 2.0 * s).powf(alpha / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// The error of [`expectation`] for an f between `size` and −`size`.
    ///
    /// The midpoint rule is exact for trigonometric polynomials, and sin^(D−2) is one in even dimensions. In
    /// odd dimensions its first error term is h²/24 times the difference of the integrand's slopes at 0 and
    /// π. For sin θ·f this difference is f(1) + f(−1). Both integrals have this error, and ∫ sin θ = 2. Twice
    /// that covers the higher powers of h. In more than three dimensions the slopes are zero. Rounding: a
    /// weight sin^(D−2) is off by D − 2 roundings, and 8192 of them are summed.
    fn error(dim: usize, size: f64) -> f64 {
        let h = std::f64::consts::PI / 8192.0;
        let truncation = if dim == 3 { 2.0 * h * h / 24.0 * (2.0 * size / 2.0 + size) } else { 0.0 };
        truncation + tolerance::f64(8192 + dim, 2.0 * size)
    }

    #[test]
    fn moments_of_the_cosine_are_known() {
        for dim in [1, 2, 3, 6, 128, 4096] {
            assert_within!(expectation(dim, |s| s * s), 1.0 / dim as f64, error(dim, 1.0), "{dim}");
            assert_within!(distance(dim, 2.0), 2.0, error(dim, 4.0), "{dim}");
        }
        // On the ordinary sphere the cosine is uniform: E exp(2ts) = sinh(2t)/(2t), and E‖u−v‖ = 4/3.
        for t in [0.5f64, 2.0, 5.0] {
            let mean = (2.0 * t).sinh() / (2.0 * t);
            let off = error(3, (2.0 * t).exp()) / mean;
            assert_within!(uniformity(3, t), -2.0 * t + mean.ln(), off, "{t}");
        }
        assert_within!(distance(3, 1.0), 4.0 / 3.0, error(3, 2.0));
        // In very many dimensions all vectors are nearly orthogonal: E exp(λs) is between 1 and exp(λ²/2D).
        let most = (2.0f64 * 2.0).powi(2) / (2.0 * 100_000.0);
        assert_within!(uniformity(100_000, 2.0), -4.0, most + error(100_000, 4f64.exp()));
    }

    #[test]
    fn uniformity_agrees_with_a_simulation() {
        let mut rng = StdRng::seed_from_u64(3);
        let (dim, t, draws) = (6, 2.0, 200_000);
        // Normal numbers by Box and Muller make every direction equally likely.
        let mut normal = || {
            let (u, v) = (1.0 - rng.r#gen::<f64>(), rng.r#gen::<f64>());
            (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
        };
        let mut unit = || {
            let v: Vec<f64> = (0..dim).map(|_| normal()).collect();
            let n = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            v.into_iter().map(|x| x / n).collect::<Vec<_>>()
        };
        let mean = (0..draws)
            .map(|_| {
                let (u, v) = (unit(), unit());
                (-t * u.iter().zip(&v).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()).exp()
            })
            .sum::<f64>()
            / draws as f64;
        // The square of exp(−t·d²) is the same expression with 2t.
        let want = uniformity(dim, t).exp();
        let deviation = (uniformity(dim, 2.0 * t).exp() - want * want).sqrt();
        assert_within!(mean, want, tolerance::mean(deviation, draws));
    }
}
