//! Conversion of weights between interchange order, (out, in, height, width), and the order of the kernels.

use super::Geometry;
use crate::simd::{CHANNELS, Simd, Vector, dispatch};
use crate::threads::{self, Shared};
use std::ops::Range;

/// One panel: a group of channels, with the weights of each tap between them and all channels of the other
/// side.
#[derive(Clone, Copy)]
struct Shape {
    taps: usize,
    /// The columns of the panel, and how many of them are existing channels.
    columns: [usize; 2],
    /// The rows of a tap, and how many of them are existing channels.
    rows: [usize; 2],
    /// The distance between the weights of adjacent columns' channels.
    column: usize,
    /// The distance between the weights of adjacent rows' channels.
    row: usize,
}

/// to\[tap\]\[row\]\[column\] ← from\[column·s.column + row·s.row + tap\], and zero beyond the channels.
///
/// # Safety
/// [`Vector`]'s contract. `from` is valid for reads of the weights of all existing channels. `to` is valid
/// for writes of these rows of a whole panel, and no other thread accesses them.
#[inline(always)]
unsafe fn pack_rows<V: Vector>(rows: Range<usize>, from: *const f32, to: *mut f32, s: Shape) {
    let ([columns, existing_columns], [all_rows, existing_rows]) = (s.columns, s.rows);
    // SAFETY: this function's contract. Only columns and rows of existing channels are read.
    unsafe {
        for lane in (0..columns).step_by(V::LANES) {
            let all_exist = lane + V::LANES <= existing_columns;
            for row in rows.clone() {
                let from = from.wrapping_add(lane * s.column + row * s.row);
                for t in 0..s.taps {
                    let to = to.add((t * all_rows + row) * columns + lane);
                    if all_exist && row < existing_rows {
                        V::gather(from.add(t), s.column).store(to);
                        continue;
                    }
                    let existing =
                        if row < existing_rows { existing_columns.saturating_sub(lane) } else { 0 };
                    for i in 0..V::LANES {
                        *to.add(i) = if i < existing { *from.add(i * s.column + t) } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// The approximate number of values per portion of packing.
const PORTION: usize = 8 << 10;

/// Packs `total` channels into panels of `s.columns[0]`.
fn panels(simd: Simd, total: usize, s: Shape, w: &[f32], to: &mut [f32]) {
    let (columns, rows) = (s.columns[0], s.rows[0]);
    let size = (PORTION / (s.taps * columns)).clamp(1, rows);
    let (cuts, to) = (rows.div_ceil(size), Shared::new(to));
    threads::for_each(to.len() / (s.taps * rows * columns) * cuts, |i| {
        let (panel, first) = (i / cuts, i % cuts * size);
        let rows = first..rows.min(first + size);
        let existing = columns.min(total.saturating_sub(panel * columns));
        let s = Shape { columns: [columns, existing], ..s };
        let from = w.as_ptr().wrapping_add(panel * columns * s.column);
        let to = to.at(panel * s.taps * s.rows[0] * columns);
        // `forward` and `input_gradient` checked the lengths of `w` and `to`. Each portion is a range of rows
        // of one panel.
        dispatch!(simd => pack_rows(rows: Range<usize>, from: *const f32, to: *mut f32, s: Shape));
    });
}

/// Packs weights for the forward pass: \[out / panel\]\[ky\]\[kx\]\[in\]\[panel\], with `pitch` input
/// channels.
pub(super) fn forward(simd: Simd, g: Geometry, pitch: usize, w: &[f32], to: &mut [f32]) {
    let (taps, outputs) = (g.kernel * g.kernel, g.output_pitch());
    let columns = [simd.panel(outputs); 2];
    assert_eq!((w.len(), to.len()), (g.weights(), taps * pitch * outputs));
    let s = Shape { taps, columns, rows: [pitch, g.inputs], column: g.inputs * taps, row: taps };
    panels(simd, g.outputs, s, w, to);
}

/// Packs weights for the input gradient: \[in / panel\]\[ky\]\[kx\]\[out\]\[panel\].
pub(super) fn input_gradient(simd: Simd, g: Geometry, pitch: usize, w: &[f32], to: &mut [f32]) {
    let (taps, outputs) = (g.kernel * g.kernel, g.output_pitch());
    let columns = [simd.panel(pitch); 2];
    assert_eq!((w.len(), to.len()), (g.weights(), taps * pitch * outputs));
    let s = Shape { taps, columns, rows: [outputs, g.outputs], column: taps, row: g.inputs * taps };
    panels(simd, g.inputs, s, w, to);
}

/// Values of an output channel that are transposed together.
const TURNED: usize = 144;

/// Adds the sums of parts to the gradients of output channels `outputs`, at most [`CHANNELS`] of them.
///
/// # Safety
/// [`Vector`]'s contract. `from` is valid for reads of all parts, whose channels are rounded up to
/// [`CHANNELS`]. `dw` has the weights of all output channels, and no other thread accesses those of
/// `outputs`. A kernel has at most [`TURNED`] taps.
#[inline(always)]
unsafe fn add_rows<V: Vector>(
    outputs: Range<usize>,
    (g, pitch): (Geometry, usize),
    (from, parts): (*const f32, usize),
    dw: Shared<'_, f32>,
) {
    let (taps, output_pitch) = (g.kernel * g.kernel, g.output_pitch());
    let inputs = (TURNED / taps).max(1);
    let mut sums = [0f32; TURNED * CHANNELS];
    for first in (0..g.inputs).step_by(inputs) {
        let n = inputs.min(g.inputs - first) * taps;
        // SAFETY: this function's contract for `from` and `dw`. `sums` has TURNED rows of CHANNELS values,
        // and n is at most TURNED by the choice of `inputs`.
        unsafe {
            for k in 0..n {
                let sources = from.add((k % taps * pitch + first + k / taps) * output_pitch + outputs.start);
                for lane in (0..CHANNELS).step_by(V::LANES) {
                    let mut sum = V::load(sources.add(lane));
                    for p in 1..parts {
                        sum = sum.add(V::load(sources.add(p * taps * pitch * output_pitch + lane)));
                    }
                    sum.store(sums.as_mut_ptr().add(k * CHANNELS + lane));
                }
            }
            for o in outputs.clone() {
                let (to, from) = (dw.at((o * g.inputs + first) * taps), sums.as_ptr().add(o - outputs.start));
                let in_vectors = n / V::LANES * V::LANES;
                for k in (0..in_vectors).step_by(V::LANES) {
                    V::load(to.add(k)).add(V::gather(from.add(k * CHANNELS), CHANNELS)).store(to.add(k));
                }
                for k in in_vectors..n {
                    *to.add(k) += *from.add(k * CHANNELS);
                }
            }
        }
    }
}

/// Adds the sum of `parts` weight gradients, each \[ky\]\[kx\]\[in\]\[out\] with rounded-up channels, to
/// `dw`.
pub(super) fn add_weight_gradient(
    simd: Simd,
    g: Geometry,
    pitch: usize,
    from: &[f32],
    parts: usize,
    dw: &mut [f32],
) {
    let taps = g.kernel * g.kernel;
    assert!(from.len() >= parts * taps * pitch * g.output_pitch() && dw.len() == g.weights());
    assert!(taps <= TURNED && parts > 0);
    let dw = Shared::new(dw);
    threads::for_each(g.outputs.div_ceil(CHANNELS), |block| {
        let outputs = block * CHANNELS..g.outputs.min(block * CHANNELS + CHANNELS);
        let (shape, sums) = ((g, pitch), (from.as_ptr(), parts));
        // The lengths are checked above. Each portion is a range of output channels.
        dispatch!(simd => add_rows(
            outputs: Range<usize>, shape: (Geometry, usize), sums: (*const f32, usize), dw: Shared<'_, f32>,
        ));
    });
}
