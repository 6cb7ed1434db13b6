//! Nearest centroids, updated incrementally as centroids move.

use crate::seeding::gather;
use pauc_kernels::distance::{self, Packed, mean_row, nearest_scored};
use pauc_traits::probe::RowsView;
use pauc_traits::{Result, stop};
use std::ops::Range;

/// The nearest centroid of each row. After the first iterations of k-means, most centroids do not move, and
/// their distances are reused.
#[derive(Clone, Debug)]
pub struct Nearest {
    /// The N nearest centroids. Ties go to the lowest number.
    pub labels: Vec<u32>,
    /// N squared distances to them, ‖x − c‖².
    pub sq_dist: Vec<f32>,
    score: Vec<f32>,
    origin: Vec<f32>,
    centroids: Vec<f32>,
}

impl Nearest {
    /// Compares all rows with all centroids.
    ///
    /// # Shapes
    /// rows (N, D), centroids (K, D), row-major
    ///
    /// # Errors
    /// If the run was asked to stop.
    pub fn find(rows: RowsView<'_>, centroids: &[f32]) -> Result<Self> {
        let n = rows.rows;
        let mut nearest = Nearest {
            labels: vec![0; n],
            sq_dist: vec![0.0; n],
            score: vec![0.0; n],
            origin: mean_row(centroids, rows.cols),
            centroids: centroids.to_vec(),
        };
        nearest.compare_all(rows)?;
        Ok(nearest)
    }

    fn compare_all(&mut self, rows: RowsView<'_>) -> Result<()> {
        let packed = Packed::around(&self.centroids, &self.origin);
        for part in parts(rows, self.centroids.len()) {
            stop::check()?;
            let data = &rows.data[part.start * rows.cols..part.end * rows.cols];
            let (labels, score) = (&mut self.labels[part.clone()], &mut self.score[part.clone()]);
            nearest_scored(data, &packed, labels, score, &mut self.sq_dist[part]);
        }
        Ok(())
    }

    /// Updates the result for centroids that have moved. The bits are those of a full comparison, because a
    /// score depends only on its row and its centroid.
    ///
    /// All rows are compared with the moved centroids. If the centroid of a row has not moved, it is still
    /// the nearest of those that have not moved. Otherwise the row is also compared with the centroids that
    /// have not moved.
    ///
    /// # Shapes
    /// rows (N, D) and centroids (K, D), row-major; the same numbers as in [`Nearest::find`]
    ///
    /// # Errors
    /// If the run was asked to stop. The result is then incomplete.
    pub fn follow(&mut self, rows: RowsView<'_>, centroids: &[f32]) -> Result<()> {
        let dim = rows.cols;
        let pairs = self.centroids.chunks_exact(dim).zip(centroids.chunks_exact(dim));
        let has_moved: Vec<bool> =
            pairs.map(|(a, b)| a.iter().zip(b).any(|(a, b)| a.to_bits() != b.to_bits())).collect();
        self.centroids.copy_from_slice(centroids);
        let (moved, standing): (Vec<u32>, Vec<u32>) =
            (0..has_moved.len() as u32).partition(|c| has_moved[*c as usize]);
        if moved.is_empty() {
            return Ok(());
        }
        if moved.len() * 8 > has_moved.len() * 7 {
            return self.compare_all(rows);
        }
        self.compare_with_standing(rows, &standing, &has_moved)?;
        self.compare_with_moved(rows, &moved)
    }

    /// Finds the nearest unmoved centroid of the rows whose own centroid has moved.
    fn compare_with_standing(
        &mut self,
        rows: RowsView<'_>,
        standing: &[u32],
        has_moved: &[bool],
    ) -> Result<()> {
        let chosen = gather(RowsView::new(&self.centroids, rows.cols), standing);
        let packed = Packed::around(&chosen, &self.origin);
        let mut block = Block::default();
        let (mut ids, mut next) = (Vec::with_capacity(COPIED), 0..rows.rows as u32);
        loop {
            ids.clear();
            ids.extend(next.by_ref().filter(|i| has_moved[self.labels[*i as usize] as usize]).take(COPIED));
            if ids.is_empty() {
                return Ok(());
            }
            stop::check()?;
            block.compare(&gather(rows, &ids), &packed, standing);
            ids.iter().enumerate().for_each(|(place, i)| self.put(*i as usize, &block, place));
        }
    }

    /// Assigns each row to a moved centroid if that is nearer than the row's own.
    fn compare_with_moved(&mut self, rows: RowsView<'_>, moved: &[u32]) -> Result<()> {
        let chosen = gather(RowsView::new(&self.centroids, rows.cols), moved);
        let packed = Packed::around(&chosen, &self.origin);
        let mut block = Block::default();
        for (part, some) in rows.data.chunks(AT_ONCE * rows.cols).enumerate() {
            stop::check()?;
            block.compare(some, &packed, moved);
            for place in 0..block.labels.len() {
                let (i, score, label) = (part * AT_ONCE + place, block.score[place], block.labels[place]);
                if score < self.score[i] || (score == self.score[i] && label < self.labels[i]) {
                    self.put(i, &block, place);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, i: usize, from: &Block, place: usize) {
        self.labels[i] = from.labels[place];
        self.score[i] = from.score[place];
        self.sq_dist[i] = from.sq_dist[place];
    }
}

/// Products of values between two looks at a request to stop: a fraction of a second on one core.
const PRODUCTS: usize = 1 << 32;

/// Divides rows into parts that are compared with `values` values of centroids in less than a second each.
fn parts(rows: RowsView<'_>, values: usize) -> impl Iterator<Item = Range<usize>> {
    let size = (PRODUCTS / values.max(1)).max(AT_ONCE);
    (0..rows.rows).step_by(size).map(move |start| start..(start + size).min(rows.rows))
}

/// Finds the nearest centroid of each row and its squared distance, as [`distance::nearest`] does.
///
/// # Shapes
/// rows (N, D), K packed centroids, labels N, sq_dist N
///
/// # Errors
/// If the run was asked to stop.
pub(crate) fn nearest(
    rows: RowsView<'_>,
    packed: &Packed<'_>,
    k: usize,
    labels: &mut [u32],
    sq_dist: &mut [f32],
) -> Result<()> {
    for part in parts(rows, k * rows.cols) {
        stop::check()?;
        let data = &rows.data[part.start * rows.cols..part.end * rows.cols];
        distance::nearest(data, packed, &mut labels[part.clone()], &mut sq_dist[part]);
    }
    Ok(())
}

/// The number of rows compared at once, and the number of rows copied at once. They bound the additional
/// memory of [`Nearest::follow`].
const AT_ONCE: usize = 1 << 14;
const COPIED: usize = 1 << 12;

/// The nearest of some centroids for a block of rows.
#[derive(Default)]
struct Block {
    labels: Vec<u32>,
    score: Vec<f32>,
    sq_dist: Vec<f32>,
}

impl Block {
    /// Finds the nearest of some packed centroids, and reports it by its number in `numbers`.
    fn compare(&mut self, rows: &[f32], packed: &Packed<'_>, numbers: &[u32]) {
        let n = rows.len() / packed.dim();
        self.labels.resize(n, 0);
        self.score.resize(n, 0.0);
        self.sq_dist.resize(n, 0.0);
        nearest_scored(rows, packed, &mut self.labels, &mut self.score, &mut self.sq_dist);
        self.labels.iter_mut().for_each(|label| *label = numbers[*label as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn afresh(nearest: &Nearest, rows: RowsView<'_>) -> Nearest {
        let mut all = nearest.clone();
        all.compare_all(rows).unwrap();
        all
    }

    fn assert_same(a: &Nearest, b: &Nearest) {
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(a.labels, b.labels);
        assert_eq!(bits(&a.score), bits(&b.score));
        assert_eq!(bits(&a.sq_dist), bits(&b.sq_dist));
    }

    proptest! {
        #![proptest_config(pauc_testing::property::cases(60))]
        #[test]
        fn following_gives_the_bits_of_starting_afresh(
            seed in 0u32..1000,
            steps in prop::collection::vec(prop::collection::vec(0usize..40, 1..30), 1..5),
            coarse: bool,
        ) {
            // Coarse values make ties frequent.
            let value = |i: u32| {
                let v = ((i.wrapping_mul(2654435761).wrapping_add(seed)) as f32 * 1e-3).sin();
                if coarse { (2.0 * v).round() } else { v }
            };
            let data: Vec<f32> = (0..250 * 3).map(value).collect();
            let rows = RowsView::new(&data, 3);
            let mut centroids: Vec<f32> = (0..40 * 3).map(|i| value(i + 7777)).collect();
            let mut nearest = Nearest::find(rows, &centroids).unwrap();
            for (step, moved) in steps.iter().enumerate() {
                for c in moved {
                    (0..3).for_each(|l| centroids[c * 3 + l] = value((step * 1000 + c * 3 + l) as u32 + 31));
                }
                nearest.follow(rows, &centroids).unwrap();
                assert_same(&nearest, &afresh(&nearest, rows));
            }
        }
    }
}
