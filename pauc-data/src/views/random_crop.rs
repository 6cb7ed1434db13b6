//! A crop of fixed size at a random position.

use super::{CenterCrop, square};
use crate::pixels::{Rect, geometry};
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Count, Error, Image, ImageShape, Result, component};
use rand::Rng;

component! {
    /// A random square crop, after padding the image with black.
    ///
    /// In the evaluation view: `CenterCrop` of the same size.
    ///
    /// # Shapes
    /// at least `size` − 2·`padding` in height and width → `size`×`size`.
    ///
    /// Source: `RandomCrop` of torchvision.
    pub struct RandomCrop: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
        /// The width of the border in pixels.
        pub padding: usize = 4,
    }
}

/// The widest border. With a wider one, hardly any crop would touch the image.
const MAX_PADDING: usize = 1 << 16;

impl Augmentation for RandomCrop {
    fn apply<'a>(&self, image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        let size = self.size.get();
        let (middle_top, middle_left) = Rect::center(image.shape, size, size);
        let mut offset = |outer: usize, middle: isize| match (outer + 2 * self.padding).checked_sub(size) {
            Some(free) => rng.gen_range(0..=free) as isize - self.padding as isize,
            None => middle, // a smaller image of a dataset with different sizes gets more padding
        };
        let (top, left) = (offset(image.shape.height, middle_top), offset(image.shape.width, middle_left));
        geometry::crop(&image, top, left, size, size)
    }

    fn is_crop_or_flip(&self) -> bool {
        true
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        let size = self.size.get();
        if self.padding > MAX_PADDING {
            let message = format!("RandomCrop: padding is at most {MAX_PADDING}, got {}", self.padding);
            return Err(Error::config(message));
        }
        if let Some(s) = input.filter(|s| s.height.min(s.width) + 2 * self.padding < size) {
            return Err(Error::config(format!(
                "RandomCrop: size {size} is larger than images of {s} with padding {}; use a smaller size or more \
                 padding",
                self.padding
            )));
        }
        Ok(Some(square(size, input)))
    }

    fn evaluation(&self) -> Option<Box<dyn Augmentation>> {
        Some(Box::new(CenterCrop { size: self.size }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{image, rng};
    use super::*;

    #[test]
    fn every_position_occurs_and_nothing_else() {
        let step = RandomCrop { size: Count::lit(4), padding: 1 };
        let source = image(4, 5, 1);
        let mut places_seen = std::collections::BTreeSet::new();
        // One of the 12 positions is missing after 500 draws with probability 12·(11/12)⁵⁰⁰ = 2·10⁻¹⁸.
        for i in 0..500 {
            let out = step.apply(source.clone(), &mut rng(i));
            let places = (-1..=1).flat_map(|t| (-1..=2).map(move |l| (t, l)));
            let places: Vec<_> =
                places.filter(|&(t, l)| geometry::crop(&source, t, l, 4, 4) == out).collect();
            assert_eq!(places.len(), 1);
            places_seen.insert(places[0]);
        }
        assert_eq!(places_seen.len(), 12);
    }

    #[test]
    fn too_large_a_crop_is_refused() {
        let step = RandomCrop { size: Count::lit(9), padding: 2 };
        let text = step.output(Some(image(4, 8, 3).shape)).unwrap_err().to_string();
        let wide = RandomCrop { size: Count::lit(9), padding: usize::MAX };
        assert!(wide.output(Some(image(4, 8, 3).shape)).unwrap_err().to_string().contains("at most 65536"));
        assert!(text.contains("size 9") && text.contains("4×8×3"), "{text}");
        assert_eq!(step.apply(image(4, 8, 3), &mut rng(0)).shape.height, 9);
    }
}
