//! The pipeline from an image to the normalized input of an encoder.

use multiversion::multiversion;
use pauc_traits::dataset::Augmentation;
use pauc_traits::registry::kind;
use pauc_traits::rng::Stream;
use pauc_traits::{Configured, Count, Error, Image, ImageShape, Result, component};
use std::sync::Arc;

component! {
    /// A group of views with the same augmentations.
    pub struct ViewSpec {
        /// The number of views.
        pub count: Count = Count::lit(2),
        /// The augmentations, in order.
        pub ops: Vec<Configured<kind::Augmentation>>,
    }
}

/// One view: its augmentations, its final shape and its normalization.
#[derive(Clone, Debug)]
struct View {
    ops: Vec<Arc<dyn Augmentation>>,
    shape: ImageShape,
    /// Mean and deviation of each channel.
    statistics: Vec<(f32, f32)>,
    /// 1/(255·deviation) and −mean/deviation of each channel.
    normal: Arc<[(f32, f32)]>,
}

/// Turns images into views: augmented, normalized, `f32`, channels last.
///
/// A pixel v of channel c becomes (v/255 − mean_c)/deviation_c, with the statistics of the dataset or of a
/// `Normalize` step.
#[derive(Clone, Debug)]
pub struct ViewPipeline {
    views: Vec<View>,
}

/// Expands a preset into its steps; returns any other step itself.
fn expand(op: Arc<dyn Augmentation>) -> Vec<Arc<dyn Augmentation>> {
    match op.steps() {
        Some(steps) => steps.into_iter().flat_map(expand).collect(),
        None => vec![op],
    }
}

impl ViewPipeline {
    /// Makes the training views of a recipe, for images of shape `input` (`None`: RGB of different sizes)
    /// with the dataset's `statistics`.
    ///
    /// # Errors
    /// If there are no views, a step does not support such images, the size of a view is unknown, or the
    /// number of statistics differs from that of channels.
    pub fn training(
        specs: &[ViewSpec],
        input: Option<ImageShape>,
        statistics: &[(f32, f32)],
    ) -> Result<Self> {
        let ops =
            |spec: &ViewSpec| spec.ops.iter().flat_map(|op| expand(op.value.clone())).collect::<Vec<_>>();
        let views = specs.iter().flat_map(|s| std::iter::repeat_n(ops(s), s.count.get()));
        Self::new(views.collect(), input, statistics)
    }

    /// Makes the deterministic evaluation view from the evaluation forms of the first view's steps.
    ///
    /// # Errors
    /// As [`ViewPipeline::training`].
    pub fn evaluation(
        specs: &[ViewSpec],
        input: Option<ImageShape>,
        statistics: &[(f32, f32)],
    ) -> Result<Self> {
        let steps = specs.iter().take(1).flat_map(|s| &s.ops).flat_map(|op| expand(op.value.clone()));
        Self::new(vec![steps.filter_map(|op| op.evaluation()).map(Arc::from).collect()], input, statistics)
    }

    /// Makes one random view of crops and flips only: the first view without its other random steps.
    ///
    /// # Errors
    /// As [`ViewPipeline::training`].
    pub fn crops_and_flips(
        specs: &[ViewSpec],
        input: Option<ImageShape>,
        statistics: &[(f32, f32)],
    ) -> Result<Self> {
        let steps = specs.iter().take(1).flat_map(|s| &s.ops).flat_map(|op| expand(op.value.clone()));
        let geometric = steps.filter(|op| op.is_crop_or_flip() || op.evaluation().is_some());
        Self::new(vec![geometric.collect()], input, statistics)
    }

    fn new(
        views: Vec<Vec<Arc<dyn Augmentation>>>,
        input: Option<ImageShape>,
        statistics: &[(f32, f32)],
    ) -> Result<Self> {
        if views.is_empty() {
            return Err(Error::config("views: expected at least one; write views: [(count: 2, ops: [...])]"));
        }
        let mut checked = Vec::with_capacity(views.len());
        for ops in views {
            let mut shape = input;
            for op in &ops {
                shape = op.output(shape)?;
            }
            let shape = shape.ok_or_else(|| {
                Error::config(
                    "views: the images differ in size, and no step gives them a common size; add RandomResizedCrop, \
                     Resize or CenterCrop",
                )
            })?;
            if shape.channels != statistics.len() {
                return Err(Error::config(format!(
                    "views: images of {shape} have {} channels, but the dataset has statistics for {}",
                    shape.channels,
                    statistics.len()
                )));
            }
            let mut stated = ops.iter().filter_map(|op| op.normalization());
            let chosen = stated.next().unwrap_or_else(|| statistics.to_vec());
            if stated.next().is_some() {
                return Err(Error::config("views: a view has more than one Normalize; keep one"));
            }
            // A constant channel is centered but not scaled.
            let scale = |deviation: f32| if deviation > 0.0 { deviation } else { 1.0 };
            let chosen: Vec<(f32, f32)> = chosen.into_iter().map(|(mean, d)| (mean, scale(d))).collect();
            let normal = chosen.iter().map(|&(mean, d)| (1.0 / (255.0 * d), -mean / d)).collect();
            checked.push(View { ops, shape, statistics: chosen, normal });
        }
        Ok(ViewPipeline { views: checked })
    }

    /// Returns the number of views.
    pub fn len(&self) -> usize {
        self.views.len()
    }

    /// Whether there are no views; always false.
    pub fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    /// Returns the shape of view `view`.
    pub fn shape(&self, view: usize) -> ImageShape {
        self.views[view].shape
    }

    /// Returns the mean and deviation of each channel that view `view` is normalized with.
    pub fn statistics(&self, view: usize) -> &[(f32, f32)] {
        &self.views[view].statistics
    }

    /// Writes view `view` of an image to `out`, whose length is that of the view's shape.
    ///
    /// # Errors
    /// If the result does not have the view's shape, because the image does not have the dataset's shape.
    pub fn apply(&self, image: Image<'_>, view: usize, rng: &mut Stream, out: &mut [f32]) -> Result<()> {
        let image = self.augment(image, view, rng);
        self.normalize(&image, view, out)
    }

    /// Returns the factor and shift of each channel that normalize the 8-bit values of view `view`.
    pub fn normal(&self, view: usize) -> &Arc<[(f32, f32)]> {
        &self.views[view].normal
    }

    /// Normalizes an augmented image of view `view` into `out`.
    ///
    /// # Shapes
    /// `out`: (channels, height, width) of the view, row-major.
    ///
    /// # Errors
    /// As [`ViewPipeline::apply`].
    pub fn normalize(&self, image: &Image<'_>, view: usize, out: &mut [f32]) -> Result<()> {
        scale(self.checked(image, view, out.len())?, self.normal(view), out);
        Ok(())
    }

    /// Returns the values of an augmented image of view `view`, after a check of their number `len`.
    ///
    /// # Errors
    /// As [`ViewPipeline::apply`].
    pub fn checked<'a>(&self, image: &'a Image<'_>, view: usize, len: usize) -> Result<&'a [u8]> {
        let View { ops, shape, .. } = &self.views[view];
        if image.shape == *shape && len == shape.len() {
            return Ok(&image.pixels);
        }
        Err(Error::shape(
            format!("view {view}"),
            format!("the image has the shape {} after {} steps; expected {shape}", image.shape, ops.len()),
        ))
    }

    /// Returns the augmented image of view `view` before normalization, as previews show it.
    pub fn augment<'a>(&self, image: Image<'a>, view: usize, rng: &mut Stream) -> Image<'a> {
        self.views[view].ops.iter().fold(image, |image, op| op.apply(image, rng))
    }
}

/// out = pixel·factor + shift, channel by channel. Compiled for several vector widths; all give the same
/// values.
#[multiversion(targets = "simd")]
fn scale(pixels: &[u8], normal: &[(f32, f32)], out: &mut [f32]) {
    match *normal {
        [(scale, shift)] => {
            out.iter_mut().zip(pixels).for_each(|(o, p)| *o = f32::from(*p) * scale + shift);
        }
        [r, g, b] => {
            // 16 pixels at a time, so that the repeating factors fill whole vector registers.
            const LANES: usize = 48;
            let factors: [f32; LANES] = std::array::from_fn(|i| [r, g, b][i % 3].0);
            let shifts: [f32; LANES] = std::array::from_fn(|i| [r, g, b][i % 3].1);
            let (blocks, remainder) = out.as_chunks_mut::<LANES>();
            let (pixels, last) = pixels.as_chunks::<LANES>();
            for (o, p) in blocks.iter_mut().zip(pixels) {
                (0..LANES).for_each(|i| o[i] = f32::from(p[i]) * factors[i] + shifts[i]);
            }
            for (i, (o, p)) in remainder.iter_mut().zip(last).enumerate() {
                *o = f32::from(*p) * factors[i] + shifts[i];
            }
        }
        _ => {
            let factors = normal.iter().cycle();
            out.iter_mut().zip(pixels).zip(factors).for_each(|((o, p), f)| *o = f32::from(*p) * f.0 + f.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::component_ron::options;
    use pauc_traits::rng::{Purpose, stream};

    fn specs(text: &str) -> Vec<ViewSpec> {
        options().from_str(text).unwrap()
    }

    const SHAPE: ImageShape = ImageShape { height: 5, width: 7, channels: 3 };
    const STATISTICS: [(f32, f32); 3] = [(0.1, 0.5), (0.2, 0.25), (0.3, 0.0)];

    #[test]
    fn recipe_text_becomes_views_with_shapes() {
        let text = "[(ops: [RandomResizedCrop(size: 4)]), (count: 3, ops: [HorizontalFlip(p: 0.5)])]";
        let views = ViewPipeline::training(&specs(text), Some(SHAPE), &STATISTICS).unwrap();
        let shapes: Vec<_> =
            (0..views.len()).map(|v| (views.shape(v).height, views.shape(v).width)).collect();
        assert_eq!(shapes, [(4, 4), (4, 4), (5, 7), (5, 7), (5, 7)]);
        let evaluation = ViewPipeline::evaluation(&specs(text), None, &STATISTICS).unwrap();
        assert_eq!(
            (evaluation.len(), evaluation.shape(0)),
            (1, ImageShape { height: 4, width: 4, channels: 3 })
        );
    }

    #[test]
    fn crops_and_flips_are_drawn_as_if_the_other_steps_were_absent() {
        let pixels: Vec<u8> = (0..SHAPE.len()).map(|i| (i * 29 % 256) as u8).collect();
        let (with, without) = (
            "[(ops: [RandomResizedCrop(size: 4), ColorJitter(p: 1.0), Solarize(p: 1.0), HorizontalFlip(p: 1.0)])]",
            "[(ops: [RandomResizedCrop(size: 4), HorizontalFlip(p: 1.0)])]",
        );
        let views = |pipeline: Result<ViewPipeline>| {
            let pipeline = pipeline.unwrap();
            let view = |epoch| {
                let mut rng = stream(0, Purpose::View, epoch, 0, 0);
                pipeline.augment(Image::new(SHAPE, pixels.clone()), 0, &mut rng).pixels.to_vec()
            };
            [view(0), view(1)]
        };
        let got = views(ViewPipeline::crops_and_flips(&specs(with), Some(SHAPE), &STATISTICS));
        let want = views(ViewPipeline::training(&specs(without), Some(SHAPE), &STATISTICS));
        assert_eq!(got, want);
        assert!(got[0] != got[1], "every epoch has another draw");
    }

    #[test]
    fn normalization_follows_its_formula() {
        let views =
            ViewPipeline::training(&specs("[(count: 1, ops: [])]"), Some(SHAPE), &STATISTICS).unwrap();
        let pixels: Vec<u8> = (0..SHAPE.len()).map(|i| (i * 29 % 256) as u8).collect();
        let mut out = vec![0.0; SHAPE.len()];
        let mut rng = stream(0, Purpose::View, 0, 0, 0);
        views.apply(Image::new(SHAPE, pixels.clone()), 0, &mut rng, &mut out).unwrap();
        for (i, (o, p)) in out.iter().zip(&pixels).enumerate() {
            let (mean, deviation) = STATISTICS[i % 3];
            let deviation = if deviation > 0.0 { f64::from(deviation) } else { 1.0 };
            let (value, mean) = (f64::from(*p) / 255.0, f64::from(mean));
            let want = (value - mean) / deviation;
            // Four roundings: 255·deviation, its inverse, the product and the sum.
            assert_within!(*o, want, tolerance::f32(4, (value + mean) / deviation), "{i}");
        }
    }

    #[test]
    fn given_statistics_replace_those_of_the_dataset() {
        let view = |ops: &str| specs(&format!("[(count: 1, ops: [{ops}])]"));
        let stated = "HorizontalFlip(p: 0.0), Normalize(mean: [0.5, 0.4, 0.3], deviation: [0.2, 0.3, 0.4])";
        for views in [
            ViewPipeline::training(&view(stated), Some(SHAPE), &STATISTICS).unwrap(),
            ViewPipeline::evaluation(&view(stated), Some(SHAPE), &STATISTICS).unwrap(),
        ] {
            let mut out = vec![0.0; SHAPE.len()];
            let image = Image::new(SHAPE, vec![51; SHAPE.len()]);
            views.apply(image, 0, &mut stream(0, Purpose::View, 0, 0, 0), &mut out).unwrap();
            for (i, v) in out.iter().enumerate() {
                let (mean, deviation) = [(0.5, 0.2), (0.4, 0.3), (0.3, 0.4)][i % 3];
                // As above, plus the rounding of mean and deviation to `f32`.
                let rounding = tolerance::f32(5, (0.2 + mean) / deviation);
                assert_within!(*v, (0.2 - mean) / deviation, rounding, "{i}");
            }
            assert_eq!(views.statistics(0)[2], (0.3, 0.4));
        }
        let twice = view(&format!("{stated}, {stated}"));
        assert!(ViewPipeline::training(&twice, Some(SHAPE), &STATISTICS).is_err());
    }

    #[test]
    fn impossible_views_are_refused_with_the_remedy() {
        let error = |text: &str, input| {
            ViewPipeline::training(&specs(text), input, &STATISTICS).unwrap_err().to_string()
        };
        assert!(error("[]", Some(SHAPE)).contains("expected at least one"));
        assert!(error("[(ops: [HorizontalFlip()])]", None).contains("add RandomResizedCrop"));
        assert!(error("[(ops: [RandomCrop(size: 90)])]", Some(SHAPE)).contains("size 90"));
        let gray = ImageShape { channels: 1, ..SHAPE };
        assert!(error("[(ops: [])]", Some(gray)).contains("statistics for 3"));
    }

    #[test]
    fn an_image_of_another_shape_is_an_error_not_a_panic() {
        let views = ViewPipeline::training(&specs("[(ops: [])]"), Some(SHAPE), &STATISTICS).unwrap();
        let other = Image::new(ImageShape { height: 4, ..SHAPE }, vec![0; 84]);
        let mut rng = stream(0, Purpose::View, 0, 0, 0);
        assert!(views.apply(other, 0, &mut rng, &mut vec![0.0; SHAPE.len()]).is_err());
    }
}
