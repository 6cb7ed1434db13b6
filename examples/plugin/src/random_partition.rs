//! A clusterer.

use pauc_traits::clusterer::{FitContext, FitReport};
use pauc_traits::probe::RowsView;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Clusterer, Clustering, Count, Result, TrainingSpan, component};
use rand::Rng;

component! {
    /// Assigns every sample to a random prototype: a control that shows the effect of clustering itself.
    ///
    /// # Shapes
    /// features (N, D) → one level of K prototypes, each the mean of its members
    pub struct RandomPartition: Clusterer {
        /// The number of prototypes K.
        pub k: Count,
        /// When the first partition is drawn.
        pub start: TrainingSpan = TrainingSpan::epochs(1),
        /// The interval between partitions.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for RandomPartition {
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let (n, dim, k) = (rows.rows, rows.cols, self.k.get());
        let mut rng = stream(context.seed, Purpose::Cluster, context.epoch, 0, 0);
        // The first k samples go to different prototypes, so that none is empty.
        let labels: Vec<usize> = (0..n).map(|i| if i < k { i } else { rng.gen_range(0..k) }).collect();
        let (mut sums, mut sizes) = (vec![0f64; k * dim], vec![0usize; k]);
        for (row, j) in rows.iter().zip(&labels) {
            sizes[*j] += 1;
            sums[j * dim..(j + 1) * dim].iter_mut().zip(row).for_each(|(s, v)| *s += *v as f64);
        }
        let centroids: Vec<f32> =
            sums.iter().enumerate().map(|(i, s)| (s / sizes[i / dim] as f64) as f32).collect();
        let distance = |(row, j): (&[f32], &usize)| {
            row.iter().zip(&centroids[j * dim..]).map(|(v, c)| ((v - c) as f64).powi(2)).sum::<f64>()
        };
        let objective = rows.iter().zip(&labels).map(distance).sum();
        let assignments: Vec<_> = labels.iter().map(|j| Some(*j as u32)).collect();
        let report = FitReport::new(vec![objective], assignments.iter().copied(), k);
        Ok(vec![Clustering { k, dim, centroids, assignments, report }])
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prototype_is_the_mean_of_its_members() {
        let data: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
        let clusterer = RandomPartition {
            k: Count::lit(3),
            start: TrainingSpan::epochs(1),
            every: TrainingSpan::epochs(1),
        };
        let context = FitContext::new(1);
        let fit = &clusterer.fit(RowsView::new(&data, 2), context).unwrap()[0];
        for j in 0..3 {
            let members: Vec<_> = (0..20).filter(|i| fit.assignments[*i] == Some(j as u32)).collect();
            let mean = members.iter().map(|i| data[i * 2] as f64).sum::<f64>() / members.len() as f64;
            // Both are sums in f64 of numbers up to 1; only the centroid is rounded to f32.
            let rounding = f32::EPSILON as f64 / 2.0 * mean.abs() + 40.0 * f64::EPSILON;
            assert!((fit.centroids[j * 2] as f64 - mean).abs() <= rounding);
        }
        let text = clusterer.fit(RowsView::new(&data[..4], 2), context).unwrap_err().to_string();
        assert!(text.contains("3 prototypes need at least as many samples, but there are 2"), "{text}");
    }
}
