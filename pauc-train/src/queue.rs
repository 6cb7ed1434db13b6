//! The queue of past keys (MoCo), with the sample of each key.

use pauc_traits::rng::{Purpose, stream};
use rand_distr::{Distribution, StandardNormal};
use std::sync::Arc;

/// A ring buffer of unit keys. It starts full of random unit vectors with unknown sample ids, as MoCo's does.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyQueue {
    dim: usize,
    keys: Arc<Vec<f32>>,
    ids: Vec<Option<u64>>,
    cursor: usize,
}

impl KeyQueue {
    /// Creates a queue of `len` keys of width `dim`.
    pub fn new(len: usize, dim: usize, seed: u64) -> Self {
        let mut keys = Vec::with_capacity(len * dim);
        for row in 0..len {
            let mut rng = stream(seed, Purpose::Init, u64::MAX, row as u64, 0);
            let values: Vec<f64> = (0..dim).map(|_| StandardNormal.sample(&mut rng)).collect();
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
            keys.extend(values.iter().map(|v| (v / norm) as f32));
        }
        KeyQueue { dim, keys: keys.into(), ids: vec![None; len], cursor: 0 }
    }

    /// Restores a queue from a checkpoint; `None` if the parts do not fit together.
    pub fn restore(dim: usize, keys: Vec<f32>, ids: Vec<Option<u64>>, cursor: usize) -> Option<Self> {
        (keys.len() == ids.len() * dim && cursor < ids.len().max(1)).then_some(KeyQueue {
            dim,
            keys: keys.into(),
            ids,
            cursor,
        })
    }

    /// Returns the number of keys M.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the keys, M rows.
    pub fn keys(&self) -> &[f32] {
        &self.keys
    }

    /// Returns a shared snapshot of the keys.
    pub fn shared(&self) -> Arc<Vec<f32>> {
        self.keys.clone()
    }

    /// Returns the sample of each key; `None` for the random vectors of the start.
    pub fn ids(&self) -> &[Option<u64>] {
        &self.ids
    }

    /// Forgets the samples of all keys.
    pub(crate) fn forget_ids(&mut self) {
        self.ids.fill(None);
    }

    /// Returns the index of the next key.
    pub fn cursor(&self) -> usize {
        self.cursor
    }

    /// Replaces the oldest keys. Rows are scaled to unit length.
    ///
    /// # Shapes
    /// `rows`: (n, dim), row-major. `ids`: (n), the samples that the rows are keys of.
    pub fn push(&mut self, rows: &[f32], ids: &[u64]) {
        // Copied only while the previous step's snapshot is still held.
        let keys = Arc::make_mut(&mut self.keys);
        for (row, id) in rows.chunks_exact(self.dim).zip(ids) {
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
            let slot = &mut keys[self.cursor * self.dim..(self.cursor + 1) * self.dim];
            slot.iter_mut().zip(row).for_each(|(s, v)| *s = v / norm);
            self.ids[self.cursor] = Some(*id);
            self.cursor = (self.cursor + 1) % self.ids.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn the_oldest_keys_leave_first_also_across_the_end() {
        let mut q = KeyQueue::new(5, 2, 0);
        for k in q.keys().chunks(2) {
            // Each factor is rounded, and so are the product and the sum.
            assert_within!(k[0] * k[0] + k[1] * k[1], 1.0, tolerance::f32(4, 1.0));
        }
        q.push(&[3.0, 4.0, 0.0, 2.0, 1.0, 0.0], &[10, 11, 12]);
        q.push(&[0.0, -5.0, -1.0, 0.0, 6.0, 8.0], &[13, 14, 15]);
        assert_eq!(q.ids(), [Some(15), Some(11), Some(12), Some(13), Some(14)]);
        assert_eq!(&q.keys()[..4], [0.6, 0.8, 0.0, 1.0]);
        assert_eq!(q.cursor(), 1);
    }
}
