//! Images as they travel from a dataset to an encoder.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Height, width and channels of the images that an encoder sees.
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
    /// The number of values of one image.
    pub fn len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for ImageShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}×{}", self.height, self.width, self.channels)
    }
}

/// Images of one shape, one after the other, channels last.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// Normalized.
    Normalized(Vec<f32>),
    /// In 8 bits, to be normalized by the device that reads them.
    Bytes {
        /// The values.
        values: Vec<u8>,
        /// Factor and shift of each channel: value v becomes v·factor + shift.
        normal: Arc<[(f32, f32)]>,
    },
}

impl Pixels {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            Pixels::Normalized(values) => values.len(),
            Pixels::Bytes { values, .. } => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some values, which begin and end with an image.
    pub fn part(&self, range: Range<usize>) -> Pixels {
        match self {
            Pixels::Normalized(values) => Pixels::Normalized(values[range].to_vec()),
            Pixels::Bytes { values, normal } => {
                Pixels::Bytes { values: values[range].to_vec(), normal: normal.clone() }
            }
        }
    }

    /// Some values, which begin and end with an image, normalized.
    ///
    /// # Shapes
    /// pixel values, image after image, each row by row with its channels together
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
    /// Height, width, channels.
    pub shape: ImageShape,
    /// The pixels; borrowed where the dataset has them in memory.
    pub pixels: Cow<'a, [u8]>,
}

impl<'a> Image<'a> {
    /// An image over given pixels.
    ///
    /// # Shapes
    /// pixels (height, width, channels)
    ///
    /// # Panics
    /// If the number of pixels is not the shape's: that is a bug of the caller, not a property of any file.
    pub fn new(shape: ImageShape, pixels: impl Into<Cow<'a, [u8]>>) -> Self {
        let pixels = pixels.into();
        assert_eq!(pixels.len(), shape.len(), "pixels of a {shape} image");
        Image { shape, pixels }
    }

    /// The image with pixels of its own.
    pub fn into_owned(self) -> Image<'static> {
        Image { shape: self.shape, pixels: Cow::Owned(self.pixels.into_owned()) }
    }
}
