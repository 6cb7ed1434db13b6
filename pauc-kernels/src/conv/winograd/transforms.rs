//! The transforms of F(4×4, 3×3): tiles and weights to 36 frequencies and back.

#![allow(clippy::needless_range_loop)] // indices are clearest where a matrix is transposed between passes

use crate::layout::{Layout, Portions};
use crate::simd::Vector;
use crate::threads::Shared;
use std::ops::Range;

/// Products per tile.
pub(super) const FREQUENCIES: usize = 36;

/// The tiles of a batch of maps, numbered by image, row and column.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    down: usize,
    pub across: usize,
    pub count: usize,
}

impl Tiles {
    pub fn new(l: Layout) -> Self {
        let (down, across) = (l.height.div_ceil(4), l.width.div_ceil(4));
        Tiles { down, across, count: l.batch * down * across }
    }

    /// Returns the image, first row and first column of a tile.
    #[inline(always)]
    fn place(self, t: usize) -> (usize, usize, usize) {
        (t / (self.down * self.across), t / self.across % self.down * 4, t % self.across * 4)
    }

    /// Returns the number of rows of tiles with about `values` values, at `each` values per tile.
    pub fn portion(self, values: usize, each: usize) -> usize {
        (values / each / self.across).max(1)
    }

    /// Returns the tiles of a portion whose bands are rows of tiles.
    pub fn of(self, cut: Portions, i: usize) -> Range<usize> {
        let bands = cut.bands(i);
        bands.start * self.across..bands.end * self.across
    }
}

/// Multiplies a column by G.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn weight_row<V: Vector>(g: [V; 3]) -> [V; 6] {
    // SAFETY: this function's contract.
    unsafe {
        let sixth = V::splat(-1.0 / 6.0);
        let outer = g[0].add(g[2]);
        let (p, q) = (sixth.mul(outer.add(g[1])), sixth.mul(outer.sub(g[1])));
        let even = V::splat(1.0 / 6.0).mul_add(g[2], V::splat(1.0 / 24.0).mul(g[0]));
        let odd = V::splat(1.0 / 12.0).mul(g[1]);
        [V::splat(0.25).mul(g[0]), p, q, even.add(odd), even.sub(odd), g[2]]
    }
}

/// Computes G g Gᵀ of rows of packed weights, \[block of columns\]\[tap\]\[in\]\[column\].
///
/// # Safety
/// [`Vector`]'s contract. `from` is valid for reads of nine taps of all blocks. `to` has all their
/// frequencies, `step` apart, and no other thread accesses these rows of it.
#[inline(always)]
pub(super) unsafe fn weight_rows<V: Vector>(
    rows: Range<usize>,
    (from, to): (*const f32, Shared<'_, f32>),
    (columns, depth, turned, step): (usize, usize, bool, usize),
) {
    // SAFETY: this function's contract; `transform_weights` asserts the lengths.
    unsafe {
        for row in rows {
            let (block, i) = (row / depth, row % depth);
            for lane in (0..columns).step_by(V::LANES) {
                let tap = |t: usize| {
                    let t = if turned { 8 - t } else { t };
                    V::load(from.add(((block * 9 + t) * depth + i) * columns + lane))
                };
                let mut half = [[V::splat(0.0); 3]; 6];
                for x in 0..3 {
                    let r = weight_row::<V>([tap(x), tap(3 + x), tap(6 + x)]);
                    for a in 0..6 {
                        half[a][x] = r[a];
                    }
                }
                for (a, h) in half.into_iter().enumerate() {
                    for (b, u) in weight_row::<V>(h).into_iter().enumerate() {
                        u.store(to.at((a * 6 + b) * step + row * columns + lane));
                    }
                }
            }
        }
    }
}

/// Multiplies a column by Bᵀ.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn input_column<V: Vector>(d: [V; 6]) -> [V; 6] {
    // SAFETY: this function's contract.
    unsafe {
        let (four, minus_four, minus_five) = (V::splat(4.0), V::splat(-4.0), V::splat(-5.0));
        let (even, odd) = (minus_four.mul_add(d[2], d[4]), minus_four.mul_add(d[1], d[3]));
        let (far, twice) = (d[4].sub(d[2]), V::splat(2.0).mul(d[3].sub(d[1])));
        [
            four.mul_add(d[0], minus_five.mul_add(d[2], d[4])),
            even.add(odd),
            even.sub(odd),
            far.add(twice),
            far.sub(twice),
            four.mul_add(d[1], minus_five.mul_add(d[3], d[5])),
        ]
    }
}

/// Multiplies a column by Aᵀ.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn output_column<V: Vector>(m: [V; 6]) -> [V; 4] {
    // SAFETY: this function's contract.
    unsafe {
        let (a, b, c, d) = (m[1].add(m[2]), m[1].sub(m[2]), m[3].add(m[4]), m[3].sub(m[4]));
        [
            m[0].add(a).add(c),
            V::splat(2.0).mul_add(d, b),
            V::splat(4.0).mul_add(c, a),
            V::splat(8.0).mul_add(d, b).add(m[5]),
        ]
    }
}

/// Multiplies a column by A.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn gradient_column<V: Vector>(y: [V; 4]) -> [V; 6] {
    // SAFETY: this function's contract.
    unsafe {
        let (even, odd) = (y[0].add(y[2]), y[1].add(y[3]));
        let even4 = V::splat(4.0).mul_add(y[2], y[0]);
        let odd8 = V::splat(8.0).mul_add(y[3], V::splat(2.0).mul(y[1]));
        [y[0], even.add(odd), even.sub(odd), even4.add(odd8), even4.sub(odd8), y[3]]
    }
}

/// Multiplies a column by Gᵀ.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn weight_gradient_column<V: Vector>(u: [V; 6]) -> [V; 3] {
    // SAFETY: this function's contract.
    unsafe {
        let (near, far) = (u[1].add(u[2]), u[3].add(u[4]));
        let (sixth, minus) = (V::splat(1.0 / 6.0), V::splat(-1.0 / 6.0));
        let first = V::splat(0.25).mul_add(u[0], minus.mul(near));
        let middle = V::splat(1.0 / 12.0).mul_add(u[3].sub(u[4]), minus.mul(u[1].sub(u[2])));
        let last = sixth.mul_add(far.sub(near), u[5]);
        [V::splat(1.0 / 24.0).mul_add(far, first), middle, last]
    }
}

/// Transformed tiles: tile `t` of `tiles`, channel c and frequency f are at f·step + (t − tiles.start)·pitch
/// + c.
#[derive(Clone, Copy)]
pub(super) struct Transformed {
    pub start: *mut f32,
    pub step: usize,
    pub pitch: usize,
}

// SAFETY: only a pointer. Functions that write through it require, in their contracts, that no other thread
// accesses the tiles.
unsafe impl Send for Transformed {}
// SAFETY: a shared `Transformed` only gives a copy of the pointer, which is `Send`.
unsafe impl Sync for Transformed {}

impl Transformed {
    /// Returns the part starting at tile `t`.
    pub fn from(self, t: usize) -> Self {
        Transformed { start: self.start.wrapping_add(t * self.pitch), ..self }
    }
}

/// Computes Bᵀ d B of each tile of the input.
///
/// # Safety
/// [`Vector`]'s contract. `x` is valid for reads of its layout, whose halo contains the border of every tile,
/// as `check` asserts. `to` is valid for writes of all frequencies of these tiles, and no other thread
/// accesses them.
#[inline(always)]
pub(super) unsafe fn input_tiles<V: Vector>(
    tiles: Range<usize>,
    all: Tiles,
    (x, xl): (*const f32, Layout),
    to: Transformed,
) {
    // SAFETY: this function's contract. A tile with its border begins one pixel before it and has six rows
    // and columns.
    unsafe {
        let corner = (xl.before - 1) * (xl.row() + xl.pitch);
        for (n, t) in tiles.enumerate() {
            let (image, y, z) = all.place(t);
            let from = x.add(image * xl.image() + y * xl.row() + z * xl.pitch + corner);
            for c in (0..xl.pitch).step_by(V::LANES) {
                let mut half = [[V::splat(0.0); 6]; 6];
                for j in 0..6 {
                    let mut column = [V::splat(0.0); 6];
                    for (i, v) in column.iter_mut().enumerate() {
                        *v = V::load(from.add(i * xl.row() + j * xl.pitch + c));
                    }
                    let r = input_column::<V>(column);
                    for i in 0..6 {
                        half[i][j] = r[i];
                    }
                }
                let values = to.start.add(n * to.pitch + c);
                for (i, h) in half.into_iter().enumerate() {
                    for (j, v) in input_column::<V>(h).into_iter().enumerate() {
                        v.store(values.add((i * 6 + j) * to.step));
                    }
                }
            }
        }
    }
}

/// Computes A dY Aᵀ of each tile of the output's gradient.
///
/// # Safety
/// As for [`input_tiles`], but only the 4×4 pixels of a tile are read.
#[inline(always)]
pub(super) unsafe fn gradient_tiles<V: Vector>(
    tiles: Range<usize>,
    all: Tiles,
    (dy, l): (*const f32, Layout),
    to: Transformed,
) {
    // SAFETY: this function's contract. The halo completes the last tiles of rows and columns.
    unsafe {
        let corner = l.before * (l.row() + l.pitch);
        for (n, t) in tiles.enumerate() {
            let (image, y, z) = all.place(t);
            let from = dy.add(image * l.image() + y * l.row() + z * l.pitch + corner);
            for c in (0..l.pitch).step_by(V::LANES) {
                let mut half = [[V::splat(0.0); 4]; 6];
                for j in 0..4 {
                    let mut column = [V::splat(0.0); 4];
                    for (i, v) in column.iter_mut().enumerate() {
                        *v = V::load(from.add(i * l.row() + j * l.pitch + c));
                    }
                    let r = gradient_column::<V>(column);
                    for i in 0..6 {
                        half[i][j] = r[i];
                    }
                }
                let values = to.start.add(n * to.pitch + c);
                for (i, h) in half.into_iter().enumerate() {
                    for (j, v) in gradient_column::<V>(h).into_iter().enumerate() {
                        v.store(values.add((i * 6 + j) * to.step));
                    }
                }
            }
        }
    }
}

/// Computes Aᵀ M A of each tile into channels `first..first + channels` of the map, within its borders.
///
/// # Safety
/// [`Vector`]'s contract. `m` is valid for reads of all frequencies of these tiles. y has the layout with at
/// least first + channels channels, and no other thread accesses these tiles of it.
#[inline(always)]
pub(super) unsafe fn output_tiles<V: Vector>(
    tiles: Range<usize>,
    all: Tiles,
    m: Transformed,
    (y, l): (Shared<'_, f32>, Layout),
    (first, channels, add): (usize, usize, bool),
) {
    // SAFETY: this function's contract. `height` and `width` keep the writes inside the map.
    unsafe {
        for (n, t) in tiles.enumerate() {
            let (image, top, left) = all.place(t);
            let (height, width) = ((l.height - top).min(4), (l.width - left).min(4));
            let to = y.at(l.row_at(image * l.height + top) + left * l.pitch + first);
            for c in (0..channels).step_by(V::LANES) {
                let from = m.start.add(n * m.pitch + c);
                let mut half = [[V::splat(0.0); 6]; 4];
                for j in 0..6 {
                    let mut column = [V::splat(0.0); 6];
                    for (i, v) in column.iter_mut().enumerate() {
                        *v = V::load(from.add((i * 6 + j) * m.step));
                    }
                    let r = output_column::<V>(column);
                    for i in 0..4 {
                        half[i][j] = r[i];
                    }
                }
                for (i, h) in half.into_iter().enumerate().take(height) {
                    for (j, v) in output_column::<V>(h).into_iter().enumerate().take(width) {
                        let pixel = to.add(i * l.row() + j * l.pitch + c);
                        let v = if add { v.add(V::load(pixel)) } else { v };
                        v.store(pixel);
                    }
                }
            }
        }
    }
}

/// Computes Gᵀ U G of the sum of parts, for rows of inputs: \[ky\]\[kx\]\[in\]\[out\].
///
/// # Safety
/// [`Vector`]'s contract. `sums` is valid for reads of all frequencies of all parts. `to` has nine taps of
/// all weights, and no other thread accesses these rows of it.
#[inline(always)]
pub(super) unsafe fn weight_gradient_rows<V: Vector>(
    rows: Range<usize>,
    (sums, parts, step): (*const f32, usize, usize),
    (to, inputs, outputs): (Shared<'_, f32>, usize, usize),
) {
    // SAFETY: this function's contract. `weight_gradient` grows both buffers to these sizes.
    unsafe {
        for i in rows {
            for o in (0..outputs).step_by(V::LANES) {
                let weight = i * outputs + o;
                let mut half = [[V::splat(0.0); 6]; 3];
                for b in 0..6 {
                    let mut column = [V::splat(0.0); 6];
                    for (a, sum) in column.iter_mut().enumerate() {
                        let from = sums.add((a * 6 + b) * step + weight);
                        *sum = V::load(from);
                        for p in 1..parts {
                            *sum = sum.add(V::load(from.add(p * FREQUENCIES * step)));
                        }
                    }
                    let r = weight_gradient_column::<V>(column);
                    for a in 0..3 {
                        half[a][b] = r[a];
                    }
                }
                for (a, h) in half.into_iter().enumerate() {
                    for (b, v) in weight_gradient_column::<V>(h).into_iter().enumerate() {
                        v.store(to.at((a * 3 + b) * inputs * outputs + weight));
                    }
                }
            }
        }
    }
}
