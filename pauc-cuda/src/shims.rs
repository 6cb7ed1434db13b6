//! Shims for the functions of NVIDIA's libraries that cudarc calls. Each loads its library at its first call.
//!
//! cudarc would make the linker record the libraries in the program, which then would not start on a machine
//! without them. Its feature `ci-check`, which this crate sets, avoids that. Instead, the functions are
//! defined here under their own names. If a library is missing, they return its status for "not initialized".
//! [`crate::open`] checks for the libraries before calling anything, so users never see that status.

mod cublas;
mod cudnn;
mod driver;
mod nvrtc;

use crate::library;
use cudarc::cublas::sys::cublasStatus_t;
use cudarc::cudnn::sys::cudnnStatus_t;
use cudarc::driver::sys::CUresult;
use cudarc::nvrtc::sys::nvrtcResult;

/// Defines functions that call the library's functions of the same name. `if nothing => instead` is for calls
/// with nothing to do, which dfdx makes for empty tensors and a driver may reject: only `instead` is
/// executed.
macro_rules! forward {
    ($library:ident: $status:ty, $done:expr, $absent:expr;
        $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(if $nothing:expr => $instead:expr)?;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::missing_safety_doc)]
            unsafe extern "C" fn $name($($arg: $ty),*) -> $status {
                $(if $nothing {
                    // SAFETY: callers uphold the contract of the library's function, including valid
                    // pointers.
                    #[allow(unused_unsafe)]
                    unsafe { $instead };
                    return $done;
                })?
                static ADDRESS: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
                let address = *ADDRESS.get_or_init(|| crate::library::$library.address(stringify!($name)));
                match address {
                    // SAFETY: cudarc declares the library's function of this name with this type. Only its
                    // status is read as a number, since other versions of the library have additional values.
                    Some(address) => unsafe {
                        let f: unsafe extern "C" fn($($ty),*) -> u32 = std::mem::transmute(address);
                        crate::shims::Status::of(f($($arg),*))
                    },
                    None => $absent,
                }
            }
        )*

        /// Uses all functions of this file, so that the linker keeps them.
        pub(super) fn anchor() -> usize {
            let all = [$($name as *const () as usize),*];
            all.iter().fold(0, |sum, a| sum ^ a)
        }
    };
}
use forward;

/// A library's status, with the values of cudarc's version of the library.
trait Status: Copy {
    /// Converts a number to a status. Values that newer versions have added become the nearest known one.
    fn of(code: u32) -> Self;
}

/// The known numbers of a status, and the value for all others.
macro_rules! statuses {
    ($name:ty: $known:pat, |$code:ident| $other:expr) => {
        impl Status for $name {
            fn of($code: u32) -> Self {
                match $code {
                    // SAFETY: the type is `repr(u32)` and has a value for each number of the pattern.
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

/// Returns the libraries that are missing. Calling it also makes the linker keep the shims.
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
        // Values unknown to cudarc's versions of the libraries.
        assert_eq!(CUresult::of(225), CUresult::CUDA_ERROR_UNKNOWN);
        assert_eq!(cublasStatus_t::of(2), cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR);
        assert_eq!(nvrtcResult::of(12), nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR);
        assert_eq!(cudnnStatus_t::of(1002), cudnnStatus_t::CUDNN_STATUS_NOT_INITIALIZED);
        assert_eq!(cudnnStatus_t::of(3007), cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED);
        assert_eq!(cudnnStatus_t::of(u32::MAX), cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR);
    }
}
