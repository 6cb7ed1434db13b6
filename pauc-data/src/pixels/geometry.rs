//! Crops and flips, which move pixels without changing them.

use pauc_traits::{Image, ImageShape};

/// A rectangle within an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// The first row.
    pub top: usize,
    /// The first column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Rect {
    /// Returns the rectangle of the whole image.
    pub fn whole(shape: ImageShape) -> Self {
        Rect { top: 0, left: 0, height: shape.height, width: shape.width }
    }

    /// Returns the offsets of the central `height`×`width` rectangle, rounded as in Python (ties to even).
    /// They are negative if the image is smaller.
    pub fn center(shape: ImageShape, height: usize, width: usize) -> (isize, isize) {
        let offset = |outer: usize, inner: usize| {
            let free = outer as isize - inner as isize;
            // torchvision pads a small image by ⌊missing/2⌋ at the top and left.
            if free < 0 { -(-free / 2) } else { (free as f64 / 2.0).round_ties_even() as isize }
        };
        (offset(shape.height, height), offset(shape.width, width))
    }
}

/// Crops `height`×`width` pixels, starting at row `top` and column `left`. Pixels outside the image are
/// black.
pub fn crop(image: &Image<'_>, top: isize, left: isize, height: usize, width: usize) -> Image<'static> {
    let outer = image.shape;
    let shape = ImageShape { height, width, channels: outer.channels };
    let mut pixels = vec![0u8; shape.len()];
    // The columns in both rectangles, in coordinates of the result.
    let begin = (-left).clamp(0, width as isize) as usize;
    let end = (outer.width as isize - left).clamp(begin as isize, width as isize) as usize;
    if begin < end {
        let c = outer.channels;
        let source_x = (begin as isize + left) as usize;
        for (y, row) in pixels.chunks_exact_mut(width * c).enumerate() {
            let source_y = y as isize + top;
            if (0..outer.height as isize).contains(&source_y) {
                let start = (source_y as usize * outer.width + source_x) * c;
                let bytes = (end - begin) * c;
                row[begin * c..end * c].copy_from_slice(&image.pixels[start..start + bytes]);
            }
        }
    }
    Image::new(shape, pixels)
}

/// Flips the image horizontally.
pub fn flip_horizontally(image: &mut Image<'_>) {
    fn mirror<const C: usize>(pixels: &mut [u8], width: usize) {
        for row in pixels.chunks_exact_mut(width * C) {
            row.as_chunks_mut::<C>().0.reverse();
        }
    }
    let ImageShape { width, channels, .. } = image.shape;
    if image.shape.is_empty() {
        return;
    }
    let pixels = image.pixels.to_mut();
    match channels {
        1 => mirror::<1>(pixels, width),
        3 => mirror::<3>(pixels, width),
        _ => {
            for row in pixels.chunks_exact_mut(width * channels) {
                row.reverse();
                row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
            }
        }
    }
}

/// Flips the image vertically.
pub fn flip_vertically(image: &mut Image<'_>) {
    let ImageShape { height, width, channels } = image.shape;
    let row = width * channels;
    let pixels = image.pixels.to_mut();
    for y in 0..height / 2 {
        let (above, below) = pixels.split_at_mut((height - 1 - y) * row);
        above[y * row..(y + 1) * row].swap_with_slice(&mut below[..row]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(height: usize, width: usize, channels: usize) -> Image<'static> {
        let shape = ImageShape { height, width, channels };
        Image::new(shape, (0..shape.len() as u8).collect::<Vec<_>>())
    }

    #[test]
    fn crops_inside_and_outside() {
        let image = numbered(3, 4, 1);
        assert_eq!(*crop(&image, 1, 2, 2, 2).pixels, [6, 7, 10, 11]);
        assert_eq!(*crop(&image, -1, -1, 2, 3).pixels, [0, 0, 0, 0, 0, 1]);
        assert_eq!(*crop(&image, 2, 3, 2, 2).pixels, [11, 0, 0, 0]);
        assert_eq!(*crop(&image, 9, -9, 2, 2).pixels, [0; 4]);
    }

    #[test]
    fn the_center_rounds_to_even() {
        let shape = ImageShape { height: 7, width: 5, channels: 1 };
        assert_eq!(Rect::center(shape, 4, 4), (2, 0), "1.5 to 2 and 0.5 to 0");
        assert_eq!(Rect::center(shape, 10, 8), (-1, -1));
    }

    #[test]
    fn flips_are_their_own_inverse() {
        for channels in [1, 2, 3] {
            let image = numbered(3, 4, channels);
            for flip in [flip_horizontally, flip_vertically] {
                let mut flipped = image.clone();
                flip(&mut flipped);
                assert_ne!(flipped, image);
                flip(&mut flipped);
                assert_eq!(flipped, image);
            }
        }
        let mut image = numbered(2, 2, 3);
        flip_horizontally(&mut image);
        assert_eq!(*image.pixels, [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
        flip_vertically(&mut image);
        assert_eq!(*image.pixels, [9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2]);
    }
}
