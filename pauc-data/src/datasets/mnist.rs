//! MNIST from its official files.

use super::idx;
use pauc_traits::dataset::{Place, Published, Splits};
use pauc_traits::{Dataset, ImageShape, Result, component};
use std::path::PathBuf;

component! {
    /// MNIST: 60 000 training and 10 000 test images of handwritten digits, 28×28 gray, 10 classes.
    ///
    /// Reads the four official IDX files, compressed or not. Source: LeCun, Cortes & Burges, *The MNIST database of
    /// handwritten digits*, 1998.
    pub struct Mnist: Dataset {
        /// The folder of the files, or torchvision's folder above it.
        pub root: PathBuf,
    }
}

impl Dataset for Mnist {
    fn open(&self, place: &Place) -> Result<Splits> {
        let remedy = "put train-images-idx3-ubyte.gz and the three other files there, from \
                      https://ossci-datasets.s3.amazonaws.com/mnist/";
        let classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
        idx::open_folder(&place.resolve(&self.root), &["raw", "MNIST/raw"], &classes, "MNIST", remedy)
    }

    fn published(&self) -> Option<Published> {
        let shape = ImageShape { height: 28, width: 28, channels: 1 };
        Some(Published::new(60_000, 10_000, shape, 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_the_official_names() {
        let folder = tempfile::tempdir().unwrap();
        idx::tests::write(folder.path());
        let place = Place::at(folder.path());
        let splits = Mnist { root: ".".into() }.open(&place).unwrap();
        assert_eq!(splits.classes.len(), 10);
        assert_eq!(splits.description, "MNIST: 20 training and 10 test images, 2×3×1");
    }
}
