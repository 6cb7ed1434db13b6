//! Augmentations: the steps of a view, one file each.
//!
//! Parameters are drawn as in torchvision, and pixels equal those of torchvision on Pillow images (see
//! [`crate::pixels`]). Images have one channel (gray) or three (RGB).

pub mod center_crop;
pub mod color_jitter;
pub mod equalize;
pub mod erasing;
pub mod gaussian_blur;
pub mod grayscale;
pub mod horizontal_flip;
pub mod normalize;
pub mod presets;
pub mod random_crop;
pub mod random_resized_crop;
pub mod resize;
pub mod rotation;
pub mod solarize;
pub mod vertical_flip;

pub use center_crop::CenterCrop;
pub use color_jitter::ColorJitter;
pub use equalize::Equalize;
pub use erasing::{Cover, Erasing};
pub use gaussian_blur::{BlurModel, GaussianBlur};
pub use grayscale::Grayscale;
pub use horizontal_flip::HorizontalFlip;
pub use normalize::Normalize;
pub use presets::{Byol, ByolView, CropSize, MocoV2, MultiCrop, SimClr, SimClrStrong};
pub use random_crop::RandomCrop;
pub use random_resized_crop::RandomResizedCrop;
pub use resize::Resize;
pub use rotation::Rotation;
pub use solarize::Solarize;
pub use vertical_flip::VerticalFlip;

use pauc_traits::rng::Stream;
use pauc_traits::{ImageShape, UnitInterval};
use rand::Rng;

/// Draws whether a step with probability `p` is applied.
fn happens(p: UnitInterval, rng: &mut Stream) -> bool {
    rng.gen_bool(p.get())
}

/// Returns the shape of a square image with the channels of `input`; images of unknown shape are RGB.
fn square(size: usize, input: Option<ImageShape>) -> ImageShape {
    ImageShape { height: size, width: size, channels: input.map_or(3, |s| s.channels) }
}

#[cfg(test)]
pub(crate) mod testing {
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::dataset::Augmentation;
    use pauc_traits::rng::{Purpose, Stream, stream};
    use pauc_traits::{Image, ImageShape};

    pub fn rng(sample: u64) -> Stream {
        stream(7, Purpose::View, 0, sample, 0)
    }

    pub fn image(height: usize, width: usize, channels: usize) -> Image<'static> {
        let shape = ImageShape { height, width, channels };
        Image::new(shape, (0..shape.len()).map(|i| (i * 31 % 241) as u8).collect::<Vec<_>>())
    }

    /// Enough draws that the tolerance of a frequency is at most 0.03.
    const DRAWS: usize = 10_000;

    /// Returns the fraction of draws in which `step` changes `image`.
    pub fn frequency(step: &dyn Augmentation, image: &Image<'static>) -> f64 {
        let changed = (0..DRAWS as u64).filter(|&i| step.apply(image.clone(), &mut rng(i)) != *image);
        changed.count() as f64 / DRAWS as f64
    }

    /// Asserts that `step` changes `image` with probability `p`.
    #[track_caller]
    pub fn assert_frequency(step: &dyn Augmentation, image: &Image<'static>, p: f64) {
        assert_within!(frequency(step, image), p, tolerance::frequency(p, DRAWS), "{step:?}");
    }

    /// Returns the mean of independent draws and its tolerance, from their standard deviation.
    pub fn mean(draws: &[f64]) -> (f64, f64) {
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n;
        (mean, tolerance::mean(variance.sqrt(), draws.len()))
    }
}
