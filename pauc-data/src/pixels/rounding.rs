//! Rounding of `f32` by adding 1.5·2²³. The compiler vectorizes it on every processor, unlike `f32::round`
//! and saturating casts. It is valid for magnitudes below 2²²; pixel values are far below.

/// At this magnitude, adjacent `f32` values are 1 apart, so adding it rounds to an integer.
const SHIFT: f32 = 12_582_912.0;

/// Returns the nearest integer, ties to even.
#[inline(always)]
pub fn nearest(v: f32) -> f32 {
    (v + SHIFT) - SHIFT
}

/// Returns the largest integer that is at most `v`.
#[inline(always)]
pub fn floor(v: f32) -> f32 {
    let n = nearest(v);
    n - if n > v { 1.0 } else { 0.0 }
}

/// Clamps `v` to 0..255.
#[inline(always)]
pub fn limit(v: f32) -> f32 {
    let v = if v > 0.0 { v } else { 0.0 };
    if v < 255.0 { v } else { 255.0 }
}

/// Converts an integer in 0..255 to a byte.
#[inline(always)]
pub fn byte(v: f32) -> u8 {
    // The low bits of the sum's representation are the integer.
    (v + SHIFT).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_agree_with_the_standard_library() {
        for i in -3000..3000 {
            let v = i as f32 * 0.125 + 1e-4 * (i % 7) as f32;
            assert_eq!(nearest(v), v.round_ties_even(), "{v}");
            assert_eq!(floor(v), v.floor(), "{v}");
            assert_eq!(limit(v), v.clamp(0.0, 255.0), "{v}");
        }
        for b in 0..=255u8 {
            assert_eq!(byte(f32::from(b)), b);
        }
    }
}
