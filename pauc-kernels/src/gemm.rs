//! Matrix products of strided slices, by the `gemm` crate (AVX-512, AVX2 or NEON, chosen at run time). If
//! [`crate::simd::VARIABLE`] is `portable`, plain loops instead, which give the same bits on every machine.

use crate::simd::{Level, Simd};

/// A matrix inside a slice: element (i, j) is at `start + i·rows + j·cols`.
#[derive(Clone, Copy, Debug)]
pub struct Strides {
    /// The index of element (0, 0).
    pub start: usize,
    /// The distance between adjacent rows.
    pub rows: usize,
    /// The distance between adjacent columns.
    pub cols: usize,
}

impl Strides {
    /// A row-major matrix with `width` columns.
    pub const fn row_major(width: usize) -> Self {
        Strides { start: 0, rows: width, cols: 1 }
    }

    /// The transpose of a row-major matrix with `width` columns.
    pub const fn transposed(width: usize) -> Self {
        Strides { start: 0, rows: 1, cols: width }
    }

    /// The same strides from another start.
    pub const fn from(self, start: usize) -> Self {
        Strides { start, ..self }
    }

    fn fits(&self, m: usize, n: usize, len: usize) -> bool {
        m == 0 || n == 0 || self.start + (m - 1) * self.rows + (n - 1) * self.cols < len
    }
}

/// Computes C ← alpha·A·B + beta·C on one thread, with A of m×k, B of k×n, C of m×n. With `beta` 0, C is not
/// read.
///
/// # Shapes
/// A (m, k), B (k, n), C (m, n), each in its slice according to its strides
///
/// # Panics
/// If a matrix reaches beyond its slice, or C's elements overlap.
pub fn gemm(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    (a, sa): (&[f32], Strides),
    (b, sb): (&[f32], Strides),
    beta: f32,
    (c, sc): (&mut [f32], Strides),
) {
    assert!(sa.fits(m, k, a.len()), "A, {m}×{k} with {sa:?}, exceeds its {} values", a.len());
    assert!(sb.fits(k, n, b.len()), "B, {k}×{n} with {sb:?}, exceeds its {} values", b.len());
    assert!(sc.fits(m, n, c.len()), "C, {m}×{n} with {sc:?}, exceeds its {} values", c.len());
    let overlap = (sc.cols == 0 && n > 1) || (sc.rows == 0 && m > 1);
    let disjoint = sc.rows >= n * sc.cols || sc.cols >= m * sc.rows || m <= 1 || n <= 1;
    assert!(!overlap && disjoint, "C overlaps itself: {sc:?}");
    if m == 0 || n == 0 {
        return;
    }
    if Simd::active().level() == Level::Portable {
        return plain((m, n, k), alpha, (a, sa), (b, sb), beta, (c, sc));
    }
    // SAFETY: the assertions above keep every element that gemm reads or writes inside the slices. C is
    // borrowed mutably and does not overlap itself. A and B are borrowed for the duration of the call.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr().add(sc.start),
            sc.cols as isize,
            sc.rows as isize,
            beta != 0.0,
            a.as_ptr().add(sa.start),
            sa.cols as isize,
            sa.rows as isize,
            b.as_ptr().add(sb.start),
            sb.cols as isize,
            sb.rows as isize,
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// [`gemm`] by definition, in a fixed order.
fn plain(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    (a, sa): (&[f32], Strides),
    (b, sb): (&[f32], Strides),
    beta: f32,
    (c, sc): (&mut [f32], Strides),
) {
    let mut row = vec![0.0f32; n];
    for i in 0..m {
        row.fill(0.0);
        for l in 0..k {
            let factor = a[sa.start + i * sa.rows + l * sa.cols];
            let source = &b[sb.start + l * sb.rows..];
            if sb.cols == 1 {
                row.iter_mut().zip(source).for_each(|(r, b)| *r += factor * b);
            } else {
                row.iter_mut().zip(source.iter().step_by(sb.cols)).for_each(|(r, b)| *r += factor * b);
            }
        }
        for (j, r) in row.iter().enumerate() {
            let c = &mut c[sc.start + i * sc.rows + j * sc.cols];
            *c = alpha * r + if beta == 0.0 { 0.0 } else { beta * *c };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::Rounded;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(pauc_testing::property::cases(256))]

        #[test]
        fn equals_the_triple_loop(m in 1usize..9, n in 1usize..19, k in 0usize..33, ta: bool, tb: bool, beta in -1i8..2) {
            let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 7)).collect();
            let mut c: Vec<f32> = (0..m * n).map(|i| value(i + 3)).collect();
            let sa = if ta { Strides::transposed(m) } else { Strides::row_major(k) };
            let sb = if tb { Strides::transposed(k) } else { Strides::row_major(n) };
            let start = c.clone();
            let exact = Rounded::exact;
            let want: Vec<Rounded> = (0..m * n).map(|element| {
                let (i, j) = (element / n, element % n);
                let pair = |l: usize| (exact(a[i * sa.rows + l * sa.cols]), exact(b[l * sb.rows + j * sb.cols]));
                exact(0.5) * Rounded::dot((0..k).map(pair)) + exact(beta as f32) * exact(start[element])
            }).collect();
            for product in [gemm, plain] {
                c.copy_from_slice(&start);
                product((m, n, k), 0.5, (&a, sa), (&b, sb), beta as f32, (&mut c, Strides::row_major(n)));
                for (got, want) in c.iter().zip(&want) { prop_assert!(want.admits(*got), "got {got}, expected {want}"); }
            }
        }
    }
}
