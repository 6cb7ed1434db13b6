//! Normalization with given statistics.

use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Error, Image, ImageShape, Positive, Result, UnitInterval, component};

component! {
    /// Normalizes with this mean and deviation instead of the dataset's.
    ///
    /// A pixel v of channel c becomes (v/255 − mean_c)/deviation_c. Without this step, mean and deviation are
    /// those of the training images. Its position in the list does not matter, because it is applied last. It
    /// applies to the evaluation view too. ImageNet's statistics are `Normalize(mean: [0.485, 0.456, 0.406],
    /// deviation: [0.229, 0.224, 0.225])`.
    ///
    /// # Shapes
    /// any → the same.
    pub struct Normalize: Augmentation {
        /// The mean of each channel, in 0..1.
        pub mean: Vec<UnitInterval>,
        /// The deviation of each channel, in 0..1.
        pub deviation: Vec<Positive>,
    }
}

impl Augmentation for Normalize {
    fn apply<'a>(&self, image: Image<'a>, _: &mut Stream) -> Image<'a> {
        image
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        let channels = input.map_or(self.mean.len(), |s| s.channels);
        if self.mean.len() != channels || self.deviation.len() != channels {
            return Err(Error::config(format!(
                "Normalize: {} means and {} deviations for images of {channels} channels; give one of each per channel",
                self.mean.len(),
                self.deviation.len()
            )));
        }
        Ok(input)
    }

    fn evaluation(&self) -> Option<Box<dyn Augmentation>> {
        Some(Box::new(self.clone()))
    }

    fn normalization(&self) -> Option<Vec<(f32, f32)>> {
        let pairs = self.mean.iter().zip(&self.deviation);
        Some(pairs.map(|(m, d)| (m.get() as f32, d.get() as f32)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{image, rng};
    use super::*;

    #[test]
    fn pixels_are_unchanged_and_channels_are_checked() {
        let step = Normalize { mean: vec![UnitInterval::lit(0.5)], deviation: vec![Positive::lit(0.25)] };
        assert_eq!(step.apply(image(3, 3, 1), &mut rng(0)), image(3, 3, 1));
        assert_eq!(step.normalization(), Some(vec![(0.5, 0.25)]));
        assert!(step.output(Some(image(3, 3, 1).shape)).is_ok());
        let text = step.output(Some(image(3, 3, 3).shape)).unwrap_err().to_string();
        assert!(text.contains("1 means and 1 deviations for images of 3 channels"), "{text}");
    }
}
