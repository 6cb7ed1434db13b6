//! Pooling: the maximum of 3×3 windows at stride 2, and the mean of whole maps.

use crate::layout::Layout;
use crate::threads::{self, Shared};

/// Rows or columns after pooling windows of 3 at stride 2 with one row or column of padding.
pub fn max_side(n: usize) -> usize {
    (n - 1) / 2 + 1
}

/// y ← the maximum of each 3×3 window at stride 2 with padding 1, and `from`, which of the window's nine it was: the
/// first of equals, as in PyTorch.
///
/// # Panics
/// If slices and layouts do not agree.
pub fn max_forward((x, xl): (&[f32], Layout), (y, yl): (&mut [f32], Layout), from: &mut [u8]) {
    check_max(x, xl, y, yl, from);
    let (y, from) = (Shared::new(y), Shared::new(from));
    let width = yl.width * yl.pitch;
    threads::for_each(yl.rows(), |r| {
        let (image, oy) = (r / yl.height, r % yl.height);
        // SAFETY: each portion is one row of the output.
        let (y, from) =
            unsafe { (y.part(yl.row_at(r)..yl.row_at(r) + width), from.part(r * width..(r + 1) * width)) };
        y.fill(f32::NEG_INFINITY);
        for (k, ky) in (0..3).enumerate().filter(|(_, ky)| (1..=xl.height).contains(&(2 * oy + ky))) {
            let row = xl.row_at(image * xl.height + 2 * oy + ky - 1);
            for ox in 0..yl.width {
                for kx in (0..3).filter(|kx| (1..=xl.width).contains(&(2 * ox + kx))) {
                    let x = &x[row + (2 * ox + kx - 1) * xl.pitch..][..yl.pitch];
                    let at = ox * yl.pitch..(ox + 1) * yl.pitch;
                    for ((y, f), x) in y[at.clone()].iter_mut().zip(&mut from[at]).zip(x) {
                        if *x > *y || (x.is_nan() && !y.is_nan()) {
                            (*y, *f) = (*x, (3 * k + kx) as u8);
                        }
                    }
                }
            }
        }
    });
}

/// dx ← the gradient of [`max_forward`].
///
/// # Panics
/// If slices and layouts do not agree.
pub fn max_backward((dy, dyl): (&[f32], Layout), from: &[u8], (dx, dxl): (&mut [f32], Layout)) {
    check_max(dx, dxl, dy, dyl, from);
    let dx = Shared::new(dx);
    threads::for_each(dxl.batch, |image| {
        let start = image * dxl.image();
        // SAFETY: each portion is one image.
        let dx = unsafe { dx.part(start..start + dxl.image()) };
        for y in 0..dxl.height {
            let at = dxl.row_at(image * dxl.height + y) - start;
            dx[at..at + dxl.width * dxl.pitch].fill(0.0);
        }
        for oy in 0..dyl.height {
            let r = image * dyl.height + oy;
            for ox in 0..dyl.width {
                let dy = &dy[dyl.row_at(r) + ox * dyl.pitch..][..dyl.pitch];
                let from = &from[(r * dyl.width + ox) * dyl.pitch..][..dyl.pitch];
                for (c, (g, f)) in dy.iter().zip(from).enumerate() {
                    let (y, x) = (2 * oy + (*f / 3) as usize, 2 * ox + (*f % 3) as usize);
                    dx[(dxl.before + y - 1) * dxl.row() + (dxl.before + x - 1) * dxl.pitch + c] += g;
                }
            }
        }
    });
}

fn check_max(x: &[f32], xl: Layout, y: &[f32], yl: Layout, from: &[u8]) {
    let maps = (max_side(xl.height), max_side(xl.width), xl.pitch, xl.batch);
    assert_eq!((yl.height, yl.width, yl.pitch, yl.batch), maps, "{xl:?} into {yl:?}");
    assert!(x.len() >= xl.len() && y.len() >= yl.len() && from.len() >= yl.pixels() * yl.pitch);
}

/// y\[image\]\[channel\] ← the mean of the map, for the first `channels`.
///
/// # Panics
/// If slices and layout do not agree.
pub fn mean_forward((x, xl): (&[f32], Layout), channels: usize, y: &mut [f32]) {
    assert!(x.len() >= xl.len() && channels <= xl.pitch && y.len() == xl.batch * channels);
    let scale = 1.0 / (xl.height * xl.width) as f32;
    let y = Shared::new(y);
    threads::for_each(xl.batch, |image| {
        // SAFETY: each portion is one image.
        let y = unsafe { y.part(image * channels..(image + 1) * channels) };
        y.fill(0.0);
        for r in image * xl.height..(image + 1) * xl.height {
            for pixel in x[xl.row_at(r)..].chunks(xl.pitch).take(xl.width) {
                y.iter_mut().zip(pixel).for_each(|(y, x)| *y += x);
            }
        }
        y.iter_mut().for_each(|y| *y *= scale);
    });
}

/// dx ← the gradient of [`mean_forward`]; channels beyond are zero.
///
/// # Panics
/// If slices and layout do not agree.
pub fn mean_backward(dy: &[f32], channels: usize, (dx, dxl): (&mut [f32], Layout)) {
    assert!(dx.len() >= dxl.len() && channels <= dxl.pitch && dy.len() == dxl.batch * channels);
    let scale = 1.0 / (dxl.height * dxl.width) as f32;
    let dx = Shared::new(dx);
    threads::for_each(dxl.batch, |image| {
        let start = image * dxl.image();
        // SAFETY: each portion is one image.
        let dx = unsafe { dx.part(start..start + dxl.image()) };
        let dy = &dy[image * channels..(image + 1) * channels];
        for r in image * dxl.height..(image + 1) * dxl.height {
            for pixel in dx[dxl.row_at(r) - start..].chunks_mut(dxl.pitch).take(dxl.width) {
                pixel[channels..].fill(0.0);
                pixel.iter_mut().zip(dy).for_each(|(d, g)| *d = g * scale);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::cases::{compare, noise, place};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn maximum_equals_its_definition(batch in 1usize..3, h in 1usize..9, w in 1usize..9, c in 1usize..20, seed in 0u64..1000) {
            let pitch = c.next_multiple_of(16);
            // Few different values, so that there are ties.
            let x: Vec<f32> = noise(batch * h * w * c, seed).iter().map(|v| (v * 3.0).round()).collect();
            let (oh, ow) = (max_side(h), max_side(w));
            let dy = noise(batch * oh * ow * c, seed + 1);
            let (mut want, mut grad) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
            for (i, (want, dy)) in want.iter_mut().zip(&dy).enumerate() {
                let (b, oy, ox, ch) = (i / (oh * ow * c), i / (ow * c) % oh, i / c % ow, i % c);
                let mut best = (f64::NEG_INFINITY, 0);
                for y in (2 * oy).saturating_sub(1)..(2 * oy + 2).min(h) {
                    for z in (2 * ox).saturating_sub(1)..(2 * ox + 2).min(w) {
                        let at = ((b * h + y) * w + z) * c + ch;
                        if x[at] as f64 > best.0 { best = (x[at] as f64, at); }
                    }
                }
                *want = best.0;
                grad[best.1] += *dy as f64;
            }
            let (xl, yl) = (Layout::haloed(batch, h, w, pitch, 1), Layout::haloed(batch, oh, ow, pitch, 1));
            let (dxl, dyl) = (Layout::flat(batch, h, w, pitch), Layout::flat(batch, oh, ow, pitch));
            let (mut y, mut from) = (vec![0.0; yl.len()], vec![0; yl.pixels() * pitch]);
            max_forward((&place(&x, c, xl), xl), (&mut y, yl), &mut from);
            compare(&y, yl, c, &want, 0.0)?;
            let mut dx = vec![f32::NAN; dxl.len()];
            max_backward((&place(&dy, c, dyl), dyl), &from, (&mut dx, dxl));
            compare(&dx, dxl, c, &grad, 1e-6)?;
        }

        #[test]
        fn mean_equals_its_definition(batch in 1usize..4, h in 1usize..6, w in 1usize..6, c in 1usize..20, seed in 0u64..1000) {
            let l = Layout::haloed(batch, h, w, c.next_multiple_of(16), 1);
            let (x, dy) = (noise(batch * h * w * c, seed), noise(batch * c, seed + 1));
            let mut y = vec![0.0; batch * c];
            mean_forward((&place(&x, c, l), l), c, &mut y);
            for (i, y) in y.iter().enumerate() {
                let map = x[i / c * h * w * c..].iter().take(h * w * c).skip(i % c).step_by(c);
                let want = map.map(|v| *v as f64).sum::<f64>() / (h * w) as f64;
                prop_assert!((*y as f64 - want).abs() < 1e-6);
            }
            let flat = Layout::flat(batch, h, w, l.pitch);
            let mut dx = vec![f32::NAN; flat.len()];
            mean_backward(&dy, c, (&mut dx, flat));
            let want: Vec<f64> = (0..x.len()).map(|i| dy[i / (h * w * c) * c + i % c] as f64 / (h * w) as f64).collect();
            compare(&dx, flat, c, &want, 1e-6)?;
        }
    }
}
