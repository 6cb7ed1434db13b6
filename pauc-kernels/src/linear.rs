//! Fully connected layers, batch normalization of feature columns and ReLU, on row-major matrices.
//!
//! Work is divided into blocks of rows or columns by shape alone, independent of the number of threads. Every
//! sum runs through its block in order. Sums over the batch are in `f64`.

use crate::gemm::{Strides, gemm};
use crate::threads::Each;
use rayon::prelude::*;

/// Columns per unit of work, or rows of an element-wise pass.
const BLOCK: usize = 64;

/// Returns the rows per unit of work in a product of `rows` rows. Each unit packs the other matrix again, so
/// few large units do less work, while many small ones keep more threads busy.
fn product_block(rows: usize) -> usize {
    (rows / 4).next_multiple_of(16).clamp(64, 256)
}

/// y ← x·Wᵀ + b.
///
/// # Shapes
/// x (rows, inputs), W (outputs, inputs), b (outputs), y (rows, outputs)
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn linear(
    (inputs, outputs): (usize, usize),
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let rows = rows_of(x, inputs);
    assert_eq!((y.len(), weight.len()), (rows * outputs, outputs * inputs), "linear: {inputs} → {outputs}");
    if y.is_empty() {
        return;
    }
    let block = product_block(rows);
    y.par_chunks_mut(block * outputs).zip(x.par_chunks(block * inputs)).each(|(y, x)| {
        if let Some(bias) = bias {
            y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
        }
        let (a, b) = ((x, Strides::row_major(inputs)), (weight, Strides::transposed(inputs)));
        let beta = if bias.is_some() { 1.0 } else { 0.0 };
        let size = (y.len() / outputs, outputs, inputs);
        gemm(size, 1.0, a, b, beta, (y, Strides::row_major(outputs)));
    });
}

/// ∂x ← ∂y·W.
///
/// # Shapes
/// ∂y (rows, outputs), W (outputs, inputs), ∂x (rows, inputs)
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn linear_input_gradient((inputs, outputs): (usize, usize), dy: &[f32], weight: &[f32], dx: &mut [f32]) {
    let rows = rows_of(dy, outputs);
    assert_eq!((dx.len(), weight.len()), (rows * inputs, outputs * inputs), "linear: {inputs} → {outputs}");
    if dx.is_empty() {
        return;
    }
    let block = product_block(rows);
    dx.par_chunks_mut(block * inputs).zip(dy.par_chunks(block * outputs)).each(|(dx, dy)| {
        let (a, b) = ((dy, Strides::row_major(outputs)), (weight, Strides::row_major(inputs)));
        let size = (dx.len() / inputs, inputs, outputs);
        gemm(size, 1.0, a, b, 0.0, (dx, Strides::row_major(inputs)));
    });
}

/// ∂W ← ∂W + ∂yᵀ·x.
///
/// # Shapes
/// x (rows, inputs), ∂y (rows, outputs), ∂W (outputs, inputs)
///
/// # Panics
/// If a slice does not have its shape's length.
pub fn linear_weight_gradient((inputs, outputs): (usize, usize), x: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let rows = rows_of(x, inputs);
    assert_eq!((dy.len(), dweight.len()), (rows * outputs, outputs * inputs), "linear: {inputs} → {outputs}");
    if rows == 0 || dweight.is_empty() {
        return;
    }
    let block = product_block(outputs);
    dweight.par_chunks_mut(block * inputs).enumerate().each(|(i, dweight)| {
        let a = (dy, Strides::transposed(outputs).from(i * block));
        let size = (dweight.len() / inputs, inputs, rows);
        gemm(size, 1.0, a, (x, Strides::row_major(inputs)), 1.0, (dweight, Strides::row_major(inputs)));
    });
}

/// ∂b ← ∂b + Σ_rows ∂y.
///
/// # Shapes
/// ∂y (rows, outputs), ∂b (outputs)
pub fn bias_gradient(dy: &[f32], dbias: &mut [f32]) {
    let width = dbias.len();
    rows_of(dy, width);
    dbias.par_chunks_mut(BLOCK).enumerate().each(|(block, dbias)| {
        let mut sums = [0f64; BLOCK];
        for row in column_block(dy, width, block, dbias.len()) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        }
        dbias.iter_mut().zip(sums).for_each(|(d, s)| *d += s as f32);
    });
}

/// Computes the mean and the biased variance of each column.
///
/// # Shapes
/// x (rows, width), mean (width), variance (width)
pub fn moments(x: &[f32], mean: &mut [f32], variance: &mut [f32]) {
    let width = mean.len();
    assert_eq!(variance.len(), width, "moments");
    let rows = rows_of(x, width) as f64;
    let [center, squares] = centered_squares(x, width);
    mean.iter_mut().zip(center).for_each(|(m, c)| *m = c as f32);
    variance.iter_mut().zip(squares).for_each(|(v, s)| *v = (s / rows) as f32);
}

/// Returns the mean of each column, and the sum of squared distances from it.
///
/// # Shapes
/// x (rows, width) → width each
pub fn centered_squares(x: &[f32], width: usize) -> [Vec<f64>; 2] {
    let rows = rows_of(x, width) as f64;
    let [mut mean, mut squares] = [(); 2].map(|()| vec![0f64; width]);
    mean.par_chunks_mut(BLOCK).zip(squares.par_chunks_mut(BLOCK)).enumerate().each(
        |(block, (mean, squares))| {
            for row in column_block(x, width, block, mean.len()) {
                mean.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
            }
            mean.iter_mut().for_each(|s| *s /= rows);
            for row in column_block(x, width, block, mean.len()) {
                for ((s, v), c) in squares.iter_mut().zip(row).zip(&*mean) {
                    *s += (f64::from(*v) - c).powi(2);
                }
            }
        },
    );
    [mean, squares]
}

/// x ← (x − mean)/√(variance + ε), column by column.
///
/// # Shapes
/// x (rows, width), mean (width), variance (width)
pub fn standardize(x: &mut [f32], mean: &[f32], variance: &[f32], epsilon: f32) {
    let width = mean.len();
    assert_eq!(variance.len(), width, "standardize");
    rows_of(x, width);
    let scale = inverse_deviation(variance, epsilon);
    x.par_chunks_mut(BLOCK * width).each(|rows| {
        for row in rows.chunks_exact_mut(width) {
            for ((v, m), s) in row.iter_mut().zip(mean).zip(&scale) {
                *v = (*v - m) * s;
            }
        }
    });
}

/// y ← γ·x̂ + β, column by column, then ReLU if `rectify`.
///
/// # Shapes
/// x̂ (rows, width), γ (width), β (width), y (rows, width)
pub fn scale_and_shift(x_hat: &[f32], gamma: &[f32], beta: &[f32], rectify: bool, y: &mut [f32]) {
    let width = gamma.len();
    rows_of(x_hat, width);
    assert_eq!((beta.len(), y.len()), (width, x_hat.len()), "scale_and_shift");
    y.par_chunks_mut(BLOCK * width).zip(x_hat.par_chunks(BLOCK * width)).each(|(y, x_hat)| {
        for (y, x_hat) in y.chunks_exact_mut(width).zip(x_hat.chunks_exact(width)) {
            for (((y, x), g), b) in y.iter_mut().zip(x_hat).zip(gamma).zip(beta) {
                *y = g * x + b;
            }
        }
        if rectify {
            relu(y);
        }
    });
}

/// The backward pass of batch normalization with batch statistics: accumulates ∂γ and ∂β, and replaces ∂y by
/// ∂x = γ/√(variance + ε)·(∂y − mean(∂y) − x̂·mean(∂y·x̂)).
///
/// # Shapes
/// x̂ (rows, width), ∂y (rows, width); γ, variance, ∂γ, ∂β (width)
pub fn batch_norm_backward(
    x_hat: &[f32],
    gamma: &[f32],
    variance: &[f32],
    epsilon: f32,
    dy: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let width = gamma.len();
    let rows = rows_of(x_hat, width);
    assert_eq!(
        (dy.len(), variance.len(), dgamma.len(), dbeta.len()),
        (x_hat.len(), width, width, width),
        "batch_norm_backward"
    );
    if rows == 0 {
        return;
    }
    let sums = batch_norm_sums(x_hat, dy, dgamma, dbeta);
    batch_norm_input_gradient(x_hat, gamma, (variance, epsilon), (&sums, rows), dy);
}

/// The first half of [`batch_norm_backward`]: accumulates ∂γ and ∂β, and returns Σ∂y and Σ∂y·x̂ of each column.
///
/// # Shapes
/// x̂ (rows, width), ∂y (rows, width); ∂γ and ∂β (width)
pub fn batch_norm_sums(x_hat: &[f32], dy: &[f32], dgamma: &mut [f32], dbeta: &mut [f32]) -> Vec<[f64; 2]> {
    let width = dgamma.len();
    assert_eq!((dbeta.len(), dy.len()), (width, x_hat.len()), "batch_norm_sums");
    let mut sums = vec![[0f64; 2]; width];
    let columns = dgamma.par_chunks_mut(BLOCK).zip(dbeta.par_chunks_mut(BLOCK));
    sums.par_chunks_mut(BLOCK).zip(columns).enumerate().each(|(block, (sums, (dgamma, dbeta)))| {
        let pairs = column_block(dy, width, block, sums.len());
        for (dy, x) in pairs.zip(column_block(x_hat, width, block, sums.len())) {
            for ((s, d), x) in sums.iter_mut().zip(dy).zip(x) {
                s[0] += f64::from(*d);
                s[1] += f64::from(*d) * f64::from(*x);
            }
        }
        for ((g, b), s) in dgamma.iter_mut().zip(dbeta).zip(sums) {
            *b += s[0] as f32;
            *g += s[1] as f32;
        }
    });
    sums
}

/// The second half of [`batch_norm_backward`]: replaces ∂y by ∂x, given the sums over a batch of `count` rows, of which
/// these rows may be a part.
///
/// # Shapes
/// x̂ (rows, width), ∂y (rows, width); γ, variance and sums (width)
pub fn batch_norm_input_gradient(
    x_hat: &[f32],
    gamma: &[f32],
    (variance, epsilon): (&[f32], f32),
    (sums, count): (&[[f64; 2]], usize),
    dy: &mut [f32],
) {
    let width = gamma.len();
    assert_eq!(
        (dy.len(), variance.len(), sums.len()),
        (x_hat.len(), width, width),
        "batch_norm_input_gradient"
    );
    let means: Vec<[f32; 2]> = sums.iter().map(|s| s.map(|s| (s / count as f64) as f32)).collect();
    let scale: Vec<f32> =
        inverse_deviation(variance, epsilon).iter().zip(gamma).map(|(s, g)| s * g).collect();
    dy.par_chunks_mut(BLOCK * width).zip(x_hat.par_chunks(BLOCK * width)).each(|(dy, x_hat)| {
        for (dy, x_hat) in dy.chunks_exact_mut(width).zip(x_hat.chunks_exact(width)) {
            for (((d, x), s), [m, mx]) in dy.iter_mut().zip(x_hat).zip(&scale).zip(&means) {
                *d = s * (*d - m - x * mx);
            }
        }
    });
}

/// y ← max(y, 0); NaN stays NaN.
pub fn relu(y: &mut [f32]) {
    y.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v });
}

/// ∂y ← 0 where the rectified output y is zero.
///
/// # Shapes
/// y n, ∂y n
pub fn relu_backward(y: &[f32], dy: &mut [f32]) {
    dy.iter_mut().zip(y).for_each(|(d, v)| *d = if *v <= 0.0 { 0.0 } else { *d });
}

fn inverse_deviation(variance: &[f32], epsilon: f32) -> Vec<f32> {
    variance.iter().map(|v| 1.0 / (v + epsilon).sqrt()).collect()
}

fn rows_of(x: &[f32], width: usize) -> usize {
    let rows = x.len().checked_div(width).unwrap_or(0);
    assert_eq!(x.len(), rows * width, "{} values do not form rows of {width}", x.len());
    rows
}

/// Returns the rows of a block of columns.
fn column_block(x: &[f32], width: usize, block: usize, columns: usize) -> impl Iterator<Item = &[f32]> {
    let start = block * BLOCK;
    x.chunks_exact(width).map(move |row| &row[start..start + columns])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norm::oracle::{self, Channel};
    use pauc_testing::inputs::wave;
    use pauc_testing::{Rounded, assert_within, tolerance};
    use proptest::prelude::*;

    fn admitted(got: &[f32], want: &[Rounded]) {
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(want.admits(*got), "{i}: got {got}, expected {want}");
        }
    }

    proptest! {
        #![proptest_config(pauc_testing::property::cases(256))]

        #[test]
        fn linear_layers_equal_the_loops(rows in 0usize..140, inputs in 1usize..9, outputs in 1usize..70, biased: bool) {
            let (x, w, b) = (wave(rows * inputs, 0.1, 1.7), wave(outputs * inputs, 0.7, 1.7), wave(outputs, 2.0, 1.7));
            let dy = wave(rows * outputs, 4.0, 1.7);
            let element = |m: &[f32], width: usize, i: usize, j: usize| Rounded::exact(m[i * width + j]);
            // The start value is one of the terms of the sum.
            let sum = |start: f32, n: usize, f: &dyn Fn(usize) -> Rounded| {
                Rounded::sum((0..n).map(f).chain([Rounded::exact(start)]))
            };
            let table = |m: usize, n: usize, f: &dyn Fn(usize, usize) -> Rounded| -> Vec<Rounded> {
                (0..m * n).map(|i| f(i / n, i % n)).collect()
            };
            let mut y = vec![f32::NAN; rows * outputs];
            linear((inputs, outputs), &x, &w, biased.then_some(&b[..]), &mut y);
            admitted(&y, &table(rows, outputs, &|i, o| {
                sum(if biased { b[o] } else { 0.0 }, inputs, &|k| element(&x, inputs, i, k) * element(&w, inputs, o, k))
            }));
            let mut dx = vec![f32::NAN; rows * inputs];
            linear_input_gradient((inputs, outputs), &dy, &w, &mut dx);
            admitted(&dx, &table(rows, inputs, &|i, k| sum(0.0, outputs, &|o| element(&dy, outputs, i, o) * element(&w, inputs, o, k))));
            let mut dw = vec![1.0; outputs * inputs];
            linear_weight_gradient((inputs, outputs), &x, &dy, &mut dw);
            admitted(&dw, &table(outputs, inputs, &|o, k| {
                sum(1.0, rows, &|i| element(&dy, outputs, i, o) * element(&x, inputs, i, k))
            }));
            let mut db = vec![1.0; outputs];
            bias_gradient(&dy, &mut db);
            admitted(&db, &table(1, outputs, &|_, o| sum(1.0, rows, &|i| element(&dy, outputs, i, o))));
        }
    }

    /// Σ_ij G_ij·(γ_j·x̂_ij + β_j) in f64.
    fn objective(x: &[f64], width: usize, gamma: &[f64], beta: &[f64], g: &[f32], epsilon: f64) -> f64 {
        let rows = x.len() / width;
        let mut total = 0.0;
        for j in 0..width {
            let column: Vec<f64> = (0..rows).map(|i| x[i * width + j]).collect();
            let mean = column.iter().sum::<f64>() / rows as f64;
            let variance = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / rows as f64;
            for (i, v) in column.iter().enumerate() {
                let x_hat = (v - mean) / (variance + epsilon).sqrt();
                total += f64::from(g[i * width + j]) * (gamma[j] * x_hat + beta[j]);
            }
        }
        total
    }

    #[test]
    fn batch_normalization_agrees_with_finite_differences() {
        let (rows, width, epsilon) = (5, 67, 1e-5);
        let (x, g) = (wave(rows * width, 0.3, 1.7), wave(rows * width, 1.1, 1.7));
        let (gamma, beta) = (wave(width, 2.2, 1.7), wave(width, 3.3, 1.7));
        let (mut mean, mut variance) = (vec![0.0; width], vec![0.0; width]);
        moments(&x, &mut mean, &mut variance);
        let (mut x_hat, mut y) = (x.clone(), vec![0.0; rows * width]);
        standardize(&mut x_hat, &mean, &variance, epsilon);
        scale_and_shift(&x_hat, &gamma, &beta, false, &mut y);
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let (x, gamma64, beta64) = (wide(&x), wide(&gamma), wide(&beta));
        let value =
            |x: &[f64], gamma: &[f64], beta: &[f64]| objective(x, width, gamma, beta, &g, f64::from(epsilon));
        let column = |m: &[f32], j: usize| m.iter().skip(j).step_by(width).copied().collect::<Vec<f32>>();
        let (x32, narrow) =
            (wave(rows * width, 0.3, 1.7), |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<_>>());
        let (gamma32, beta32) = (narrow(&gamma64), narrow(&beta64));
        let channel = |j: usize| {
            let (mean, variance) = oracle::moments(&column(&x32, j));
            Channel { mean, variance, gamma: gamma32[j], beta: beta32[j], epsilon: f64::from(epsilon) }
        };
        for j in 0..width {
            let want: Vec<Rounded> = column(&x32, j).iter().map(|x| channel(j).apply(*x)).collect();
            admitted(&column(&y, j), &want);
        }
        let (mut dx, mut dgamma, mut dbeta) = (g.clone(), vec![0.5; width], vec![0.5; width]);
        batch_norm_backward(&x_hat, &gamma, &variance, epsilon, &mut dx, &mut dgamma, &mut dbeta);
        const STEP: f64 = 1e-5;
        let numeric = |point: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
            let shifted = |i: usize, by: f64| {
                let mut point = point.to_vec();
                point[i] += by;
                f(&point)
            };
            (0..point.len()).map(|i| (shifted(i, STEP) - shifted(i, -STEP)) / (2.0 * STEP)).collect()
        };
        // Each of the sum's rows·width terms is at most 1·(1·2 + 1) and the result of ten operations. With
        // deviations above 0.3, the third derivative stays below 1/0.3³ times the 15 ways to differentiate a
        // quotient three times.
        let terms = rows * width;
        let off = tolerance::central_difference(STEP, 600.0, terms + 10, 3.0 * terms as f64);
        let near = |got: &[f32], numeric: &[f64], error: &dyn Fn(usize) -> f64| {
            for (i, (got, want)) in got.iter().zip(numeric).enumerate() {
                assert_within!(*got, *want, off + error(i), "{i}");
            }
        };
        let expected: Vec<_> =
            (0..width).map(|j| channel(j).gradients(&column(&g, j), &column(&x32, j))).collect();
        let half = |expected: Rounded| (Rounded::exact(0.5) + expected).error;
        let plus = |v: Vec<f64>| v.iter().map(|v| v + 0.5).collect::<Vec<_>>();
        near(&dx, &numeric(&x, &|x| value(x, &gamma64, &beta64)), &|i| {
            expected[i % width].input[i / width].error
        });
        near(&dgamma, &plus(numeric(&gamma64, &|gamma| value(&x, gamma, &beta64))), &|j| {
            half(expected[j].gamma)
        });
        near(&dbeta, &plus(numeric(&beta64, &|beta| value(&x, &gamma64, beta))), &|j| half(expected[j].beta));
    }

    #[test]
    fn rectification_masks_and_keeps_nan() {
        let mut y = [-1.0, 0.0, 2.0, f32::NAN];
        relu(&mut y);
        assert!(y[..3] == [0.0, 0.0, 2.0] && y[3].is_nan());
        let mut dy = [5.0; 4];
        relu_backward(&y, &mut dy);
        assert_eq!(dy, [0.0, 0.0, 5.0, 5.0]);
        let mut out = [0.0; 2];
        scale_and_shift(&[1.0, 1.0], &[1.0, -1.0], &[0.5, 0.5], true, &mut out);
        assert_eq!(out, [1.5, 0.0]);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (inputs, outputs, rows) = (70, 130, 200);
        let (x, w, dy) =
            (wave(rows * inputs, 0.0, 1.7), wave(inputs * outputs, 1.0, 1.7), wave(rows * outputs, 2.0, 1.7));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut y, mut dw) = (vec![0.0; rows * outputs], vec![0.0; inputs * outputs]);
                let (mut mean, mut variance) = (vec![0.0; outputs], vec![0.0; outputs]);
                linear((inputs, outputs), &x, &w, None, &mut y);
                linear_weight_gradient((inputs, outputs), &x, &dy, &mut dw);
                moments(&y, &mut mean, &mut variance);
                [y, dw, mean, variance]
            })
        };
        assert_eq!(run(1), run(3));
    }
}
