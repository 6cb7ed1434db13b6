//! CIFAR-100.

use super::cifar::{self, Records};
use super::{find_folder, names, splits};
use crate::MemoryImages;
use pauc_traits::dataset::{Place, Published, Splits};
use pauc_traits::{Dataset, ImageShape, Result, component};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Which of the two labels of an image is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Granularity {
    /// One of 100 classes.
    Fine,
    /// One of 20 classes.
    Coarse,
}

component! {
    /// CIFAR-100: 50 000 training and 10 000 test photos, 32×32 RGB, 100 fine classes in 20 coarse ones.
    ///
    /// Reads the binary version, `train.bin` and `test.bin`. Source: Krizhevsky, *Learning multiple layers of
    /// features from tiny images*, 2009; files at <https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz>.
    pub struct Cifar100: Dataset {
        /// The folder `cifar-100-binary` or its parent.
        pub root: PathBuf,
        /// `Fine` for 100 classes, `Coarse` for 20. The other labels remain available as labels of a second
        /// granularity.
        pub labels: Granularity = Granularity::Fine,
    }
}

impl Dataset for Cifar100 {
    fn open(&self, place: &Place) -> Result<Splits> {
        let remedy =
            "unpack https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz there (the binary version)";
        let has = |f: &Path| f.join("train.bin").is_file();
        let folder = find_folder(&place.resolve(&self.root), &["cifar-100-binary"], has, remedy)?;
        let images = |name: &str| {
            let Records { pixels, labels: [coarse, fine] } =
                cifar::read(&[folder.join(name)], [COARSE.len(), FINE.len()], remedy)?;
            let (labels, others) = match self.labels {
                Granularity::Fine => (fine, coarse),
                Granularity::Coarse => (coarse, fine),
            };
            MemoryImages::new(cifar::SHAPE, pixels, Some(labels))?.with_other_labels(others)
        };
        let (train, test) = (images("train.bin")?, images("test.bin")?);
        let count = |m: &MemoryImages| m.pixels().len() / cifar::SHAPE.len();
        let description = format!(
            "CIFAR-100: {} training and {} test images, {}",
            count(&train),
            count(&test),
            cifar::SHAPE
        );
        let classes = match self.labels {
            Granularity::Fine => names(&FINE),
            Granularity::Coarse => names(&COARSE),
        };
        Ok(splits(train, Some(test), classes, description))
    }

    fn published(&self) -> Option<Published> {
        let shape = ImageShape { height: 32, width: 32, channels: 3 };
        let classes = if self.labels == Granularity::Fine { 100 } else { 20 };
        Some(Published::new(50_000, 10_000, shape, classes))
    }
}

const COARSE: [&str; 20] = [
    "aquatic_mammals",
    "fish",
    "flowers",
    "food_containers",
    "fruit_and_vegetables",
    "household_electrical_devices",
    "household_furniture",
    "insects",
    "large_carnivores",
    "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores",
    "medium_mammals",
    "non-insect_invertebrates",
    "people",
    "reptiles",
    "small_mammals",
    "trees",
    "vehicles_1",
    "vehicles_2",
];

const FINE: [&str; 100] = [
    "apple",
    "aquarium_fish",
    "baby",
    "bear",
    "beaver",
    "bed",
    "bee",
    "beetle",
    "bicycle",
    "bottle",
    "bowl",
    "boy",
    "bridge",
    "bus",
    "butterfly",
    "camel",
    "can",
    "castle",
    "caterpillar",
    "cattle",
    "chair",
    "chimpanzee",
    "clock",
    "cloud",
    "cockroach",
    "couch",
    "crab",
    "crocodile",
    "cup",
    "dinosaur",
    "dolphin",
    "elephant",
    "flatfish",
    "forest",
    "fox",
    "girl",
    "hamster",
    "house",
    "kangaroo",
    "keyboard",
    "lamp",
    "lawn_mower",
    "leopard",
    "lion",
    "lizard",
    "lobster",
    "man",
    "maple_tree",
    "motorcycle",
    "mountain",
    "mouse",
    "mushroom",
    "oak_tree",
    "orange",
    "orchid",
    "otter",
    "palm_tree",
    "pear",
    "pickup_truck",
    "pine_tree",
    "plain",
    "plate",
    "poppy",
    "porcupine",
    "possum",
    "rabbit",
    "raccoon",
    "ray",
    "road",
    "rocket",
    "rose",
    "sea",
    "seal",
    "shark",
    "shrew",
    "skunk",
    "skyscraper",
    "snail",
    "snake",
    "spider",
    "squirrel",
    "streetcar",
    "sunflower",
    "sweet_pepper",
    "table",
    "tank",
    "telephone",
    "television",
    "tiger",
    "tractor",
    "train",
    "trout",
    "tulip",
    "turtle",
    "wardrobe",
    "whale",
    "willow_tree",
    "wolf",
    "woman",
    "worm",
];

#[cfg(test)]
mod tests {
    use super::super::cifar::tests::file;
    use super::*;

    #[test]
    fn both_granularities_are_read() {
        assert!(FINE.is_sorted() && COARSE.is_sorted());
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path());
        std::fs::write(folder.path().join("train.bin"), file(4, |i| [i as u8, 90 + i as u8])).unwrap();
        std::fs::write(folder.path().join("test.bin"), file(2, |i| [19, i as u8])).unwrap();
        let open = |labels| Cifar100 { root: ".".into(), labels }.open(&place).unwrap();
        let (fine, coarse) = (open(Granularity::Fine), open(Granularity::Coarse));
        assert_eq!(fine.train.labels().unwrap(), [90, 91, 92, 93]);
        assert_eq!(fine.train.fine_labels().unwrap(), [0, 1, 2, 3]);
        assert_eq!(
            (coarse.train.labels(), coarse.train.fine_labels()),
            (fine.train.fine_labels(), fine.train.labels())
        );
        assert_eq!((fine.classes.len(), coarse.classes.len()), (100, 20));
        assert_eq!(fine.classes[93], "turtle");
    }
}
