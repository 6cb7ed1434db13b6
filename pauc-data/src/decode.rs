//! Decodes image files to pixels.

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use pauc_traits::{Error, Image, ImageShape, Result};
use std::io::Cursor;
use std::panic::catch_unwind;
use std::path::Path;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// The file extensions that [`decode`] supports, in lower case.
pub const EXTENSIONS: [&str; 8] = ["bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "png", "webp"];

/// The default pixel limit, which admits photos of 48-megapixel cameras.
pub const PIXEL_LIMIT: usize = 50_000_000;

/// Returns the size in bytes of the largest file that an image of `pixel_limit` pixels can need: 16-bit RGBA,
/// and a mebibyte for metadata.
pub fn max_file_size(pixel_limit: usize) -> u64 {
    (pixel_limit as u64).saturating_mul(8).saturating_add(1 << 20)
}

/// Options of [`decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoding {
    /// The largest number of pixels of an image.
    pub pixel_limit: usize,
    /// The RGB background of transparent images.
    pub background: [u8; 3],
}

impl Default for Decoding {
    fn default() -> Self {
        Decoding { pixel_limit: PIXEL_LIMIT, background: [255; 3] }
    }
}

/// Decodes the `bytes` of a JPEG, PNG, WebP, BMP or GIF file to RGB. The content determines the format, not
/// the name.
///
/// The EXIF orientation is applied. Gray, CMYK and palette images become RGB, transparent images are blended
/// with the background, 16 bits become 8, and an animation yields its first frame.
///
/// # Errors
/// [`Error::Damaged`] with the decoder's reason if the image cannot be decoded, has another format, or has
/// more pixels than the limit. The limit is checked before memory is allocated.
pub fn decode(bytes: &[u8], how: Decoding, path: &Path) -> Result<Image<'static>> {
    let limit = how.pixel_limit;
    guarded(path, || {
        let picture = match format(bytes)? {
            ImageFormat::Jpeg => jpeg(bytes, limit)?,
            other => general(bytes, other, limit)?,
        };
        let rgb =
            if picture.color().has_alpha() { over(picture, how.background) } else { picture.into_rgb8() };
        let shape = ImageShape { height: rgb.height() as usize, width: rgb.width() as usize, channels: 3 };
        Ok(Image::new(shape, rgb.into_raw()))
    })
}

/// Blends a transparent image with a background: ⌊(α·color + (255 − α)·background)/255 + ½⌋.
fn over(picture: DynamicImage, background: [u8; 3]) -> RgbImage {
    let rgba = picture.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut pixels = Vec::with_capacity(rgba.len() / 4 * 3);
    for [r, g, b, alpha] in rgba.as_raw().as_chunks::<4>().0 {
        let alpha = u32::from(*alpha);
        let mix = |c: u8, b: u8| ((alpha * u32::from(c) + (255 - alpha) * u32::from(b) + 127) / 255) as u8;
        pixels.extend([mix(*r, background[0]), mix(*g, background[1]), mix(*b, background[2])]);
    }
    RgbImage::from_raw(width, height, pixels).unwrap_or_default()
}

/// Returns the height and width of the image that [`decode`] would return, from the header alone.
///
/// # Errors
/// As [`decode`], for what the header shows.
pub fn dimensions(bytes: &[u8], limit: usize, path: &Path) -> Result<(usize, usize)> {
    guarded(path, || {
        let (size, orientation) = match format(bytes)? {
            ImageFormat::Jpeg => {
                let (_, size, orientation) = jpeg_header(bytes, limit)?;
                (size, orientation)
            }
            other => {
                let (decoder, orientation) = open(bytes, other, limit)?;
                let (width, height) = decoder.dimensions();
                ((height as usize, width as usize), orientation)
            }
        };
        Ok(if turns(orientation) { (size.1, size.0) } else { size })
    })
}

/// Runs a decoder. Its error, or its panic if the file triggers a bug, becomes an error about `path`.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, String>) -> Result<T> {
    let outcome = catch_unwind(std::panic::AssertUnwindSafe(work));
    let reason = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(reason)) => reason,
        Err(_) => "the decoder panicked".to_string(),
    };
    Err(Error::damaged(path, format!("cannot be read as an image: {reason}; repair or remove the file")))
}

fn format(bytes: &[u8]) -> Result<ImageFormat, String> {
    match image::guess_format(bytes) {
        Ok(format) => Ok(format),
        Err(_) if bytes.is_empty() => Err("the file is empty".to_string()),
        Err(_) => Err("not a JPEG, PNG, WebP, BMP or GIF file".to_string()),
    }
}

/// Whether the orientation swaps height and width.
fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate90FlipH | Rotate270 | Rotate270FlipH)
}

fn check(height: usize, width: usize, limit: usize) -> Result<(), String> {
    if height == 0 || width == 0 {
        return Err(format!("the image has {height}×{width} pixels"));
    }
    match height.checked_mul(width) {
        Some(pixels) if pixels <= limit => Ok(()),
        _ => Err(format!("the image has {height}×{width} pixels, more than the limit of {limit}")),
    }
}

/// Returns the decoder's message without the quotes that it puts around some messages.
fn reason(error: zune_jpeg::errors::DecodeErrors) -> String {
    error.to_string().replace("\\n", " ").trim_matches(|c: char| c == '"' || c.is_whitespace()).to_string()
}

type Jpeg<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

fn jpeg_header(bytes: &[u8], limit: usize) -> Result<(Jpeg<'_>, (usize, usize), Orientation), String> {
    let options = DecoderOptions::default()
        .set_strict_mode(true) // otherwise missing or damaged parts silently become gray
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(reason)?;
    let (width, height) = decoder.dimensions().ok_or("the header has no size")?;
    check(height, width, limit)?;
    let orientation = decoder.exif().and_then(|e| Orientation::from_exif_chunk(e));
    Ok((decoder, (height, width), orientation.unwrap_or(Orientation::NoTransforms)))
}

fn jpeg(bytes: &[u8], limit: usize) -> Result<DynamicImage, String> {
    let (mut decoder, (height, width), orientation) = jpeg_header(bytes, limit)?;
    let pixels = decoder.decode().map_err(reason)?;
    let rgb = RgbImage::from_raw(width as u32, height as u32, pixels).ok_or("the file is truncated")?;
    let mut picture = DynamicImage::from(rgb);
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn open(bytes: &[u8], format: ImageFormat, limit: usize) -> Result<(impl ImageDecoder, Orientation), String> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    // Eight bytes per pixel for 16-bit RGBA, and as many for the decoder's buffers.
    limits.max_alloc = Some((limit as u64).saturating_mul(16).max(1 << 20));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    check(height as usize, width as usize, limit)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((decoder, orientation))
}

fn general(bytes: &[u8], format: ImageFormat, limit: usize) -> Result<DynamicImage, String> {
    let (decoder, orientation) = open(bytes, format, limit)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn limit(pixel_limit: usize) -> Decoding {
        Decoding { pixel_limit, ..Decoding::default() }
    }

    fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn colors() -> RgbImage {
        RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8 * 30, y as u8 * 50, 128]))
    }

    #[test]
    fn lossless_formats_are_decoded_exactly() {
        let picture = DynamicImage::from(colors());
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
            let bytes = encoded(&picture, format);
            let image = decode(&bytes, limit(35), Path::new("a")).unwrap();
            assert_eq!(*image.pixels, *colors().as_raw(), "{format:?}");
            assert_eq!(dimensions(&bytes, 35, Path::new("a")).unwrap(), (5, 7));
            let text = decode(&bytes, limit(34), Path::new("a.png")).unwrap_err().to_string();
            assert!(
                text.contains("a.png") && text.contains("5×7 pixels, more than the limit of 34"),
                "{text}"
            );
        }
    }

    #[test]
    fn gray_wide_and_transparent_images_become_rgb() {
        let gray = DynamicImage::from(colors()).into_luma8();
        let image =
            decode(&encoded(&gray.clone().into(), ImageFormat::Png), limit(99), Path::new("a")).unwrap();
        assert!(image.pixels.as_chunks::<3>().0.iter().zip(gray.iter()).all(|(p, g)| *p == [*g; 3]));
        let wide = DynamicImage::from(colors()).into_rgb16();
        let image = decode(&encoded(&wide.into(), ImageFormat::Png), limit(99), Path::new("a")).unwrap();
        assert_eq!(*image.pixels, *colors().as_raw());
        // Transparency: no background, only background, and half of each.
        for (alpha, part) in [(255, 0.0), (0, 1.0), (128, 127.0 / 255.0)] {
            let mut picture = DynamicImage::from(colors()).into_rgba8();
            picture.pixels_mut().for_each(|p| p.0[3] = alpha);
            let how = Decoding { background: [10, 20, 250], ..limit(99) };
            let image = decode(&encoded(&picture.into(), ImageFormat::Png), how, Path::new("a")).unwrap();
            for (i, (v, c)) in image.pixels.iter().zip(colors().as_raw()).enumerate() {
                let want = f64::from(*c) * (1.0 - part) + f64::from([10u8, 20, 250][i % 3]) * part;
                // Rounding a multiple of 1/255 to the nearest integer, and the rounding of `want`.
                assert_within!(*v, want, 127.0 / 255.0 + tolerance::f64(5, 255.0), "{alpha} {i}");
            }
        }
    }

    /// A 16×8 JPEG, left half dark and right half bright, with or without an orientation.
    fn photograph(orientation: Option<u8>) -> Vec<u8> {
        let plain = include_bytes!("../tests/golden/halves.jpg").to_vec();
        let Some(orientation) = orientation else { return plain };
        let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut bytes = plain[..2].to_vec();
        bytes.extend([0xff, 0xe1]);
        bytes.extend((exif.len() as u16 + 2).to_be_bytes());
        bytes.extend(exif);
        bytes.extend(&plain[2..]);
        bytes
    }

    #[test]
    fn the_exif_orientation_is_applied() {
        for orientation in [None, Some(1), Some(3), Some(6), Some(8)] {
            let bytes = photograph(orientation);
            let image = decode(&bytes, limit(128), Path::new("a")).unwrap();
            let size = (image.shape.height, image.shape.width);
            assert_eq!(dimensions(&bytes, 128, Path::new("a")).unwrap(), size);
            // The bright half is on the right, left (rotated by 180°), bottom (by 90°) or top (by 270°).
            let bright = |y: usize, x: usize| image.pixels[(y * size.1 + x) * 3] > 128;
            let corners = [bright(0, 0), bright(0, size.1 - 1), bright(size.0 - 1, 0)];
            let (want, wanted_size) = match orientation {
                Some(3) => ([true, false, true], (8, 16)),
                Some(6) => ([false, false, true], (16, 8)),
                Some(8) => ([true, true, false], (16, 8)),
                _ => ([false, true, false], (8, 16)),
            };
            assert_eq!((corners, size), (want, wanted_size), "{orientation:?}");
        }
    }

    #[test]
    fn damage_at_any_byte_is_an_error() {
        let photograph = photograph(None);
        let png = encoded(&colors().into(), ImageFormat::Png);
        for file in [&photograph, &png] {
            for end in 0..file.len() - 12 {
                let result = decode(&file[..end], limit(1000), Path::new("cut.jpg"));
                assert!(result.unwrap_err().to_string().starts_with("cut.jpg: cannot be read"), "{end}");
            }
            for place in 0..file.len() {
                // Any single damaged byte gives an image or an error, not a panic.
                let mut bytes = file.clone();
                bytes[place] ^= 0x55;
                drop(decode(&bytes, limit(1000), Path::new("a")));
                drop(dimensions(&bytes, 1000, Path::new("a")));
            }
        }
        let text = decode(b"<html>", limit(9), Path::new("a.jpg")).unwrap_err().to_string();
        assert!(text.contains("not a JPEG, PNG, WebP, BMP or GIF"), "{text}");
        assert!(decode(b"", limit(9), Path::new("a.jpg")).unwrap_err().to_string().contains("empty"));
    }
}
