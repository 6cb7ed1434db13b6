//! Pooling: maxima of 3×3 windows at stride 2, and means of cells.

use crate::layout::Layout;
use crate::threads::{self, Shared};

/// Returns the rows or columns after pooling windows of 3 at stride 2 with padding 1.
pub fn max_side(n: usize) -> usize {
    (n - 1) / 2 + 1
}

/// y ← the maximum of each 3×3 window at stride 2 with padding 1. `from` ← its index among the window's nine,
/// the first among equals, as in PyTorch.
///
/// # Shapes
/// x: at least `xl.len()` values; y: at least `yl.len()`; from: as many as y
///
/// # Panics
/// If slices and layouts do not agree.
pub fn max_forward((x, xl): (&[f32], Layout), (y, yl): (&mut [f32], Layout), from: &mut [u8]) {
    check_max(x, xl, y, yl, from);
    let (y, from) = (Shared::new(y), Shared::new(from));
    let width = yl.width * yl.pitch;
    threads::for_each(yl.rows(), |r| {
        let (image, oy) = (r / yl.height, r % yl.height);
        // SAFETY: portions are different rows of the output, and rows of a layout are disjoint.
        let (y, from) =
            unsafe { (y.part(yl.row_at(r)..yl.row_at(r) + width), from.part(r * width..(r + 1) * width)) };
        y.fill(f32::NEG_INFINITY);
        for (k, ky) in (0..3).enumerate().filter(|(_, ky)| (1..=xl.height).contains(&(2 * oy + ky))) {
            let row = xl.row_at(image * xl.height + 2 * oy + ky - 1);
            for ox in 0..yl.width {
                for kx in (0..3).filter(|kx| (1..=xl.width).contains(&(2 * ox + kx))) {
                    let x = &x[row + (2 * ox + kx - 1) * xl.pitch..][..yl.pitch];
                    let pixel = ox * yl.pitch..(ox + 1) * yl.pitch;
                    for ((y, f), x) in y[pixel.clone()].iter_mut().zip(&mut from[pixel]).zip(x) {
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
/// # Shapes
/// dy: at least `dyl.len()` values; from: as many as dy; dx: at least `dxl.len()`
///
/// # Panics
/// If slices and layouts do not agree.
pub fn max_backward((dy, dyl): (&[f32], Layout), from: &[u8], (dx, dxl): (&mut [f32], Layout)) {
    check_max(dx, dxl, dy, dyl, from);
    let dx = Shared::new(dx);
    threads::for_each(dxl.batch, |image| {
        let start = image * dxl.image();
        // SAFETY: portions are different images, and images of a layout are disjoint.
        let dx = unsafe { dx.part(start..start + dxl.image()) };
        for y in 0..dxl.height {
            let row = dxl.row_at(image * dxl.height + y) - start;
            dx[row..row + dxl.width * dxl.pitch].fill(0.0);
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
    assert_eq!((yl.height, yl.width, yl.pitch, yl.batch), maps, "cannot pool {xl:?} into {yl:?}");
    assert!(x.len() >= xl.len() && y.len() >= yl.len() && from.len() >= yl.pixels() * yl.pitch);
}

/// The means of the cells of a grid: `grid` × `grid` equal parts of a map, in row-major order. Pixel (r, c)
/// of a map of H × W belongs to the cell in row ⌊r·grid/H⌋ and column ⌊c·grid/W⌋. A single cell is the whole
/// map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellMean {
    /// The channels to average; a layout may hold more.
    pub channels: usize,
    /// Cells per side, at most the shorter side of the map.
    pub grid: usize,
}

impl CellMean {
    /// Returns the number of values per image.
    pub fn outputs(self) -> usize {
        self.grid * self.grid * self.channels
    }

    /// Returns the index in an image's outputs of the cell of pixel (r, c).
    fn start(self, (r, c): (usize, usize), l: Layout) -> usize {
        (r * self.grid / l.height * self.grid + c * self.grid / l.width) * self.channels
    }

    /// Returns the inverse of each cell's number of pixels.
    fn scales(self, l: Layout) -> Vec<f32> {
        let pixels = |side: usize, i: usize| (0..side).filter(|r| r * self.grid / side == i).count();
        let cells = (0..self.grid).flat_map(|i| (0..self.grid).map(move |j| (i, j)));
        cells.map(|(i, j)| 1.0 / (pixels(l.height, i) * pixels(l.width, j)) as f32).collect()
    }

    /// Returns the matrix that averages the pixels of a map of height × width: means = pixels · matrix.
    ///
    /// # Shapes
    /// (height · width, grid²), row-major
    pub fn averaging(self, height: usize, width: usize) -> Vec<f32> {
        let pixel = |i: usize| (i / width * self.grid / height) * self.grid + i % width * self.grid / width;
        let mut sizes = vec![0.0f32; self.grid * self.grid];
        (0..height * width).for_each(|i| sizes[pixel(i)] += 1.0);
        let mut matrix = vec![0.0; height * width * sizes.len()];
        (0..height * width).for_each(|i| matrix[i * sizes.len() + pixel(i)] = 1.0 / sizes[pixel(i)]);
        matrix
    }

    fn check(self, map: usize, l: Layout, y: usize) {
        assert!((1..=l.height.min(l.width)).contains(&self.grid), "{self:?} does not fit {l:?}");
        assert!(map >= l.len() && self.channels <= l.pitch && y == l.batch * self.outputs());
    }

    /// y\[image\]\[cell\]\[channel\] ← the mean of the cell.
    ///
    /// # Shapes
    /// x: at least `xl.len()` values; y (images, cells, channels)
    ///
    /// # Panics
    /// If slices and layout do not agree.
    pub fn forward(self, (x, xl): (&[f32], Layout), y: &mut [f32]) {
        self.check(x.len(), xl, y.len());
        let (n, scales) = (self.outputs(), self.scales(xl));
        let y = Shared::new(y);
        threads::for_each(xl.batch, |image| {
            // SAFETY: portions are different images, whose values are disjoint.
            let y = unsafe { y.part(image * n..(image + 1) * n) };
            y.fill(0.0);
            for r in 0..xl.height {
                let row = &x[xl.row_at(image * xl.height + r)..];
                for (c, pixel) in row.chunks(xl.pitch).take(xl.width).enumerate() {
                    let cell = &mut y[self.start((r, c), xl)..][..self.channels];
                    cell.iter_mut().zip(pixel).for_each(|(y, x)| *y += x);
                }
            }
            for (cell, scale) in y.chunks_exact_mut(self.channels).zip(&scales) {
                cell.iter_mut().for_each(|y| *y *= scale);
            }
        });
    }

    /// dx ← the gradient of [`CellMean::forward`]. Additional channels are zero.
    ///
    /// # Shapes
    /// dy (images, cells, channels); dx: at least `dxl.len()` values
    ///
    /// # Panics
    /// If slices and layout do not agree.
    pub fn backward(self, dy: &[f32], (dx, dxl): (&mut [f32], Layout)) {
        self.check(dx.len(), dxl, dy.len());
        let (n, scales) = (self.outputs(), self.scales(dxl));
        let dx = Shared::new(dx);
        threads::for_each(dxl.batch, |image| {
            let start = image * dxl.image();
            // SAFETY: portions are different images, whose values are disjoint.
            let dx = unsafe { dx.part(start..start + dxl.image()) };
            let dy = &dy[image * n..(image + 1) * n];
            for r in 0..dxl.height {
                let row = &mut dx[dxl.row_at(image * dxl.height + r) - start..];
                for (c, pixel) in row.chunks_mut(dxl.pitch).take(dxl.width).enumerate() {
                    let cell = self.start((r, c), dxl);
                    let scale = scales[cell / self.channels];
                    pixel[self.channels..].fill(0.0);
                    pixel.iter_mut().zip(&dy[cell..cell + self.channels]).for_each(|(d, g)| *d = g * scale);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv::cases::{compare, noise, place};
    use pauc_testing::Rounded;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(pauc_testing::property::cases(256))]

        #[test]
        fn maximum_equals_its_definition(batch in 1usize..3, h in 1usize..9, w in 1usize..9, c in 1usize..20, seed in 0u64..1000) {
            let pitch = c.next_multiple_of(16);
            // Few different values, so that there are ties.
            let x: Vec<f32> = noise(batch * h * w * c, seed).iter().map(|v| (v * 3.0).round()).collect();
            let (oh, ow) = (max_side(h), max_side(w));
            let dy = noise(batch * oh * ow * c, seed + 1);
            let (mut want, mut grad) = (vec![Rounded::default(); dy.len()], vec![Rounded::default(); x.len()]);
            for (i, (want, dy)) in want.iter_mut().zip(&dy).enumerate() {
                let (b, oy, ox, ch) = (i / (oh * ow * c), i / (ow * c) % oh, i / c % ow, i % c);
                let mut best = (f64::NEG_INFINITY, 0);
                for y in (2 * oy).saturating_sub(1)..(2 * oy + 2).min(h) {
                    for z in (2 * ox).saturating_sub(1)..(2 * ox + 2).min(w) {
                        let i = ((b * h + y) * w + z) * c + ch;
                        if x[i] as f64 > best.0 { best = (x[i] as f64, i); }
                    }
                }
                *want = Rounded::exact(best.0 as f32);
                // A value can be the maximum of four windows. Their gradients are added.
                grad[best.1] = grad[best.1] + Rounded::exact(*dy);
            }
            let (xl, yl) = (Layout::haloed(batch, h, w, pitch, 1), Layout::haloed(batch, oh, ow, pitch, 1));
            let (dxl, dyl) = (Layout::flat(batch, h, w, pitch), Layout::flat(batch, oh, ow, pitch));
            let (mut y, mut from) = (vec![0.0; yl.len()], vec![0; yl.pixels() * pitch]);
            max_forward((&place(&x, c, xl), xl), (&mut y, yl), &mut from);
            compare(&y, yl, c, &want)?;
            let mut dx = vec![f32::NAN; dxl.len()];
            max_backward((&place(&dy, c, dyl), dyl), &from, (&mut dx, dxl));
            compare(&dx, dxl, c, &grad)?;
        }

        #[test]
        fn means_of_cells_equal_their_definition(batch in 1usize..4, h in 1usize..7, w in 1usize..7, c in 1usize..20, grid in 1usize..4, seed in 0u64..1000) {
            let mean = CellMean { channels: c, grid: grid.min(h).min(w) };
            let n = mean.outputs();
            let l = Layout::haloed(batch, h, w, c.next_multiple_of(16), 1);
            let x = noise(batch * h * w * c, seed);
            let mut y = vec![f32::NAN; batch * n];
            mean.forward((&place(&x, c, l), l), &mut y);
            let dy = noise(y.len(), seed + 1);
            let mut grad = vec![Rounded::default(); x.len()];
            for (i, (got, dy)) in y.iter().zip(&dy).enumerate() {
                let (b, row, column, ch) = (i / n, i % n / c / mean.grid, i / c % mean.grid, i % c);
                let pixels: Vec<usize> = (0..h * w)
                    .filter(|p| (p / w) * mean.grid / h == row && (p % w) * mean.grid / w == column)
                    .map(|p| (b * h * w + p) * c + ch)
                    .collect();
                // The inverse of the count is rounded before the multiplication.
                let share = Rounded::exact(1.0) / Rounded::exact(pixels.len() as f32);
                let want = Rounded::sum(pixels.iter().map(|p| Rounded::exact(x[*p]))) * share;
                prop_assert!(want.admits(*got), "got {got}, expected {want}");
                // Cells do not overlap.
                pixels.iter().for_each(|p| grad[*p] = Rounded::exact(*dy) * share);
            }
            let flat = Layout::flat(batch, h, w, l.pitch);
            let mut dx = vec![f32::NAN; flat.len()];
            mean.backward(&dy, (&mut dx, flat));
            compare(&dx, flat, c, &grad)?;
        }
    }
}
