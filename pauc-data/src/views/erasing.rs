//! Erasing of a random rectangle.

use super::happens;
use crate::Interval;
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Error, Image, ImageShape, Result, UnitInterval, component};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// The fill of the rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cover {
    /// One value.
    Value(u8),
    /// Uniform values in 0..255, drawn for each pixel and channel.
    Noise,
}

component! {
    /// Erases a random rectangle, with probability `p`.
    ///
    /// The area of the rectangle, as a fraction of the image's area, is uniform in `scale`. Its height /
    /// width is log-uniform in `ratio`. If none of ten draws fits into the image, nothing is erased. Fill
    /// values are pixel values before normalization.
    ///
    /// # Shapes
    /// any → the same.
    ///
    /// Source: Zhong et al., *Random erasing data augmentation*, 2020; `RandomErasing` of torchvision.
    pub struct Erasing: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.5),
        /// The range of the rectangle's area, as a fraction of the image.
        pub scale: Interval = Interval::lit(0.02, 0.33),
        /// The range of height / width.
        pub ratio: Interval = Interval::lit(0.3, 3.3),
        /// The fill: `Value(v)` for one value, `Noise` for random values.
        pub cover: Cover = Cover::Value(0),
    }
}

impl Augmentation for Erasing {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if !happens(self.p, rng) {
            return image;
        }
        let ImageShape { height, width, channels } = image.shape;
        for _ in 0..10 {
            let area = (height * width) as f64 * self.scale.uniform(rng);
            let ratio = self.ratio.log_uniform(rng);
            let h = (area * ratio).sqrt().round_ties_even() as usize;
            let w = (area / ratio).sqrt().round_ties_even() as usize;
            if h >= height || w >= width {
                continue;
            }
            let (top, left) = (rng.gen_range(0..=height - h), rng.gen_range(0..=width - w));
            for row in image.pixels.to_mut().chunks_exact_mut(width * channels).skip(top).take(h) {
                let part = &mut row[left * channels..(left + w) * channels];
                match self.cover {
                    Cover::Value(v) => part.fill(v),
                    Cover::Noise => rng.fill(part),
                }
            }
            break;
        }
        image
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        if self.scale.high() > 1.0 {
            let message = format!(
                "Erasing: scale is a fraction of the image's area; expected at most 1, got {}",
                self.scale.high()
            );
            return Err(Error::config(message));
        }
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_frequency, frequency, mean, rng};
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn step(cover: Cover, scale: (f64, f64)) -> Erasing {
        let scale = Interval::lit(scale.0, scale.1);
        Erasing { p: UnitInterval::lit(0.4), scale, ratio: Interval::lit(0.3, 3.3), cover }
    }

    #[test]
    fn one_rectangle_of_the_right_area_is_erased() {
        let shape = ImageShape { height: 60, width: 80, channels: 3 };
        let white = Image::new(shape, vec![255; shape.len()]);
        let zero = step(Cover::Value(0), (0.02, 0.33));
        assert_frequency(&zero, &white, 0.4);
        let always = Erasing { p: UnitInterval::lit(1.0), ..zero };
        let mut areas = Vec::new();
        for i in 0..4000 {
            let out = always.apply(white.clone(), &mut rng(i));
            let dark: Vec<usize> = (0..4800).filter(|p| out.pixels[3 * p..3 * p + 3] == [0; 3]).collect();
            let Some((first, last)) = dark.first().zip(dark.last()) else { continue };
            let (h, w) = (last / 80 - first / 80 + 1, last % 80 - first % 80 + 1);
            assert_eq!(dark.len(), h * w, "a whole rectangle");
            // Each side is rounded to whole pixels.
            let (height, width) = (h as f64, w as f64);
            assert!(
                (height + 0.5) / (width - 0.5) >= 0.3 && (height - 0.5) / (width + 0.5) <= 3.3,
                "{h} {w}"
            );
            areas.push(dark.len() as f64 / 4800.0);
        }
        // The rectangles are the draws from the uniform distribution that fit. They are redrawn here, so both
        // means have a sampling error.
        let mut rng = rng(u64::MAX);
        let mut fitting = Vec::new();
        for _ in 0..400_000 {
            let (area, log) = (rng.gen_range(0.02..0.33) * 4800.0, rng.gen_range(0.3f64.ln()..3.3f64.ln()));
            let (h, w) = ((area * log.exp()).sqrt().round(), (area / log.exp()).sqrt().round());
            if h < 60.0 && w < 80.0 {
                fitting.push(h * w / 4800.0);
            }
        }
        let (want, sampling) = mean(&fitting);
        let (got, tolerance) = mean(&areas);
        assert_within!(got, want, tolerance + sampling);
    }

    #[test]
    fn noise_is_uniform_and_too_large_a_rectangle_erases_nothing() {
        let shape = ImageShape { height: 40, width: 40, channels: 1 };
        let gray = Image::new(shape, vec![0; 1600]);
        let noisy = (0..200).map(|i| step(Cover::Noise, (0.3, 0.3)).apply(gray.clone(), &mut rng(i)));
        let changed: Vec<u8> = noisy.flat_map(|n| n.pixels.into_owned()).filter(|v| *v > 0).collect();
        let mean = changed.iter().map(|v| f64::from(*v)).sum::<f64>() / changed.len() as f64;
        // 0 cannot be distinguished from unerased pixels, so 255 of the 256 values remain.
        let deviation = ((255.0f64.powi(2) - 1.0) / 12.0).sqrt();
        assert_within!(mean, 128.0, tolerance::mean(deviation, changed.len()));
        let pixel = Image::new(ImageShape { height: 1, width: 1, channels: 1 }, vec![9]);
        assert_eq!(frequency(&step(Cover::Value(0), (0.1, 1.0)), &pixel), 0.0);
        assert!(step(Cover::Noise, (0.1, 1.1)).output(None).is_err());
    }
}
