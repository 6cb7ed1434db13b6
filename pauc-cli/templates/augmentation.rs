//! An augmentation.

use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Image, ImageShape, Result, UnitInterval, component};
use rand::Rng;

component! {
    /// Inverts the image, v → 255 − v for every pixel, with probability `p`.
    ///
    /// # Shapes
    /// any → the same.
    ///
    /// Source: the paper or code that this follows.
    pub struct AugmentationTemplate: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.5),
    }
}

impl Augmentation for AugmentationTemplate {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if rng.gen_bool(self.p.get()) {
            // Copies the pixels if the image borrows them from the dataset.
            image.pixels.to_mut().iter_mut().for_each(|v| *v = u8::MAX - *v);
        }
        image
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::rng::{Purpose, stream};

    const SHAPE: ImageShape = ImageShape { height: 2, width: 3, channels: 1 };

    fn applied(p: f64, sample: u64) -> Vec<u8> {
        let image = Image::new(SHAPE, vec![0u8, 1, 2, 100, 254, 255]);
        let step = AugmentationTemplate { p: UnitInterval::lit(p) };
        step.apply(image, &mut stream(1, Purpose::Plugin, 0, sample, 0)).pixels.into_owned()
    }

    #[test]
    fn pixels_are_inverted_always_or_never() {
        assert_eq!(applied(1.0, 0), [255, 254, 253, 155, 1, 0]);
        assert_eq!(applied(0.0, 0), [0, 1, 2, 100, 254, 255]);
    }

    #[test]
    fn it_happens_with_probability_p_and_depends_only_on_the_stream() {
        let inverted = (0..1000).filter(|sample| applied(0.3, *sample)[0] == 255).count();
        // Six standard deviations of the count for p = 0.3 and n = 1000.
        assert!((inverted as f64 - 300.0).abs() < 6.0 * (1000.0f64 * 0.3 * 0.7).sqrt(), "{inverted}");
        assert!((0..20).all(|sample| applied(0.5, sample) == applied(0.5, sample)));
    }

    #[test]
    fn the_shape_stays() {
        let step = AugmentationTemplate { p: UnitInterval::lit(0.5) };
        assert_eq!(step.output(Some(SHAPE)).unwrap(), Some(SHAPE));
        assert_eq!(step.output(None).unwrap(), None);
    }
}
