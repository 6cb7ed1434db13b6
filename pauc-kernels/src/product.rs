//! Products with a matrix that is packed once for many portions of rows.
//!
//! A packed matrix B lies in panels of columns for the microkernel, one block of the sum after the other. So a block of
//! a panel stays in the nearest cache while the rows of A pass. Functions run on the calling thread, unless they say
//! otherwise.

use crate::buffer::{Buffer, Scratch, scratch};
use crate::microkernel::{Operands, Panel, Tap};
use crate::simd::{CHANNELS, Simd, dispatch};
use crate::threads::{self, Shared, portion};

/// Steps of the sum per block.
const DEPTH: usize = 128;
/// Rows of a tile that are packed together: a multiple of the heights of the microkernel's tiles.
const HEIGHT: usize = 48;
/// Rows of a weight gradient per unit of work.
const BLOCK: usize = 4 * HEIGHT;

/// Returns the first columns and the widths of the panels of `width` columns, a multiple of [`CHANNELS`].
pub(crate) fn panels(simd: Simd, width: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = width - start;
        let block = [64, 32].into_iter().find(|c| rest >= *c).unwrap_or(CHANNELS);
        let columns = simd.panel(block);
        start += columns;
        (rest > 0).then_some((start - columns, columns))
    })
}

#[inline(always)]
unsafe fn one_panel<V: Panel>(columns: usize, m: usize, depth: usize, o: Operands, add: bool) {
    // SAFETY: the caller's contract.
    unsafe { V::panel(columns, m, &[Tap::default()], depth, o, add) }
}

/// See [`Panel::panel`], with one tap.
///
/// # Safety
/// As there.
pub(crate) unsafe fn panel(simd: Simd, columns: usize, m: usize, depth: usize, o: Operands, add: bool) {
    dispatch!(simd => one_panel(columns: usize, m: usize, depth: usize, o: Operands, add: bool));
}

/// A matrix B of (depth, width) as the microkernel reads it.
pub(crate) struct Packed {
    simd: Simd,
    depth: usize,
    width: usize,
    values: Scratch,
}

impl Packed {
    /// Packs the transpose of a linear layer's weight (width, depth), for its output. On all threads.
    pub fn transposed(simd: Simd, weight: &[f32], depth: usize) -> Self {
        let width = weight.len() / depth;
        Self::new(simd, (depth, width), |rows, (start, columns), to| {
            to.fill(0.0);
            for j in start..width.min(start + columns) {
                let from = &weight[j * depth + rows.start..j * depth + rows.end];
                to[j - start..].iter_mut().step_by(columns).zip(from).for_each(|(to, from)| *to = *from);
            }
        })
    }

    /// Packs a matrix (depth, width), such as a linear layer's weight for its input gradient. On all threads.
    pub fn straight(simd: Simd, weight: &[f32], width: usize) -> Self {
        let depth = weight.len() / width;
        Self::new(simd, (depth, width), |rows, columns, to| pack(weight, width, rows, columns, to))
    }

    fn new(
        simd: Simd,
        (depth, width): (usize, usize),
        pack: impl Fn(std::ops::Range<usize>, (usize, usize), &mut [f32]) + Sync + Send,
    ) -> Self {
        let padded = width.next_multiple_of(CHANNELS);
        let mut values = scratch(depth * padded);
        let (all, shared): (Vec<_>, _) = (panels(simd, padded).collect(), Shared::new(&mut values));
        threads::for_each(depth.div_ceil(DEPTH) * all.len(), |i| {
            let first = i / all.len() * DEPTH;
            let (rows, (start, columns)) = (first..depth.min(first + DEPTH), all[i % all.len()]);
            let at = first * padded + start * rows.len();
            // SAFETY: portions are different blocks.
            pack(rows.clone(), (start, columns), unsafe { shared.part(at..at + rows.len() * columns) });
        });
        Packed { simd, depth, width, values }
    }

    /// C ← A·B, or C + A·B if `add`.
    ///
    /// # Shapes
    /// A (rows, depth), C (rows, width)
    ///
    /// # Panics
    /// If a slice does not have its shape's length.
    pub fn multiply(&self, a: &[f32], add: bool, c: &mut [f32]) {
        let (width, padded) = (self.width, self.width.next_multiple_of(CHANNELS));
        let rows = c.len() / width;
        assert_eq!(
            (a.len(), c.len()),
            (rows * self.depth, rows * width),
            "a product of {} and {width}",
            self.depth
        );
        if padded == width {
            return self.multiply_padded(a, add, c);
        }
        let mut wide = scratch(rows * padded);
        wide.fill(0.0);
        if add {
            wide.chunks_exact_mut(padded)
                .zip(c.chunks_exact(width))
                .for_each(|(w, c)| w[..width].copy_from_slice(c));
        }
        self.multiply_padded(a, add, &mut wide);
        c.chunks_exact_mut(width)
            .zip(wide.chunks_exact(padded))
            .for_each(|(c, w)| c.copy_from_slice(&w[..width]));
    }

    fn multiply_padded(&self, a: &[f32], add: bool, c: &mut [f32]) {
        let (depth, padded) = (self.depth, self.width.next_multiple_of(CHANNELS));
        let rows = c.len() / padded;
        for first in (0..depth).step_by(DEPTH) {
            let steps = DEPTH.min(depth - first);
            for (start, columns) in panels(self.simd, padded) {
                let b = &self.values[first * padded + start * steps..][..steps * columns];
                let o = Operands {
                    a: a[first..].as_ptr(),
                    a_row: depth,
                    a_step: 1,
                    b: b.as_ptr(),
                    b_step: columns,
                    c: c[start..].as_mut_ptr(),
                    c_row: padded,
                };
                // SAFETY: A has `rows` rows of `depth` values, of which `steps` from `first` on are read; B has `steps`
                // rows of `columns` values; C has `rows` rows of `padded` values, of which `columns` from `start` on
                // are written.
                unsafe { panel(self.simd, columns, rows, steps, o, add || first > 0) };
            }
        }
    }
}

/// Copies some rows of a panel of columns of a matrix; columns beyond its width become zero.
fn pack(
    from: &[f32],
    width: usize,
    rows: std::ops::Range<usize>,
    (start, columns): (usize, usize),
    to: &mut [f32],
) {
    let of_row = start.min(width)..width.min(start + columns);
    for (from, to) in from.chunks_exact(width).skip(rows.start).zip(to.chunks_exact_mut(columns)) {
        let (to, padding) = to.split_at_mut(of_row.len());
        to.copy_from_slice(&from[of_row.clone()]);
        padding.fill(0.0);
    }
}

/// Returns ∂yᵀ·x, the gradient of a linear layer's weight. The sum over rows is split into parts, which `work`
/// holds. On all threads.
///
/// # Shapes
/// x (rows, inputs), ∂y (rows, outputs) → (outputs, inputs)
pub(crate) fn products_over_rows<'a>(
    simd: Simd,
    (inputs, outputs): (usize, usize),
    x: &[f32],
    dy: &[f32],
    work: &'a mut Buffer,
) -> &'a [f32] {
    let (rows, padded) = (x.len() / inputs, inputs.next_multiple_of(CHANNELS));
    let (size, blocks) = (padded * outputs, outputs.div_ceil(BLOCK));
    let parts = crate::conv::parts(size, rows.div_ceil(DEPTH), blocks);
    work.grow(parts * size);
    let sums = Shared::new(&mut work[..parts * size]);
    threads::for_each(parts * blocks, |i| {
        let (rows, first) = (portion(rows, parts, i / blocks), i % blocks * BLOCK);
        let outputs = first..outputs.min(first + BLOCK);
        let start = i / blocks * size;
        // SAFETY: portions are different parts and rows of the sums.
        let sums = unsafe { sums.part(start + outputs.start * padded..start + outputs.end * padded) };
        add_products(simd, (x, inputs), (dy, dy.len() / (x.len() / inputs)), (rows, outputs), sums);
    });
    add_parts(work, parts, (inputs, padded, outputs))
}

/// sums ← ∂yᵀ·x over some rows, for some outputs.
fn add_products(
    simd: Simd,
    (x, inputs): (&[f32], usize),
    (dy, width): (&[f32], usize),
    (rows, outputs): (std::ops::Range<usize>, std::ops::Range<usize>),
    sums: &mut [f32],
) {
    let padded = inputs.next_multiple_of(CHANNELS);
    let (mut a, mut b) = (scratch(DEPTH * BLOCK), scratch(DEPTH * 64));
    for first in rows.clone().step_by(DEPTH) {
        let chunk = first..rows.end.min(first + DEPTH);
        let steps = chunk.len();
        for (i, start) in outputs.clone().step_by(HEIGHT).enumerate() {
            let count = HEIGHT.min(outputs.end - start);
            let to = &mut a[i * HEIGHT * steps..][..count * steps];
            pack(dy, width, chunk.clone(), (start, count), to);
        }
        for (start, columns) in panels(simd, padded) {
            pack(x, inputs, chunk.clone(), (start, columns), &mut b[..steps * columns]);
            for i in 0..outputs.len().div_ceil(HEIGHT) {
                let count = HEIGHT.min(outputs.len() - i * HEIGHT);
                let o = Operands {
                    a: a[i * HEIGHT * steps..][..count * steps].as_ptr(),
                    a_row: 1,
                    a_step: count,
                    b: b.as_ptr(),
                    b_step: columns,
                    c: sums[i * HEIGHT * padded + start..].as_mut_ptr(),
                    c_row: padded,
                };
                // SAFETY: A has `steps` rows of `count` values, B as many of `columns`; C has `count` rows of `padded`
                // values, of which `columns` from `start` on are written.
                unsafe { panel(simd, columns, count, steps, o, first > rows.start) };
            }
        }
    }
}

/// Adds the parts of a sum in order, and returns it without padding.
fn add_parts(work: &mut Buffer, parts: usize, (inputs, padded, outputs): (usize, usize, usize)) -> &[f32] {
    let size = padded * outputs;
    let (total, others) = work.split_at_mut(size);
    let shared = Shared::new(&mut *total);
    threads::for_each(outputs, |j| {
        let row = j * padded..(j + 1) * padded;
        // SAFETY: portions are different rows.
        let total = unsafe { shared.part(row.clone()) };
        for part in others[..(parts - 1) * size].chunks_exact(size) {
            total.iter_mut().zip(&part[row.clone()]).for_each(|(t, p)| *t += p);
        }
    });
    if inputs < padded {
        (1..outputs).for_each(|j| total.copy_within(j * padded..j * padded + inputs, j * inputs));
    }
    &work[..inputs * outputs]
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::Rounded;
    use pauc_testing::inputs::noise;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(pauc_testing::property::cases(64))]

        #[test]
        fn packed_products_equal_the_loops(
            rows in 1usize..40, depth in pauc_testing::property::size(1..300), width in 1usize..150, transposed: bool, add: bool,
        ) {
            let (a, b, start) = (noise(rows * depth, 1), noise(depth * width, 2), noise(rows * width, 3));
            let element = |k: usize, j: usize| if transposed { b[j * depth + k] } else { b[k * width + j] };
            for simd in Simd::all().iter().copied() {
                let packed = if transposed { Packed::transposed(simd, &b, depth) } else { Packed::straight(simd, &b, width) };
                let mut c = start.clone();
                packed.multiply(&a, add, &mut c);
                for (i, got) in c.iter().enumerate() {
                    let (row, j) = (i / width, i % width);
                    let pairs = (0..depth).map(|k| (a[row * depth + k], element(k, j)));
                    let first = (if add { start[i] } else { 0.0 }, 1.0);
                    let want = Rounded::dot(pairs.chain([first]).map(|(a, b)| (Rounded::exact(a), Rounded::exact(b))));
                    prop_assert!(want.admits(*got), "{} {i}: got {got}, expected {want}", simd.name());
                }
            }
        }
    }

    #[test]
    fn products_over_rows_are_sums_in_parts() {
        for (inputs, outputs, rows) in [(5, 70, 1000), (32, 200, 300), (16, 1, 1)] {
            let (x, dy) = (noise(rows * inputs, 1), noise(rows * outputs, 2));
            for simd in Simd::all().iter().copied() {
                let mut work = Buffer::default();
                let got = products_over_rows(simd, (inputs, outputs), &x, &dy, &mut work);
                assert_eq!(got.len(), inputs * outputs);
                for (i, got) in got.iter().enumerate() {
                    let pair =
                        |r: usize| (dy[r * outputs + i / inputs].into(), x[r * inputs + i % inputs].into());
                    let want = Rounded::dot((0..rows).map(pair));
                    assert!(want.admits(*got), "{i}: got {got}, expected {want}");
                }
            }
        }
    }
}
