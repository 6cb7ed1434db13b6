//! k-means on mini-batches.

use crate::lloyd::{Members, refill, report};
use crate::nearest;
use crate::on_ranks::{Rows, Shared};
use crate::seeding::{Init, gather, some_of};
use pauc_kernels::distance::{Packed, add_rows, nearest};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::rng::{Purpose, Stream, stream};
use pauc_traits::{Clusterer, Clustering, Count, Result, TrainingSpan, component, progress, stop};
use rand::seq::SliceRandom;
use std::borrow::Cow;

/// The number of values in a run of rows that is read sequentially: 1 MiB.
const RUN: usize = 1 << 18;
/// The number of runs whose rows are shuffled together.
const SHUFFLED: usize = 64;
/// The number of samples per prototype from which the first centroids are chosen.
const SAMPLES: usize = 16;

component! {
    /// Mini-batch k-means: each prototype is the running mean of all samples assigned to it so far.
    ///
    /// c ← c + (x − c)/count for the samples x of c in the batch; count is over all batches. A pass visits
    /// every sample once, in random order. Features above 64 MiB are visited in groups of 64 random runs of 1
    /// MiB, so that a mapped file larger than memory is read in long runs. The first centroids come from a
    /// random subset of the samples: 16 per prototype, at least four batches. A prototype without samples
    /// after the first pass is refilled by splitting another, as in KMeans. Every sample ends with its
    /// nearest final centroid. The reported objectives are those seen during each pass, and the final one.
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    ///
    /// Source: Sculley 2010.
    pub struct MiniBatchKMeans: Clusterer {
        /// The number of prototypes of each level. A recipe that leaves it out gets numbers that follow its
        /// images and its batch.
        pub k: Vec<Count> = Vec::new(),
        /// The number of samples in a batch.
        pub batch: Count = Count::lit(1024),
        /// The number of passes over the samples.
        pub iterations: Count = Count::lit(5),
        /// How the first centroids are chosen: KMeansPlusPlus or Random.
        pub init: Init = Init::KMeansPlusPlus,
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for MiniBatchKMeans {
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let rows = &Rows::of(rows, &context)?;
        let level = |(level, k): (usize, &Count)| {
            let random = |view| stream(context.seed, Purpose::Cluster, context.epoch, level as u64, view);
            let start = self.first_centroids(rows, k.get(), &mut random(0))?;
            self.level(rows, start, &mut random(1))
        };
        self.k.iter().enumerate().map(level).collect()
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        self.k.iter().map(|k| Some(k.get())).collect()
    }
    fn shares_rows(&self) -> bool {
        true
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

impl MiniBatchKMeans {
    /// Chooses the first centroids from a subset of the samples.
    fn first_centroids(&self, rows: &Rows<'_>, k: usize, rng: &mut Stream) -> Result<Vec<f32>> {
        let most = k.saturating_mul(SAMPLES).max(self.batch.get().saturating_mul(4));
        let some = match most < rows.len() {
            true => Cow::Owned(rows.gather(&some_of(rows.len(), most, rng))?),
            false => rows.all()?,
        };
        let some = RowsView::new(&some, rows.cols());
        Ok(gather(some, &self.init.choose(some, k, rng)?))
    }

    /// Fits a level from given centroids. The ranks share the comparisons of each batch.
    fn level(&self, rows: &Rows<'_>, mut centroids: Vec<f32>, rng: &mut Stream) -> Result<Clustering> {
        let (n, dim) = (rows.len(), rows.cols());
        let k = centroids.len() / dim;
        let batch = self.batch.get().min(n);
        let (mut counts, mut objective, mut splits) = (vec![0usize; k], Vec::new(), 0);
        let run = (RUN / dim).max(1);
        let task = progress::task("k-means", (self.iterations.get() as u64).saturating_mul(n as u64));
        for _ in 0..self.iterations.get() {
            let mut met = 0.0f64;
            for part in runs(n, run, SHUFFLED, rng) {
                // Read the random runs once, sequentially. Reading single rows would read a mapped file
                // larger than memory many times over.
                let held = if part.len() == n { None } else { Some(rows.gather(&part)?) };
                let held = held.as_ref().map(|data| RowsView::new(data, dim));
                let mut order: Vec<u32> = (0..part.len() as u32).collect();
                order.shuffle(rng);
                for chosen in order.chunks(batch) {
                    stop::check()?;
                    let batch = held.map_or_else(|| rows.gather(chosen), |held| Ok(gather(held, chosen)))?;
                    let batch = RowsView::new(&batch, dim);
                    met += take_in(batch, &mut centroids, &mut counts, rows.shared())?;
                    task.advance(chosen.len() as u64);
                }
            }
            objective.push(met);
            splits += refill(&mut centroids, dim, &mut counts, rng);
        }
        let own = rows.own();
        let (mut labels, mut sq_dist) = (vec![0u32; own.rows], vec![0.0f32; own.rows]);
        nearest::nearest(own, &Packed::new(&centroids, dim), k, &mut labels, &mut sq_dist)?;
        let (labels, sq_dist) = (rows.complete(labels)?, rows.complete(sq_dist)?);
        objective.push(sq_dist.iter().map(|d| *d as f64).sum());
        let assignments: Vec<Option<u32>> = labels.into_iter().map(Some).collect();
        let report = report(objective, splits, assignments.iter().copied(), k);
        Ok(Clustering { k, dim, centroids, assignments, report })
    }
}

/// Moves each centroid to the running mean of its samples, including those of the batch. Returns the batch's
/// Σ‖x − c‖² before the update.
fn take_in(
    batch: RowsView<'_>,
    centroids: &mut [f32],
    counts: &mut [usize],
    shared: Shared<'_>,
) -> Result<f64> {
    let (n, dim) = (batch.rows, batch.cols);
    let own = shared.own(n);
    let (mut labels, mut sq_dist) = (vec![0u32; own.len()], vec![0.0f32; own.len()]);
    let data = &batch.data[own.start * dim..own.end * dim];
    nearest(data, &Packed::new(centroids, dim), &mut labels, &mut sq_dist);
    let (labels, sq_dist) = (shared.concatenate(labels)?, shared.concatenate(sq_dist)?);
    let members = Members::new(&labels, counts.len());
    let mut sum = vec![0.0f64; dim];
    for ((c, centroid), count) in centroids.chunks_exact_mut(dim).enumerate().zip(counts) {
        let own = members.of(c);
        if own.is_empty() {
            continue;
        }
        sum.fill(0.0);
        add_rows(batch.data, dim, own, &mut sum);
        *count += own.len();
        for (v, s) in centroid.iter_mut().zip(&sum) {
            let rest = s - own.len() as f64 * *v as f64;
            *v = (*v as f64 + rest / *count as f64) as f32;
        }
    }
    Ok(sq_dist.iter().map(|d| *d as f64).sum())
}

/// Splits 0..n into parts: the numbers of `together` random runs of length `run`, in ascending order, then
/// those of the next.
fn runs(n: usize, run: usize, together: usize, rng: &mut Stream) -> Vec<Vec<u32>> {
    let mut runs: Vec<usize> = (0..n.div_ceil(run)).collect();
    if runs.len() > together {
        runs.shuffle(rng);
    }
    let part = |runs: &mut [usize]| {
        runs.sort_unstable();
        runs.iter().flat_map(|r| r * run..((r + 1) * run).min(n)).map(|i| i as u32).collect()
    };
    runs.chunks_mut(together).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Centroids, largest, mean_of_rows, widened};
    use pauc_testing::{Rounded, assert_within, tolerance};

    fn wave(n: usize) -> Vec<f32> {
        pauc_testing::inputs::groups(n, 5, 3.0)
    }

    fn configured(batch: usize, iterations: usize) -> MiniBatchKMeans {
        MiniBatchKMeans {
            k: vec![Count::lit(6)],
            batch: Count::try_from(batch).unwrap(),
            iterations: Count::try_from(iterations).unwrap(),
            init: Init::Random,
            start: TrainingSpan::epochs(0),
            every: TrainingSpan::epochs(1),
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
        let got = configured(20, 2)
            .level(&Rows::alone(RowsView::new(&data, dim)), start.clone(), &mut rng())
            .unwrap();
        let mut centroids = Centroids::exact(&start, dim);
        let (mut counts, mut rng) = ([0.0; 6], rng());
        let row = |i: usize| &data[i * dim..][..dim];
        let largest = largest(&widened(&data));
        let mut batches = 0;
        let mut objective = Vec::new();
        for _ in 0..2 {
            let mut order: Vec<u32> = (0..n as u32).collect();
            order.shuffle(&mut rng);
            let mut met = Rounded::default();
            for batch in order.chunks(20) {
                let assigned: Vec<_> = batch.iter().map(|i| centroids.nearest(row(*i as usize))).collect();
                for (i, (c, sq_dist)) in batch.iter().zip(assigned) {
                    met.value += sq_dist.value;
                    met.error += sq_dist.error;
                    counts[c] += 1.0;
                    for l in 0..dim {
                        let value = &mut centroids.values[c * dim + l];
                        *value += (f64::from(row(*i as usize)[l]) - *value) / counts[c];
                    }
                }
                // Each batch rounds a centroid once. Earlier errors lose weight with every sample.
                batches += 1;
                centroids.off = tolerance::f32(batches, largest);
                centroids.origin = mean_of_rows(&centroids.values, dim);
            }
            objective.push(met);
        }
        assert!(counts.iter().all(|c| *c > 0.0), "no split in this example");
        for (got, want) in got.centroids.iter().zip(&centroids.values) {
            assert_within!(*got, *want, centroids.off);
        }
        for (got, want) in got.report.objective.iter().zip(&objective) {
            assert_within!(*got, want.value, want.error);
        }
        for (i, a) in got.assignments.iter().enumerate() {
            assert_eq!(a.unwrap() as usize, centroids.nearest(row(i)).0);
        }
    }

    #[test]
    fn a_pass_takes_every_sample_once_and_few_runs_at_a_time() {
        let parts = runs(1003, 10, 7, &mut rng());
        let mut all: Vec<u32> = parts.concat();
        assert!(!all.is_sorted() && parts.iter().all(|part| part.is_sorted()));
        all.sort_unstable();
        assert_eq!(all, (0..1003).collect::<Vec<_>>());
        let count =
            |part: &Vec<u32>| part.iter().map(|i| i / 10).collect::<std::collections::HashSet<_>>().len();
        assert_eq!(parts.iter().map(count).collect::<Vec<_>>(), [[7; 14].as_slice(), &[3]].concat());
        assert_ne!(
            runs(1003, 10, 7, &mut rng()),
            runs(1003, 10, 7, &mut stream(2, Purpose::Cluster, 0, 0, 1))
        );
        assert_eq!(runs(70, 10, 7, &mut rng()), [(0..70).collect::<Vec<_>>()]);
    }

    /// More rows than are shuffled together: the result is still close to Lloyd's, and every row counts once
    /// per pass.
    #[test]
    fn features_above_the_memory_of_a_pass_are_clustered_as_well() {
        let (dim, n) = (RUN / 2, 2 * SHUFFLED + 5);
        let data: Vec<f32> =
            (0..n * dim).map(|i| if i % dim == 0 { (i / dim % 5) as f32 } else { 0.0 }).collect();
        let configured =
            MiniBatchKMeans { k: vec![Count::lit(5)], init: Init::KMeansPlusPlus, ..configured(16, 2) };
        let context = FitContext::new(0);
        let fit = &configured.fit(RowsView::new(&data, dim), context).unwrap()[0];
        // Running means of equal integers are exact.
        assert!(
            fit.report.objective.iter().all(|o| *o == 0.0),
            "five distinct rows: {:?}",
            fit.report.objective
        );
        let same = |a: usize, b: usize| fit.assignments[a] == fit.assignments[b];
        assert!((0..n - 5).all(|i| same(i, i + 5) && !same(i, i + 1)));
    }

    #[test]
    fn first_centroids_of_many_samples_come_from_some_of_them() {
        let data = wave(2000 * 2);
        let rows = &Rows::alone(RowsView::new(&data, 2));
        for init in [Init::Random, Init::KMeansPlusPlus] {
            let start =
                MiniBatchKMeans { init, ..configured(10, 1) }.first_centroids(rows, 6, &mut rng()).unwrap();
            let own = |c: &[f32]| data.chunks(2).any(|x| x == c);
            assert!(start.len() == 12 && start.chunks(2).all(own), "{start:?}");
        }
    }

    #[test]
    fn comes_close_to_lloyd_and_refuses_too_many() {
        let data = wave(2000 * 2);
        let rows = RowsView::new(&data, 2);
        let context = FitContext::new(0);
        let fit = &configured(100, 8).fit(rows, context).unwrap()[0];
        let lloyd = crate::lloyd::Lloyd { iterations: 50, spherical: false, tolerance: 0.0 };
        let best = lloyd.run(rows, fit.centroids.clone(), &mut rng()).unwrap();
        let (got, best) = (fit.report.objective.last().unwrap(), best.objective.last().unwrap());
        // Measured: 1.0003 times the best.
        assert!(*got < 1.1 * best, "{got} for {best}");
        assert!(configured(4, 1).fit(RowsView::new(&data[..10], 2), context).is_err());
    }
}
