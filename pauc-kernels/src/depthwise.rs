//! Depthwise 7×7 convolutions of channels-last maps: each channel is convolved with its own kernel, at stride 1
//! with zero padding.
//!
//! Maps are rows of pixels without halo, (images, rows, columns, channels). A unit of work copies
//! [`CHANNELS`] channels of an image to a plane with zeros left and right, and sums over the taps in registers,
//! several pixels of a row at a time. Weights and their gradients are in interchange order, (channels, 1, 7, 7).

use crate::buffer::{Buffer, scratch};
use crate::simd::{CHANNELS, Simd, Vector, dispatch};
use crate::threads::{self, Shared};

/// Rows and columns of the kernel.
pub const KERNEL: usize = 7;
/// The weights of a channel.
pub const TAPS: usize = KERNEL * KERNEL;
const PADDING: usize = KERNEL / 2;
/// The largest number of pixels that are summed at once.
const PIXELS: usize = 8;
/// The largest number of parts of the sum over images in [`Maps::weight_gradient`].
const PARTS: usize = 8;

/// The shape of the input, which is also that of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maps {
    /// Images.
    pub batch: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Channels of a pixel.
    pub channels: usize,
}

/// What a sum starts from.
#[derive(Clone, Copy)]
enum Start<'a> {
    /// A value for each channel.
    Bias(&'a [f32]),
    /// The present output.
    Output,
}

impl Maps {
    /// Returns the number of values.
    pub fn values(self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    fn blocks(self) -> usize {
        self.channels.div_ceil(CHANNELS)
    }

    /// Returns the values from one pixel of a plane to the one below.
    fn plane_row(self) -> usize {
        (self.width + 2 * PADDING) * CHANNELS
    }

    /// Returns the size of a plane, with room for a tile that exceeds its last row.
    fn plane(self) -> usize {
        self.height * self.plane_row() + PIXELS * CHANNELS
    }

    /// Copies a block of channels of an image. Everything else in the plane is zero.
    fn copy_plane(self, x: &[f32], image: usize, block: usize, plane: &mut [f32]) {
        plane.fill(0.0);
        let first = block * CHANNELS;
        let count = CHANNELS.min(self.channels - first);
        for row in 0..self.height {
            let pixels = (image * self.height + row) * self.width;
            for column in 0..self.width {
                let from = (pixels + column) * self.channels + first;
                let to = row * self.plane_row() + (PADDING + column) * CHANNELS;
                if count == CHANNELS {
                    plane[to..to + CHANNELS].copy_from_slice(&x[from..from + CHANNELS]);
                } else {
                    plane[to..to + count].copy_from_slice(&x[from..from + count]);
                }
            }
        }
    }

    /// y ← x ∗ w + b.
    ///
    /// # Shapes
    /// x and y (images, rows, columns, channels), w (channels, 1, 7, 7), b (channels)
    ///
    /// # Panics
    /// If a slice does not have its shape's length.
    pub fn forward(self, simd: Simd, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
        assert_eq!(b.len(), self.channels, "bias of {self:?}");
        self.convolve(simd, x, w, |tap| tap, Start::Bias(b), y);
    }

    /// ∂x ← ∂x + ∂y ∗ wᵀ.
    ///
    /// # Shapes
    /// ∂y and ∂x (images, rows, columns, channels), w (channels, 1, 7, 7)
    ///
    /// # Panics
    /// If a slice does not have its shape's length.
    pub fn add_input_gradient(self, simd: Simd, dy: &[f32], w: &[f32], dx: &mut [f32]) {
        self.convolve(simd, dy, w, |tap| TAPS - 1 - tap, Start::Output, dx);
    }

    /// Convolves with the weight `place(tap)` at each tap.
    fn convolve(
        self,
        simd: Simd,
        x: &[f32],
        w: &[f32],
        place: impl Fn(usize) -> usize,
        start: Start<'_>,
        y: &mut [f32],
    ) {
        let sizes = (x.len(), y.len(), w.len());
        assert_eq!(sizes, (self.values(), self.values(), self.channels * TAPS), "{self:?}");
        let mut packed = Buffer::zeros(self.blocks() * TAPS * CHANNELS);
        for (c, taps) in w.chunks_exact(TAPS).enumerate() {
            for tap in 0..TAPS {
                packed[(c / CHANNELS * TAPS + tap) * CHANNELS + c % CHANNELS] = taps[place(tap)];
            }
        }
        let y = Shared::new(y);
        threads::for_each(self.batch * self.blocks(), |i| {
            let (image, block) = (i / self.blocks(), i % self.blocks());
            let mut plane = scratch(self.plane());
            self.copy_plane(x, image, block, &mut plane);
            let source = (self, &plane[..], &packed[block * TAPS * CHANNELS..][..TAPS * CHANNELS]);
            let to = (y, image, block);
            // Each portion writes the channels of its own block and image.
            dispatch!(simd => convolve_plane(
                source: (Maps, &[f32], &[f32]), start: Start<'_>, to: (Shared<'_, f32>, usize, usize),
            ));
        });
    }

    /// ∂w ← ∂w + the gradient with respect to the weights; ∂b ← ∂b + that with respect to the bias. `work` is
    /// scratch memory that grows to the largest need.
    ///
    /// The sum over images is split into parts, whose number depends on the shape alone.
    ///
    /// # Shapes
    /// x and ∂y (images, rows, columns, channels), ∂w (channels, 1, 7, 7), ∂b (channels)
    ///
    /// # Panics
    /// If a slice does not have its shape's length.
    pub fn weight_gradient(
        self,
        simd: Simd,
        x: &[f32],
        dy: &[f32],
        work: &mut Buffer,
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let sizes = (x.len(), dy.len(), dw.len(), db.len());
        assert_eq!(sizes, (self.values(), self.values(), self.channels * TAPS, self.channels), "{self:?}");
        // The sums of a block of channels: the taps, then the bias.
        const SUMS: usize = (TAPS + 1) * CHANNELS;
        let (parts, blocks) = (PARTS.min(self.batch), self.blocks());
        work.grow(parts * blocks * SUMS);
        let sums = Shared::new(&mut work[..parts * blocks * SUMS]);
        threads::for_each(parts * blocks, |i| {
            let (part, block) = (i / blocks, i % blocks);
            // SAFETY: portions are different parts and blocks, whose sums are disjoint.
            let sums = unsafe { sums.part(i * SUMS..(i + 1) * SUMS) };
            sums.fill(0.0);
            let [mut a, mut b] = [scratch(self.plane()), scratch(self.plane())];
            for image in threads::portion(self.batch, parts, part) {
                self.copy_plane(x, image, block, &mut a);
                self.copy_plane(dy, image, block, &mut b);
                let (planes, to) = ((self, &a[..], &b[..]), sums.as_mut_ptr());
                dispatch!(simd => add_plane_products(planes: (Maps, &[f32], &[f32]), to: *mut f32));
            }
        });
        for part in work[..parts * blocks * SUMS].chunks_exact(blocks * SUMS) {
            for (c, (dw, db)) in dw.chunks_exact_mut(TAPS).zip(&mut *db).enumerate() {
                let sums = &part[c / CHANNELS * SUMS + c % CHANNELS..];
                dw.iter_mut().zip(sums.iter().step_by(CHANNELS)).for_each(|(d, s)| *d += s);
                *db += sums[TAPS * CHANNELS];
            }
        }
    }
}

/// Returns the taps along an axis of `side` pixels that are inside the map for any of `count` pixels from
/// `first`.
#[inline(always)]
fn taps(first: usize, count: usize, side: usize) -> std::ops::Range<usize> {
    PADDING.saturating_sub(first + count - 1)..KERNEL.min(side + PADDING - first)
}

/// Convolves a plane, and writes a block of channels of an image.
///
/// # Safety
/// [`Vector`]'s contract. The output has the shape of the maps, and no other thread accesses these channels of
/// the image.
#[inline(always)]
unsafe fn convolve_plane<V: Vector>(
    source: (Maps, &[f32], &[f32]),
    start: Start<'_>,
    (y, image, block): (Shared<'_, f32>, usize, usize),
) {
    let (maps, first) = (source.0, block * CHANNELS);
    let count = CHANNELS.min(maps.channels - first);
    let mut bias = [0.0; CHANNELS];
    if let Start::Bias(b) = start {
        bias[..count].copy_from_slice(&b[first..first + count]);
    }
    let from_output = matches!(start, Start::Output);
    for row in 0..maps.height {
        let mut column = 0;
        while column < maps.width {
            let pixels = PIXELS.min(maps.width - column);
            let pixel = (image * maps.height + row) * maps.width + column;
            let to = y.at(pixel * maps.channels + first);
            let mut tile = [0.0f32; PIXELS * CHANNELS];
            for p in 0..pixels {
                let tile = &mut tile[p * CHANNELS..(p + 1) * CHANNELS];
                if from_output {
                    // SAFETY: pixel and channels are inside the output, and this thread's own.
                    let old = unsafe { std::slice::from_raw_parts(to.add(p * maps.channels), count) };
                    if count == CHANNELS {
                        tile.copy_from_slice(old)
                    } else {
                        tile[..count].copy_from_slice(old)
                    }
                } else {
                    tile.copy_from_slice(&bias);
                }
            }
            // SAFETY: this function's contract.
            unsafe {
                match pixels {
                    1 => sum_tile::<V, 1>(source, (row, column, pixels), &mut tile),
                    2 => sum_tile::<V, 2>(source, (row, column, pixels), &mut tile),
                    3 | 4 => sum_tile::<V, 4>(source, (row, column, pixels), &mut tile),
                    _ => sum_tile::<V, PIXELS>(source, (row, column, pixels), &mut tile),
                }
            }
            for p in 0..pixels {
                // SAFETY: as above.
                let new = unsafe { std::slice::from_raw_parts_mut(to.add(p * maps.channels), count) };
                let tile = &tile[p * CHANNELS..(p + 1) * CHANNELS];
                if count == CHANNELS {
                    new.copy_from_slice(tile)
                } else {
                    new.copy_from_slice(&tile[..count])
                }
            }
            column += pixels;
        }
    }
}

/// Adds the products of all taps to N pixels from a place of the plane on; the first `count` of them are inside
/// the map.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn sum_tile<V: Vector, const N: usize>(
    (maps, plane, w): (Maps, &[f32], &[f32]),
    (row, column, count): (usize, usize, usize),
    tile: &mut [f32; PIXELS * CHANNELS],
) {
    let columns = taps(column, count, maps.width);
    let rows = taps(row, 1, maps.height);
    assert!(plane.len() >= maps.plane() && w.len() >= TAPS * CHANNELS && column < maps.width);
    let step = maps.plane_row();
    for lane in (0..CHANNELS).step_by(V::LANES) {
        // SAFETY: rows `row + ky − PADDING` are inside the map by `taps`. The last pixel read of a row is
        // `column + N + KERNEL − 2`, less than PIXELS beyond the plane's row, for which `Maps::plane` has room.
        unsafe {
            let to = tile.as_mut_ptr().add(lane);
            let mut sums = [V::splat(0.0); N];
            for p in 0..N {
                sums[p] = V::load(to.add(p * CHANNELS));
            }
            for ky in rows.clone() {
                let from = plane.as_ptr().add((row + ky - PADDING) * step + column * CHANNELS + lane);
                for kx in columns.clone() {
                    let weight = V::load(w.as_ptr().add((ky * KERNEL + kx) * CHANNELS + lane));
                    for p in 0..N {
                        sums[p] = V::load(from.add((p + kx) * CHANNELS)).mul_add(weight, sums[p]);
                    }
                }
            }
            for p in 0..N {
                sums[p].store(to.add(p * CHANNELS));
            }
        }
    }
}

/// Adds to the sums of a block of channels the products of an image's plane with that of its output gradient,
/// for each tap, and the sum of the output gradient.
///
/// # Safety
/// [`Vector`]'s contract. `to` is valid for reads and writes of the sums, and no other thread accesses them.
#[inline(always)]
unsafe fn add_plane_products<V: Vector>((maps, x, dy): (Maps, &[f32], &[f32]), to: *mut f32) {
    assert!(x.len() >= maps.plane() && dy.len() >= maps.plane());
    let step = maps.plane_row();
    for lane in (0..CHANNELS).step_by(V::LANES) {
        // SAFETY: the machine supports the vector's instructions.
        let mut bias = unsafe { V::splat(0.0) };
        for ky in 0..KERNEL {
            // SAFETY: pixels `column + kx` of rows inside the map are inside its plane, and the sums by this
            // function's contract.
            unsafe {
                let to = to.add(ky * KERNEL * CHANNELS + lane);
                let mut sums = [V::splat(0.0); KERNEL];
                let rows =
                    PADDING.saturating_sub(ky)..maps.height.min((maps.height + PADDING).saturating_sub(ky));
                for row in rows {
                    let from = x.as_ptr().add((row + ky - PADDING) * step + lane);
                    let g = dy.as_ptr().add(row * step + PADDING * CHANNELS + lane);
                    for column in 0..maps.width {
                        let g = V::load(g.add(column * CHANNELS));
                        for kx in 0..KERNEL {
                            sums[kx] = V::load(from.add((column + kx) * CHANNELS)).mul_add(g, sums[kx]);
                        }
                        if ky == PADDING {
                            bias = bias.add(g);
                        }
                    }
                }
                for kx in 0..KERNEL {
                    let to = to.add(kx * CHANNELS);
                    V::load(to).add(sums[kx]).store(to);
                }
            }
        }
        // SAFETY: this function's contract.
        unsafe {
            let to = to.add(TAPS * CHANNELS + lane);
            V::load(to).add(bias).store(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{Rounded, property, tolerance};
    use proptest::prelude::*;

    use pauc_testing::inputs::noise;

    /// Calls `visit(input, weight, output)` with the indices of every product.
    fn products(m: Maps, mut visit: impl FnMut(usize, usize, usize)) {
        let inside = |at: usize, tap: usize, side: usize| (at + tap).checked_sub(3).filter(|i| *i < side);
        for (b, y, x) in (0..m.batch * m.height * m.width)
            .map(|i| (i / (m.height * m.width), i / m.width % m.height, i % m.width))
        {
            for (ky, kx) in (0..49).map(|t| (t / 7, t % 7)) {
                let (Some(iy), Some(ix)) = (inside(y, ky, m.height), inside(x, kx, m.width)) else {
                    continue;
                };
                for c in 0..m.channels {
                    let pixel = |y: usize, x: usize| ((b * m.height + y) * m.width + x) * m.channels + c;
                    visit(pixel(iy, ix), c * 49 + ky * 7 + kx, pixel(y, x));
                }
            }
        }
    }

    /// Sums of products in `f64`, with a bound on their rounding in `f32`.
    struct Sums(Vec<(f64, f64, usize)>);

    impl Sums {
        fn from(start: &[f32]) -> Self {
            Sums(start.iter().map(|v| (f64::from(*v), f64::from(v.abs()), 1)).collect())
        }

        fn add(&mut self, i: usize, product: f64) {
            let (sum, magnitude, count) = &mut self.0[i];
            *sum += product;
            *magnitude += product.abs();
            *count += 1;
        }

        fn compare(&self, name: &str, got: &[f32]) -> Result<(), TestCaseError> {
            prop_assert_eq!(got.len(), self.0.len());
            for (i, (got, &(sum, magnitude, count))) in got.iter().zip(&self.0).enumerate() {
                // A sum can pass through further additions of zeros, which are exact.
                let want = Rounded::within(sum, tolerance::f32(count + 1, magnitude));
                prop_assert!(want.admits(*got), "{name} {i}: got {got}, expected {want}");
            }
            Ok(())
        }
    }

    fn check(m: Maps, seed: u64) -> Result<(), TestCaseError> {
        let (x, w, b) =
            (noise(m.values(), seed), noise(m.channels * 49, seed + 1), noise(m.channels, seed + 2));
        let (dy, start) = (noise(m.values(), seed + 3), noise(m.values(), seed + 4));
        let at = |v: &[f32], i: usize| f64::from(v[i]);
        let biased: Vec<f32> = (0..m.values()).map(|i| b[i % m.channels]).collect();
        let (mut y, mut dx) = (Sums::from(&biased), Sums::from(&start));
        let (mut dw, mut db) = (Sums::from(&w), Sums::from(&b));
        products(m, |i, k, o| {
            y.add(o, at(&x, i) * at(&w, k));
            dx.add(i, at(&dy, o) * at(&w, k));
            dw.add(k, at(&dy, o) * at(&x, i));
        });
        (0..m.values()).for_each(|o| db.add(o % m.channels, at(&dy, o)));
        for simd in Simd::all().iter().copied() {
            let mut got = vec![f32::NAN; m.values()];
            m.forward(simd, &x, &w, &b, &mut got);
            y.compare("output", &got)?;
            got.copy_from_slice(&start);
            m.add_input_gradient(simd, &dy, &w, &mut got);
            dx.compare("input gradient", &got)?;
            let (mut weights, mut bias, mut work) = (w.clone(), b.clone(), Buffer::default());
            m.weight_gradient(simd, &x, &dy, &mut work, &mut weights, &mut bias);
            dw.compare("weight gradient", &weights)?;
            db.compare("bias gradient", &bias)?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(property::cases(96))]

        #[test]
        fn equals_the_definition(
            batch in 1usize..4, height in property::size(1..14), width in property::size(1..21),
            channels in property::size(1..40), seed in 0u64..1000,
        ) {
            check(Maps { batch, height, width, channels }, seed)?;
        }
    }

    #[test]
    fn many_images_are_summed_in_parts() {
        check(Maps { batch: 11, height: 3, width: 2, channels: 17 }, 5).unwrap();
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let m = Maps { batch: 5, height: 9, width: 11, channels: 50 };
        let (x, w, b) = (noise(m.values(), 1), noise(m.channels * 49, 2), noise(m.channels, 3));
        let simd = Simd::active();
        let run = || {
            let (mut y, mut dx) = (vec![0.0; m.values()], x.clone());
            let (mut dw, mut db, mut work) = (w.clone(), b.clone(), Buffer::default());
            m.forward(simd, &x, &w, &b, &mut y);
            m.add_input_gradient(simd, &y, &w, &mut dx);
            m.weight_gradient(simd, &x, &y, &mut work, &mut dw, &mut db);
            [y, dx, dw, db]
        };
        let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(run);
        let one = on(1);
        assert!([2, 3, 7].into_iter().all(|n| on(n) == one));
    }
}
