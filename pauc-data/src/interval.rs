//! A range of values for a random parameter.

use rand::Rng;
use serde::{Deserialize, Serialize};

/// Two finite numbers greater than 0 in ascending order: `(0.2, 1.0)` in a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "(f64, f64)", into = "(f64, f64)")]
pub struct Interval {
    low: f64,
    high: f64,
}

impl Interval {
    /// Makes an interval from literals in code.
    ///
    /// # Panics
    /// If the numbers are out of range or in the wrong order; in a constant, that is a compile-time error.
    pub const fn lit(low: f64, high: f64) -> Self {
        assert!(low > 0.0 && low <= high && high < f64::INFINITY, "0 < low ≤ high");
        Interval { low, high }
    }

    /// Returns the smallest value.
    pub const fn low(self) -> f64 {
        self.low
    }

    /// Returns the largest value.
    pub const fn high(self) -> f64 {
        self.high
    }

    /// Draws a value uniformly.
    pub fn uniform(self, rng: &mut impl Rng) -> f64 {
        self.low + (self.high - self.low) * rng.gen_range(0.0..1.0)
    }

    /// Draws a value whose logarithm is uniform.
    pub fn log_uniform(self, rng: &mut impl Rng) -> f64 {
        let (low, high) = (self.low.ln(), self.high.ln());
        (low + (high - low) * rng.gen_range(0.0..1.0)).exp()
    }
}

impl TryFrom<(f64, f64)> for Interval {
    type Error = String;
    fn try_from((low, high): (f64, f64)) -> Result<Self, String> {
        if low > 0.0 && low <= high && high < f64::INFINITY {
            Ok(Interval { low, high })
        } else {
            Err(format!(
                "must be two finite numbers greater than 0, the smaller one first, got ({low}, {high})"
            ))
        }
    }
}

impl From<Interval> for (f64, f64) {
    fn from(v: Interval) -> Self {
        (v.low, v.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::rng::{Purpose, stream};

    #[test]
    fn order_and_range_are_checked() {
        assert!(Interval::try_from((0.2, 1.0)).is_ok());
        for bad in [(1.0, 0.2), (0.0, 1.0), (0.1, f64::INFINITY), (f64::NAN, 1.0)] {
            assert!(Interval::try_from(bad).unwrap_err().contains("smaller one first"), "{bad:?}");
        }
        assert_eq!(ron::from_str::<Interval>("(0.5, 2)").unwrap(), Interval::lit(0.5, 2.0));
        assert_eq!(ron::to_string(&Interval::lit(0.5, 2.0)).unwrap(), "(0.5,2.0)");
    }

    #[test]
    fn draws_have_their_means() {
        let interval = Interval::lit(0.5, 2.0);
        let mut rng = stream(0, Purpose::View, 0, 0, 0);
        let n = 40_000;
        // The standard deviation of a uniform distribution is its width / √12.
        let sampling = |width: f64| tolerance::mean(width / 12f64.sqrt(), n);
        let mean = (0..n).map(|_| interval.uniform(&mut rng)).sum::<f64>() / n as f64;
        assert_within!(mean, 1.25, sampling(1.5));
        let mean = (0..n).map(|_| interval.log_uniform(&mut rng).ln()).sum::<f64>() / n as f64;
        assert_within!(mean, 0.0, sampling(4f64.ln()));
    }
}
