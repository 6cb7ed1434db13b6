//! Clustering as a measurement: do clusters of the features agree with the classes?

use crate::knn::unit_rows;
use crate::{ProbeTime, Space, check, scored, when};
use pauc_cluster::KMeans;
use pauc_cluster::metrics::Agreement;
use pauc_traits::clusterer::FitContext;
use pauc_traits::dataset::Splits;
use pauc_traits::probe::{Metric, ProbeContext, RowsView, When};
use pauc_traits::{Clusterer, Count, Error, Probe, Result, TrainingSpan, component};

component! {
    /// Agreement of the classes with a k-means clustering of the test split's unit vectors: NMI, AMI, ARI and accuracy.
    ///
    /// The clustering is the best of `redos` by inertia, which does not use the labels. Accuracy is the
    /// fraction of images that agree under the best one-to-one matching of clusters to classes. Without a
    /// test split, the training split is clustered.
    ///
    /// Metrics: `kmeans/k10/cos/nmi`, `…/ami`, `…/ari` and `…/accuracy`.
    /// Source: the protocol of deep clustering (Xie et al. 2016), with scikit-learn's definitions.
    pub struct Clusters: Probe {
        /// The number of clusters; by default, the number of classes.
        pub k: Option<Count> = None,
        /// The number of restarts of k-means.
        pub redos: Count = Count::lit(10),
        /// The vectors clustered: `Features` before the projector, or its outputs, `Embeddings`.
        pub space: Space = Space::Features,
        /// How often it runs during training, such as `Epochs(1)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for Clusters {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn check_settings(&self, splits: &Splits) -> Result<()> {
        self.k.map_or(Ok(()), |k| enough(k.get(), splits))
    }

    fn check_splits(&self, splits: &Splits) -> Result<()> {
        if self.k.is_some() { Ok(()) } else { enough(splits.classes.len(), splits) }
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let split = context.test.as_ref().unwrap_or(&context.train);
        let Some(labels) = split.labels else { return Ok(Vec::new()) };
        let k = self.k.map_or(context.classes, Count::get);
        let rows = self.space.rows(split);
        check("clusters", rows, labels, context.classes)?;
        let scores = agreement(rows, labels, k, self.redos, context.seed)?;
        let name = |what: &str| format!("kmeans/k{k}/cos/{what}{}", self.space.suffix());
        Ok(vec![
            Metric::new(name("nmi"), scores.nmi),
            Metric::new(name("ami"), scores.ami),
            Metric::new(name("ari"), scores.ari),
            Metric::new(name("accuracy"), scores.hungarian_accuracy),
        ])
    }
}

/// Checks that there are no more clusters than images to cluster.
fn enough(k: usize, splits: &Splits) -> Result<()> {
    let images = scored(splits).len();
    if k <= images {
        return Ok(());
    }
    Err(Error::config(format!("clusters: {k} clusters of {images} images; lower k")))
}

/// Compares labels with k-means clusters of the rows, which are scaled to unit length.
///
/// # Shapes
/// rows (N, D), labels N
///
/// # Errors
/// If there are fewer rows than clusters, the number of labels is not that of rows, or a value is NaN or
/// infinite.
pub fn agreement(rows: RowsView<'_>, labels: &[u32], k: usize, redos: Count, seed: u64) -> Result<Agreement> {
    let k = Count::try_from(k).map_err(|e| Error::config(format!("clusters: k {e}")))?;
    let unit = unit_rows(rows);
    let k_means = KMeans { redos, ..KMeans::with(vec![k]) };
    let levels = k_means.fit(RowsView::new(&unit, rows.cols), FitContext::new(seed))?;
    let clustering =
        levels.first().ok_or_else(|| Error::config("clusters: k-means returned no clustering"))?;
    Agreement::new(labels, &clustering.assignments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn separate_classes_are_found_and_shuffled_ones_are_not() {
        // Four directions with a little spread, at irrelevant lengths.
        let data: Vec<f32> = (0..200)
            .flat_map(|i| {
                let angle = (i % 4) as f32 * 1.5 + 0.1 * (i as f32 * 0.7).sin();
                let length = 1.0 + (i % 7) as f32;
                [length * angle.cos(), length * angle.sin()]
            })
            .collect();
        let rows = RowsView::new(&data, 2);
        let right: Vec<u32> = (0..200).map(|i| (i + 1) % 4).collect();
        let got = agreement(rows, &right, 4, Count::lit(10), 0).unwrap();
        assert_eq!((got.nmi, got.ari, got.hungarian_accuracy), (1.0, 1.0, 1.0));
        // Every class has the same number of images in each cluster.
        let crossed: Vec<u32> = (0..200).map(|i| i / 4 % 2).collect();
        let got = agreement(rows, &crossed, 4, Count::lit(10), 0).unwrap();
        // I is a sum over eight cells of an eighth times a logarithm of counts, whose own logarithms are
        // below ln 200.
        assert_within!(got.nmi, 0.0, tolerance::f64(8 + 4, 3.0 * 200f64.ln()));
        assert!(got.ari < 0.0 && got.ami < 0.0, "{got:?}");
        // Two clusters of two classes each: half of the images are matched, and I = ln 2 with entropies ln 4
        // and ln 2.
        let pairs = Agreement::new(&right, &right.iter().map(|l| Some(l / 2)).collect::<Vec<_>>()).unwrap();
        assert_within!(pairs.nmi, 2.0 / 3.0, tolerance::f64(8 + 4, 3.0 * 200f64.ln()));
        assert_eq!(pairs.hungarian_accuracy, 0.5);
    }

    #[test]
    fn more_clusters_than_images_are_refused() {
        let error =
            agreement(RowsView::new(&[1.0, 2.0], 1), &[0, 1], 3, Count::lit(1), 0).unwrap_err().to_string();
        assert!(error.contains('3'), "{error}");
    }
}
