//! NumPy's array files.

use super::array_datasets::{self, Array, Layout, Number};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Dataset, Error, Result, component};
use std::path::{Path, PathBuf};

component! {
    /// Images and labels in NumPy's `.npy` files.
    ///
    /// Images are unsigned bytes, N×H×W or, by `layout`, N×H×W×C or N×C×H×W with one or three channels; labels are
    /// N whole numbers from 0 on.
    pub struct Npy: Dataset {
        /// The training images.
        pub images: PathBuf,
        /// Their labels.
        pub labels: Option<PathBuf> = None,
        /// The test images.
        pub test_images: Option<PathBuf> = None,
        /// Their labels.
        pub test_labels: Option<PathBuf> = None,
        /// `ChannelsLast` or `ChannelsFirst`.
        pub layout: Layout = Layout::ChannelsLast,
    }
}

/// Reads an array; `origin` names it in errors.
///
/// # Errors
/// If `bytes` are no array of whole numbers in C order, or have more or fewer bytes than the header says.
pub fn parse(mut bytes: Vec<u8>, origin: &Path) -> Result<Array> {
    let bad =
        |why: &str| Error::damaged(origin, format!("is no array of whole numbers in NumPy's format: {why}"));
    let (start, length): (usize, usize) = match bytes.get(..12) {
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..]) => {
            (10, u16::from_le_bytes([*a, *b]) as usize)
        }
        Some([0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d]) => {
            (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize)
        }
        _ => return Err(bad("it does not start as one")),
    };
    let header = bytes.get(start..start.saturating_add(length)).and_then(|h| std::str::from_utf8(h).ok());
    let header = header.ok_or_else(|| bad("its header is cut off"))?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|p| p.1.trim_start());
    let quoted =
        after("descr").and_then(|d| d.strip_prefix('\'')).and_then(|d| d.split_once('\'')).map(|p| p.0);
    let number = match quoted.ok_or_else(|| bad("its header names no type"))? {
        "|u1" | "<u1" => Number::Unsigned(1),
        "|i1" | "<i1" => Number::Signed(1),
        "<u2" => Number::Unsigned(2),
        "<i2" => Number::Signed(2),
        "<u4" => Number::Unsigned(4),
        "<i4" => Number::Signed(4),
        "<u8" => Number::Unsigned(8),
        "<i8" => Number::Signed(8),
        other => {
            return Err(bad(&format!(
                "its numbers are `{other}`; use .astype('uint8') for images, 'int64' for labels"
            )));
        }
    };
    if !after("fortran_order").is_some_and(|o| o.starts_with("False")) {
        return Err(bad("it is in Fortran order; save numpy.ascontiguousarray of it"));
    }
    let shape = after("shape").and_then(|s| s.strip_prefix('(')).and_then(|s| s.split_once(')')).map(|p| p.0);
    let axes = shape
        .ok_or_else(|| bad("its header has no shape"))?
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty());
    let shape = axes
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()
        .map_err(|_| bad("its shape has no numbers"))?;
    let size =
        Array::size(&shape, number).ok_or_else(|| bad(&format!("its shape {shape:?} is impossible")))?;
    let found = bytes.len() - start - length;
    if found != size {
        let message =
            format!("is truncated or too long: {size} bytes expected after the header, {found} found");
        return Err(Error::damaged(origin, message));
    }
    bytes.drain(..start + length);
    Ok(Array { origin: origin.to_path_buf(), shape, number, bytes })
}

impl Dataset for Npy {
    fn open(&self, place: &Place) -> Result<Splits> {
        let read = |path: &PathBuf| {
            let path = place.resolve(path);
            parse(array_datasets::bytes_of(&path)?, &path)
        };
        let train = (read(&self.images)?, self.labels.as_ref().map(read).transpose()?);
        if self.test_images.is_none() && self.test_labels.is_some() {
            return Err(Error::config("Npy: there are `test_labels`, but no `test_images`"));
        }
        let labels = self.test_labels.as_ref().map(read).transpose()?;
        let test = self.test_images.as_ref().map(read).transpose()?.map(|images| (images, labels));
        array_datasets::open(&self.images.display().to_string(), train, test, self.layout)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file of version 1 as numpy.save writes it.
    pub fn file(descr: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(bytes);
        file
    }

    #[test]
    fn files_of_numpy_are_read() {
        // numpy.save(f, numpy.array([[1, -2], [3, 4]], dtype='<i2')), NumPy 2
        let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 2), }";
        let mut written = b"\x93NUMPY\x01\x00v\x00".to_vec();
        written.extend(format!("{header:<117}\n").bytes());
        written.extend(b"\x01\x00\xfe\xff\x03\x00\x04\x00");
        let array = parse(written, Path::new("a")).unwrap();
        assert_eq!((&array.shape[..], array.number, array.bytes.len()), (&[2, 2][..], Number::Signed(2), 8));
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("x.npy", file("|u1", "(3, 2, 1)", &[1, 2, 3, 4, 5, 6]));
        write("y.npy", file("<i8", "(3,)", &[[1u64, 0, 1].map(u64::to_le_bytes).concat()].concat()));
        let set = Npy {
            images: "x.npy".into(),
            labels: Some("y.npy".into()),
            test_images: None,
            test_labels: None,
            layout: Layout::ChannelsLast,
        };
        let splits = set.open(&Place { base: folder.path().to_path_buf() }).unwrap();
        assert_eq!((splits.train.labels().unwrap(), splits.classes.len()), (&[1, 0, 1][..], 2));
        assert_eq!(*splits.train.image(2).unwrap().pixels, [5, 6]);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let error = |bytes: Vec<u8>| parse(bytes, Path::new("a.npy")).unwrap_err().to_string();
        assert!(error(file("<f4", "(1,)", &[0; 4])).contains("astype('uint8')"));
        assert!(error(file("|u1", "(4,)", &[0; 3])).contains("4 bytes expected after the header, 3 found"));
        assert!(error(file("|u1", "(99999999999, 99999999999)", &[0; 3])).contains("impossible"));
        assert!(error(b"\x93NUMPY\x01\x00\xff\xff{'descr'".to_vec()).contains("cut off"));
        assert!(error(b"PK".to_vec()).contains("does not start"));
        let text = String::from_utf8_lossy(&file("|u1", "(0,)", &[])[10..]).replace("False", "True ");
        let mut fortran = file("|u1", "(0,)", &[])[..10].to_vec();
        fortran.extend(text.as_bytes());
        assert!(error(fortran).contains("Fortran"));
    }
}
