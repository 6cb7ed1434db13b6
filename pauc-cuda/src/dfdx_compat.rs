//! Everything that this crate does with dfdx beyond dfdx's public interface.
//!
//! dfdx 0.13 exposes neither the device of a [`Cuda`] nor the address of a tensor's elements. This module
//! finds both by means that another version may break. So [`check`] tests them when a context is created.

use crate::{Context, Error, Result};
use cudarc::driver::{CudaDevice, DevicePtr};
use dfdx::prelude::{Cuda, Shape, Storage, Tensor, TensorFromVec};
use std::fmt::{self, Debug, Write};
use std::sync::Arc;

/// The version of dfdx that this module was written for. The workspace pins it.
pub(crate) const VERSION: &str = "0.13.0";

/// Returns the cudarc device of dfdx's device.
///
/// dfdx keeps the device private, but memory that it allocates names it. So each call allocates one element:
/// clones of a [`Cuda`] share nothing else that would identify a known device.
///
/// # Errors
/// If the device is out of memory.
pub(crate) fn device(device: &Cuda) -> Result<Arc<CudaDevice>> {
    Ok(<Cuda as Storage<f32>>::try_alloc_len(device, 1)?.device())
}

/// Returns the address of a tensor's elements.
///
/// # Errors
/// If dfdx does not print it.
pub(crate) fn address<S: Shape, T>(tensor: &Tensor<S, f32, Cuda, T>) -> Result<u64>
where
    Tensor<S, f32, Cuda, T>: Debug,
{
    printed_address(tensor).ok_or(Error::Dfdx("a tensor's `Debug` output does not contain its address"))
}

/// Checks that [`address`] works.
///
/// # Errors
/// If it does not, or the device fails.
pub(crate) fn check(device: &Cuda, on: &Context) -> Result<()> {
    let memory = <Cuda as Storage<f32>>::try_alloc_len(device, 1)?;
    if printed_address(&memory) != Some(*memory.device_ptr()) {
        return Err(Error::Dfdx("the `Debug` output of memory does not contain its address"));
    }
    let values = vec![1.5f32, -2.0, 0.25];
    let tensor = || device.try_tensor_from_vec(values.clone(), (values.len(),));
    let (first, second) = (tensor()?, tensor()?);
    let (first_address, second_address) = (address(&first)?, address(&second)?);
    if first_address == second_address {
        return Err(Error::Dfdx(
            "the first address in a tensor's `Debug` output is not that of its elements",
        ));
    }
    // SAFETY: the first check has passed, so dfdx prints addresses of its memory. Two tensors print different
    // addresses, so each prints its own. `first` keeps the memory alive.
    let read = unsafe { on.copy_out::<f32>(first_address, values.len()) }?;
    if read != values {
        return Err(Error::Dfdx("a tensor's elements are not at the address in its `Debug` output"));
    }
    Ok(())
}

/// Returns the first device address in the `Debug` output of a value. The output is cut off there, since it
/// would continue with all elements, read from the device.
fn printed_address(value: &impl Debug) -> Option<u64> {
    let mut reader = AddressReader { text: String::new(), address: None };
    // Fails as soon as the address has been read.
    let _ = write!(reader, "{value:?}");
    reader.address
}

/// A writer that fails as soon as its text contains an address.
struct AddressReader {
    text: String,
    address: Option<u64>,
}

impl Write for AddressReader {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        const BEFORE: &str = "cu_device_ptr: ";
        self.text.push_str(part);
        let Some(start) = self.text.find(BEFORE) else { return Ok(()) };
        let digits = &self.text[start + BEFORE.len()..];
        let Some(end) = digits.find(|c: char| !c.is_ascii_digit()) else { return Ok(()) };
        self.address = digits[..end].parse().ok();
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prints an address as a field, in several parts, and panics if printing continues.
    struct Printed {
        field: &'static str,
    }

    impl Debug for Printed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for part in ["Memory { ", self.field, ": 47", "11", ", len: 3"] {
                f.write_str(part)?;
            }
            assert!(self.field != "cu_device_ptr", "the output continues after the address");
            Ok(())
        }
    }

    #[test]
    fn debug_output_is_read_up_to_the_address_only() {
        assert_eq!(printed_address(&Printed { field: "cu_device_ptr" }), Some(4711));
        assert_eq!(printed_address(&Printed { field: "pointer" }), None);
    }

    #[test]
    fn the_version_matches_the_workspace() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        assert!(manifest.contains(&format!("dfdx = \"={VERSION}\"")), "{VERSION}");
    }

    #[test]
    fn an_error_names_the_version_and_what_to_do() {
        let text = Error::Dfdx("it prints nothing").to_string();
        assert!(text.contains(VERSION) && text.contains("it prints nothing"), "{text}");
        assert!(text.contains(&format!("`dfdx = \"={VERSION}\"`")), "{text}");
    }
}
