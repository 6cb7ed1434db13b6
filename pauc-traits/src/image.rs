//! Images as they travel from a dataset to an encoder.

use std::borrow::Cow;

/// Height, width and channels of the images that an encoder sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 for grey, 3 for RGB.
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
