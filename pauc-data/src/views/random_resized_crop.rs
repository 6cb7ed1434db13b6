//! The random resized crop, the most important augmentation of contrastive learning.

use super::{Resize, square};
use crate::Interval;
use crate::pixels::{Filter, Rect, resample};
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Count, Error, Image, ImageShape, Result, component};
use rand::Rng;

component! {
    /// A random rectangle of the image, resized to a square.
    ///
    /// The area of the rectangle, as a fraction of the image's area, is uniform in `scale`. Its width /
    /// height is log-uniform in `ratio`. If none of ten draws fits into the image, the largest central
    /// rectangle within `ratio` is used. In the evaluation view: `Resize` to the same size.
    ///
    /// # Shapes
    /// any → `size`×`size`.
    ///
    /// Source: Szegedy et al., *Going deeper with convolutions*, 2015; `RandomResizedCrop` of torchvision.
    pub struct RandomResizedCrop: Augmentation {
        /// Height and width of the result in pixels.
        pub size: Count,
        /// The range of the crop's area, as a fraction of the image.
        pub scale: Interval = Interval::lit(0.2, 1.0),
        /// The range of width / height.
        pub ratio: Interval = Interval::lit(3.0 / 4.0, 4.0 / 3.0),
        /// The filter: `Bilinear` or `Bicubic`, both with antialiasing.
        pub interpolation: Filter = Filter::Bilinear,
    }
}

impl RandomResizedCrop {
    /// Draws the rectangle as torchvision does.
    fn rectangle(&self, shape: ImageShape, rng: &mut Stream) -> Rect {
        let (height, width) = (shape.height as f64, shape.width as f64);
        for _ in 0..10 {
            let area = height * width * self.scale.uniform(rng);
            let ratio = self.ratio.log_uniform(rng);
            let w = (area * ratio).sqrt().round_ties_even() as usize;
            let h = (area / ratio).sqrt().round_ties_even() as usize;
            if (1..=shape.width).contains(&w) && (1..=shape.height).contains(&h) {
                let top = rng.gen_range(0..=shape.height - h);
                let left = rng.gen_range(0..=shape.width - w);
                return Rect { top, left, height: h, width: w };
            }
        }
        self.fallback(shape)
    }

    fn fallback(&self, shape: ImageShape) -> Rect {
        let (height, width) = (shape.height as f64, shape.width as f64);
        let limited = |v: f64, limit: usize| (v.round_ties_even() as usize).clamp(1, limit.max(1));
        let (h, w) = if width / height < self.ratio.low() {
            (limited(width / self.ratio.low(), shape.height), shape.width)
        } else if width / height > self.ratio.high() {
            (shape.height, limited(height * self.ratio.high(), shape.width))
        } else {
            (shape.height, shape.width)
        };
        Rect { top: (shape.height - h) / 2, left: (shape.width - w) / 2, height: h, width: w }
    }
}

impl Augmentation for RandomResizedCrop {
    fn apply<'a>(&self, image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        let size = self.size.get();
        resample::resize(&image, self.rectangle(image.shape, rng), size, size, self.interpolation)
    }

    fn is_crop_or_flip(&self) -> bool {
        true
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        if self.scale.high() > 1.0 {
            return Err(Error::config(format!(
                "RandomResizedCrop: scale is a fraction of the image's area; expected at most 1, got {}",
                self.scale.high()
            )));
        }
        Ok(Some(square(self.size.get(), input)))
    }

    fn evaluation(&self) -> Option<Box<dyn Augmentation>> {
        Some(Box::new(Resize { size: self.size, interpolation: self.interpolation, crop: true }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{image, mean, rng};
    use super::*;
    use pauc_testing::assert_within;
    use rand::Rng;

    fn step(scale: (f64, f64)) -> RandomResizedCrop {
        RandomResizedCrop {
            size: Count::lit(16),
            scale: Interval::lit(scale.0, scale.1),
            ratio: Interval::lit(0.75, 4.0 / 3.0),
            interpolation: Filter::Bilinear,
        }
    }

    #[test]
    fn rectangles_stay_inside_and_keep_area_and_ratio() {
        let step = step((0.2, 1.0));
        let shape = ImageShape { height: 200, width: 300, channels: 3 };
        let (mut areas, mut logs) = (Vec::new(), Vec::new());
        for i in 0..20_000 {
            let r = step.rectangle(shape, &mut rng(i));
            assert!(r.top + r.height <= 200 && r.left + r.width <= 300);
            // Each side is rounded to whole pixels.
            let (height, width) = (r.height as f64, r.width as f64);
            assert!((width + 0.5) / (height - 0.5) >= 0.75, "{r:?}");
            assert!((width - 0.5) / (height + 0.5) <= 4.0 / 3.0, "{r:?}");
            areas.push(height * width / 60_000.0);
            logs.push((width / height).ln());
        }
        // The rectangles are the draws from the uniform distribution that fit. They are redrawn here, so both
        // means have a sampling error.
        let (draws, most) = (400_000, (4.0f64 / 3.0).ln());
        let mut rng = rng(u64::MAX);
        let (mut fitting_areas, mut fitting_logs) = (Vec::new(), Vec::new());
        for _ in 0..draws {
            let (area, log) = (60_000.0 * rng.gen_range(0.2..1.0), rng.gen_range(-most..most));
            let (w, h) = ((area * log.exp()).sqrt().round(), (area / log.exp()).sqrt().round());
            if w <= 300.0 && h <= 200.0 {
                fitting_areas.push(w * h / 60_000.0);
                fitting_logs.push((w / h).ln());
            }
        }
        // If ten draws do not fit, another rectangle is used, anywhere in the range.
        let none = (1.0 - fitting_areas.len() as f64 / f64::from(draws)).powi(10);
        for (all, fitting, range) in [(areas, fitting_areas, 0.8), (logs, fitting_logs, 2.0 * most)] {
            let ((got, tolerance), (want, sampling)) = (mean(&all), mean(&fitting));
            assert_within!(got, want, tolerance + sampling + none * range);
        }
    }

    #[test]
    fn the_central_rectangle_is_used_if_no_draw_fits() {
        let step = step((1.0, 1.0));
        let wide = step.rectangle(ImageShape { height: 10, width: 90, channels: 1 }, &mut rng(0));
        assert_eq!(wide, Rect { top: 0, left: 38, height: 10, width: 13 });
        let tall = step.rectangle(ImageShape { height: 90, width: 10, channels: 1 }, &mut rng(0));
        assert_eq!(tall, Rect { top: 38, left: 0, height: 13, width: 10 });
        let tiny = step.rectangle(ImageShape { height: 1, width: 1, channels: 1 }, &mut rng(0));
        assert_eq!(tiny, Rect { top: 0, left: 0, height: 1, width: 1 });
    }

    #[test]
    fn the_result_is_a_function_of_the_stream() {
        let step = step((0.2, 1.0));
        let draw = |i| step.apply(image(40, 30, 3), &mut rng(i));
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_eq!(Some(draw(1).shape), step.output(Some(image(40, 30, 3).shape)).unwrap());
        assert!(self::step((0.2, 1.5)).output(None).unwrap_err().to_string().contains("at most 1, got 1.5"));
    }

    #[test]
    fn evaluation_leaves_an_image_of_that_size_unchanged() {
        let evaluation = step((0.2, 1.0)).evaluation().unwrap();
        assert_eq!(evaluation.apply(image(16, 16, 3), &mut rng(0)), image(16, 16, 3));
        assert_eq!(evaluation.apply(image(50, 20, 3), &mut rng(0)).shape.height, 16);
    }
}
