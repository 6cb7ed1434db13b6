//! What can go wrong on the device.

/// The result of an operation of the device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the device could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver refused.
    #[error("CUDA: {}", words(.0))]
    Driver(cudarc::driver::DriverError),
    /// cuBLAS refused.
    #[error("cuBLAS: {0:?}")]
    Blas(cudarc::cublas::result::CublasError),
    /// cuDNN refused.
    #[error("cuDNN: {0:?}")]
    Dnn(cudarc::cudnn::CudnnError),
    /// dfdx's own operation failed.
    #[error("dfdx: {0}")]
    Tensor(dfdx::prelude::CudaError),
    /// A kernel could not be compiled.
    #[error("the kernels of `{file}` do not compile: {message}")]
    Compile {
        /// The kernels' file.
        file: &'static str,
        /// The compiler's words.
        message: String,
    },
    /// A library is missing.
    #[error("{name} is missing ({problem}): {remedy}")]
    Missing {
        /// The library.
        name: &'static str,
        /// What the system said.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Lengths that have to agree do not.
    #[error("{operation}: {message}")]
    Length {
        /// The operation.
        operation: &'static str,
        /// The lengths.
        message: String,
    },
    /// A tensor of dfdx does not show where it lies: another version of dfdx than this was written for.
    #[error("this version of dfdx does not tell the address of a tensor")]
    Address,
}

impl Error {
    /// Whether the device has not as much memory as was asked for.
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

/// For operations on dfdx's tape, whose error is dfdx's own: what it has no word for is an unknown error of the driver.
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

fn words(e: &cudarc::driver::DriverError) -> String {
    // `Debug` of cudarc asks the driver for its words.
    format!("{e:?}").trim_start_matches("DriverError").trim_matches(['(', ')']).to_string()
}
