//! Exact cosine k-nearest-neighbor classification.

use crate::spectrum::mean;
use crate::{ProbeTime, Space, check, largest, same_width, when};
use pauc_kernels::gemm::{Strides, gemm};
pub use pauc_traits::probe::Neighbors;
use pauc_traits::probe::{Metric, ProbeContext, ProbesOnDevice, RowsView, When};
use pauc_traits::{Count, Positive, Probe, Result, TrainingSpan, component, progress, stop};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

component! {
    /// Accuracy of a weighted k-nearest-neighbor vote on the test split, with the training split as the bank.
    ///
    /// Each of the k training samples with the highest cosine votes for its class with weight exp(cos/T). The
    /// search is exact. Ties between cosines go to the lower sample index, ties between votes to the lower
    /// class. If there are fewer than k training samples, all vote. Without a test split, nothing is
    /// measured.
    ///
    /// Metric: `knn/cos/k20/t0.07`, a fraction; the chance level is the fraction of the most frequent class.
    /// Source: Wu et al. 2018 (instance discrimination).
    pub struct Knn: Probe {
        /// The number of neighbors.
        pub k: Count = Count::lit(20),
        /// The temperature T of the weights.
        pub temperature: Positive = Positive::lit(0.07),
        /// The vectors compared: `Features` before the projector, or its outputs, `Embeddings`.
        pub space: Space = Space::Features,
        /// How often it runs during training, such as `Epochs(1)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for Knn {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let Some(splits) = self.space.labeled(context) else { return Ok(Vec::new()) };
        let (k, t) = (self.k.get(), self.temperature.get());
        splits.check("k-nearest neighbors", context.classes)?;
        let nearest = neighbors_on(context.device, splits.train, splits.test, k, Distance::Cosine)?;
        let votes = votes(&nearest, splits.labels, t, context.classes);
        let value = share_right(&votes, splits.test_labels, context.classes);
        Ok(vec![Metric::accuracy(format!("knn/cos/k{k}/t{t}{}", self.space.suffix()), value)])
    }
}

/// Returns the fraction of test rows that the weighted vote of their `k` nearest training rows classifies
/// correctly.
///
/// # Shapes
/// train (N, D), labels N, test (M, D), test_labels M → a fraction
///
/// # Errors
/// If rows and labels do not match, there are no rows, or a value is NaN or infinite.
pub fn knn_accuracy(
    train: RowsView<'_>,
    labels: &[u32],
    test: RowsView<'_>,
    test_labels: &[u32],
    k: usize,
    temperature: f64,
    classes: usize,
) -> Result<f64> {
    check("k-nearest neighbors, test split", test, test_labels, classes)?;
    let votes = knn_votes(train, labels, test, k, temperature, classes)?;
    Ok(share_right(&votes, test_labels, classes))
}

/// Returns the fraction of rows whose class has the most votes.
fn share_right(votes: &[f64], labels: &[u32], classes: usize) -> f64 {
    let right = votes.chunks_exact(classes).zip(labels).filter(|(v, l)| largest(v) == **l as usize).count();
    right as f64 / labels.len() as f64
}

/// Returns each test row's votes for every class: Σ exp((cos − cos₁)/T) over its neighbors, where cos₁ is the
/// cosine of the nearest one.
///
/// # Shapes
/// train (N, D), labels N, test (M, D) → (M, classes), row-major
///
/// # Errors
/// As for [`knn_accuracy`].
pub fn knn_votes(
    train: RowsView<'_>,
    labels: &[u32],
    test: RowsView<'_>,
    k: usize,
    temperature: f64,
    classes: usize,
) -> Result<Vec<f64>> {
    check("k-nearest neighbors, training split", train, labels, classes)?;
    Ok(votes(&neighbors(train, test, k, Distance::Cosine)?, labels, temperature, classes))
}

fn votes(nearest: &[Neighbors], labels: &[u32], temperature: f64, classes: usize) -> Vec<f64> {
    let mut votes = vec![0.0; nearest.len() * classes];
    votes.par_chunks_mut(classes).zip(nearest).for_each(|(votes, nearest)| {
        for (cosine, index) in nearest {
            votes[labels[*index as usize] as usize] += weight(*cosine, nearest[0].0, temperature);
        }
    });
    votes
}

/// Returns the weight of a neighbor's vote, exp((cos − cos₁)/T).
pub(crate) fn weight(cosine: f32, best: f32, temperature: f64) -> f64 {
    ((cosine as f64 - best as f64) / temperature).exp()
}

/// How neighbors are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distance {
    /// By the largest cosine.
    Cosine,
    /// By the smallest ‖x − y‖.
    Euclidean,
}

/// Returns the `k` nearest training rows of each test row, with their scores. The score is the cosine, or
/// −d²/2 of the Euclidean distance d up to a constant of the test row. Ties go to the lower index. If there
/// are fewer than `k` rows, all are returned.
///
/// # Shapes
/// train (N, D), test (M, D) → M lists
///
/// # Errors
/// If rows have different widths, or a value is NaN or infinite.
pub fn neighbors(
    train: RowsView<'_>,
    test: RowsView<'_>,
    k: usize,
    distance: Distance,
) -> Result<Vec<Neighbors>> {
    neighbors_on(None, train, test, k, distance)
}

/// As [`neighbors`], with comparison and selection on a device, if given.
///
/// # Shapes
/// train (N, D), test (M, D) → M lists
///
/// # Errors
/// As [`neighbors`], or if the device fails.
pub fn neighbors_on(
    device: Option<&dyn ProbesOnDevice>,
    train: RowsView<'_>,
    test: RowsView<'_>,
    k: usize,
    distance: Distance,
) -> Result<Vec<Neighbors>> {
    crate::finite("k-nearest neighbors, training split", train)?;
    crate::finite("k-nearest neighbors, test split", test)?;
    same_width("k-nearest neighbors", train, test)?;
    let (bank, queries, shift): (_, _, Option<Vec<f32>>) = match distance {
        Distance::Cosine => (unit_rows(train), unit_rows(test), None),
        Distance::Euclidean => {
            // −‖x − y‖²/2 = x·y − ‖y‖²/2 − ‖x‖²/2. Subtracting the common mean reduces cancellation.
            let center = mean(train);
            let bank = centered(train, &center);
            let half = |row: &[f32]| (-0.5 * row.iter().map(|v| (*v as f64).powi(2)).sum::<f64>()) as f32;
            let shift = bank.chunks_exact(train.cols).map(half).collect();
            (bank, centered(test, &center), Some(shift))
        }
    };
    let k = k.min(train.rows);
    if let Some(device) = device {
        let (queries, bank) = (RowsView::new(&queries, test.cols), RowsView::new(&bank, train.cols));
        if let Some(nearest) = device.highest(queries, bank, shift.as_deref(), k)? {
            return Ok(nearest);
        }
    }
    let bank = Bank { rows: &bank, shift, dim: train.cols };
    let mut nearest = vec![Vec::new(); test.rows];
    let stop = stop::flag();
    let task = progress::task("nearest neighbors", test.rows as u64);
    nearest.par_chunks_mut(QUERIES).zip(queries.par_chunks(QUERIES * train.cols)).for_each(
        |(nearest, queries)| {
            if !stop.is_set() {
                nearest.iter_mut().zip(bank.search(queries, k)).for_each(|(n, list)| *n = list);
                task.advance(nearest.len() as u64);
            }
        },
    );
    stop.check()?;
    Ok(nearest)
}

fn centered(rows: RowsView<'_>, center: &[f64]) -> Vec<f32> {
    let row = |row: &[f32]| row.iter().zip(center).map(|(v, c)| (*v as f64 - c) as f32).collect::<Vec<_>>();
    rows.iter().flat_map(row).collect()
}

// A tile of scores, QUERIES × BANK, stays in the L2 cache between the product and the selection.
pub(crate) const QUERIES: usize = 128;
const BANK: usize = 1024;

/// Returns the products of all queries with all rows of a bank, query by query.
pub(crate) fn products(queries: &[f32], bank: &[f32], dim: usize) -> Vec<f32> {
    let (rows, width) = (queries.len() / dim, bank.len() / dim);
    let mut out = vec![0.0; rows * width];
    for (t, part) in bank.chunks(BANK * dim).enumerate() {
        let columns = (&mut out[..], Strides::row_major(width).from(t * BANK));
        let (left, right) = ((queries, Strides::row_major(dim)), (part, Strides::transposed(dim)));
        gemm((rows, part.len() / dim, dim), 1.0, left, right, 0.0, columns);
    }
    out
}

/// The rows that queries are compared with.
pub(crate) struct Bank<'a> {
    rows: &'a [f32],
    /// Added to the product with each row.
    shift: Option<Vec<f32>>,
    dim: usize,
}

impl<'a> Bank<'a> {
    /// Returns a bank of unit rows, which queries of unit rows are compared with by cosine.
    pub(crate) fn of_cosines(rows: &'a [f32], dim: usize) -> Self {
        Bank { rows, shift: None, dim }
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len() / self.dim
    }

    /// Returns the `k` bank rows of the highest score for each query, best first.
    fn search(&self, queries: &[f32], k: usize) -> Vec<Neighbors> {
        let mut nearest = vec![Vec::with_capacity(k); queries.len() / self.dim];
        self.for_each_tile(queries, |query, start, scores| offer(&mut nearest[query], k, start, scores));
        nearest
    }

    /// Compares queries with all rows, tile by tile. `read` gets the number of a query and its scores for the
    /// rows from a start on; the rows of each query arrive in order.
    pub(crate) fn for_each_tile(&self, queries: &[f32], mut read: impl FnMut(usize, usize, &[f32])) {
        let dim = self.dim;
        let rows = queries.len() / dim;
        let mut tile = vec![0.0; rows * BANK];
        for (t, part) in self.rows.chunks(BANK * dim).enumerate() {
            let width = part.len() / dim;
            if let Some(shift) = &self.shift {
                tile.chunks_exact_mut(BANK).for_each(|row| {
                    row[..width].copy_from_slice(&shift[t * BANK..t * BANK + width]);
                });
            }
            let keep = if self.shift.is_some() { 1.0 } else { 0.0 };
            let product = Strides::row_major(BANK);
            let (left, right) = ((queries, Strides::row_major(dim)), (part, Strides::transposed(dim)));
            gemm((rows, width, dim), 1.0, left, right, keep, (&mut tile, product));
            for (query, scores) in tile.chunks_exact(BANK).enumerate() {
                read(query, t * BANK, &scores[..width]);
            }
        }
    }
}

/// Inserts the bank rows from `start` on into the list of the `k` best. Rows arrive in ascending order, so a
/// later row of equal score stays behind.
pub(crate) fn offer(nearest: &mut Neighbors, k: usize, start: usize, scores: &[f32]) {
    let bar = |nearest: &[(f32, u32)]| if nearest.len() < k { f32::NEG_INFINITY } else { nearest[k - 1].0 };
    for (b, block) in scores.chunks(32).enumerate() {
        // Almost no block has a better row, and this form of the test is vectorized.
        let low = bar(nearest);
        if !block.iter().fold(false, |any, c| any | (*c > low)) {
            continue;
        }
        for (i, &score) in block.iter().enumerate() {
            if score > bar(nearest) {
                nearest.truncate(k - 1);
                let place = nearest.partition_point(|n| n.0 >= score);
                nearest.insert(place, (score, (start + b * 32 + i) as u32));
            }
        }
    }
}

/// Divides rows by their length. Rows of zeros stay zero, and so have cosine 0 to all rows.
pub(crate) fn unit_rows(rows: RowsView<'_>) -> Vec<f32> {
    let mut unit = rows.data.to_vec();
    unit.par_chunks_mut(rows.cols.max(1)).for_each(|row| {
        let norm = row.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (*v as f64 / norm) as f32);
        }
    });
    unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::irregular;
    use pauc_testing::{assert_within, tolerance};
    use serde_json::Value;

    /// The error bound of a cosine: an inner product of unit rows, each rounded once more by the scaling.
    fn of_cosine(dim: usize) -> f64 {
        tolerance::f32(dim + 2, 1.0)
    }

    fn floats(v: &Value) -> (Vec<f32>, usize) {
        let rows: Vec<Vec<f32>> = serde_json::from_value(v.clone()).unwrap();
        (rows.concat(), rows[0].len())
    }

    #[test]
    fn votes_and_predictions_equal_the_reference() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/metrics.json")).unwrap();
        for case in golden["knn"].as_array().unwrap() {
            let ((train, dim), (test, _)) = (floats(&case["train"]), floats(&case["test"]));
            let labels: Vec<u32> = serde_json::from_value(case["labels"].clone()).unwrap();
            let predictions: Vec<usize> = serde_json::from_value(case["predictions"].clone()).unwrap();
            let (want, classes) = floats(&case["votes"]);
            let (k, t) = (case["k"].as_u64().unwrap() as usize, case["temperature"].as_f64().unwrap());
            let (train, test) = (RowsView::new(&train, dim), RowsView::new(&test, dim));
            let got = knn_votes(train, &labels, test, k, t, classes).unwrap();
            // A share of votes is a softmax of cos/T. It changes by at most half the max-norm change of the
            // arguments. The reference uses features before they are rounded to f32; its votes are rounded
            // here.
            let rounding = 0.5 * (of_cosine(dim) + tolerance::f32(2, 1.0)) / t + tolerance::f32(2, 1.0);
            for (i, (got, want)) in got.chunks(classes).zip(want.chunks(classes)).enumerate() {
                assert_eq!(largest(got), predictions[i], "{} row {i}", case["case"]);
                // The reference does not divide by the weight of the nearest neighbor, so compare shares.
                let share = |v: f64, all: f64| v / all;
                let (all, total) = (got.iter().sum::<f64>(), want.iter().map(|v| *v as f64).sum::<f64>());
                for (g, w) in got.iter().zip(want) {
                    assert_within!(share(*g, all), share(*w as f64, total), rounding, "row {i}");
                }
                let mut shares: Vec<f64> = want.iter().map(|w| share(*w as f64, total)).collect();
                shares.sort_by(f64::total_cmp);
                let lead = shares[classes - 1] - shares[classes - 2];
                assert!(lead > 2.0 * rounding, "rounding decides about row {i}: {lead}");
            }
        }
    }

    /// Computes all cosines of each test row in f64 with loops.
    fn naive(train: &[f32], test: &[f32], dim: usize) -> Vec<Vec<f64>> {
        let norm = |v: &[f32]| v.iter().map(|x| (*x as f64).powi(2)).sum::<f64>().sqrt();
        let cosines = |q: &[f32]| {
            let dot = |b: &[f32]| {
                b.iter().zip(q).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>() / norm(b) / norm(q)
            };
            train.chunks(dim).map(dot).collect()
        };
        test.chunks(dim).map(cosines).collect()
    }

    #[test]
    fn the_search_across_tiles_equals_a_full_sort() {
        let (dim, k) = (7, 9);
        let (train, test) = (irregular((2 * BANK + 77) * dim, 0.1), irregular((QUERIES + 5) * dim, 2.0));
        let got =
            neighbors(RowsView::new(&train, dim), RowsView::new(&test, dim), k, Distance::Cosine).unwrap();
        let mut exchanged = 0;
        for (q, (got, cosines)) in got.iter().zip(naive(&train, &test, dim)).enumerate() {
            let mut order: Vec<usize> = (0..cosines.len()).collect();
            order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]));
            assert_eq!(got.iter().map(|n| n.1).collect::<std::collections::HashSet<_>>().len(), k);
            for ((value, index), want) in got.iter().zip(order) {
                let index = *index as usize;
                assert_within!(*value, cosines[index], of_cosine(dim), "query {q}");
                // Rows whose cosines differ by less than rounding may be swapped; one such pair is 1.4e-7
                // apart.
                assert_within!(cosines[index], cosines[want], 2.0 * of_cosine(dim), "query {q}");
                exchanged += usize::from(index != want);
            }
        }
        assert!(exchanged <= 2, "{exchanged} places");
    }

    #[test]
    fn ties_go_to_the_lower_index_and_class() {
        let train = [[1.0f32, 0.0]; 70].concat();
        let nearest =
            neighbors(RowsView::new(&train, 2), RowsView::new(&[1.0, 0.0], 2), 3, Distance::Cosine).unwrap();
        assert_eq!(nearest[0], [(1.0, 0), (1.0, 1), (1.0, 2)]);
        assert_eq!(largest(&[0.0, 2.0, 2.0]), 1);
        assert_eq!(largest(&[0.0, 0.0]), 0);
    }

    /// A device that finds neighbors with loops, up to a maximum number.
    struct Loops {
        most: usize,
        asked: std::cell::Cell<usize>,
    }

    impl ProbesOnDevice for Loops {
        fn highest(
            &self,
            queries: RowsView<'_>,
            bank: RowsView<'_>,
            shift: Option<&[f32]>,
            k: usize,
        ) -> Result<Option<Vec<Neighbors>>> {
            self.asked.set(self.asked.get() + 1);
            if k > self.most {
                return Ok(None);
            }
            let list = |q: &[f32]| {
                let dot = |r: &[f32]| r.iter().zip(q).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
                let score = |(i, r): (usize, &[f32])| {
                    ((dot(r) + shift.map_or(0.0, |s| s[i] as f64)) as f32, i as u32)
                };
                let mut scored: Neighbors = bank.iter().enumerate().map(score).collect();
                scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                scored.truncate(k);
                scored
            };
            Ok(Some(queries.iter().map(list).collect()))
        }

        fn regression(
            &self,
            _: RowsView<'_>,
            _: &[u32],
            _: usize,
        ) -> Result<Option<Box<dyn pauc_traits::probe::RegressionOnDevice>>> {
            Ok(None)
        }
    }

    #[test]
    fn a_device_is_asked_and_the_host_takes_over_where_it_declines() {
        let (train, test) = (irregular(300 * 7, 0.1), irregular(40 * 7, 2.0));
        let (train, test) = (RowsView::new(&train, 7), RowsView::new(&test, 7));
        let labels: Vec<u32> = (0..40).map(|i| i % 3).collect();
        for most in [0, 1000] {
            let loops = Loops { most, asked: Default::default() };
            // Both use the same rows: a product of seven terms and a shift, compared with loops that round
            // once. Centered rows have norms below √7, so their products and half squares sum to less than 7
            // + 7/2.
            for (distance, magnitude) in [(Distance::Cosine, 1.0), (Distance::Euclidean, 10.5)] {
                let rounding = tolerance::f32(9, magnitude);
                let got = neighbors_on(Some(&loops), train, test, 12, distance).unwrap();
                for (got, want) in got.iter().zip(neighbors(train, test, 13, distance).unwrap()) {
                    let gap = want.windows(2).map(|w| f64::from(w[0].0 - w[1].0)).fold(f64::MAX, f64::min);
                    assert!(gap > 2.0 * rounding, "rounding decides about the order: {gap}");
                    for (g, w) in got.iter().zip(&want) {
                        assert_eq!(g.1, w.1);
                        assert_within!(g.0, w.0, rounding);
                    }
                    assert_eq!(got.len(), 12);
                }
            }
            let got = crate::retrieval::retrieval_on(Some(&loops), test, &labels, 3).unwrap();
            let want = crate::retrieval(test, &labels, 3).unwrap();
            // The mean over 40 queries of means of at most 13 precisions.
            assert_within!(got.map_at_r, want.map_at_r, tolerance::f64(40 + 2 * 13, 1.0));
            assert_eq!((got.first, got.r_precision), (want.first, want.r_precision));
            assert_eq!(loops.asked.get(), 3);
        }
    }

    #[test]
    fn separated_classes_are_found_and_a_sharp_temperature_stays_finite() {
        let train = [1.0f32, 0.1, 0.9, 0.0, -0.1, 1.0, 0.0, 0.8];
        let (train, labels) = (RowsView::new(&train, 2), [0, 0, 1, 1]);
        let test = [5.0f32, 0.4, 0.2, 7.0, 0.0, 0.0];
        let test = RowsView::new(&test, 2);
        for t in [0.07, 1e-4] {
            // The third test row is zero: all cosines are 0, the vote is a tie, and class 0 wins.
            assert_eq!(knn_accuracy(train, &labels, test, &[0, 1, 0], 4, t, 2).unwrap(), 1.0);
            assert_eq!(knn_accuracy(train, &labels, test, &[1, 0, 1], 4, t, 2).unwrap(), 0.0);
        }
        assert!(knn_accuracy(train, &labels, test, &[0, 1, 0], 1, 0.07, 1).is_err(), "label out of range");
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (train, test) = (irregular(1500 * 16, 0.1), irregular(300 * 16, 2.0));
        let labels: Vec<u32> = (0..1500).map(|i| i % 7).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                knn_votes(RowsView::new(&train, 16), &labels, RowsView::new(&test, 16), 20, 0.07, 7).unwrap()
            })
        };
        assert_eq!(run(1), run(3));
    }
}
