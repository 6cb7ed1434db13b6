//! The binary format of CIFAR: records of labels and a 32×32 image.
//!
//! A record of CIFAR-10 is one label byte and 3072 bytes of pixels. A record of CIFAR-100 has two label bytes
//! (coarse, fine) before the pixels. The pixels are three planes (red, green, blue), row by row. Source:
//! Krizhevsky, *Learning multiple layers of features from tiny images*, 2009;
//! <https://www.cs.toronto.edu/~kriz/cifar.html>.

use super::cannot_open;
use pauc_traits::{Error, ImageShape, Result};
use std::path::{Path, PathBuf};

/// The shape of every image.
pub const SHAPE: ImageShape = ImageShape { height: 32, width: 32, channels: 3 };
const PLANE: usize = 32 * 32;

/// Images, channels last, with `N` labels each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records<const N: usize> {
    /// The pixels of all images, one image after the other.
    pub pixels: Vec<u8>,
    /// For each kind of label, the labels of all images.
    pub labels: [Vec<u32>; N],
}

/// Reads `files` in order; label kind i has `classes[i]` classes.
///
/// # Errors
/// If a file cannot be opened, its length is not a multiple of a record's, or a label is out of range.
pub fn read<const N: usize>(files: &[PathBuf], classes: [usize; N], remedy: &str) -> Result<Records<N>> {
    let mut records = Records { pixels: Vec::new(), labels: [(); N].map(|()| Vec::new()) };
    for path in files {
        let bytes = std::fs::read(path).map_err(|e| cannot_open(path, e, remedy))?;
        append(&mut records, &bytes, classes, path)?;
    }
    Ok(records)
}

fn append<const N: usize>(
    records: &mut Records<N>,
    bytes: &[u8],
    classes: [usize; N],
    path: &Path,
) -> Result<()> {
    let size = N + SHAPE.len();
    let remainder = bytes.len() % size;
    if bytes.is_empty() || remainder != 0 {
        let complete = bytes.len() / size;
        return Err(Error::damaged(
            path,
            format!(
                "is truncated; expected records of {size} bytes, got {} bytes ({complete} records and {remainder} bytes); \
                 download it again",
                bytes.len()
            ),
        ));
    }
    let start = records.pixels.len();
    records.pixels.resize(start + bytes.len() / size * SHAPE.len(), 0);
    let pictures = records.pixels[start..].chunks_exact_mut(SHAPE.len());
    for (i, (record, picture)) in bytes.chunks_exact(size).zip(pictures).enumerate() {
        let (labels, planes) = record.split_at(N);
        for ((label, classes), list) in labels.iter().zip(classes).zip(&mut records.labels) {
            if usize::from(*label) >= classes {
                return Err(Error::damaged(
                    path,
                    format!("record {i} has label {label}; expected 0 to {}", classes - 1),
                ));
            }
            list.push(u32::from(*label));
        }
        for (p, pixel) in picture.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            *pixel = [planes[p], planes[PLANE + p], planes[2 * PLANE + p]];
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns `count` records with labels from `label`, red = the index of the record, green = row, blue =
    /// column.
    pub fn file<const N: usize>(count: usize, label: impl Fn(usize) -> [u8; N]) -> Vec<u8> {
        let record = |i: usize| {
            let mut bytes = label(i).to_vec();
            bytes.extend([i as u8; PLANE]);
            bytes.extend((0..PLANE).map(|p| (p / 32) as u8));
            bytes.extend((0..PLANE).map(|p| (p % 32) as u8));
            bytes
        };
        (0..count).flat_map(record).collect()
    }

    #[test]
    fn planes_become_pixels_and_damage_is_named() {
        let mut records = Records { pixels: Vec::new(), labels: [Vec::new(), Vec::new()] };
        let bytes = file(3, |i| [1, i as u8]);
        append(&mut records, &bytes, [2, 3], Path::new("a.bin")).unwrap();
        assert_eq!(records.labels, [vec![1, 1, 1], vec![0, 1, 2]]);
        assert_eq!(records.pixels[2 * 3072 + (5 * 32 + 7) * 3..][..3], [2, 5, 7]);
        let text = append(&mut records, &bytes[..7000], [2, 3], Path::new("a.bin")).unwrap_err().to_string();
        assert!(text.contains("got 7000 bytes (2 records and 852 bytes)"), "{text}");
        let text = append(&mut records, &bytes, [2, 2], Path::new("a.bin")).unwrap_err().to_string();
        assert_eq!(text, "a.bin: record 2 has label 2; expected 0 to 1");
        assert!(append(&mut records, &[], [2, 2], Path::new("a.bin")).is_err());
    }
}
