//! The register-tiled product underlying every convolution.

use crate::simd::{V4, Vector};
#[cfg(target_arch = "x86_64")]
use crate::simd::{V8, V16};

/// One term of the outer sum: the start of A's and B's rows of this tap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tap {
    pub a: usize,
    pub b: usize,
}

/// A, B and C of a [`panel`]. Strides are numbers of values.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub a: *const f32,
    /// The distance between rows of A.
    pub a_row: usize,
    /// The distance between steps of the sum.
    pub a_step: usize,
    pub b: *const f32,
    pub b_step: usize,
    pub c: *mut f32,
    pub c_row: usize,
}

/// C\[i\]\[j\] (+)= Σ_tap Σ_k A\[tap.a + i·a_row + k·a_step\] · B\[tap.b + k·b_step + j\] for
/// i < ROWS, j < VECTORS·LANES.
///
/// # Safety
/// [`Vector`]'s contract. Every element named above is valid, and C overlaps neither A nor B.
#[inline(always)]
unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize>(
    taps: &[Tap],
    depth: usize,
    o: Operands,
    add: bool,
) {
    // SAFETY: the function's contract.
    unsafe {
        let mut sum = [[V::splat(0.0); VECTORS]; ROWS];
        if add {
            for (i, row) in sum.iter_mut().enumerate() {
                for (j, s) in row.iter_mut().enumerate() {
                    *s = V::load(o.c.add(i * o.c_row + j * V::LANES));
                }
            }
        }
        for tap in taps {
            let (mut a, mut b) = (o.a.add(tap.a), o.b.add(tap.b));
            for _ in 0..depth {
                let mut columns = [V::splat(0.0); VECTORS];
                for (j, c) in columns.iter_mut().enumerate() {
                    *c = V::load(b.add(j * V::LANES));
                }
                for (i, row) in sum.iter_mut().enumerate() {
                    let factor = V::splat(*a.add(i * o.a_row));
                    for (s, c) in row.iter_mut().zip(columns) {
                        *s = factor.mul_add(c, *s);
                    }
                }
                a = a.wrapping_add(o.a_step);
                b = b.wrapping_add(o.b_step);
            }
        }
        for (i, row) in sum.iter().enumerate() {
            for (j, s) in row.iter().enumerate() {
                s.store(o.c.add(i * o.c_row + j * V::LANES));
            }
        }
    }
}

/// Computes `m` rows in tiles of `$v` with `$vectors` columns of vectors and one of the given heights. The
/// heights leave registers for a row of B and a factor.
macro_rules! rows {
    ($v:ty, $vectors:literal, [$($height:literal)*], $m:ident, $taps:ident, $depth:ident, $o:ident, $add:ident) => {{
        const HEIGHTS: &[usize] = &[$($height),*];
        // Blocks of nearly equal height: a last block of one row would be several times slower.
        let blocks = $m.div_ceil(HEIGHTS.len());
        let mut i = 0;
        for block in 0..blocks {
            let height = ($m - i).div_ceil(blocks - block);
            let operands = Operands { a: $o.a.wrapping_add(i * $o.a_row), c: $o.c.wrapping_add(i * $o.c_row), ..$o };
            match height {
                // SAFETY: the caller's contract for rows i..i + height.
                $($height => unsafe { tile::<$v, $height, $vectors>($taps, $depth, operands, $add) },)*
                _ => unreachable!(),
            }
            i += height;
        }
    }};
}

/// Vectors with a product of any height.
pub(crate) trait Panel: Vector {
    /// Computes the product of `tile` for `m` rows and [`crate::simd::Simd::panel`] columns. Not inlined,
    /// since the tiles of all heights are a lot of code.
    ///
    /// # Safety
    /// As for `tile`, with `m` rows and `columns` columns.
    unsafe fn panel(columns: usize, m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool);
}

/// Computes rows with the tiles of 16-lane vectors.
macro_rules! wide {
    ($v:ty, $columns:ident, $m:ident, $taps:ident, $depth:ident, $o:ident, $add:ident) => {
        match $columns {
            64 => rows!($v, 4, [1 2 3 4 5 6], $m, $taps, $depth, $o, $add),
            32 => rows!($v, 2, [1 2 3 4 5 6 7 8 9 10 11 12], $m, $taps, $depth, $o, $add),
            _ => rows!($v, 1, [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], $m, $taps, $depth, $o, $add),
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Panel for V16 {
    #[inline(always)]
    unsafe fn panel(columns: usize, m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool) {
        #[target_feature(enable = "avx512f")]
        unsafe fn compiled(columns: usize, m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool) {
            wide!(V16, columns, m, taps, depth, o, add)
        }
        // SAFETY: the method's contract.
        unsafe { compiled(columns, m, taps, depth, o, add) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Panel for V8 {
    #[inline(always)]
    unsafe fn panel(_: usize, m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool) {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn compiled(m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool) {
            rows!(V8, 2, [1 2 3 4 5 6], m, taps, depth, o, add)
        }
        // SAFETY: the method's contract.
        unsafe { compiled(m, taps, depth, o, add) }
    }
}

impl Panel for V4 {
    #[inline(never)]
    unsafe fn panel(_: usize, m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool) {
        rows!(V4, 2, [1 2 3 4 5 6], m, taps, depth, o, add)
    }
}

#[cfg(test)]
impl Panel for crate::simd::Plain<16> {
    unsafe fn panel(columns: usize, m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool) {
        wide!(crate::simd::Plain<16>, columns, m, taps, depth, o, add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{CHANNELS, Simd, dispatch};
    use pauc_testing::Rounded;
    use proptest::prelude::*;

    #[inline(always)]
    unsafe fn panel<V: Panel>(columns: usize, m: usize, taps: &[Tap], depth: usize, o: Operands, add: bool) {
        // SAFETY: the test passes slices that are long enough.
        unsafe { V::panel(columns, m, taps, depth, o, add) }
    }

    proptest! {
        #![proptest_config(pauc_testing::property::cases(256))]

        #[test]
        fn equals_the_loops(m in 1usize..40, depth in 0usize..20, width in 1usize..7, a_row in 1usize..9, add: bool, n_taps in 1usize..4) {
            let channels = width * CHANNELS;
            let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
            let a_step = 3;
            let taps: Vec<Tap> = (0..n_taps).map(|t| Tap { a: t * 5, b: t * 7 * channels }).collect();
            let a: Vec<f32> = (0..m * a_row + depth * a_step + 20).map(value).collect();
            let b: Vec<f32> = (0..(depth + 30) * channels).map(|i| value(i + 11)).collect();
            for simd in Simd::all() {
                let columns = simd.panel(channels);
                let mut c: Vec<f32> = (0..m * channels).map(|i| value(i + 5)).collect();
                let before = c.clone();
                for j in (0..channels).step_by(columns) {
                    let o = Operands {
                        a: a.as_ptr(), a_row, a_step,
                        b: b[j..].as_ptr(), b_step: channels,
                        c: c[j..].as_mut_ptr(), c_row: channels,
                    };
                    let list: &[Tap] = &taps;
                    dispatch!(simd => panel(columns: usize, m: usize, list: &[Tap], depth: usize, o: Operands, add: bool));
                }
                for i in 0..m { for j in 0..channels {
                    let pair = |t: &Tap, k: usize| (a[t.a + i * a_row + k * a_step], b[t.b + k * channels + j]);
                    let pairs = taps.iter().flat_map(|t| (0..depth).map(move |k| pair(t, k)));
                    let start = (Rounded::exact(if add { before[i * channels + j] } else { 0.0 }), Rounded::exact(1.0));
                    let pairs = pairs.map(|(a, b)| (Rounded::exact(a), Rounded::exact(b)));
                    let (got, want) = (c[i * channels + j], Rounded::dot(pairs.chain([start])));
                    prop_assert!(want.admits(got), "{} {i} {j}: got {got}, expected {want}", simd.name());
                } }
            }
        }
    }
}
