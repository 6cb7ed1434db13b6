//! Alignment and uniformity of embeddings as measurements.

use crate::{ProbeTime, finite, scored, when};
use pauc_kernels::distance::squared_distance;
use pauc_traits::dataset::Splits;
use pauc_traits::probe::{Metric, ProbeContext, RowsView, When};
use pauc_traits::{Error, Positive, Probe, Result, TrainingSpan, component, progress, stop};
use rayon::prelude::*;

/// The maximum number of rows; with more, an evenly spaced subset is used.
const MOST: usize = 4000;

component! {
    /// Alignment within classes and uniformity over the sphere of embeddings.
    ///
    /// `alignment` is the mean of ‖z − z'‖^α over the pairs of one class. `uniformity` is the logarithm of
    /// the mean of exp(−t‖z − z'‖²) over all pairs. Lower is better for both. They are measured on the unit
    /// embeddings of the test split, or of the training split if there is no test split. At most 4 000 evenly
    /// spaced images are used. Without labels, only uniformity is measured.
    ///
    /// Metrics: `alignment/class/a2/embeddings`, `uniformity/t2/embeddings`. Random unit vectors give 2 and,
    /// in many dimensions, −2t. Source: Wang and Isola 2020, with images of one class in place of two views.
    pub struct AlignUniform: Probe {
        /// The exponent α.
        pub alpha: Positive = Positive::lit(2.0),
        /// The sharpness t.
        pub t: Positive = Positive::lit(2.0),
        /// How often it runs during training, such as `Epochs(1)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for AlignUniform {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        false
    }

    fn check_splits(&self, splits: &Splits) -> Result<()> {
        enough(scored(splits).len())
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let split = context.test.as_ref().unwrap_or(&context.train);
        let (alpha, t) = (self.alpha.get(), self.t.get());
        let measures = align_uniform(split.embeddings, split.labels, alpha, t)?;
        let alignment =
            measures.alignment.map(|v| Metric::new(format!("alignment/class/a{alpha}/embeddings"), v));
        let uniformity = Metric::new(format!("uniformity/t{t}/embeddings"), measures.uniformity);
        Ok(alignment.into_iter().chain([uniformity]).collect())
    }
}

/// Checks that there is a pair.
fn enough(rows: usize) -> Result<()> {
    if rows >= 2 {
        return Ok(());
    }
    Err(Error::config(format!("alignment and uniformity: {rows} rows; expected at least 2")))
}

/// The two measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AlignedUniform {
    /// Mean ‖z − z'‖^α over pairs of one class; `None` without labels, or if no class has two rows.
    pub alignment: Option<f64>,
    /// log mean exp(−t‖z − z'‖²) over all pairs.
    pub uniformity: f64,
}

/// Computes alignment by class and uniformity of unit rows.
///
/// # Shapes
/// (N, D), labels N
///
/// # Errors
/// If there are fewer than two rows, the number of labels is not that of rows, or a value is NaN or infinite.
pub fn align_uniform(
    rows: RowsView<'_>,
    labels: Option<&[u32]>,
    alpha: f64,
    t: f64,
) -> Result<AlignedUniform> {
    enough(rows.rows)?;
    if let Some(labels) = labels.filter(|l| l.len() != rows.rows) {
        let message = format!("{} rows but {} labels", rows.rows, labels.len());
        return Err(Error::shape("alignment and uniformity", message));
    }
    finite("alignment and uniformity", rows)?;
    let count = rows.rows.min(MOST);
    let chosen: Vec<usize> = (0..count).map(|i| i * rows.rows / count).collect();
    // Σ d^α and the number of pairs within classes, and Σ exp(−t d²) over all. Row by row, so that the order
    // of summation is fixed.
    let sums_of_row = |a: usize| {
        let (mut near, mut pairs, mut potential) = (0.0, 0u64, 0.0);
        for b in 0..a {
            let square = f64::from(squared_distance(rows.row(chosen[a]), rows.row(chosen[b])));
            potential += (-t * square).exp();
            if labels.is_some_and(|l| l[chosen[a]] == l[chosen[b]]) {
                near += square.powf(alpha / 2.0);
                pairs += 1;
            }
        }
        (near, pairs, potential)
    };
    let (stop, task) = (stop::flag(), progress::task("alignment and uniformity", count as u64));
    let counted = |a: usize| {
        task.advance(1);
        sums_of_row(a)
    };
    let sums: Vec<(f64, u64, f64)> =
        (0..count).into_par_iter().filter(|_| !stop.is_set()).map(counted).collect();
    stop.check()?;
    let (mut near, mut pairs, mut potential) = (0.0, 0, 0.0);
    sums.iter().for_each(|s| (near, pairs, potential) = (near + s.0, pairs + s.1, potential + s.2));
    let all_pairs = (count * (count - 1) / 2) as f64;
    let alignment = (pairs > 0).then(|| near / pairs as f64);
    Ok(AlignedUniform { alignment, uniformity: (potential / all_pairs).ln() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn known_configurations_have_their_values() {
        // A square on the circle: four pairs at squared distance 2, two at 4. The diagonals are the classes.
        let square = [1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0];
        let rows = RowsView::new(&square, 2);
        let got = align_uniform(rows, Some(&[0, 1, 0, 1]), 2.0, 2.0).unwrap();
        let want = ((4.0 * (-4.0f64).exp() + 2.0 * (-8.0f64).exp()) / 6.0).ln();
        // Squared distances are integers and exact. Six powers or exponentials are summed. The relative error
        // of the mean of exponentials is the absolute error of its logarithm.
        assert_within!(got.alignment.unwrap(), 4.0, tolerance::f64(6 + 2, 4.0));
        assert_within!(got.uniformity, want, tolerance::f64(6 + 4, 1.0 + want.abs()));
        let got = align_uniform(rows, Some(&[0, 1, 0, 1]), 1.0, 0.5).unwrap();
        assert_within!(got.alignment.unwrap(), 2.0, tolerance::f64(6 + 2, 2.0));
        assert_eq!(align_uniform(rows, Some(&[0, 1, 2, 3]), 2.0, 2.0).unwrap().alignment, None);
        // Collapse: all embeddings are equal.
        let got = align_uniform(RowsView::new(&[0.6, 0.8, 0.6, 0.8], 2), None, 2.0, 2.0).unwrap();
        assert_eq!((got.alignment, got.uniformity), (None, 0.0));
    }

    #[test]
    fn too_little_is_refused() {
        let text = |rows, labels| align_uniform(rows, labels, 2.0, 2.0).unwrap_err().to_string();
        assert!(text(RowsView::new(&[1.0], 1), None).contains("expected at least 2"));
        assert!(text(RowsView::new(&[1.0, 0.5], 1), Some(&[1])).contains("2 rows but 1 labels"));
        assert!(text(RowsView::new(&[1.0, f32::NAN], 1), None).contains("sample 1"));
    }
}
