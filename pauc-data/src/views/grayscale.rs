//! Conversion to grayscale.

use super::happens;
use crate::pixels::color::Planes;
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Image, ImageShape, Result, UnitInterval, component};

component! {
    /// Replaces every channel by the luma 0.299 R + 0.587 G + 0.114 B, with probability `p`.
    ///
    /// Gray images are unchanged.
    ///
    /// # Shapes
    /// any → the same; an RGB image keeps three, now equal, channels.
    ///
    /// Source: `RandomGrayscale` of torchvision.
    pub struct Grayscale: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.2),
    }
}

impl Augmentation for Grayscale {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if happens(self.p, rng) && image.shape.channels == 3 {
            let mut planes = Planes::new(&image);
            planes.grayscale();
            planes.store(&mut image);
        }
        image
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
    fn channels_become_equal_with_the_given_probability() {
        let step = |p| Grayscale { p: UnitInterval::lit(p) };
        assert_frequency(&step(0.2), &image(4, 4, 3), 0.2);
        assert_eq!(frequency(&step(1.0), &image(4, 4, 1)), 0.0);
        let gray = step(1.0).apply(image(4, 4, 3), &mut rng(0));
        assert!(gray.pixels.as_chunks::<3>().0.iter().all(|p| p[0] == p[1] && p[1] == p[2]));
    }
}
