//! The first centroids of k-means.

use crate::on_ranks::Rows;
use pauc_kernels::distance::{Packed, lower_to, nearest, squared_distance};
use pauc_traits::clusterer::RowsOnDevice;
use pauc_traits::probe::RowsView;
use pauc_traits::rng::Stream;
use pauc_traits::{Error, Result, progress, stop};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How the first centroids are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Init {
    /// Samples drawn one at a time, with probability ∝ the squared distance to the nearest drawn so far
    /// (Arthur & Vassilvitskii 2007).
    KMeansPlusPlus,
    /// Distinct samples, drawn uniformly.
    Random,
}

/// The maximum number of candidates per pass over the rows.
const BATCH: usize = 256;
/// Up to this number of centroids, distances are computed one at a time.
const FEW: usize = 16;

impl Init {
    /// Chooses k distinct rows.
    ///
    /// # Shapes
    /// rows (N, D) with k ≤ N → k row numbers
    ///
    /// # Errors
    /// If the run was asked to stop.
    pub fn choose(self, rows: RowsView<'_>, k: usize, rng: &mut Stream) -> Result<Vec<u32>> {
        self.choose_by(&Rows::alone(rows), k, rng, lower_on_host(rows))
    }

    /// As [`Init::choose`], for rows that are also in the memory of a device, which computes the distances.
    /// `rows` is read only for the rows that are drawn.
    ///
    /// # Errors
    /// If the device or another rank fails.
    pub fn choose_on(
        self,
        device: &mut dyn RowsOnDevice,
        rows: &Rows<'_>,
        k: usize,
        rng: &mut Stream,
    ) -> Result<Vec<u32>> {
        self.choose_by(rows, k, rng, |centroids, sq_dist| device.lower(centroids, sq_dist))
    }

    fn choose_by(
        self,
        rows: &Rows<'_>,
        k: usize,
        rng: &mut Stream,
        lower: impl FnMut(&[f32], &mut [f32]) -> Result<()>,
    ) -> Result<Vec<u32>> {
        match self {
            Init::Random => Ok(distinct(rows.len(), k, rng)),
            // With few centroids, each changes the weights a lot, so most of a large batch would be rejected.
            Init::KMeansPlusPlus => {
                let draws = |chosen: usize| if chosen < 64 { chosen / 4 } else { chosen / 2 };
                plus_plus(rows, k, rng, |chosen| draws(chosen).clamp(1, BATCH), lower)
            }
        }
    }
}

/// Draws k of the numbers 0..n at random.
fn distinct(n: usize, k: usize, rng: &mut Stream) -> Vec<u32> {
    rand::seq::index::sample(rng, n, k).into_iter().map(|i| i as u32).collect()
}

/// Draws `most` of the numbers 0..n at random, in ascending order, so that rows of a file are read
/// sequentially.
///
/// # Panics
/// If `most` exceeds `n`.
pub fn some_of(n: usize, most: usize, rng: &mut Stream) -> Vec<u32> {
    let mut chosen = distinct(n, most, rng);
    chosen.sort_unstable();
    chosen
}

/// Copies the rows with these numbers, in the given order. They are read in ascending order, because the rows
/// may be a mapped file larger than memory.
///
/// # Shapes
/// rows (N, D), M numbers below N → (M, D), row-major
///
/// # Panics
/// If a number is not below N.
pub fn gather(rows: RowsView<'_>, chosen: &[u32]) -> Vec<f32> {
    if chosen.is_sorted() {
        let mut data = Vec::with_capacity(chosen.len() * rows.cols);
        chosen.iter().for_each(|i| data.extend_from_slice(rows.row(*i as usize)));
        return data;
    }
    let mut places: Vec<(u32, usize)> = chosen.iter().copied().zip(0..).collect();
    places.sort_unstable();
    let mut data = vec![0.0; chosen.len() * rows.cols];
    for (i, place) in places {
        data[place * rows.cols..][..rows.cols].copy_from_slice(rows.row(i as usize));
    }
    data
}

/// Returns a function for [`plus_plus`] that lowers weights on the host.
pub(crate) fn lower_on_host(rows: RowsView<'_>) -> impl FnMut(&[f32], &mut [f32]) -> Result<(), Error> {
    let (mut labels, mut sq_dist) = (Vec::new(), Vec::new());
    move |centroids, weight| {
        stop::check()?;
        if centroids.len() <= FEW * rows.cols {
            lower_to(rows.data, centroids, rows.cols, weight);
            return Ok(());
        }
        labels.resize(rows.rows, 0);
        sq_dist.resize(rows.rows, 0.0);
        nearest(rows.data, &Packed::new(centroids, rows.cols), &mut labels, &mut sq_dist);
        weight.iter_mut().zip(&sq_dist).for_each(|(weight, sq_dist)| *weight = weight.min(*sq_dist));
        Ok(())
    }
}

/// Exact D² sampling, with one pass over the rows per batch of centroids instead of per centroid.
///
/// Candidates are drawn with the weights from before the batch. A candidate drawn with the stale weight w
/// whose true weight is w' ≤ w (including its distance to the earlier members of the batch) is accepted with
/// probability w'/w. This is rejection sampling, so the accepted candidates have the distribution of drawing
/// one at a time.
///
/// `lower(centroids, weight)` lowers the weight of each row to its squared distance to the nearest of the
/// centroids.
fn plus_plus(
    rows: &Rows<'_>,
    k: usize,
    rng: &mut Stream,
    draws: impl Fn(usize) -> usize,
    mut lower: impl FnMut(&[f32], &mut [f32]) -> Result<()>,
) -> Result<Vec<u32>> {
    let n = rows.len();
    let (mut weight, mut taken) = (vec![f32::INFINITY; n], vec![false; n]);
    let mut cumulative = vec![0.0f64; n];
    let mut chosen: Vec<u32> = Vec::with_capacity(k);
    let mut batch: Vec<u32> = vec![rng.gen_range(0..n) as u32];
    let task = progress::task("choosing centroids", k as u64);
    loop {
        task.advance(batch.len() as u64);
        batch.iter().for_each(|i| taken[*i as usize] = true);
        chosen.extend(&batch);
        if chosen.len() == k {
            return Ok(chosen);
        }
        lower(&rows.gather(&batch)?, &mut weight)?;
        batch.iter().for_each(|i| weight[*i as usize] = 0.0);
        let mut total = 0.0f64;
        for (weight, cumulative) in weight.iter().zip(&mut cumulative) {
            total += *weight as f64;
            *cumulative = total;
        }
        batch.clear();
        if total == 0.0 {
            // Only copies of chosen rows are left.
            let left: Vec<u32> = (0..n as u32).filter(|i| !taken[*i as usize]).collect();
            let drawn = rand::seq::index::sample(rng, left.len(), k - chosen.len());
            chosen.extend(drawn.into_iter().map(|i| left[i]));
            return Ok(chosen);
        }
        let drawn = (0..draws(chosen.len()).min(k - chosen.len())).map(|_| {
            let (position, keep) = (rng.gen_range(0.0..total), rng.r#gen::<f64>());
            (cumulative.partition_point(|c| *c <= position).min(n - 1) as u32, keep)
        });
        let (candidates, keep): (Vec<u32>, Vec<f64>) = drawn.unzip();
        let data = rows.gather(&candidates)?;
        let mut accepted: Vec<&[f32]> = Vec::new();
        for ((candidate, row), keep) in candidates.iter().zip(data.chunks_exact(rows.cols())).zip(keep) {
            let stale = weight[*candidate as usize];
            let fresh = accepted.iter().map(|other| squared_distance(row, other)).fold(stale, f32::min);
            if keep * (stale as f64) < fresh as f64 && !batch.contains(candidate) {
                batch.push(*candidate);
                accepted.push(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::rng::{Purpose, stream};

    fn rng(seed: u64) -> Stream {
        stream(seed, Purpose::Cluster, 0, 0, 0)
    }

    #[test]
    fn choices_are_distinct_and_complete() {
        let data: Vec<f32> = (0..300).map(|i| ((i * 37 % 101) as f32).sin()).collect();
        let rows = RowsView::new(&data, 3);
        for init in [Init::KMeansPlusPlus, Init::Random] {
            for k in [1, 2, 37, 100] {
                let mut chosen = init.choose(rows, k, &mut rng(k as u64)).unwrap();
                chosen.sort_unstable();
                chosen.dedup();
                assert_eq!(chosen.len(), k, "{init:?}");
            }
        }
    }

    #[test]
    fn copies_are_taken_only_when_nothing_else_is_left() {
        let mut data = vec![1.0; 50];
        data[17] = 2.0;
        data[30] = -4.0;
        for seed in 0..20 {
            let mut chosen = Init::KMeansPlusPlus.choose(RowsView::new(&data, 1), 5, &mut rng(seed)).unwrap();
            let mut first: Vec<f32> = chosen[..3].iter().map(|i| data[*i as usize]).collect();
            first.sort_by(f32::total_cmp);
            assert_eq!(first, [-4.0, 1.0, 2.0]);
            chosen.sort_unstable();
            chosen.dedup();
            assert_eq!(chosen.len(), 5);
        }
    }

    /// Compares the probability of every set of four, by enumeration of sequential D² sampling, with
    /// frequencies.
    #[test]
    fn sets_have_the_probabilities_of_drawing_one_at_a_time() {
        let data = [0.0f32, 1.0, 1.5, 3.0, 7.0, 7.2];
        fn walk(data: &[f32], chosen: &mut Vec<usize>, p: f64, k: usize, out: &mut Vec<(Vec<usize>, f64)>) {
            if chosen.len() == k {
                let mut set = chosen.clone();
                set.sort_unstable();
                out.push((set, p));
                return;
            }
            let weights: Vec<f64> = data
                .iter()
                .map(|x| chosen.iter().map(|c| ((x - data[*c]) as f64).powi(2)).fold(f64::INFINITY, f64::min))
                .map(|w| if w.is_finite() { w } else { 1.0 })
                .collect();
            let total: f64 = weights.iter().sum();
            for (i, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                chosen.push(i);
                walk(data, chosen, p * weight / total, k, out);
                chosen.pop();
            }
        }
        let mut exact = Vec::new();
        walk(&data, &mut Vec::new(), 1.0, 4, &mut exact);
        let mut want = std::collections::BTreeMap::<Vec<usize>, f64>::new();
        exact.into_iter().for_each(|(set, p)| *want.entry(set).or_default() += p);
        let runs = 20_000;
        let mut seen = std::collections::BTreeMap::<Vec<usize>, u64>::new();
        for seed in 0..runs {
            // Batches from the first centroid on, so that rejections matter.
            let rows = RowsView::new(&data, 1);
            let chosen =
                plus_plus(&Rows::alone(rows), 4, &mut rng(seed), |_| 8, lower_on_host(rows)).unwrap();
            let mut set: Vec<usize> = chosen.iter().map(|i| *i as usize).collect();
            set.sort_unstable();
            *seen.entry(set).or_default() += 1;
        }
        for (set, p) in want {
            let got = seen.get(&set).copied().unwrap_or(0) as f64 / runs as f64;
            // Some sets are so rare that their count is far from normal. Bernstein's inequality, which holds
            // for all, adds 2·18/(3n) to the six deviations. The probability of exceeding that is less than
            // 2·exp(−18).
            let tolerance = tolerance::frequency(p, runs as usize) + 12.0 / runs as f64;
            assert_within!(got, p, tolerance, "{set:?}");
        }
    }
}
