//! Resizing by a separable filter, with Pillow's coefficients.
//!
//! With scale s = input / output and stretch f = max(s, 1), output pixel i is the weighted mean of the input
//! pixels j with |j + ½ − c| < f·support around its center c = (i + ½)s, weights w((j + ½ − c) / f),
//! normalized to sum 1. Columns are computed first and rounded to 8 bits, then rows. Pillow sums in 22-bit
//! fixed point and this module in `f32`; apart from rare differences of one level by rounding, the results
//! agree.

use super::rounding::{byte, limit, nearest};
use super::{Rect, geometry};
use multiversion::multiversion;
use pauc_traits::{Image, ImageShape};
use serde::{Deserialize, Serialize};

/// The filter of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filter {
    /// w(t) = 1 − |t|, support 1.
    Bilinear,
    /// Keys' cubic with a = −½, support 2.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, t: f64) -> f64 {
        const A: f64 = -0.5;
        let t = t.abs();
        match self {
            Filter::Bilinear => (1.0 - t).max(0.0),
            Filter::Bicubic if t < 1.0 => ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0,
            Filter::Bicubic if t < 2.0 => (((t - 5.0) * t + 8.0) * t - 4.0) * A,
            Filter::Bicubic => 0.0,
        }
    }
}

/// The input pixels and weights of each output pixel, along one axis.
struct Taps {
    /// The first input pixel and the number of weights of each output pixel.
    ranges: Vec<(usize, usize)>,
    /// The weights, `stride` entries per output pixel.
    weights: Vec<f32>,
    stride: usize,
}

impl Taps {
    fn new(input: usize, output: usize, filter: Filter) -> Self {
        let scale = input as f64 / output as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let shrink = 1.0 / stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut ranges = Vec::with_capacity(output);
        let mut weights = vec![0.0; output * stride];
        let mut exact = Vec::with_capacity(stride);
        for (i, weights) in weights.chunks_exact_mut(stride).enumerate() {
            let center = (i as f64 + 0.5) * scale;
            // The casts truncate, and a negative number becomes 0, as in Pillow.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            exact.clear();
            exact.extend((first..end).map(|j| filter.weight((j as f64 - center + 0.5) * shrink)));
            let total = 1.0 / exact.iter().sum::<f64>();
            weights.iter_mut().zip(&exact).for_each(|(w, e)| *w = (e * total) as f32);
            ranges.push((first, end - first));
        }
        Taps { ranges, weights, stride }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.ranges
            .iter()
            .zip(self.weights.chunks_exact(self.stride))
            .map(|(&(first, n), w)| (first, &w[..n]))
    }
}

/// Resizes the pixels of `rect` to `height`×`width`. Pixels outside the rectangle have no influence.
pub fn resize(image: &Image<'_>, rect: Rect, height: usize, width: usize, filter: Filter) -> Image<'static> {
    if (rect.height, rect.width) == (height, width) {
        return geometry::crop(image, rect.top as isize, rect.left as isize, height, width);
    }
    let shape = ImageShape { height, width, channels: image.shape.channels };
    let mut pixels = vec![0u8; shape.len()];
    if !shape.is_empty() && rect.height > 0 && rect.width > 0 {
        let (columns, rows) = (Taps::new(rect.width, width, filter), Taps::new(rect.height, height, filter));
        match shape.channels {
            // RGB pixels get a fourth, empty lane, so that rows fill whole vector registers.
            3 => separable::<3, 4, 16>(image, rect, &columns, &rows, &mut pixels),
            _ => separable::<1, 1, 8>(image, rect, &columns, &rows, &mut pixels),
        }
    }
    Image::new(shape, pixels)
}

/// The images have `C` channels and the intermediate pixels `L ≥ C` lanes. The columns of `W / L` rows are
/// computed together. Compiled for several vector widths; all give the same bytes.
#[multiversion(targets = "simd")]
fn separable<const C: usize, const L: usize, const W: usize>(
    image: &Image<'_>,
    rect: Rect,
    columns: &Taps,
    rows: &Taps,
    out: &mut [u8],
) {
    let width = columns.ranges.len();
    let mut source = vec![[0f32; W]; rect.width];
    // A ring buffer of rows whose columns are done: row y is at y % keep. A group may be computed before its
    // rows are used.
    let keep = rows.ranges.iter().map(|r| r.1).max().unwrap_or(1).max(1) + W / L - 1;
    let mut ring = vec![[0f32; L]; keep * width];
    let mut columns_done = vec![[0f32; W]; width];
    let mut sum = vec![[0f32; L]; width];
    let mut next = 0;
    for ((first, weights), out) in rows.iter().zip(out.chunks_exact_mut(width * C)) {
        next = next.max(first);
        while next < first + weights.len() {
            let group = (W / L).min(rect.height - next);
            for row in 0..group {
                let start = ((rect.top + next + row) * image.shape.width + rect.left) * C;
                let bytes = &image.pixels[start..start + rect.width * C];
                for (lanes, pixel) in source.iter_mut().zip(bytes.as_chunks::<C>().0) {
                    lanes.as_chunks_mut().0[row] = pixel_of::<C, L>(*pixel);
                }
            }
            for ((first, weights), done) in columns.iter().zip(&mut columns_done) {
                let mut lanes = [0f32; W];
                for (pixel, w) in source[first..first + weights.len()].iter().zip(weights) {
                    (0..W).for_each(|l| lanes[l] += w * pixel[l]);
                }
                *done = lanes.map(|v| nearest(limit(v) + HALF_UP));
            }
            for row in 0..group {
                let kept = &mut ring[(next + row) % keep * width..][..width];
                kept.iter_mut().zip(&columns_done).for_each(|(kept, done)| *kept = done.as_chunks().0[row]);
            }
            next += group;
        }
        sum.fill([0.0; L]);
        for (j, &w) in weights.iter().enumerate() {
            let row = &ring[(first + j) % keep * width..][..width];
            let (sum, row) = (sum.as_flattened_mut(), row.as_flattened());
            sum.iter_mut().zip(row).for_each(|(s, r)| *s += w * r);
        }
        for (out, sum) in out.as_chunks_mut::<C>().0.iter_mut().zip(&sum) {
            let rounded = sum.map(|v| byte(limit(v) + HALF_UP));
            out.copy_from_slice(&rounded[..C]);
        }
    }
}

/// Returns the lanes of a pixel; lanes beyond its channels are 0.
#[inline(always)]
fn pixel_of<const C: usize, const L: usize>(pixel: [u8; C]) -> [f32; L] {
    std::array::from_fn(|c| pixel.get(c).map_or(0.0, |p| f32::from(*p)))
}

/// Pillow rounds halves up, and halves are frequent at simple scale factors. [`nearest`] alone rounds them to
/// even.
const HALF_UP: f32 = 1.0 / 4096.0;

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn wave(height: usize, width: usize, channels: usize) -> Image<'static> {
        let shape = ImageShape { height, width, channels };
        Image::new(shape, (0..shape.len()).map(|i| (i * i * 37 % 251) as u8).collect::<Vec<_>>())
    }

    #[test]
    fn weights_sum_to_one() {
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for (input, output) in [(1, 7), (7, 1), (5, 5), (31, 12), (12, 31), (500, 3)] {
                for (first, weights) in Taps::new(input, output, filter).iter() {
                    assert!(first + weights.len() <= input && !weights.is_empty());
                    // Each weight is rounded once; sums are in `f64`, here and in `Taps::new`.
                    let sum = weights.iter().map(|w| f64::from(*w)).sum::<f64>();
                    let magnitude = weights.iter().map(|w| f64::from(w.abs())).sum::<f64>();
                    let rounding = tolerance::f32(1, magnitude) + tolerance::f64(weights.len(), magnitude);
                    assert_within!(sum, 1.0, rounding);
                }
            }
        }
    }

    #[test]
    fn a_constant_stays_constant_and_equal_sizes_are_the_crop() {
        let gray = Image::new(ImageShape { height: 9, width: 11, channels: 3 }, vec![200; 297]);
        let whole = Rect::whole(gray.shape);
        assert!(resize(&gray, whole, 4, 23, Filter::Bicubic).pixels.iter().all(|p| *p == 200));
        let image = wave(9, 11, 3);
        assert_eq!(resize(&image, whole, 9, 11, Filter::Bilinear), image);
        // Only one axis changes; the filter of the other is the identity.
        let tall = resize(&image, whole, 18, 11, Filter::Bilinear);
        assert_eq!(tall.pixels[..33], image.pixels[..33]);
    }

    #[test]
    fn halving_takes_the_weighted_mean_of_four() {
        let image =
            Image::new(ImageShape { height: 1, width: 8, channels: 1 }, vec![0, 80, 160, 240, 0, 0, 0, 8]);
        let half = resize(&image, Rect::whole(image.shape), 1, 4, Filter::Bilinear);
        // Weights 1, 3, 3, 1 over 8, truncated at the border and renormalized; ⌊v + ½⌋.
        assert_eq!(*half.pixels, [57, 160, 30, 3]);
    }

    #[test]
    fn three_channels_are_three_images() {
        let image = wave(13, 17, 3);
        let rect = Rect { top: 1, left: 2, height: 11, width: 12 };
        let together = resize(&image, rect, 7, 19, Filter::Bicubic);
        for c in 0..3 {
            let shape = ImageShape { channels: 1, ..image.shape };
            let plane =
                Image::new(shape, image.pixels.iter().skip(c).step_by(3).copied().collect::<Vec<_>>());
            let alone = resize(&plane, rect, 7, 19, Filter::Bicubic);
            assert!(together.pixels.iter().skip(c).step_by(3).eq(alone.pixels.iter()));
        }
    }
}
