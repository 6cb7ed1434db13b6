//! 3×3 convolution at stride 1 by Winograd's F(4×4, 3×3): 2.25 multiply-adds per output pixel instead of 9.
//!
//! ```text
//! forward           Y  = Aᵀ[ (G g Gᵀ) ⊙ (Bᵀ d B) ]A       d: 6×6 of the input, Y: 4×4 of the output
//! weight gradient   dg = Gᵀ[ (A dY Aᵀ) ⊙ (Bᵀ d B) ]G      summed over tiles
//! ```
//! at the points 0, ±1, ±2, ∞. For each of the 36 frequencies, the products ⊙ are a matrix product over
//! channels. The input gradient is the forward pass of dY with rotated weights. Maps whose sides are not
//! multiples of four are read with the zeros of their halo and written without the pixels beyond.
//!
//! This module has the products and their order, `transforms` the transforms.
//!
//! Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016). Rounding errors are about
//! ten times those of the direct method.

mod transforms;

use self::transforms::{
    FREQUENCIES, Tiles, Transformed, gradient_tiles, input_tiles, output_tiles, weight_gradient_rows,
    weight_rows,
};
use super::{Geometry, Packed, pack as weights};
use crate::buffer::{Buffer, scratch};
use crate::layout::{Layout, Portions, Then};
use crate::microkernel::{Operands, Panel, Tap};
use crate::norm;
use crate::simd::{CHANNELS, Simd, dispatch};
use crate::threads::{self, Shared};
use std::ops::Range;

/// Added to the distance between frequencies, which would otherwise often be a power of two: such addresses
/// compete for few sets of the cache.
const STAGGER: usize = 16;
/// Values of transformed tiles that one portion of work keeps in the L2 cache.
const CACHED: usize = 100 << 10;
/// Above this number of values, transformed weights are not read again for each portion of tiles. Instead,
/// all tiles are transformed first, and threads share the matrix products.
const LARGE: usize = 1 << 19;
/// Weights of each tap that one portion of work transforms.
const WEIGHTS: usize = 512;
/// Tiles that are transformed together if weights are large.
const PHASE: usize = 256;

/// Returns whether the method applies.
pub(super) fn applies(g: Geometry, pitch: usize) -> bool {
    (g.kernel, g.stride, g.padding) == (3, 1, 1) && pitch.is_multiple_of(CHANNELS)
}

/// Returns the distance between frequencies of transformed weights, \[frequency\]\[columns of
/// out\]\[in\]\[column\].
fn stride(inputs: usize, outputs: usize) -> usize {
    inputs * outputs + 5 * STAGGER
}

fn transform_weights(
    simd: Simd,
    (inputs, outputs): (usize, usize),
    turned: bool,
    from: &[f32],
    to: &mut [f32],
) {
    let (columns, step) = (simd.panel(outputs), stride(inputs, outputs));
    assert!(from.len() == 9 * inputs * outputs && to.len() == FREQUENCIES * step);
    let rows = outputs / columns * inputs;
    let (to, size) = (Shared::new(to), (WEIGHTS / columns).max(1));
    threads::for_each(rows.div_ceil(size), |i| {
        let rows = i * size..rows.min((i + 1) * size);
        let (maps, shape) = ((from.as_ptr(), to), (columns, inputs, turned, step));
        dispatch!(simd => weight_rows(
            rows: Range<usize>, maps: (*const f32, Shared<'_, f32>), shape: (usize, usize, bool, usize),
        ));
    });
}

/// Packs and transforms weights, (out, in, 3, 3), for [`forward`] on maps of `pitch` channels; if `turned`,
/// for the input gradient into such maps. `work` is scratch memory.
pub(super) fn pack(
    simd: Simd,
    g: Geometry,
    (pitch, turned): (usize, bool),
    w: &[f32],
    [work, to]: [&mut Packed; 2],
) {
    let outputs = g.output_pitch();
    let direct = work.reserve(9 * pitch * outputs);
    let sides = if turned {
        weights::input_gradient(simd, g, pitch, w, direct);
        (outputs, pitch)
    } else {
        weights::forward(simd, g, pitch, w, direct);
        (pitch, outputs)
    };
    let to = to.reserve(FREQUENCIES * stride(sides.0, sides.1));
    transform_weights(simd, sides, turned, direct, to);
}

/// Transformed weights in the order of the products.
#[derive(Clone, Copy)]
struct Weights {
    start: *const f32,
    step: usize,
    columns: usize,
}

// SAFETY: threads only read through the pointer, and several may read `f32` concurrently.
unsafe impl Send for Weights {}
// SAFETY: a shared `Weights` only gives a copy of the pointer, which is `Send`.
unsafe impl Sync for Weights {}

/// Returns the number of columns that are transformed back together: several panels, but few enough to stay
/// in the cache.
fn group(outputs: usize, columns: usize) -> usize {
    [64, 32, 16].into_iter().find(|g| outputs.is_multiple_of(*g)).unwrap_or(columns).max(columns)
}

/// Computes a portion of tiles: transforms, products and the transform back.
///
/// # Safety
/// [`Panel`]'s contract. `x` is valid for reads of its layout, whose halo contains the border of every tile,
/// and `w` for reads of all frequencies of weights for these pitches. `y` has its layout, and no other thread
/// accesses the pixels of `tiles`.
#[inline(always)]
unsafe fn forward_portion<V: Panel>(
    tiles: Range<usize>,
    all: Tiles,
    (x, xl): (*const f32, Layout),
    w: Weights,
    (y, yl, add): (Shared<'_, f32>, Layout, bool),
) {
    let (n, depth, width) = (tiles.len(), xl.pitch, group(yl.pitch, w.columns));
    let (step, m_step) = (n * depth + STAGGER, n * width + STAGGER);
    let mut work = scratch(FREQUENCIES * (step + m_step));
    let (v, m) = work.split_at_mut(FREQUENCIES * step);
    let v = Transformed { start: v.as_mut_ptr(), step, pitch: depth };
    let m = Transformed { start: m.as_mut_ptr(), step: m_step, pitch: width };
    // SAFETY: this function's contract for `x`, `w` and `y`. `work` has FREQUENCIES times `step` values for
    // v, where a step is at least n·depth, and FREQUENCIES times `m_step` for m, where a step is at least
    // n·width. Both belong to this thread.
    unsafe {
        input_tiles::<V>(tiles.clone(), all, (x, xl), v);
        for first in (0..yl.pitch).step_by(width) {
            for f in 0..FREQUENCIES {
                for column in (0..width).step_by(w.columns) {
                    let o = Operands {
                        a: v.start.add(f * step),
                        a_row: depth,
                        a_step: 1,
                        b: w.start.add(f * w.step + (first + column) * depth),
                        b_step: w.columns,
                        c: m.start.add(f * m_step + column),
                        c_row: width,
                    };
                    V::panel(w.columns, n, &[Tap::default()], depth, o, false);
                }
            }
            output_tiles::<V>(tiles.clone(), all, m, (y, yl), (first, width, add));
        }
    }
}

/// Computes one product of [`forward`] or [`weight_gradient`], for all tiles at once.
///
/// # Safety
/// As for [`Panel::panel`] with one tap.
#[inline(always)]
unsafe fn product<V: Panel>(columns: usize, m: usize, depth: usize, o: Operands, add: bool) {
    // SAFETY: this function's contract.
    unsafe { V::panel(columns, m, &[Tap::default()], depth, o, add) }
}

fn check(xl: Layout, x: &[f32], sides: (usize, usize)) {
    let room = |side: usize, after: usize| side + after > side.next_multiple_of(4);
    assert!((xl.height, xl.width) == sides && x.len() >= xl.len() && xl.pitch.is_multiple_of(CHANNELS));
    assert!(
        xl.before >= 1 && room(xl.height, xl.below) && room(xl.width, xl.right),
        "no room for tiles in {xl:?}"
    );
}

/// Returns whether all tiles complete a step before the next step begins, because portions would read too
/// many weights.
fn together(inputs: usize, outputs: usize) -> bool {
    FREQUENCIES * inputs * outputs > LARGE
}

/// Returns the portions of an output's rows in which [`forward`] computes them, from maps of `pitch`
/// channels.
pub(super) fn portions(simd: Simd, pitch: usize, l: Layout) -> Portions {
    if together(pitch, l.pitch) {
        return norm::portions(l);
    }
    let each = FREQUENCIES * (pitch + group(l.pitch, simd.panel(l.pitch)));
    Portions::new(l, 4, Tiles::new(l).portion(CACHED, each))
}

/// y ← x ∗ w, or y ← y + x ∗ w if `add`. Also the input gradient, see [`pack()`].
///
/// # Shapes
/// x in a [`Layout::haloed`]; y of the same sides.
///
/// # Panics
/// If slices, layouts and weights do not agree.
pub(super) fn forward(
    simd: Simd,
    (x, xl): (&[f32], Layout),
    w: &Packed,
    work: &mut Buffer,
    (y, yl, add): (Shared<'_, f32>, Layout, bool),
    then: Then<'_>,
) {
    check(xl, x, (yl.height, yl.width));
    let step = stride(xl.pitch, yl.pitch);
    assert!(w.values().len() == FREQUENCIES * step && y.len() >= yl.len() && yl.batch == xl.batch);
    let (all, columns) = (Tiles::new(yl), simd.panel(yl.pitch));
    let w = Weights { start: w.values().as_ptr(), step, columns };
    let cut = portions(simd, xl.pitch, yl);
    if !together(xl.pitch, yl.pitch) {
        threads::for_each(cut.count(), |i| {
            let (tiles, x, y) = (all.of(cut, i), (x.as_ptr(), xl), (y, yl, add));
            dispatch!(simd => forward_portion(
                tiles: Range<usize>, all: Tiles, x: (*const f32, Layout), w: Weights,
                y: (Shared<'_, f32>, Layout, bool),
            ));
            then(i, cut.rows(i));
        });
        return;
    }
    for start in (0..all.count).step_by(PHASE) {
        let n = PHASE.min(all.count - start);
        let [v, m] = transformed(work, n, [xl.pitch, yl.pitch]);
        in_eights(n, |tiles| {
            let (to, tiles) = (v.from(tiles.start), start + tiles.start..start + tiles.end);
            let x = (x.as_ptr(), xl);
            dispatch!(simd => input_tiles(tiles: Range<usize>, all: Tiles, x: (*const f32, Layout), to: Transformed));
        });
        let panels = yl.pitch / columns;
        threads::for_each(FREQUENCIES * panels, |i| {
            let (w, v, m) = (w, v, m);
            let (f, panel, depth) = (i / panels, i % panels, xl.pitch);
            let o = Operands {
                a: v.start.wrapping_add(f * v.step),
                a_row: depth,
                a_step: 1,
                b: w.start.wrapping_add(f * w.step + panel * columns * depth),
                b_step: columns,
                c: m.start.wrapping_add(f * m.step + panel * columns),
                c_row: m.pitch,
            };
            let add = false;
            dispatch!(simd => product(columns: usize, n: usize, depth: usize, o: Operands, add: bool));
        });
        in_eights(n, |tiles| {
            let (m, tiles) = (m.from(tiles.start), start + tiles.start..start + tiles.end);
            let (y, channels) = ((y, yl), (0, yl.pitch, add));
            dispatch!(simd => output_tiles(
                tiles: Range<usize>, all: Tiles, m: Transformed, y: (Shared<'_, f32>, Layout),
                channels: (usize, usize, bool),
            ));
        });
    }
    cut.for_each(then);
}

/// Returns memory in `work` for `n` transformed tiles of each pitch.
fn transformed<const N: usize>(work: &mut Buffer, n: usize, pitches: [usize; N]) -> [Transformed; N] {
    let sizes = pitches.map(|p| FREQUENCIES * (n * p + STAGGER));
    let total = sizes.iter().sum();
    work.grow(total);
    let mut start = work.as_mut_ptr();
    std::array::from_fn(|i| {
        let t = Transformed { start, step: n * pitches[i] + STAGGER, pitch: pitches[i] };
        start = start.wrapping_add(sizes[i]);
        t
    })
}

/// Calls `work` for 0..n in ranges of eight.
fn in_eights(n: usize, work: impl Fn(Range<usize>) + Sync + Send) {
    threads::for_each(n.div_ceil(8), |i| work(8 * i..n.min(8 * i + 8)));
}

/// Writes the sum of the products of a range of tiles to one part, \[frequency\]\[in\]\[out\].
///
/// # Safety
/// [`Panel`]'s contract. `x` and `dy` are valid for reads of their layouts, whose halos contain the border of
/// every tile. `sum` is valid for writes of all frequencies, `step` apart, and no other thread accesses it.
#[inline(always)]
unsafe fn gradient_portion<V: Panel>(
    tiles: Range<usize>,
    all: Tiles,
    (x, xl): (*const f32, Layout),
    (dy, dyl): (*const f32, Layout),
    (sum, step, columns, size): (*mut f32, usize, usize, usize),
) {
    let most = size.min(tiles.len());
    let (v_step, d_step) = (most * xl.pitch + STAGGER, most * dyl.pitch + STAGGER);
    let mut work = scratch(FREQUENCIES * (v_step + d_step));
    let (v, d) = work.split_at_mut(FREQUENCIES * v_step);
    let v = Transformed { start: v.as_mut_ptr(), step: v_step, pitch: xl.pitch };
    let d = Transformed { start: d.as_mut_ptr(), step: d_step, pitch: dyl.pitch };
    for start in tiles.clone().step_by(size.max(1)) {
        let block = start..tiles.end.min(start + size);
        // SAFETY: this function's contract for `x`, `dy` and `sum`. `work` has FREQUENCIES times `v_step` and
        // `d_step` values. Each step has room for `most` tiles, the maximum of a block. `work` belongs to
        // this thread.
        unsafe {
            input_tiles::<V>(block.clone(), all, (x, xl), v);
            gradient_tiles::<V>(block.clone(), all, (dy, dyl), d);
            for f in 0..FREQUENCIES {
                for column in (0..dyl.pitch).step_by(columns) {
                    let o = Operands {
                        a: v.start.add(f * v_step),
                        a_row: 1,
                        a_step: xl.pitch,
                        b: d.start.add(f * d_step + column),
                        b_step: dyl.pitch,
                        c: sum.add(f * step + column),
                        c_row: dyl.pitch,
                    };
                    V::panel(columns, xl.pitch, &[Tap::default()], block.len(), o, start > tiles.start);
                }
            }
        }
    }
}

/// Writes the sums of the products of all tiles, \[frequency\]\[in\]\[out\] with frequencies `step` apart.
/// Threads share the matrix products.
fn sum_by_frequency(
    simd: Simd,
    all: Tiles,
    (x, xl): (&[f32], Layout),
    (dy, dyl): (&[f32], Layout),
    buffer: &mut Buffer,
    (sums, step): (Shared<'_, f32>, usize),
) {
    let columns = simd.panel(dyl.pitch);
    for start in (0..all.count).step_by(PHASE) {
        let n = PHASE.min(all.count - start);
        let [v, d] = transformed(buffer, n, [xl.pitch, dyl.pitch]);
        in_eights(n, |tiles| {
            let (v, d) = (v.from(tiles.start), d.from(tiles.start));
            let tiles = start + tiles.start..start + tiles.end;
            let (same_tiles, x, dy) = (tiles.clone(), (x.as_ptr(), xl), (dy.as_ptr(), dyl));
            dispatch!(simd => input_tiles(tiles: Range<usize>, all: Tiles, x: (*const f32, Layout), v: Transformed));
            dispatch!(simd => gradient_tiles(same_tiles: Range<usize>, all: Tiles, dy: (*const f32, Layout), d: Transformed));
        });
        let panels = dyl.pitch / columns;
        threads::for_each(FREQUENCIES * panels, |i| {
            let (v, d) = (v, d);
            let (f, panel, m) = (i / panels, i % panels, xl.pitch);
            let o = Operands {
                a: v.start.wrapping_add(f * v.step),
                a_row: 1,
                a_step: v.pitch,
                b: d.start.wrapping_add(f * d.step + panel * columns),
                b_step: d.pitch,
                c: sums.at(f * step + panel * columns),
                c_row: dyl.pitch,
            };
            let add = start > 0;
            dispatch!(simd => product(columns: usize, m: usize, n: usize, o: Operands, add: bool));
        });
    }
}

/// Memory of [`weight_gradient`].
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    tiles: Buffer,
    sums: Buffer,
    weights: Buffer,
}

/// dw ← dw + the gradient with respect to the weights, (out, in, 3, 3).
///
/// # Shapes
/// x and dy in [`Layout::haloed`]s of the geometry's sides.
///
/// # Panics
/// If slices, layouts and geometry do not agree.
pub(super) fn weight_gradient(
    simd: Simd,
    g: Geometry,
    (x, xl): (&[f32], Layout),
    (dy, dyl): (&[f32], Layout),
    work: &mut Work,
    dw: &mut [f32],
) {
    check(xl, x, (g.height, g.width));
    check(dyl, dy, (g.height, g.width));
    assert!(applies(g, xl.pitch) && dyl.pitch == g.output_pitch() && xl.batch == dyl.batch);
    let (all, columns) = (Tiles::new(dyl), simd.panel(dyl.pitch));
    let step = xl.pitch * dyl.pitch + 5 * STAGGER;
    // Few parts would keep few threads busy. In that case, threads share the frequencies instead.
    let parts = super::parts(FREQUENCIES * step, all.count, 4);
    let local = parts >= 4 || parts == all.count;
    let parts = if local { parts } else { 1 };
    work.sums.grow(parts * FREQUENCIES * step);
    work.weights.grow(9 * xl.pitch * dyl.pitch);
    let sums = Shared::new(&mut work.sums);
    if local {
        let size = all.across * all.portion(CACHED, FREQUENCIES * (xl.pitch + dyl.pitch));
        threads::for_each(parts, |p| {
            let tiles = threads::portion(all.count, parts, p);
            let (x, dy) = ((x.as_ptr(), xl), (dy.as_ptr(), dyl));
            let sum = (sums.at(p * FREQUENCIES * step), step, columns, size);
            dispatch!(simd => gradient_portion(
                tiles: Range<usize>, all: Tiles, x: (*const f32, Layout), dy: (*const f32, Layout),
                sum: (*mut f32, usize, usize, usize),
            ));
        });
    } else {
        sum_by_frequency(simd, all, (x, xl), (dy, dyl), &mut work.tiles, (sums, step));
    }
    let weights = Shared::new(&mut work.weights);
    threads::for_each(xl.pitch.div_ceil(16), |i| {
        let rows = 16 * i..xl.pitch.min(16 * i + 16);
        let (from, to) = ((sums.at(0).cast_const(), parts, step), (weights, xl.pitch, dyl.pitch));
        dispatch!(simd => weight_gradient_rows(
            rows: Range<usize>, from: (*const f32, usize, usize), to: (Shared<'_, f32>, usize, usize),
        ));
    });
    weights::add_weight_gradient(simd, g, xl.pitch, &work.weights, 1, dw);
}

#[cfg(test)]
mod tests {
    use super::super::{cases::*, reference};
    use super::*;
    use pauc_testing::{Rounded, property, tolerance};
    use proptest::prelude::*;

    fn geometry() -> impl Strategy<Value = (Geometry, usize)> {
        let channels = || prop_oneof![4 => property::size(4..40), 1 => Just(64usize), 1 => Just(96)];
        (property::size(1..14), property::size(1..14), channels(), channels(), 1usize..4).prop_map(
            |(height, width, inputs, outputs, batch)| {
                (Geometry { height, width, inputs, outputs, kernel: 3, stride: 1, padding: 1 }, batch)
            },
        )
    }

    /// The matrix of a transform, in absolute values.
    type Transform<const R: usize, const C: usize> = [[f64; C]; R];

    const OUTPUT: Transform<4, 6> = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, 1.0, 2.0, 2.0, 0.0],
        [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        [0.0, 1.0, 1.0, 8.0, 8.0, 1.0],
    ];
    const INPUT: Transform<6, 6> = [
        [4.0, 0.0, 5.0, 0.0, 1.0, 0.0],
        [0.0, 4.0, 4.0, 1.0, 1.0, 0.0],
        [0.0, 4.0, 4.0, 1.0, 1.0, 0.0],
        [0.0, 2.0, 1.0, 2.0, 1.0, 0.0],
        [0.0, 2.0, 1.0, 2.0, 1.0, 0.0],
        [0.0, 4.0, 0.0, 5.0, 0.0, 1.0],
    ];
    const WEIGHTS: Transform<6, 3> = [
        [0.25, 0.0, 0.0],
        [1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0],
        [1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];

    fn transposed<const R: usize, const C: usize>(m: Transform<R, C>) -> Transform<C, R> {
        std::array::from_fn(|i| std::array::from_fn(|j| m[j][i]))
    }

    /// M·x·Mᵀ.
    fn both_sides<const R: usize, const C: usize>(
        m: &Transform<R, C>,
        x: Transform<C, C>,
    ) -> Transform<R, R> {
        let half: Transform<R, C> =
            std::array::from_fn(|i| std::array::from_fn(|j| (0..C).map(|k| m[i][k] * x[k][j]).sum()));
        std::array::from_fn(|i| std::array::from_fn(|j| (0..C).map(|k| half[i][k] * m[j][k]).sum()))
    }

    fn add_products(to: &mut Transform<6, 6>, a: &Transform<6, 6>, b: &Transform<6, 6>) {
        for i in 0..6 {
            (0..6).for_each(|j| to[i][j] += a[i][j] * b[i][j]);
        }
    }

    /// Returns |M|·|square|·|M|ᵀ of the square of side S at a row and column of a channel of an image.
    fn square<const R: usize, const S: usize>(
        m: &Transform<R, S>,
        map: &[f32],
        g: Geometry,
        channels: usize,
        (image, row, column, channel): (usize, isize, isize, usize),
    ) -> Transform<R, R> {
        let value = |y: isize, x: isize| {
            let inside = (0..g.height as isize).contains(&y) && (0..g.width as isize).contains(&x);
            let pixel = |y: isize, x: isize| (image * g.height + y as usize) * g.width + x as usize;
            if inside { f64::from(map[pixel(y, x) * channels + channel].abs()) } else { 0.0 }
        };
        both_sides(
            m,
            std::array::from_fn(|i| std::array::from_fn(|j| value(row + i as isize, column + j as isize))),
        )
    }

    /// Returns the absolute values of the nine weights of an output and an input channel.
    fn weight_square(w: &[f32], channels: usize, o: usize, i: usize) -> Transform<3, 3> {
        let weight = |k: usize| f64::from(w[(o * channels + i) * 9 + k].abs());
        std::array::from_fn(|y| std::array::from_fn(|x| weight(3 * y + x)))
    }

    /// Returns the first row and column of each tile.
    fn tiles(g: Geometry) -> impl Iterator<Item = (usize, usize)> {
        (0..g.height).step_by(4).flat_map(move |y| (0..g.width).step_by(4).map(move |x| (y, x)))
    }

    /// Roundings on the path from an input to a frequency and back: two passes of at most five operations
    /// each, through three transforms.
    const TRANSFORMS: usize = 30;

    /// The rounding error of y = Aᵀ[Σ_c (G w Gᵀ) ⊙ (Bᵀ x B)]A. As for any chain of sums and products, it is
    /// the same expression in absolute values, times γ of the number of operations on the path.
    fn forward_rounding(g: Geometry, batch: usize, x: &[f32], w: &[f32]) -> Vec<f64> {
        let mut rounding = vec![0.0; batch * g.height * g.width * g.outputs];
        let weights: Vec<_> = (0..g.outputs * g.inputs)
            .map(|k| both_sides(&WEIGHTS, weight_square(w, g.inputs, k / g.inputs, k % g.inputs)))
            .collect();
        for (image, (row, column)) in (0..batch).flat_map(|b| tiles(g).map(move |tile| (b, tile))) {
            let corner = (row as isize - 1, column as isize - 1);
            let inputs: Vec<_> = (0..g.inputs)
                .map(|c| square(&INPUT, x, g, g.inputs, (image, corner.0, corner.1, c)))
                .collect();
            for o in 0..g.outputs {
                let mut sums = [[0.0; 6]; 6];
                let pairs = weights[o * g.inputs..].iter().zip(&inputs);
                pairs.for_each(|(u, v)| add_products(&mut sums, u, v));
                for (i, values) in both_sides(&OUTPUT, sums).iter().enumerate() {
                    for (j, value) in values.iter().enumerate() {
                        let (y, x) = (row + i, column + j);
                        if y < g.height && x < g.width {
                            let pixel = (image * g.height + y) * g.width + x;
                            rounding[pixel * g.outputs + o] = tolerance::f32(g.inputs + TRANSFORMS, *value);
                        }
                    }
                }
            }
        }
        rounding
    }

    /// Like [`forward_rounding`], for dw = Gᵀ[Σ_tiles (Bᵀ x B) ⊙ (A dy Aᵀ)]G.
    fn weight_rounding(g: Geometry, batch: usize, x: &[f32], dy: &[f32]) -> Vec<f64> {
        let mut sums = vec![[[0.0; 6]; 6]; g.outputs * g.inputs];
        let (to_weights, spread) = (transposed(WEIGHTS), transposed(OUTPUT));
        let mut count = 0;
        for (image, (row, column)) in (0..batch).flat_map(|b| tiles(g).map(move |tile| (b, tile))) {
            count += 1;
            let (row, column) = (row as isize, column as isize);
            let inputs: Vec<_> = (0..g.inputs)
                .map(|c| square(&INPUT, x, g, g.inputs, (image, row - 1, column - 1, c)))
                .collect();
            for o in 0..g.outputs {
                let gradient = square(&spread, dy, g, g.outputs, (image, row, column, o));
                let sums = sums[o * g.inputs..].iter_mut().zip(&inputs);
                sums.for_each(|(sum, v)| add_products(sum, &gradient, v));
            }
        }
        let magnitudes = |sum| both_sides(&to_weights, sum).concat().into_iter();
        sums.into_iter()
            .flat_map(magnitudes)
            .map(|magnitude| tolerance::f32(count + TRANSFORMS, magnitude))
            .collect()
    }

    /// Returns the exact values of `want` with the rounding error of this algorithm instead of that of plain
    /// sums.
    fn with_rounding(want: Vec<Rounded>, rounding: Vec<f64>) -> Vec<Rounded> {
        want.into_iter().zip(rounding).map(|(want, error)| Rounded::within(want.value, error)).collect()
    }

    /// Adds `values`, as the algorithm does after the transform back.
    fn plus(sums: Vec<Rounded>, values: &[f32]) -> Vec<Rounded> {
        sums.into_iter().zip(values).map(|(sum, v)| sum + Rounded::exact(*v)).collect()
    }

    /// Returns the convolution from the output's gradient to the input's: rotated weights, with inputs and
    /// outputs swapped.
    fn turned(g: Geometry, w: &[f32]) -> (Geometry, Vec<f32>) {
        let turned = Geometry { inputs: g.outputs, outputs: g.inputs, ..g };
        let weight = |k: usize| {
            let (i, o, tap) = (k / 9 / g.outputs, k / 9 % g.outputs, k % 9);
            w[(o * g.inputs + i) * 9 + 8 - tap]
        };
        (turned, (0..w.len()).map(weight).collect())
    }

    fn all_three(g: Geometry, batch: usize, seed: u64, add: bool) -> Result<(), TestCaseError> {
        let case = Case::new(g, batch, seed);
        let ((x, xl), (dy, dyl)) = (case.input(), case.output_gradient());
        let (flat_x, flat_y) = (case.flat_input(), case.flat_output());
        let rounding = forward_rounding(g, batch, &case.x, &case.w);
        let y = with_rounding(reference::forward(g, batch, &case.x, &case.w), rounding);
        let (turned, w) = turned(g, &case.w);
        let rounding = forward_rounding(turned, batch, &case.dy, &w);
        let mut dx = with_rounding(reference::input_gradient(g, batch, &case.dy, &case.w, None), rounding);
        if add {
            dx = plus(dx, &case.x);
        }
        let rounding = weight_rounding(g, batch, &case.x, &case.dy);
        let zero = vec![0.0; case.w.len()];
        let dw = with_rounding(reference::weight_gradient(g, batch, &case.x, &case.dy, &zero), rounding);
        let dw = plus(dw, &case.w);
        for simd in Simd::all().iter().copied() {
            let (mut direct, mut u, mut work) = (Packed::default(), Packed::default(), Buffer::default());
            let mut got = vec![f32::NAN; flat_y.len()];
            pack(simd, g, (xl.pitch, false), &case.w, [&mut direct, &mut u]);
            forward(simd, (&x, xl), &u, &mut work, (Shared::new(&mut got), flat_y, false), &|_, _| ());
            compare(&got, flat_y, g.outputs, &y)?;
            let start = if add { case.x.clone() } else { vec![f32::NAN; case.x.len()] };
            let mut got = place(&start, g.inputs, flat_x);
            pack(simd, g, (flat_x.pitch, true), &case.w, [&mut direct, &mut u]);
            forward(simd, (&dy, dyl), &u, &mut work, (Shared::new(&mut got), flat_x, add), &|_, _| ());
            compare(&got, flat_x, g.inputs, &dx)?;
            let mut got = case.w.clone();
            weight_gradient(simd, g, (&x, xl), (&dy, dyl), &mut Work::default(), &mut got);
            compare_all("weight", &got, &dw)?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(property::cases(96))]

        #[test]
        fn all_passes_equal_the_definition((g, batch) in geometry(), seed in 0u64..1000, add: bool) {
            all_three(g, batch, seed, add)?;
        }
    }

    #[test]
    fn many_channels_and_tiles_equal_the_definition() {
        // Above `LARGE`, and more tiles than one `PHASE`.
        let g = Geometry { height: 5, width: 3, inputs: 192, outputs: 160, kernel: 3, stride: 1, padding: 1 };
        all_three(g, 130, 7, true).unwrap();
    }
}
