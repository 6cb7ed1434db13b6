//! HDBSCAN.

use crate::lloyd::clustering_of;
use ::hdbscan::{HdbscanHyperParams, NnAlgorithm};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::{Clusterer, Clustering, Count, Error, Result, TrainingSpan, component, stop};

component! {
    /// HDBSCAN: clusters that persist over a range of densities. Other samples are noise.
    ///
    /// Noise has no prototype. Unlike Dbscan, it needs no radius and finds clusters of different densities.
    /// It takes O(N²·D) on one thread, so use it for at most about ten thousand samples. The crate `hdbscan`
    /// computes the clusters.
    ///
    /// # Shapes
    /// features (N, D) → centroids (k, D), N assignments
    ///
    /// Source: Campello, Moulavi & Sander 2013; McInnes & Healy 2017.
    pub struct Hdbscan: Clusterer {
        /// The minimum number of samples in a cluster, 2 or more.
        pub min_size: Count = Count::lit(10),
        /// The number of samples, itself included, within a sample's core distance. A larger value gives more
        /// noise.
        pub min_points: Count = Count::lit(5),
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for Hdbscan {
    fn fit_checked(&self, rows: RowsView<'_>, _: FitContext<'_>) -> Result<Vec<Clustering>> {
        let (n, size, points) = (rows.rows, self.min_size.get(), self.min_points.get());
        if size < 2 || size.max(points) > n {
            return Err(Error::config(format!(
                "Hdbscan: expected min_size from 2 to the number of samples, and min_points up to it; \
                 got min_size {size} and min_points {points} for {n} samples"
            )));
        }
        let data: Vec<Vec<f32>> = rows.iter().map(<[f32]>::to_vec).collect();
        let parameters = HdbscanHyperParams::builder()
            .min_cluster_size(size)
            .min_samples(points)
            .nn_algorithm(NnAlgorithm::KdTree)
            .build();
        let labels = stop::detached(move || ::hdbscan::Hdbscan::new(&data, parameters).cluster())?
            .map_err(|e| Error::config(format!("Hdbscan: {e:?}")))?;
        // Renumber by first appearance, because the numbers of the crate have no meaning.
        let (mut number, mut k) = (std::collections::BTreeMap::new(), 0u32);
        let assignments: Vec<Option<u32>> = labels
            .into_iter()
            .map(|l| {
                (l >= 0).then(|| {
                    *number.entry(l).or_insert_with(|| {
                        k += 1;
                        k - 1
                    })
                })
            })
            .collect();
        if k == 0 {
            return Err(Error::config(format!(
                "all {n} samples are noise: no two clusters of {size} persist; lower min_size or min_points"
            )));
        }
        Ok(vec![clustering_of(rows, assignments, k as usize, Vec::new())])
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        vec![None]
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

    const CONTEXT: FitContext<'static> = FitContext::new(0);

    fn configured(min_size: usize, min_points: usize) -> Hdbscan {
        Hdbscan {
            min_size: min_size.try_into().unwrap(),
            min_points: min_points.try_into().unwrap(),
            start: TrainingSpan::epochs(0),
            every: TrainingSpan::epochs(1),
        }
    }

    #[test]
    fn groups_of_different_densities_and_noise() {
        // A narrow and a wide group, which no single radius separates from noise, and one sample far from
        // both.
        let spiral = |i: usize, size: f32| {
            let (r, a) = (size * (i as f32 / 60.0).sqrt(), 2.4 * i as f32);
            [r * a.cos(), r * a.sin()]
        };
        let mut data: Vec<f32> = (0..60).flat_map(|i| spiral(i, 0.1)).collect();
        data.extend(
            (0..60).flat_map(|i| spiral(i, 5.0)).enumerate().map(|(j, v)| v + 20.0 * (1 - j % 2) as f32),
        );
        data.extend([200.0, 200.0]);
        let c = &configured(10, 5).fit(RowsView::new(&data, 2), CONTEXT).unwrap()[0];
        assert_eq!((c.k, c.assignments[120]), (2, None));
        for group in [0..60, 60..120] {
            let together =
                c.assignments[group.clone()].iter().filter(|a| **a == c.assignments[group.start + 20]);
            assert!(together.count() >= 55, "{:?}", &c.assignments[group]);
        }
        assert_ne!(c.assignments[20], c.assignments[80]);
        // The mean of the narrow group is 0.001 away. If it lacks up to five samples, that moves it by at
        // most 0.01.
        assert!(c.centroids[0].abs() < 0.05, "{:?}", c.centroids);
    }

    #[test]
    fn impossible_settings_are_errors() {
        let text = |size, points, data: &[f32]| {
            configured(size, points).fit(RowsView::new(data, 1), CONTEXT).map_err(|e| e.to_string())
        };
        assert!(text(1, 1, &[0.0; 9]).unwrap_err().contains("min_size 1"));
        assert!(text(3, 10, &[0.0; 9]).unwrap_err().contains("min_points 10 for 9 samples"));
        assert!(
            text(5, 2, &[0.0, 1.0, 5.0, 5.5, 50.0, 90.0]).unwrap_err().contains("all 6 samples are noise")
        );
        // Identical samples may be one cluster or none, but must not panic.
        assert!(text(3, 2, &[1.0; 30]).is_ok_and(|c| c[0].k == 1) || text(3, 2, &[1.0; 30]).is_err());
    }
}
