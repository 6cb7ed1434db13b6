//! Rows that several ranks hold and search together.
//!
//! Each rank holds a share of the rows, and compares its rows with the centroids. Results for single rows are gathered.
//! A sum over rows is passed from rank to rank, and each adds its own rows, so the sum has the bits of a single
//! process.

use crate::nearest::Nearest;
use crate::seeding::{gather, lower_on_host};
use pauc_distributed::{Communicator, Plain, bytes_of, bytes_of_mut, joined};
use pauc_kernels::distance::add_rows;
use pauc_traits::Result;
use pauc_traits::clusterer::{ClustersOnDevice, FitContext, RowsOnDevice};
use pauc_traits::probe::RowsView;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// The most sums in a block that a rank passes on: 4 MiB.
const PASSED: usize = 1 << 19;
/// The number of blocks for each rank: with few, ranks wait for each other; with many, messages are short.
const BLOCKS: usize = 4;

/// Ranks that cluster together. Each fits the same clusterer to its share of the rows. The shares are in the order of
/// the ranks. The result has the bits of a single process.
#[derive(Clone, Copy, Debug)]
pub struct OnRanks<'a>(pub &'a dyn Communicator);

impl ClustersOnDevice for OnRanks<'_> {
    fn rows<'a>(&'a self, rows: RowsView<'a>) -> Result<Option<Box<dyn RowsOnDevice + 'a>>> {
        let rows = Rows::new(rows, Shared(Some(self)))?;
        Ok(Some(Box::new(RankedRows { rows, nearest: None })))
    }

    fn place(&self) -> (usize, usize) {
        (self.0.rank(), self.0.size())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.0.all_gather_messages(own)?)
    }

    fn shift(&self, own: &[u8]) -> Result<Vec<u8>> {
        let mut from_previous = vec![0; own.len()];
        self.0.shift(own, &mut from_previous)?;
        Ok(from_previous)
    }
}

/// Independent computations, such as those for single rows, that this rank shares with others, if there are any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shared<'a>(Option<&'a dyn ClustersOnDevice>);

impl<'a> Shared<'a> {
    /// Shares with those that fit together with this process.
    pub fn of(context: &FitContext<'a>) -> Self {
        Shared(context.device.filter(|device| device.place().1 > 1))
    }

    /// Returns the number of this rank, and the number of ranks.
    pub fn place(&self) -> (usize, usize) {
        self.0.map_or((0, 1), |device| device.place())
    }

    /// Returns which of `n` computations this rank does.
    pub fn own(&self, n: usize) -> Range<usize> {
        let (rank, ranks) = self.place();
        n * rank / ranks..n * (rank + 1) / ranks
    }

    /// Concatenates what the ranks have computed.
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn concatenate<T: Plain + Default>(&self, own: Vec<T>) -> Result<Vec<T>> {
        match self.0 {
            None => Ok(own),
            Some(device) => Ok(joined(&device.gather(bytes_of(&own))?)),
        }
    }
}

/// The N rows of a fit. This process holds all of them, or its share.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    own: RowsView<'a>,
    /// The first row of each rank, and N.
    starts: Vec<usize>,
    shared: Shared<'a>,
}

impl<'a> Rows<'a> {
    /// Creates rows from the arguments of [`Clusterer::fit_checked`](pauc_traits::Clusterer::fit_checked).
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn of(own: RowsView<'a>, context: &FitContext<'a>) -> Result<Self> {
        Self::new(own, Shared::of(context))
    }

    /// Creates rows that this process holds alone.
    pub fn alone(rows: RowsView<'a>) -> Self {
        Rows { own: rows, starts: vec![0, rows.rows], shared: Shared::default() }
    }

    fn new(own: RowsView<'a>, shared: Shared<'a>) -> Result<Self> {
        let mut starts = vec![0];
        for count in shared.concatenate(vec![own.rows])? {
            starts.push(starts[starts.len() - 1] + count);
        }
        Ok(Rows { own, starts, shared })
    }

    /// Returns N.
    pub fn len(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the length of a row.
    pub fn cols(&self) -> usize {
        self.own.cols
    }

    /// Returns the rows that this process holds.
    pub fn own(&self) -> RowsView<'a> {
        self.own
    }

    /// Returns the range of row numbers that this process holds.
    pub fn range(&self) -> Range<usize> {
        let (rank, _) = self.shared.place();
        self.starts[rank]..self.starts[rank + 1]
    }

    /// Returns the ranks that hold the other rows.
    pub fn shared(&self) -> Shared<'a> {
        self.shared
    }

    /// Returns whether this process holds all rows.
    pub fn are_here(&self) -> bool {
        self.shared.place().1 == 1
    }

    /// Concatenates what all processes have computed for their rows, given the results of this one.
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn complete<T: Plain + Default>(&self, own: Vec<T>) -> Result<Vec<T>> {
        self.shared.concatenate(own)
    }

    /// Copies the rows with these numbers, in the given order, to every rank. All ranks ask for the same rows.
    ///
    /// # Shapes
    /// M numbers below N → (M, D), row-major
    ///
    /// # Errors
    /// If another rank has failed.
    ///
    /// # Panics
    /// If a number is not below N.
    pub fn gather(&self, chosen: &[u32]) -> Result<Vec<f32>> {
        let Some(device) = self.shared.0 else { return Ok(gather(self.own, chosen)) };
        let parts = device.gather(bytes_of(&self.part(chosen)))?;
        let mut parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut all = vec![0.0f32; chosen.len() * self.cols()];
        for (row, i) in all.chunks_exact_mut(self.cols()).zip(chosen) {
            let rank = self.starts.partition_point(|start| *start <= *i as usize) - 1;
            let (next, rest) = parts[rank].split_at(size_of_val(row));
            bytes_of_mut(row).copy_from_slice(next);
            parts[rank] = rest;
        }
        Ok(all)
    }

    /// Copies the rows with these numbers, in the given order, but only those that this process holds.
    pub fn part(&self, chosen: &[u32]) -> Vec<f32> {
        gather(self.own, &within(&self.range(), chosen))
    }

    /// Returns all rows. Each rank then needs the memory of all of them.
    ///
    /// # Shapes
    /// → (N, D), row-major
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn all(&self) -> Result<Cow<'a, [f32]>> {
        if self.are_here() {
            return Ok(Cow::Borrowed(self.own.data));
        }
        Ok(Cow::Owned(self.complete(self.own.data.to_vec())?))
    }

    /// Adds rows to the sums of K clusters: first those of rank 0, then those of rank 1, and so on. `add` adds the rows
    /// of this rank to the sum of one cluster, in their order.
    ///
    /// Each rank continues the sums of the rank before it. Ranks pass on one block of clusters at a time, so all ranks
    /// work at once. Complete blocks travel once more from rank to rank.
    ///
    /// # Shapes
    /// sums (K, D), row-major, the same on all ranks
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn add_up(&self, sums: &mut [f64], add: impl Fn(usize, &mut [f64]) + Sync) -> Result<()> {
        let (cols, (rank, ranks)) = (self.cols(), self.shared.place());
        let add_to = |first: usize, block: &mut [f64]| {
            let clusters = block.par_chunks_mut(cols).enumerate();
            clusters.for_each(|(c, sum)| add(first + c, sum));
        };
        let Some(device) = self.shared.0 else {
            add_to(0, sums);
            return Ok(());
        };
        let clusters_per_block = (sums.len() / cols).div_ceil(BLOCKS * ranks).min(PASSED / cols).max(1);
        let (len, all) = (clusters_per_block * cols, sums.len());
        let (blocks, values) = (all.div_ceil(len), |block: usize| block * len..((block + 1) * len).min(all));
        // What a rank sends: a block that the next one continues, then one that is complete.
        let mut passed = vec![0.0f64; 2 * len];
        for stage in 0..blocks + 2 * ranks - 1 {
            let (begun, complete) = passed.split_at_mut(len);
            if rank == 0 {
                // The last rank has completed it.
                complete.copy_from_slice(begun);
            }
            if let Some(block) = stage.checked_sub(ranks + rank).filter(|block| *block < blocks) {
                let values = values(block);
                sums[values.clone()].copy_from_slice(&complete[..values.len()]);
            }
            if let Some(block) = stage.checked_sub(rank).filter(|block| *block < blocks) {
                let values = values(block);
                let begun = &mut begun[..values.len()];
                if rank == 0 {
                    begun.copy_from_slice(&sums[values]);
                }
                add_to(block * clusters_per_block, begun);
            }
            passed = joined(&[device.shift(bytes_of(&passed))?]);
        }
        Ok(())
    }

    /// Replaces each centroid that has rows by their mean. The rows of centroid c are
    /// `order[starts[c]..starts[c + 1]]`, in ascending order.
    fn means(&self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        let (data, range) = (self.own.data, self.range());
        let mut sums = vec![0.0f64; centroids.len()];
        self.add_up(&mut sums, |c, sum| {
            add_rows(data, cols, &within(&range, &order[starts[c]..starts[c + 1]]), sum);
        })?;
        let sizes = starts.windows(2).map(|pair| pair[1] - pair[0]);
        let means = centroids.chunks_exact_mut(cols).zip(sums.chunks_exact(cols)).zip(sizes);
        for ((centroid, sum), size) in means.filter(|(_, size)| *size > 0) {
            centroid.iter_mut().zip(sum).for_each(|(v, s)| *v = (s / size as f64) as f32);
        }
        Ok(())
    }
}

/// Returns the chosen numbers that are in a range, relative to its start.
fn within(range: &Range<usize>, chosen: &[u32]) -> Vec<u32> {
    let own = chosen.iter().filter(|i| range.contains(&(**i as usize)));
    own.map(|i| i - range.start as u32).collect()
}

/// Rows on several ranks, as k-means searches them.
struct RankedRows<'a> {
    rows: Rows<'a>,
    /// The nearest centroids of this rank's rows.
    nearest: Option<Nearest>,
}

impl RowsOnDevice for RankedRows<'_> {
    fn begin(&mut self) {
        self.nearest = None;
    }

    fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)> {
        let rows = self.rows.own();
        let nearest = match self.nearest.take() {
            None => Nearest::find(rows, centroids)?,
            Some(mut nearest) => {
                nearest.follow(rows, centroids)?;
                nearest
            }
        };
        let (labels, sq_dist) = (nearest.labels.clone(), nearest.sq_dist.clone());
        self.nearest = Some(nearest);
        Ok((self.rows.complete(labels)?, self.rows.complete(sq_dist)?))
    }

    fn lower(&mut self, centroids: &[f32], sq_dist: &mut [f32]) -> Result<()> {
        let own = &mut sq_dist[self.rows.range()];
        lower_on_host(self.rows.own())(centroids, own)?;
        let own = own.to_vec();
        sq_dist.copy_from_slice(&self.rows.complete(own)?);
        Ok(())
    }

    fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        self.rows.means(order, starts, centroids)
    }
}
