//! Rotation by a random angle.

use super::happens;
use crate::pixels::rotate::{RotationFilter, rotate};
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Error, Image, ImageShape, NonNegative, Result, UnitInterval, component};
use rand::Rng;

component! {
    /// Rotates the image about its center by an angle drawn uniformly from −`degrees`..`degrees`, with probability `p`.
    ///
    /// # Shapes
    /// any → the same; corners that leave the image are lost.
    ///
    /// Source: `RandomRotation` of torchvision.
    pub struct Rotation: Augmentation {
        /// The largest angle in degrees, at most 180.
        pub degrees: NonNegative,
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(1.0),
        /// The filter: `Nearest` or `Bilinear`.
        pub interpolation: RotationFilter = RotationFilter::Nearest,
        /// The fill value of pixels from outside the image.
        pub fill: u8 = 0,
    }
}

impl Augmentation for Rotation {
    fn apply<'a>(&self, image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if !happens(self.p, rng) {
            return image;
        }
        let most = self.degrees.get();
        rotate(&image, most * rng.gen_range(-1.0..=1.0), self.interpolation, self.fill)
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        if self.degrees.get() > 180.0 {
            return Err(Error::config(format!("Rotation: degrees is at most 180, got {}", self.degrees)));
        }
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_frequency, frequency, image, mean, rng};
    use super::*;
    use pauc_testing::assert_within;

    #[test]
    fn angles_fill_their_range() {
        let step = |degrees, p| Rotation {
            degrees: NonNegative::lit(degrees),
            p: UnitInterval::lit(p),
            interpolation: RotationFilter::Nearest,
            fill: 0,
        };
        // Below 3.7° nothing changes: the center of a corner pixel, at 7.5 in both directions, is the first
        // to be read from another pixel, when 7.5 (cos − sin) < 7.
        let still = (7.0 / 7.5 / 2f64.sqrt()).acos().to_degrees() - 45.0;
        assert_frequency(&step(90.0, 0.4), &image(16, 16, 3), 0.4 * (1.0 - still / 90.0));
        assert_eq!(frequency(&step(0.0, 1.0), &image(5, 7, 3)), 0.0);
        assert!(step(181.0, 1.0).output(None).unwrap_err().to_string().contains("at most 180, got 181"));
        // A bright pixel far to the right of the center moves up and down equally often.
        let mut dot = Image::new(ImageShape { height: 41, width: 41, channels: 1 }, vec![0; 1681]);
        dot.pixels.to_mut()[20 * 41 + 38] = 255;
        let draws = 2500;
        // Draws in which no pixel center falls on the rotated dot do not count.
        let rows: Vec<f64> = (0..draws)
            .filter_map(|i| {
                let out = step(60.0, 1.0).apply(dot.clone(), &mut rng(i));
                let lit = out.pixels.iter().enumerate().filter(|p| *p.1 > 0);
                let rows: Vec<f64> = lit.map(|(place, _)| (place / 41) as f64 - 20.0).collect();
                (!rows.is_empty()).then(|| rows.iter().sum::<f64>() / rows.len() as f64)
            })
            .collect();
        // The mean of the sine over a symmetric range is 0.
        let (middle, tolerance) = mean(&rows);
        assert_within!(middle, 0.0, tolerance);
        // Its extremes are 18 sin 60° = 15.6. The largest of n angles is below 60° by more than 20/n of it
        // with probability e⁻²⁰. A pixel center is within the dot's square, at most half its diagonal from
        // the dot's center.
        let most = rows.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let height = |degrees: f64| 18.0 * degrees.to_radians().sin();
        let short = height(60.0) - height(60.0 * (1.0 - 20.0 / draws as f64));
        assert_within!(most, height(60.0), short + 0.5f64.sqrt());
    }
}
