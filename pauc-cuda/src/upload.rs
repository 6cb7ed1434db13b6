//! Images, uploaded in 8 bits and normalized on the device.

use crate::kernel_args::{In, Out, args};
use crate::{Context, Error, Result, tensor};
use cudarc::driver::DevicePtr;
use dfdx::prelude::{Cuda, Tensor, ZerosTensor};

/// 8-bit values, and the factor and shift of each channel.
pub type Bytes<'a> = (&'a [u8], &'a [(f32, f32)]);

/// (N, H, W, C).
type Images = Tensor<(usize, usize, usize, usize), f32, Cuda>;

/// The maximum number of channels that the kernel normalizes.
const MAX_CHANNELS: usize = 4;

/// Converts runs of 8-bit values to images. Uploads them without waiting for the device.
///
/// # Shapes
/// The runs together have as many values as `shape`, (N, H, W, C), with C ≤ 4.
///
/// # Errors
/// If lengths and shape disagree, or the device fails.
pub fn images(device: &Cuda, runs: &[Bytes<'_>], shape: (usize, usize, usize, usize)) -> Result<Images> {
    let on = Context::of(device)?;
    let (n, channels) = (runs.iter().map(|r| r.0.len()).sum::<usize>(), shape.3);
    let fits = |(values, normal): &Bytes<'_>| {
        normal.len() == channels && values.len().is_multiple_of(channels.max(1))
    };
    let whole = n == shape.0 * shape.1 * shape.2 * channels && n > 0;
    if !whole || channels > MAX_CHANNELS || !runs.iter().all(fits) {
        let message = format!("{n} values in {} runs do not form {shape:?}", runs.len());
        return Err(Error::Length { operation: "images", message });
    }
    // SAFETY: every bit pattern is a valid u8, and `copy_in` writes all n before a kernel reads them.
    let bytes = unsafe { on.device().alloc::<u8>(n) }?;
    // SAFETY: `bytes` was allocated with n elements, the runs' total length.
    unsafe { on.copy_in(&runs.iter().map(|r| r.0).collect::<Vec<_>>(), *bytes.device_ptr()) }?;
    let mut new: Images = device.try_zeros_like(&shape)?;
    let mut from = 0;
    // Skip empty runs: a launch needs at least one element.
    for (values, normal) in runs.iter().filter(|r| !r.0.is_empty()) {
        let channel = |c: usize| normal.get(c).copied().unwrap_or_default();
        let [(f0, s0), (f1, s1), (f2, s2), (f3, s3)] = std::array::from_fn(channel);
        let (n, c) = (values.len(), channels as u32);
        let raw = In(bytes.slice(from..from + n));
        let to = Out(tensor::new_elements_mut(&mut new)?.part(from, n));
        let args = args![n, c, raw, f0, s0, f1, s1, f2, s2, f3, s3, to];
        // SAFETY: both are n elements, within memory of the runs' total length, which the check above
        // compared with `shape`.
        unsafe { on.launch_over("pauc_normalize", n, args) }?;
        from += n;
    }
    Ok(new)
}
