//! Precision of matrix products and convolutions.

use crate::Element;

/// How products are rounded. All of them accumulate in 24 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As in `f32`. Convolutions split each operand into two TF32 numbers and add up three products of these
    /// on tensor cores, which keeps 22 mantissa bits of each operand.
    #[default]
    F32,
    /// TF32 tensor cores: 11 mantissa bits per operand. Gradients of convolution weights are products of
    /// fp16, with as many bits, and are rounded to fp16 before they are accumulated.
    Tf32,
    /// Feature maps and convolution weights in bf16, with 8 mantissa bits, on tensor cores. Other products as
    /// with `Tf32`.
    Bf16,
}

impl Precision {
    /// The element type of feature maps.
    pub fn element(self) -> Element {
        match self {
            Precision::F32 | Precision::Tf32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        }
    }

    /// Channels of the feature map that holds a batch of images: tensor cores read pixels of a multiple of 16
    /// bytes.
    pub fn padded_channels(self, image_channels: usize) -> usize {
        match self {
            Precision::F32 | Precision::Tf32 => image_channels.next_multiple_of(4),
            Precision::Bf16 => image_channels.next_multiple_of(8),
        }
    }
}
