//! CIFAR-10.

use super::cifar::{self, Records};
use super::{find_folder, names, splits};
use crate::MemoryImages;
use pauc_traits::dataset::{Place, Published, Splits};
use pauc_traits::{Dataset, Error, ImageShape, Result, component};
use std::path::{Path, PathBuf};

const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

component! {
    /// CIFAR-10: 50 000 training and 10 000 test photos, 32×32 RGB, 10 classes.
    ///
    /// Reads the binary version: all `data_batch_*.bin` files in the folder (at least one) and
    /// `test_batch.bin`. Source: Krizhevsky, *Learning multiple layers of features from tiny images*, 2009;
    /// files at <https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz>.
    pub struct Cifar10: Dataset {
        /// The folder `cifar-10-batches-bin` or its parent.
        pub root: PathBuf,
    }
}

const REMEDY: &str =
    "unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz there (the binary version)";

/// Returns the training files, sorted by name.
fn batches(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if name.starts_with("data_batch_") && name.ends_with(".bin") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Dataset for Cifar10 {
    fn open(&self, place: &Place) -> Result<Splits> {
        let has = |f: &Path| batches(f).is_ok_and(|b| !b.is_empty());
        let folder = find_folder(&place.resolve(&self.root), &["cifar-10-batches-bin"], has, REMEDY)?;
        let images = |files: &[PathBuf]| {
            let Records { pixels, labels: [labels] } = cifar::read(files, [CLASSES.len()], REMEDY)?;
            MemoryImages::new(cifar::SHAPE, pixels, Some(labels))
        };
        let files = batches(&folder)?;
        let (train, test) = (images(&files)?, images(&[folder.join("test_batch.bin")])?);
        let count = |m: &MemoryImages| m.pixels().len() / cifar::SHAPE.len();
        let description = format!(
            "CIFAR-10: {} training images from {} of 5 files and {} test images, {}",
            count(&train),
            files.len(),
            count(&test),
            cifar::SHAPE
        );
        Ok(splits(train, Some(test), names(&CLASSES), description))
    }

    fn published(&self) -> Option<Published> {
        let shape = ImageShape { height: 32, width: 32, channels: 3 };
        Some(Published::new(50_000, 10_000, shape, 10))
    }
}

#[cfg(test)]
mod tests {
    use super::super::cifar::tests::file;
    use super::*;

    #[test]
    fn it_reads_all_batch_files_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("cifar-10-batches-bin");
        std::fs::create_dir(&below).unwrap();
        let place = Place::at(folder.path());
        let open = || Cifar10 { root: ".".into() }.open(&place);
        assert!(open().err().unwrap().to_string().contains("cifar-10-binary.tar.gz"));
        std::fs::write(below.join("data_batch_2.bin"), file(2, |_| [9])).unwrap();
        std::fs::write(below.join("data_batch_1.bin"), file(3, |i| [i as u8])).unwrap();
        assert!(open().err().unwrap().to_string().contains("test_batch.bin: not found"));
        std::fs::write(below.join("test_batch.bin"), file(1, |_| [4])).unwrap();
        let splits = open().unwrap();
        assert_eq!(splits.train.labels().unwrap(), [0, 1, 2, 9, 9]);
        assert_eq!(splits.train.image(4).unwrap().pixels[..3], [1, 0, 0]);
        assert_eq!(splits.test.unwrap().len(), 1);
        assert!(splits.description.contains("5 training images from 2 of 5 files"), "{}", splits.description);
        let itself = Cifar10 { root: "cifar-10-batches-bin".into() }.open(&place).unwrap();
        assert_eq!(itself.train.len(), 5);
    }
}
