//! Nearest centroids: products through cuBLAS, one tile at a time, each followed by a fused arg-min.

use crate::kernel_args::{In, Out, args};
use crate::matmul::{MatrixRef, product};
use crate::rows::column_sums;
use crate::{Buffer, Context, Error, Result};
use cudarc::driver::CudaSlice;
use std::rc::Rc;

/// Elements per tile of scores: 32 MiB, which stay in the cache of a large GPU until they are read.
const TILE: usize = 1 << 23;
/// The minimum number of rows per tile, to keep the device busy.
const LEAST_ROWS: usize = 256;

/// Rows in device memory, to be assigned to centroids.
#[derive(Debug)]
pub struct DeviceRows {
    on: Rc<Context>,
    rows: Buffer,
    count: usize,
    dim: usize,
    labels: CudaSlice<u32>,
    sq_dist: CudaSlice<f32>,
    /// The last tile of scores; the next assignment reuses its memory.
    scores: Option<Buffer>,
}

impl DeviceRows {
    /// Copies rows of `dim` values to the device.
    ///
    /// # Errors
    /// If the number of values is not a multiple of `dim`, or the device is out of memory.
    pub fn new(on: &Rc<Context>, data: &[f32], dim: usize) -> Result<Self> {
        if dim == 0 || !data.len().is_multiple_of(dim) || data.len() / dim > u32::MAX as usize {
            let message = format!("{} values do not form rows of {dim}", data.len());
            return Err(Error::Length { operation: "rows", message });
        }
        let count = data.len() / dim;
        Ok(DeviceRows {
            on: on.clone(),
            rows: Buffer::from_host(on, data)?,
            count,
            dim,
            labels: on.device().alloc_zeros(count.max(1))?,
            sq_dist: on.device().alloc_zeros(count.max(1))?,
            scores: None,
        })
    }

    /// Returns the number of centroids.
    fn check_centroids(&self, centroids: &[f32]) -> Result<usize> {
        let k = centroids.len() / self.dim;
        if k == 0 || !centroids.len().is_multiple_of(self.dim) || k > u32::MAX as usize {
            let message = format!("{} values do not form centroids of {} values", centroids.len(), self.dim);
            return Err(Error::Length { operation: "centroids", message });
        }
        Ok(k)
    }

    /// Returns each row's nearest centroid, the lowest index among equals, and the squared distance to it.
    ///
    /// # Shapes
    /// `centroids` (K, D) → N labels, N distances
    ///
    /// # Errors
    /// If the centroids have another width, or the device fails.
    pub fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)> {
        self.assign(centroids, false)?;
        if self.count == 0 {
            return Ok(Default::default());
        }
        Ok((self.on.download(&self.labels)?, self.on.download(&self.sq_dist)?))
    }

    /// Lowers each row's `square` to the squared distance to the nearest of these centroids, if that is
    /// smaller.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn lower(&mut self, centroids: &[f32], square: &mut [f32]) -> Result<()> {
        if square.len() != self.count {
            let message = format!("{} distances for {} rows", square.len(), self.count);
            return Err(Error::Length { operation: "lower", message });
        }
        if square.is_empty() {
            return Ok(());
        }
        self.on.device().htod_sync_copy_into(square, &mut self.sq_dist)?;
        self.assign(centroids, true)?;
        square.copy_from_slice(&self.on.download(&self.sq_dist)?);
        Ok(())
    }

    /// Finds each row's nearest centroid and the squared distance to it. With `lower`, keeps a smaller
    /// existing distance.
    fn assign(&mut self, centroids: &[f32], lower: bool) -> Result<()> {
        let k = self.check_centroids(centroids)?;
        if self.count == 0 {
            return Ok(());
        }
        let (on, dim) = (self.on.clone(), self.dim);
        // Subtracting their mean keeps the low bits of features that are far from the origin.
        let (centroids, mut sums) = (Buffer::from_host(&on, centroids)?, Buffer::zeros(&on, dim)?);
        column_sums(&on, centroids.view(), &mut sums)?;
        let (mut centered, mut bias) = (Buffer::uninit(&on, k * dim)?, Buffer::uninit(&on, k)?);
        let (k32, dim32) = (k as u32, dim as u32);
        let args = args![In(&centroids), In(&sums), k32, dim32, Out(&mut centered), Out(&mut bias)];
        // SAFETY: `check_centroids` has established k centroids of dim values. The other buffers were
        // allocated above: k·dim, dim and k.
        unsafe { on.launch("pauc_around", k, args) }?;
        let tile = (TILE / k).max(LEAST_ROWS).min(self.count);
        let mut scores = match self.scores.take() {
            Some(scores) if scores.len() >= tile * k => scores,
            _ => Buffer::uninit(&on, tile * k)?,
        };
        for start in (0..self.count).step_by(tile) {
            let count = tile.min(self.count - start);
            let x = self.rows.view().part(start * dim, count * dim);
            let (a, b) = (MatrixRef::new(x, count, dim), MatrixRef::new(centered.view(), k, dim).t());
            product(&on, a, b, 0.0, scores.view_mut())?;
            let labels = Out(self.labels.slice_mut(start..start + count));
            let sq_dist = Out(self.sq_dist.slice_mut(start..start + count));
            let args =
                args![In(&scores), In(&bias), In(x), In(&centroids), k32, dim32, lower, labels, sq_dist];
            // SAFETY: one block per row. x has `count` rows of dim values, and the scores have `count` rows
            // of k. Labels and distances were sliced to `count`.
            unsafe { on.launch("pauc_nearest", count, args) }?;
        }
        self.scores = Some(scores);
        Ok(())
    }

    /// Replaces each centroid that has rows by their mean. The rows of centroid c are
    /// `order[starts[c]..starts[c + 1]]`.
    ///
    /// # Shapes
    /// `order` up to N, `starts` K + 1, `centroids` (K, D)
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        let k = self.check_centroids(centroids)?;
        let rising = starts.windows(2).all(|w| w[0] <= w[1]) && starts.last() == Some(&order.len());
        if starts.len() != k + 1 || !rising || order.iter().any(|i| *i as usize >= self.count) {
            let message = format!(
                "{} row numbers in {} ascending offsets for {k} centroids",
                order.len(),
                starts.len()
            );
            return Err(Error::Length { operation: "means", message });
        }
        if order.is_empty() {
            return Ok(());
        }
        let device = self.on.device();
        let starts: Vec<u32> = starts.iter().map(|s| *s as u32).collect();
        let (order, starts) = (device.htod_sync_copy(order)?, device.htod_sync_copy(&starts)?);
        let mut means = Buffer::from_host(&self.on, centroids)?;
        let args = args![In(&self.rows), In(&order), In(&starts), self.dim as u32, Out(&mut means)];
        // SAFETY: the check above has established that `starts` has k + 1 ascending offsets into `order`, and
        // that `order` has row numbers below `count`. There are k means of dim values.
        unsafe { self.on.launch("pauc_means", k, args) }?;
        centroids.copy_from_slice(&means.to_host()?);
        Ok(())
    }
}
