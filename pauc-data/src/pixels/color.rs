//! Brightness, contrast, saturation, hue, grayscale and solarization, with Pillow's arithmetic.

use super::rounding::{byte, floor, limit, nearest};
use multiversion::multiversion;
use pauc_traits::{Image, ImageShape};

/// An image as one plane per channel of integers in 0..255, so that color operations vectorize.
///
/// Gray images have one plane; saturation, hue and grayscale do not change them.
#[derive(Clone, Debug)]
pub struct Planes {
    shape: ImageShape,
    values: Vec<f32>,
}

impl Planes {
    /// Splits an image into planes.
    pub fn new(image: &Image<'_>) -> Self {
        let mut values = vec![0f32; image.shape.len()];
        if image.shape.channels == 3 {
            let n = values.len() / 3;
            let (r, gb) = values.split_at_mut(n);
            let (g, b) = gb.split_at_mut(n);
            to_planes(image.pixels.as_chunks::<3>().0, [r, g, b]);
        } else {
            values.iter_mut().zip(image.pixels.iter()).for_each(|(v, p)| *v = f32::from(*p));
        }
        Planes { shape: image.shape, values }
    }

    /// Writes the planes to the pixels of `image`, which has the same shape.
    pub fn store(&mut self, image: &mut Image<'_>) {
        debug_assert_eq!(image.shape, self.shape);
        let pixels = image.pixels.to_mut();
        match self.rgb() {
            Some(planes) => from_planes(planes, pixels.as_chunks_mut::<3>().0),
            None => pixels.iter_mut().zip(&self.values).for_each(|(p, v)| *p = byte(*v)),
        }
    }

    fn rgb(&mut self) -> Option<[&mut [f32]; 3]> {
        (self.shape.channels == 3).then(|| {
            let n = self.values.len() / 3;
            let (r, gb) = self.values.split_at_mut(n);
            let (g, b) = gb.split_at_mut(n);
            [r, g, b]
        })
    }

    /// factor · image: 0 gives black, 1 the image.
    pub fn brightness(&mut self, factor: f32) {
        blend(0.0, factor, &mut self.values);
    }

    /// mean + factor · (image − mean), with the mean of the grayscale image.
    pub fn contrast(&mut self, factor: f32) {
        let n = self.shape.height * self.shape.width;
        let total = match self.rgb() {
            Some(planes) => total_gray(planes),
            None => total(&self.values),
        };
        let mean = (total / n.max(1) as f64 + 0.5).floor() as f32;
        blend(mean, factor, &mut self.values);
    }

    /// gray + factor · (image − gray): 0 gives grayscale, 1 the image.
    pub fn saturation(&mut self, factor: f32) {
        if let Some(planes) = self.rgb() {
            saturate(planes, factor);
        }
    }

    /// Rotates the hue by `shift` of a full circle, −½..½, in HSV with 8 bits per channel.
    pub fn hue(&mut self, shift: f32) {
        let shift = f32::from((shift * 255.0) as i32 as u8); // torchvision: truncated, then modulo 256
        if let Some(planes) = self.rgb() {
            turn_hues(planes, shift);
        }
    }

    /// Replaces every channel by the luma 0.299 R + 0.587 G + 0.114 B.
    pub fn grayscale(&mut self) {
        if let Some(planes) = self.rgb() {
            turn_gray(planes);
        }
    }

    /// Replaces v by 255 − v where v ≥ `threshold`.
    pub fn solarize(&mut self, threshold: f32) {
        self.values.iter_mut().for_each(|v| *v = if *v < threshold { *v } else { 255.0 - *v });
    }
}

// The loops over pixels, each compiled for several vector widths. Operations are not fused or reordered, so
// all versions give the same bytes.

#[multiversion(targets = "simd")]
fn to_planes(pixels: &[[u8; 3]], [r, g, b]: [&mut [f32]; 3]) {
    for (((pixel, r), g), b) in pixels.iter().zip(r).zip(g).zip(b) {
        (*r, *g, *b) = (f32::from(pixel[0]), f32::from(pixel[1]), f32::from(pixel[2]));
    }
}

#[multiversion(targets = "simd")]
fn from_planes([r, g, b]: [&mut [f32]; 3], pixels: &mut [[u8; 3]]) {
    for (((pixel, r), g), b) in pixels.iter_mut().zip(r).zip(g).zip(b) {
        *pixel = [byte(*r), byte(*g), byte(*b)];
    }
}

/// from + factor · (value − from).
#[multiversion(targets = "simd")]
fn blend(from: f32, factor: f32, values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = floor(limit(from + factor * (*v - from))));
}

#[multiversion(targets = "simd")]
fn total(values: &[f32]) -> f64 {
    sum(values.len(), |i| values[i])
}

#[multiversion(targets = "simd")]
fn total_gray([r, g, b]: [&mut [f32]; 3]) -> f64 {
    let (g, b) = (&g[..r.len()], &b[..r.len()]);
    sum(r.len(), |i| gray(r[i], g[i], b[i]))
}

#[multiversion(targets = "simd")]
fn saturate([r, g, b]: [&mut [f32]; 3], factor: f32) {
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let l = gray(*r, *g, *b);
        for v in [r, g, b] {
            *v = floor(limit(l + factor * (*v - l)));
        }
    }
}

#[multiversion(targets = "simd")]
fn turn_hues([r, g, b]: [&mut [f32]; 3], shift: f32) {
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        [*r, *g, *b] = turn_hue(*r, *g, *b, shift);
    }
}

#[multiversion(targets = "simd")]
fn turn_gray([r, g, b]: [&mut [f32]; 3]) {
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let l = gray(*r, *g, *b);
        (*r, *g, *b) = (l, l, l);
    }
}

/// Returns the luma with Pillow's 16-bit weights. All products and their sum are below 2²⁴, where `f32` is
/// exact.
#[inline(always)]
fn gray(r: f32, g: f32, b: f32) -> f32 {
    nearest((r * 19595.0 + g * 38470.0 + b * 7471.0) * (1.0 / 65536.0))
}

/// Sums integers in 0..255: exactly, in `f32` over the 8192 values of a block and in `f64` over blocks.
#[inline(always)]
fn sum(n: usize, value: impl Fn(usize) -> f32) -> f64 {
    const LANES: usize = 16;
    let mut total = 0.0;
    for start in (0..n).step_by(8192) {
        let end = (start + 8192).min(n);
        let mut lanes = [0f32; LANES];
        let last_block = start + (end - start) / LANES * LANES;
        for i in (start..last_block).step_by(LANES) {
            lanes.iter_mut().enumerate().for_each(|(l, sum)| *sum += value(i + l));
        }
        total += f64::from(lanes.iter().sum::<f32>() + (last_block..end).map(&value).sum::<f32>());
    }
    total
}

/// Returns ⌊255 t⌋, exactly although the product is rounded: 255 t = 256 t − t, and 256 t − n is exact near
/// n.
#[inline(always)]
fn scale_down(t: f32) -> f32 {
    let n = floor(255.0 * t);
    n - if 256.0 * t - n < t { 1.0 } else { 0.0 }
}

/// RGB → HSV in 8 bits → hue + `shift` modulo 256 → RGB, without branches.
#[inline(always)]
fn turn_hue(r: f32, g: f32, b: f32, shift: f32) -> [f32; 3] {
    let max = |a: f32, b: f32| if a > b { a } else { b };
    let min = |a: f32, b: f32| if a < b { a } else { b };
    let (high, low) = (max(r, max(g, b)), min(r, min(g, b)));
    let chroma = high - low;
    let safe = max(chroma, 1.0);
    let (rc, gc, bc) = ((high - r) / safe, (high - g) / safe, (high - b) / safe);
    let sector = if g == high { 2.0 + rc - bc } else { 4.0 + gc - rc };
    let sixth = if r == high { bc - gc } else { sector } / 6.0;
    let hue = scale_down(if sixth < 0.0 { sixth + 1.0 } else { sixth }) + shift;
    let hue = if hue >= 256.0 { hue - 256.0 } else { hue };
    // Gray pixels have chroma 0, so saturation 0, and their hue has no effect.
    let saturation = scale_down(chroma / max(high, 1.0)) / 255.0;
    let hue = hue * 6.0 / 255.0;
    let channel = |n: f32| {
        let k = n + hue;
        let k = if k >= 6.0 { k - 6.0 } else { k };
        // The channel is reduced by saturation · (1 on the far side of the circle, 0 on the near side).
        let fall = min(min(k, 4.0 - k), 1.0);
        nearest(high * (1.0 - saturation * max(fall, 0.0)))
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    /// The color cube in steps of 15, and a few neighbors.
    fn cube() -> Image<'static> {
        let mut pixels = Vec::new();
        for i in 0..18 * 18 * 18u32 {
            let part = |d: u32| ((i / d % 18) * 15 + i % 2 * (d % 3)).min(255) as u8;
            pixels.extend([part(1), part(18), part(324)]);
        }
        Image::new(ImageShape { height: 18 * 18, width: 18, channels: 3 }, pixels)
    }

    /// Pillow's two conversions, in f32 and f64 where Pillow uses them, without the last rounding.
    fn naive_hue([r, g, b]: [u8; 3], shift: u8) -> [f64; 3] {
        let (high, low) = (r.max(g).max(b), r.min(g).min(b));
        let (mut h, mut s) = (0u8, 0u8);
        if high != low {
            let chroma = f32::from(high - low);
            let part = |v: u8| f32::from(high - v) / chroma;
            let (rc, gc, bc) = (part(r), part(g), part(b));
            let h6 = if r == high {
                bc - gc
            } else if g == high {
                2.0 + rc - bc
            } else {
                4.0 + gc - rc
            };
            let turned = ((f64::from(h6) / 6.0 + 1.0) % 1.0) as f32;
            h = (f64::from(turned) * 255.0) as u8;
            s = (f64::from(chroma / f32::from(high)) * 255.0) as u8;
        }
        let h = h.wrapping_add(shift);
        if s == 0 {
            return [f64::from(high); 3];
        }
        let (v, fs, h6) = (f64::from(high), f64::from(s) / 255.0, f64::from(h) * 6.0 / 255.0);
        let f = h6 - h6.floor();
        let level = |fall: f64| v * (1.0 - fall);
        let (p, q, t) = (level(fs), level(fs * f), level(fs * (1.0 - f)));
        match h6 as u8 % 6 {
            0 => [v, t, p],
            1 => [q, v, p],
            2 => [p, v, t],
            3 => [p, q, v],
            4 => [t, p, v],
            _ => [v, p, q],
        }
    }

    #[test]
    fn hue_follows_pillow_over_the_color_cube() {
        // The 8-bit hue and saturation are Pillow's. These values are rounded afterwards: in sixths of the
        // circle, the hue, its sums up to 11 and 6, and the distance up to 4; then three numbers up to 1, and
        // the level itself.
        let rounding = tolerance::f32(6 + 11 + 6 + 4 + 3 + 1, 255.0);
        for shift in [-0.5f32, -0.1, 0.0, 0.08, 0.3, 0.5] {
            let image = cube();
            let mut turned = image.clone();
            let mut planes = Planes::new(&image);
            planes.hue(shift);
            planes.store(&mut turned);
            let byte = (shift * 255.0) as i32 as u8;
            for (from, to) in image.pixels.as_chunks::<3>().0.iter().zip(turned.pixels.as_chunks::<3>().0) {
                for (want, to) in naive_hue(*from, byte).into_iter().zip(to) {
                    assert_within!(*to, want, 0.5 + rounding, "{from:?} by {shift}");
                }
            }
        }
    }

    #[test]
    fn factor_one_changes_nothing_and_factor_zero_is_the_reference() {
        let image = cube();
        let changed = |change: fn(&mut Planes)| {
            let mut planes = Planes::new(&image);
            change(&mut planes);
            let mut out = image.clone();
            planes.store(&mut out);
            out
        };
        assert_eq!(changed(|p| p.brightness(1.0)), image);
        assert_eq!(changed(|p| p.contrast(1.0)), image);
        assert_eq!(changed(|p| p.saturation(1.0)), image);
        assert_eq!(changed(|p| p.saturation(0.0)), changed(Planes::grayscale));
        assert!(changed(|p| p.brightness(0.0)).pixels.iter().all(|v| *v == 0));
        let luma = |p: &[u8; 3]| {
            (u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471 + 32768) >> 16
        };
        let gray = changed(Planes::grayscale);
        let pairs = image.pixels.as_chunks::<3>().0.iter().zip(gray.pixels.as_chunks::<3>().0);
        pairs.for_each(|(from, to)| assert_eq!(luma(from), u32::from(to[1]), "{from:?}"));
        let flat = changed(|p| p.contrast(0.0));
        let mean = image.pixels.as_chunks::<3>().0.iter().map(luma).sum::<u32>() as f64 / 5832.0;
        assert!(flat.pixels.iter().all(|v| *v == (mean + 0.5) as u8));
    }

    #[test]
    fn gray_images_stay_gray() {
        let image = Image::new(ImageShape { height: 1, width: 4, channels: 1 }, vec![0, 100, 128, 255]);
        let mut planes = Planes::new(&image);
        planes.hue(0.2);
        planes.saturation(0.3);
        planes.grayscale();
        let mut out = image.clone();
        planes.store(&mut out);
        assert_eq!(out, image);
        planes.solarize(128.0);
        planes.store(&mut out);
        assert_eq!(*out.pixels, [0, 100, 127, 0]);
    }
}
