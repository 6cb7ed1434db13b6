//! Inversion of bright pixels.

use super::happens;
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Image, ImageShape, Result, UnitInterval, component};

component! {
    /// Replaces every value v ≥ `threshold` by 255 − v, with probability `p`.
    ///
    /// # Shapes
    /// any → the same.
    ///
    /// Source: Grill et al., *Bootstrap your own latent*, 2020; `RandomSolarize` of torchvision.
    pub struct Solarize: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.2),
        /// The smallest value that is inverted, 0 to 255.
        pub threshold: u8 = 128,
    }
}

impl Augmentation for Solarize {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if happens(self.p, rng) {
            let threshold = self.threshold;
            image.pixels.to_mut().iter_mut().for_each(|v| *v = if *v < threshold { *v } else { 255 - *v });
        }
        image
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_frequency, image, rng};
    use super::*;

    #[test]
    fn values_from_the_threshold_on_are_inverted() {
        let step = |p| Solarize { p: UnitInterval::lit(p), threshold: 100 };
        let source = Image::new(ImageShape { height: 1, width: 4, channels: 1 }, vec![0, 99, 100, 255]);
        assert_eq!(*step(1.0).apply(source, &mut rng(0)).pixels, [0, 99, 155, 0]);
        assert_frequency(&step(0.4), &image(4, 4, 3), 0.4);
    }
}
