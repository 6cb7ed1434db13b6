//! Shims for the functions of NVIDIA's libraries that cudarc calls: each loads its library when it is first
//! called.
//!
//! cudarc would have the linker record the libraries in the program, which then would not even start on a
//! machine without them. Its feature `ci-check`, which this crate sets, leaves that out. The functions are
//! defined here instead, each under its own name. Without the library they return the status of a library
//! that was not initialized. [`crate::open`] checks for the libraries before anything is called, so that
//! nobody sees that status.

mod cublas;
mod cudnn;
mod driver;
mod nvrtc;

use crate::library;
use cudarc::cublas::sys::cublasStatus_t;
use cudarc::cudnn::sys::cudnnStatus_t;
use cudarc::driver::sys::CUresult;
use cudarc::nvrtc::sys::nvrtcResult;

/// Defines functions that call those of the same name in a library. `if nothing => instead` is for calls with
/// nothing to do, which dfdx makes for empty tensors and which a driver may refuse: then only `instead` is
/// done.
macro_rules! forward {
    ($library:ident: $status:ty, $done:expr, $absent:expr;
        $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(if $nothing:expr => $instead:expr)?;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::missing_safety_doc)]
            unsafe extern "C" fn $name($($arg: $ty),*) -> $status {
                $(if $nothing {
                    // SAFETY: callers keep to the contract of the library's function, which includes valid
                    // pointers.
                    #[allow(unused_unsafe)]
                    unsafe { $instead };
                    return $done;
                })?
                static ADDRESS: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
                let address = *ADDRESS.get_or_init(|| crate::library::$library.address(stringify!($name)));
                match address {
                    // SAFETY: the library's function of this name has this type: cudarc declares it so. Only
                    // its status is read as a number, since other versions of the library have further
                    // values.
                    Some(address) => unsafe {
                        let f: unsafe extern "C" fn($($ty),*) -> u32 = std::mem::transmute(address);
                        crate::shims::Status::of(f($($arg),*))
                    },
                    None => $absent,
                }
            }
        )*

        /// A use of all functions of this file, so that the linker keeps them.
        pub(super) fn anchor() -> usize {
            let all = [$($name as *const () as usize),*];
            all.iter().fold(0, |sum, a| sum ^ a)
        }
    };
}
use forward;

/// A library's status, with the values that cudarc's version of the library has.
trait Status: Copy {
    /// The status of a number. One that newer versions of the library have added becomes the nearest of
    /// these.
    fn of(code: u32) -> Self;
}

/// The numbers of a status's values, and the value for all other numbers.
macro_rules! statuses {
    ($name:ty: $known:pat, |$code:ident| $other:expr) => {
        impl Status for $name {
            fn of($code: u32) -> Self {
                match $code {
                    // SAFETY: the type is `repr(u32)`, and has a value for each number of the pattern.
                    $known => unsafe { std::mem::transmute::<u32, $name>($code) },
                    _ => $other,
                }
            }
        }
    };
}

statuses!(
    CUresult: 0..=8 | 34 | 46 | 100..=102 | 200..=202 | 205..=224 | 300..=304 | 400 | 401 | 500 | 600 | 700..=705
        | 708..=720 | 800..=810 | 900..=912 | 999,
    |_code| CUresult::CUDA_ERROR_UNKNOWN
);
statuses!(
    cublasStatus_t: 0 | 1 | 3 | 7 | 8 | 11 | 13..=16,
    |_code| cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR
);
statuses!(nvrtcResult: 0..=11, |_code| nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR);
statuses!(
    // cuDNN 9 numbers its errors by kind, in thousands.
    cudnnStatus_t: 0..=14,
    |code| match code / 1000 {
        1 => cudnnStatus_t::CUDNN_STATUS_NOT_INITIALIZED,
        2 => cudnnStatus_t::CUDNN_STATUS_BAD_PARAM,
        3 => cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED,
        5 => cudnnStatus_t::CUDNN_STATUS_EXECUTION_FAILED,
        _ => cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR,
    }
);

/// The libraries that are missing. A use of this function also makes the linker keep the shims.
pub(crate) fn missing() -> Vec<&'static library::Library> {
    std::hint::black_box([driver::anchor(), cublas::anchor(), nvrtc::anchor(), cudnn::anchor()]);
    [&library::DRIVER, &library::CUBLAS, &library::NVRTC].into_iter().filter(|l| !l.is_there()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_status() {
        assert_eq!(CUresult::of(0), CUresult::CUDA_SUCCESS);
        assert_eq!(CUresult::of(2), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(cublasStatus_t::of(15), cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);
        assert_eq!(cudnnStatus_t::of(9), cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED);
        // Values that cudarc's versions of the libraries do not have.
        assert_eq!(CUresult::of(225), CUresult::CUDA_ERROR_UNKNOWN);
        assert_eq!(cublasStatus_t::of(2), cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR);
        assert_eq!(nvrtcResult::of(12), nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR);
        assert_eq!(cudnnStatus_t::of(1002), cudnnStatus_t::CUDNN_STATUS_NOT_INITIALIZED);
        assert_eq!(cudnnStatus_t::of(3007), cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED);
        assert_eq!(cudnnStatus_t::of(u32::MAX), cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR);
    }
}
