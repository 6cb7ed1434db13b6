//! Passes of several shards of a batch at once, whose batch normalization takes the statistics of the whole batch.

use std::fmt::Debug;
use std::ops::Range;
use std::rc::Rc;

/// Exchanges the sums of shards between the processes that pass a batch through a network together.
pub trait ShardExchange: Debug {
    /// Returns the numbers of all shards of the batch, in order, given those of this process. All processes call it
    /// in the same order. If one of them has failed, the result is meaningless, and [`ShardExchange::check`] fails.
    ///
    /// # Shapes
    /// n numbers for each shard of this process → n for each shard of the batch
    fn gather(&self, own: &[f64]) -> Vec<f64>;

    /// Checks that all processes have taken part in every exchange so far.
    ///
    /// # Errors
    /// If one of them has failed.
    fn check(&self) -> crate::Result<()>;
}

/// The shards that a process passes through a network together.
///
/// Rows of a pass are ordered by view, then by shard, then by sample, so that those of a view are consecutive.
#[derive(Clone, Debug)]
pub struct ShardGroup {
    /// The number of shards of this process, at least 1.
    pub count: usize,
    /// The number of samples of a shard.
    pub samples: usize,
    /// How the sums of all shards come together.
    pub exchange: Rc<dyn ShardExchange>,
}

impl ShardGroup {
    /// Returns the error of a part of the network (an "encoder" or a "head") that cannot normalize shards together.
    pub fn refused_by(part: &str) -> crate::Error {
        crate::Error::config(format!(
            "this {part} cannot normalize the shards of a batch together: leave `train.batch_norm` out"
        ))
    }

    /// Returns where the rows of a shard are among `rows` rows, view after view.
    pub fn rows(&self, shard: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let (of_view, samples) = (self.count * self.samples, self.samples);
        let views = rows.checked_div(of_view).unwrap_or(0);
        (0..views).map(move |view| {
            let start = view * of_view + shard * samples;
            start..start + samples
        })
    }

    /// Copies the rows of a shard out of those of all.
    ///
    /// # Shapes
    /// all (V·count·samples, width) → (V·samples, width)
    pub fn take(&self, shard: usize, all: &[f32], width: usize) -> Vec<f32> {
        let mut own = Vec::with_capacity(all.len() / self.count.max(1));
        for rows in self.rows(shard, all.len() / width.max(1)) {
            own.extend_from_slice(&all[rows.start * width..rows.end * width]);
        }
        own
    }

    /// Copies the rows of a shard to their places among those of all.
    ///
    /// # Shapes
    /// own (V·samples, width), all (V·count·samples, width)
    pub fn put(&self, shard: usize, own: &[f32], width: usize, all: &mut [f32]) {
        let places = self.rows(shard, all.len() / width.max(1));
        for (rows, own) in places.zip(own.chunks_exact((self.samples * width).max(1))) {
            all[rows.start * width..rows.end * width].copy_from_slice(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct OneProcess;

    impl ShardExchange for OneProcess {
        fn gather(&self, own: &[f64]) -> Vec<f64> {
            own.to_vec()
        }
        fn check(&self) -> crate::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn rows_of_shards_are_taken_and_put_back() {
        let shards = ShardGroup { count: 2, samples: 3, exchange: Rc::new(OneProcess) };
        // Two views of six samples, of width 2. Each row has its view and its sample.
        let all: Vec<f32> = (0..12).flat_map(|row| [(row / 6) as f32, (row % 6) as f32]).collect();
        let second = shards.take(1, &all, 2);
        assert_eq!(second, [0., 3., 0., 4., 0., 5., 1., 3., 1., 4., 1., 5.]);
        let mut again = vec![f32::NAN; all.len()];
        (0..2).for_each(|shard| shards.put(shard, &shards.take(shard, &all, 2), 2, &mut again));
        assert_eq!(again, all);
    }
}
