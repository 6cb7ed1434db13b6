//! Contact sheets: many images on one sheet, to inspect data and views.

use pauc_traits::{Error, Image, ImageShape, Result};

/// The gap between images in pixels.
const GAP: usize = 2;

/// Returns a PNG file with `images` in rows of `columns` on white. All cells have the size of the largest
/// image, and each image is in the upper left corner of its cell. Gray images become RGB.
///
/// # Errors
/// If there are no images or no columns, an image has neither 1 nor 3 channels, or the sheet is too large for
/// a PNG.
pub fn contact_sheet(images: &[Image<'_>], columns: usize) -> Result<Vec<u8>> {
    if images.is_empty() || columns == 0 {
        let message = format!("{} images in {columns} columns; expected at least one of each", images.len());
        return Err(Error::shape("contact sheet", message));
    }
    if let Some(image) = images.iter().find(|i| !matches!(i.shape.channels, 1 | 3)) {
        return Err(Error::shape("contact sheet", format!("{} is neither gray nor RGB", image.shape)));
    }
    let largest = |side: fn(&Image<'_>) -> usize| images.iter().map(side).max().unwrap_or(0) + GAP;
    let (cell_height, cell_width) = (largest(|i| i.shape.height), largest(|i| i.shape.width));
    let columns = columns.min(images.len());
    let rows = images.len().div_ceil(columns);
    let (height, width) = (rows * cell_height + GAP, columns * cell_width + GAP);
    let mut sheet = vec![255u8; height * width * 3];
    for (i, image) in images.iter().enumerate() {
        let (top, left) = (GAP + i / columns * cell_height, GAP + i % columns * cell_width);
        let c = image.shape.channels;
        for (y, row) in image.pixels.chunks_exact((image.shape.width * c).max(1)).enumerate() {
            let start = ((top + y) * width + left) * 3;
            let cells = sheet[start..start + image.shape.width * 3].as_chunks_mut::<3>().0;
            for (cell, pixel) in cells.iter_mut().zip(row.chunks_exact(c)) {
                *cell = [pixel[0], pixel[c / 2], pixel[c - 1]];
            }
        }
    }
    encode(&sheet, height, width).map_err(|e| Error::Other(format!("contact sheet: {e}").into()))
}

/// Returns a PNG file with one image. A gray image becomes RGB.
///
/// # Errors
/// If the image has neither 1 nor 3 channels, or is too large for a PNG.
pub fn png(image: &Image<'_>) -> Result<Vec<u8>> {
    let ImageShape { height, width, channels } = image.shape;
    if !matches!(channels, 1 | 3) {
        return Err(Error::shape("PNG", format!("{} is neither gray nor RGB", image.shape)));
    }
    let rgb: Vec<u8> =
        image.pixels.chunks_exact(channels).flat_map(|p| [p[0], p[channels / 2], p[channels - 1]]).collect();
    encode(&rgb, height, width).map_err(|e| Error::Other(format!("PNG: {e}").into()))
}

fn encode(rgb: &[u8], height: usize, width: usize) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, u32::try_from(width)?, u32::try_from(height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use std::path::Path;

    #[test]
    fn images_are_laid_out_in_rows() {
        let gray = Image::new(ImageShape { height: 1, width: 2, channels: 1 }, vec![10, 20]);
        let rgb = Image::new(ImageShape { height: 2, width: 1, channels: 3 }, vec![1, 2, 3, 4, 5, 6]);
        let file = contact_sheet(&[gray, rgb.clone(), rgb], 2).unwrap();
        let sheet = decode(&file, Default::default(), Path::new("sheet")).unwrap();
        assert_eq!((sheet.shape.height, sheet.shape.width), (10, 10));
        let pixel = |y: usize, x: usize| &sheet.pixels[(y * 10 + x) * 3..][..3];
        assert_eq!(
            [pixel(2, 2), pixel(2, 3), pixel(2, 6), pixel(3, 6)],
            [&[10; 3], &[20; 3], &[1, 2, 3][..], &[4, 5, 6]]
        );
        assert_eq!(
            [pixel(6, 2), pixel(7, 2), pixel(0, 0), pixel(3, 2)],
            [&[1, 2, 3], &[4, 5, 6], &[255; 3][..], &[255; 3]]
        );
    }

    #[test]
    fn a_single_image_has_no_frame() {
        let gray = Image::new(ImageShape { height: 1, width: 2, channels: 1 }, vec![10, 20]);
        let file = decode(&png(&gray).unwrap(), Default::default(), Path::new("png")).unwrap();
        assert_eq!((file.shape.height, file.shape.width), (1, 2));
        assert!(*file.pixels == [10, 20] || *file.pixels == [10, 10, 10, 20, 20, 20], "{:?}", file.pixels);
        let two = Image::new(ImageShape { height: 1, width: 1, channels: 2 }, vec![0, 0]);
        assert!(png(&two).unwrap_err().to_string().contains("neither gray nor RGB"));
    }

    #[test]
    fn empty_sheets_and_two_channels_are_refused() {
        assert!(contact_sheet(&[], 3).is_err());
        let two = Image::new(ImageShape { height: 1, width: 1, channels: 2 }, vec![0, 0]);
        assert!(contact_sheet(&[two], 1).unwrap_err().to_string().contains("neither gray nor RGB"));
    }
}
