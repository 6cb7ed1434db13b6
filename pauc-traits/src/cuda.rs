//! dfdx's `Cuda` as a device of this project.

mod backend;

pub use backend::CudaSoftmax;

use crate::backend::{Compute, PortableEncoder, PortableOptimizer};
use crate::clusterer::{ClustersOnDevice, RowsOnDevice};
use crate::probe::{Neighbors, ProbesOnDevice, RegressionOnDevice, RowsView};
use crate::{EncoderConfig, Error, Optimizer, Result};
use dfdx::prelude::{Cuda, Shape, Storage, Tensor};
use pauc_cuda::distance::DeviceRows;
use pauc_cuda::regression::Regression;
use pauc_cuda::{Buffer, Context, elementwise, multi_tensor, tensor};
use std::ops::Range;

/// Converts errors of the device to [`Error`]. This is not a `From`, because a second conversion into
/// [`Error`] would make types of closures ambiguous that are clear without CUDA.
pub trait OnDevice<T> {
    /// Returns the value, or [`Error::Device`].
    ///
    /// # Errors
    /// The error of the device.
    fn on_device(self) -> Result<T>;
}

impl<T> OnDevice<T> for pauc_cuda::Result<T> {
    fn on_device(self) -> Result<T> {
        self.map_err(|e| Error::Device(e.to_string()))
    }
}

/// Returns the context that belongs to dfdx's device.
fn context(device: &Cuda) -> Result<std::rc::Rc<Context>> {
    Context::of(device).on_device()
}

impl Compute for Cuda {
    type Buffer = Buffer;

    fn name(&self) -> String {
        match Context::of(self) {
            Ok(context) => format!("cuda:{}", context.device().ordinal()),
            Err(_) => "cuda".into(),
        }
    }
    fn upload(&self, values: &[f32]) -> Result<Buffer> {
        Buffer::from_host(&*context(self)?, values).on_device()
    }
    fn download(&self, buffer: &Buffer) -> Result<Vec<f32>> {
        buffer.to_host().on_device()
    }
    fn overwrite(&self, buffer: &mut Buffer, values: &[f32]) -> Result<()> {
        buffer.overwrite(values).on_device()
    }
    fn zero_buffer(&self, len: usize) -> Result<Buffer> {
        Buffer::zeros(&*context(self)?, len).on_device()
    }
    fn clear(&self, buffers: &mut [&mut Buffer]) -> Result<()> {
        multi_tensor::clear(&*context(self)?, buffers).on_device()
    }
    fn buffer_len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }
    fn buffer_tensor<S: Shape>(&self, buffer: &Buffer, shape: S) -> Result<Tensor<S, f32, Self>> {
        tensor::to_tensor(self, buffer.view(), shape).on_device()
    }
    fn add_gradient(&self, to: &mut Buffer, gradient: &<Self as Storage<f32>>::Vec) -> Result<()> {
        let on = to.context().on_device()?;
        elementwise::add(&on, to.view_mut(), 1.0, tensor::gradient(gradient)).on_device()
    }
    fn add_buffer(&self, to: &mut Buffer, summand: &Buffer) -> Result<()> {
        let on = to.context().on_device()?;
        elementwise::add(&on, to.view_mut(), 1.0, summand.view()).on_device()
    }

    fn clusters_on_device(&self) -> Option<&dyn ClustersOnDevice> {
        Some(self)
    }

    fn probes_on_device(&self) -> Option<&dyn ProbesOnDevice> {
        Some(self)
    }

    fn encoder(config: &dyn PortableEncoder) -> &dyn EncoderConfig<Self> {
        config
    }
    fn optimizer(config: &dyn PortableOptimizer) -> &dyn Optimizer<Self> {
        config
    }
}

impl ClustersOnDevice for Cuda {
    fn rows(&self, rows: RowsView<'_>) -> Result<Option<Box<dyn RowsOnDevice>>> {
        match DeviceRows::new(&context(self)?, rows.data, rows.cols) {
            Ok(rows) => Ok(Some(Box::new(rows))),
            Err(e) if e.is_out_of_memory() => Ok(None),
            e => e.on_device().map(|_| None),
        }
    }
}

impl RowsOnDevice for DeviceRows {
    fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)> {
        DeviceRows::nearest(self, centroids).on_device()
    }

    fn lower(&mut self, centroids: &[f32], sq_dist: &mut [f32]) -> Result<()> {
        DeviceRows::lower(self, centroids, sq_dist).on_device()
    }

    fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        DeviceRows::means(self, order, starts, centroids).on_device()
    }
}

impl ProbesOnDevice for Cuda {
    fn highest(
        &self,
        queries: RowsView<'_>,
        bank: RowsView<'_>,
        shift: Option<&[f32]>,
        k: usize,
    ) -> Result<Option<Vec<Neighbors>>> {
        use pauc_cuda::neighbors::{MAX_NEIGHBORS, top_k};
        if k > MAX_NEIGHBORS {
            return Ok(None);
        }
        let on = context(self)?;
        top_k(&on, queries.data, bank.data, bank.cols, shift, k).on_device().map(Some)
    }

    fn regression(
        &self,
        rows: RowsView<'_>,
        labels: &[u32],
        classes: usize,
    ) -> Result<Option<Box<dyn RegressionOnDevice>>> {
        let on = context(self)?;
        match Regression::new(&on, rows.data, rows.cols, labels, classes) {
            Ok(rows) => Ok(Some(Box::new(rows))),
            Err(e) if e.is_out_of_memory() => Ok(None),
            e => e.on_device().map(|_| None),
        }
    }
}

impl RegressionOnDevice for Regression {
    fn scatter(&self) -> Result<Vec<f64>> {
        Regression::scatter(self).on_device()
    }

    fn loss(&self, rows: Range<usize>, weights: &[f32], gradient: &mut [f64]) -> Result<f64> {
        Regression::loss(self, rows, weights, gradient).on_device()
    }

    fn right(&self, rows: Range<usize>, weights: &[f32]) -> Result<usize> {
        Regression::right(self, rows, weights).on_device()
    }
}
