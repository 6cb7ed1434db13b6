//! A small part of Fashion-MNIST, embedded in the program.

use super::fashion_mnist;
use super::idx::{self, Labeled, Part};
use crate::MemoryImages;
use flate2::read::GzDecoder;
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Dataset, Result, component};
use std::path::Path;

component! {
    /// 5 000 training and 1 000 test images of Fashion-MNIST, embedded in the program: 28×28 gray, 10 classes.
    ///
    /// These are the first 500 images of each class in the official training file and the first 100 of each
    /// class in the official test file, in the order of the files. Accuracies are not comparable with those
    /// on all of Fashion-MNIST. Copyright 2017 Zalando SE, MIT license. Source: Xiao, Rasul & Vollgraf,
    /// *Fashion-MNIST*, 2017.
    pub struct FashionMini: Dataset {}
}

/// Four IDX files, concatenated and compressed: training images and labels, test images and labels.
/// `examples/make_fashion_mini.rs` creates it from the official files.
static BYTES: &[u8] = include_bytes!("../../data/fashion-mini.idx.gz");

/// Images per class from the official files: training, test.
pub const PER_CLASS: [usize; 2] = [500, 100];

/// Returns the first `count` images of each class, in their order.
pub fn first_of_each_class(all: &Labeled, count: usize) -> Labeled {
    let mut taken = [0; 256];
    let size = all.height * all.width;
    let mut part = Labeled { pixels: Vec::new(), labels: Vec::new(), ..*all };
    for (image, &label) in all.pixels.chunks_exact(size).zip(&all.labels) {
        if taken[usize::from(label)] < count {
            taken[usize::from(label)] += 1;
            part.pixels.extend_from_slice(image);
            part.labels.push(label);
        }
    }
    part
}

impl Dataset for FashionMini {
    fn open(&self, _: &Place) -> Result<Splits> {
        let origin = Path::new("(compiled-in Fashion-MNIST)");
        let mut stream = GzDecoder::new(BYTES);
        let mut part = || -> Result<MemoryImages> {
            let images = idx::read_part(&mut stream, Part::Images, origin)?;
            let labels = idx::read_part(&mut stream, Part::Labels, origin)?;
            let labeled = Labeled::join(images, labels, [origin, origin])?;
            labeled.into_images(fashion_mnist::CLASSES.len(), origin)
        };
        let (train, test) = (part()?, part()?);
        idx::finish(train, test, &fashion_mnist::CLASSES, "Fashion-MNIST, first 500 + 100 of each class")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::testing::mean;
    use pauc_testing::assert_within;
    use std::io::Read;

    #[test]
    fn the_content_has_the_expected_hash() {
        let mut content = Vec::new();
        GzDecoder::new(BYTES).read_to_end(&mut content).unwrap();
        assert_eq!(
            blake3::hash(&content).to_hex().as_str(),
            "a633969021e4a497fcaa946959530659163b3dc73f15f39547ab6e1f686b4853"
        );
        assert!(BYTES.len() <= 3_000_000);
    }

    #[test]
    fn classes_are_balanced_and_the_statistics_are_close_to_the_published_ones() {
        let splits = FashionMini {}.open(&Place::at(".")).unwrap();
        for (source, count) in [(&splits.train, PER_CLASS[0]), (splits.test.as_ref().unwrap(), PER_CLASS[1])]
        {
            assert_eq!(source.len(), 10 * count);
            for class in 0..10 {
                assert_eq!(source.labels().unwrap().iter().filter(|l| **l == class).count(), count);
            }
        }
        // Mean and deviation of the whole training file: 0.2860 and 0.3530. These images are a sample of each
        // class. The sampling errors of both are those of means over images: of the image means m, and, with
        // the mean squares q, of the derivative (q − 2·mean·m)/(2·deviation).
        let (got, deviation) = (f64::from(splits.statistics[0].0), f64::from(splits.statistics[0].1));
        let (mut means, mut deviations) = (Vec::new(), Vec::new());
        for class in 0..10 {
            let members = (0..splits.train.len()).filter(|&i| splits.train.labels().unwrap()[i] == class);
            let part = |f: fn(f64) -> f64, pixels: &[u8]| {
                pixels.iter().map(|p| f(f64::from(*p) / 255.0)).sum::<f64>() / pixels.len() as f64
            };
            let statistics: Vec<(f64, f64)> = members
                .map(|i| {
                    let pixels = splits.train.image(i).unwrap().pixels;
                    let (m, q) = (part(|v| v, &pixels), part(|v| v * v, &pixels));
                    (m, (q - 2.0 * got * m) / (2.0 * deviation))
                })
                .collect();
            // The sample is stratified by class, so only deviations from the class mean count.
            let (ms, ds): (Vec<f64>, Vec<f64>) = statistics.into_iter().unzip();
            let around = |all: Vec<f64>| all.iter().map(|v| v - mean(&all).0).collect::<Vec<_>>();
            means.extend(around(ms));
            deviations.extend(around(ds));
        }
        // The published values have four digits.
        assert_within!(got, 0.2860, mean(&means).1 + 0.00005);
        assert_within!(deviation, 0.3530, mean(&deviations).1 + 0.00005);
    }

    #[test]
    fn the_selection_takes_the_first_of_each_class() {
        let all = Labeled { height: 1, width: 1, pixels: vec![9, 8, 7, 6, 5], labels: vec![1, 0, 1, 1, 0] };
        let part = first_of_each_class(&all, 2);
        assert_eq!((part.pixels, part.labels), (vec![9, 8, 7, 5], vec![1, 0, 1, 0]));
    }
}
