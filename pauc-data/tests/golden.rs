//! Pixels against torchvision's functional operations on Pillow images, with fixed parameters.
#![allow(clippy::unwrap_used)] // the whole file is a test

use pauc_data::pixels::{Filter, Rect, blur, colour::Planes, geometry, resample};
use pauc_traits::{Image, ImageShape};
use serde_json::Value;

fn bytes(value: &Value) -> Vec<u8> {
    value.as_array().unwrap().iter().map(|v| u8::try_from(v.as_u64().unwrap()).unwrap()).collect()
}

fn size(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn coloured(image: &Image<'static>, change: impl Fn(&mut Planes)) -> Image<'static> {
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
            let (top, left) = Rect::centre(resized.shape, crop, crop);
            geometry::crop(&resized, top, left, crop, crop)
        }
        "hflip" => {
            let mut out = image.clone();
            geometry::flip_horizontally(&mut out);
            out
        }
        "brightness" => coloured(image, |p| p.brightness(number("factor") as f32)),
        "contrast" => coloured(image, |p| p.contrast(number("factor") as f32)),
        "saturation" => coloured(image, |p| p.saturation(number("factor") as f32)),
        "hue" | "hue_neg" => coloured(image, |p| p.hue(number("factor") as f32)),
        "grayscale" => coloured(image, Planes::greyscale),
        "solarize" => coloured(image, |p| p.solarize(number("threshold") as f32)),
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
        other => panic!("no operation is called {other}"),
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
        let off = |by: u8| out.pixels.iter().zip(&want).filter(|(a, b)| a.abs_diff(**b) > by).count();
        // Pillow's blur breaks ties in 24-bit fixed point, which are frequent at round values of sigma.
        let (tolerance, share) = if name.starts_with("gaussian_blur_pil") { (2, 4) } else { (1, 20) };
        assert_eq!(off(tolerance), 0, "{name}: pixels further off than {tolerance}");
        assert!(off(0) * share <= want.len(), "{name}: {} of {} pixels differ", off(0), want.len());
    }
}

#[test]
fn rotation_and_equalisation_agree_with_pillow() {
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
                let grey = coloured(&image, Planes::greyscale);
                let plane: Vec<u8> = grey.pixels.iter().step_by(3).copied().collect();
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
        let off = out.pixels.iter().zip(&want).filter(|(a, b)| a.abs_diff(**b) > 1).count();
        // Pillow steps through the nearest pixels in 16-bit fixed point: a pixel on the border of two may differ.
        let allowed = if name == "rotate/nearest" { want.len() / 200 } else { 0 };
        assert!(
            out.pixels.len() == want.len() && off <= allowed,
            "{name} {angle:?}: {off} of {}",
            want.len()
        );
    }
}
