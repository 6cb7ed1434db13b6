//! Means over seeds, and tests of their differences.

use serde::Serialize;
use std::collections::BTreeMap;

/// Statistics of values over seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The number of values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation with n − 1 in the denominator; NaN for a single one.
    pub sd: f64,
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4}", self.mean)?;
        if self.n > 1 { write!(f, " ± {:.4}", self.sd) } else { Ok(()) }
    }
}

impl Spread {
    /// Computes the statistics of each metric over several runs; a run without the metric is ignored.
    pub fn of_each<'a>(
        runs: impl IntoIterator<Item = &'a BTreeMap<String, f64>>,
    ) -> BTreeMap<String, Spread> {
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (name, value) in runs.into_iter().flatten() {
            values.entry(name.clone()).or_default().push(*value);
        }
        values.into_iter().map(|(name, values)| (name, Spread::of(&values))).collect()
    }

    /// Computes the statistics of some values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
        Spread { n, mean, sd: if n > 1 { (squares / (n as f64 - 1.0)).sqrt() } else { f64::NAN } }
    }
}

/// Student's t-test on the differences of pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The number of pairs.
    pub n: usize,
    /// The mean of the differences over its standard error.
    pub t: f64,
    /// The two-sided p-value.
    pub p: f64,
}

impl Paired {
    /// Tests whether the mean of the differences, one per pair, is 0. Returns `None` for fewer than two pairs. If all differences are equal, t is infinite, or p is 1
    /// if they are all zero.
    pub fn of(differences: &[f64]) -> Option<Self> {
        let Spread { n, mean, sd } = Spread::of(differences);
        if n < 2 {
            return None;
        }
        let t = if mean == 0.0 { 0.0 } else { mean / (sd / (n as f64).sqrt()) };
        Some(Paired { n, t, p: two_sided(t, n as f64 - 1.0) })
    }
}

/// Returns P(|T| ≥ |t|) for Student's distribution with `df` degrees of freedom: I_x(df/2, 1/2) at x = df/(df
/// + t²).
pub fn two_sided(t: f64, df: f64) -> f64 {
    if t.is_nan() {
        return f64::NAN;
    }
    if t.is_infinite() {
        return 0.0;
    }
    statrs::function::beta::beta_reg(df / 2.0, 0.5, df / (df + t * t))
}

/// Bounds the error of [`two_sided`] at `p`. The library states 14 digits for the logarithm of Γ, of which
/// three enter the exponent, none above 60 for up to 30 degrees of freedom; its continued fraction ends with
/// a relative step of 2⁻⁵³, after fewer than 100 iterations of four operations.
#[cfg(test)]
pub(crate) fn off_by(p: f64) -> f64 {
    use pauc_testing::tolerance;
    // Above the mean it is 1 minus the other tail.
    p.max(1.0 - p) * (3.0 * 60.0 * 1e-14 + tolerance::f64(8, 60.0) + tolerance::f64(400, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn student_s_distribution_has_its_closed_forms() {
        for t in [0.0, 0.3, 1.0, 2.5, 12.7062047362, 300.0] {
            let one = 1.0 - 2.0 / std::f64::consts::PI * f64::atan(t);
            let two = 1.0 - t / (t * t + 2.0).sqrt();
            let s: f64 = t / (t * t + 4.0).sqrt();
            let four = 1.0 - s * (1.0 + 0.5 * (1.0 - s * s));
            for (df, want) in [(1.0, one), (2.0, two), (4.0, four)] {
                let got = two_sided(t, df);
                assert_within!(got, want, off_by(want) + tolerance::f64(8, 1.0), "t {t}, df {df}");
                assert_eq!(got, two_sided(-t, df));
            }
        }
        // The table's 5 % points.
        for (df, t) in [(3.0, 3.182446305), (10.0, 2.228138852), (30.0, 2.042272456)] {
            // t has nine decimals, and dp/dt is twice the density, which is below 0.4 everywhere.
            assert_within!(two_sided(t, df), 0.05, 0.5e-9 * 0.8 + off_by(0.05), "df {df}");
        }
    }

    #[test]
    fn pairs_without_spread_have_their_answers() {
        assert_eq!(Paired::of(&[0.1]), None);
        assert_eq!(Paired::of(&[0.0, 0.0]).map(|p| p.p), Some(1.0));
        assert_eq!(Paired::of(&[0.5, 0.5]).map(|p| p.p), Some(0.0));
        assert!(Spread::of(&[1.0]).sd.is_nan());
    }
}
