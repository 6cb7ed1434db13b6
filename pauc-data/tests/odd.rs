//! Unusual images, compared with a reference decoder.
//!
//! The files are from the tests of the jpeg-decoder crate (MIT license, `odd/LICENSE`); each `.png` beside a
//! `.jpg` holds the pixels from a reference decoder.
#![allow(clippy::unwrap_used)] // the whole file is a test

use pauc_data::decode::{Decoding, decode, dimensions};
use std::path::Path;

fn read(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/odd").join(name)).unwrap()
}

#[test]
fn every_kind_of_jpeg_has_the_pixels_of_its_reference() {
    for name in ["progressive", "cmyk", "gray", "restarts", "non-interleaved"] {
        let how = Decoding::default();
        let image = decode(&read(&format!("{name}.jpg")), how, Path::new(name)).unwrap();
        let want = decode(&read(&format!("{name}.png")), how, Path::new(name)).unwrap();
        assert_eq!(image.shape, want.shape, "{name}");
        let off = image.pixels.iter().zip(want.pixels.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)));
        let (sum, most) = off.fold((0.0, 0.0f64), |(s, m), d| (s + d, m.max(d)));
        let mean = sum / image.pixels.len() as f64;
        // A wrong color space or channel order would exceed this by far. Each decoder's samples may be off by
        // one level (IEEE 1180), and interpolated chroma by half a level more. Two decoders therefore differ
        // by up to 2 in luma and 3 in chroma. Blue contains 1.772 times its chroma, and both decoders round
        // it.
        let farthest = 2.0 + 1.772 * 3.0 + 1.0;
        // The mean is below the standard deviation of these roundings, each of variance 1/12: luma, chroma,
        // its interpolation and the result.
        let deviation = (2.0 * (1.0 + 2.0 * 1.772f64.powi(2) + 1.0) / 12.0).sqrt();
        assert!(mean <= deviation && most <= farthest, "{name}: mean {mean}, greatest {most}");
    }
}

#[test]
fn a_header_with_a_huge_size_allocates_nothing() {
    // A file of 613 bytes whose header gives 193×31237 pixels.
    let bytes = read("tall-claim.jpg");
    let how = Decoding { pixel_limit: 1_000_000, ..Decoding::default() };
    for text in [
        decode(&bytes, how, Path::new("a")).unwrap_err().to_string(),
        dimensions(&bytes, how.pixel_limit, Path::new("a")).unwrap_err().to_string(),
    ] {
        assert!(text.contains("31237×193 pixels, more than the limit of 1000000"), "{text}");
    }
    // May be decoded or refused, but must not panic: sums of its coefficients overflow.
    drop(decode(&read("dc-predictor-overflow.jpg"), Decoding::default(), Path::new("a")));
}

#[test]
fn palettes_16_bit_images_and_first_frames() {
    use image::{Delay, Frame, Rgba, RgbaImage, codecs::gif::GifEncoder};
    let frame = |v: u8| {
        Frame::from_parts(
            RgbaImage::from_pixel(4, 3, Rgba([v, 0, 0, 255])),
            0,
            0,
            Delay::from_numer_denom_ms(10, 1),
        )
    };
    let mut bytes = Vec::new();
    GifEncoder::new(&mut bytes).encode_frames([frame(200), frame(50)]).unwrap();
    let image = decode(&bytes, Decoding::default(), Path::new("a")).unwrap();
    assert_eq!((image.pixels.len(), image.pixels[0]), (36, 200), "the first of two");

    // A palette whose second color is half transparent, over a given background.
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 2, 1);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(vec![10, 20, 30, 100, 100, 100]);
    encoder.set_trns(vec![255, 128]);
    encoder.write_header().unwrap().write_image_data(&[0, 1]).unwrap();
    let how = Decoding { background: [0, 200, 100], ..Decoding::default() };
    let image = decode(&bytes, how, Path::new("a")).unwrap();
    assert_eq!(*image.pixels, [10, 20, 30, 50, 150, 100]);

    // 16-bit values are rounded to the nearest 8-bit values.
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 3, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Sixteen);
    let values = [0u16, 0x8080, 0xffff].map(u16::to_be_bytes).concat();
    encoder.write_header().unwrap().write_image_data(&values).unwrap();
    let image = decode(&bytes, Decoding::default(), Path::new("a")).unwrap();
    assert_eq!(*image.pixels, [0, 0, 0, 128, 128, 128, 255, 255, 255]);
}
