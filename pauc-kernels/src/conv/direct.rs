//! Direct convolution, with sums over taps and channels kept in registers.
//!
//! In a channels-last map, a row of the kernel times all channels is contiguous. So the sum of one output
//! pixel has only as many contiguous pieces as the kernel has rows. No patches are copied.

use super::{Geometry, Packed, pack};
use crate::buffer::Buffer;
use crate::layout::{Layout, Portions, Then};
use crate::microkernel::{Operands, Panel, Tap};
use crate::simd::{Simd, dispatch};
use crate::threads::{self, Shared};
use std::ops::Range;

/// The maximum kernel size.
const LARGEST: usize = 11;
/// The approximate number of output pixels per portion of work, so that its maps and a panel of weights stay
/// in the L2 cache.
const PIXELS: usize = 256;

/// Packs weights, (out, in, height, width), for [`forward`] on maps of `pitch` channels.
pub(super) fn pack_forward(simd: Simd, g: Geometry, pitch: usize, w: &[f32], to: &mut Packed) {
    pack::forward(simd, g, pitch, w, to.reserve(g.kernel * g.kernel * pitch * g.output_pitch()));
}

/// Packs weights, (out, in, height, width), for [`input_gradient`] into maps of `pitch` channels.
pub(super) fn pack_input_gradient(simd: Simd, g: Geometry, pitch: usize, w: &[f32], to: &mut Packed) {
    pack::input_gradient(simd, g, pitch, w, to.reserve(g.kernel * g.kernel * pitch * g.output_pitch()));
}

/// Computes some rows of the output.
///
/// # Safety
/// [`Panel`]'s contract. `x` is valid for reads of its layout, whose halo is at least the padding, and `w`
/// for reads of the packed weights. `y` has its layout, and no other thread accesses these rows of it.
#[inline(always)]
unsafe fn forward_rows<V: Panel>(
    rows: Range<usize>,
    (g, columns): (Geometry, usize),
    (x, xl): (*const f32, Layout),
    w: *const f32,
    (y, yl): (Shared<'_, f32>, Layout),
) {
    let depth = g.kernel * xl.pitch;
    let mut taps = [Tap::default(); LARGEST];
    for (ky, tap) in taps.iter_mut().enumerate() {
        *tap = Tap { a: ky * xl.row(), b: ky * depth * columns };
    }
    let start = (xl.before - g.padding) * (xl.row() + xl.pitch);
    for block in 0..yl.pitch / columns {
        for r in rows.clone() {
            let first_pixel = r / yl.height * xl.image() + r % yl.height * g.stride * xl.row() + start;
            let o = Operands {
                a: x.wrapping_add(first_pixel),
                a_row: g.stride * xl.pitch,
                a_step: 1,
                b: w.wrapping_add(block * g.kernel * depth * columns),
                b_step: columns,
                c: y.at(yl.row_at(r) + block * columns),
                c_row: yl.pitch,
            };
            // SAFETY: this function's contract. `check_input` and `check_output` asserted that the taps of
            // every output pixel are inside x and its halo.
            unsafe { V::panel(columns, yl.width, &taps[..g.kernel], depth, o, false) };
        }
    }
}

/// Returns the portions of an output's rows in which [`forward`] and [`input_gradient`] compute them.
pub(super) fn portions(l: Layout) -> Portions {
    Portions::of_pixels(l, PIXELS)
}

/// y ← x ∗ w.
///
/// # Shapes
/// x: the geometry's input with a halo of at least its padding; y: its output, channels rounded up.
///
/// # Panics
/// If slices, layouts and geometry do not agree.
pub(super) fn forward(
    simd: Simd,
    g: Geometry,
    (x, xl): (&[f32], Layout),
    w: &Packed,
    (y, yl): (Shared<'_, f32>, Layout),
    then: Then<'_>,
) {
    g.check_input(x, xl);
    g.check_output(y.len(), yl);
    assert!(xl.batch == yl.batch && g.kernel <= LARGEST);
    assert_eq!(
        w.values().len(),
        g.kernel * g.kernel * xl.pitch * yl.pitch,
        "the weights are packed for another layer"
    );
    let cut = portions(yl);
    threads::for_each(cut.count(), |i| {
        let (rows, shape) = (cut.rows(i), (g, simd.panel(yl.pitch)));
        let (x, y, w) = ((x.as_ptr(), xl), (y, yl), w.values().as_ptr());
        dispatch!(simd => forward_rows(
            rows: Range<usize>, shape: (Geometry, usize), x: (*const f32, Layout), w: *const f32,
            y: (Shared<'_, f32>, Layout),
        ));
        then(i, cut.rows(i));
    });
}

/// Input pixels with the same remainder modulo the stride. They use the same taps of the kernel.
#[derive(Clone, Copy)]
struct Phase {
    /// The first row or column of the phase.
    first: usize,
    /// The number of rows or columns.
    count: usize,
    /// Pairs of a tap and the offset of the output pixel from the index within the phase.
    taps: [(usize, usize); LARGEST],
    len: usize,
}

impl Phase {
    fn new(g: Geometry, side: usize, first: usize) -> Self {
        let count = side.saturating_sub(first).div_ceil(g.stride);
        let mut p = Phase { first, count, taps: [(0, 0); LARGEST], len: 0 };
        for k in 0..g.kernel {
            // Input row y contributes to output row (y + padding − k) / stride if that is an integer. Offsets
            // are relative to one output pixel before the map, inside the halo.
            let shift = (first + g.padding + g.stride) as isize - k as isize;
            if shift >= 0 && (shift as usize).is_multiple_of(g.stride) {
                p.taps[p.len] = (k, shift as usize / g.stride);
                p.len += 1;
            }
        }
        p
    }
}

/// Computes some rows of one phase of the input's gradient.
///
/// # Safety
/// [`Panel`]'s contract. `dy` is valid for reads of its layout, whose halo covers the reads of the phases'
/// taps, and `w` for reads of the packed weights. `dx` has its layout, and no other thread accesses the
/// pixels of these rows and phases.
#[inline(always)]
unsafe fn gradient_rows<V: Panel>(
    rows: Range<usize>,
    (g, columns, add): (Geometry, usize, bool),
    phases: (&Phase, &Phase),
    (dy, dyl): (*const f32, Layout),
    w: *const f32,
    (dx, dxl): (Shared<'_, f32>, Layout),
) {
    let (py, px) = phases;
    let depth = dyl.pitch;
    let mut taps = [Tap::default(); LARGEST * LARGEST];
    let mut n = 0;
    for &(ky, oy) in &py.taps[..py.len] {
        for &(kx, ox) in &px.taps[..px.len] {
            taps[n] = Tap { a: oy * dyl.row() + ox * dyl.pitch, b: (ky * g.kernel + kx) * depth * columns };
            n += 1;
        }
    }
    if n == 0 && add {
        return;
    }
    // One pixel before the map, see `Phase`. It is outside the slice only if no tap reads there.
    let start = dyl.row_at(0) as isize - (dyl.row() + dyl.pitch) as isize;
    for block in 0..dxl.pitch / columns {
        for r in rows.clone() {
            let (image, i) = (r / py.count, r % py.count);
            let row = dxl.row_at(image * dxl.height + py.first + i * g.stride);
            let o = Operands {
                a: dy.wrapping_offset(start + (image * dyl.image() + i * dyl.row()) as isize),
                a_row: dyl.pitch,
                a_step: 1,
                b: w.wrapping_add(block * g.kernel * g.kernel * depth * columns),
                b_step: columns,
                c: dx.at(row + px.first * dxl.pitch + block * columns),
                c_row: g.stride * dxl.pitch,
            };
            // SAFETY: this function's contract. `input_gradient` asserted for every phase that its taps read
            // neither before nor beyond dy and its halo.
            unsafe { V::panel(columns, px.count, &taps[..n], depth, o, add) };
        }
    }
}

/// dx ← dy ∗ wᵀ, or dx ← dx + dy ∗ wᵀ if `add`.
///
/// # Shapes
/// dy: the geometry's output with the halo that its padding requires; dx: its input, channels rounded up.
///
/// # Panics
/// If slices, layouts and geometry do not agree.
pub(super) fn input_gradient(
    simd: Simd,
    g: Geometry,
    (dy, dyl): (&[f32], Layout),
    w: &Packed,
    (dx, dxl, add): (Shared<'_, f32>, Layout, bool),
    then: Then<'_>,
) {
    g.check_output(dy.len(), dyl);
    assert!((dxl.height, dxl.width, dxl.batch) == (g.height, g.width, dyl.batch) && dx.len() >= dxl.len());
    assert!(g.kernel <= LARGEST && w.values().len() == g.kernel * g.kernel * dxl.pitch * dyl.pitch);
    let phases = |side: usize, [map, after]: [usize; 2]| {
        let phases = (0..g.stride).map(move |first| Phase::new(g, side, first)).filter(|p| p.count > 0);
        phases.inspect(move |p| {
            for (_, offset) in &p.taps[..p.len] {
                assert!(offset + dyl.before >= 1, "{g:?} reads before {dyl:?}");
                assert!(offset + p.count - 1 <= map + after, "{g:?} reads beyond {dyl:?}");
            }
        })
    };
    for py in phases(g.height, [dyl.height, dyl.below]) {
        for px in phases(g.width, [dyl.width, dyl.right]) {
            let total = dxl.batch * py.count;
            let size = PIXELS.div_ceil(px.count);
            threads::for_each(total.div_ceil(size), |i| {
                let rows = i * size..total.min((i + 1) * size);
                let shape = (g, simd.panel(dxl.pitch), add);
                let (dy, dx, w, phases) = ((dy.as_ptr(), dyl), (dx, dxl), w.values().as_ptr(), (&py, &px));
                let written = rows.clone();
                dispatch!(simd => gradient_rows(
                    rows: Range<usize>, shape: (Geometry, usize, bool), phases: (&Phase, &Phase),
                    dy: (*const f32, Layout), w: *const f32, dx: (Shared<'_, f32>, Layout),
                ));
                if g.stride == 1 {
                    then(i, written);
                }
            });
        }
    }
    if g.stride > 1 {
        portions(dxl).for_each(then);
    }
}

/// The number of output rows whose products one call of the micro-kernel sums.
const ROWS: usize = 32;

/// Writes the sum of the products of some rows of dy to rows `ky` and columns `block` of a part.
///
/// # Safety
/// [`Panel`]'s contract. `x` and `dy` are valid for reads of their layouts, and x's halo is at least the
/// padding. `sum` is valid for writes of a whole part, and no other thread accesses these rows and columns of
/// it.
#[inline(always)]
unsafe fn weight_rows<V: Panel>(
    rows: Range<usize>,
    (g, columns, ky, block): (Geometry, usize, usize, usize),
    (x, xl): (*const f32, Layout),
    (dy, dyl): (*const f32, Layout),
    sum: *mut f32,
) {
    let start = (xl.before - g.padding) * (xl.row() + xl.pitch) + ky * xl.row();
    // Few enough rows to keep a panel of dy in the L1 cache.
    let size = (8192 / (dyl.width * columns)).clamp(1, ROWS);
    let mut taps = [Tap::default(); ROWS];
    let mut r = rows.start;
    while r < rows.end {
        let n = size.min(rows.end - r);
        for (j, tap) in taps[..n].iter_mut().enumerate() {
            let (image, y) = ((r + j) / dyl.height, (r + j) % dyl.height);
            *tap = Tap { a: image * xl.image() + y * g.stride * xl.row() + start, b: dyl.row_at(r + j) };
        }
        let o = Operands {
            a: x,
            a_row: 1,
            a_step: g.stride * xl.pitch,
            b: dy.wrapping_add(block * columns),
            b_step: dyl.pitch,
            c: sum.wrapping_add(ky * g.kernel * xl.pitch * dyl.pitch + block * columns),
            c_row: dyl.pitch,
        };
        // SAFETY: this function's contract. `check_input` and `check_output` asserted the halo and the
        // lengths.
        unsafe { V::panel(columns, g.kernel * xl.pitch, &taps[..n], dyl.width, o, r > rows.start) };
        r += n;
    }
}

/// dw ← dw + the gradient with respect to the weights, (out, in, height, width).
///
/// The sum over pixels is split into parts, whose number depends on the shape alone. `work` holds the parts.
///
/// # Shapes
/// x: the geometry's input with a halo of at least its padding; dy: its output, channels rounded up.
///
/// # Panics
/// If slices, layouts and geometry do not agree.
pub(super) fn weight_gradient(
    simd: Simd,
    g: Geometry,
    (x, xl): (&[f32], Layout),
    (dy, dyl): (&[f32], Layout),
    work: &mut Buffer,
    dw: &mut [f32],
) {
    g.check_input(x, xl);
    g.check_output(dy.len(), dyl);
    assert!(xl.batch == dyl.batch && dw.len() == g.weights());
    let size = g.kernel * g.kernel * xl.pitch * dyl.pitch;
    let columns = simd.panel(dyl.pitch);
    let blocks = dyl.pitch / columns;
    let parts = super::parts(size, dyl.rows(), blocks * g.kernel);
    work.grow(parts * size);
    let sums = Shared::new(work);
    threads::for_each(parts * blocks * g.kernel, |i| {
        let (part, block, ky) = (i / (blocks * g.kernel), i / g.kernel % blocks, i % g.kernel);
        let rows = threads::portion(dyl.rows(), parts, part);
        let (shape, sum) = ((g, columns, ky, block), sums.at(part * size));
        let (x, dy) = ((x.as_ptr(), xl), (dy.as_ptr(), dyl));
        // Each portion writes the rows `ky` and columns `block` of its part's sum.
        dispatch!(simd => weight_rows(
            rows: Range<usize>, shape: (Geometry, usize, usize, usize), x: (*const f32, Layout),
            dy: (*const f32, Layout), sum: *mut f32,
        ));
    });
    pack::add_weight_gradient(simd, g, xl.pitch, work, parts, dw);
}

#[cfg(test)]
mod tests {
    use super::super::{cases::*, reference};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(pauc_testing::property::cases(192))]

        #[test]
        fn forward_equals_the_definition((g, batch) in geometry(), seed in 0u64..1000) {
            let case = Case::new(g, batch, seed);
            let (x, xl) = case.input();
            let want = reference::forward(g, batch, &case.x, &case.w);
            for simd in Simd::all().iter().copied() {
                let (yl, mut w) = (case.flat_output(), Packed::default());
                let mut y = vec![f32::NAN; yl.len()];
                pack_forward(simd, g, xl.pitch, &case.w, &mut w);
                forward(simd, g, (&x, xl), &w, (Shared::new(&mut y), yl), &|_, _| ());
                compare(&y, yl, g.outputs, &want)?;
            }
        }

        #[test]
        fn input_gradient_equals_the_definition((g, batch) in geometry(), seed in 0u64..1000, add: bool) {
            prop_assume!(g.kernel <= 3 && g.inputs >= 4);
            let case = Case::new(g, batch, seed);
            let (dy, dyl) = case.output_gradient();
            let start = add.then_some(&case.x[..]);
            let want = reference::input_gradient(g, batch, &case.dy, &case.w, start);
            for simd in Simd::all().iter().copied() {
                let (dxl, mut w) = (case.flat_input(), Packed::default());
                let mut dx = if add { place(&case.x, g.inputs, dxl) } else { place(&vec![f32::NAN; case.x.len()], g.inputs, dxl) };
                pack_input_gradient(simd, g, dxl.pitch, &case.w, &mut w);
                input_gradient(simd, g, (&dy, dyl), &w, (Shared::new(&mut dx), dxl, add), &|_, _| ());
                compare(&dx, dxl, g.inputs, &want)?;
            }
        }

        #[test]
        fn weight_gradient_equals_the_definition((g, batch) in geometry(), seed in 0u64..1000) {
            let case = Case::new(g, batch, seed);
            let ((x, xl), (dy, dyl)) = (case.input(), case.output_gradient());
            let want = reference::weight_gradient(g, batch, &case.x, &case.dy, &case.w);
            for simd in Simd::all().iter().copied() {
                let (mut dw, mut work) = (case.w.clone(), Buffer::default());
                weight_gradient(simd, g, (&x, xl), (&dy, dyl), &mut work, &mut dw);
                compare_all("weight", &dw, &want)?;
            }
        }
    }
}
