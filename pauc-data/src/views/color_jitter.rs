//! Random brightness, contrast, saturation and hue.

use super::happens;
use crate::pixels::color::Planes;
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Error, Image, ImageShape, NonNegative, Result, UnitInterval, component};
use rand::Rng;
use rand::seq::SliceRandom;

component! {
    /// Changes brightness, contrast, saturation and hue in random order, with probability `p`.
    ///
    /// The factors of the first three are uniform in max(0, 1 − s)..1 + s for a strength s. The rotation of
    /// the hue is uniform in −`hue`..`hue` of a full circle. A strength of 0 disables its operation. The
    /// defaults are those of MoCo v2. Saturation and hue do not change gray images.
    ///
    /// # Shapes
    /// any → the same.
    ///
    /// Source: Chen et al., *A simple framework for contrastive learning*, 2020; `ColorJitter` of torchvision.
    pub struct ColorJitter: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.8),
        /// The strength of the brightness.
        pub brightness: NonNegative = NonNegative::lit(0.4),
        /// The strength of the contrast.
        pub contrast: NonNegative = NonNegative::lit(0.4),
        /// The strength of the saturation.
        pub saturation: NonNegative = NonNegative::lit(0.4),
        /// The largest rotation of the hue, as a fraction of the color circle, at most 0.5.
        pub hue: NonNegative = NonNegative::lit(0.1),
    }
}

impl Augmentation for ColorJitter {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if !happens(self.p, rng) {
            return image;
        }
        let mut order = [0, 1, 2, 3];
        order.shuffle(rng);
        let mut between = |low: f64, high: f64| (low + (high - low) * rng.gen_range(0.0..1.0)) as f32;
        let strengths = [self.brightness, self.contrast, self.saturation].map(NonNegative::get);
        let factors = strengths.map(|s| between((1.0 - s).max(0.0), 1.0 + s));
        let turn = between(-self.hue.get(), self.hue.get());
        let mut planes = Planes::new(&image);
        for operation in order {
            match operation {
                0 if strengths[0] > 0.0 => planes.brightness(factors[0]),
                1 if strengths[1] > 0.0 => planes.contrast(factors[1]),
                2 if strengths[2] > 0.0 => planes.saturation(factors[2]),
                3 if self.hue.get() > 0.0 => planes.hue(turn),
                _ => {}
            }
        }
        planes.store(&mut image);
        image
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        if self.hue.get() > 0.5 {
            return Err(Error::config(format!(
                "ColorJitter: hue is a fraction of the color circle; expected at most 0.5, got {}",
                self.hue
            )));
        }
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frequency, image, rng};
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn step(strengths: [f64; 4]) -> ColorJitter {
        let [brightness, contrast, saturation, hue] = strengths.map(NonNegative::lit);
        ColorJitter { p: UnitInterval::lit(1.0), brightness, contrast, saturation, hue }
    }

    #[test]
    fn brightness_factors_match_the_strength() {
        let gray = Image::new(ImageShape { height: 1, width: 1, channels: 3 }, vec![100; 3]);
        let draws = 10_000;
        let values: Vec<u8> = (0..draws)
            .map(|i| step([0.4, 0.0, 0.0, 0.0]).apply(gray.clone(), &mut rng(i)).pixels[0])
            .collect();
        assert_eq!((values.iter().min(), values.iter().max()), (Some(&60), Some(&139)));
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / draws as f64;
        // The 80 values from 60 to 139 are equally likely, up to the rounding of factor and product.
        let deviation = ((80.0f64.powi(2) - 1.0) / 12.0).sqrt();
        let sampling = tolerance::mean(deviation, values.len());
        assert_within!(mean, 99.5, sampling + tolerance::f32(2, 140.0));
    }

    #[test]
    fn the_order_of_the_operations_changes() {
        // Contrast pulls toward the mean, before or after the brightness changes it.
        let source = image(6, 6, 3);
        let mut naive = [0; 2];
        let draws = 400;
        for i in 0..draws {
            let out = step([0.9, 0.9, 0.0, 0.0]).apply(source.clone(), &mut rng(i));
            let mut r = rng(i);
            let mut order = [0, 1, 2, 3];
            happens(UnitInterval::lit(1.0), &mut r);
            order.shuffle(&mut r);
            let first = usize::from(order.iter().position(|o| *o == 0) > order.iter().position(|o| *o == 1));
            let factors = [(); 2].map(|()| (0.1 + 1.8 * r.gen_range(0.0..1.0)) as f32);
            let mut planes = Planes::new(&source);
            for operation in [first, 1 - first] {
                if operation == 0 { planes.brightness(factors[0]) } else { planes.contrast(factors[1]) }
            }
            let mut want = source.clone();
            planes.store(&mut want);
            assert_eq!(out, want);
            naive[first] += 1;
        }
        let share = f64::from(naive[0]) / draws as f64;
        assert_within!(share, 0.5, tolerance::frequency(0.5, draws as usize));
    }

    #[test]
    fn gray_images_keep_one_channel_and_too_much_hue_is_refused() {
        assert_eq!(frequency(&step([0.0, 0.0, 0.5, 0.5]), &image(4, 4, 1)), 0.0);
        // Only factors within 1/240 of 1 change no value.
        assert!(frequency(&step([0.5, 0.5, 0.5, 0.5]), &image(4, 4, 1)) > 0.9);
        let text = step([0.4, 0.4, 0.4, 0.6]).output(None).unwrap_err().to_string();
        assert!(text.contains("at most 0.5, got 0.6"), "{text}");
    }
}
