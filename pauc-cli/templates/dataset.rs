//! A dataset.

use pauc_traits::dataset::{ImageSource, Place, Splits};
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Count, Dataset, Image, ImageShape, Result, component};
use rand::Rng;
use std::sync::Arc;

component! {
    /// Gray images of noise in two classes, dark and bright.
    ///
    /// Test images, a fifth as many, use separate random streams.
    ///
    /// Source: who published the data, and where to get it.
    pub struct DatasetTemplate: Dataset {
        /// The number of training images.
        pub count: Count = Count::lit(1000),
        /// Height and width in pixels.
        pub size: Count = Count::lit(16),
    }
}

/// The names of the classes, index = label.
const CLASSES: [&str; 2] = ["dark", "bright"];

impl Dataset for DatasetTemplate {
    // A dataset that reads files resolves their paths with `place.resolve(&self.root)`.
    fn open(&self, _place: &Place) -> Result<Splits> {
        let (train, test) = (self.images(self.count.get(), 0), self.images(self.count.get().div_ceil(5), 1));
        let description = format!("{} training and {} test images of noise", train.len(), test.len());
        Ok(Splits {
            train: Arc::new(train),
            test: Some(Arc::new(test)),
            classes: CLASSES.map(String::from).to_vec(),
            // Mean and deviation of pixels in 0..1, here of the uniform distribution.
            statistics: vec![(0.5, 0.29)],
            description,
            skipped: Vec::new(),
        })
    }
}

impl DatasetTemplate {
    fn images(&self, count: usize, split: u64) -> NoiseImages {
        let size = self.size.get();
        let shape = ImageShape { height: size, width: size, channels: 1 };
        let labels = (0..count).map(|i| (i % CLASSES.len()) as u32).collect();
        NoiseImages { shape, labels, split }
    }
}

/// Images that are drawn on demand.
struct NoiseImages {
    shape: ImageShape,
    labels: Vec<u32>,
    split: u64,
}

impl ImageSource for NoiseImages {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn shape(&self) -> Option<ImageShape> {
        Some(self.shape)
    }

    // Threads share the source, so an image may depend only on its index.
    fn image(&self, index: usize) -> Result<Image<'_>> {
        let mut rng = stream(0, Purpose::Plugin, self.split, index as u64, 0);
        let darkest = if self.labels[index] == 0 { 0 } else { 128 };
        let pixels: Vec<u8> = (0..self.shape.len()).map(|_| darkest + rng.gen_range(0..128)).collect();
        Ok(Image::new(self.shape, pixels))
    }

    fn labels(&self) -> Option<&[u32]> {
        Some(&self.labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Splits {
        let dataset = DatasetTemplate { count: Count::lit(10), size: Count::lit(8) };
        dataset.open(&Place::at(".")).unwrap()
    }

    #[test]
    fn splits_have_their_sizes_and_labels() {
        let splits = open();
        let test = splits.test.unwrap();
        assert_eq!((splits.train.len(), test.len(), splits.classes.len()), (10, 2, 2));
        assert_eq!(splits.train.labels().unwrap()[..4], [0, 1, 0, 1]);
        let shape = splits.train.shape().unwrap();
        assert_eq!(splits.train.image(0).unwrap().shape, shape);
        assert_eq!(splits.statistics.len(), shape.channels);
    }

    #[test]
    fn images_are_the_same_whenever_they_are_read() {
        let (first, again) = (open(), open());
        assert_eq!(first.train.image(3).unwrap(), again.train.image(3).unwrap());
        assert_ne!(first.train.image(0).unwrap(), first.train.image(2).unwrap());
        assert_ne!(first.train.image(0).unwrap(), first.test.unwrap().image(0).unwrap());
    }

    #[test]
    fn brightness_separates_the_classes() {
        let splits = open();
        for (i, label) in splits.train.labels().unwrap().iter().enumerate() {
            let image = splits.train.image(i).unwrap();
            assert!(image.pixels.iter().all(|v| (*v >= 128) == (*label == 1)), "image {i}");
        }
    }
}
