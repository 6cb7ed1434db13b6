//! From a device's features to rows on the host, checked once for all clusterers.

use pauc_kernels::distance::dot;
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::{Clustering, Error, Result};
use rayon::prelude::*;

/// A clusterer that works in the host's memory; `clusterer_on_host!` makes it a [`pauc_traits::Clusterer`] of
/// every device.
pub trait HostClusterer {
    /// Clusters rows that are known to be there and finite.
    ///
    /// # Errors
    /// As [`pauc_traits::Clusterer::fit`].
    fn fit_rows(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>>;
}

/// Implements `Clusterer<D>` for a [`HostClusterer`] with fields `start` and `every`; `$levels` is the body of
/// `prototypes`.
macro_rules! clusterer_on_host {
    ($name:ident, |$this:ident| $levels:expr $(, needs_labels: $labels:expr)?) => {
        impl<D: pauc_traits::Compute> pauc_traits::Clusterer<D> for $name {
            fn fit(
                &self,
                features: pauc_traits::Features<'_, D>,
                context: pauc_traits::clusterer::FitContext<'_>,
            ) -> pauc_traits::Result<Vec<pauc_traits::Clustering>> {
                let data = features.device.host_view(features.data)?;
                let rows = $crate::host_clusterer::checked(&data, features.rows, features.cols)?;
                $crate::HostClusterer::fit_rows(self, rows, context)
            }
            fn prototypes(&self) -> Vec<Option<usize>> {
                let $this = self;
                $levels
            }
            $(fn needs_labels(&self) -> bool {
                $labels
            })?
            fn start(&self) -> pauc_traits::TrainingSpan {
                self.start
            }
            fn every(&self) -> pauc_traits::TrainingSpan {
                self.every
            }
        }
    };
}

/// The features as rows, if they are there and can be squared in `f32`.
pub(crate) fn checked(data: &[f32], rows: usize, cols: usize) -> Result<RowsView<'_>> {
    if rows == 0 || cols == 0 {
        return Err(Error::config(format!(
            "there is nothing to cluster: the features are {rows}×{cols}; give at least one sample of one dimension"
        )));
    }
    if rows.checked_mul(cols) != Some(data.len()) {
        return Err(Error::shape("cluster", format!("{} values for features of {rows}×{cols}", data.len())));
    }
    if rows > u32::MAX as usize {
        return Err(Error::config(format!(
            "{rows} samples are more than the {} that can be numbered",
            u32::MAX
        )));
    }
    let rows = RowsView::new(data, cols);
    // Two rows are at most the sum of their lengths apart, so that no squared distance is over four times this.
    let fits = |row: &[f32]| dot(row, row) <= f32::MAX / 8.0;
    let first = data.par_chunks(cols).position_first(|row| !fits(row));
    let Some(bad) = first else { return Ok(rows) };
    match rows.row(bad).iter().position(|v| !v.is_finite()) {
        Some(column) => Err(Error::NonFinite {
            what: "a feature to cluster".into(),
            place: Some(format!(
                "row {bad}, column {column}: {}; look for a diverged encoder or damaged input",
                rows.row(bad)[column]
            )),
        }),
        None => Err(Error::config(format!(
            "row {bad} of the features is too long for 32-bit distances (their squares overflow): normalise the features"
        ))),
    }
}

/// Whether `k` prototypes can be fitted to the rows.
pub(crate) fn enough(rows: RowsView<'_>, k: usize) -> Result<()> {
    if k > rows.rows {
        return Err(Error::config(format!(
            "{k} prototypes need at least as many samples, but there are {}: lower k to {} or less, or use more data",
            rows.rows, rows.rows
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_features_are_named() {
        let text = |data: &[f32], rows, cols| checked(data, rows, cols).unwrap_err().to_string();
        assert!(text(&[], 0, 3).contains("nothing to cluster"));
        assert!(text(&[], 3, 0).contains("3×0"));
        assert!(text(&[0.0; 5], 2, 3).contains("5 values for features of 2×3"));
        assert!(text(&[0.0, 1.0, 2.0, f32::NAN], 2, 2).contains("row 1, column 1: NaN"));
        assert!(text(&[0.0, 1.0, f32::INFINITY, 0.0], 2, 2).contains("row 1, column 0: inf"));
        assert!(text(&[1e30, 1.0], 1, 2).contains("normalise"));
        assert!(
            text(&[1.5e19, -1.5e19], 2, 1).contains("normalise"),
            "finite squares, but not of the distance"
        );
        assert_eq!(checked(&[1.0; 6], 2, 3).unwrap().rows, 2);
    }
}
