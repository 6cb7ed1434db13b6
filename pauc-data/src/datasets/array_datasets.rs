//! Images and labels from arrays.

use super::{names, splits};
use crate::MemoryImages;
use pauc_traits::dataset::Splits;
use pauc_traits::{Error, ImageShape, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The order of the axes in an array of images with more than one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// N×H×W×C.
    ChannelsLast,
    /// N×C×H×W.
    ChannelsFirst,
}

/// The element types of arrays of images and labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Unsigned, with this many bytes.
    Unsigned(usize),
    /// Signed, with this many bytes.
    Signed(usize),
}

impl Number {
    pub(super) fn bytes(self) -> usize {
        match self {
            Number::Unsigned(n) | Number::Signed(n) => n,
        }
    }
}

/// An array in little-endian byte order, the last axis varying fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Its name in messages: the file, and the name in the file.
    pub origin: PathBuf,
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// The element type.
    pub number: Number,
    /// The bytes of the elements.
    pub bytes: Vec<u8>,
}

impl Array {
    fn damaged(&self, message: String) -> Error {
        Error::damaged(&self.origin, message)
    }

    /// Converts the array to class labels.
    fn labels(&self) -> Result<Vec<u32>> {
        if self.shape.len() != 1 {
            return Err(self.damaged(format!("has the shape {:?}; labels need one dimension", self.shape)));
        }
        let size = self.number.bytes();
        let label = |(i, bytes): (usize, &[u8])| {
            let signed = matches!(self.number, Number::Signed(_)) && bytes[size - 1] >= 0x80;
            let value = bytes.iter().rev().fold(0u64, |n, b| (n << 8) | u64::from(*b));
            match u32::try_from(value) {
                Ok(v) if !signed && v < 1 << 20 => Ok(v),
                _ => Err(self.damaged(format!("label {i} is out of range; expected 0 to {}", (1 << 20) - 1))),
            }
        };
        self.bytes.chunks_exact(size).enumerate().map(label).collect()
    }

    /// Converts the array to images.
    fn images(self, layout: Layout, labels: Option<Vec<u32>>) -> Result<MemoryImages> {
        if self.number != Number::Unsigned(1) {
            return Err(
                self.damaged("has elements that are not bytes; images are unsigned bytes, 0 to 255".into())
            );
        }
        let (height, width, channels) = match (&self.shape[..], layout) {
            ([_, h, w], _) => (*h, *w, 1),
            ([_, h, w, c], Layout::ChannelsLast) | ([_, c, h, w], Layout::ChannelsFirst) => (*h, *w, *c),
            (other, _) => {
                return Err(self.damaged(format!(
                    "has the shape {other:?}; expected N×H×W, or the four axes of `layout`"
                )));
            }
        };
        if !matches!(channels, 1 | 3) {
            let message = format!(
                "has images of {channels} channels in the shape {:?}; expected 1 or 3, see `layout`",
                self.shape
            );
            return Err(self.damaged(message));
        }
        if height == 0 || width == 0 || self.shape[0] == 0 {
            return Err(self.damaged(format!("has no pixels: its shape is {:?}", self.shape)));
        }
        let shape = ImageShape { height, width, channels };
        let mut pixels = self.bytes;
        if layout == Layout::ChannelsFirst && channels == 3 {
            let plane = height * width;
            let mut picture = vec![0; shape.len()];
            for image in pixels.chunks_exact_mut(shape.len()) {
                for (p, pixel) in picture.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                    *pixel = [image[p], image[plane + p], image[2 * plane + p]];
                }
                image.copy_from_slice(&picture);
            }
        }
        MemoryImages::new(shape, pixels, labels)
    }
}

/// The arrays of one split: images, and labels if there are any.
pub(super) type Pair = (Array, Option<Array>);

/// Labels that would make more classes for each image are taken for numbers of something else: a probe has a row of
/// weights for every class. A few images of a data set with many classes are usual.
const CLASSES_PER_IMAGE: usize = 10;

/// Makes splits from arrays. The names of the classes are their numbers.
pub(super) fn open(title: &str, train: Pair, test: Option<Pair>, layout: Layout) -> Result<Splits> {
    let part = |(images, labels): Pair| -> Result<MemoryImages> {
        let labels = labels.map(|l| l.labels().map(|v| (v, l.origin))).transpose()?;
        if let Some((values, origin)) = &labels
            && values.len() != images.shape.first().copied().unwrap_or(0)
        {
            let message =
                format!("has {} labels for {:?} images", values.len(), images.shape.first().unwrap_or(&0));
            return Err(Error::damaged(origin, message));
        }
        images.images(layout, labels.map(|l| l.0))
    };
    use pauc_traits::dataset::ImageSource;
    let (train, test) = (part(train)?, test.map(part).transpose()?);
    if let Some(test) = &test
        && (test.shape() != train.shape() || test.labels().is_some() != train.labels().is_some())
    {
        return Err(Error::shape(
            title,
            "training and test images differ in shape, or only one of them has labels",
        ));
    }
    let most = |m: &MemoryImages| m.labels().and_then(|l| l.iter().max().copied()).unwrap_or(0);
    let largest = most(&train).max(test.as_ref().map_or(0, most));
    let images = train.len() + test.as_ref().map_or(0, MemoryImages::len);
    if largest as usize / CLASSES_PER_IMAGE >= images {
        return Err(Error::config(format!(
            "the largest label is {largest}, but there are {images} images: number the classes from 0, without gaps"
        )));
    }
    let classes: Vec<String> =
        (0..=largest).filter(|_| train.labels().is_some()).map(|c| c.to_string()).collect();
    let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
    let shape = train.shape().map(|s| s.to_string()).unwrap_or_default();
    let tests = test.as_ref().map_or(0, MemoryImages::len);
    let description = format!("{title}: {} training and {tests} test images, {shape}", train.len());
    Ok(splits(train, test, names(&classes), description))
}

/// Reads a file, or reports why it cannot be opened.
pub(super) fn bytes_of(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| super::cannot_open(path, e, "save the arrays there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize], number: Number, bytes: Vec<u8>) -> Array {
        Array { origin: "a.npy".into(), shape: shape.to_vec(), number, bytes }
    }

    #[test]
    fn labels_with_gaps_are_refused_before_there_is_a_class_for_each_number() {
        let of = |largest: u32| {
            let labels = [0u32, 7, largest].iter().flat_map(|l| l.to_le_bytes()).collect();
            let images = array(&[3, 2, 2, 1], Number::Unsigned(1), vec![0; 12]);
            let train = (images, Some(array(&[3], Number::Unsigned(4), labels)));
            open("images", train, None, Layout::ChannelsLast).map(|splits| splits.classes.len())
        };
        assert_eq!(of(29).unwrap(), 30);
        for largest in [30, 300_000, 1_048_575] {
            let error = of(largest).unwrap_err().to_string();
            assert!(error.contains(&largest.to_string()) && error.contains("without gaps"), "{error}");
        }
    }

    #[test]
    fn layouts_become_pixels() {
        use pauc_traits::dataset::ImageSource;
        let bytes: Vec<u8> = (0..24).collect();
        let images =
            |shape: &[usize], layout| array(shape, Number::Unsigned(1), bytes.clone()).images(layout, None);
        let first = images(&[2, 3, 2, 2], Layout::ChannelsFirst).unwrap();
        assert_eq!(*first.image(1).unwrap().pixels, [12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23]);
        assert_eq!(images(&[2, 2, 2, 3], Layout::ChannelsLast).unwrap().pixels(), bytes);
        assert_eq!(images(&[2, 3, 4], Layout::ChannelsFirst).unwrap().shape().unwrap().to_string(), "3×4×1");
        assert!(images(&[2, 3, 2, 2], Layout::ChannelsLast).unwrap_err().to_string().contains("2 channels"));
        assert!(images(&[24], Layout::ChannelsLast).unwrap_err().to_string().contains("N×H×W"));
        assert!(images(&[0, 3, 4], Layout::ChannelsLast).is_err());
        assert!(array(&[1, 1, 3], Number::Signed(1), vec![0; 3]).images(Layout::ChannelsLast, None).is_err());
    }

    #[test]
    fn labels_of_every_width_are_read_and_negative_ones_refused() {
        for number in [Number::Unsigned(1), Number::Signed(1), Number::Unsigned(4), Number::Signed(8)] {
            let size = number.bytes();
            let mut bytes = vec![0; 3 * size];
            bytes[2 * size] = 100;
            let labels = array(&[3], number, bytes.clone());
            assert_eq!(labels.labels().unwrap(), [0, 0, 100]);
            bytes[size..2 * size].fill(0xff);
            let result = array(&[3], number, bytes).labels();
            assert_eq!(result.is_ok(), number == Number::Unsigned(1), "{number:?}");
        }
        assert!(array(&[3, 1], Number::Unsigned(1), vec![0; 3]).labels().is_err());
    }

    #[test]
    fn labels_and_images_must_match_in_number() {
        let images = |n: usize| array(&[n, 1, 2], Number::Unsigned(1), vec![7; 2 * n]);
        let labels = |l: &[u8]| Some(array(&[l.len()], Number::Unsigned(1), l.to_vec()));
        let splits =
            open("x", (images(2), labels(&[0, 3])), Some((images(1), labels(&[4]))), Layout::ChannelsLast);
        let splits = splits.unwrap();
        assert_eq!(
            (splits.classes.len(), splits.description),
            (5, "x: 2 training and 1 test images, 1×2×1".into())
        );
        assert!(open("x", (images(2), labels(&[0])), None, Layout::ChannelsLast).is_err());
        assert!(open("x", (images(2), None), Some((images(1), labels(&[4]))), Layout::ChannelsLast).is_err());
    }
}
