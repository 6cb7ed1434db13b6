//! Rotation by a random angle.

use super::happens;
use crate::pixels::rotate::{RotationFilter, rotate};
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Error, Image, ImageShape, NonNegative, Result, UnitInterval, component};
use rand::Rng;

component! {
    /// Turns the image about its centre by an angle that is uniform in −`degrees`..`degrees`, with probability `p`.
    ///
    /// # Shapes
    /// any → the same; corners that turn out of the image are lost.
    ///
    /// Source: `RandomRotation` of torchvision.
    pub struct Rotation: Augmentation {
        /// The greatest angle in degrees, at most 180.
        pub degrees: NonNegative,
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(1.0),
        /// The filter: `Nearest` or `Bilinear`.
        pub interpolation: RotationFilter = RotationFilter::Nearest,
        /// The value of what turns in from outside.
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
    use super::super::testing::{frequency, image, rng};
    use super::*;

    #[test]
    fn angles_fill_their_range() {
        let step = |degrees, p| Rotation {
            degrees: NonNegative::lit(degrees),
            p: UnitInterval::lit(p),
            interpolation: RotationFilter::Nearest,
            fill: 0,
        };
        assert!((frequency(&step(90.0, 0.4), &image(16, 16, 3)) - 0.4).abs() < 0.03);
        assert_eq!(frequency(&step(0.0, 1.0), &image(5, 7, 3)), 0.0);
        assert!(step(181.0, 1.0).output(None).unwrap_err().to_string().contains("at most 180, got 181"));
        // A bright pixel far to the right of the centre goes up and down alike.
        let mut dot = Image::new(ImageShape { height: 41, width: 41, channels: 1 }, vec![0; 1681]);
        (18..23).for_each(|y| (36..41).for_each(|x| dot.pixels.to_mut()[y * 41 + x] = 255));
        let rows: Vec<f64> = (0..400)
            .map(|i| {
                let out = step(60.0, 1.0).apply(dot.clone(), &mut rng(i));
                let (mut sum, mut n) = (0.0, 0.0);
                for (p, _) in out.pixels.iter().enumerate().filter(|p| *p.1 > 0) {
                    (sum, n) = (sum + (p / 41) as f64 - 20.0, n + 1.0);
                }
                sum / n
            })
            .collect();
        // The mean of the sine over a symmetric range is 0; its extremes are 18 sin 60° = 15.6.
        let mean = rows.iter().sum::<f64>() / 400.0;
        let most = rows.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        assert!(mean.abs() < 1.5 && (14.0..17.0).contains(&most), "{mean} {most}");
    }
}
