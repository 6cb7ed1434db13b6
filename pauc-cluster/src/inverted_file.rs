//! Assignments that compare a row with nearby prototypes only: those listed with its few nearest cells (an
//! inverted file), or the neighbors of its current prototype (a graph), as in approximate nearest-neighbor
//! search.
//!
//! Rows are read sequentially, so they may be a mapped file larger than memory. Each rank searches its own rows. If
//! the run is asked to stop, the remaining rows are skipped, so callers have to call [`stop::check`].

use crate::lloyd::Members;
use crate::on_ranks::Rows;
use crate::seeding::gather;
use pauc_kernels::distance::{
    Packed, add_rows, biases, dot, mean_row, nearest, nearest_scored, squared_distance,
};
use pauc_kernels::gemm::{Strides, gemm};
use pauc_traits::probe::RowsView;
use pauc_traits::{Result, stop};
use rayon::prelude::*;

/// Rows per task. Fixed, so that the tasks do not depend on the number of threads.
const TASK: usize = 1 << 14;
/// The number of values of rows that are read at once for random access: 64 MiB.
pub const PART: usize = 1 << 24;
/// The number of rows whose scores of all cells are computed together.
const TILE: usize = 256;
/// The number of centroids whose scores of all others are computed together.
const SIDE: usize = 64;

/// The nearest cells of each row.
#[derive(Debug)]
pub struct InvertedFile<'a> {
    rows: Rows<'a>,
    width: usize,
    /// `width` cells for each row of this process, nearest first.
    cells: Vec<u32>,
}

impl<'a> InvertedFile<'a> {
    /// Finds the `width` nearest centers of each row.
    ///
    /// # Shapes
    /// rows (N, D), centers G·D with G ≥ `width` ≥ 1
    pub fn new(rows: &Rows<'a>, centers: &[f32], width: usize) -> Self {
        let (dim, count) = (rows.cols(), centers.len() / rows.cols());
        // Centered on the mean of the centers, so that features far from the origin keep their precision.
        let origin = mean_row(centers, dim);
        let centered = centered(centers, &origin);
        let half: Vec<f32> = biases(centers, &origin).into_iter().map(|b| b as f32).collect();
        let own = rows.own();
        let mut cells = vec![0u32; own.rows * width];
        let stop = stop::flag();
        let tasks = cells.par_chunks_mut(TILE * width).zip(own.data.par_chunks(TILE * dim));
        let tasks = tasks.filter(|_| !stop.is_set());
        tasks.for_each_init(
            || (vec![0.0f32; TILE * count], Vec::with_capacity(width)),
            |(scores, best), (cells, data)| {
                let n = data.len() / dim;
                let (a, b) = ((data, Strides::row_major(dim)), (&centered[..], Strides::transposed(dim)));
                gemm((n, count, dim), -1.0, a, b, 0.0, (scores, Strides::row_major(count)));
                for (cells, scores) in cells.chunks_exact_mut(width).zip(scores.chunks_exact_mut(count)) {
                    scores.iter_mut().zip(&half).for_each(|(s, h)| *s += h);
                    lowest(scores, width, best);
                    cells.iter_mut().zip(best.iter()).for_each(|(to, (_, cell))| *to = *cell);
                }
            },
        );
        InvertedFile { rows: rows.clone(), width, cells }
    }

    /// Returns the nearest cell of each row, including the rows of other ranks.
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn nearest(&self) -> Result<Vec<u32>> {
        self.rows.complete(self.cells.iter().step_by(self.width).copied().collect())
    }

    /// Finds the nearest centroid of each row among those listed with its cells and its current one in
    /// `labels` (a number beyond the centroids means none). Every list must be in ascending order and not
    /// empty.
    ///
    /// # Shapes
    /// centroids (K, D), row-major; lists: one per cell, of numbers in 0..K; labels N
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn assign(&self, centroids: &[f32], lists: &[Vec<u32>], labels: &mut [u32]) -> Result<Pass> {
        let dim = self.rows.cols();
        let origin = mean_row(centroids, dim);
        let listed: Vec<Vec<f32>> =
            lists.par_iter().map(|list| gather(RowsView::new(centroids, dim), list)).collect();
        let packed: Vec<Packed<'_>> = listed.par_iter().map(|c| Packed::around(c, &origin)).collect();
        let stop = stop::flag();
        let mut own = labels[self.rows.range()].to_vec();
        let mut sq_dist = vec![0.0f32; own.len()];
        let tasks = own.par_chunks_mut(TASK).zip(sq_dist.par_chunks_mut(TASK));
        let tasks = tasks.zip(self.cells.par_chunks(TASK * self.width));
        let tasks = tasks.zip(self.rows.own().data.par_chunks(TASK * dim)).filter(|_| !stop.is_set());
        let width = self.width;
        tasks.for_each(|(((labels, sq_dist), cells), data)| {
            let rows = RowsView::new(data, dim);
            let best = nearest_listed(rows, (cells, width), lists, &packed);
            keep_nearer(rows, centroids, &best, labels, sq_dist);
        });
        let (after, sq_dist) = (self.rows.complete(own)?, self.rows.complete(sq_dist)?);
        let reassigned = after.iter().zip(&*labels).filter(|(after, before)| after != before).count();
        labels.copy_from_slice(&after);
        Ok(Pass { objective: sum_of_tasks(&sq_dist), reassigned })
    }
}

/// Finds the nearest centroid of each row among those listed with its `width` cells.
fn nearest_listed(
    rows: RowsView<'_>,
    (cells, width): (&[u32], usize),
    lists: &[Vec<u32>],
    packed: &[Packed<'_>],
) -> Vec<Candidate> {
    let members = Members::new(cells, lists.len());
    let mut best =
        vec![Candidate { label: u32::MAX, score: f32::INFINITY, sq_dist: f32::INFINITY }; rows.rows];
    let (mut labels, mut scores, mut sq_dist) = (Vec::new(), Vec::new(), Vec::new());
    for (cell, list) in lists.iter().enumerate() {
        let own: Vec<u32> = members.of(cell).iter().map(|place| place / width as u32).collect();
        if own.is_empty() {
            continue;
        }
        labels.resize(own.len(), 0u32);
        scores.resize(own.len(), 0.0f32);
        sq_dist.resize(own.len(), 0.0f32);
        nearest_scored(&gather(rows, &own), &packed[cell], &mut labels, &mut scores, &mut sq_dist);
        for (place, i) in own.iter().enumerate() {
            let label = list[labels[place] as usize];
            let candidate = Candidate { label, score: scores[place], sq_dist: sq_dist[place] };
            let best = &mut best[*i as usize];
            if best.label == u32::MAX || candidate.is_before(best) {
                *best = candidate;
            }
        }
    }
    best
}

/// The result of a pass over all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pass {
    /// Σ‖x − c‖² after the pass.
    pub objective: f64,
    /// The number of rows that changed their centroid.
    pub reassigned: usize,
}

/// Returns the sum of the squared distances of all rows, task by task.
fn sum_of_tasks(sq_dist: &[f32]) -> f64 {
    sq_dist.chunks(TASK).map(|task| task.iter().map(|d| *d as f64).sum::<f64>()).sum()
}

/// A centroid that a row may be assigned to.
#[derive(Clone, Copy)]
struct Candidate {
    label: u32,
    score: f32,
    sq_dist: f32,
}

impl Candidate {
    /// Returns whether this candidate has the lower score, or the lower number in a tie.
    fn is_before(&self, other: &Candidate) -> bool {
        self.score < other.score || (self.score == other.score && self.label < other.label)
    }
}

/// Assigns each row to its candidate, unless its current centroid is at least as near, and stores its squared
/// distance. The current centroid no longer needs to be listed with the row's cells.
fn keep_nearer(
    rows: RowsView<'_>,
    centroids: &[f32],
    best: &[Candidate],
    labels: &mut [u32],
    sq_dist: &mut [f32],
) {
    let dim = rows.cols;
    for (((x, label), sq_dist), best) in rows.iter().zip(labels).zip(sq_dist).zip(best) {
        *sq_dist = best.sq_dist;
        if best.label == *label {
            continue;
        }
        let before = centroids.get(*label as usize * dim..).and_then(|c| c.get(..dim));
        match before.map(|c| squared_distance(x, c)) {
            Some(before) if before <= best.sq_dist => *sq_dist = before,
            _ => *label = best.label,
        }
    }
}

/// Subtracts an origin from each centroid.
fn centered(centroids: &[f32], origin: &[f32]) -> Vec<f32> {
    let less = |c: &[f32]| c.iter().zip(origin).map(|(v, m)| v - m).collect::<Vec<_>>();
    centroids.chunks_exact(origin.len()).flat_map(less).collect()
}

/// Finds the `width` lowest scores and their numbers, lowest first. Ties go to the lower number.
fn lowest(scores: &[f32], width: usize, best: &mut Vec<(f32, u32)>) {
    best.clear();
    let mut limit = f32::INFINITY;
    for (number, score) in (0u32..).zip(scores) {
        if *score < limit || best.len() < width {
            best.truncate(width - 1);
            let place = best.iter().rposition(|b| b.0 <= *score).map_or(0, |lower| lower + 1);
            best.insert(place, (*score, number));
            if best.len() == width {
                limit = best[width - 1].0;
            }
        }
    }
}

/// The sums of the rows of each cluster in `f64`, kept up to date as rows change clusters.
#[derive(Debug)]
pub struct Sums {
    sums: Vec<f64>,
    counts: Vec<usize>,
}

impl Sums {
    /// Sums rows in their order. Unlike [`crate::lloyd::means`], it reads them sequentially.
    ///
    /// # Shapes
    /// rows (N, D), labels N, each in 0..k
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn new(rows: &Rows<'_>, labels: &[u32], k: usize) -> Result<Self> {
        let dim = rows.cols();
        let (mut sums, mut counts) = (vec![0.0f64; k * dim], vec![0usize; k]);
        labels.iter().for_each(|c| counts[*c as usize] += 1);
        let part = (PART / dim).max(1);
        let own = rows.own();
        if !rows.are_here() {
            let members = Members::new(&labels[rows.range()], k);
            rows.add_up(&mut sums, |c, sum| add_rows(own.data, dim, members.of(c), sum))?;
            return Ok(Sums { sums, counts });
        }
        for (labels, data) in labels.chunks(part).zip(own.data.chunks(part * dim)) {
            let members = Members::new(labels, k);
            sums.par_chunks_mut(dim).enumerate().for_each(|(c, sum)| {
                add_rows(data, dim, members.of(c), sum);
            });
        }
        Ok(Sums { sums, counts })
    }

    /// Moves the rows whose cluster has changed.
    ///
    /// # Shapes
    /// rows (N, D) as in [`Sums::new`]; before and after N labels each
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn follow(&mut self, rows: &Rows<'_>, before: &[u32], after: &[u32]) -> Result<()> {
        let (own, range) = (rows.own(), rows.range());
        // For each cluster, the rows of this process that leave or join it, in order.
        let mut moves: Vec<Vec<(usize, f64)>> = vec![Vec::new(); self.counts.len()];
        for (i, (from, to)) in before.iter().zip(after).enumerate().filter(|(_, (from, to))| from != to) {
            self.counts[*from as usize] -= 1;
            self.counts[*to as usize] += 1;
            if range.contains(&i) {
                moves[*from as usize].push((i - range.start, -1.0));
                moves[*to as usize].push((i - range.start, 1.0));
            }
        }
        rows.add_up(&mut self.sums, |c, sum| {
            for (i, sign) in &moves[c] {
                sum.iter_mut().zip(own.row(*i)).for_each(|(s, v)| *s += sign * *v as f64);
            }
        })
    }

    /// Replaces each centroid that has rows by their mean, and returns the sizes.
    ///
    /// # Shapes
    /// centroids (K, D), row-major → K
    pub fn means(&self, centroids: &mut [f32]) -> Vec<usize> {
        let dim = self.sums.len() / self.counts.len();
        let means = centroids.chunks_exact_mut(dim).zip(self.sums.chunks_exact(dim)).zip(&self.counts);
        for ((c, sum), n) in means.filter(|(_, n)| **n > 0) {
            c.iter_mut().zip(sum).for_each(|(v, s)| *v = (s / *n as f64) as f32);
        }
        self.counts.clone()
    }
}

/// Returns the `width` nearest centroids of each centroid, itself included, in ascending order of their
/// numbers. Compares all pairs: K²·D products.
///
/// # Shapes
/// centroids K·D → K lists
pub fn graph(centroids: &[f32], dim: usize, width: usize) -> Vec<Vec<u32>> {
    let count = centroids.len() / dim;
    let centered = centered(centroids, &mean_row(centroids, dim));
    let half: Vec<f32> = centered.chunks_exact(dim).map(|c| dot(c, c) / 2.0).collect();
    let mut lists = vec![Vec::new(); count];
    let tiles = lists.par_chunks_mut(SIDE).zip(centered.par_chunks(SIDE * dim)).enumerate();
    tiles.for_each_init(
        || (vec![0.0f32; SIDE * count], Vec::new(), Vec::new()),
        |(scores, least, near), (tile, (lists, data))| {
            let n = data.len() / dim;
            let (a, b) = ((data, Strides::row_major(dim)), (&centered[..], Strides::transposed(dim)));
            gemm((n, count, dim), -1.0, a, b, 0.0, (scores, Strides::row_major(count)));
            for (i, (list, scores)) in lists.iter_mut().zip(scores.chunks_exact_mut(count)).enumerate() {
                scores.iter_mut().zip(&half).for_each(|(s, h)| *s += h);
                // The centroid is already included, and a copy of it must not take its place.
                scores[tile * SIDE + i] = f32::NEG_INFINITY;
                nearest_of(scores, width, least, near);
                *list = near.iter().map(|(_, c)| *c).collect();
                list.sort_unstable();
            }
        },
    );
    lists
}

/// Finds the `width` lowest scores and their numbers, in any order. Ties go to the lower number.
fn nearest_of(scores: &[f32], width: usize, least: &mut Vec<f32>, near: &mut Vec<(f32, u32)>) {
    // At least `width` scores are no larger than the width-th lowest block minimum, and few more are.
    least.clear();
    least.extend(scores.chunks(16).map(|b| b.iter().copied().fold(f32::INFINITY, f32::min)));
    let limit = if least.len() > width {
        *least.select_nth_unstable_by(width - 1, f32::total_cmp).1
    } else {
        f32::INFINITY
    };
    near.clear();
    near.extend((0u32..).zip(scores).filter(|(_, s)| **s <= limit).map(|(c, s)| (*s, c)));
    if near.len() > width {
        near.select_nth_unstable_by(width - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        near.truncate(width);
    }
}

/// Finds the nearest centroid of each row among the neighbors of its current one. `lists` has the neighbors
/// of each centroid, in ascending order.
///
/// # Shapes
/// rows (N, D), centroids (K, D), row-major, K lists, labels N, each in 0..K
///
/// # Errors
/// If another rank has failed.
pub fn step(rows: &Rows<'_>, centroids: &[f32], lists: &[Vec<u32>], labels: &mut [u32]) -> Result<Pass> {
    let dim = rows.cols();
    let origin = mean_row(centroids, dim);
    let biases = biases(centroids, &origin);
    let part = (PART / dim).max(1);
    let stop = stop::flag();
    let mut after = labels[rows.range()].to_vec();
    let mut sq_dist = vec![0.0f32; after.len()];
    let parts = after.chunks_mut(part).zip(sq_dist.chunks_mut(part));
    for ((labels, sq_dist), data) in parts.zip(rows.own().data.chunks(part * dim)) {
        let part = RowsView::new(data, dim);
        let members = Members::new(labels, lists.len());
        let clusters: Vec<(Vec<u32>, Vec<f32>)> = (0..lists.len())
            .into_par_iter()
            .filter(|c| !stop.is_set() && !members.of(*c).is_empty())
            .map(|c| {
                let own = members.of(c);
                let chosen = gather(RowsView::new(centroids, dim), &lists[c]);
                let biases: Vec<f64> = lists[c].iter().map(|c| biases[*c as usize]).collect();
                let packed = Packed::with_biases(&chosen, &origin, &biases);
                let (mut labels, mut sq_dist) = (vec![0u32; own.len()], vec![0.0f32; own.len()]);
                nearest(&gather(part, own), &packed, &mut labels, &mut sq_dist);
                labels.iter_mut().for_each(|label| *label = lists[c][*label as usize]);
                (labels, sq_dist)
            })
            .collect();
        let nearest = clusters.iter().flat_map(|(labels, sq_dist)| labels.iter().zip(sq_dist));
        for ((c, d), i) in nearest.zip(&members.order) {
            (labels[*i as usize], sq_dist[*i as usize]) = (*c, *d);
        }
    }
    let (after, sq_dist) = (rows.complete(after)?, rows.complete(sq_dist)?);
    let objective = sum_of_clusters(labels, &sq_dist, lists.len(), part);
    let reassigned = after.iter().zip(&*labels).filter(|(after, before)| after != before).count();
    labels.copy_from_slice(&after);
    Ok(Pass { objective, reassigned })
}

/// Returns the sum of the squared distances of all rows, in parts of `part` rows, cluster by cluster in each.
fn sum_of_clusters(labels: &[u32], sq_dist: &[f32], k: usize, part: usize) -> f64 {
    let mut sum = 0.0;
    for (labels, sq_dist) in labels.chunks(part).zip(sq_dist.chunks(part)) {
        let members = Members::new(labels, k);
        for own in (0..k).map(|c| members.of(c)).filter(|own| !own.is_empty()) {
            sum += own.iter().map(|i| sq_dist[*i as usize] as f64).sum::<f64>();
        }
    }
    sum
}

/// Returns Σ‖x − c‖² of rows and their centroids.
///
/// # Shapes
/// rows (N, D), labels N, each in 0..K, centroids (K, D), row-major
///
/// # Errors
/// If another rank has failed.
pub fn objective(rows: &Rows<'_>, labels: &[u32], centroids: &[f32]) -> Result<f64> {
    let dim = rows.cols();
    let labels = labels[rows.range()].par_chunks(TASK).zip(rows.own().data.par_chunks(TASK * dim));
    let sq_dist = labels.flat_map_iter(|(labels, data)| {
        let rows = data.chunks_exact(dim).zip(labels);
        rows.map(|(x, c)| squared_distance(x, &centroids[*c as usize * dim..][..dim]))
    });
    Ok(sum_of_tasks(&rows.complete(sq_dist.collect())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{self, Centroids, largest, widened};
    use pauc_testing::{Rounded, assert_within, tolerance};

    fn wave(n: usize) -> Vec<f32> {
        pauc_testing::inputs::groups(n, 5, 3.0)
    }

    /// Returns rows of three values.
    fn alone(data: &[f32]) -> Rows<'_> {
        Rows::alone(RowsView::new(data, 3))
    }

    #[test]
    fn cells_are_the_nearest_in_order() {
        // More rows than one tile, far from the origin.
        let data: Vec<f32> = wave(600 * 3).iter().map(|v| v + 50.0).collect();
        let centers = data[900..900 + 11 * 3].to_vec();
        let probing = InvertedFile::new(&alone(&data), &centers, 4);
        let centers = Centroids::exact(&centers, 3);
        for (x, cells) in data.chunks(3).zip(probing.cells.chunks(4)) {
            let far = |c: u32| oracle::sq_dist(x, centers.row(c as usize));
            let mut sorted: Vec<f64> = (0..11).map(far).collect();
            sorted.sort_by(f64::total_cmp);
            // A score is half a squared distance, up to a constant of the row. If each is off by at most e,
            // so is the r-th lowest score, and the score of the center in that place.
            let error = (0..11).map(|c| centers.error_of_score(x, c)).fold(0.0, f64::max);
            for (got, want) in cells.iter().zip(&sorted) {
                assert_within!(far(*got), *want, 2.0 * 2.0 * error, "{cells:?}");
            }
        }
        let own: Vec<u32> = data[900..933].chunks(3).map(|x| centers.nearest(x).0 as u32).collect();
        assert_eq!(own, (0..11).collect::<Vec<_>>());
        assert_eq!(probing.nearest().unwrap()[300..311], own);
    }

    #[test]
    fn each_row_meets_its_cells_lists_and_its_centroid_from_before() {
        let (data, centroids) = (wave(300 * 3), wave(900)[600..660].to_vec());
        let lists = [vec![0, 4, 9, 19], (0..12).collect(), vec![11], vec![7], vec![3, 5, 18]];
        let centers = wave(1500)[1200..1215].to_vec();
        let probing = InvertedFile::new(&alone(&data), &centers, 2);
        let before: Vec<u32> =
            (0..300u32).map(|i| if i.is_multiple_of(3) { u32::MAX } else { i % 20 }).collect();
        let mut labels = before.clone();
        let pass = probing.assign(&centroids, &lists, &mut labels).unwrap();
        let (mut total, mut other) = (Rounded::default(), 0);
        let centroids = Centroids::exact(&centroids, 3);
        for (i, x) in data.chunks(3).enumerate() {
            let cells = &probing.cells[2 * i..2 * i + 2];
            let met = |c: &usize| {
                let c = *c as u32;
                c == before[i] || cells.iter().any(|cell| lists[*cell as usize].contains(&c))
            };
            let (best, sq_dist) = centroids.nearest_among(x, (0..20).filter(met));
            assert_eq!(labels[i] as usize, best, "row {i}");
            total.value += sq_dist.value;
            total.error += sq_dist.error;
            other += (best as u32 != before[i]) as usize;
        }
        assert_within!(pass.objective, total.value, total.error);
        assert_eq!(pass.reassigned, other);
    }

    /// The error bound of the score of centroid `c` among the neighbors of `x`. Unlike in the scores of rows,
    /// both are centered on the mean, and ‖c − m‖²/2 is a sum in f32.
    fn error_in_graph(x: &[f32], centroids: &Centroids, c: usize) -> f64 {
        let mut magnitude = 0.0;
        for ((x, c), m) in x.iter().zip(centroids.row(c)).zip(&centroids.origin) {
            magnitude += (f64::from(*x) - m).abs() * (c - m).abs() + (c - m).powi(2) / 2.0;
        }
        // Two differences, a product, the sum, and the addition of the two parts.
        tolerance::f32(x.len() + 4, magnitude)
    }

    #[test]
    fn a_graph_has_the_nearest_in_ascending_order_and_a_step_finds_them() {
        let (data, centroids) = (wave(500 * 3), wave(3000)[2400..2400 + 130 * 3].to_vec());
        let exact = Centroids::exact(&centroids, 3);
        for width in [1, 7, 130, 200] {
            let lists = graph(&centroids, 3, width);
            for (c, list) in lists.iter().enumerate() {
                let x = &centroids[3 * c..3 * c + 3];
                let sq_dist = |n: u32| oracle::sq_dist(x, exact.row(n as usize));
                assert!(list.len() == width.min(130) && list.contains(&(c as u32)) && list.is_sorted());
                let far = list.iter().map(|n| sq_dist(*n)).fold(0.0, f64::max);
                let left_out =
                    (0..130).filter(|n| !list.contains(n)).map(sq_dist).fold(f64::INFINITY, f64::min);
                let error = (0..130).map(|n| error_in_graph(x, &exact, n)).fold(0.0, f64::max);
                // Two scores are compared, each half a squared distance.
                let room = 2.0 * 2.0 * error;
                assert!(far <= left_out + room, "prototype {c}: {far} is included, {left_out} is not");
            }
            let before: Vec<u32> = (0..500).map(|i| i * 7 % 130).collect();
            let mut labels = before.clone();
            let pass = step(&alone(&data), &centroids, &lists, &mut labels).unwrap();
            let mut total = Rounded::default();
            for (i, x) in data.chunks(3).enumerate() {
                let list = lists[before[i] as usize].iter().map(|c| *c as usize);
                let (best, sq_dist) = exact.nearest_among(x, list);
                assert_eq!(labels[i] as usize, best, "row {i}");
                total.value += sq_dist.value;
                total.error += sq_dist.error;
            }
            assert_within!(pass.objective, total.value, total.error);
            assert_eq!(pass.reassigned, (0..500).filter(|i| labels[*i] != before[*i]).count());
            let sum = objective(&alone(&data), &labels, &centroids).unwrap();
            assert_within!(sum, total.value, total.error);
        }
    }

    #[test]
    fn means_are_those_of_lloyd_also_after_rows_have_moved() {
        let data = wave(500 * 4);
        let rows = RowsView::new(&data, 4);
        let before: Vec<u32> = (0..500).map(|i| i * i % 11).collect();
        let after: Vec<u32> =
            (0..500u32).map(|i| if i.is_multiple_of(3) { 10 - i % 11 } else { i * i % 11 }).collect();
        let (mut got, mut plain) = (vec![7.5; 12 * 4], vec![7.5; 12 * 4]);
        let all = Rows::alone(rows);
        let mut sums = Sums::new(&all, &before, 12).unwrap();
        assert_eq!(sums.means(&mut got), crate::lloyd::means(rows, &before, &mut plain));
        assert_eq!(got, plain);
        assert_eq!(got[44..], [7.5; 4], "a centroid without rows stays");
        sums.follow(&all, &before, &after).unwrap();
        assert_eq!(sums.means(&mut got), crate::lloyd::means(rows, &after, &mut plain));
        // Sums in f64 of 500 numbers, some of them subtracted again, and both means rounded.
        let of_sums = tolerance::f64(2 * 500, largest(&widened(&data)));
        for (got, want) in got.iter().zip(&plain) {
            assert_within!(*got, *want, tolerance::f32(2, f64::from(want.abs())) + of_sums);
        }
    }

    #[test]
    fn the_lowest_come_first_and_the_lower_number_among_equals() {
        let mut best = Vec::new();
        lowest(&[3.0, 1.0, 2.0, 1.0, 0.5, 3.0], 4, &mut best);
        assert_eq!(best, [(0.5, 4), (1.0, 1), (1.0, 3), (2.0, 2)]);
    }
}
