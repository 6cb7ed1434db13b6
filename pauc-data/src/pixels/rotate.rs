//! Rotation about the center, with Pillow's arithmetic.

use pauc_traits::{Image, ImageShape};
use serde::{Deserialize, Serialize};

/// The filter of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RotationFilter {
    /// The nearest pixel.
    Nearest,
    /// The weighted mean of the four nearest pixels.
    Bilinear,
}

/// Rotates the image counterclockwise by `degrees`. Pixels from outside the image are `fill`.
///
/// The output pixel with center p is read at c + R(p − c), where c is the center of the image.
pub fn rotate(image: &Image<'_>, degrees: f64, filter: RotationFilter, fill: u8) -> Image<'static> {
    let ImageShape { height, width, channels } = image.shape;
    // Pillow rounds the matrix to 15 digits, so that right angles are exact.
    let rounded = |v: f64| (v * 1e15).round() / 1e15;
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let (cos, sin) = (rounded(angle.cos()), rounded(angle.sin()));
    let (cy, cx) = (height as f64 / 2.0, width as f64 / 2.0);
    let (at_x, at_y) = (cx - cos * cx - sin * cy, cy + sin * cx - cos * cy);
    let mut pixels = vec![fill; image.shape.len()];
    let inside = |v: f64, size: usize| v >= 0.0 && v < size as f64;
    for (i, pixel) in pixels.chunks_exact_mut(channels.max(1)).enumerate() {
        let (y, x) = ((i / width) as f64 + 0.5, (i % width) as f64 + 0.5);
        let (from_x, from_y) = (cos * x + sin * y + at_x, cos * y - sin * x + at_y);
        if !inside(from_x, width) || !inside(from_y, height) {
            continue;
        }
        let value = |y: usize, x: usize, c: usize| image.pixels[(y * width + x) * channels + c];
        match filter {
            RotationFilter::Nearest => {
                let (y, x) = (from_y as usize, from_x as usize);
                pixel.iter_mut().enumerate().for_each(|(c, p)| *p = value(y, x, c));
            }
            RotationFilter::Bilinear => {
                let (v, u) = (from_y - 0.5, from_x - 0.5);
                let (dy, dx) = (v - v.floor(), u - u.floor());
                let clipped = |v: f64, size: usize| (v.max(0.0) as usize).min(size - 1);
                let (y0, x0) = (clipped(v.floor(), height), clipped(u.floor(), width));
                let (y1, x1) = (clipped(v.floor() + 1.0, height), clipped(u.floor() + 1.0, width));
                for (c, p) in pixel.iter_mut().enumerate() {
                    let mix = |y: usize| {
                        let (a, b) = (f64::from(value(y, x0, c)), f64::from(value(y, x1, c)));
                        a + (b - a) * dx
                    };
                    let (a, b) = (mix(y0), mix(y1));
                    *p = (a + (b - a) * dy) as u8;
                }
            }
        }
    }
    Image::new(image.shape, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_angles_move_pixels_exactly() {
        let shape = ImageShape { height: 2, width: 2, channels: 1 };
        let image = Image::new(shape, vec![1, 2, 3, 4]);
        for filter in [RotationFilter::Nearest, RotationFilter::Bilinear] {
            let turned = |d| rotate(&image, d, filter, 0).pixels.into_owned();
            assert_eq!(turned(0.0), [1, 2, 3, 4], "{filter:?}");
            assert_eq!(turned(90.0), [2, 4, 1, 3], "{filter:?}");
            assert_eq!(turned(-180.0), [4, 3, 2, 1], "{filter:?}");
            assert_eq!(turned(-90.0), turned(270.0));
        }
        let wide = Image::new(ImageShape { height: 1, width: 3, channels: 1 }, vec![1, 2, 3]);
        assert_eq!(*rotate(&wide, 90.0, RotationFilter::Nearest, 9).pixels, [9, 2, 9]);
    }
}
