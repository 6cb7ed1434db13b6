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
        /// The file with the kernels.
        file: &'static str,
        /// The compiler's message.
        message: String,
    },
    /// NCCL reported an error.
    #[error("NCCL: {operation}: {message}; NCCL_DEBUG=WARN makes it say more")]
    Peers {
        /// The operation that failed, such as `sending`.
        operation: &'static str,
        /// NCCL's message.
        message: String,
    },
    /// A library cannot be loaded.
    #[error("{name} is missing ({problem}): {remedy}")]
    Missing {
        /// The library.
        name: &'static str,
        /// The system's error message.
        problem: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// Lengths or shapes disagree.
    #[error("{operation}: {message}")]
    Length {
        /// The operation.
        operation: &'static str,
        /// What was expected and what was given.
        message: String,
    },
    /// An argument of a kernel launch does not match the kernel's parameter. Checked with debug assertions.
    #[error("kernel `{kernel}`, parameter `{parameter}`: {message}")]
    Argument {
        /// The kernel.
        kernel: &'static str,
        /// The parameter's name in the kernel's source.
        parameter: &'static str,
        /// What was expected and what was given.
        message: String,
    },
    /// dfdx behaves differently from the version that this crate was written for.
    #[error(
        "this dfdx behaves differently from version {VERSION}, which pauc was written for ({0}): build with \
         `dfdx = \"={VERSION}\"`, or adapt pauc-cuda/src/dfdx_compat.rs"
    )]
    Dfdx(&'static str),
    /// A bug: an invariant of this crate or its caller does not hold.
    #[error("internal error: {0} (please report this)")]
    Internal(&'static str),
}

impl Error {
    /// Returns whether the device ran out of memory.
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

/// For operations on dfdx's tape, which return dfdx's error type. An error that it cannot express becomes an
/// unknown driver error.
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

/// Returns the common length.
///
/// # Errors
/// If they differ.
pub(crate) fn same_length(operation: &'static str, lengths: &[usize]) -> Result<usize> {
    if lengths.iter().all(|l| *l == lengths[0]) {
        return Ok(lengths[0]);
    }
    Err(Error::Length { operation, message: format!("lengths {lengths:?} differ") })
}
