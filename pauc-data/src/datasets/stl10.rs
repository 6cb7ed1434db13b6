//! STL-10.

use super::{cannot_open, find_folder, names, splits};
use crate::MemoryImages;
use pauc_traits::dataset::{Place, Published, Splits};
use pauc_traits::{Dataset, Error, ImageShape, Result, component};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The training images to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StlPart {
    /// The 5 000 labeled images.
    Labelled,
    /// The 100 000 unlabeled images.
    Unlabelled,
    /// All of them, labeled images first, without labels.
    Both,
}

component! {
    /// STL-10: 5 000 labeled and 100 000 unlabeled training photos and 8 000 test photos, 96×96 RGB, 10 classes.
    ///
    /// Reads the binary version. The unlabeled images take 2.6 GiB of memory. Source: Coates, Lee & Ng, *An analysis
    /// of single-layer networks in unsupervised feature learning*, 2011; files at
    /// <http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz>.
    pub struct Stl10: Dataset {
        /// The folder `stl10_binary` or its parent.
        pub root: PathBuf,
        /// `Labelled`, `Unlabelled` or `Both`. Probes and terms have labels only with `Labelled`.
        pub train: StlPart = StlPart::Labelled,
    }
}

const CLASSES: [&str; 10] =
    ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"];
/// The shape of every image.
pub const SHAPE: ImageShape = ImageShape { height: 96, width: 96, channels: 3 };
const REMEDY: &str = "unpack http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz there";

/// Appends images, each stored as three planes (red, green, blue), column by column.
///
/// # Errors
/// If the length of `bytes` is 0 or not a multiple of an image's size.
pub fn unpack(bytes: &[u8], pixels: &mut Vec<u8>, path: &Path) -> Result<()> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(SHAPE.len()) {
        let message = format!(
            "is truncated; expected images of {} bytes, got {} bytes; download it again",
            SHAPE.len(),
            bytes.len()
        );
        return Err(Error::damaged(path, message));
    }
    const PLANE: usize = SHAPE.height * SHAPE.width;
    let start = pixels.len();
    pixels.resize(start + bytes.len(), 0);
    let pictures = pixels[start..].chunks_exact_mut(SHAPE.len()).zip(bytes.chunks_exact(SHAPE.len()));
    for (picture, planes) in pictures {
        for (p, pixel) in picture.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let place = p % SHAPE.width * SHAPE.height + p / SHAPE.width;
            *pixel = [planes[place], planes[PLANE + place], planes[2 * PLANE + place]];
        }
    }
    Ok(())
}

/// Converts labels 1 to 10 to 0 to 9.
///
/// # Errors
/// If there are not `count` labels, or one is out of range.
pub fn labels(bytes: &[u8], count: usize, path: &Path) -> Result<Vec<u32>> {
    if bytes.len() != count {
        return Err(Error::damaged(path, format!("has {} labels for {count} images", bytes.len())));
    }
    let label = |(i, b): (usize, &u8)| match b {
        1..=10 => Ok(u32::from(b - 1)),
        _ => Err(Error::damaged(path, format!("label {b} of image {i} is out of range; expected 1 to 10"))),
    };
    bytes.iter().enumerate().map(label).collect()
}

/// Appends the images of a file in parts, so that only one copy is in memory.
fn append(path: &Path, pixels: &mut Vec<u8>) -> Result<()> {
    let mut file = File::open(path).map_err(|e| cannot_open(path, e, REMEDY))?;
    let mut part = Vec::new();
    let before = pixels.len();
    loop {
        part.clear();
        let chunk = (SHAPE.len() * 512) as u64;
        file.by_ref().take(chunk).read_to_end(&mut part).map_err(|e| Error::io(path, e))?;
        if part.is_empty() && pixels.len() > before {
            return Ok(());
        }
        unpack(&part, pixels, path)?;
    }
}

impl Dataset for Stl10 {
    fn open(&self, place: &Place) -> Result<Splits> {
        let has = |f: &Path| f.join("test_X.bin").is_file();
        let folder = find_folder(&place.resolve(&self.root), &["stl10_binary"], has, REMEDY)?;
        let labeled = |part: &str| -> Result<(Vec<u8>, Vec<u32>)> {
            let mut pixels = Vec::new();
            append(&folder.join(format!("{part}_X.bin")), &mut pixels)?;
            let path = folder.join(format!("{part}_y.bin"));
            let bytes = std::fs::read(&path).map_err(|e| cannot_open(&path, e, REMEDY))?;
            let labels = labels(&bytes, pixels.len() / SHAPE.len(), &path)?;
            Ok((pixels, labels))
        };
        let (mut pixels, mut train_labels) = (Vec::new(), None);
        if self.train != StlPart::Unlabelled {
            let (read, labels) = labeled("train")?;
            (pixels, train_labels) = (read, Some(labels));
        }
        if self.train != StlPart::Labelled {
            append(&folder.join("unlabeled_X.bin"), &mut pixels)?;
            train_labels = None;
        }
        let train = MemoryImages::new(SHAPE, pixels, train_labels)?;
        let (pixels, test_labels) = labeled("test")?;
        let test = MemoryImages::new(SHAPE, pixels, Some(test_labels))?;
        let count = |m: &MemoryImages| m.pixels().len() / SHAPE.len();
        let kind = match self.train {
            StlPart::Labelled => "labeled",
            StlPart::Unlabelled => "unlabeled",
            StlPart::Both => "labeled and unlabeled",
        };
        let description =
            format!("STL-10: {} {kind} training and {} test images, {SHAPE}", count(&train), count(&test));
        Ok(splits(train, Some(test), names(&CLASSES), description))
    }

    fn published(&self) -> Option<Published> {
        let (train, labeled) = match self.train {
            StlPart::Labelled => (5_000, true),
            StlPart::Unlabelled => (100_000, false),
            StlPart::Both => (105_000, false),
        };
        Some(Published { labeled, ..Published::new(train, 8_000, SHAPE, 10) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns images with red = their index, green = row, blue = column.
    fn file(count: usize) -> Vec<u8> {
        let plane = |value: &dyn Fn(usize, usize) -> usize| -> Vec<u8> {
            (0..96).flat_map(|x| (0..96).map(move |y| (y, x))).map(|(y, x)| value(y, x) as u8).collect()
        };
        (0..count).flat_map(|i| [plane(&|_, _| i), plane(&|y, _| y), plane(&|_, x| x)].concat()).collect()
    }

    #[test]
    fn columns_become_rows_and_parts_are_joined() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("train_X.bin", file(3));
        write("train_y.bin", vec![1, 10, 2]);
        write("test_X.bin", file(2));
        write("test_y.bin", vec![3, 3]);
        let place = Place::at(folder.path());
        let open = |train| Stl10 { root: ".".into(), train }.open(&place);
        let splits = open(StlPart::Labelled).unwrap();
        assert_eq!(splits.train.labels().unwrap(), [0, 9, 1]);
        assert_eq!(splits.train.image(2).unwrap().pixels[(5 * 96 + 70) * 3..][..3], [2, 5, 70]);
        let text = open(StlPart::Both).err().unwrap().to_string();
        assert!(text.contains("unlabeled_X.bin: not found"), "{text}");
        write("unlabeled_X.bin", file(4));
        let splits = open(StlPart::Both).unwrap();
        assert_eq!((splits.train.len(), splits.train.labels(), splits.test.unwrap().len()), (7, None, 2));
        assert_eq!(splits.description, "STL-10: 7 labeled and unlabeled training and 2 test images, 96×96×3");
        assert_eq!(open(StlPart::Unlabelled).unwrap().train.len(), 4);
        write("train_y.bin", vec![1, 11, 2]);
        assert!(open(StlPart::Labelled).err().unwrap().to_string().contains("label 11 of image 1"));
        write("train_y.bin", vec![1]);
        assert!(open(StlPart::Labelled).err().unwrap().to_string().contains("1 labels for 3 images"));
        write("train_X.bin", file(1)[..100].to_vec());
        assert!(open(StlPart::Labelled).err().unwrap().to_string().contains("got 100 bytes"));
        write("test_X.bin", Vec::new());
        write("train_X.bin", Vec::new());
        assert!(open(StlPart::Labelled).err().unwrap().to_string().contains("truncated"));
    }
}
