//! Nearest centroids that follow the centroids as they move.

use crate::seeding::gather;
use pauc_kernels::distance::{Packed, mean_row, nearest_scored};
use pauc_traits::probe::RowsView;

/// Each row's nearest centroid. After the first iterations of k-means most centroids stand still, and what was
/// computed of those is used again.
#[derive(Clone, Debug)]
pub struct Nearest {
    /// The nearest centroid, the lowest among equals.
    pub index: Vec<u32>,
    /// ‖x − c‖².
    pub square: Vec<f32>,
    score: Vec<f32>,
    origin: Vec<f32>,
    centroids: Vec<f32>,
}

impl Nearest {
    /// Compares all rows with all centroids.
    pub fn find(rows: RowsView<'_>, centroids: &[f32]) -> Self {
        let n = rows.rows;
        let mut found = Nearest {
            index: vec![0; n],
            square: vec![0.0; n],
            score: vec![0.0; n],
            origin: mean_row(centroids, rows.cols),
            centroids: centroids.to_vec(),
        };
        found.everything(rows);
        found
    }

    fn everything(&mut self, rows: RowsView<'_>) {
        let packed = Packed::around(&self.centroids, &self.origin);
        nearest_scored(rows.data, &packed, &mut self.index, &mut self.score, &mut self.square);
    }

    /// Brings the result up to date with centroids that have moved. The bits are those of comparing everything
    /// again: a score depends on its row and its centroid alone.
    ///
    /// All rows are compared with the centroids that have moved. A row whose own centroid stands has in it the
    /// nearest of those that stand; a row whose own has moved is compared with those that stand as well.
    pub fn follow(&mut self, rows: RowsView<'_>, centroids: &[f32]) {
        let dim = rows.cols;
        let pairs = self.centroids.chunks_exact(dim).zip(centroids.chunks_exact(dim));
        let moves: Vec<bool> =
            pairs.map(|(a, b)| a.iter().zip(b).any(|(a, b)| a.to_bits() != b.to_bits())).collect();
        self.centroids.copy_from_slice(centroids);
        let (moved, standing): (Vec<u32>, Vec<u32>) =
            (0..moves.len() as u32).partition(|c| moves[*c as usize]);
        if moved.is_empty() {
            return;
        }
        if moved.len() * 8 > moves.len() * 7 {
            return self.everything(rows);
        }
        let chosen = gather(RowsView::new(centroids, dim), &standing);
        let packed = Packed::around(&chosen, &self.origin);
        let mut found = Found::default();
        let (mut ids, mut next) = (Vec::with_capacity(COPIED), 0..rows.rows as u32);
        loop {
            ids.clear();
            ids.extend(next.by_ref().filter(|i| moves[self.index[*i as usize] as usize]).take(COPIED));
            if ids.is_empty() {
                break;
            }
            found.among(&gather(rows, &ids), &packed, &standing);
            ids.iter().enumerate().for_each(|(at, i)| self.put(*i as usize, &found, at));
        }
        drop(packed);
        drop(chosen);
        let chosen = gather(RowsView::new(centroids, dim), &moved);
        let packed = Packed::around(&chosen, &self.origin);
        for (part, some) in rows.data.chunks(AT_ONCE * dim).enumerate() {
            found.among(some, &packed, &moved);
            for at in 0..found.index.len() {
                let (i, score, index) = (part * AT_ONCE + at, found.score[at], found.index[at]);
                if score < self.score[i] || (score == self.score[i] && index < self.index[i]) {
                    self.put(i, &found, at);
                }
            }
        }
    }

    fn put(&mut self, i: usize, from: &Found, at: usize) {
        (self.index[i], self.score[i], self.square[i]) = (from.index[at], from.score[at], from.square[at]);
    }
}

/// Rows that are looked at, and of those that are copied, at a time: what [`Nearest::follow`] needs beside the rows
/// stays small.
const AT_ONCE: usize = 1 << 14;
const COPIED: usize = 1 << 12;

#[derive(Default)]
struct Found {
    index: Vec<u32>,
    score: Vec<f32>,
    square: Vec<f32>,
}

impl Found {
    /// The nearest of some packed centroids, under their own numbers.
    fn among(&mut self, rows: &[f32], packed: &Packed<'_>, numbers: &[u32]) {
        let n = rows.len() / packed.dim();
        self.index.resize(n, 0);
        self.score.resize(n, 0.0);
        self.square.resize(n, 0.0);
        nearest_scored(rows, packed, &mut self.index, &mut self.score, &mut self.square);
        self.index.iter_mut().for_each(|i| *i = numbers[*i as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn afresh(found: &Nearest, rows: RowsView<'_>) -> Nearest {
        let mut all = found.clone();
        all.everything(rows);
        all
    }

    fn assert_same(a: &Nearest, b: &Nearest) {
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(a.index, b.index);
        assert_eq!(bits(&a.score), bits(&b.score));
        assert_eq!(bits(&a.square), bits(&b.square));
    }

    proptest! {
        #![proptest_config(pauc_testing::property::cases(60))]
        #[test]
        fn following_gives_the_bits_of_starting_afresh(
            seed in 0u32..1000,
            steps in prop::collection::vec(prop::collection::vec(0usize..40, 1..30), 1..5),
            coarse: bool,
        ) {
            // Coarse values make equal scores frequent.
            let value = |i: u32| {
                let v = ((i.wrapping_mul(2654435761).wrapping_add(seed)) as f32 * 1e-3).sin();
                if coarse { (2.0 * v).round() } else { v }
            };
            let data: Vec<f32> = (0..250 * 3).map(value).collect();
            let rows = RowsView::new(&data, 3);
            let mut centroids: Vec<f32> = (0..40 * 3).map(|i| value(i + 7777)).collect();
            let mut found = Nearest::find(rows, &centroids);
            for (step, moved) in steps.iter().enumerate() {
                for c in moved {
                    (0..3).for_each(|l| centroids[c * 3 + l] = value((step * 1000 + c * 3 + l) as u32 + 31));
                }
                found.follow(rows, &centroids);
                assert_same(&found, &afresh(&found, rows));
            }
        }
    }
}
