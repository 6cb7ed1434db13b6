//! Compares pixels with torchvision's functional operations on Pillow images, with fixed parameters.
#![allow(clippy::unwrap_used)] // the whole file is a test

use pauc_data::pixels::{Filter, Rect, blur, color::Planes, geometry, resample};
use pauc_traits::{Image, ImageShape};
use serde_json::Value;

fn bytes(value: &Value) -> Vec<u8> {
    value.as_array().unwrap().iter().map(|v| u8::try_from(v.as_u64().unwrap()).unwrap()).collect()
}

fn size(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn colored(image: &Image<'static>, change: impl Fn(&mut Planes)) -> Image<'static> {
    let mut planes = Planes::new(image);
    change(&mut planes);
    let mut out = image.clone();
    planes.store(&mut out);
    out
}

fn run(name: &str, config: &Value, image: &Image<'static>) -> Image<'static> {
    let whole = Rect::whole(image.shape);
    let filter = if name.ends_with("bicubic") { Filter::Bicubic } else { Filter::Bilinear };
    let number = |key: &str| config[key].as_f64().unwrap();
    match name.split('/').next().unwrap() {
        "resized_crop" | "resized_crop_up" => {
            let part = |key: &str| size(&config[key]);
            let rect =
                Rect { top: part("top"), left: part("left"), height: part("height"), width: part("width") };
            resample::resize(image, rect, part("size"), part("size"), filter)
        }
        "resize_short_crop" => {
            let (short, crop) = (size(&config["resize_short"]), size(&config["crop"]));
            // The input is 37 rows of 45 columns: rows are the short side.
            let resized = resample::resize(image, whole, short, short * 45 / 37, filter);
            let (top, left) = Rect::center(resized.shape, crop, crop);
            geometry::crop(&resized, top, left, crop, crop)
        }
        "hflip" => {
            let mut out = image.clone();
            geometry::flip_horizontally(&mut out);
            out
        }
        "brightness" => colored(image, |p| p.brightness(number("factor") as f32)),
        "contrast" => colored(image, |p| p.contrast(number("factor") as f32)),
        "saturation" => colored(image, |p| p.saturation(number("factor") as f32)),
        "hue" | "hue_neg" => colored(image, |p| p.hue(number("factor") as f32)),
        "grayscale" => colored(image, Planes::grayscale),
        "solarize" => colored(image, |p| p.solarize(number("threshold") as f32)),
        "gaussian_blur_pil" => {
            let mut out = image.clone();
            blur::pillow(&mut out, number("sigma"));
            out
        }
        "gaussian_blur_tv" => {
            let mut out = image.clone();
            blur::exact(&mut out, number("sigma"), size(&config["kernel"]) / 2);
            out
        }
        other => panic!("unknown operation {other}"),
    }
}

#[test]
fn pixels_agree_with_torchvision() {
    let golden: Value = serde_json::from_str(include_str!("golden/augmentations.json")).unwrap();
    let input = &golden["input"];
    let shape = ImageShape { height: size(&input["height"]), width: size(&input["width"]), channels: 3 };
    let image = Image::new(shape, bytes(&input["data"]));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let out = run(name, &case["config"], &image);
        let want = bytes(&case["output"]);
        let shape: Vec<usize> = case["shape"].as_array().unwrap().iter().map(size).collect();
        assert_eq!([out.shape.height, out.shape.width, out.shape.channels], *shape, "{name}");
        // Bytes are the same on every processor, so the counts are exact. Only ties, and values within 2⁻¹²
        // of one, differ: in Pillow's fixed point, the errors of the weights decide the rounding. They are
        // frequent at simple scale factors and sigmas; the blur has six passes of them.
        let (differing, farthest) = match name {
            "resized_crop/bilinear" => (28, 1),
            "resized_crop/bicubic" => (1, 1),
            "resize_short_crop/bicubic" => (2, 1),
            "gaussian_blur_pil/1.0" => (1022, 2),
            "gaussian_blur_pil/2.0" => (197, 1),
            _ => (0, 0),
        };
        let off: Vec<u8> =
            out.pixels.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).filter(|d| *d > 0).collect();
        assert_eq!((off.len(), off.into_iter().max().unwrap_or(0)), (differing, farthest), "{name}");
    }
}

#[test]
fn rotation_and_equalization_agree_with_pillow() {
    use pauc_data::pixels::rotate::{RotationFilter, rotate};
    let golden: Value = serde_json::from_str(include_str!("golden/augmentations.json")).unwrap();
    let input = &golden["input"];
    let shape = ImageShape { height: size(&input["height"]), width: size(&input["width"]), channels: 3 };
    let image = Image::new(shape, bytes(&input["data"]));
    let golden: Value = serde_json::from_str(include_str!("golden/rotate_equalize.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 13);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let angle = case["config"]["angle"].as_f64();
        let mut out = match name {
            "equalize/grey" => {
                let gray = colored(&image, Planes::grayscale);
                let plane: Vec<u8> = gray.pixels.iter().step_by(3).copied().collect();
                Image::new(ImageShape { channels: 1, ..shape }, plane)
            }
            "equalize/dark" => Image::new(shape, image.pixels.iter().map(|v| v / 16).collect::<Vec<_>>()),
            "rotate/nearest" => rotate(&image, angle.unwrap(), RotationFilter::Nearest, 0),
            "rotate/bilinear" => rotate(&image, angle.unwrap(), RotationFilter::Bilinear, 0),
            _ => image.clone(),
        };
        if angle.is_none() {
            pauc_data::views::equalize::equalize(&mut out);
        }
        let want = bytes(&case["output"]);
        assert!(*out.pixels == want, "{name} {angle:?}");
    }
}
