//! t-SNE of up to some hundred thousand rows, from their nearest rows alone.

use super::descent::{Descent, EARLY, LATE};
use super::quadtree::Quadtree;
use super::{Tsne, TsneOptions, gaussian, limited};
use pauc_kernels::neighbor_forces::Repulsion;
use pauc_traits::probe::Neighbors;
use pauc_traits::{Error, Result, progress, stop};
use rayon::prelude::*;

/// Neighbors per unit of perplexity that affinities are computed of; those of others are close to zero.
pub const NEIGHBORS: f64 = 3.0;
/// Cells smaller than this share of their distance repel as one point.
pub(super) const THETA: f32 = 0.5;
/// The extent of the offsets that keep equal rows from starting in one place, relative to the start.
const OFFSET: f32 = 0.01;
/// Points of one parallel task.
const TASK: usize = 256;

/// Returns how many nearest rows [`sparse_tsne`] reads of each of `n` rows.
pub fn neighbors_for(options: TsneOptions, n: usize) -> usize {
    ((NEIGHBORS * limited(options.perplexity, n)).ceil() as usize).clamp(1, n.saturating_sub(1).max(1))
}

/// Places rows in two dimensions as [`super::tsne()`] does, with affinities only between nearest rows, and with
/// repulsion between groups of far points instead of all pairs. The time of a step is N·log N.
///
/// `nearest` are cosines and numbers of the nearest rows, as [`crate::neighbors::search`] finds them; distances are
/// those of rows of unit length, ‖a − b‖² = 2 − 2·cos. The first [`neighbors_for`] of each are read. `start` are
/// positions to begin with, such as the principal components.
///
/// Nothing is random or depends on the number of threads. The divergence is that of the affinities between nearest
/// rows.
///
/// # Shapes
/// N lists and N positions → N points
///
/// # Errors
/// If there are no rows, the numbers of lists and positions differ, or the run was asked to stop.
///
/// Source: van der Maaten, *Accelerating t-SNE using tree-based algorithms*, 2014. The start and the learning rate
/// are those of Kobak & Berens 2019.
pub fn sparse_tsne(nearest: &[Neighbors], start: &[[f32; 2]], options: TsneOptions) -> Result<Tsne> {
    let n = nearest.len();
    if n == 0 || start.len() != n {
        let message = format!("{n} rows with {} positions to start from; expected one for each", start.len());
        return Err(Error::shape("t-SNE", message));
    }
    let perplexity = limited(options.perplexity, n);
    let affinities = Affinities::new(nearest, neighbors_for(options, n), perplexity);
    let mut descent = Descent::from(&spread_out(start));
    let [early, late] = options.iterations;
    let task = progress::task("t-SNE", (early + late) as u64);
    for step in 0..early + late {
        stop::check()?;
        let phase = if step < early { EARLY } else { LATE };
        let gradient = affinities.gradient(&descent.points, phase.exaggeration, THETA);
        descent.step(&gradient, phase.momentum);
        task.advance(1);
    }
    let divergence = affinities.divergence(&descent.points);
    Ok(Tsne { points: descent.centered(), perplexity, divergence })
}

/// Adds a small spiral to positions, since points in one place never part.
fn spread_out(start: &[[f32; 2]]) -> Vec<[f32; 2]> {
    let n = start.len() as f32;
    let deviation = (start.iter().map(|p| (p[0] as f64).powi(2)).sum::<f64>() / f64::from(n)).sqrt() as f32;
    let extent = if deviation > 0.0 { OFFSET * deviation } else { 1.0 };
    // Steps of the golden angle fill a disk evenly (Vogel 1979).
    let golden = std::f64::consts::PI * (3.0 - 5f64.sqrt());
    let moved = |(i, p): (usize, &[f32; 2])| {
        let (radius, angle) = (extent * ((i as f32 + 0.5) / n).sqrt(), golden * i as f64);
        [p[0] + radius * angle.cos() as f32, p[1] + radius * angle.sin() as f32]
    };
    start.iter().enumerate().map(moved).collect()
}

/// Symmetric affinities p_ij between nearest rows, whose sum is 1.
struct Affinities {
    /// Where each row begins, and the end of the last.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f32>,
}

impl Affinities {
    fn new(nearest: &[Neighbors], k: usize, perplexity: f64) -> Self {
        let n = nearest.len();
        let one_sided: Vec<Vec<(u32, f32)>> =
            nearest.par_iter().map(|list| conditional(&list[..list.len().min(k)], perplexity)).collect();
        let mut incoming: Vec<Vec<(u32, f32)>> = vec![Vec::new(); n];
        for (i, list) in one_sided.iter().enumerate() {
            list.iter().for_each(|(j, p)| incoming[*j as usize].push((i as u32, *p)));
        }
        let share = 0.5 / n as f32;
        let rows = one_sided.par_iter().zip(incoming.par_iter());
        let rows: Vec<Vec<(u32, f32)>> = rows.map(|(out, back)| merged(out, back, share)).collect();
        drop((one_sided, incoming));
        let mut starts = vec![0];
        starts.extend(rows.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        let (columns, values) = rows.into_iter().flatten().unzip();
        Affinities { starts, columns, values }
    }

    fn row(&self, i: usize) -> impl Iterator<Item = (usize, f32)> {
        let range = self.starts[i]..self.starts[i + 1];
        self.columns[range.clone()].iter().map(|j| *j as usize).zip(self.values[range].iter().copied())
    }

    /// Computes ∂KL/∂y_i = 4·(c·Σ_j p_ij·q_ij·(y_i − y_j) − Σ_j q_ij²·(y_i − y_j)/Σ q) with q_ij = 1/(1 + ‖y_i −
    /// y_j‖²), where c is the exaggeration, and cells below `theta` times their distance are one point in the second
    /// and third sum.
    fn gradient(&self, points: &[Vec<f32>; 2], exaggeration: f32, theta: f32) -> Vec<[f32; 2]> {
        let repulsions = Quadtree::new(points).repulsions(theta);
        let total = sum_of_others(&repulsions);
        let push = if total > 0.0 { (1.0 / total) as f32 } else { 0.0 };
        let mut gradient = vec![[0.0; 2]; repulsions.len()];
        gradient.par_chunks_mut(TASK).enumerate().for_each(|(t, chunk)| {
            for (o, out) in chunk.iter_mut().enumerate() {
                let i = t * TASK + o;
                let pull = self.pull(points, i);
                *out = [0, 1].map(|d| 4.0 * (exaggeration * pull[d] - push * repulsions[i].push[d]));
            }
        });
        gradient
    }

    fn pull(&self, [xs, ys]: &[Vec<f32>; 2], i: usize) -> [f32; 2] {
        let (x, y) = (xs[i], ys[i]);
        let mut pull = [0.0f32; 2];
        for (j, p) in self.row(i) {
            let (dx, dy) = (x - xs[j], y - ys[j]);
            let weight = p / (1.0 + dx * dx + dy * dy);
            pull[0] += weight * dx;
            pull[1] += weight * dy;
        }
        pull
    }

    /// Computes Σ p·ln(p/q) over the affinities.
    fn divergence(&self, points: &[Vec<f32>; 2]) -> f64 {
        let total = sum_of_others(&Quadtree::new(points).repulsions(THETA));
        let [xs, ys] = points;
        let of_row = |i: usize| -> f64 {
            let term = |(j, p): (usize, f32)| {
                let (dx, dy) = ((xs[i] - xs[j]) as f64, (ys[i] - ys[j]) as f64);
                let q = 1.0 / (1.0 + dx * dx + dy * dy) / total;
                if p > 0.0 { p as f64 * (p as f64 / q).ln() } else { 0.0 }
            };
            self.row(i).map(term).sum()
        };
        let rows: Vec<f64> = (0..xs.len()).into_par_iter().map(of_row).collect();
        rows.iter().sum()
    }
}

/// Returns Σ q over all pairs of different points.
fn sum_of_others(repulsions: &[Repulsion]) -> f64 {
    repulsions.iter().map(|r| r.total as f64 - 1.0).sum()
}

/// Returns p_j|i of a row's nearest rows, by ascending j.
fn conditional(list: &[(f32, u32)], perplexity: f64) -> Vec<(u32, f32)> {
    let mut row: Vec<f32> = list.iter().map(|(cosine, _)| (2.0 - 2.0 * cosine).max(0.0)).collect();
    gaussian(&mut row, perplexity);
    let mut shares: Vec<(u32, f32)> = list.iter().zip(row).map(|((_, j), p)| (*j, p)).collect();
    shares.sort_unstable_by_key(|(j, _)| *j);
    shares
}

/// Returns (p_j|i + p_i|j)·share by ascending j, from both lists by ascending j.
fn merged(out: &[(u32, f32)], back: &[(u32, f32)], share: f32) -> Vec<(u32, f32)> {
    let mut all = Vec::with_capacity(out.len() + back.len());
    let (mut a, mut b) = (out.iter().peekable(), back.iter().peekable());
    loop {
        let column = match (a.peek(), b.peek()) {
            (Some(x), Some(y)) => x.0.min(y.0),
            (Some(x), None) | (None, Some(x)) => x.0,
            (None, None) => return all,
        };
        let take = |list: &mut std::iter::Peekable<std::slice::Iter<'_, (u32, f32)>>| {
            list.next_if(|x| x.0 == column).map_or(0.0, |x| x.1)
        };
        let sum = take(&mut a) + take(&mut b);
        all.push((column, share * sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbors::{SearchOptions, search};
    use crate::{pca2, tsne};
    use pauc_testing::inputs::{irregular, noise};
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::Dataset;
    use pauc_traits::dataset::Place;
    use pauc_traits::probe::RowsView;

    fn nearest(rows: RowsView<'_>, k: usize) -> Vec<Neighbors> {
        search(rows, None, SearchOptions { k, duplicates: None }).unwrap().nearest
    }

    fn map(rows: RowsView<'_>, options: TsneOptions) -> Tsne {
        let start = pca2(rows).unwrap().points;
        let k = neighbors_for(options, rows.rows);
        sparse_tsne(&nearest(rows, k), &start, options).unwrap()
    }

    /// The first images of Fashion-MNIST as rows of unit length.
    fn images(n: usize) -> (Vec<f32>, usize) {
        let splits = pauc_data::datasets::fashion_mini::FashionMini {}.open(&Place::at(".")).unwrap();
        let pixels = |i: usize| {
            splits.train.image(i).unwrap().pixels.iter().map(|p| f32::from(*p)).collect::<Vec<f32>>()
        };
        let data: Vec<f32> = (0..n).flat_map(pixels).collect();
        let dim = data.len() / n;
        (crate::knn::unit_rows(RowsView::new(&data, dim)), dim)
    }

    #[test]
    fn affinities_are_symmetric_and_sum_to_one() {
        let data = irregular(200 * 6, 0.4);
        let lists = nearest(RowsView::new(&data, 6), 30);
        let p = Affinities::new(&lists, 30, 10.0);
        assert_within!(p.values.iter().map(|p| f64::from(*p)).sum::<f64>(), 1.0, tolerance::f32(4, 1.0));
        let value = |i: usize, j: usize| p.row(i).find(|(column, _)| *column == j).map(|(_, p)| p);
        for i in 0..200 {
            assert!(p.row(i).all(|(j, v)| j != i && value(j, i) == Some(v)), "{i}");
            let both = |j: u32| lists[i].iter().any(|n| n.1 == j);
            assert!(lists[i].iter().all(|n| value(i, n.1 as usize).is_some()));
            assert!(p.row(i).all(|(j, _)| both(j as u32) || lists[j].iter().any(|n| n.1 as usize == i)));
        }
    }

    #[test]
    fn the_gradient_is_that_of_all_pairs_in_double_precision() {
        let n = 800;
        let data = noise(n * 5, 7);
        let p = Affinities::new(&nearest(RowsView::new(&data, 5), 30), 30, 10.0);
        let points =
            [noise(n, 3), noise(n, 4)].map(|axis| axis.iter().map(|v| 12.0 * v).collect::<Vec<f32>>());
        let wide = |i: usize| [f64::from(points[0][i]), f64::from(points[1][i])];
        let q = |i: usize, j: usize| {
            let (a, b) = (wide(i), wide(j));
            1.0 / (1.0 + (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2))
        };
        let total: f64 = (0..n * n).filter(|k| k / n != k % n).map(|k| q(k / n, k % n)).sum();
        let exact = |i: usize, d: usize| {
            let pull: f64 = p.row(i).map(|(j, p)| f64::from(p) * q(i, j) * (wide(i)[d] - wide(j)[d])).sum();
            let push: f64 = (0..n).map(|j| q(i, j).powi(2) * (wide(i)[d] - wide(j)[d])).sum();
            4.0 * (pull - push / total)
        };
        let got = p.gradient(&points, 1.0, THETA);
        let (mut off, mut size) = (0.0, 0.0);
        for (i, got) in got.iter().enumerate() {
            for (d, got) in got.iter().enumerate() {
                off += (f64::from(*got) - exact(i, d)).powi(2);
                size += exact(i, d).powi(2);
            }
        }
        // The accuracy that Barnes & Hut's method is used with; the tree's own test has it without approximation.
        assert!((off / size).sqrt() < 0.01, "{}", (off / size).sqrt());
    }

    /// Returns the numbers of all other points by ascending distance from each point.
    fn by_distance(n: usize, distance: impl Fn(usize, usize) -> f64) -> Vec<Vec<usize>> {
        let order = |i: usize| {
            let mut all: Vec<usize> = (0..n).filter(|j| *j != i).collect();
            all.sort_by(|a, b| distance(i, *a).total_cmp(&distance(i, *b)).then(a.cmp(b)));
            all
        };
        (0..n).map(order).collect()
    }

    /// Returns trustworthiness (Venna & Kaski 2001) and the share of the `k` nearest rows that are also nearest in
    /// the map.
    fn preservation(rows: &[Vec<usize>], points: &[[f32; 2]], k: usize) -> (f64, f64) {
        let n = points.len();
        let squared =
            |i: usize, j: usize| (0..2).map(|d| f64::from(points[i][d] - points[j][d]).powi(2)).sum::<f64>();
        let (mut penalty, mut kept) = (0, 0);
        for (rows, near) in rows.iter().zip(by_distance(n, squared)) {
            for j in &near[..k] {
                let rank = rows.iter().position(|r| r == j).unwrap() + 1;
                penalty += rank.saturating_sub(k);
                kept += usize::from(rank <= k);
            }
        }
        let scale = 2.0 / (n * k * (2 * n - 3 * k - 1)) as f64;
        (1.0 - scale * penalty as f64, kept as f64 / (n * k) as f64)
    }

    #[test]
    fn a_map_of_images_is_as_good_as_that_of_exact_t_sne() {
        let (n, k) = (400, 10);
        let (data, dim) = images(n);
        let rows = RowsView::new(&data, dim);
        let options = TsneOptions::default();
        let (got, exact) = (map(rows, options), tsne(rows, options).unwrap());
        // Both maps are compared by the exact affinities of all pairs.
        let axes = |points: &[[f32; 2]]| [0, 1].map(|d| points.iter().map(|p| p[d]).collect::<Vec<f32>>());
        let p = super::super::affinities(rows, exact.perplexity).unwrap();
        let divergence = super::super::divergence(&p, &axes(&got.points));
        assert!(divergence < 1.05 * exact.divergence, "{divergence}, exact {}", exact.divergence);
        assert_eq!(got.perplexity, exact.perplexity);
        let cosine = |i: usize, j: usize| {
            rows.row(i).iter().zip(rows.row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let order = by_distance(n, |i, j| -cosine(i, j));
        let [got, exact] = [got, exact].map(|map| preservation(&order, &map.points, k));
        // Both descents end in minima of similar quality, not in the same one.
        assert!(got.0 > exact.0 - 0.01 && got.0 > 0.95, "trustworthiness {} for {}", got.0, exact.0);
        assert!(got.1 > exact.1 - 0.03, "neighbors kept {} for {}", got.1, exact.1);
    }

    #[test]
    fn few_rows_and_copies_have_maps_and_threads_change_nothing() {
        let quick = TsneOptions { perplexity: 30.0, iterations: [20, 30] };
        for (data, dim) in [(vec![1.0], 1), (vec![1.0, 2.0], 1), (vec![0.5; 400], 4), (vec![0.0; 60], 3)] {
            let points = map(RowsView::new(&data, dim), quick).points;
            assert_eq!(points.len(), data.len() / dim);
            assert!(points.iter().flatten().all(|v| v.is_finite()), "{points:?}");
        }
        let same = map(RowsView::new(&[0.5; 400], 4), quick).points;
        let distinct: std::collections::HashSet<_> = same.iter().map(|p| p.map(f32::to_bits)).collect();
        assert_eq!(distinct.len(), 100, "copies start apart");
        assert!(sparse_tsne(&[], &[], quick).is_err());
        assert!(sparse_tsne(&[vec![]], &[], quick).is_err());
        let data = noise(900 * 8, 5);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| map(RowsView::new(&data, 8), quick))
        };
        assert_eq!(run(1), run(3));
    }
}
