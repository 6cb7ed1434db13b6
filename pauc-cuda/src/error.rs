//! Errors of the device.

use crate::dfdx_compat::VERSION;

/// The result of an operation on the device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on the device failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CUDA driver reported an error.
    #[error("CUDA: {}", driver_message(.0))]
    Driver(cudarc::driver::DriverError),
    /// cuBLAS reported an error.
    #[error("cuBLAS: {0:?}")]
    Blas(cudarc::cublas::result::CublasError),
    /// cuDNN reported an error.
    #[error("cuDNN: {0:?}")]
    Dnn(cudarc::cudnn::CudnnError),
    /// An operation of dfdx failed.
    #[error("dfdx: {0}")]
    Tensor(dfdx::prelude::CudaError),
    /// A kernel could not be compiled.
    #[error("the kernels of `{file}` do not compile: {message}")]
    Compile {
        /// The file of kernels.
        file: &'static str,
        /// The compiler's message.
        message: String,
    },
    /// A library cannot be loaded.
    #[error("{name} is missing ({problem}): {remedy}")]
    Missing {
        /// The library.
        name: &'static str,
        /// What the system said.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Lengths or shapes that must agree do not.
    #[error("{operation}: {message}")]
    Length {
        /// The operation.
        operation: &'static str,
        /// The lengths.
        message: String,
    },
    /// An argument of a kernel launch is not what the kernel declares. Checked in builds with debug
    /// assertions.
    #[error("kernel `{kernel}`, parameter `{parameter}`: {message}")]
    Argument {
        /// The kernel.
        kernel: &'static str,
        /// The parameter, as the kernel's source calls it.
        parameter: &'static str,
        /// What was expected and what was given.
        message: String,
    },
    /// dfdx does not work as the version does for which this crate was written.
    #[error(
        "dfdx does not work as version {VERSION} does, for which pauc was written ({0}): build with \
         `dfdx = \"={VERSION}\"`, or adapt pauc-cuda/src/dfdx_compat.rs"
    )]
    Dfdx(&'static str),
    /// A bug: something that this crate or its caller guarantees does not hold.
    #[error("internal error: {0} (please report this)")]
    Internal(&'static str),
}

impl Error {
    /// Whether the device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Error::Driver(e) if e.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)
    }
}

impl From<cudarc::driver::DriverError> for Error {
    fn from(e: cudarc::driver::DriverError) -> Self {
        Error::Driver(e)
    }
}

impl From<cudarc::cublas::result::CublasError> for Error {
    fn from(e: cudarc::cublas::result::CublasError) -> Self {
        Error::Blas(e)
    }
}

impl From<cudarc::cudnn::CudnnError> for Error {
    fn from(e: cudarc::cudnn::CudnnError) -> Self {
        Error::Dnn(e)
    }
}

impl From<dfdx::prelude::CudaError> for Error {
    fn from(e: dfdx::prelude::CudaError) -> Self {
        Error::Tensor(e)
    }
}

/// For operations on dfdx's tape, which return dfdx's error type. What that cannot express becomes an unknown
/// driver error.
impl From<Error> for dfdx::prelude::CudaError {
    fn from(e: Error) -> Self {
        match e {
            Error::Driver(e) => e.into(),
            Error::Blas(e) => e.into(),
            Error::Tensor(e) => e,
            _ => cudarc::driver::DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_UNKNOWN).into(),
        }
    }
}

fn driver_message(e: &cudarc::driver::DriverError) -> String {
    // cudarc's `Debug` asks the driver for the error's name and text.
    format!("{e:?}").trim_start_matches("DriverError").trim_matches(['(', ')']).to_string()
}

/// The length that all of `lengths` are.
///
/// # Errors
/// If they differ.
pub(crate) fn same_length(operation: &'static str, lengths: &[usize]) -> Result<usize> {
    if lengths.iter().all(|l| *l == lengths[0]) {
        return Ok(lengths[0]);
    }
    Err(Error::Length { operation, message: format!("lengths {lengths:?} differ") })
}
