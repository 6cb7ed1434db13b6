//! Lloyd's algorithm, with faiss's treatment of empty clusters.

use crate::concentration::unit_rows;
use crate::nearest::Nearest;
use pauc_kernels::distance::{add_rows, squared_distance};
use pauc_traits::clusterer::{FitReport, RowsOnDevice};
use pauc_traits::probe::RowsView;
use pauc_traits::rng::Stream;
use pauc_traits::{Clustering, Result, progress, stop};
use rand::Rng;
use rayon::prelude::*;

/// The relative difference between the coordinates of a split and those of its donor.
const SPLIT: f32 = 1.0 / 1024.0;

/// Lloyd's algorithm with its stopping rule and the constraint on its centroids.
#[derive(Clone, Copy, Debug)]
pub struct Lloyd {
    /// The maximum number of iterations.
    pub iterations: usize,
    /// Whether centroids are scaled to unit length.
    pub spherical: bool,
    /// Stops when an iteration lowers the inertia by no more than this fraction; with 0, only when nothing
    /// changes.
    pub tolerance: f64,
}

/// The result of the iteration.
#[derive(Clone, Debug)]
pub struct Fit {
    /// K·D values of centroids.
    pub centroids: Vec<f32>,
    /// The nearest of these centroids for each row.
    pub labels: Vec<u32>,
    /// The squared distance of each row to its centroid.
    pub sq_dist: Vec<f32>,
    /// The inertia Σ‖x − c‖² before each update and at the end.
    pub objective: Vec<f64>,
    /// The number of rows that changed their centroid, at each update; all rows at the first.
    pub reassigned: Vec<usize>,
    /// The number of empty clusters refilled at each update.
    pub empty_splits: Vec<usize>,
}

impl Lloyd {
    /// Runs on the host from given centroids. `rng` chooses which clusters are split.
    ///
    /// Stops early if an update changes nothing, since later updates would not either.
    ///
    /// # Shapes
    /// rows (N, D), centroids (K, D), row-major, with K ≤ N
    ///
    /// # Errors
    /// If the run was asked to stop.
    pub fn run(&self, rows: RowsView<'_>, centroids: Vec<f32>, rng: &mut Stream) -> Result<Fit> {
        self.run_steps(HostSteps { rows, nearest: None }, rows.cols, centroids, rng)
    }

    /// Runs on rows of `dim` values in the memory of a device; see [`Lloyd::run`].
    ///
    /// # Errors
    /// If the device fails.
    pub fn run_on(
        &self,
        rows: &mut dyn RowsOnDevice,
        dim: usize,
        centroids: Vec<f32>,
        rng: &mut Stream,
    ) -> Result<Fit> {
        rows.begin();
        let steps = DeviceSteps { rows, assignment: Assignment::default() };
        self.run_steps(steps, dim, centroids, rng)
    }

    /// Runs on rows of `dim` values that `steps` gives access to; see [`Lloyd::run`].
    ///
    /// # Shapes
    /// centroids (K, D), row-major, with K ≤ N
    ///
    /// # Errors
    /// Any error of the steps.
    pub fn run_steps<S: Steps>(
        &self,
        mut steps: S,
        dim: usize,
        mut centroids: Vec<f32>,
        rng: &mut Stream,
    ) -> Result<Fit, S::Error> {
        if self.spherical {
            unit_rows(&mut centroids, dim);
        }
        let k = centroids.len() / dim;
        let task = progress::task("k-means", self.iterations as u64);
        steps.assign(&centroids)?;
        let (mut previous, mut objective) = (Vec::<u32>::new(), Vec::<f64>::new());
        let (mut reassigned, mut empty_splits, mut last_splits) = (Vec::new(), Vec::new(), 0);
        loop {
            let labels = steps.labels();
            let inertia: f64 = steps.sq_dist().iter().map(|d| *d as f64).sum();
            let small = objective.last().is_some_and(|last| last - inertia <= self.tolerance * last);
            objective.push(inertia);
            let settled = last_splits == 0 && (previous == labels || (self.tolerance > 0.0 && small));
            if objective.len() > self.iterations || settled {
                let Assignment { labels, sq_dist } = steps.into_assignment();
                return Ok(Fit { centroids, labels, sq_dist, objective, reassigned, empty_splits });
            }
            // The mean of the same rows is the same, unless a split or a scaling has changed the centroid
            // since.
            let all_stale = self.spherical || last_splits > 0 || previous.is_empty();
            let stale = if all_stale { vec![true; k] } else { changed_clusters(&previous, labels, k) };
            let kept = previous.iter().zip(labels).filter(|(before, now)| before == now).count();
            reassigned.push(labels.len() - kept);
            previous.clear();
            previous.extend_from_slice(labels);
            let mut sizes = steps.means(&mut centroids, &stale)?;
            last_splits = refill(&mut centroids, dim, &mut sizes, rng);
            empty_splits.push(last_splits);
            if self.spherical {
                unit_rows(&mut centroids, dim);
            }
            steps.assign(&centroids)?;
            task.advance(1);
        }
    }
}

/// The nearest centroid of each row, and its squared distance.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    /// N centroid numbers.
    pub labels: Vec<u32>,
    /// N squared distances.
    pub sq_dist: Vec<f32>,
}

/// The operations of an iteration on its N rows. [`Lloyd::run_steps`] does everything else.
///
/// There are two implementers: rows in host memory, and rows behind [`RowsOnDevice`]. The latter may also be rows that
/// several processes search together: each assigns its share of the rows, and computes the means of its share of the
/// clusters. A mean is one sum over all rows of a cluster in their order, so the result is bitwise identical for any
/// number of processes.
pub trait Steps {
    /// The error of a step.
    type Error;

    /// Finds the nearest centroid of each row. Ties go to the lowest number.
    ///
    /// # Shapes
    /// centroids (K, D), row-major
    ///
    /// # Errors
    /// If the memory or device that holds the rows fails.
    fn assign(&mut self, centroids: &[f32]) -> Result<(), Self::Error>;

    /// Returns the N nearest centroids of the last [`assign`](Steps::assign).
    fn labels(&self) -> &[u32];

    /// Returns the N squared distances to them.
    fn sq_dist(&self) -> &[f32];

    /// Returns both, by value.
    fn into_assignment(self) -> Assignment;

    /// Replaces the `stale` centroids that have rows by the means of their rows, and returns the K sizes.
    ///
    /// # Shapes
    /// centroids (K, D), row-major; stale K
    ///
    /// # Errors
    /// If the memory or device that holds the rows fails.
    fn means(&mut self, centroids: &mut [f32], stale: &[bool]) -> Result<Vec<usize>, Self::Error>;
}

/// Rows in host memory.
struct HostSteps<'a> {
    rows: RowsView<'a>,
    nearest: Option<Nearest>,
}

impl Steps for HostSteps<'_> {
    type Error = pauc_traits::Error;

    fn assign(&mut self, centroids: &[f32]) -> Result<()> {
        stop::check()?;
        match &mut self.nearest {
            Some(nearest) => nearest.follow(self.rows, centroids)?,
            None => self.nearest = Some(Nearest::find(self.rows, centroids)?),
        }
        Ok(())
    }

    fn labels(&self) -> &[u32] {
        self.nearest.as_ref().map_or(&[], |nearest| &nearest.labels)
    }

    fn sq_dist(&self) -> &[f32] {
        self.nearest.as_ref().map_or(&[], |nearest| &nearest.sq_dist)
    }

    fn into_assignment(self) -> Assignment {
        self.nearest.map_or_else(Assignment::default, |nearest| Assignment {
            labels: nearest.labels,
            sq_dist: nearest.sq_dist,
        })
    }

    fn means(&mut self, centroids: &mut [f32], stale: &[bool]) -> Result<Vec<usize>> {
        Ok(means_of(self.rows, self.labels(), centroids, stale))
    }
}

/// Rows in device memory.
struct DeviceSteps<'a> {
    rows: &'a mut dyn RowsOnDevice,
    assignment: Assignment,
}

impl Steps for DeviceSteps<'_> {
    type Error = pauc_traits::Error;

    fn assign(&mut self, centroids: &[f32]) -> Result<()> {
        stop::check()?;
        let (labels, sq_dist) = self.rows.nearest(centroids)?;
        self.assignment = Assignment { labels, sq_dist };
        Ok(())
    }

    fn labels(&self) -> &[u32] {
        &self.assignment.labels
    }

    fn sq_dist(&self) -> &[f32] {
        &self.assignment.sq_dist
    }

    fn into_assignment(self) -> Assignment {
        self.assignment
    }

    fn means(&mut self, centroids: &mut [f32], stale: &[bool]) -> Result<Vec<usize>> {
        let members = Members::new(self.labels(), stale.len());
        self.rows.means(&members.order, &members.starts, centroids)?;
        Ok(members.sizes())
    }
}

/// The number of rows sorted by cluster in one piece.
const PIECE: usize = 1 << 16;

/// The rows of each of K clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// N row numbers: those of cluster 0 in ascending order, then those of cluster 1, and so on.
    pub order: Vec<u32>,
    /// K + 1 positions in `order`: the start of each cluster, and N.
    pub starts: Vec<usize>,
}

impl Members {
    /// Sorts rows by cluster.
    ///
    /// # Shapes
    /// labels N, each in 0..k
    ///
    /// # Panics
    /// If a label is not below `k`.
    pub fn new(labels: &[u32], k: usize) -> Self {
        if labels.len() <= PIECE {
            return Self::of_piece(0, labels, k);
        }
        // Pieces are sorted independently. Then the rows of each cluster are concatenated over all pieces.
        let threads = rayon::current_num_threads();
        let size = labels.len().div_ceil(threads).max(PIECE);
        let pieces: Vec<Members> = labels
            .par_chunks(size)
            .enumerate()
            .map(|(i, piece)| Self::of_piece(i * size, piece, k))
            .collect();
        let mut starts = vec![0; k + 1];
        for c in 0..k {
            starts[c + 1] = starts[c] + pieces.iter().map(|piece| piece.of(c).len()).sum::<usize>();
        }
        let mut order = vec![0; labels.len()];
        let (mut runs, mut rest) = (Vec::new(), &mut order[..]);
        let clusters_per_run = k.div_ceil(4 * threads).max(1);
        for first in (0..k).step_by(clusters_per_run) {
            let end = k.min(first + clusters_per_run);
            let (run, after) = rest.split_at_mut(starts[end] - starts[first]);
            runs.push((first..end, run));
            rest = after;
        }
        runs.into_par_iter().for_each(|(clusters, mut run)| {
            for rows in clusters.flat_map(|c| pieces.iter().map(move |piece| piece.of(c))) {
                let (to, after) = run.split_at_mut(rows.len());
                to.copy_from_slice(rows);
                run = after;
            }
        });
        Members { order, starts }
    }

    /// Sorts the rows from row `first` on.
    fn of_piece(first: usize, labels: &[u32], k: usize) -> Self {
        let mut starts = vec![0usize; k + 1];
        labels.iter().for_each(|c| starts[*c as usize + 1] += 1);
        for c in 0..k {
            starts[c + 1] += starts[c];
        }
        let (mut next, mut order) = (starts.clone(), vec![0u32; labels.len()]);
        for (i, c) in labels.iter().enumerate() {
            order[next[*c as usize]] = (first + i) as u32;
            next[*c as usize] += 1;
        }
        Members { order, starts }
    }

    /// Returns the rows of cluster `c`, ascending.
    pub fn of(&self, c: usize) -> &[u32] {
        &self.order[self.starts[c]..self.starts[c + 1]]
    }

    /// Returns the number of rows of each of the K clusters.
    pub fn sizes(&self) -> Vec<usize> {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

/// Returns which clusters rows have joined or left.
fn changed_clusters(before: &[u32], after: &[u32], k: usize) -> Vec<bool> {
    let mut changed = vec![false; k];
    for (left, joined) in before.iter().zip(after).filter(|(before, after)| before != after) {
        changed[*left as usize] = true;
        changed[*joined as usize] = true;
    }
    changed
}

/// Replaces each centroid by the mean of its rows, summed in `f64` in their order, and returns the K sizes. A
/// centroid without rows is unchanged.
///
/// # Shapes
/// rows (N, D), labels N, each in 0..K, centroids (K, D), row-major → K
///
/// # Panics
/// If a label is not below K.
pub fn means(rows: RowsView<'_>, labels: &[u32], centroids: &mut [f32]) -> Vec<usize> {
    let k = centroids.len() / rows.cols;
    means_of(rows, labels, centroids, &vec![true; k])
}

/// Computes the [`means`] of the `stale` clusters.
fn means_of(rows: RowsView<'_>, labels: &[u32], centroids: &mut [f32], stale: &[bool]) -> Vec<usize> {
    let dim = rows.cols;
    let members = Members::new(labels, stale.len());
    centroids.par_chunks_mut(dim).enumerate().for_each_init(
        || vec![0.0f64; dim],
        |sum, (c, centroid)| {
            let own = members.of(c);
            if own.is_empty() || !stale[c] {
                return;
            }
            sum.fill(0.0);
            add_rows(rows.data, dim, own, sum);
            for (v, s) in centroid.iter_mut().zip(sum.iter()) {
                *v = (s / own.len() as f64) as f32;
            }
        },
    );
    members.sizes()
}

/// Refills each empty cluster by splitting another, drawn with probability ∝ its size − 1: both get its
/// centroid, with coordinates times 1 ± 1/1024 alternately. Returns the number of refilled clusters.
///
/// # Shapes
/// centroids (K, D), row-major; sizes K
pub(crate) fn refill(centroids: &mut [f32], dim: usize, sizes: &mut [usize], rng: &mut Stream) -> usize {
    refill_from(centroids, dim, sizes, rng).len()
}

/// An empty cluster that was refilled, and the cluster that was split for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    pub(crate) empty: usize,
    pub(crate) donor: usize,
}

/// As [`refill`], but returns each split.
pub(crate) fn refill_from(
    centroids: &mut [f32],
    dim: usize,
    sizes: &mut [usize],
    rng: &mut Stream,
) -> Vec<Split> {
    let mut filled = Vec::new();
    for empty in 0..sizes.len() {
        if sizes[empty] > 0 {
            continue;
        }
        let spare: usize = sizes.iter().map(|s| s.saturating_sub(1)).sum();
        if spare == 0 {
            return filled;
        }
        let mut position = rng.gen_range(0..spare);
        let mut donor = 0;
        while position >= sizes[donor].saturating_sub(1) {
            position -= sizes[donor].saturating_sub(1);
            donor += 1;
        }
        for l in 0..dim {
            let (value, step) = (centroids[donor * dim + l], if l % 2 == 0 { SPLIT } else { -SPLIT });
            centroids[empty * dim + l] = value * (1.0 + step);
            centroids[donor * dim + l] = value * (1.0 - step);
        }
        sizes[empty] = sizes[donor] / 2;
        sizes[donor] -= sizes[empty];
        filled.push(Split { empty, donor });
    }
    filled
}

/// Converts assignments to labels in 0..=k. Noise gets the extra label `k`, which the caller then drops.
pub(crate) fn labels_with_noise(assignments: &[Option<u32>], k: usize) -> Vec<u32> {
    assignments.iter().map(|a| a.unwrap_or(k as u32)).collect()
}

/// Creates a clustering from assignments, with the means of the samples as centroids (zero if there are
/// none). The inertia of the means, Σ‖x − c‖², is appended to the given objectives.
///
/// # Shapes
/// rows (N, D), assignments N, each below `k` → centroids (k, D)
///
/// # Panics
/// If an assignment is not below `k`.
pub fn clustering_of(
    rows: RowsView<'_>,
    assignments: Vec<Option<u32>>,
    k: usize,
    mut objective: Vec<f64>,
) -> Clustering {
    let dim = rows.cols;
    let mut centroids = vec![0.0f32; (k + 1) * dim];
    means(rows, &labels_with_noise(&assignments, k), &mut centroids);
    centroids.truncate(k * dim);
    let sq_dist = |(x, a): (&[f32], &Option<u32>)| {
        a.map_or(0.0, |a| squared_distance(x, &centroids[a as usize * dim..][..dim]) as f64)
    };
    objective.push(rows.iter().zip(&assignments).map(sq_dist).sum());
    let report = report(objective, 0, assignments.iter().copied(), k);
    Clustering { k, dim, centroids, assignments, report }
}

/// Creates the report of a clustering into `k` prototypes from its assignments. `objective` and `splits` are
/// as given, sizes are counted, and the fields of single updates are empty.
///
/// # Shapes
/// objective: any number of values, in the order of the updates; assignments N, each below `k`
///
/// # Panics
/// If an assignment is not below `k`.
pub fn report(
    objective: Vec<f64>,
    splits: usize,
    assignments: impl IntoIterator<Item = Option<u32>>,
    k: usize,
) -> FitReport {
    FitReport { splits, ..FitReport::new(objective, assignments, k) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Centroids, largest, widened};
    use pauc_testing::{Rounded, assert_within, tolerance};
    use pauc_traits::rng::{Purpose, stream};

    fn rng() -> Stream {
        stream(3, Purpose::Cluster, 0, 0, 0)
    }

    fn wave(n: usize) -> Vec<f32> {
        pauc_testing::inputs::groups(n, 7, 1.0)
    }

    /// The result of the plain loops.
    struct Exact {
        centroids: Centroids,
        labels: Vec<u32>,
        objective: Vec<Rounded>,
    }

    /// Lloyd's algorithm with plain loops in f64, for starts from which no cluster becomes empty.
    ///
    /// # Panics
    /// If rounding could decide which centroid is nearest to a row.
    fn naive(data: &[f32], dim: usize, start: &[f32], updates: usize) -> Exact {
        let mut centroids = Centroids::exact(start, dim);
        let (n, k) = (data.len() / dim, start.len() / dim);
        let mut objective = Vec::new();
        loop {
            let (mut labels, mut total) = (Vec::new(), Rounded::default());
            for x in data.chunks(dim) {
                let (nearest, sq_dist) = centroids.nearest(x);
                total.value += sq_dist.value;
                total.error += sq_dist.error;
                labels.push(nearest as u32);
            }
            objective.push(total);
            if objective.len() > updates {
                return Exact { centroids, labels, objective };
            }
            for c in 0..k {
                let own: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == c as u32).collect();
                assert!(!own.is_empty());
                for l in 0..dim {
                    centroids.values[c * dim + l] =
                        own.iter().map(|i| data[i * dim + l] as f64).sum::<f64>() / own.len() as f64;
                }
            }
            // A mean is rounded once, after a sum in f64.
            let (of_mean, of_row) = (largest(&centroids.values), largest(&widened(data)));
            centroids.off = tolerance::f32(1, of_mean) + tolerance::f64(n, of_row);
        }
    }

    fn assert_equal(fit: &Fit, exact: &Exact) {
        assert_eq!(fit.labels, exact.labels);
        for (got, want) in fit.centroids.iter().zip(&exact.centroids.values) {
            assert_within!(*got, *want, exact.centroids.off);
        }
        assert_eq!(fit.objective.len(), exact.objective.len());
        for (got, want) in fit.objective.iter().zip(&exact.objective) {
            assert_within!(*got, want.value, want.error);
        }
    }

    #[test]
    fn equals_the_plain_loops() {
        let data = wave(300 * 4);
        let start = data[..7 * 4].to_vec();
        let options = Lloyd { iterations: 8, spherical: false, tolerance: 0.0 };
        let fit = options.run(RowsView::new(&data, 4), start.clone(), &mut rng()).unwrap();
        let exact = naive(&data, 4, &start, fit.objective.len() - 1);
        assert_equal(&fit, &exact);
        // Exact objectives never increase.
        let errors = exact.objective.windows(2).map(|w| w[0].error + w[1].error);
        assert!(fit.objective.windows(2).zip(errors).all(|(w, error)| w[1] <= w[0] + error));
    }

    /// No row of this noise is so near a border that rounding could decide. So its cluster depends neither on
    /// the position of the row nor on the order of coordinates.
    #[test]
    fn the_order_of_rows_and_of_coordinates_changes_nothing_but_rounding() {
        use rand_distr::{Distribution, StandardNormal};
        let (n, dim, k) = (2000, 24, 31);
        let noise = &mut stream(0, Purpose::Data, 0, 0, 0);
        let data: Vec<f32> = (0..n * dim).map(|_| StandardNormal.sample(noise)).collect();
        let start = data[..k * dim].to_vec();
        let options = Lloyd { iterations: 12, spherical: false, tolerance: 0.0 };
        let plain = options.run(RowsView::new(&data, dim), start.clone(), &mut rng()).unwrap();
        assert!(
            plain.empty_splits.iter().all(|s| *s == 0) && plain.reassigned.len() == 12,
            "{:?}",
            plain.reassigned
        );
        let exact = naive(&data, dim, &start, 12);
        assert_equal(&plain, &exact);
        // Row i of the shuffled rows is row 769·i mod n; 769 and 2000 are coprime.
        let from = |i: usize| i * 769 % n;
        let shuffled: Vec<f32> = (0..n).flat_map(|i| data[from(i) * dim..][..dim].to_vec()).collect();
        let mut other = options.run(RowsView::new(&shuffled, dim), start.clone(), &mut rng()).unwrap();
        let mut labels = vec![0; n];
        (0..n).for_each(|i| labels[from(i)] = other.labels[i]);
        other.labels = labels;
        assert_equal(&other, &exact);
        let turned = |m: &[f32]| -> Vec<f32> {
            m.chunks(dim).flat_map(|r| r.iter().rev().copied().collect::<Vec<_>>()).collect()
        };
        let (turned_data, turned_start) = (turned(&data), turned(&start));
        let mut other = options.run(RowsView::new(&turned_data, dim), turned_start, &mut rng()).unwrap();
        other.centroids = turned(&other.centroids);
        assert_equal(&other, &exact);
    }

    #[test]
    fn rows_are_sorted_by_cluster_alike_in_one_piece_and_in_several() {
        let n = 2 * PIECE + 77;
        for k in [1, 3, 1000] {
            // Squares leave half of the thousand clusters without rows.
            let labels: Vec<u32> = (0..n).map(|i| (i * i % 997 % k) as u32).collect();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let members = pool.install(|| Members::new(&labels, k));
            assert_eq!(members, Members::of_piece(0, &labels, k));
            assert_eq!((members.starts[k], members.starts.len()), (n, k + 1));
            assert!((0..k).all(|c| {
                let own = members.of(c);
                own.is_sorted() && own.iter().all(|i| labels[*i as usize] as usize == c)
            }));
        }
    }

    #[test]
    fn means_that_are_kept_have_the_bits_of_new_ones() {
        let data = wave(200 * 3);
        let rows = RowsView::new(&data, 3);
        let before: Vec<u32> = (0..200).map(|i| i * i % 11).collect();
        let mut after = before.clone();
        after[17] = 6;
        after[60] = 1;
        let mut kept = vec![0.0; 11 * 3];
        means(rows, &before, &mut kept);
        let mut fresh = kept.clone();
        let stale = changed_clusters(&before, &after, 11);
        assert!(stale.iter().any(|s| *s) && !stale.iter().all(|s| *s));
        assert_eq!(means_of(rows, &after, &mut kept, &stale), means(rows, &after, &mut fresh));
        assert_eq!(kept, fresh);
    }

    #[test]
    fn stops_where_nothing_changes_and_at_the_tolerance() {
        let data = [0.0, 0.1, 5.0, 5.1];
        let options = Lloyd { iterations: 50, spherical: false, tolerance: 0.0 };
        let fit = options.run(RowsView::new(&data, 1), vec![0.0, 0.1], &mut rng()).unwrap();
        assert!(fit.objective.len() < 6, "{:?}", fit.objective);
        assert_eq!(fit.labels, [0, 0, 1, 1]);
        assert_eq!(fit.reassigned, [4, 1, 0][..fit.objective.len() - 1]);
        let data = wave(2000);
        let slow = options.run(RowsView::new(&data, 2), data[..40].to_vec(), &mut rng()).unwrap();
        let fast = Lloyd { tolerance: 0.05, ..options }
            .run(RowsView::new(&data, 2), data[..40].to_vec(), &mut rng())
            .unwrap();
        assert!(fast.objective.len() < slow.objective.len());
    }

    #[test]
    fn an_empty_cluster_is_split_off_a_large_one() {
        let mut centroids = vec![1.0, 2.0, 9.0, 9.0];
        let mut sizes = vec![5, 0];
        assert_eq!(refill(&mut centroids, 2, &mut sizes, &mut rng()), 1);
        let e = SPLIT;
        assert_eq!(centroids, [1.0 - e, 2.0 * (1.0 + e), 1.0 + e, 2.0 * (1.0 - e)]);
        assert_eq!(sizes, [3, 2]);
        assert_eq!(refill(&mut [1.0, 2.0, 3.0], 1, &mut [1, 0, 1], &mut rng()), 0, "no cluster can be split");
    }

    #[test]
    fn donors_are_drawn_by_size_less_one() {
        let (mut rng, mut hits) = (rng(), [0; 4]);
        let draws = 9000;
        for _ in 0..draws {
            let mut sizes = vec![1, 3, 0, 5];
            refill(&mut [0.0, 1.0, 2.0, 3.0], 1, &mut sizes, &mut rng);
            hits[(0..4).find(|i| sizes[*i] < [1, 3, 0, 5][*i]).unwrap()] += 1;
        }
        assert_eq!((hits[0], hits[2]), (0, 0));
        let third = 1.0 / 3.0;
        assert_within!(
            f64::from(hits[1]) / draws as f64,
            third,
            tolerance::frequency(third, draws),
            "{hits:?}"
        );
    }

    #[test]
    fn a_far_copy_of_the_start_runs_empty_and_is_refilled() {
        let data: Vec<f32> = (0..400).map(|i| (i % 20) as f32 + 1.0).collect();
        let options = Lloyd { iterations: 30, spherical: false, tolerance: 0.0 };
        let fit = options.run(RowsView::new(&data, 1), vec![5.0, 1e4, 2e4], &mut rng()).unwrap();
        assert!(fit.empty_splits.iter().sum::<usize>() >= 2, "{:?}", fit.empty_splits);
        assert_eq!(fit.empty_splits.len(), fit.objective.len() - 1);
        assert_eq!(report(vec![], 0, fit.labels.iter().map(|i| Some(*i)), 3).empty, 0);
    }
}
