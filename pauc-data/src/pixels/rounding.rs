//! Roundings of `f32` by addition of 1.5·2²³, which the compiler vectorizes on every processor, unlike
//! `f32::round` and saturating casts. Valid for magnitudes below 2²²; pixel arithmetic stays far below.

/// At this magnitude neighboring `f32` are 1 apart, so that adding it rounds to a whole number.
const SHIFT: f32 = 12_582_912.0;

/// The nearest whole number, ties to even.
#[inline(always)]
pub fn nearest(v: f32) -> f32 {
    (v + SHIFT) - SHIFT
}

/// The greatest whole number that is not above `v`.
#[inline(always)]
pub fn floor(v: f32) -> f32 {
    let n = nearest(v);
    n - if n > v { 1.0 } else { 0.0 }
}

/// `v` limited to 0..255.
#[inline(always)]
pub fn limit(v: f32) -> f32 {
    let v = if v > 0.0 { v } else { 0.0 };
    if v < 255.0 { v } else { 255.0 }
}

/// A whole number in 0..255 as a byte.
#[inline(always)]
pub fn byte(v: f32) -> u8 {
    // The low bits of the sum's representation are the whole number.
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
