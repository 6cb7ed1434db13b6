//! The precision of matrix products on a GPU.
//!
//! No kernel of this crate uses it: the CPU computes in `f32`. It is here because both recipes and the CUDA
//! kernels depend on this crate.

use serde::{Deserialize, Serialize};

/// The precision of products on a GPU. All products accumulate in `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// As in `f32`. Convolutions split each operand into two TF32 numbers and sum three products of these on
    /// tensor cores, which keeps 22 mantissa bits of each operand.
    #[default]
    F32,
    /// TF32 tensor cores: 11 mantissa bits per operand. Gradients of convolution weights, except for 1×1
    /// convolutions, are products of fp16, with as many bits, and are rounded to fp16 before they are
    /// accumulated.
    Tf32,
    /// Mixed precision: feature maps and convolution weights in bf16, with 8 mantissa bits, on tensor cores,
    /// in half the memory. Other products as with `Tf32`. Parameters, their accumulated gradients, statistics
    /// and features stay in `f32`.
    Bf16,
}
