//! The central crop.

use super::square;
use crate::pixels::{Rect, geometry};
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Count, Image, ImageShape, Result, component};

component! {
    /// Crops the central square of the image; a smaller image gets a black border.
    ///
    /// The evaluation view does the same.
    ///
    /// # Shapes
    /// any → `size`×`size`.
    ///
    /// Source: `CenterCrop` of torchvision.
    pub struct CenterCrop: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
    }
}

impl Augmentation for CenterCrop {
    fn apply<'a>(&self, image: Image<'a>, _: &mut Stream) -> Image<'a> {
        let size = self.size.get();
        if (image.shape.height, image.shape.width) == (size, size) {
            return image;
        }
        let (top, left) = Rect::center(image.shape, size, size);
        geometry::crop(&image, top, left, size, size)
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        Ok(Some(square(self.size.get(), input)))
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
    fn the_middle_is_kept_and_small_images_are_padded() {
        let step = CenterCrop { size: Count::lit(2) };
        let out = step.apply(image(4, 6, 1), &mut rng(0));
        let source = image(4, 6, 1);
        assert_eq!(*out.pixels, [source.pixels[8], source.pixels[9], source.pixels[14], source.pixels[15]]);
        let out =
            step.apply(Image::new(ImageShape { height: 1, width: 2, channels: 1 }, vec![9, 8]), &mut rng(0));
        assert_eq!(*out.pixels, [9, 8, 0, 0]);
        assert_eq!(step.apply(image(2, 2, 3), &mut rng(0)), image(2, 2, 3));
    }
}
