//! k-means on mini-batches.

use crate::HostClusterer;
use crate::host::enough;
use crate::lloyd::{members, refill, report};
use crate::seeding::{Init, gather};
use pauc_kernels::distance::{Packed, add_rows, nearest};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::Rows;
use pauc_traits::rng::{Purpose, Stream, stream};
use pauc_traits::{Clustering, Count, Result, Span, component};
use rand::seq::SliceRandom;

component! {
    /// k-means in passes of mini-batches: each prototype is the running mean of all samples assigned to it so far.
    ///
    /// c ← c + (x − c)/count for the batch's samples x of c, count over all batches. A pass visits every sample once
    /// in random order. A prototype that got nothing in the first pass is refilled by splitting another, as in
    /// KMeans. Every sample ends with its nearest final centroid. The objectives reported are those met on the way
    /// in each pass, and the final one.
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    ///
    /// Source: Sculley 2010.
    pub struct MiniBatchKMeans: Clusterer {
        /// The number of prototypes of each level.
        pub k: Vec<Count>,
        /// Samples in a batch.
        pub batch: Count = Count::lit(1024),
        /// Passes over the samples.
        pub iterations: Count = Count::lit(5),
        /// How the first centroids are chosen: KMeansPlusPlus or Random.
        pub init: Init = Init::KMeansPlusPlus,
        /// When the first clustering happens.
        pub start: Span = Span::epochs(2),
        /// How long a clustering is kept.
        pub every: Span = Span::epochs(1),
    }
}

clusterer_on_host!(MiniBatchKMeans, |this| this.k.iter().map(|k| Some(k.get())).collect());

impl HostClusterer for MiniBatchKMeans {
    fn fit_rows(&self, rows: Rows<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let level = |(level, k): (usize, &Count)| {
            enough(rows, k.get())?;
            let random = |view| stream(context.seed, Purpose::Cluster, context.epoch, level as u64, view);
            let start = gather(rows, &self.init.choose(rows, k.get(), &mut random(0)));
            Ok(self.level(rows, start, &mut random(1)))
        };
        self.k.iter().enumerate().map(level).collect()
    }
}

impl MiniBatchKMeans {
    fn level(&self, rows: Rows<'_>, mut centroids: Vec<f32>, rng: &mut Stream) -> Clustering {
        let (n, dim) = (rows.rows, rows.cols);
        let k = centroids.len() / dim;
        let batch = self.batch.get().min(n);
        let (mut index, mut square) = (vec![0u32; batch], vec![0.0f32; batch]);
        let (mut counts, mut objective, mut splits) = (vec![0usize; k], Vec::new(), 0);
        let mut order: Vec<u32> = (0..n as u32).collect();
        let mut sum = vec![0.0f64; dim];
        for _ in 0..self.iterations.get() {
            order.shuffle(rng);
            let mut met = 0.0f64;
            for chosen in order.chunks(batch) {
                let data = gather(rows, chosen);
                let (index, square) = (&mut index[..chosen.len()], &mut square[..chosen.len()]);
                nearest(&data, &Packed::new(&centroids, dim), index, square);
                met += square.iter().map(|s| *s as f64).sum::<f64>();
                let (own, starts) = members(index, k);
                for c in 0..k {
                    let own = &own[starts[c]..starts[c + 1]];
                    if own.is_empty() {
                        continue;
                    }
                    sum.fill(0.0);
                    add_rows(&data, dim, own, &mut sum);
                    counts[c] += own.len();
                    for (v, s) in centroids[c * dim..(c + 1) * dim].iter_mut().zip(&sum) {
                        let rest = s - own.len() as f64 * *v as f64;
                        *v = (*v as f64 + rest / counts[c] as f64) as f32;
                    }
                }
            }
            objective.push(met);
            splits += refill(&mut centroids, dim, &mut counts, rng);
        }
        let (mut index, mut square) = (vec![0u32; n], vec![0.0f32; n]);
        nearest(rows.data, &Packed::new(&centroids, dim), &mut index, &mut square);
        objective.push(square.iter().map(|s| *s as f64).sum());
        let assignments: Vec<Option<u32>> = index.into_iter().map(Some).collect();
        let report = report(objective, splits, assignments.iter().copied(), k);
        Clustering { k, dim, centroids, assignments, report }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * i) as f32 * 0.37).sin() + 3.0 * (i % 5) as f32).collect()
    }

    fn configured(batch: usize, iterations: usize) -> MiniBatchKMeans {
        MiniBatchKMeans {
            k: vec![Count::lit(6)],
            batch: Count::try_from(batch).unwrap(),
            iterations: Count::try_from(iterations).unwrap(),
            init: Init::Random,
            start: Span::epochs(0),
            every: Span::epochs(1),
        }
    }

    fn rng() -> Stream {
        stream(1, Purpose::Cluster, 0, 0, 1)
    }

    #[test]
    fn equals_running_means_one_sample_after_the_other() {
        let (dim, n) = (2, 90);
        let data = wave(n * dim);
        let start = data[..6 * dim].to_vec();
        let got = configured(20, 2).level(Rows::new(&data, dim), start.clone(), &mut rng());
        let mut centroids: Vec<f64> = start.iter().map(|v| *v as f64).collect();
        let (mut counts, mut order, mut rng) = ([0.0; 6], (0..n as u32).collect::<Vec<_>>(), rng());
        let nearest = |centroids: &[f64], i: usize| -> (usize, f64) {
            let d = |c: usize| -> f64 {
                (0..dim).map(|l| (data[i * dim + l] as f64 - centroids[c * dim + l]).powi(2)).sum()
            };
            let c = (0..6).min_by(|a, b| d(*a).total_cmp(&d(*b))).unwrap();
            (c, d(c))
        };
        let mut objective = Vec::new();
        for _ in 0..2 {
            order.shuffle(&mut rng);
            let mut met = 0.0;
            for batch in order.chunks(20) {
                let assigned: Vec<_> = batch.iter().map(|i| nearest(&centroids, *i as usize)).collect();
                for (i, (c, square)) in batch.iter().zip(assigned) {
                    met += square;
                    counts[c] += 1.0;
                    for l in 0..dim {
                        centroids[c * dim + l] +=
                            (data[*i as usize * dim + l] as f64 - centroids[c * dim + l]) / counts[c];
                    }
                }
            }
            objective.push(met);
        }
        assert!(counts.iter().all(|c| *c > 0.0), "no split in this example");
        got.centroids.iter().zip(&centroids).for_each(|(a, b)| assert!((*a as f64 - b).abs() < 1e-4));
        got.report.objective.iter().zip(&objective).for_each(|(a, b)| assert!((a - b).abs() < 1e-4 * b));
        for (i, a) in got.assignments.iter().enumerate() {
            assert_eq!(a.unwrap() as usize, nearest(&centroids, i).0);
        }
    }

    #[test]
    fn comes_close_to_lloyd_and_refuses_too_many() {
        let data = wave(2000 * 2);
        let rows = Rows::new(&data, 2);
        let context = FitContext { seed: 0, epoch: 0, previous: &[], labels: None };
        let fit = &configured(100, 8).fit_rows(rows, context).unwrap()[0];
        let lloyd = crate::lloyd::Lloyd { iterations: 50, spherical: false, tolerance: 0.0 };
        let best = lloyd.run(rows, fit.centroids.clone(), &mut rng());
        let (got, best) = (fit.report.objective.last().unwrap(), best.objective.last().unwrap());
        assert!(*got < 1.1 * best, "{got} for {best}");
        assert!(configured(4, 1).fit_rows(Rows::new(&data[..10], 2), context).is_err());
    }
}
