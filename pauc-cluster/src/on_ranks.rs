//! Rows that several ranks search together.

use crate::nearest::Nearest;
use crate::seeding::lower_on_host;
use pauc_distributed::{Communicator, Plain, bytes_of, bytes_of_mut};
use pauc_kernels::distance::add_rows;
use pauc_traits::Result;
use pauc_traits::clusterer::{ClustersOnDevice, RowsOnDevice};
use pauc_traits::probe::RowsView;
use rayon::prelude::*;
use std::ops::Range;

/// Ranks that cluster the same rows together. Each fits the same clusterer, and they share the work that grows with the
/// number of rows. The result has the bits of a single process.
#[derive(Clone, Copy, Debug)]
pub struct OnRanks<'a>(pub &'a dyn Communicator);

impl ClustersOnDevice for OnRanks<'_> {
    fn rows<'a>(&'a self, rows: RowsView<'a>) -> Result<Option<Box<dyn RowsOnDevice + 'a>>> {
        Ok(Some(Box::new(RankedRows { rows, ranks: self.0, nearest: None })))
    }
}

/// Rows of which this rank compares its share with the centroids. It computes the means of its share of the clusters.
struct RankedRows<'a> {
    rows: RowsView<'a>,
    ranks: &'a dyn Communicator,
    /// The nearest centroids of this rank's rows.
    nearest: Option<Nearest>,
}

impl RankedRows<'_> {
    /// Returns the share of a rank of `n` rows or clusters.
    fn share(&self, n: usize, rank: usize) -> Range<usize> {
        let ranks = self.ranks.size();
        n * rank / ranks..n * (rank + 1) / ranks
    }

    fn own(&self, n: usize) -> Range<usize> {
        self.share(n, self.ranks.rank())
    }

    /// Completes values, `width` for each of `n` rows or clusters, of which this rank has computed its share.
    fn complete<T: Plain>(&self, values: &mut [T], n: usize, width: usize) -> Result<()> {
        let part = |range: Range<usize>| range.start * width..range.end * width;
        let messages = self.ranks.all_gather_messages(bytes_of(&values[part(self.own(n))]))?;
        for (rank, message) in messages.iter().enumerate() {
            bytes_of_mut(&mut values[part(self.share(n, rank))]).copy_from_slice(message);
        }
        Ok(())
    }
}

impl RowsOnDevice for RankedRows<'_> {
    fn begin(&mut self) {
        self.nearest = None;
    }

    fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)> {
        let (n, cols, own) = (self.rows.rows, self.rows.cols, self.own(self.rows.rows));
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
        self.complete(&mut labels, n, 1)?;
        self.complete(&mut sq_dist, n, 1)?;
        Ok((labels, sq_dist))
    }

    fn lower(&mut self, centroids: &[f32], sq_dist: &mut [f32]) -> Result<()> {
        let (n, cols, own) = (self.rows.rows, self.rows.cols, self.own(self.rows.rows));
        let rows = RowsView::new(&self.rows.data[own.start * cols..own.end * cols], cols);
        lower_on_host(rows)(centroids, &mut sq_dist[own])?;
        self.complete(sq_dist, n, 1)
    }

    fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        let cols = self.rows.cols;
        let (k, data) = (centroids.len() / cols, self.rows.data);
        let own = self.own(k);
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
        self.complete(centroids, k, cols)
    }
}
