//! The IDX format of MNIST: a big-endian header, then bytes.
//!
//! | bytes | images | labels |
//! |---|---|---|
//! | 0–3 | magic 0x00000803 | magic 0x00000801 |
//! | 4–7 | number of images | number of labels |
//! | 8–11, 12–15 | rows, columns | – |
//! | then | pixels, row by row | labels |
//!
//! Files may be compressed with gzip. Source: LeCun, Cortes & Burges, *The MNIST database of handwritten digits*.

use super::{cannot_open, find_folder, names, splits};
use crate::MemoryImages;
use flate2::read::GzDecoder;
use pauc_traits::dataset::Splits;
use pauc_traits::{Error, ImageShape, Result};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// The content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Images, bytes in three dimensions.
    Images = 0x0803,
    /// Labels, bytes in one dimension.
    Labels = 0x0801,
}

/// The sizes in a header, and the bytes after it.
pub type Content = (Vec<usize>, Vec<u8>);

/// Gray images of one size and their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labeled {
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// The pixels of all images, one image after the other.
    pub pixels: Vec<u8>,
    /// All labels.
    pub labels: Vec<u8>,
}

impl Labeled {
    /// Joins images and labels; `origins` are their names in errors.
    ///
    /// # Errors
    /// If there are more or fewer images than labels, or the images have no pixels.
    pub fn join((sizes, pixels): Content, (_, labels): Content, origins: [&Path; 2]) -> Result<Self> {
        let [count, height, width] = sizes[..] else {
            return Err(Error::damaged(origins[0], "has a header without three sizes"));
        };
        if count != labels.len() {
            return Err(Error::damaged(
                origins[1],
                format!("has {} labels for the {count} images of {}", labels.len(), origins[0].display()),
            ));
        }
        if height == 0 || width == 0 {
            return Err(Error::damaged(origins[0], format!("has images of {height}×{width} pixels")));
        }
        Ok(Labeled { height, width, pixels, labels })
    }

    /// Returns the bytes of the two files, images first.
    pub fn to_bytes(&self) -> [Vec<u8>; 2] {
        let file = |part: Part, sizes: &[usize], bytes: &[u8]| {
            let header = std::iter::once(part as u32).chain(sizes.iter().map(|s| *s as u32));
            header.flat_map(u32::to_be_bytes).chain(bytes.iter().copied()).collect()
        };
        let count = self.labels.len();
        [
            file(Part::Images, &[count, self.height, self.width], &self.pixels),
            file(Part::Labels, &[count], &self.labels),
        ]
    }

    /// Converts to an image source. Fails if a label is not below `classes`.
    pub(super) fn into_images(self, classes: usize, origin: &Path) -> Result<MemoryImages> {
        if let Some(image) = self.labels.iter().position(|l| usize::from(*l) >= classes) {
            let label = self.labels[image];
            return Err(Error::damaged(
                origin,
                format!("label {label} of image {image} is out of range; expected 0 to {}", classes - 1),
            ));
        }
        let shape = ImageShape { height: self.height, width: self.width, channels: 1 };
        MemoryImages::new(shape, self.pixels, Some(self.labels.into_iter().map(u32::from).collect()))
    }
}

/// Reads the header and content of one file from a stream, and nothing after it.
///
/// # Errors
/// If the header does not belong to `part`, or the stream ends early.
pub fn read_part(stream: &mut dyn Read, part: Part, origin: &Path) -> Result<Content> {
    let magic = part as u32;
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof
        | std::io::ErrorKind::InvalidData
        | std::io::ErrorKind::InvalidInput => {
            Error::damaged(origin, format!("is truncated or damaged ({e}); download it again"))
        }
        _ => Error::io(origin, e),
    };
    let mut word = || -> Result<u32> {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).map_err(failed)?;
        Ok(u32::from_be_bytes(bytes))
    };
    let start = word()?;
    if start != magic {
        return Err(Error::damaged(
            origin,
            format!("has the wrong magic number; expected {magic:#010x}, got {start:#010x}"),
        ));
    }
    let dimensions = (magic & 0xff) as usize;
    let sizes = (0..dimensions).map(|_| word().map(|w| w as usize)).collect::<Result<Vec<_>>>()?;
    let size = sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).filter(|n| *n < 1 << 40);
    let size =
        size.ok_or_else(|| Error::damaged(origin, format!("has an invalid header: sizes {sizes:?}")))?;
    // Memory grows with the bytes that arrive, not with the size in the header.
    let mut content = Vec::new();
    let outcome = stream.take(size as u64).read_to_end(&mut content);
    if content.len() < size {
        let why = outcome.err().map(|e| format!(" ({e})")).unwrap_or_default();
        return Err(Error::damaged(
            origin,
            format!(
                "is truncated{why}; expected {size} bytes after the header, got {}; download it again",
                content.len()
            ),
        ));
    }
    Ok((sizes, content))
}

/// Opens a file; decompresses it if it starts with gzip's magic bytes.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let failed = |e| cannot_open(path, e, "the dataset needs it");
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let start = std::io::BufRead::fill_buf(&mut file).map_err(|e| Error::io(path, e))?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) { Box::new(GzDecoder::new(file)) } else { Box::new(file) })
}

/// Reads one pair of files, compressed or not.
///
/// # Errors
/// If a file cannot be opened or is damaged.
pub fn read_files(images: &Path, labels: &Path) -> Result<Labeled> {
    let file = |path: &Path, part| -> Result<Content> {
        let mut stream = open(path)?;
        let content = read_part(&mut *stream, part, path)?;
        // Reading to the end verifies gzip's checksum and detects trailing bytes.
        match stream.read(&mut [0]) {
            Ok(0) => Ok(content),
            Ok(_) => {
                let size = content.1.len();
                Err(Error::damaged(path, format!("has more than the {size} bytes that its header gives")))
            }
            Err(e) => Err(Error::damaged(path, format!("is damaged at its end ({e}); download it again"))),
        }
    };
    Labeled::join(file(images, Part::Images)?, file(labels, Part::Labels)?, [images, labels])
}

/// Returns the path of an official file, compressed or not. Some copies have a dot in the name instead of the
/// first hyphen.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let dotted = name.replacen("-idx", ".idx", 1);
    let names = [name.to_string(), format!("{name}.gz"), dotted.clone(), format!("{dotted}.gz")];
    names.into_iter().map(|n| folder.join(n)).find(|p| p.is_file())
}

/// Opens a dataset of MNIST's four files in `root` or in one of its subfolders `below`.
pub(super) fn open_folder(
    root: &Path,
    below: &[&str],
    classes: &[&str],
    title: &str,
    remedy: &str,
) -> Result<Splits> {
    let folder = find_folder(root, below, |f| find(f, "train-images-idx3-ubyte").is_some(), remedy)?;
    let pair = |part: &str| -> Result<MemoryImages> {
        let [images, labels] = ["images-idx3-ubyte", "labels-idx1-ubyte"].map(|n| format!("{part}-{n}"));
        let path = |name: &str| {
            let missing =
                || Error::NotFound { path: folder.join(format!("{name}.gz")), remedy: remedy.to_string() };
            find(&folder, name).ok_or_else(missing)
        };
        let labels = path(&labels)?;
        read_files(&path(&images)?, &labels)?.into_images(classes.len(), &labels)
    };
    let (train, test) = (pair("train")?, pair("t10k")?);
    finish(train, test, classes, title)
}

/// Makes splits with a description. Fails if training and test images differ in shape.
pub(super) fn finish(
    train: MemoryImages,
    test: MemoryImages,
    classes: &[&str],
    title: &str,
) -> Result<Splits> {
    use pauc_traits::dataset::ImageSource;
    match (train.shape(), test.shape()) {
        (Some(a), Some(b)) if a == b => {
            let description =
                format!("{title}: {} training and {} test images, {a}", train.len(), test.len());
            Ok(splits(train, Some(test), names(classes), description))
        }
        (a, b) => {
            Err(Error::shape(title, format!("training images have the shape {a:?}, test images {b:?}")))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use pauc_traits::dataset::{Dataset, Place};
    use std::io::Write;

    pub fn tiny(count: usize) -> Labeled {
        let pixels = (0..count * 6).map(|i| (i * 11 % 256) as u8).collect();
        Labeled { height: 2, width: 3, pixels, labels: (0..count).map(|i| (i % 10) as u8).collect() }
    }

    pub fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Writes the four files, the training images compressed and the rest plain.
    pub fn write(folder: &Path) {
        for (part, labeled) in [("train", tiny(20)), ("t10k", tiny(10))] {
            let [images, labels] = labeled.to_bytes();
            std::fs::write(folder.join(format!("{part}-images-idx3-ubyte.gz")), gzip(&images)).unwrap();
            std::fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), labels).unwrap();
        }
    }

    fn error(change: impl Fn(&Path)) -> String {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        change(folder.path());
        let root = folder.path().to_path_buf();
        let dataset = super::super::Mnist { root };
        dataset.open(&Place::at("")).err().unwrap().to_string()
    }

    #[test]
    fn files_are_read_as_written() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let path = |n: &str| folder.path().join(n);
        let read = read_files(&path("train-images-idx3-ubyte.gz"), &path("train-labels-idx1-ubyte")).unwrap();
        assert_eq!(read, tiny(20));
    }

    #[test]
    fn errors_give_expected_and_actual_sizes() {
        let text = error(|f| {
            std::fs::write(f.join("train-images-idx3-ubyte.gz"), &tiny(20).to_bytes()[0][..100]).unwrap();
        });
        assert!(
            text.contains("train-images") && text.contains("expected 120 bytes") && text.contains("got 84")
        );
        let text = error(|f| {
            let path = f.join("train-images-idx3-ubyte.gz");
            let complete = std::fs::read(&path).unwrap();
            std::fs::write(&path, &complete[..complete.len() / 2]).unwrap();
        });
        assert!(text.contains("train-images"), "{text}");
        let text =
            error(|f| std::fs::write(f.join("t10k-labels-idx1-ubyte"), &tiny(10).to_bytes()[0]).unwrap());
        assert!(text.contains("expected 0x00000801, got 0x00000803"), "{text}");
        let text =
            error(|f| std::fs::write(f.join("t10k-labels-idx1-ubyte"), &tiny(9).to_bytes()[1]).unwrap());
        assert!(text.contains("9 labels for the 10 images"), "{text}");
        let text = error(|f| {
            let mut bytes = tiny(10).to_bytes()[1].clone();
            bytes.push(3);
            std::fs::write(f.join("t10k-labels-idx1-ubyte"), bytes).unwrap();
        });
        assert!(text.contains("more than the 10 bytes"), "{text}");
        let text = error(|f| {
            let mut labeled = tiny(10);
            labeled.labels[4] = 10;
            std::fs::write(f.join("t10k-labels-idx1-ubyte"), &labeled.to_bytes()[1]).unwrap();
        });
        assert!(text.contains("label 10 of image 4"), "{text}");
        let text = error(|f| {
            let mut header = tiny(10).to_bytes()[0][..16].to_vec();
            header[4..16].fill(0xff);
            std::fs::write(f.join("t10k-images-idx3-ubyte.gz"), header).unwrap();
        });
        assert!(text.contains("invalid header"), "{text}");
    }

    #[test]
    fn missing_files_come_with_the_remedy() {
        let text = error(|f| std::fs::remove_file(f.join("t10k-labels-idx1-ubyte")).unwrap());
        assert!(text.contains("t10k-labels-idx1-ubyte") && text.contains("not found"), "{text}");
        let text = error(|f| std::fs::remove_file(f.join("train-images-idx3-ubyte.gz")).unwrap());
        assert!(text.contains("http"), "{text}");
    }
}
