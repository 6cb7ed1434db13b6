//! Expectations over independent random unit vectors: the values at which terms start.

/// E f(u·v) for independent uniform unit vectors u, v in `dim` dimensions.
///
/// The cosine's density is proportional to (1 − s²)^((D−3)/2); with s = cos θ the expectation is
/// ∫ f(cos θ) sin^(D−2) θ dθ / ∫ sin^(D−2) θ dθ over \[0, π\], summed by the midpoint rule at 8192 points.
///
/// `dim` 1 gives the mean over the two cosines ±1; 0 is read as 1.
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

/// log E exp(−t·‖u − v‖²) for random unit vectors: where [`crate::regularizers::Uniformity`] starts.
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
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn moments_of_the_cosine_are_known() {
        for dim in [1, 2, 3, 6, 128, 4096] {
            assert!((expectation(dim, |s| s * s) - 1.0 / dim as f64).abs() < 1e-7, "{dim}");
            assert!((distance(dim, 2.0) - 2.0).abs() < 1e-7);
        }
        // On the ordinary sphere the cosine is uniform: E exp(2ts) = sinh(2t)/(2t), and E‖u−v‖ = 4/3.
        for t in [0.5f64, 2.0, 5.0] {
            let want = -2.0 * t + ((2.0 * t).sinh() / (2.0 * t)).ln();
            assert!((uniformity(3, t) - want).abs() < 1e-6, "{t}: {} for {want}", uniformity(3, t));
        }
        assert!((distance(3, 1.0) - 4.0 / 3.0).abs() < 1e-6);
        // In very many dimensions all vectors are orthogonal.
        assert!((uniformity(100_000, 2.0) + 4.0).abs() < 1e-3);
    }

    #[test]
    fn uniformity_agrees_with_a_simulation() {
        let mut rng = StdRng::seed_from_u64(3);
        let (dim, t, draws) = (6, 2.0, 200_000);
        let mut unit = || {
            let v: Vec<f64> =
                (0..dim).map(|_| (0..12).map(|_| rng.r#gen::<f64>()).sum::<f64>() - 6.0).collect();
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
        assert!((mean.ln() - uniformity(dim, t)).abs() < 0.02, "{} for {}", uniformity(dim, t), mean.ln());
    }
}
