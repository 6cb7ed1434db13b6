//! How a GPU rounds matrix products.
//!
//! No kernel of this crate reads it: the CPU computes in `f32`. It is here because this is the one crate that
//! both recipes and the CUDA kernels can see.

use serde::{Deserialize, Serialize};

/// How products are rounded on a GPU. All of them accumulate in 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// As in `f32`. Convolutions split each operand into two TF32 numbers and add up three products of these
    /// on tensor cores, which keeps 22 mantissa bits of each operand.
    #[default]
    F32,
    /// TF32 tensor cores: 11 mantissa bits per operand. Gradients of convolution weights, except those of 1×1
    /// convolutions, are products of fp16, with as many bits, and are rounded to fp16 before they are
    /// accumulated.
    Tf32,
    /// Feature maps and convolution weights in bf16, with 8 mantissa bits, on tensor cores: half the memory.
    /// Other products as with `Tf32`. Parameters, their accumulated gradients, statistics and features stay in
    /// `f32`.
    Bf16,
}
