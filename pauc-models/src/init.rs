//! Initial weights.

use pauc_traits::rng::Stream;
use rand::Rng;
use rand::distributions::Uniform;
use rand_distr::StandardNormal;

/// Draws one value per element of `shape`, uniform in ±bound. With bound 1/√inputs, this is PyTorch's default
/// for linear layers.
pub fn uniform(rng: &mut Stream, bound: f32, shape: &[usize]) -> Vec<f32> {
    rng.sample_iter(Uniform::new_inclusive(-bound, bound)).take(shape.iter().product()).collect()
}

/// Draws independent normal values with mean 0 and the given standard deviation.
pub fn normal(rng: &mut Stream, deviation: f32, shape: &[usize]) -> Vec<f32> {
    let unit = rng.sample_iter::<f32, _>(StandardNormal);
    unit.take(shape.iter().product()).map(|v| deviation * v).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::rng::{Purpose, stream};

    fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
        let count = values.len() as f64;
        values.sum::<f64>() / count
    }

    #[test]
    fn uniform_values_have_the_requested_bounds_and_variance() {
        let values = uniform(&mut stream(1, Purpose::Init, 0, 0, 0), 0.5, &[100, 100]);
        assert_eq!(values.len(), 10_000);
        assert!(values.iter().all(|v| v.abs() <= 0.5));
        let variance = mean(values.iter().map(|v| f64::from(*v).powi(2)));
        let want = 0.25 / 3.0;
        assert_within!(variance, want, tolerance::variance(want, 9.0 / 5.0, values.len()));
    }

    #[test]
    fn normal_values_have_the_requested_deviation() {
        let values = normal(&mut stream(1, Purpose::Init, 0, 0, 0), 0.02, &[100, 100]);
        let want = 0.02f64.powi(2);
        assert_within!(mean(values.iter().map(|v| f64::from(*v))), 0.0, tolerance::mean(0.02, values.len()));
        let variance = mean(values.iter().map(|v| f64::from(*v).powi(2)));
        assert_within!(variance, want, tolerance::variance(want, 3.0, values.len()));
    }
}
