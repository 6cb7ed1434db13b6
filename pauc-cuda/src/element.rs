//! Element types of feature maps.

use crate::Precision;

/// The type of a feature map's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Element {
    /// Single precision, 24 mantissa bits.
    #[default]
    F32,
    /// bfloat16, the upper half of an `f32`: 8 mantissa bits and the range of `f32`.
    Bf16,
    /// fp16: 11 mantissa bits, at most 65504.
    F16,
}

impl Element {
    /// Returns the element type of feature maps at this precision.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 | Precision::Tf32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        }
    }

    /// Returns the channels of the feature map that holds a batch of images. Tensor cores need pixels of a
    /// multiple of 16 bytes.
    pub fn padded_channels(self, image_channels: usize) -> usize {
        image_channels.next_multiple_of(16 / self.bytes())
    }

    /// Returns the bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 | Element::F16 => 2,
        }
    }

    /// Returns the number of elements that a thread loads at once (the vector width), given the length of a
    /// row.
    pub(crate) fn pack(self, channels: usize) -> usize {
        let widest = 16 / self.bytes();
        if channels.is_multiple_of(widest) { widest } else { 1 }
    }

    /// Returns the kernels' number for the element and its vector width: `BY_ELEMENT` in `common.cuh`.
    pub(crate) fn code(self, channels: usize) -> u32 {
        let single = u32::from(self.pack(channels) == 1);
        match self {
            Element::F32 => single,
            Element::Bf16 => 2 + single,
            Element::F16 => 4 + single,
        }
    }
}

/// Converts bf16 to `f32`.
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Converts fp16 to `f32`.
pub(crate) fn from_f16(bits: u16) -> f32 {
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // An f32 has 13 more mantissa bits, and its exponent bias is larger by 112.
    let value = match magnitude {
        ..0x7c00 => f32::from_bits(magnitude << 13) * 2f32.powi(112),
        0x7c00 => f32::INFINITY,
        _ => f32::NAN,
    };
    f32::from_bits(value.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp16_is_decoded_bit_by_bit() {
        let known = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0x0400, 2f32.powi(-14)),
            (0x0001, 2f32.powi(-24)),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, number) in known {
            assert_eq!(from_f16(bits), number, "{bits:x}");
        }
        assert!(from_f16(0x7e00).is_nan());
        assert_eq!(from_f16(0x8000).to_bits(), (-0f32).to_bits());
    }
}
