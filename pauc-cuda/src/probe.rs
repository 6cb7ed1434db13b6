//! The GPUs, driver and libraries of this machine. Queried before anything else, since dfdx ends the process
//! if there is no GPU.

use crate::library::{self, Library};
use crate::{Context, Error, shims};
use cudarc::driver::result::device;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use dfdx::prelude::{Cache, Cuda};

/// A GPU known to the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number: `--device cuda:NUMBER`.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// The size of its memory in bytes.
    pub memory: usize,
    /// Its compute capability, such as 9.0.
    pub capability: (i32, i32),
}

/// Why CUDA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// A library is not installed.
    #[error("{} is not installed ({}): {}", .0.name, .0.problem().unwrap_or("not found"), .0.remedy)]
    Library(&'static Library),
    /// The driver does not start.
    #[error("the CUDA driver does not start: {0}")]
    Driver(String),
    /// The driver finds no GPU.
    #[error("the CUDA driver is installed, but finds no GPU")]
    NoGpu,
    /// The number is too large for this machine.
    #[error("there is no GPU {number}: this machine has cuda:0 to cuda:{}", .count - 1)]
    Number {
        /// The requested number.
        number: usize,
        /// The number of GPUs.
        count: usize,
    },
    /// The GPU cannot be used.
    #[error("cuda:{number} cannot be used: {error}")]
    Device {
        /// The GPU.
        number: usize,
        /// The cause.
        error: Error,
    },
}

fn start() -> Result<usize, Unavailable> {
    let missing = shims::missing();
    if !library::DRIVER.is_there() {
        return Err(Unavailable::Library(&library::DRIVER));
    }
    // SAFETY: `cuInit` has no preconditions and may be called any number of times.
    let status = unsafe { sys::cuInit(0) };
    match status {
        CUresult::CUDA_SUCCESS => {}
        CUresult::CUDA_ERROR_NO_DEVICE => return Err(Unavailable::NoGpu),
        other => return Err(Unavailable::Driver(format!("{other:?}"))),
    }
    let count = device::get_count().map_err(|e| Unavailable::Driver(Error::from(e).to_string()))?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(Unavailable::NoGpu);
    }
    match missing.first() {
        Some(library) => Err(Unavailable::Library(library)),
        None => Ok(count),
    }
}

/// Returns the GPUs of this machine, at least one.
///
/// # Errors
/// If the driver, a library or a GPU is missing. The error names it.
pub fn gpus() -> Result<Vec<Gpu>, Unavailable> {
    (0..start()?).map(|n| describe(n).map_err(|error| Unavailable::Device { number: n, error })).collect()
}

fn describe(number: usize) -> Result<Gpu, Error> {
    let device = device::get(number as i32)?;
    let mut name = [0 as std::ffi::c_char; 128];
    // SAFETY: the buffer has the length passed, and the driver ends the name with a NUL within it.
    let name = unsafe {
        sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device).result()?;
        std::ffi::CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    // SAFETY: `device::get` returned the device.
    let (memory, attribute) = unsafe { (device::total_mem(device)?, |a| device::get_attribute(device, a)) };
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    Ok(Gpu { number, name, memory, capability })
}

/// Returns the GPU's UUID: no other GPU has it, on any machine.
///
/// # Errors
/// If the driver fails.
pub fn unique_number(on: &Context) -> Result<[u8; 16], Error> {
    let device = device::get(on.device().ordinal() as i32)?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: the driver writes 16 bytes.
    unsafe { sys::cuDeviceGetUuid(&mut uuid, device).result()? };
    Ok(uuid.bytes.map(|byte| byte as u8))
}

/// Opens dfdx's device of that number, with its cache of buffers enabled.
///
/// # Errors
/// If the driver, a library or this GPU is missing. The error names it.
pub fn open(number: usize) -> Result<Cuda, Unavailable> {
    let count = start()?;
    if number >= count {
        return Err(Unavailable::Number { number, count });
    }
    let fail = |error: Error| Unavailable::Device { number, error };
    let device = Cuda::try_build(number, 0).map_err(|e| fail(e.into()))?;
    device.try_enable_cache().map_err(|e| fail(e.into()))?;
    Context::of(&device).and_then(|c| c.keep_memory()).map_err(fail)?;
    Ok(device)
}
