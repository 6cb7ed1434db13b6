//! Means over seeds, and tests of their differences.

use pauc_traits::Count;
use pauc_traits::rng::{Purpose, stream};
use rand::Rng;
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

impl Spread {
    /// Returns the 95 % confidence interval of the mean by Student's distribution with n − 1 degrees of freedom; `None`
    /// for fewer than two values, or if one is not finite.
    pub fn t_interval(&self) -> Option<[f64; 2]> {
        let Spread { n, mean, sd } = *self;
        if n < 2 || !sd.is_finite() {
            return None;
        }
        let half = two_sided_quantile(0.05, n as f64 - 1.0) * sd / (n as f64).sqrt();
        Some([mean - half, mean + half])
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

/// Returns t with P(|T| ≥ t) = `p` for Student's distribution with `df` degrees of freedom, by bisection. `p` is
/// between 0 and 1, exclusive.
pub fn two_sided_quantile(p: f64, df: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while two_sided(high, df) > p {
        (low, high) = (high, 2.0 * high);
    }
    loop {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            return high;
        }
        if two_sided(middle, df) > p { low = middle } else { high = middle }
    }
}

/// The resamples of a bootstrap, and the seed that draws them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resamples {
    /// Their number.
    pub count: Count,
    /// The seed.
    pub seed: u64,
}

/// The mean of differences, one per pair, with its uncertainty.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairedDifference {
    /// The number of pairs.
    pub n: usize,
    /// The mean of the differences.
    pub mean: f64,
    /// Its 95 % confidence interval by Student's distribution; `None` for fewer than two pairs.
    pub t_interval: Option<[f64; 2]>,
    /// Its 95 % confidence interval by the percentiles of a bootstrap over the pairs; `None` for fewer than two.
    pub bootstrap_interval: Option<[f64; 2]>,
    /// The two-sided p-value of Student's paired t-test; `None` for fewer than two pairs.
    pub p: Option<f64>,
    /// The p-value after Holm's correction for all tests of a table; `None` before it and for fewer than two pairs.
    pub p_holm: Option<f64>,
    /// Cohen's d of pairs: the mean over the standard deviation of the differences; `None` for fewer than two pairs, or
    /// without deviation.
    pub cohens_d: Option<f64>,
}

impl PairedDifference {
    /// Computes the statistics of differences; `None` if there are none.
    pub fn of(differences: &[f64], resamples: Resamples) -> Option<Self> {
        let spread = Spread::of(differences);
        let Spread { n, mean, sd } = spread;
        if n == 0 {
            return None;
        }
        let test = Paired::of(differences);
        let is_tested = test.is_some();
        Some(PairedDifference {
            n,
            mean,
            t_interval: spread.t_interval(),
            bootstrap_interval: is_tested.then(|| bootstrap(differences, resamples)),
            p: test.map(|t| t.p),
            p_holm: None,
            cohens_d: (is_tested && sd > 0.0).then(|| mean / sd),
        })
    }
}

/// Returns the 2.5 % and 97.5 % percentiles of the means of resamples, which draw as many values as there are, with
/// replacement. Percentiles are interpolated linearly, as by default in NumPy.
fn bootstrap(values: &[f64], resamples: Resamples) -> [f64; 2] {
    let mut rng = stream(resamples.seed, Purpose::Bootstrap, 0, 0, 0);
    let mut mean = || {
        let draws = (0..values.len()).map(|_| values[rng.gen_range(0..values.len())]);
        draws.sum::<f64>() / values.len() as f64
    };
    let mut means: Vec<f64> = (0..resamples.count.get()).map(|_| mean()).collect();
    means.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|share| {
        let place = share * (means.len() - 1) as f64;
        let (low, high) = (means[place.floor() as usize], means[place.ceil() as usize]);
        low + (high - low) * place.fract()
    })
}

/// Corrects p-values for their number by Holm's method: the smallest of m is multiplied by m, the next by m − 1, and so
/// on; none becomes smaller than the one before it, or larger than 1. `None` is no test and does not count.
///
/// # Shapes
/// M → M, in the same order
pub fn holm(p: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<(f64, usize)> = p.iter().enumerate().filter_map(|(i, p)| Some(((*p)?, i))).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut corrected = vec![None; p.len()];
    let mut before: f64 = 0.0;
    for (rank, (value, i)) in order.iter().enumerate() {
        before = before.max(value * (order.len() - rank) as f64).min(1.0);
        corrected[*i] = Some(before);
    }
    corrected
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

    #[test]
    fn quantiles_have_their_closed_forms() {
        for p in [0.05, 0.01, 0.5, 1e-6] {
            // P(|T| ≥ t) = 1 − 2/π·arctan t for one degree of freedom, and 1 − t/√(t² + 2) for two.
            let one = (std::f64::consts::FRAC_PI_2 * (1.0 - p)).tan();
            let c: f64 = 1.0 - p;
            let two = c * (2.0 / (1.0 - c * c)).sqrt();
            for (df, want) in [(1.0, one), (2.0, two)] {
                // An error of p moves t by its inverse slope, which is below (1 + t²)·π/2 and (t² + 2)^1.5/2.
                let slope = ((1.0 + want * want) * std::f64::consts::FRAC_PI_2)
                    .max((want * want + 2.0).powf(1.5) / 2.0);
                let within = slope * (off_by(p) + tolerance::f64(8, 1.0)) + tolerance::f64(8, want);
                assert_within!(two_sided_quantile(p, df), want, within, "p {p}, df {df}");
            }
        }
    }

    /// Golden values of SciPy 1.17 and statsmodels 0.14: `ttest_rel(b, a)` with its `confidence_interval(0.95)`,
    /// `(b - a).mean() / (b - a).std(ddof=1)`, and `numpy.quantile` over the means of all 5⁵ resamples.
    #[test]
    fn differences_of_pairs_are_those_of_scipy() {
        let (a, b) = ([0.840, 0.851, 0.838, 0.845, 0.847], [0.847, 0.853, 0.849, 0.846, 0.856]);
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
        let resamples = Resamples { count: Count::lit(20_000), seed: 3 };
        let got = PairedDifference::of(&differences, resamples).unwrap();
        // Inputs below 1 with differences of about 0.006: relative rounding errors grow a few hundred times.
        let within = |size: f64| size * (tolerance::f64(16, 400.0) + off_by(0.05) * 100.0);
        assert_eq!(got.n, 5);
        assert_within!(got.mean, 0.006, within(0.006));
        let [low, high] = got.t_interval.unwrap();
        assert_within!(low, 0.000587712109997124, within(0.012));
        assert_within!(high, 0.011412287890002887, within(0.012));
        assert_within!(got.p.unwrap(), 0.03700588078378196, within(1.0));
        assert_within!(got.cohens_d.unwrap(), 1.3764944032233708, within(2.0));
        // Means of resamples are a fifth of whole thousandths. Both percentiles lie within one of them.
        let [low, high] = got.bootstrap_interval.unwrap();
        assert_within!(low, 0.0026, within(0.006) + 0.0002);
        assert_within!(high, 0.0094, within(0.006) + 0.0002);
        assert_eq!(PairedDifference::of(&differences, resamples), Some(got), "the seed determines it");
    }

    #[test]
    fn a_bootstrap_of_two_values_reaches_both() {
        // Both values with probability ¼ each, their mean with ½.
        let resamples = Resamples { count: Count::lit(1000), seed: 0 };
        let got = PairedDifference::of(&[0.0, 1.0], resamples).unwrap();
        assert_eq!((got.mean, got.bootstrap_interval), (0.5, Some([0.0, 1.0])));
        let single = PairedDifference::of(&[0.25], resamples).unwrap();
        assert_eq!((single.n, single.mean, single.t_interval, single.p), (1, 0.25, None, None));
        assert_eq!(PairedDifference::of(&[], resamples), None);
        let equal = PairedDifference::of(&[0.5, 0.5], resamples).unwrap();
        assert_eq!((equal.t_interval, equal.p, equal.cohens_d), (Some([0.5, 0.5]), Some(0.0), None));
    }

    #[test]
    fn holm_corrects_by_rank() {
        // As `statsmodels.stats.multitest.multipletests(p, method="holm")`.
        let p = [0.01, 0.04, 0.03, 0.005, 0.5].map(Some);
        let want = [0.04, 0.09, 0.09, 0.025, 0.5];
        for (got, want) in holm(&p).into_iter().zip(want) {
            assert_within!(got.unwrap(), want, tolerance::f64(1, want));
        }
        // A missing test does not count.
        assert_eq!(holm(&[None, Some(0.5), Some(0.75)]), [None, Some(1.0), Some(1.0)]);
        assert_eq!(holm(&[]), []);
    }
}
