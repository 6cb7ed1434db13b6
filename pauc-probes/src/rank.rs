//! RankMe, and the spread of embeddings over their dimensions.

use crate::spectrum::{mean, singular_values};
use crate::{ProbeTime, finite, when};
use pauc_traits::probe::{Metric, ProbeContext, RowsView, When};
use pauc_traits::{Error, Probe, Result, TrainingSpan, component};

/// The maximum number of rows, as in the RankMe paper.
const ROWS: usize = 25_600;

component! {
    /// Effective rank and spread of the training split's representation: signs of dimensional collapse.
    ///
    /// RankMe = exp(−Σ p log p) with p = σ/Σσ + 1e-7, where σ are the singular values of the vectors, not
    /// centered. It is between 1 and D. Spread = √D · mean over dimensions of the standard deviation of
    /// x/‖x‖. It is 1 if the unit vectors fill all directions evenly, and 0 if they are all the same. At most
    /// 25 600 evenly spaced samples are used.
    ///
    /// Metrics: `rankme/features`, `rankme/embeddings`, `spread/features`, `spread/embeddings`.
    /// Source: Garrido et al. 2023 (RankMe), Chen & He 2021 (standard deviation as a sign of collapse).
    pub struct Rank: Probe {
        /// How often it runs during training, such as `Epochs(1)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for Rank {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        false
    }

    fn reads_test_split(&self) -> bool {
        false
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let spaces = [("features", context.train.features), ("embeddings", context.train.embeddings)];
        let mut metrics = Vec::new();
        for (name, rows) in spaces {
            metrics.push(Metric::new(format!("rankme/{name}"), rank_me(rows)?));
            metrics.push(Metric::new(format!("spread/{name}"), spread(rows)?));
        }
        Ok(metrics)
    }
}

/// Returns RankMe of the rows: the exponential of the entropy of their singular values.
///
/// # Shapes
/// (N, D) → a number between 1 and min(N, D)
///
/// # Errors
/// If there are no rows, or a value is NaN or infinite.
pub fn rank_me(rows: RowsView<'_>) -> Result<f64> {
    if rows.rows == 0 {
        return Err(Error::config("RankMe: there are no rows"));
    }
    finite("RankMe", rows)?;
    let sigma = if rows.rows > ROWS {
        let data: Vec<f32> = (0..ROWS).flat_map(|i| rows.row(i * rows.rows / ROWS)).copied().collect();
        singular_values(RowsView::new(&data, rows.cols))?
    } else {
        singular_values(rows)?
    };
    Ok(rank_of(&sigma))
}

/// Returns RankMe of the singular values.
fn rank_of(sigma: &[f64]) -> f64 {
    let total: f64 = sigma.iter().sum();
    if total == 0.0 {
        // If all vectors are zero, the paper's formula would divide by zero.
        return 1.0;
    }
    let shares = sigma.iter().map(|s| s / total + 1e-7);
    shares.map(|p| -p * p.ln()).sum::<f64>().exp()
}

/// Returns √D times the mean over dimensions of the standard deviation of the unit rows.
///
/// # Shapes
/// (N, D) → a number between 0 and 1
///
/// # Errors
/// If there are no rows, or a value is NaN or infinite.
pub fn spread(rows: RowsView<'_>) -> Result<f64> {
    if rows.rows == 0 {
        return Err(Error::config("spread: there are no rows"));
    }
    finite("spread", rows)?;
    let mut unit = rows.data.to_vec();
    for row in unit.chunks_exact_mut(rows.cols) {
        let norm = row.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
        row.iter_mut().for_each(|v| *v = if norm > 0.0 { (*v as f64 / norm) as f32 } else { 0.0 });
    }
    let unit = RowsView::new(&unit, rows.cols);
    let center = mean(unit);
    let mut variance = vec![0.0; rows.cols];
    for row in unit.iter() {
        variance.iter_mut().zip(row).zip(&center).for_each(|((s, v), m)| *s += (*v as f64 - m).powi(2));
    }
    let deviation: f64 = variance.iter().map(|v| (v / rows.rows as f64).sqrt()).sum();
    Ok(deviation / (rows.cols as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    /// Returns RankMe of `n` equal singular values.
    fn of_equals(n: usize) -> f64 {
        let share = 1.0 / n as f64 + 1e-7;
        (-(n as f64) * share * share.ln()).exp()
    }

    #[test]
    fn rank_me_equals_the_reference() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../tests/golden/metrics.json")).unwrap();
        let case = &golden["rank_me"];
        let features: Vec<Vec<f64>> = serde_json::from_value(case["features"].clone()).unwrap();
        let cols = features[0].len();
        let want = case["value"].as_f64().unwrap();
        let sigma =
            faer::Mat::from_fn(features.len(), cols, |i, j| features[i][j]).singular_values().unwrap();
        let exact = rank_of(&sigma);
        // If each singular value is off by at most ε‖A‖, and so by εΣσ, a share p is off by (1 + n·p)·ε, and
        // RankMe by this factor times ε.
        let total: f64 = sigma.iter().sum();
        let effect = |s: &f64| ((s / total + 1e-7).ln().abs() + 1.0) * (1.0 + cols as f64 * s / total);
        let sensitivity = want * sigma.iter().map(effect).sum::<f64>();
        // The decomposition is backward stable: its rounding errors are a small multiple of its size.
        let size = features.len() * cols;
        assert_within!(exact, want, tolerance::f64(size, sensitivity));
        let single: Vec<f32> = features.iter().flatten().map(|v| *v as f32).collect();
        let got = rank_me(RowsView::new(&single, cols)).unwrap();
        // Features are rounded once, by u‖A‖ in the Frobenius norm. The rest is in double precision.
        assert_within!(got, want, tolerance::f32(1, sensitivity));
    }

    #[test]
    fn rank_and_spread_of_known_configurations() {
        let identity: Vec<f32> = (0..64).map(|i| if i % 9 == 0 { 3.0 } else { 0.0 }).collect();
        let rows = RowsView::new(&identity, 8);
        // The Gram matrix is diagonal and exact. A root, a sum and an exponential remain.
        assert_within!(rank_me(rows).unwrap(), of_equals(8), tolerance::f64(64, 8.0));
        // Each dimension is 1 in one row of eight: variance 1/8 − 1/64.
        let want = (8.0f64 * (1.0 / 8.0 - 1.0 / 64.0)).sqrt();
        assert_within!(spread(rows).unwrap(), want, tolerance::f64(8 + 8 + 4, 1.0));
        let same = [[0.3f32, -1.0, 2.0]; 50].concat();
        let rows = RowsView::new(&same, 3);
        // Eigenvalues of zero are off by rounding, 50 products and a decomposition of size 9, and so are
        // their roots. Such a share s adds −s·ln s to the entropy, and both together lower the first share.
        let share = 1e-7 + tolerance::f64(50 + 9, 1.0).sqrt();
        let entropy = 2.0 * share * (1.0 - share.ln());
        assert_within!(rank_me(rows).unwrap(), 1.0, entropy.exp_m1());
        // All unit rows are equal. The mean of 50 is off by the rounding of their sum.
        assert_within!(spread(rows).unwrap(), 0.0, tolerance::f64(50 + 2, 3f64.sqrt()));
        assert_eq!(rank_me(RowsView::new(&[0.0; 6], 3)).unwrap(), 1.0);
    }

    #[test]
    fn more_rows_than_are_read_give_the_rank_of_an_even_choice() {
        // Two directions in turn: every even choice of rows contains both.
        let data: Vec<f32> =
            (0..ROWS * 3).flat_map(|i| if i % 2 == 0 { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        // The Gram matrix is 12 800 times the identity, and exact.
        assert_within!(rank_me(RowsView::new(&data, 2)).unwrap(), of_equals(2), tolerance::f64(16, 2.0));
    }
}
