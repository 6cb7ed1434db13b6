//! Resizing of the image.

use super::square;
use crate::pixels::{Filter, Rect, geometry, resample};
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Count, Image, ImageShape, Result, component};

component! {
    /// Resizes the shorter side to `size` and crops the longer one to it, in the center.
    ///
    /// An image of that size is unchanged. The evaluation view does the same.
    ///
    /// # Shapes
    /// any → `size`×`size`, or with `crop: false` the shorter side is `size` and the longer one
    /// ⌊size · longer / shorter⌋.
    ///
    /// Source: `Resize` and `CenterCrop` of torchvision.
    pub struct Resize: Augmentation {
        /// The shorter side of the result in pixels.
        pub size: Count,
        /// The filter: `Bilinear` or `Bicubic`, both with antialiasing.
        pub interpolation: Filter = Filter::Bilinear,
        /// Whether the longer side is cropped to `size`, so that all images become squares of one size.
        pub crop: bool = true,
    }
}

impl Resize {
    fn sides(&self, shape: ImageShape) -> (usize, usize) {
        let size = self.size.get();
        let longer = |long: usize, short: usize| size.saturating_mul(long) / short.max(1);
        if shape.height <= shape.width {
            (size, longer(shape.width, shape.height))
        } else {
            (longer(shape.height, shape.width), size)
        }
    }
}

impl Augmentation for Resize {
    fn apply<'a>(&self, image: Image<'a>, _: &mut Stream) -> Image<'a> {
        let (height, width) = self.sides(image.shape);
        let size = self.size.get();
        let resized = if (height, width) == (image.shape.height, image.shape.width) {
            image
        } else {
            resample::resize(&image, Rect::whole(image.shape), height, width, self.interpolation)
        };
        if !self.crop || height == width {
            return resized;
        }
        let (top, left) = Rect::center(resized.shape, size, size);
        geometry::crop(&resized, top, left, size, size)
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        if self.crop {
            return Ok(Some(square(self.size.get(), input)));
        }
        Ok(input.map(|shape| {
            let (height, width) = self.sides(shape);
            ImageShape { height, width, ..shape }
        }))
    }

    fn evaluation(&self) -> Option<Box<dyn Augmentation>> {
        Some(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{image, rng};
    use super::*;

    #[test]
    fn sides_and_squares() {
        let step = |crop| Resize { size: Count::lit(12), interpolation: Filter::Bicubic, crop };
        for (height, width) in [(37, 45), (45, 37), (5, 5), (3, 40), (12, 13)] {
            for crop in [true, false] {
                let out = step(crop).apply(image(height, width, 3), &mut rng(0)).shape;
                assert_eq!(Some(out), step(crop).output(Some(image(height, width, 3).shape)).unwrap());
                assert_eq!(out.height.min(out.width), 12);
                assert!(!crop || out.height == out.width);
            }
        }
        assert_eq!(step(false).apply(image(37, 45, 1), &mut rng(0)).shape.width, 14);
        assert_eq!(step(false).output(None).unwrap(), None);
    }

    #[test]
    fn the_right_size_is_unchanged_and_a_longer_side_is_cropped() {
        let step = Resize { size: Count::lit(12), interpolation: Filter::Bilinear, crop: true };
        assert_eq!(step.apply(image(12, 12, 3), &mut rng(0)), image(12, 12, 3));
        let cut = step.apply(image(12, 16, 1), &mut rng(0));
        assert_eq!(cut.pixels[..12], image(12, 16, 1).pixels[2..14]);
    }
}
