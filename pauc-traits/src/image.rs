//! Images on their way from a dataset to an encoder.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// The height, width and channels of the images that an encoder sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 for gray, 3 for RGB.
    pub channels: usize,
}

impl ImageShape {
    /// Returns the number of values of one image.
    pub fn len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Returns whether an image has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for ImageShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}×{}", self.height, self.width, self.channels)
    }
}

/// Images of one shape, stored one after the other, channels last.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// Normalized.
    Normalized(Vec<f32>),
    /// In 8 bits; the device that reads them normalizes them.
    Bytes {
        /// The values.
        values: Vec<u8>,
        /// The factor and shift of each channel: value v becomes v·factor + shift.
        normal: Arc<[(f32, f32)]>,
    },
}

impl Pixels {
    /// Returns the number of values.
    pub fn len(&self) -> usize {
        match self {
            Pixels::Normalized(values) => values.len(),
            Pixels::Bytes { values, .. } => values.len(),
        }
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a range of values that begins and ends at image boundaries.
    pub fn part(&self, range: Range<usize>) -> Pixels {
        match self {
            Pixels::Normalized(values) => Pixels::Normalized(values[range].to_vec()),
            Pixels::Bytes { values, normal } => {
                Pixels::Bytes { values: values[range].to_vec(), normal: normal.clone() }
            }
        }
    }

    /// Returns some of the images, in the given order; each has `size` values.
    ///
    /// # Shapes
    /// N images of `size` values → one image per entry of `images`, each of which is below N
    pub fn selected(&self, images: &[usize], size: usize) -> Pixels {
        fn rows<T: Copy>(values: &[T], images: &[usize], size: usize) -> Vec<T> {
            images.iter().flat_map(|i| &values[i * size..(i + 1) * size]).copied().collect()
        }
        match self {
            Pixels::Normalized(values) => Pixels::Normalized(rows(values, images, size)),
            Pixels::Bytes { values, normal } => {
                Pixels::Bytes { values: rows(values, images, size), normal: normal.clone() }
            }
        }
    }

    /// Returns a range of values that begins and ends at image boundaries, normalized.
    ///
    /// # Shapes
    /// pixel values, image by image, row by row, channels last
    pub fn numbers(&self, range: Range<usize>) -> Cow<'_, [f32]> {
        match self {
            Pixels::Normalized(values) => Cow::Borrowed(&values[range]),
            Pixels::Bytes { values, normal } => {
                let factors = normal.iter().cycle();
                let numbers =
                    values[range].iter().zip(factors).map(|(v, (f, shift))| f32::from(*v) * f + shift);
                Cow::Owned(numbers.collect())
            }
        }
    }
}

/// An 8-bit image, rows top to bottom, channels last: pixel (y, x, c) is at `(y·width + x)·channels + c`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// The height, width and channels.
    pub shape: ImageShape,
    /// The pixels; borrowed if the dataset has them in memory.
    pub pixels: Cow<'a, [u8]>,
}

impl<'a> Image<'a> {
    /// Builds an image from pixels.
    ///
    /// # Shapes
    /// pixels (height, width, channels)
    ///
    /// # Panics
    /// If the number of pixels does not match the shape. That is a bug of the caller, not a property of a
    /// file.
    pub fn new(shape: ImageShape, pixels: impl Into<Cow<'a, [u8]>>) -> Self {
        let pixels = pixels.into();
        assert_eq!(pixels.len(), shape.len(), "pixels of a {shape} image");
        Image { shape, pixels }
    }

    /// Returns an image that owns its pixels.
    pub fn into_owned(self) -> Image<'static> {
        Image { shape: self.shape, pixels: Cow::Owned(self.pixels.into_owned()) }
    }
}
