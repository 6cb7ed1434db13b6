//! Sprite sheets: thumbnails in JPEG files of many, for pages that show thousands of images.

use crate::pixels::{Filter, Rect, resample};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use pauc_traits::dataset::ImageSource;
use pauc_traits::{Error, Image, Result, progress, stop};
use rayon::prelude::*;
use std::sync::Arc;

/// Thumbnails per row, and rows, of a sheet.
pub const CELLS: usize = 16;
/// JPEG compresses blocks of this many pixels: cells of whole blocks do not run into each other.
const BLOCK: usize = 8;
/// Qualities to try, until the sheets fit.
const QUALITIES: [u8; 6] = [84, 76, 66, 54, 42, 30];

/// An image of a dataset.
pub type Place = (Arc<dyn ImageSource>, usize);

/// Thumbnails of images, in the order of the images: sheet by sheet, row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sprites {
    /// The width and height of a cell, in pixels.
    pub cell: usize,
    /// Width and height of each thumbnail, which is in the upper left corner of its cell.
    pub sizes: Vec<[u8; 2]>,
    /// The sheets, as JPEG files of [`CELLS`] × [`CELLS`] cells; the last one has as many rows as it needs.
    pub sheets: Vec<Vec<u8>>,
    /// The quality of the compression, from 1 to 100.
    pub quality: u8,
}

/// Pixels of a sheet.
struct Sheet {
    rows: usize,
    channels: usize,
    pixels: Vec<u8>,
    sizes: Vec<[u8; 2]>,
}

/// Returns thumbnails whose larger side has at most `side` pixels; images are not enlarged. The best quality is chosen
/// with which all sheets together have at most `budget` bytes, or the lowest if none has.
///
/// # Errors
/// If an image cannot be read or is neither gray nor RGB, or the run was asked to stop.
///
/// # Panics
/// If `side` is 0 or above 255.
pub fn sprites(images: &[Place], side: usize, budget: usize) -> Result<Sprites> {
    assert!((1..256).contains(&side), "a side of {side} pixels does not fit a byte");
    let stop = stop::flag();
    let task = progress::task("thumbnails", images.len() as u64);
    let one = |place: &Place| {
        stop.check()?;
        task.advance(1);
        thumbnail(place, side)
    };
    let thumbnails: Vec<Image<'static>> = images.par_iter().map(one).collect::<Result<_>>()?;
    // Cells are no larger than the largest thumbnail needs.
    let largest = |i: &Image<'_>| i.shape.height.max(i.shape.width);
    let cell = thumbnails.iter().map(largest).max().unwrap_or(1).next_multiple_of(BLOCK);
    let sheets: Vec<Sheet> =
        thumbnails.par_chunks(CELLS * CELLS).map(|images| composed(images, cell)).collect();
    drop(thumbnails);
    for quality in QUALITIES {
        stop::check()?;
        let files: Vec<Vec<u8>> =
            sheets.par_iter().map(|sheet| encode(sheet, cell, quality)).collect::<Result<_>>()?;
        if files.iter().map(Vec::len).sum::<usize>() <= budget || quality == QUALITIES[QUALITIES.len() - 1] {
            let sizes = sheets.iter().flat_map(|sheet| sheet.sizes.clone()).collect();
            return Ok(Sprites { cell, sizes, sheets: files, quality });
        }
    }
    Ok(Sprites::default())
}

fn thumbnail((images, index): &Place, side: usize) -> Result<Image<'static>> {
    let image = images.image(*index)?;
    if !matches!(image.shape.channels, 1 | 3) || image.shape.is_empty() {
        let what = format!("thumbnail of {}", images.name(*index));
        return Err(Error::shape(&what, format!("{} is neither gray nor RGB", image.shape)));
    }
    let (height, width) = (image.shape.height, image.shape.width);
    let largest = height.max(width);
    if largest <= side {
        return Ok(image.into_owned());
    }
    let shrunk = |length: usize| ((length * side + largest / 2) / largest).max(1);
    Ok(resample::resize(&image, Rect::whole(image.shape), shrunk(height), shrunk(width), Filter::Bilinear))
}

/// Puts thumbnails into their cells. The pixels at their right and lower borders fill the rest of a cell, since sharp
/// edges would show in the compressed thumbnail.
fn composed(images: &[Image<'_>], cell: usize) -> Sheet {
    let channels = if images.iter().all(|i| i.shape.channels == 1) { 1 } else { 3 };
    let rows = images.len().div_ceil(CELLS);
    let width = CELLS * cell;
    let mut pixels = vec![0; rows * cell * width * channels];
    for (i, image) in images.iter().enumerate() {
        let (top, left) = (i / CELLS * cell, i % CELLS * cell);
        let shape = image.shape;
        for y in 0..cell {
            let row = &image.pixels[y.min(shape.height - 1) * shape.width * shape.channels..];
            for x in 0..cell {
                let from = &row[x.min(shape.width - 1) * shape.channels..];
                let to = ((top + y) * width + left + x) * channels;
                (0..channels).for_each(|c| pixels[to + c] = from[c.min(shape.channels - 1)]);
            }
        }
    }
    // A side fits: it is at most that of the thumbnails.
    let sizes = images.iter().map(|i| [i.shape.width as u8, i.shape.height as u8]).collect();
    Sheet { rows, channels, pixels, sizes }
}

fn encode(sheet: &Sheet, cell: usize, quality: u8) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let color = if sheet.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let (width, height) = ((CELLS * cell) as u32, (sheet.rows * cell) as u32);
    let encoded =
        JpegEncoder::new_with_quality(&mut file, quality).encode(&sheet.pixels, width, height, color);
    encoded.map_err(|e| Error::Other(format!("sheet of thumbnails: {e}").into()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryImages;
    use crate::decode::decode;
    use pauc_traits::ImageShape;
    use std::path::Path;

    /// Images of one color each, of different sizes.
    struct Plain(Vec<(usize, usize, [u8; 3])>);

    impl ImageSource for Plain {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn shape(&self) -> Option<ImageShape> {
            None
        }
        fn image(&self, index: usize) -> Result<Image<'_>> {
            let (height, width, color) = self.0[index];
            Ok(Image::new(ImageShape { height, width, channels: 3 }, color.repeat(height * width)))
        }
        fn labels(&self) -> Option<&[u32]> {
            None
        }
    }

    fn places(images: impl ImageSource + 'static) -> Vec<Place> {
        let images: Arc<dyn ImageSource> = Arc::new(images);
        (0..images.len()).map(|i| (images.clone(), i)).collect()
    }

    #[test]
    fn every_image_is_in_its_cell() {
        let color = |i: usize| [(i * 37 % 256) as u8, (i * 91 % 256) as u8, (i * 53 % 256) as u8];
        let images: Vec<_> = (0..300).map(|i| (100 + i % 7, 50 + 3 * (i % 5), color(i))).collect();
        let got = sprites(&places(Plain(images.clone())), 30, usize::MAX).unwrap();
        assert_eq!((got.sheets.len(), got.cell), (2, 32));
        assert_eq!(got.quality, QUALITIES[0]);
        let sheets: Vec<_> =
            got.sheets.iter().map(|s| decode(s, Default::default(), Path::new("sheet")).unwrap()).collect();
        assert_eq!((sheets[1].shape.height, sheets[1].shape.width), (3 * 32, 16 * 32));
        for (i, (height, width, color)) in images.iter().enumerate() {
            let [w, h] = got.sizes[i].map(usize::from);
            assert_eq!((h, w), (30, (width * 30 + height / 2) / height), "{i}");
            let (sheet, place) = (&sheets[i / 256], i % 256);
            let (top, left) = (place / 16 * 32, place % 16 * 32);
            for (y, x) in [(0, 0), (h - 1, w - 1), (h / 2, w / 2)] {
                let pixel = &sheet.pixels[((top + y) * 512 + left + x) * 3..][..3];
                for (got, want) in pixel.iter().zip(color) {
                    // Steps of the largest quantization table entry that flat blocks use, and of the change of colors.
                    assert!(got.abs_diff(*want) <= 6, "image {i}: {pixel:?} for {color:?}");
                }
            }
        }
    }

    #[test]
    fn the_quality_falls_until_the_sheets_fit() {
        let pixels: Vec<u8> = (0..40 * 28 * 28usize).map(|i| (i * i % 251) as u8).collect();
        let shape = ImageShape { height: 28, width: 28, channels: 1 };
        let images = places(MemoryImages::new(shape, pixels, None).unwrap());
        let best = sprites(&images, 64, usize::MAX).unwrap();
        let bytes = |s: &Sprites| s.sheets.iter().map(Vec::len).sum::<usize>();
        let smaller = sprites(&images, 64, bytes(&best) * 3 / 4).unwrap();
        assert!(smaller.quality < best.quality && bytes(&smaller) <= bytes(&best) * 3 / 4);
        let least = sprites(&images, 64, 1).unwrap();
        assert_eq!(least.quality, QUALITIES[QUALITIES.len() - 1]);
        // Images are not enlarged, and gray sheets have one channel.
        assert_eq!((best.cell, best.sizes[3]), (32, [28, 28]));
        assert_eq!(sprites(&[], 64, 1).unwrap().sheets.len(), 0);
    }

    #[test]
    fn other_images_are_refused_by_name() {
        let shape = ImageShape { height: 1, width: 2, channels: 2 };
        let images = places(MemoryImages::new(shape, vec![0; 4], None).unwrap());
        let error = sprites(&images, 8, 1).unwrap_err().to_string();
        assert!(error.contains("thumbnail of image 0") && error.contains("neither gray nor RGB"), "{error}");
    }
}
