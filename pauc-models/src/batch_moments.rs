//! The moments of a batch in batch normalization: mean and variance of each channel over all rows.
//!
//! A layer measures the moments of its rows and passes them here, once per pass with batch statistics.
//! Everything after that depends on the moments alone: the running statistics, which are updated here, and
//! scale and shift, which the layer derives.
//!
//! Without `shards` and `micro_batch`, a batch is one part. With either, it is several parts, each normalized by its
//! own moments, or by those of all shards (`merge`).

use dfdx::prelude::Cpu;
use pauc_traits::shards::ShardExchange;
use pauc_traits::{Compute, Error, Param, Result};

/// ε of batch normalization, added to the variance before the root; PyTorch's default.
pub(crate) const EPSILON: f64 = 1e-5;
/// The weight of a new batch in the running statistics, PyTorch's default.
const MOMENTUM: f32 = 0.1;

/// The moments of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchMoments<'a> {
    /// The number of rows: images, or the pixels of all images. At least two.
    pub count: usize,
    /// The mean of each channel.
    pub mean: &'a [f32],
    /// The biased variance of each channel.
    pub variance: &'a [f32],
}

/// The moments of all shards of a batch together.
#[derive(Clone, Debug)]
pub(crate) struct MergedMoments {
    /// The number of rows of all shards.
    pub count: usize,
    /// The mean of each channel.
    pub mean: Vec<f64>,
    /// The sum of the squared distances from the mean, of each channel.
    pub squares: Vec<f64>,
}

/// Merges the moments of all shards of a batch, in order. `own` has the means and the sums of squared distances of this
/// process's shards, which have `rows` rows each; `layer` names the normalization. For parts a and b with counts n, means
/// m and sums of squares q, and δ = m_b − m_a (Chan, Golub and LeVeque 1979):
///
/// ```text
/// n = n_a + n_b,   m = m_a + δ·n_b/n,   q = q_a + q_b + δ²·n_a·n_b/n
/// ```
///
/// # Errors
/// If there is a single row, which has no variance.
pub(crate) fn merge<'a>(
    own: impl Iterator<Item = [&'a [f64]; 2]>,
    rows: usize,
    exchange: &dyn ShardExchange,
    layer: &str,
) -> Result<MergedMoments> {
    let own: Vec<&[f64]> = own.flatten().collect();
    let channels = own.first().map_or(0, |mean| mean.len());
    let all = exchange.gather(&own.concat());
    let (mut count, mut mean, mut squares) = (0, vec![0.0; channels], vec![0.0; channels]);
    for shard in all.chunks_exact((2 * channels).max(1)) {
        let (means, sums) = shard.split_at(channels);
        let (before, n) = (count as f64, rows as f64);
        for c in 0..channels {
            let distance = means[c] - mean[c];
            squares[c] += sums[c] + distance * distance * before * n / (before + n);
            mean[c] += distance * n / (before + n);
        }
        count += rows;
    }
    if count < 2 {
        let message = "a single value has no variance: use a batch of at least 2 images";
        return Err(Error::shape(layer, message));
    }
    Ok(MergedMoments { count, mean, squares })
}

/// Adds up the sums of all shards of a batch, in order. `own` has those of this process's shards. Returns the sums and
/// the number of shards.
pub(crate) fn total<'a>(
    own: impl Iterator<Item = &'a [f64]>,
    exchange: &dyn ShardExchange,
) -> (Vec<f64>, usize) {
    let own: Vec<&[f64]> = own.collect();
    let len = own.first().map_or(0, |sums| sums.len());
    let (mut totals, mut shards) = (vec![0.0; len], 0);
    for shard in exchange.gather(&own.concat()).chunks_exact(len.max(1)) {
        totals.iter_mut().zip(shard).for_each(|(total, sum)| *total += sum);
        shards += 1;
    }
    (totals, shards)
}

/// The running statistics of a layer.
#[derive(Debug)]
pub(crate) struct RunningStatistics<'a, D: Compute> {
    /// The mean of each channel.
    pub mean: &'a Param<D>,
    /// The unbiased variance of each channel.
    pub variance: &'a Param<D>,
}

impl RunningStatistics<'_, Cpu> {
    /// Moves the running statistics toward the moments of a batch.
    ///
    /// # Shapes
    /// C channels; additional channels in `moments` are ignored
    pub(crate) fn update(&self, moments: BatchMoments<'_>) {
        let unbiased = moments.count as f32 / (moments.count - 1) as f32;
        move_toward(self.mean, moments.mean.iter().copied());
        move_toward(self.variance, moments.variance.iter().map(|v| v * unbiased));
    }
}

fn move_toward(running: &Param<Cpu>, moments: impl Iterator<Item = f32> + Clone) {
    running.note_moments(|| moments.clone().take(running.len()).collect());
    move_values(&mut running.value_mut(), moments);
}

fn move_values(running: &mut [f32], moments: impl Iterator<Item = f32>) {
    running.iter_mut().zip(moments).for_each(|(running, moment)| *running += MOMENTUM * (moment - *running));
}

/// Moves a running statistic as passes did that recorded these moments; see [`Param::record_moments`].
///
/// # Shapes
/// running C; moments k·C for k passes
pub fn repeat_moves(running: &mut [f32], moments: &[f32]) {
    for moments in moments.chunks_exact(running.len().max(1)) {
        move_values(running, moments.iter().copied());
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{EPSILON, MOMENTUM, RunningStatistics};
    use dfdx::prelude::Cuda;
    use pauc_cuda::feature_map::{MapShape, MapSlice};
    use pauc_cuda::norm::BatchNorm;
    use pauc_cuda::{Buffer, Context, Result};
    use pauc_traits::Param;

    impl RunningStatistics<'_, Cuda> {
        /// Measures the moments of a batch, moves the running statistics toward them, and sets the
        /// coefficients of the normalization. If the statistics record moments, it records these instead of moving.
        ///
        /// # Shapes
        /// y (N, H, W, C), at least two pixels; γ and β C
        ///
        /// # Errors
        /// If lengths disagree, or the device fails.
        pub(crate) fn measure(
            &self,
            on: &Context,
            norm: &mut BatchNorm,
            y: (MapSlice<'_>, MapShape),
            [gamma, beta]: [&Param<Cuda>; 2],
        ) -> Result<()> {
            let affine = (&*gamma.value(), &*beta.value(), EPSILON as f32);
            if !self.mean.records_moments() {
                let running = (&mut *self.mean.value_mut(), &mut *self.variance.value_mut(), MOMENTUM);
                return norm.measure(on, y, running, affine);
            }
            // Statistics that move from zero all the way are the moments themselves.
            let [mut mean, mut variance] =
                [Buffer::zeros(on, self.mean.len())?, Buffer::zeros(on, self.variance.len())?];
            norm.measure(on, y, (&mut mean, &mut variance, 1.0), affine)?;
            self.mean.note_moments(|| mean);
            self.variance.note_moments(|| variance);
            Ok(())
        }

        /// Sets the coefficients of the normalization from the running statistics.
        ///
        /// # Errors
        /// If lengths disagree, or the device fails.
        pub(crate) fn set(
            &self,
            on: &Context,
            norm: &mut BatchNorm,
            [gamma, beta]: [&Param<Cuda>; 2],
        ) -> Result<()> {
            let running = (&*self.mean.value(), &*self.variance.value());
            norm.set(on, running, (&gamma.value(), &beta.value(), EPSILON as f32))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::assert_within;
    use pauc_testing::tolerance::{f32, f64};
    use pauc_traits::param::Role;

    /// One of two processes; `other` holds what the other one sends.
    #[derive(Debug)]
    struct FirstOfTwo {
        other: Vec<f64>,
    }

    impl ShardExchange for FirstOfTwo {
        fn gather(&self, own: &[f64]) -> Vec<f64> {
            [own, &self.other].concat()
        }
        fn check(&self) -> Result<()> {
            Ok(())
        }
    }

    /// Mean and sum of squared distances of two columns.
    fn moments(rows: &[[f64; 2]]) -> [Vec<f64>; 2] {
        let n = rows.len() as f64;
        let mean = [0, 1].map(|c| rows.iter().map(|row| row[c]).sum::<f64>() / n);
        let squares = [0, 1].map(|c| rows.iter().map(|row| (row[c] - mean[c]).powi(2)).sum());
        [mean.to_vec(), squares.to_vec()]
    }

    #[test]
    fn moments_and_sums_of_shards_are_those_of_all_rows() {
        let rows: Vec<[f64; 2]> = (0..12).map(|i| [f64::from(i * i % 7), 1e3 + f64::from(i % 5)]).collect();
        let shards: Vec<_> = rows.chunks(3).map(moments).collect();
        let exchange = FirstOfTwo { other: shards[2..].iter().flatten().flatten().copied().collect() };
        let own = shards[..2].iter().map(|[mean, squares]| [&mean[..], &squares[..]]);
        let merged = merge(own, 3, &exchange, "bn").unwrap();
        let [mean, squares] = moments(&rows);
        assert_eq!(merged.count, 12);
        for c in 0..2 {
            assert_within!(merged.mean[c], mean[c], f64(20, mean[c]));
            // Squares of distances between means of about 1000.
            assert_within!(merged.squares[c], squares[c], f64(60, squares[c] + 100.0 * mean[c]));
        }
        let (totals, count) =
            total(shards[..2].iter().map(|[mean, _]| &mean[..]), &FirstOfTwo { other: vec![0.5; 6] });
        assert_eq!(count, 5);
        assert_within!(totals[0], shards[0][0][0] + shards[1][0][0] + 1.5, f64(5, 10.0));
        let single = FirstOfTwo { other: Vec::new() };
        let error = merge([[&[1.0][..], &[0.0]]].into_iter(), 1, &single, "bn").unwrap_err();
        assert!(error.to_string().contains("a single value has no variance"), "{error}");
    }

    #[test]
    fn running_statistics_move_by_a_tenth_toward_mean_and_unbiased_variance() {
        let device = Cpu::default();
        let param =
            |name: &str, values: &[f32]| Param::new(&device, name, &[2], Role::Statistic, values).unwrap();
        let (mean, variance) = (param("mean", &[1.0, -2.0]), param("variance", &[1.0, 4.0]));
        let running = RunningStatistics { mean: &mean, variance: &variance };
        // The third channel is padding.
        mean.record_moments();
        running.update(BatchMoments { count: 4, mean: &[2.0, 8.0, 9.0], variance: &[3.0, 0.0, 9.0] });
        running.update(BatchMoments { count: 4, mean: &[5.0, 6.0, 9.0], variance: &[3.0, 0.0, 9.0] });
        let recorded = mean.take_moments(&device).unwrap();
        assert_eq!(recorded, [2.0, 8.0, 5.0, 6.0]);
        let mut repeated = [1.0, -2.0];
        repeat_moves(&mut repeated, &recorded);
        assert_eq!(repeated, **mean.value());
        mean.value_mut().copy_from_slice(&[1.0, -2.0]);
        variance.value_mut().copy_from_slice(&[1.0, 4.0]);
        running.update(BatchMoments { count: 4, mean: &[2.0, 8.0, 9.0], variance: &[3.0, 0.0, 9.0] });
        assert!(mean.take_moments(&device).unwrap().is_empty());
        for (got, expected) in mean.value().iter().zip([1.1, -1.0]) {
            assert_within!(*got, expected, f32(3, 3.0));
        }
        // A biased variance of 3 over 4 rows is an unbiased variance of 4.
        for (got, expected) in variance.value().iter().zip([1.3, 3.6]) {
            assert_within!(*got, expected, f32(4, 8.0));
        }
    }
}
