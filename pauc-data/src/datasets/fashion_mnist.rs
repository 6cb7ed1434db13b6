//! Fashion-MNIST from its official files.

use super::idx;
use pauc_traits::dataset::{Place, Published, Splits};
use pauc_traits::{Dataset, ImageShape, Result, component};
use std::path::PathBuf;

/// The class names.
pub const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

component! {
    /// Fashion-MNIST: 60 000 training and 10 000 test images of clothes, 28×28 gray, 10 classes.
    ///
    /// Reads the four official IDX files, compressed or not. Source: Xiao, Rasul & Vollgraf, *Fashion-MNIST*, 2017;
    /// files at <https://github.com/zalandoresearch/fashion-mnist> or in Debian's package `dataset-fashion-mnist`.
    pub struct FashionMnist: Dataset {
        /// The folder of the files, or torchvision's folder above it.
        pub root: PathBuf,
    }
}

impl Dataset for FashionMnist {
    fn open(&self, place: &Place) -> Result<Splits> {
        let remedy = "put train-images-idx3-ubyte.gz and the three other files there, from \
                      https://github.com/zalandoresearch/fashion-mnist or Debian's package dataset-fashion-mnist";
        let below = ["raw", "FashionMNIST/raw"];
        idx::open_folder(&place.resolve(&self.root), &below, &CLASSES, "Fashion-MNIST", remedy)
    }

    fn published(&self) -> Option<Published> {
        let shape = ImageShape { height: 28, width: 28, channels: 1 };
        Some(Published::new(60_000, 10_000, shape, 10))
    }
}

#[cfg(test)]
mod tests {
    use super::super::idx::tests::{tiny, write};
    use super::*;

    #[test]
    fn the_folder_may_be_the_parent() {
        let folder = tempfile::tempdir().unwrap();
        let raw = folder.path().join("fashion/FashionMNIST/raw");
        std::fs::create_dir_all(&raw).unwrap();
        write(&raw);
        let place = Place::at(folder.path());
        let splits = FashionMnist { root: "fashion".into() }.open(&place).unwrap();
        assert_eq!((splits.train.len(), splits.test.as_ref().unwrap().len()), (20, 10));
        assert_eq!(splits.train.image(3).unwrap().pixels[..], tiny(20).pixels[18..24]);
        assert_eq!(splits.train.labels().unwrap()[13], 3);
        assert_eq!(splits.classes[9], "Ankle boot");
        assert_eq!(splits.statistics.len(), 1);
        let text = FashionMnist { root: "elsewhere".into() }.open(&place).err().unwrap().to_string();
        assert!(text.contains("elsewhere: not found; put train-images"), "{text}");
    }
}
