//! Classes as prototypes.

use crate::lloyd::clustering_of;
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::{Clusterer, Clustering, Error, Result, TrainingSpan, component};

component! {
    /// An oracle: assignments are the class labels, and centroids are the class means.
    ///
    /// It shows what prototype terms can reach with perfect clusters. A run that uses it reads labels and so
    /// is supervised.
    ///
    /// # Shapes
    /// features (N, D), N labels → centroids (classes, D), N assignments
    pub struct Labels: Clusterer {
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for Labels {
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let Some(labels) = context.labels else {
            return Err(Error::config(
                "the clusterer Labels needs class labels, but this data has none: use KMeans(k: [100])",
            ));
        };
        if labels.len() != rows.rows {
            return Err(Error::shape("Labels", format!("{} labels for {} samples", labels.len(), rows.rows)));
        }
        let k = labels.iter().max().map_or(0, |m| *m as usize + 1);
        Ok(vec![clustering_of(rows, labels.iter().copied().map(Some).collect(), k, Vec::new())])
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        vec![None]
    }
    fn needs_labels(&self) -> bool {
        true
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centroids_are_class_means() {
        let labels = Labels { start: TrainingSpan::epochs(0), every: TrainingSpan::epochs(1) };
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 0.0];
        let mut context = FitContext { labels: Some(&[2, 0, 2]), ..FitContext::new(0) };
        let c = &labels.fit(RowsView::new(&data, 2), context).unwrap()[0];
        assert_eq!(c.centroids, [3.0, 4.0, 0.0, 0.0, 3.0, 1.0]);
        assert_eq!(c.assignments, [Some(2), Some(0), Some(2)]);
        assert_eq!((c.k, c.report.empty, c.report.noise), (3, 1, 0));
        assert_eq!(c.report.objective, [10.0]);
        context.labels = Some(&[1]);
        assert!(
            labels.fit(RowsView::new(&data, 2), context).unwrap_err().to_string().contains("1 labels for 3")
        );
        context.labels = None;
        assert!(labels.fit(RowsView::new(&data, 2), context).unwrap_err().to_string().contains("KMeans"));
    }
}
