//! Assignments among a few prototypes for each cell of samples, in parts of a file that may be larger than memory.

use crate::lloyd::members;
use crate::seeding::gather;
use pauc_kernels::distance::{Packed, add_rows, nearest, squared_distance};
use pauc_traits::probe::Rows;
use rayon::prelude::*;

/// Rows that are worked on before the next are read: a mapped file is read from front to end.
const PART: usize = 1 << 18;

/// Rows in cells, each of which is compared with a list of prototypes.
#[derive(Debug)]
pub struct Restricted<'a> {
    rows: Rows<'a>,
    cells: &'a [u32],
    /// Each row's nearest prototype of its cell's list, the lowest-numbered among equals.
    pub index: Vec<u32>,
    /// Σ‖x − c‖².
    pub objective: f64,
}

impl<'a> Restricted<'a> {
    /// Rows and the cell of each; nothing is assigned yet.
    pub fn new(rows: Rows<'a>, cells: &'a [u32]) -> Self {
        Restricted { rows, cells, index: vec![0; rows.rows], objective: f64::INFINITY }
    }

    /// Finds each row's nearest among the centroids that `lists` has for its cell, in ascending order. A cell with rows
    /// has a list.
    ///
    /// # Shapes
    /// centroids K·D, lists: one for each cell
    pub fn assign(&mut self, centroids: &[f32], lists: &[Vec<u32>]) {
        let dim = self.rows.cols;
        self.objective = 0.0;
        let parts = self.index.chunks_mut(PART).zip(self.cells.chunks(PART));
        for ((index, cells), data) in parts.zip(self.rows.data.chunks(PART * dim)) {
            let part = Rows::new(data, dim);
            let (order, starts) = members(cells, lists.len());
            let found: Vec<(Vec<u32>, f64)> = (0..lists.len())
                .into_par_iter()
                .filter(|cell| starts[*cell] < starts[cell + 1])
                .map(|cell| of_cell(part, &order[starts[cell]..starts[cell + 1]], centroids, &lists[cell]))
                .collect();
            let mut order = order.iter();
            for (nearest, square) in found {
                self.objective += square;
                nearest.iter().zip(&mut order).for_each(|(c, i)| index[*i as usize] = *c);
            }
        }
    }

    /// Replaces each centroid that has rows by their mean, and returns how many each has.
    ///
    /// # Shapes
    /// centroids K·D → K
    pub fn update(&self, centroids: &mut [f32]) -> Vec<usize> {
        means(self.rows, &self.index, centroids);
        let mut sizes = vec![0usize; centroids.len() / self.rows.cols];
        self.index.iter().for_each(|c| sizes[*c as usize] += 1);
        sizes
    }
}

/// Rows that are copied at a time.
const AT_ONCE: usize = 1 << 12;

/// The nearest of the listed centroids for some rows, and the sum of the squared distances.
fn of_cell(rows: Rows<'_>, own: &[u32], centroids: &[f32], list: &[u32]) -> (Vec<u32>, f64) {
    let chosen = gather(Rows::new(centroids, rows.cols), list);
    let packed = Packed::new(&chosen, rows.cols);
    let (mut index, mut square) = (vec![0u32; own.len()], vec![0.0f32; own.len().min(AT_ONCE)]);
    let mut sum = 0.0f64;
    for (own, index) in own.chunks(AT_ONCE).zip(index.chunks_mut(AT_ONCE)) {
        let square = &mut square[..own.len()];
        nearest(&gather(rows, own), &packed, index, square);
        sum += square.iter().map(|s| *s as f64).sum::<f64>();
        index.iter_mut().for_each(|i| *i = list[*i as usize]);
    }
    (index, sum)
}

/// Replaces each centroid that has rows by their mean, summed in `f64` in the order of the rows, and returns
/// Σ‖x − c‖² of the means. Unlike [`crate::lloyd::means`], it reads the rows from front to end.
///
/// # Shapes
/// rows (N, D), index N, centroids K·D
pub fn means(rows: Rows<'_>, index: &[u32], centroids: &mut [f32]) -> f64 {
    let dim = rows.cols;
    let k = centroids.len() / dim;
    let (mut sums, mut counts) = (vec![0.0f64; centroids.len()], vec![0usize; k]);
    let mut squares = 0.0f64;
    for (index, data) in index.chunks(PART).zip(rows.data.chunks(PART * dim)) {
        let (order, starts) = members(index, k);
        sums.par_chunks_mut(dim).enumerate().for_each(|(c, sum)| {
            add_rows(data, dim, &order[starts[c]..starts[c + 1]], sum);
        });
        counts.iter_mut().zip(starts.windows(2)).for_each(|(n, w)| *n += w[1] - w[0]);
        let square = |rows: &[f32]| rows.iter().map(|v| *v as f64 * *v as f64).sum::<f64>();
        let of_blocks: Vec<f64> = data.par_chunks(AT_ONCE * dim).map(square).collect();
        squares += of_blocks.iter().sum::<f64>();
    }
    for ((c, sum), n) in centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(&counts) {
        if *n == 0 {
            continue;
        }
        for (v, s) in c.iter_mut().zip(sum) {
            *v = (s / *n as f64) as f32;
            // Σ‖x − c‖² = Σ‖x‖² − 2·c·Σx + n·‖c‖².
            squares += *v as f64 * (*n as f64 * *v as f64 - 2.0 * s);
        }
    }
    squares.max(0.0)
}

/// For each cell, the `width` centroids nearest to its centre, in ascending order.
///
/// # Shapes
/// centres G·D, centroids K·D → G lists
pub fn nearest_lists(centres: &[f32], centroids: &[f32], dim: usize, width: usize) -> Vec<Vec<u32>> {
    let list = |centre: &[f32]| {
        let distance = |(c, row): (usize, &[f32])| (squared_distance(centre, row), c as u32);
        let mut all: Vec<(f32, u32)> = centroids.chunks_exact(dim).enumerate().map(distance).collect();
        if width < all.len() {
            all.select_nth_unstable_by(width, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            all.truncate(width);
        }
        let mut list: Vec<u32> = all.into_iter().map(|(_, c)| c).collect();
        list.sort_unstable();
        list
    };
    centres.par_chunks_exact(dim).map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * i) as f32 * 0.37).sin() + 3.0 * (i % 5) as f32).collect()
    }

    fn square(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum()
    }

    #[test]
    fn each_row_meets_its_cells_list_alone() {
        let (data, centroids) = (wave(300 * 3), wave(900)[600..660].to_vec());
        let cells: Vec<u32> = (0..300).map(|i| i * 7 % 3).collect();
        let lists = [vec![0, 4, 9, 19], (0..20).collect(), vec![11]];
        let mut restricted = Restricted::new(Rows::new(&data, 3), &cells);
        restricted.assign(&centroids, &lists);
        let mut total = 0.0;
        for (i, x) in data.chunks(3).enumerate() {
            let of = |c: &u32| square(x, &centroids[*c as usize * 3..][..3]);
            let list = &lists[cells[i] as usize];
            let best = list.iter().min_by(|a, b| of(a).total_cmp(&of(b))).unwrap();
            assert_eq!(restricted.index[i], *best, "row {i}");
            total += of(best);
        }
        assert!((restricted.objective - total).abs() < 1e-5 * total);
    }

    #[test]
    fn means_and_what_is_left_are_those_of_plain_loops() {
        let data = wave(500 * 4);
        let rows = Rows::new(&data, 4);
        let index: Vec<u32> = (0..500).map(|i| i * i % 11).collect();
        let (mut got, mut plain) = (vec![7.5; 12 * 4], vec![7.5; 12 * 4]);
        let left = means(rows, &index, &mut got);
        crate::lloyd::means(rows, &index, &mut plain);
        assert_eq!(got, plain);
        assert_eq!(got[44..], [7.5; 4], "a centroid without rows stays");
        let want: f64 = rows.iter().zip(&index).map(|(x, c)| square(x, &got[*c as usize * 4..][..4])).sum();
        assert!((left - want).abs() < 1e-9 * want, "{left} for {want}");
    }

    #[test]
    fn lists_have_the_nearest_in_ascending_order() {
        let centroids = [0.0f32, 5.0, 1.0, 9.0, 2.0, 5.5];
        assert_eq!(nearest_lists(&[0.1, 6.0], &centroids, 1, 3), [vec![0, 2, 4], vec![1, 3, 5]]);
        assert_eq!(nearest_lists(&[4.0], &[3.0, 5.0, 3.0], 1, 2), [vec![0, 1]], "the lowest among equals");
        assert_eq!(nearest_lists(&[4.0], &[3.0, 5.0], 1, 9), [vec![0, 1]]);
    }
}
