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
                    // SAFETY: the library's function of this name has this type, as cudarc declares it.
                    Some(address) => unsafe {
                        let f: unsafe extern "C" fn($($ty),*) -> $status = std::mem::transmute(address);
                        f($($arg),*)
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

/// Makes sure that the linker takes the definitions of this module along, and names the libraries that are missing.
pub(crate) fn missing() -> Vec<&'static library::Library> {
    std::hint::black_box([driver::anchor(), cublas::anchor(), nvrtc::anchor(), cudnn::anchor()]);
    [&library::DRIVER, &library::CUBLAS, &library::NVRTC].into_iter().filter(|l| !l.is_there()).collect()
}
