//! Convolutions whose windows do not overlap, on the CPU: gathered windows times a packed weight.

use dfdx::prelude::Cpu;
use pauc_kernels::buffer::Buffer;
use pauc_kernels::linear;
use pauc_kernels::patches::Patches;
use pauc_traits::Param;

/// Returns the first `len` values of a buffer, which grows if needed.
pub(super) fn first(buffer: &mut Buffer, len: usize) -> &mut [f32] {
    buffer.grow(len);
    &mut buffer[..len]
}

/// y ← the convolution of gathered windows.
pub(super) fn convolve(
    windows: Patches,
    [weight, bias]: &[Param<Cpu>; 2],
    packed: &mut Buffer,
    rows: &[f32],
    y: &mut [f32],
) {
    let packed = first(packed, weight.len());
    windows.pack(&weight.value(), packed);
    linear::linear((windows.row(), bias.len()), rows, packed, Some(&bias.value()), y);
}

/// Accumulates the gradients of the weight and the bias of [`convolve`].
pub(super) fn convolution_gradients(
    windows: Patches,
    [weight, bias]: &[Param<Cpu>; 2],
    packed: &mut Buffer,
    rows: &[f32],
    dy: &[f32],
) {
    let packed = first(packed, weight.len());
    packed.fill(0.0);
    linear::linear_weight_gradient((windows.row(), bias.len()), rows, dy, packed);
    windows.add_unpacked(packed, &mut weight.grad_mut());
    linear::bias_gradient(dy, &mut bias.grad_mut());
}
