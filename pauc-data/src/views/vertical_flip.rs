//! Vertical flip.

use super::happens;
use crate::pixels::geometry;
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Image, ImageShape, Result, UnitInterval, component};

component! {
    /// Flips the image vertically, with probability `p`.
    ///
    /// # Shapes
    /// any → the same.
    ///
    /// Source: `RandomVerticalFlip` of torchvision.
    pub struct VerticalFlip: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.5),
    }
}

impl Augmentation for VerticalFlip {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if happens(self.p, rng) {
            geometry::flip_vertically(&mut image);
        }
        image
    }

    fn is_crop_or_flip(&self) -> bool {
        true
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_frequency, frequency, image, rng};
    use super::*;

    #[test]
    fn it_happens_with_the_given_probability() {
        let step = |p| VerticalFlip { p: UnitInterval::lit(p) };
        assert_frequency(&step(0.3), &image(4, 4, 3), 0.3);
        assert_eq!(frequency(&step(0.0), &image(4, 4, 3)), 0.0);
        let mut mirrored = image(4, 5, 1);
        geometry::flip_vertically(&mut mirrored);
        assert_eq!(step(1.0).apply(image(4, 5, 1), &mut rng(0)), mirrored);
    }
}
