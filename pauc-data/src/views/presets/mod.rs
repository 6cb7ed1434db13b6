//! Lists of augmentations from papers, as presets.
//!
//! A preset is an augmentation that expands to its steps: `ops: [SimClr(size: 32)]` is equivalent to the full
//! list, including the random numbers.

mod byol;
mod moco_v2;
mod multi_crop;
mod sim_clr;
mod sim_clr_strong;

pub use byol::{Byol, ByolView};
pub use moco_v2::MocoV2;
pub use multi_crop::{CropSize, MultiCrop};
pub use sim_clr::SimClr;
pub use sim_clr_strong::SimClrStrong;

use super::{BlurModel, ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, RandomResizedCrop};
use crate::Interval;
use crate::pixels::Filter;
use pauc_traits::{Augmentation, Count, NonNegative, UnitInterval};
use std::sync::Arc;

type Steps = Vec<Arc<dyn Augmentation>>;

/// Implements `Augmentation` for a struct whose method `list` returns the steps.
macro_rules! preset {
    ($name:ident) => {
        impl pauc_traits::Augmentation for $name {
            fn apply<'a>(
                &self,
                image: pauc_traits::Image<'a>,
                rng: &mut pauc_traits::rng::Stream,
            ) -> pauc_traits::Image<'a> {
                self.list().iter().fold(image, |image, step| step.apply(image, rng))
            }

            fn output(
                &self,
                input: Option<pauc_traits::ImageShape>,
            ) -> pauc_traits::Result<Option<pauc_traits::ImageShape>> {
                self.list().iter().try_fold(input, |shape, step| step.output(shape))
            }

            fn evaluation(&self) -> Option<Box<dyn pauc_traits::Augmentation>> {
                // Only the crop, which comes first, affects the evaluation view.
                self.list().first().and_then(|crop| crop.evaluation())
            }

            fn steps(&self) -> Option<Vec<std::sync::Arc<dyn pauc_traits::Augmentation>>> {
                Some(self.list())
            }
        }
    };
}
use preset;

fn crop(size: Count, scale: Interval, interpolation: Filter) -> Arc<dyn Augmentation> {
    let ratio = Interval::lit(3.0 / 4.0, 4.0 / 3.0);
    Arc::new(RandomResizedCrop { size, scale, ratio, interpolation })
}

fn flip() -> Arc<dyn Augmentation> {
    Arc::new(HorizontalFlip { p: UnitInterval::lit(0.5) })
}

/// Jitter with probability 0.8; `by` holds brightness, contrast, saturation and hue, which are multiplied by
/// `strength`.
fn jitter(strength: f64, by: [f64; 4]) -> Arc<dyn Augmentation> {
    // A hue of ½ covers the whole circle.
    let most = [f64::MAX, f64::MAX, f64::MAX, 0.5];
    let [brightness, contrast, saturation, hue] =
        std::array::from_fn(|i| NonNegative::lit((strength * by[i]).min(most[i])));
    Arc::new(ColorJitter { p: UnitInterval::lit(0.8), brightness, contrast, saturation, hue })
}

fn gray() -> Arc<dyn Augmentation> {
    Arc::new(Grayscale { p: UnitInterval::lit(0.2) })
}

/// Blur with a kernel of a tenth of the image size, at least three pixels.
fn blur(p: UnitInterval, size: Count) -> Arc<dyn Augmentation> {
    let kernel = Count::try_from(((size.get() / 10) | 1).max(3)).ok();
    Arc::new(GaussianBlur { p, sigma: Interval::lit(0.1, 2.0), model: BlurModel::Exact, kernel })
}

#[cfg(test)]
mod tests {
    use crate::{ViewPipeline, ViewSpec};
    use pauc_traits::component_ron::options;
    use pauc_traits::rng::{Purpose, stream};
    use pauc_traits::{Image, ImageShape};

    fn views(ops: &str) -> ViewPipeline {
        let specs: Vec<ViewSpec> = options().from_str(&format!("[(count: 1, ops: [{ops}])]")).unwrap();
        ViewPipeline::training(&specs, None, &[(0.5, 0.25); 3]).unwrap()
    }

    /// Each preset gives exactly the pixels of the list in its source.
    #[test]
    fn presets_equal_their_lists() {
        let crop = |low: &str, high: &str, more: &str| {
            format!("RandomResizedCrop(size: 48, scale: ({low}, {high}){more}), HorizontalFlip(p: 0.5)")
        };
        let jitter = |b: &str, s: &str, h: &str| {
            format!(
                "ColorJitter(p: 0.8, brightness: {b}, contrast: {b}, saturation: {s}, hue: {h}), Grayscale(p: 0.2)"
            )
        };
        let blur = |p: &str| format!("GaussianBlur(p: {p}, sigma: (0.1, 2.0), model: Exact, kernel: 5)");
        let simclr = format!("{}, {}, {}", crop("0.08", "1.0", ""), jitter("0.8", "0.8", "0.2"), blur("0.5"));
        let byol =
            format!("{}, {}", crop("0.08", "1.0", ", interpolation: Bicubic"), jitter("0.4", "0.2", "0.1"));
        let pil = "GaussianBlur(p: 0.5, sigma: (0.1, 2.0), model: Pil)";
        for (preset, list) in [
            ("SimClr(size: 48)", simclr.clone()),
            (
                "SimClr(size: 48, strength: 0.5, blur: 0.0, scale: (0.2, 1.0))",
                format!("{}, {}, {}", crop("0.2", "1.0", ""), jitter("0.4", "0.4", "0.1"), blur("0.0")),
            ),
            ("SimClrStrong(size: 48)", format!("{simclr}, Solarize(p: 0.2), Equalize(p: 0.2)")),
            (
                "MocoV2(size: 48)",
                format!("{}, {}, {pil}", crop("0.2", "1.0", ""), jitter("0.4", "0.4", "0.1")),
            ),
            ("Byol(size: 48, view: First)", format!("{byol}, {}, Solarize(p: 0.0)", blur("1.0"))),
            ("Byol(size: 48, view: Second)", format!("{byol}, {}, Solarize(p: 0.2)", blur("0.1"))),
            (
                "MultiCrop(size: 48, crop: Global)",
                format!("{}, {}, {pil}", crop("0.14", "1.0", ""), jitter("0.8", "0.8", "0.2")),
            ),
            (
                "MultiCrop(size: 48, crop: Local)",
                format!("{}, {}, {pil}", crop("0.05", "0.14", ""), jitter("0.8", "0.8", "0.2")),
            ),
        ] {
            let (short, long) = (views(preset), views(&list));
            let shape = ImageShape { height: 60, width: 75, channels: 3 };
            let image = Image::new(shape, (0..shape.len()).map(|i| (i * i % 253) as u8).collect::<Vec<_>>());
            for i in 0..20 {
                let rng = || stream(0, Purpose::View, 0, i, 0);
                let augmented = |v: &ViewPipeline| v.augment(image.clone(), 0, &mut rng());
                assert_eq!(augmented(&short), augmented(&long), "{preset}");
                let alone = pauc_traits::Configured::<dyn pauc_traits::Augmentation>::parse(preset).unwrap();
                assert_eq!(alone.apply(image.clone(), &mut rng()), augmented(&long), "{preset}");
            }
        }
    }

    #[test]
    fn the_evaluation_view_is_the_resize() {
        let specs: Vec<ViewSpec> = options().from_str("[(ops: [MocoV2(size: 24)])]").unwrap();
        let evaluation = ViewPipeline::evaluation(&specs, None, &[(0.5, 0.25); 3]).unwrap();
        let resize: Vec<ViewSpec> = options().from_str("[(ops: [Resize(size: 24)])]").unwrap();
        let resize = ViewPipeline::training(&resize, None, &[(0.5, 0.25); 3]).unwrap();
        let shape = ImageShape { height: 31, width: 40, channels: 3 };
        let image = Image::new(shape, (0..shape.len()).map(|i| (i * 7 % 253) as u8).collect::<Vec<_>>());
        let augmented =
            |v: &ViewPipeline| v.augment(image.clone(), 0, &mut stream(0, Purpose::View, 0, 0, 0));
        assert_eq!(augmented(&evaluation), augmented(&resize));
        let op = pauc_traits::Configured::<dyn pauc_traits::Augmentation>::parse("MocoV2(size: 24)").unwrap();
        let alone = op.evaluation().unwrap();
        assert_eq!(alone.apply(image.clone(), &mut stream(0, Purpose::View, 0, 0, 0)), augmented(&resize));
    }
}
