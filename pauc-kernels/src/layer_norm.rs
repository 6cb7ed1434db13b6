//! Layer normalization of rows: y = (x − mean)/√(variance + ε)·γ + β, with the moments of each row.
//!
//! These functions run on the calling thread. Others call them for the rows that they are working on, or
//! [`forward`] and [`backward`] for all rows at once.

use crate::simd::{Simd, Vector, dispatch};
use crate::threads::{self, Shared};

/// ε, as in timm.
pub const EPSILON: f32 = 1e-6;
/// Rows per portion of work.
const ROWS: usize = 256;
/// The widest vector.
const WIDEST: usize = 16;

/// Returns the sum of a vector's values.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn total<V: Vector>(v: V) -> f32 {
    let mut lanes = [0.0f32; WIDEST];
    // SAFETY: no vector is wider.
    unsafe { v.store(lanes.as_mut_ptr()) };
    lanes[..V::LANES].iter().sum()
}

/// Returns mean and 1/√(variance + ε) of a row.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn moments<V: Vector>(x: &[f32]) -> (f32, f32) {
    let (whole, count) = (x.len() / V::LANES * V::LANES, x.len() as f32);
    // SAFETY: `i` is the start of a whole vector of the row.
    unsafe {
        let mut sum = V::splat(0.0);
        for i in (0..whole).step_by(V::LANES) {
            sum = sum.add(V::load(x.as_ptr().add(i)));
        }
        let mean = (total(sum) + x[whole..].iter().sum::<f32>()) / count;
        let (center, mut squares) = (V::splat(mean), V::splat(0.0));
        for i in (0..whole).step_by(V::LANES) {
            let d = V::load(x.as_ptr().add(i)).sub(center);
            squares = d.mul_add(d, squares);
        }
        let rest: f32 = x[whole..].iter().map(|v| (v - mean) * (v - mean)).sum();
        (mean, 1.0 / ((total(squares) + rest) / count + EPSILON).sqrt())
    }
}

/// Normalizes rows.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn normalize_rows<V: Vector>(x: &[f32], affine: [&[f32]; 2], y: &mut [f32]) {
    let [gamma, beta] = affine;
    let width = gamma.len();
    let whole = width / V::LANES * V::LANES;
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        // SAFETY: the rows have `width` values, as γ and β, and `i` is the start of a whole vector of them.
        unsafe {
            let (mean, inverse) = moments::<V>(x);
            let (m, s) = (V::splat(mean), V::splat(inverse));
            for i in (0..whole).step_by(V::LANES) {
                let x_hat = V::load(x.as_ptr().add(i)).sub(m).mul(s);
                let y = y.as_mut_ptr().add(i);
                x_hat.mul_add(V::load(gamma.as_ptr().add(i)), V::load(beta.as_ptr().add(i))).store(y);
            }
            for i in whole..width {
                y[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
            }
        }
    }
}

/// Replaces output gradients by input gradients, and adds to the sums of the gradients of γ and β.
///
/// # Safety
/// [`Vector`]'s contract.
#[inline(always)]
unsafe fn gradient_rows<V: Vector>(x: &[f32], gamma: &[f32], dy: &mut [f32], sums: [&mut [f32]; 2]) {
    let [d_gamma, d_beta] = sums;
    let width = gamma.len();
    let whole = width / V::LANES * V::LANES;
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact_mut(width)) {
        // SAFETY: all have `width` values, and `i` is the start of a whole vector of them.
        unsafe {
            let (mean, inverse) = moments::<V>(x);
            let (m, s) = (V::splat(mean), V::splat(inverse));
            let (mut sum, mut product) = (V::splat(0.0), V::splat(0.0));
            for i in (0..whole).step_by(V::LANES) {
                let x_hat = V::load(x.as_ptr().add(i)).sub(m).mul(s);
                let (g, gamma) = (V::load(dy.as_ptr().add(i)), V::load(gamma.as_ptr().add(i)));
                let [to_gamma, to_beta] = [d_gamma.as_mut_ptr().add(i), d_beta.as_mut_ptr().add(i)];
                x_hat.mul_add(g, V::load(to_gamma)).store(to_gamma);
                V::load(to_beta).add(g).store(to_beta);
                let scaled = g.mul(gamma);
                sum = sum.add(scaled);
                product = scaled.mul_add(x_hat, product);
            }
            let (mut sum, mut product) = (total(sum), total(product));
            for i in whole..width {
                let (x_hat, g) = ((x[i] - mean) * inverse, dy[i]);
                d_gamma[i] += g * x_hat;
                d_beta[i] += g;
                sum += g * gamma[i];
                product += g * gamma[i] * x_hat;
            }
            let [sum, product] = [sum, product].map(|v| v / width as f32);
            let (a, b) = (V::splat(sum), V::splat(product));
            for i in (0..whole).step_by(V::LANES) {
                let x_hat = V::load(x.as_ptr().add(i)).sub(m).mul(s);
                let to = dy.as_mut_ptr().add(i);
                let scaled = V::load(to).mul(V::load(gamma.as_ptr().add(i)));
                scaled.sub(a).sub(x_hat.mul(b)).mul(s).store(to);
            }
            for i in whole..width {
                let x_hat = (x[i] - mean) * inverse;
                dy[i] = (dy[i] * gamma[i] - sum - x_hat * product) * inverse;
            }
        }
    }
}

/// y ← (x − mean)/√(variance + ε)·γ + β of each row, on this thread.
///
/// # Shapes
/// x and y (rows, width), γ and β (width)
///
/// # Panics
/// If a slice does not have its shape's length.
pub(crate) fn rows(simd: Simd, x: &[f32], affine: [&[f32]; 2], y: &mut [f32]) {
    check(x, affine[0].len(), y.len());
    assert_eq!(affine[0].len(), affine[1].len(), "γ and β");
    dispatch!(simd => normalize_rows(x: &[f32], affine: [&[f32]; 2], y: &mut [f32]));
}

/// ∂y ← the gradient of the input of [`rows`]; sums ← sums + the gradients of γ and β. On this thread.
///
/// # Shapes
/// x and ∂y (rows, width), γ (width), sums (width) each
///
/// # Panics
/// If a slice does not have its shape's length.
pub(crate) fn rows_backward(simd: Simd, x: &[f32], gamma: &[f32], dy: &mut [f32], sums: [&mut [f32]; 2]) {
    check(x, gamma.len(), dy.len());
    assert!(sums.iter().all(|s| s.len() == gamma.len()), "gradients of γ and β");
    dispatch!(simd => gradient_rows(x: &[f32], gamma: &[f32], dy: &mut [f32], sums: [&mut [f32]; 2]));
}

fn check(x: &[f32], width: usize, others: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values are no rows of {width}", x.len());
    assert_eq!(x.len(), others, "rows of {width}");
}

/// As `rows`, on all threads.
///
/// # Shapes
/// x and y (rows, width), γ and β (width)
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn forward(simd: Simd, x: &[f32], affine: [&[f32]; 2], y: &mut [f32]) {
    let width = affine[0].len();
    check(x, width, y.len());
    let y = Shared::new(y);
    threads::for_each(x.len().div_ceil(ROWS * width), |i| {
        let part = i * ROWS * width..x.len().min((i + 1) * ROWS * width);
        // SAFETY: portions are different rows.
        rows(simd, &x[part.clone()], affine, unsafe { y.part(part) });
    });
}

/// ∂y ← the gradient of the input of [`forward`]; adds to those of γ and β.
///
/// # Shapes
/// x and ∂y (rows, width), γ, ∂γ and ∂β (width)
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn backward(simd: Simd, x: &[f32], gamma: &[f32], dy: &mut [f32], gradients: [&mut [f32]; 2]) {
    let width = gamma.len();
    check(x, width, dy.len());
    let portions = x.len().div_ceil(ROWS * width);
    let mut sums = vec![0.0; portions * 2 * width];
    let (dy, shared) = (Shared::new(dy), Shared::new(&mut sums));
    threads::for_each(portions, |i| {
        let part = i * ROWS * width..x.len().min((i + 1) * ROWS * width);
        // SAFETY: portions are different rows, and have sums of their own.
        let (dy, sums) = unsafe { (dy.part(part.clone()), shared.part(2 * i * width..2 * (i + 1) * width)) };
        let (to_gamma, to_beta) = sums.split_at_mut(width);
        rows_backward(simd, &x[part], gamma, dy, [to_gamma, to_beta]);
    });
    let [d_gamma, d_beta] = gradients;
    add_sums(&sums, [d_gamma, d_beta]);
}

/// Adds rows of sums in order, in `f64`. A row has the sums of each gradient, one after the other.
///
/// # Panics
/// If the length of the rows is not that of the gradients together.
pub(crate) fn add_sums<const N: usize>(sums: &[f32], gradients: [&mut [f32]; N]) {
    let row: usize = gradients.iter().map(|g| g.len()).sum();
    assert!(sums.len().is_multiple_of(row), "{} sums in rows of {row}", sums.len());
    let mut start = 0;
    for gradient in gradients {
        for (i, d) in gradient.iter_mut().enumerate() {
            let sum: f64 = sums[start + i..].iter().step_by(row).map(|v| f64::from(*v)).sum();
            *d += sum as f32;
        }
        start += gradient.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::noise;
    use pauc_testing::{Rounded, property};
    use proptest::prelude::*;

    /// A row's values by definition, with the rounding of the same steps in `f32`.
    struct Row {
        normed: Vec<Rounded>,
        inverse: Rounded,
    }

    fn row(x: &[f32]) -> Row {
        let count = Rounded::exact(x.len() as f32);
        let x: Vec<Rounded> = x.iter().map(|v| Rounded::exact(*v)).collect();
        let mean = Rounded::sum(x.iter().copied()) / count;
        let centered: Vec<Rounded> = x.iter().map(|v| *v - mean).collect();
        let variance = Rounded::sum(centered.iter().map(|d| *d * *d)) / count;
        let inverse = Rounded::exact(1.0) / (variance + Rounded::exact(EPSILON)).sqrt();
        Row { normed: centered.iter().map(|d| *d * inverse).collect(), inverse }
    }

    fn compare(name: &str, got: &[f32], want: &[Rounded]) -> Result<(), TestCaseError> {
        prop_assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            prop_assert!(want.admits(*got), "{name} {i}: got {got}, expected {want}");
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(property::cases(128))]

        #[test]
        fn equals_the_definition(rows in property::size(1..600), width in property::size(2..50), seed in 0u64..1000) {
            let n = rows * width;
            let (x, g, gamma, beta) =
                (noise(n, seed), noise(n, seed + 1), noise(width, seed + 2), noise(width, seed + 3));
            let exact = Rounded::exact;
            let all: Vec<Row> = x.chunks(width).map(row).collect();
            let y: Vec<Rounded> = all
                .iter()
                .flat_map(|r| (0..width).map(|i| r.normed[i] * exact(gamma[i]) + exact(beta[i])))
                .collect();
            let scaled = |r: usize, i: usize| exact(g[r * width + i]) * exact(gamma[i]);
            let count = exact(width as f32);
            let mut dx = Vec::new();
            for (r, row) in all.iter().enumerate() {
                let mean = Rounded::sum((0..width).map(|i| scaled(r, i))) / count;
                let product = Rounded::sum((0..width).map(|i| scaled(r, i) * row.normed[i])) / count;
                dx.extend((0..width).map(|i| (scaled(r, i) - mean - row.normed[i] * product) * row.inverse));
            }
            let over_rows = |term: &dyn Fn(usize, usize) -> Rounded| -> Vec<Rounded> {
                (0..width).map(|i| Rounded::sum((0..rows).map(|r| term(r, i)).chain([exact(0.5)]))).collect()
            };
            let d_gamma = over_rows(&|r, i| exact(g[r * width + i]) * all[r].normed[i]);
            let d_beta = over_rows(&|r, i| exact(g[r * width + i]));
            for simd in Simd::all().iter().copied() {
                let mut got = vec![f32::NAN; n];
                forward(simd, &x, [&gamma, &beta], &mut got);
                compare("output", &got, &y)?;
                let (mut dy, mut to_gamma, mut to_beta) = (g.clone(), vec![0.5; width], vec![0.5; width]);
                backward(simd, &x, &gamma, &mut dy, [&mut to_gamma, &mut to_beta]);
                compare("input gradient", &dy, &dx)?;
                compare("γ", &to_gamma, &d_gamma)?;
                compare("β", &to_beta, &d_beta)?;
            }
        }
    }
}
