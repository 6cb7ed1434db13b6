//! Random Gaussian blur.

use super::happens;
use crate::Interval;
use crate::pixels::blur;
use pauc_traits::rng::Stream;
use pauc_traits::{Augmentation, Count, Error, Image, ImageShape, Result, UnitInterval, component};
use serde::{Deserialize, Serialize};

/// The implementation of the blur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlurModel {
    /// Pillow's approximation by three box filters, as in MoCo's and SimCLR's reference code.
    Pil,
    /// The convolution with a Gaussian truncated to `kernel` pixels, as in torchvision.
    Exact,
}

component! {
    /// Blurs with a Gaussian of random standard deviation, with probability `p`.
    ///
    /// # Shapes
    /// any → the same.
    ///
    /// Source: Chen et al., *A simple framework for contrastive learning*, 2020.
    pub struct GaussianBlur: Augmentation {
        /// The probability.
        pub p: UnitInterval = UnitInterval::lit(0.5),
        /// The range of the standard deviation in pixels, which is drawn uniformly.
        pub sigma: Interval = Interval::lit(0.1, 2.0),
        /// `Pil` for Pillow's approximation, `Exact` for the exact convolution.
        pub model: BlurModel = BlurModel::Pil,
        /// The kernel size of `Exact` in pixels, an odd number; by default three standard deviations to each
        /// side.
        pub kernel: Option<Count> = None,
    }
}

/// The largest standard deviation in pixels. A larger one leaves only the mean color of most images.
const MAX_SIGMA: f64 = 1024.0;
/// The largest kernel: three times [`MAX_SIGMA`] to each side.
const MAX_KERNEL: usize = 6145;

impl Augmentation for GaussianBlur {
    fn apply<'a>(&self, mut image: Image<'a>, rng: &mut Stream) -> Image<'a> {
        if happens(self.p, rng) {
            let sigma = self.sigma.uniform(rng);
            match self.model {
                BlurModel::Pil => blur::pillow(&mut image, sigma),
                BlurModel::Exact => {
                    let radius = self.kernel.map_or((3.0 * sigma).ceil() as usize, |k| k.get() / 2);
                    blur::exact(&mut image, sigma, radius);
                }
            }
        }
        image
    }

    fn output(&self, input: Option<ImageShape>) -> Result<Option<ImageShape>> {
        if self.sigma.high() > MAX_SIGMA {
            let message = format!("GaussianBlur: sigma is at most {MAX_SIGMA}, got {}", self.sigma.high());
            return Err(Error::config(message));
        }
        match (self.model, self.kernel) {
            (_, Some(k)) if k.get() > MAX_KERNEL => {
                Err(Error::config(format!("GaussianBlur: the kernel is at most {MAX_KERNEL}, got {k}")))
            }
            (BlurModel::Pil, Some(_)) => {
                Err(Error::config("GaussianBlur: `kernel` needs `model: Exact`; remove it or set the model"))
            }
            (_, Some(k)) if k.get() % 2 == 0 => {
                Err(Error::config(format!("GaussianBlur: expected an odd kernel, got {k}")))
            }
            _ => Ok(input),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_frequency, image, rng};
    use super::*;

    fn step(model: BlurModel, kernel: Option<Count>) -> GaussianBlur {
        GaussianBlur { p: UnitInterval::lit(0.5), sigma: Interval::lit(0.5, 2.0), model, kernel }
    }

    #[test]
    fn both_models_blur_with_their_probability_and_agree_roughly() {
        let source = image(16, 16, 3);
        for model in [BlurModel::Pil, BlurModel::Exact] {
            assert_frequency(&step(model, None), &source, 0.5);
        }
        // The models treat the border differently, so the middle is compared. Rows are a ramp plus
        // alternating ±7.5. Both models preserve the ramp. They keep a fraction of the alternating part
        // between −1/27 and (5/6)³, the values of Pillow's model at the widths √2 and ½. Each of Pillow's
        // three passes rounds by up to half a level, and so does the end of the other model.
        let most = 7.5 * ((5.0f64 / 6.0).powi(3) + 1.0 / 27.0) + 4.0 * 0.5;
        let smooth = Image::new(source.shape, (0..768).map(|i| (i / 6 % 8 * 30) as u8).collect::<Vec<_>>());
        let blurred = |model, i| step(model, None).apply(smooth.clone(), &mut rng(i));
        for i in 0..20 {
            let (a, b) = (blurred(BlurModel::Pil, i), blurred(BlurModel::Exact, i));
            let middle = |p: &Image<'_>| p.pixels[7 * 48 + 21..7 * 48 + 27].to_vec();
            assert!(middle(&a).iter().zip(middle(&b)).all(|(a, b)| f64::from(a.abs_diff(b)) <= most), "{i}");
        }
    }

    #[test]
    fn kernels_are_odd_and_need_the_exact_model() {
        assert!(step(BlurModel::Exact, Some(Count::lit(3))).output(None).is_ok());
        assert!(step(BlurModel::Exact, Some(Count::lit(4))).output(None).is_err());
        assert!(step(BlurModel::Pil, Some(Count::lit(3))).output(None).is_err());
        assert!(step(BlurModel::Exact, Some(Count::lit(6145))).output(None).is_ok());
        assert!(step(BlurModel::Exact, Some(Count::lit(6147))).output(None).is_err());
        let wide = GaussianBlur { sigma: Interval::lit(1.0, 1e9), ..step(BlurModel::Pil, None) };
        assert!(wide.output(None).unwrap_err().to_string().contains("sigma is at most 1024"));
    }
}
