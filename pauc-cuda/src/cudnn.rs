//! cuDNN's handle.

use crate::{Error, Result, library};
use cudarc::cudnn::{result as dnn, sys};
use cudarc::driver::CudaDevice;
use std::sync::Arc;

/// A cuDNN handle on the device's stream.
#[derive(Debug)]
pub struct Handle {
    raw: sys::cudnnHandle_t,
}

impl Handle {
    pub(crate) fn new(device: &Arc<CudaDevice>) -> Result<Self> {
        if let Some(problem) = library::CUDNN.problem() {
            let library::Library { name, remedy, .. } = library::CUDNN;
            return Err(Error::Missing { name, problem: problem.into(), remedy });
        }
        device.bind_to_thread()?;
        let handle = Handle { raw: dnn::create_handle()? };
        // SAFETY: the handle was just created. The stream is the device's and outlives all of its handles.
        unsafe { dnn::set_stream(handle.raw, *device.cu_stream() as sys::cudaStream_t) }?;
        Ok(handle)
    }

    pub(crate) fn raw(&self) -> sys::cudnnHandle_t {
        self.raw
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was created in `new` and belongs to `self` alone. `drop` cannot report a
        // failure.
        let _ = unsafe { dnn::destroy_handle(self.raw) };
    }
}
