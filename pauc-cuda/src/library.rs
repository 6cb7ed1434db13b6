//! NVIDIA's libraries, loaded at the first call of one of their functions.

use std::sync::OnceLock;

/// A shared library and the file names to try.
#[derive(Debug)]
pub struct Library {
    /// Its name in messages.
    pub name: &'static str,
    /// File names, the preferred one first.
    files: &'static [&'static str],
    /// What to install if it is missing.
    pub remedy: &'static str,
    loaded: OnceLock<Result<libloading::Library, String>>,
}

impl Library {
    const fn new(name: &'static str, files: &'static [&'static str], remedy: &'static str) -> Self {
        Library { name, files, remedy, loaded: OnceLock::new() }
    }

    fn loaded(&self) -> Result<&libloading::Library, &str> {
        let load = || {
            let mut first = None;
            for file in self.files {
                // SAFETY: the initializers of NVIDIA's libraries have no preconditions.
                match unsafe { libloading::Library::new(*file) } {
                    Ok(library) => return Ok(library),
                    Err(e) => first = first.or(Some(system_message(&e))),
                }
            }
            Err(first.unwrap_or_default())
        };
        self.loaded.get_or_init(load).as_ref().map_err(String::as_str)
    }

    /// Returns whether the library can be loaded.
    pub fn is_there(&self) -> bool {
        self.loaded().is_ok()
    }

    /// Returns the system's reason why the library cannot be loaded; `None` if it can.
    pub fn problem(&self) -> Option<&str> {
        self.loaded().err()
    }

    /// Returns the address of a function, if the library has it.
    pub(crate) fn address(&self, function: &str) -> Option<usize> {
        let library = self.loaded().ok()?;
        // SAFETY: only the address is used. The caller casts it to the function's type.
        let symbol = unsafe { library.get::<unsafe extern "C" fn()>(function.as_bytes()) };
        symbol.ok().map(|f| *f as *const () as usize)
    }
}

/// Returns the system's message, which libloading stores as the error's source.
fn system_message(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(not(windows))]
mod files {
    pub const DRIVER: &[&str] = &["libcuda.so.1", "libcuda.so"];
    pub const CUBLAS: &[&str] = &["libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"];
    pub const NVRTC: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"];
    pub const CUDNN: &[&str] = &["libcudnn.so.9", "libcudnn.so.8", "libcudnn.so"];
    pub const NCCL: &[&str] = &["libnccl.so.2", "libnccl.so"];
}

#[cfg(windows)]
mod files {
    pub const DRIVER: &[&str] = &["nvcuda.dll"];
    pub const CUBLAS: &[&str] = &["cublas64_13.dll", "cublas64_12.dll", "cublas64_11.dll"];
    pub const NVRTC: &[&str] = &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"];
    pub const CUDNN: &[&str] = &["cudnn64_9.dll", "cudnn64_8.dll"];
    pub const NCCL: &[&str] = &["nccl.dll"];
}

/// libcuda, a part of NVIDIA's driver.
pub static DRIVER: Library = Library::new("the CUDA driver", files::DRIVER, "install NVIDIA's driver");
/// Matrix products.
pub static CUBLAS: Library =
    Library::new("cuBLAS", files::CUBLAS, "install the CUDA toolkit or the Python package nvidia-cublas");
/// The run-time compiler for kernels.
pub static NVRTC: Library =
    Library::new("NVRTC", files::NVRTC, "install the CUDA toolkit or the Python package nvidia-cuda-nvrtc");
/// Convolutions.
pub static CUDNN: Library =
    Library::new("cuDNN", files::CUDNN, "install cuDNN 8 or 9 or the Python package nvidia-cudnn");
/// Transfers from GPU to GPU.
pub static NCCL: Library =
    Library::new("NCCL", files::NCCL, "install NCCL 2.7 or later, or the Python package nvidia-nccl-cu13");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_reported_and_has_no_functions() {
        let none = Library::new("nothing", &["libpauc-has-no-such-library.so.0"], "invent it");
        assert!(!none.is_there() && none.address("cuInit").is_none());
        let problem = none.problem().unwrap_or_default();
        assert!(problem.contains("libpauc-has-no-such-library.so.0"), "{problem}");
    }
}
