//! Nearest centroids: products through cuBLAS, tile by tile, with the arg-min fused behind them.

use crate::rows::{Factor, column_sums, product};
use crate::{Buffer, Context, Error, Result, args};
use cudarc::driver::{CudaSlice, DevicePtr};
use std::rc::Rc;

/// Elements of a tile of scores: 32 MiB, which stay in the cache of a large GPU until they are read.
const TILE: usize = 1 << 23;
/// Rows of a tile at least, so that products keep the device busy.
const LEAST: usize = 256;

/// Rows in the device's memory.
#[derive(Debug)]
pub struct Rows {
    on: Rc<Context>,
    rows: Buffer,
    count: usize,
    dim: usize,
    index: CudaSlice<u32>,
    square: CudaSlice<f32>,
    scores: Option<Buffer>,
}

impl Rows {
    /// A copy of rows of `dim` values.
    ///
    /// # Errors
    /// If they are no whole number of rows, or the device has not enough memory.
    pub fn new(on: &Rc<Context>, data: &[f32], dim: usize) -> Result<Self> {
        if dim == 0 || !data.len().is_multiple_of(dim) || data.len() / dim > u32::MAX as usize {
            let message = format!("{} values in rows of {dim}", data.len());
            return Err(Error::Length { operation: "rows", message });
        }
        let count = data.len() / dim;
        Ok(Rows {
            on: on.clone(),
            rows: Buffer::from_host(on, data)?,
            count,
            dim,
            index: on.device().alloc_zeros(count.max(1))?,
            square: on.device().alloc_zeros(count.max(1))?,
            scores: None,
        })
    }

    fn centroids(&self, centroids: &[f32]) -> Result<usize> {
        let k = centroids.len() / self.dim;
        if k == 0 || !centroids.len().is_multiple_of(self.dim) || k > u32::MAX as usize {
            let message = format!("{} values in centroids of {}", centroids.len(), self.dim);
            return Err(Error::Length { operation: "centroids", message });
        }
        Ok(k)
    }

    /// Each row's nearest centroid, the lowest among equals, and its squared distance.
    ///
    /// # Errors
    /// If the centroids have another width, or the device fails.
    pub fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)> {
        self.compare(centroids, false)?;
        if self.count == 0 {
            return Ok(Default::default());
        }
        Ok((self.on.download(&self.index)?, self.on.download(&self.square)?))
    }

    /// Lowers each row's `square` to the squared distance to the nearest of these centroids, where that is lower.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn lower(&mut self, centroids: &[f32], square: &mut [f32]) -> Result<()> {
        if square.len() != self.count {
            let message = format!("{} distances of {} rows", square.len(), self.count);
            return Err(Error::Length { operation: "lower", message });
        }
        if square.is_empty() {
            return Ok(());
        }
        self.on.device().htod_sync_copy_into(square, &mut self.square)?;
        self.compare(centroids, true)?;
        square.copy_from_slice(&self.on.download(&self.square)?);
        Ok(())
    }

    /// Finds each row's nearest centroid and the squared distance to it; if `lower`, distances that are smaller already
    /// stay.
    fn compare(&mut self, centroids: &[f32], lower: bool) -> Result<()> {
        self.on.clone().in_f32(|| self.compare_now(centroids, lower))
    }

    fn compare_now(&mut self, centroids: &[f32], lower: bool) -> Result<()> {
        let k = self.centroids(centroids)?;
        if self.count == 0 {
            return Ok(());
        }
        let (on, dim) = (self.on.clone(), self.dim);
        // Around their mean, which keeps the digits of features that lie far from the origin.
        let (exact, mut sums) = (Buffer::from_host(&on, centroids)?, Buffer::zeros(&on, dim)?);
        column_sums(&on, exact.view(), &mut sums)?;
        let (around, bias) = (Buffer::any(&on, k * dim)?, Buffer::any(&on, k)?);
        let args = args![&exact, &sums, k as u32, dim as u32, &around, &bias];
        // SAFETY: the centroids and what becomes of them are k rows of dim, the sums dim, the biases k.
        unsafe { on.launch("pauc_around", k, args) }?;
        let tile = (TILE / k).max(LEAST).min(self.count);
        let scores = match self.scores.take() {
            Some(scores) if scores.len() >= tile * k => scores,
            _ => Buffer::any(&on, tile * k)?,
        };
        let mut scores = scores;
        for start in (0..self.count).step_by(tile) {
            let some = tile.min(self.count - start);
            let x = self.rows.view().part(start * dim, some * dim);
            product(
                &on,
                Factor::new(x, some, dim),
                Factor::new(around.view(), k, dim).t(),
                0.0,
                scores.view_mut(),
            )?;
            let index = *self.index.device_ptr() + (start * size_of::<u32>()) as u64;
            let square = *self.square.device_ptr() + (start * size_of::<f32>()) as u64;
            let args = args![&scores, &bias, x, &exact, k as u32, dim as u32, lower, index, square];
            // SAFETY: there are so many rows of scores of k, features of dim, indices and distances.
            unsafe { on.launch("pauc_nearest", some, args) }?;
        }
        self.scores = Some(scores);
        Ok(())
    }

    /// Replaces each centroid that has rows by their mean; the rows of centroid c are `order[starts[c]..starts[c + 1]]`.
    ///
    /// # Errors
    /// If lengths disagree, or the device fails.
    pub fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        let k = self.centroids(centroids)?;
        let rising = starts.windows(2).all(|w| w[0] <= w[1]) && starts.last() == Some(&order.len());
        if starts.len() != k + 1 || !rising || order.iter().any(|i| *i as usize >= self.count) {
            let message = format!("{} rows of {k} centroids in {} runs", order.len(), starts.len());
            return Err(Error::Length { operation: "means", message });
        }
        if order.is_empty() {
            return Ok(());
        }
        let device = self.on.device();
        let starts: Vec<u32> = starts.iter().map(|s| *s as u32).collect();
        let (order, starts) = (device.htod_sync_copy(order)?, device.htod_sync_copy(&starts)?);
        let on_device = Buffer::from_host(&self.on, centroids)?;
        let (order, starts) = (*order.device_ptr(), *starts.device_ptr());
        let args = args![&self.rows, order, starts, self.dim as u32, &on_device];
        // SAFETY: the order names rows that are there, and the runs cover it.
        unsafe { self.on.launch("pauc_means", k, args) }?;
        centroids.copy_from_slice(&on_device.to_host()?);
        Ok(())
    }
}
