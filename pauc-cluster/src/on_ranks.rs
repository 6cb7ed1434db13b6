//! Rows that several ranks search together.

use crate::nearest::Nearest;
use crate::seeding::lower_on_host;
use pauc_distributed::{Communicator, Plain, bytes_of, joined};
use pauc_kernels::distance::add_rows;
use pauc_traits::Result;
use pauc_traits::clusterer::{ClustersOnDevice, FitContext, RowsOnDevice};
use pauc_traits::probe::RowsView;
use rayon::prelude::*;
use std::ops::Range;

/// Ranks that cluster the same rows together. Each fits the same clusterer, and they divide the work that grows with
/// the number of rows. The result has the bits of a single process.
#[derive(Clone, Copy, Debug)]
pub struct OnRanks<'a>(pub &'a dyn Communicator);

impl ClustersOnDevice for OnRanks<'_> {
    fn rows<'a>(&'a self, rows: RowsView<'a>) -> Result<Option<Box<dyn RowsOnDevice + 'a>>> {
        Ok(Some(Box::new(RankedRows { rows, shared: Shared(Some(self)), nearest: None })))
    }

    fn place(&self) -> (usize, usize) {
        (self.0.rank(), self.0.size())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(self.0.all_gather_messages(own)?)
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

    /// Returns which of `n` computations this rank does. Blocks of `block` computations stay together.
    pub fn own(&self, n: usize, block: usize) -> Range<usize> {
        let (rank, ranks) = self.0.map_or((0, 1), |device| device.place());
        let start = |rank: usize| (n.div_ceil(block) * rank / ranks * block).min(n);
        start(rank)..start(rank + 1)
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

    /// Completes the values of `n` computations, of which this rank has done [its own](Shared::own).
    ///
    /// # Shapes
    /// values: the same number for each computation
    ///
    /// # Errors
    /// If another rank has failed.
    pub fn complete<T: Plain + Default>(&self, values: &mut [T], n: usize, block: usize) -> Result<()> {
        if self.0.is_none() || n == 0 {
            return Ok(());
        }
        let (own, width) = (self.own(n, block), values.len() / n);
        values.copy_from_slice(&self.concatenate(values[own.start * width..own.end * width].to_vec())?);
        Ok(())
    }
}

/// Rows of which this rank compares its share with the centroids. It computes the means of its share of the clusters.
struct RankedRows<'a> {
    rows: RowsView<'a>,
    shared: Shared<'a>,
    /// The nearest centroids of this rank's rows.
    nearest: Option<Nearest>,
}

impl RowsOnDevice for RankedRows<'_> {
    fn begin(&mut self) {
        self.nearest = None;
    }

    fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)> {
        let (n, cols, own) = (self.rows.rows, self.rows.cols, self.shared.own(self.rows.rows, 1));
        let rows = RowsView::new(&self.rows.data[own.start * cols..own.end * cols], cols);
        let nearest = match self.nearest.take() {
            None => Nearest::find(rows, centroids)?,
            Some(mut nearest) => {
                nearest.follow(rows, centroids)?;
                nearest
            }
        };
        let (mut labels, mut sq_dist) = (vec![0u32; n], vec![0.0f32; n]);
        labels[own.clone()].copy_from_slice(&nearest.labels);
        sq_dist[own].copy_from_slice(&nearest.sq_dist);
        self.nearest = Some(nearest);
        self.shared.complete(&mut labels, n, 1)?;
        self.shared.complete(&mut sq_dist, n, 1)?;
        Ok((labels, sq_dist))
    }

    fn lower(&mut self, centroids: &[f32], sq_dist: &mut [f32]) -> Result<()> {
        let (n, cols, own) = (self.rows.rows, self.rows.cols, self.shared.own(self.rows.rows, 1));
        let rows = RowsView::new(&self.rows.data[own.start * cols..own.end * cols], cols);
        lower_on_host(rows)(centroids, &mut sq_dist[own])?;
        self.shared.complete(sq_dist, n, 1)
    }

    fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        let cols = self.rows.cols;
        let (k, data) = (centroids.len() / cols, self.rows.data);
        let own = self.shared.own(k, 1);
        let part = &mut centroids[own.start * cols..own.end * cols];
        part.par_chunks_mut(cols).zip(own).for_each_init(
            || vec![0.0f64; cols],
            |sum, (centroid, c)| {
                let members = &order[starts[c]..starts[c + 1]];
                if members.is_empty() {
                    return;
                }
                sum.fill(0.0);
                add_rows(data, cols, members, sum);
                for (v, s) in centroid.iter_mut().zip(sum.iter()) {
                    *v = (s / members.len() as f64) as f32;
                }
            },
        );
        self.shared.complete(centroids, k, 1)
    }
}
