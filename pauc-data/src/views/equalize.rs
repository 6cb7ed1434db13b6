//! Histogram equalization.

use super::happens;
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Image, ImageShape, Result, UnitInterval, component};

component! {
    /// Equalizes the histogram of each channel, with probability `p`.
    ///
    /// With s = ⌊(pixels − pixels of the brightest value) / 255⌋, value v becomes ⌊(⌊s/2⌋ + pixels darker
    /// than v) / s⌋. If s = 0, the channel is unchanged.
    ///
    /// # Shapes
    /// any → the same.
    ///
    /// Source: `ImageOps.equalize` of Pillow, `RandomEqualize` of torchvision.
    pub struct Equalize: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.2),
    }
}

/// Equalizes every channel.
pub fn equalize(image: &mut Image<'_>) {
    let channels = image.shape.channels;
    let pixels = image.pixels.to_mut();
    for c in 0..channels {
        let mut histogram = [0usize; 256];
        pixels.iter().skip(c).step_by(channels).for_each(|v| histogram[usize::from(*v)] += 1);
        let brightest = histogram.iter().rev().find(|h| **h > 0).copied().unwrap_or(0);
        let step = (histogram.iter().sum::<usize>() - brightest) / 255;
        if step == 0 {
            continue;
        }
        let mut below = step / 2;
        let table = histogram.map(|h| {
            let value = (below / step).min(255) as u8;
            below += h;
            value
        });
        pixels.iter_mut().skip(c).step_by(channels).for_each(|v| *v = table[usize::from(*v)]);
    }
}

impl Augmentation for Equalize {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if happens(self.p, rng) {
            equalize(&mut image);
        }
        image
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_frequency, frequency};
    use super::*;

    #[test]
    fn a_narrow_histogram_is_widened_and_a_constant_is_unchanged() {
        let shape = ImageShape { height: 64, width: 64, channels: 3 };
        let narrow =
            Image::new(shape, (0..shape.len()).map(|i| 100 + (i / 3 % 32) as u8).collect::<Vec<_>>());
        let mut wide = narrow.clone();
        equalize(&mut wide);
        // 32 values of 128 pixels each: s = ⌊(4096 − 128)/255⌋ = 15, value k becomes ⌊(7 + 128 k)/15⌋.
        for (from, to) in narrow.pixels.iter().zip(wide.pixels.iter()) {
            assert_eq!(usize::from(*to), ((7 + 128 * (usize::from(*from) - 100)) / 15).min(255));
        }
        let step = |p| Equalize { p: UnitInterval::lit(p) };
        assert_frequency(&step(0.3), &narrow, 0.3);
        let flat = Image::new(shape, vec![7; shape.len()]);
        assert_eq!(frequency(&step(1.0), &flat), 0.0);
    }
}
