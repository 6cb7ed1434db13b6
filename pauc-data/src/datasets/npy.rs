//! NumPy array files.

use super::array_datasets::{self, Array, Layout, Number};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::npy::{Element, Header};
use pauc_traits::{Dataset, Error, Result, component};
use std::path::{Path, PathBuf};

component! {
    /// Images and labels in NumPy's `.npy` files.
    ///
    /// Images are unsigned bytes: N×H×W or, depending on `layout`, N×H×W×C or N×C×H×W, with one or three
    /// channels. Labels are N integers, starting at 0.
    pub struct Npy: Dataset {
        /// The training images.
        pub images: PathBuf,
        /// The training labels.
        pub labels: Option<PathBuf> = None,
        /// The test images.
        pub test_images: Option<PathBuf> = None,
        /// The test labels.
        pub test_labels: Option<PathBuf> = None,
        /// `ChannelsLast` or `ChannelsFirst`.
        pub layout: Layout = Layout::ChannelsLast,
    }
}

/// Parses an array; `origin` is its name in errors.
///
/// # Errors
/// If `bytes` is not an integer array in C order, or its length differs from that in the header.
pub fn parse(mut bytes: Vec<u8>, origin: &Path) -> Result<Array> {
    let remedy = "save images as .astype('uint8'), labels as .astype('int64')";
    let header = Header::read(&bytes, origin, remedy)?;
    let number = match header.element {
        Element::Unsigned(size) => Number::Unsigned(size),
        Element::Signed(size) => Number::Signed(size),
        Element::Float(_) | Element::Text(_) => {
            let message =
                format!("has elements of type `{}`; expected integers; {remedy}", header.element.code());
            return Err(Error::damaged(origin, message));
        }
    };
    if header.data.end < bytes.len() {
        let (size, following) = (header.data.len(), bytes.len() - header.data.start);
        let message =
            format!("is too long; expected {size} bytes after the header, got {following}; save it again");
        return Err(Error::damaged(origin, message));
    }
    bytes.drain(..header.data.start);
    Ok(Array { origin: origin.to_path_buf(), shape: header.shape, number, bytes })
}

impl Dataset for Npy {
    fn open(&self, place: &Place) -> Result<Splits> {
        let read = |path: &PathBuf| {
            let path = place.resolve(path);
            parse(array_datasets::bytes_of(&path)?, &path)
        };
        let train = (read(&self.images)?, self.labels.as_ref().map(read).transpose()?);
        if self.test_images.is_none() && self.test_labels.is_some() {
            return Err(Error::config(
                "Npy: `test_labels` is set without `test_images`; set both or neither",
            ));
        }
        let labels = self.test_labels.as_ref().map(read).transpose()?;
        let test = self.test_images.as_ref().map(read).transpose()?.map(|images| (images, labels));
        array_datasets::open(&self.images.display().to_string(), train, test, self.layout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::npy::file;

    #[test]
    fn images_and_labels_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("x.npy", file("|u1", false, "(3, 2, 1)", &[1, 2, 3, 4, 5, 6]));
        write("y.npy", file("<i8", false, "(3,)", &[[1u64, 0, 1].map(u64::to_le_bytes).concat()].concat()));
        let set = Npy {
            images: "x.npy".into(),
            labels: Some("y.npy".into()),
            test_images: None,
            test_labels: None,
            layout: Layout::ChannelsLast,
        };
        let splits = set.open(&Place::at(folder.path())).unwrap();
        assert_eq!((splits.train.labels().unwrap(), splits.classes.len()), (&[1, 0, 1][..], 2));
        assert_eq!(*splits.train.image(2).unwrap().pixels, [5, 6]);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let error = |bytes: Vec<u8>| parse(bytes, Path::new("a.npy")).unwrap_err().to_string();
        assert!(
            error(file("<f4", false, "(1,)", &[0; 4]))
                .contains("`f4`; expected integers; save images as .astype('uint8')")
        );
        assert!(error(file("|b1", false, "(1,)", &[0])).contains("labels as .astype('int64')"));
        let text = error(file("|u1", false, "(4,)", &[0; 3]));
        assert!(text.contains("is truncated: expected 4 bytes after the header, got 3"), "{text}");
        let text = error(file("|u1", false, "(4,)", &[0; 5]));
        assert!(text.contains("is too long; expected 4 bytes after the header, got 5"), "{text}");
    }
}
