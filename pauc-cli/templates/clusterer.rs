//! A clusterer.

use pauc_traits::clusterer::{FitContext, FitReport};
use pauc_traits::probe::RowsView;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Clusterer, Clustering, Count, Result, TrainingSpan, component};
use rand::seq::index;

component! {
    /// Random samples as prototypes, and each sample assigned to the nearest: k-means without iterations.
    ///
    /// Distances are Euclidean; ties go to the lower index.
    ///
    /// # Shapes
    /// features (N, D) → one level of K prototypes (K, D)
    ///
    /// Source: the paper or code that this follows.
    pub struct ClustererTemplate: Clusterer {
        /// The number of prototypes K.
        pub k: Count,
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for ClustererTemplate {
    // `fit`, which calls this, has checked that there are at least K samples and that all values are finite.
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let (n, dim, k) = (rows.rows, rows.cols, self.k.get());
        let mut rng = stream(context.seed, Purpose::Cluster, context.epoch, 0, 0);
        let chosen = index::sample(&mut rng, n, k);
        let centroids: Vec<f32> = chosen.iter().flat_map(|i| rows.row(i)).copied().collect();
        let (mut assignments, mut objective) = (Vec::with_capacity(n), 0.0);
        for row in rows.iter() {
            let (nearest, distance) = nearest(row, &centroids);
            // `None` would be noise.
            assignments.push(Some(nearest as u32));
            objective += distance;
        }
        let report = FitReport::new(vec![objective], assignments.iter().copied(), k);
        Ok(vec![Clustering { k, dim, centroids, assignments, report }])
    }

    // One entry per level; `None` if K depends on the data.
    fn prototypes(&self) -> Vec<Option<usize>> {
        vec![Some(self.k.get())]
    }

    fn start(&self) -> TrainingSpan {
        self.start
    }

    fn every(&self) -> TrainingSpan {
        self.every
    }
}

/// Returns the nearest centroid and its squared distance.
fn nearest(row: &[f32], centroids: &[f32]) -> (usize, f64) {
    let mut best = (0, f64::INFINITY);
    for (j, centroid) in centroids.chunks_exact(row.len()).enumerate() {
        let distance = row.iter().zip(centroid).map(|(v, c)| f64::from(v - c).powi(2)).sum();
        if distance < best.1 {
            best = (j, distance);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(data: &[f32], k: usize, seed: u64) -> Result<Clustering> {
        let clusterer = ClustererTemplate {
            k: Count::try_from(k).unwrap(),
            start: TrainingSpan::epochs(1),
            every: TrainingSpan::epochs(1),
        };
        Ok(clusterer.fit(RowsView::new(data, 2), FitContext::new(seed))?.remove(0))
    }

    #[test]
    fn every_sample_goes_to_the_nearest_prototype() {
        let data: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
        let fitted = fit(&data, 3, 1).unwrap();
        let mut objective = 0.0;
        for (row, own) in data.chunks_exact(2).zip(&fitted.assignments) {
            let distances: Vec<f64> = fitted
                .centroids
                .chunks_exact(2)
                .map(|c| f64::from(row[0] - c[0]).powi(2) + f64::from(row[1] - c[1]).powi(2))
                .collect();
            let distance = distances[own.unwrap() as usize];
            assert!(distances.iter().all(|d| *d >= distance));
            objective += distance;
        }
        // The same sum in the same order.
        assert_eq!(fitted.report.objective, [objective]);
        assert!(fitted.report.imbalance >= 1.0 && fitted.report.empty == 0);
    }

    #[test]
    fn prototypes_depend_only_on_the_seed() {
        let data: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
        let centroids = |seed| fit(&data, 3, seed).unwrap().centroids;
        assert_eq!(centroids(1), centroids(1));
        assert_ne!(centroids(1), centroids(2));
    }

    #[test]
    fn more_prototypes_than_samples_are_refused() {
        let message = fit(&[0.0; 4], 3, 1).unwrap_err().to_string();
        assert!(message.contains("3 prototypes need at least as many samples"), "{message}");
    }
}
