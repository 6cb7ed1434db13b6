//! Means over seeds, and whether they differ.

use serde::Serialize;
use std::collections::BTreeMap;

/// Values of several seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many.
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
    /// Of each metric over several runs; a run that has not measured one does not count for it.
    pub fn of_each<'a>(
        runs: impl IntoIterator<Item = &'a BTreeMap<String, f64>>,
    ) -> BTreeMap<String, Spread> {
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (name, value) in runs.into_iter().flatten() {
            values.entry(name.clone()).or_default().push(*value);
        }
        values.into_iter().map(|(name, values)| (name, Spread::of(&values))).collect()
    }

    /// Of some values.
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
    /// How many pairs.
    pub n: usize,
    /// The mean of the differences over its standard error.
    pub t: f64,
    /// The two-sided probability of a t as large where there is no difference.
    pub p: f64,
}

impl Paired {
    /// The test; `None` for fewer than two pairs. Differences that are all the same have a t without end, or, where they
    /// are all zero, a p of 1.
    pub fn of(differences: &[f64]) -> Option<Self> {
        let Spread { n, mean, sd } = Spread::of(differences);
        if n < 2 {
            return None;
        }
        let t = if mean == 0.0 { 0.0 } else { mean / (sd / (n as f64).sqrt()) };
        Some(Paired { n, t, p: two_sided(t, n as f64 - 1.0) })
    }
}

/// P(|T| ≥ |t|) for Student's distribution with `df` degrees of freedom: I_x(df/2, 1/2) at x = df/(df + t²).
pub fn two_sided(t: f64, df: f64) -> f64 {
    if t.is_nan() {
        return f64::NAN;
    }
    if t.is_infinite() {
        return 0.0;
    }
    incomplete_beta(df / (df + t * t), df / 2.0, 0.5)
}

/// The regularised incomplete beta function I_x(a, b), by Lentz's evaluation of its continued fraction (NIST's digital
/// library of mathematical functions, 8.17.22).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast below the mean; above it, the other tail's does.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    let lift = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut c, mut d) = (1.0, 1.0 / lift(1.0 - (a + b) * x / (a + 1.0)));
    let mut value = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = value;
        for term in [even, odd] {
            d = 1.0 / lift(1.0 + term * d);
            c = lift(1.0 + term / c);
            value *= c * d;
        }
        if (value - before).abs() < 1e-15 * value.abs() {
            break;
        }
    }
    front * value
}

/// ln Γ(x) for x > 0: Stirling's series, after x was raised above 10.
fn ln_gamma(mut x: f64) -> f64 {
    let mut below = 0.0;
    while x < 10.0 {
        below += x.ln();
        x += 1.0;
    }
    let y = 1.0 / (x * x);
    let series = (1.0 / 12.0 - y * (1.0 / 360.0 - y * (1.0 / 1260.0 - y * (1.0 / 1680.0 - y / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - below
}

/// How far [`ln_gamma`] may be off for numbers up to 16: ten logarithms of what is below 10, five terms with
/// a sum of at most 60, and the first term of the series that is left out.
#[cfg(test)]
fn ln_gamma_off_by() -> f64 {
    use pauc_testing::tolerance;
    tolerance::f64(10, 15.0) + tolerance::f64(5, 60.0) + 691.0 / 360_360.0 / 10f64.powi(11)
}

/// How far [`two_sided`] may be off where it is `p`, for up to 30 degrees of freedom: the exponent has three
/// values of [`ln_gamma`] and two logarithms of at most 30 with their factors. The fraction ends with a step
/// of 1e-15 of itself, after fewer than 100 of four operations, which shrink.
#[cfg(test)]
pub(crate) fn off_by(p: f64) -> f64 {
    use pauc_testing::tolerance;
    // Above the mean it is 1 less the other tail.
    p.max(1.0 - p) * (3.0 * ln_gamma_off_by() + tolerance::f64(8, 60.0) + tolerance::f64(400, 1.0) + 1e-14)
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
            // t has nine decimals, and p falls with it by twice the density, which is nowhere above 0.4.
            assert_within!(two_sided(t, df), 0.05, 0.5e-9 * 0.8 + off_by(0.05), "df {df}");
        }
    }

    #[test]
    fn pairs_without_spread_have_their_answers() {
        assert_eq!(Paired::of(&[0.1]), None);
        assert_eq!(Paired::of(&[0.0, 0.0]).map(|p| p.p), Some(1.0));
        assert_eq!(Paired::of(&[0.5, 0.5]).map(|p| p.p), Some(0.0));
        assert!(Spread::of(&[1.0]).sd.is_nan());
        assert_within!(ln_gamma(0.5), std::f64::consts::PI.sqrt().ln(), ln_gamma_off_by());
    }
}
