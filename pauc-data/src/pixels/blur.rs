//! Gaussian blur: the exact convolution, and Pillow's approximation by three box filters.

use super::rounding::{byte, limit, nearest};
use multiversion::multiversion;
use pauc_traits::{Image, ImageShape};

/// Pillow's `GaussianBlur(radius = sigma)`: three passes of a box filter of fractional width along rows, then
/// along columns, each rounded to 8 bits. The border is extended with its own pixels. `sigma` is in pixels.
///
/// The radius of the box is l + a. The integer part l and the fraction a are such that three passes have the
/// variance of the Gaussian (Gwosdek et al., *Theoretical foundations of Gaussian convolution by extended box
/// filtering*, 2011).
pub fn pillow(image: &mut Image<'_>, sigma: f64) {
    let variance = sigma * sigma / 3.0;
    let l = (((12.0 * variance + 1.0).sqrt() - 1.0) / 2.0).floor();
    let a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance) / (6.0 * (variance - (l + 1.0) * (l + 1.0)));
    let inner = 1.0 / (2.0 * (l + a) + 1.0);
    // Pillow's 24-bit fixed point: weights are truncated, and the remainder goes to the outermost pixels.
    let unit = f64::from(1 << 24);
    let inner = (inner * unit).floor() / unit;
    let outermost = (1.0 - (2.0 * l + 1.0) * inner) / 2.0;
    let mut taps = vec![inner as f32; l as usize + 1];
    taps.push(outermost as f32);
    convolve(image, &taps, 3, true, |i, n| i.clamp(0, n - 1));
}

/// Convolves with a Gaussian of standard deviation `sigma`, truncated at `radius` pixels (torchvision's
/// kernel size is 2·radius + 1) and normalized. The image is mirrored at its border pixels.
///
/// A radius of at least the height or width would reach beyond the mirror image and is shortened.
pub fn exact(image: &mut Image<'_>, sigma: f64, radius: usize) {
    let radius = radius.min(image.shape.height.min(image.shape.width).saturating_sub(1));
    let weight = |i: usize| (-0.5 * (i as f64 / sigma).powi(2)).exp();
    let total = 1.0 + 2.0 * (1..=radius).map(weight).sum::<f64>();
    let taps: Vec<f32> = (0..=radius).map(|i| (weight(i) / total) as f32).collect();
    convolve(image, &taps, 1, false, |i, n| {
        let i = i.abs();
        if i < n { i } else { 2 * (n - 1) - i }
    });
}

/// Convolves an image. Compiled for several vector widths; all give the same bytes.
///
/// Applies the symmetric kernel `taps[|i|]` `passes` times along rows, then along columns. Each pass is
/// rounded if `rounded`. `border` maps a position outside 0..n to one inside.
#[multiversion(targets = "simd")]
fn convolve(
    image: &mut Image<'_>,
    taps: &[f32],
    passes: usize,
    rounded: bool,
    border: fn(isize, isize) -> isize,
) {
    let ImageShape { height, width, channels } = image.shape;
    if image.shape.is_empty() {
        return;
    }
    let radius = taps.len() - 1;
    let row = width * channels;
    let pixels = image.pixels.to_mut();
    // Each row is copied into a buffer with `radius` more pixels at each end, so that no pixel is a special
    // case.
    let mut wide = vec![0f32; row + 2 * radius * channels];
    let mut source = vec![0f32; height * row];
    source.iter_mut().zip(pixels.iter()).for_each(|(f, p)| *f = f32::from(*p));
    for line in source.chunks_exact_mut(row) {
        for _ in 0..passes {
            wide[radius * channels..][..row].copy_from_slice(line);
            for x in (1..=radius as isize).flat_map(|x| [-x, width as isize - 1 + x]) {
                let inside = border(x, width as isize) as usize * channels;
                let outside = (x + radius as isize) as usize * channels;
                wide[outside..][..channels].copy_from_slice(&line[inside..][..channels]);
            }
            let center = radius * channels;
            weigh(line, taps, rounded, |i| (&wide[center - i * channels..], &wide[center + i * channels..]));
        }
    }
    let mut target = vec![0f32; height * row];
    for _ in 0..passes {
        for (y, line) in target.chunks_exact_mut(row).enumerate() {
            let row_at = |y: isize| &source[border(y, height as isize) as usize * row..][..row];
            weigh(line, taps, rounded, |i| {
                (row_at(y as isize - i as isize), row_at(y as isize + i as isize))
            });
        }
        std::mem::swap(&mut source, &mut target);
    }
    pixels.iter_mut().zip(&source).for_each(|(p, v)| *p = byte(limit(*v)));
}

/// out = taps[0] · center + Σ taps[i] · (left + right); `sides(i)` returns the two lines at distance i.
#[inline(always)]
fn weigh<'a>(out: &mut [f32], taps: &[f32], rounded: bool, sides: impl Fn(usize) -> (&'a [f32], &'a [f32])) {
    let center = sides(0).0;
    out.iter_mut().zip(center).for_each(|(o, c)| *o = taps[0] * c);
    for (i, &w) in taps.iter().enumerate().skip(1) {
        let (left, right) = sides(i);
        out.iter_mut().zip(left).zip(right).for_each(|((o, l), r)| *o += w * (l + r));
    }
    if rounded {
        out.iter_mut().for_each(|o| *o = nearest(*o));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn point(size: usize) -> Image<'static> {
        let mut pixels = vec![0; size * size];
        pixels[size * size / 2] = 255;
        Image::new(ImageShape { height: size, width: size, channels: 1 }, pixels)
    }

    #[test]
    fn a_point_becomes_the_gaussian() {
        let mut image = point(15);
        exact(&mut image, 1.3, 5);
        let weight = |d: f64| (-0.5 * (d / 1.3).powi(2)).exp();
        let total = (-5..=5).map(|d| weight(f64::from(d))).sum::<f64>();
        for (i, p) in image.pixels.iter().enumerate() {
            let (y, x) = ((i / 15) as f64 - 7.0, (i % 15) as f64 - 7.0);
            let inside = x.abs() <= 5.0 && y.abs() <= 5.0;
            let want = if inside { 255.0 * weight(x) * weight(y) / (total * total) } else { 0.0 };
            // Half a level, and eight roundings per direction: a weight, a sum of two, a product, 5
            // additions.
            assert_within!(*p, want, 0.5 + tolerance::f32(16, want), "{x},{y}");
        }
    }

    #[test]
    fn constant_and_tiny_images_work_with_any_sigma() {
        for (height, width, channels) in [(1, 1, 3), (2, 1, 1), (1, 5, 3), (8, 8, 3)] {
            let shape = ImageShape { height, width, channels };
            for sigma in [0.01, 0.1, 1.0, 2.0, 9.0] {
                let mut image = Image::new(shape, vec![77; shape.len()]);
                exact(&mut image, sigma, (3.0 * sigma).ceil() as usize);
                pillow(&mut image, sigma);
                assert!(image.pixels.iter().all(|p| *p == 77), "{shape}, {sigma}");
            }
        }
    }

    #[test]
    fn the_approximation_has_the_gaussians_variance() {
        // A high step keeps the rounding to 8 bits small relative to the measured slope. Pass k rounds the
        // pixels within k·reach of the step. An error e at distance d changes the second moment of the slope
        // by 2·d·e, and a symmetric filter preserves that. The distances ½, 3/2, … on both sides sum to
        // (k·reach)², and those of the three passes to 14·reach². An error is half a level plus fewer than 30
        // roundings of weights, products and sums.
        let level = 0.5 + tolerance::f32(30, 255.0);
        for (sigma, reach) in [(0.5, 1), (1.0, 1), (2.0, 2), (3.5, 4)] {
            let (n, half) = (64, 32);
            let shape = ImageShape { height: 1, width: n, channels: 1 };
            let mut image =
                Image::new(shape, (0..n).map(|x| if x < half { 0 } else { 255 }).collect::<Vec<_>>());
            pillow(&mut image, sigma);
            let slope: Vec<f64> =
                image.pixels.windows(2).map(|w| f64::from(w[1]) - f64::from(w[0])).collect();
            let place = (half - 1) as f64;
            let variance =
                slope.iter().enumerate().map(|(x, s)| (x as f64 - place).powi(2) * s).sum::<f64>() / 255.0;
            let rounding = f64::from(14 * reach * reach) * 2.0 * level / 255.0;
            assert_within!(variance, sigma * sigma, rounding, "{sigma}");
        }
    }
}
