//! Everything that this crate does with dfdx beyond dfdx's public interface.
//!
//! dfdx 0.13 tells neither which device a [`Cuda`] is nor where the elements of a tensor lie. Both are found
//! out here, in ways that another version may break. So [`check`] tries them when a context is created.

use crate::{Context, Error, Result};
use cudarc::driver::{CudaDevice, DevicePtr};
use dfdx::prelude::{Cuda, Shape, Storage, Tensor, TensorFromVec};
use std::fmt::{self, Debug, Write};
use std::sync::Arc;

/// The version of dfdx that this was written for. The workspace pins it.
pub(crate) const VERSION: &str = "0.13.0";

/// The device of dfdx's device, as cudarc has it.
///
/// dfdx keeps it private, except that of the memory that it allocates. So one element is allocated at each
/// call: clones of a [`Cuda`] share nothing else by which a device that was seen before could be known.
///
/// # Errors
/// If the device is out of memory.
pub(crate) fn device(device: &Cuda) -> Result<Arc<CudaDevice>> {
    Ok(<Cuda as Storage<f32>>::try_alloc_len(device, 1)?.device())
}

/// Where a tensor's elements lie.
///
/// # Errors
/// If dfdx does not tell.
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
    // SAFETY: the address is that of memory which dfdx has printed, since the first check has passed, and of
    // the tensor's own, since another tensor has printed another one. `first` keeps it alive.
    let read = unsafe { on.copy_out::<f32>(first_address, values.len()) }?;
    if read != values {
        return Err(Error::Dfdx("a tensor's elements are not at the address in its `Debug` output"));
    }
    Ok(())
}

/// The first address of device memory in the `Debug` output of a value. The output is cut off behind it: it
/// would go on with all elements, read from the device.
fn printed_address(value: &impl Debug) -> Option<u64> {
    let mut reader = AddressReader { text: String::new(), address: None };
    // Fails as soon as the address has been read.
    let _ = write!(reader, "{value:?}");
    reader.address
}

/// Output that ends as soon as it contains an address.
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

    /// Prints an address as a field, in several parts, and panics if more is printed.
    struct Printed {
        field: &'static str,
    }

    impl Debug for Printed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for part in ["Memory { ", self.field, ": 47", "11", ", len: 3"] {
                f.write_str(part)?;
            }
            assert!(self.field != "cu_device_ptr", "the output goes on behind the address");
            Ok(())
        }
    }

    #[test]
    fn an_address_is_read_from_debug_output_and_no_more() {
        assert_eq!(printed_address(&Printed { field: "cu_device_ptr" }), Some(4711));
        assert_eq!(printed_address(&Printed { field: "pointer" }), None);
    }

    #[test]
    fn the_version_is_the_one_that_the_workspace_pins() {
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
