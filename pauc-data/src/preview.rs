//! Previews of the views that training sees.

use crate::{ViewPipeline, contact_sheet};
use pauc_traits::dataset::ImageSource;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Error, Image, Result};

/// Options of [`preview`].
#[derive(Clone, Copy, Debug)]
pub struct PreviewOptions {
    /// The number of images, evenly spaced over the source.
    pub images: usize,
    /// The run's seed.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
}

/// Returns a PNG with one row per image: the evaluation view, then the random views in the given epoch of a
/// run with the given seed.
///
/// # Errors
/// If an image cannot be read, or the sheet is too large for a PNG.
pub fn preview(
    source: &dyn ImageSource,
    training: &ViewPipeline,
    evaluation: &ViewPipeline,
    options: PreviewOptions,
) -> Result<Vec<u8>> {
    let count = options.images.min(source.len());
    if count == 0 {
        return Err(Error::config(
            "preview: no images to show; the split is empty or the number of images is 0",
        ));
    }
    let mut cells = Vec::with_capacity(count * (training.len() + 1));
    for i in 0..count {
        let id = i * source.len() / count;
        let image = source.image(id)?;
        let lent = || Image { shape: image.shape, pixels: (&*image.pixels).into() };
        let rng = |view: usize| stream(options.seed, Purpose::View, options.epoch, id as u64, view as u64);
        cells.push(evaluation.augment(lent(), 0, &mut rng(0)).into_owned());
        cells.extend((0..training.len()).map(|v| training.augment(lent(), v, &mut rng(v)).into_owned()));
    }
    contact_sheet(&cells, training.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use crate::{Loader, LoaderOptions, MemoryImages, ViewSpec};
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::{Count, ImageShape};
    use std::sync::Arc;

    #[test]
    fn it_shows_the_views_of_the_loader() {
        let shape = ImageShape { height: 6, width: 6, channels: 3 };
        let pixels = (0..shape.len() * 4).map(|i| (i * 31 % 251) as u8).collect();
        let source = Arc::new(MemoryImages::new(shape, pixels, None).unwrap());
        let specs: Vec<ViewSpec> = pauc_traits::component_ron::options()
            .from_str("[(ops: [RandomResizedCrop(size: 4), ColorJitter()])]")
            .unwrap();
        // Normalized values equal pixel values up to four roundings: 1/255, 255·1/255, its inverse, the
        // product.
        let unit = [(0.0, 1.0 / 255.0); 3];
        let views = ViewPipeline::training(&specs, Some(shape), &unit).unwrap();
        let evaluation = ViewPipeline::evaluation(&specs, Some(shape), &unit).unwrap();
        let options = PreviewOptions { images: 2, seed: 5, epoch: 3 };
        let sheet = preview(&*source, &views, &evaluation, options).unwrap();
        let sheet = decode(&sheet, Default::default(), "sheet".as_ref()).unwrap();
        assert_eq!((sheet.shape.height, sheet.shape.width), (2 * 6 + 2, 3 * 6 + 2));
        let loader = Loader::new(source, views, LoaderOptions::training(Count::lit(1), 5)).unwrap();
        let batch = loader.batch(3, &[2]).unwrap();
        let numbers = batch.views[1].numbers(0..48);
        // The second row shows the third of four images; its third cell is the second random view.
        for y in 0..4 {
            for x in 0..4 * 3 {
                let shown = f64::from(sheet.pixels[(8 + y) * sheet.shape.width * 3 + 14 * 3 + x]);
                assert_within!(numbers[y * 12 + x], shown, tolerance::f32(4, shown), "{y} {x}");
            }
        }
    }
}
