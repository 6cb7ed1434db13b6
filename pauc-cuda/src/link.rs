//! The functions of NVIDIA's libraries that cudarc calls, found when they are first called.
//!
//! cudarc would have the linker record the libraries in the program, which then would not even start on a machine without
//! them. Its feature `ci-check`, which this crate sets, leaves that out; the functions are defined here instead, each under
//! its own name, and look their library up. Without the library they return the error of a library that was not
//! initialised. [`crate::open`] asks before anything is called, so that nobody sees that error.

mod cublas;
mod cudnn;
mod driver;
mod nvrtc;

use crate::library;
use cudarc::cublas::sys::cublasStatus_t;
use cudarc::cudnn::sys::cudnnStatus_t;
use cudarc::driver::sys::CUresult;
use cudarc::nvrtc::sys::nvrtcResult;

/// Defines functions that call those of the same name in a library; `if nothing => instead`: where there is nothing to do,
/// which a driver may call an error and dfdx asks for with empty tensors, that is done instead.
macro_rules! forward {
    ($library:ident: $status:ty, $done:expr, $absent:expr;
        $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(if $nothing:expr => $instead:expr)?;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::missing_safety_doc)]
            unsafe extern "C" fn $name($($arg: $ty),*) -> $status {
                $(if $nothing {
                    // SAFETY: as the caller of the library's function answers for.
                    #[allow(unused_unsafe)]
                    unsafe { $instead };
                    return $done;
                })?
                static FOUND: std::sync::OnceLock<Option<usize>> = std::sync::OnceLock::new();
                let found = *FOUND.get_or_init(|| crate::library::$library.address(stringify!($name)));
                match found {
                    // SAFETY: the library's function of this name has this type, as cudarc declares it, but for its
                    // status, which any version of the library may have more values of.
                    Some(address) => unsafe {
                        let f: unsafe extern "C" fn($($ty),*) -> u32 = std::mem::transmute(address);
                        crate::link::Status::of(f($($arg),*))
                    },
                    None => $absent,
                }
            }
        )*

        /// A name of this file, so that whoever uses it links the file.
        pub(super) fn anchor() -> usize {
            let all = [$($name as *const () as usize),*];
            all.iter().fold(0, |sum, a| sum ^ a)
        }
    };
}
use forward;

/// A library's status, as cudarc's version of the library numbers it.
trait Status: Copy {
    /// What a number means: what newer versions of the library have added is the nearest that there was.
    fn of(code: u32) -> Self;
}

/// The numbers of a status's values, and what all other numbers mean.
macro_rules! statuses {
    ($name:ty: $known:pat, |$code:ident| $other:expr) => {
        impl Status for $name {
            fn of($code: u32) -> Self {
                match $code {
                    // SAFETY: the type is a `u32` in memory, and has these values.
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
    // cuDNN 9 numbers by kind, a thousand each.
    cudnnStatus_t: 0..=14,
    |code| match code / 1000 {
        1 => cudnnStatus_t::CUDNN_STATUS_NOT_INITIALIZED,
        2 => cudnnStatus_t::CUDNN_STATUS_BAD_PARAM,
        3 => cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED,
        5 => cudnnStatus_t::CUDNN_STATUS_EXECUTION_FAILED,
        _ => cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR,
    }
);

/// Makes sure that the linker takes the definitions of this module along, and names the libraries that are missing.
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
        // What cudarc's versions of the libraries do not have.
        assert_eq!(CUresult::of(225), CUresult::CUDA_ERROR_UNKNOWN);
        assert_eq!(cublasStatus_t::of(2), cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR);
        assert_eq!(nvrtcResult::of(12), nvrtcResult::NVRTC_ERROR_INTERNAL_ERROR);
        assert_eq!(cudnnStatus_t::of(1002), cudnnStatus_t::CUDNN_STATUS_NOT_INITIALIZED);
        assert_eq!(cudnnStatus_t::of(3007), cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED);
        assert_eq!(cudnnStatus_t::of(u32::MAX), cudnnStatus_t::CUDNN_STATUS_INTERNAL_ERROR);
    }
}
