//! Row operations that several terms share, on matrices whose rows are embeddings.

use dfdx::prelude::*;
use pauc_traits::backend::{Backend, Scalar, Taped, Value};
use pauc_traits::batch::Level;
use pauc_traits::ops::{self, Matrix};
use pauc_traits::{Batch, Result};

/// A matrix with gradient.
pub type Rows<E, D> = Taped<(usize, usize), E, D>;

/// Stands in for −∞ in a masked logit: its exponential is zero, and arithmetic on it does not produce NaN.
pub const MASKED: f64 = -1e30;

/// Returns the rows of a, followed by the rows of b.
///
/// # Shapes
/// (N, D), (M, D) → (N+M, D)
pub fn stack<E: Scalar, D: Backend<E>>(a: Rows<E, D>, b: Rows<E, D>) -> Rows<E, D> {
    (a, b).concat_along(Axis::<0>)
}

/// Returns the columns of a, followed by the columns of b.
///
/// # Shapes
/// (N, A), (N, B) → (N, A+B)
pub fn beside<E: Scalar, D: Backend<E>>(a: Rows<E, D>, b: Rows<E, D>) -> Rows<E, D> {
    (a, b).concat_along(Axis::<1>)
}

/// Returns the given rows, in the given order. A row may appear several times.
///
/// # Shapes
/// (N, D), R indices → (R, D)
///
/// # Panics
/// If an index is not below N.
pub fn gather<E: Scalar, D: Backend<E>, T: Tape<E, D>>(
    m: Matrix<E, D, T>,
    rows: &[usize],
) -> Matrix<E, D, T> {
    let index: Tensor<(usize,), usize, D> = m.device().tensor_from_vec(rows.to_vec(), (rows.len(),));
    m.gather(index)
}

/// Adds [`MASKED`] wherever `hide(row, column)` holds.
pub fn mask<E: Scalar, D: Backend<E>>(logits: Rows<E, D>, hide: impl Fn(usize, usize) -> bool) -> Rows<E, D> {
    let (rows, cols) = *logits.shape();
    let mut values = vec![E::zero(); rows * cols];
    for (n, v) in values.iter_mut().enumerate() {
        if hide(n / cols, n % cols) {
            *v = E::of(MASKED);
        }
    }
    let values = ops::constant(logits.device(), values, (rows, cols));
    logits + values
}

/// Returns a constant with the value of a tensor: no gradient flows through it.
///
/// # Shapes
/// (N, D) → (N, D)
pub fn stop_gradient<E: Scalar, D: Backend<E>>(m: Rows<E, D>) -> Matrix<E, D> {
    // The product with one is a separate tensor, so that no gradient is recorded for the original.
    m.split_tape().0 * E::one()
}

/// ‖a_i − b_j‖² between unit rows, computed as 2 − 2·a_i·b_j and clamped at zero.
///
/// # Shapes
/// (N, D), (M, D) → (N, M)
pub fn squared_distances<E: Scalar, D: Backend<E>>(a: Rows<E, D>, b: Rows<E, D>) -> Rows<E, D> {
    (ops::dot_rows(a, b) * E::of(-2.0) + E::of(2.0)).relu()
}

/// ‖a_i − b_i‖^α, row by row. Below α = 2 the distance is smoothed by 1e-6 at zero, where it has no gradient.
///
/// # Shapes
/// (N, D), (N, D) → (N,)
pub fn distances_to_the<E: Scalar, D: Backend<E>>(
    alpha: f64,
    a: Rows<E, D>,
    b: Rows<E, D>,
) -> Taped<(usize,), E, D> {
    power((a * E::one() - b).square().sum::<(usize,), Axis<1>>(), alpha)
}

/// (d²)^(α/2), smoothed at zero below α = 2.
///
/// # Shapes
/// any shape → the same
pub fn power<E: Scalar, D: Backend<E>, S: Shape>(squared: Taped<S, E, D>, alpha: f64) -> Taped<S, E, D> {
    if alpha == 2.0 {
        squared
    } else if alpha == 1.0 {
        (squared + E::of(ops::NORM_EPSILON)).sqrt()
    } else {
        (squared + E::of(ops::NORM_EPSILON)).powf(alpha / 2.0)
    }
}

/// log(Σ exp(m) / count) over all elements, as a shifted log-sum-exp.
pub fn log_mean_exp<E: Scalar, D: Backend<E>>(m: Rows<E, D>, count: usize) -> Value<E, D> {
    m.logsumexp::<Rank0, Axes2<0, 1>>() - E::of((count as f64).ln())
}

/// ln Σ exp(m) over each row.
///
/// # Shapes
/// (N, M) → (N,)
pub fn log_sum_exp<E: Scalar, D: Backend<E>>(m: Rows<E, D>) -> Taped<(usize,), E, D> {
    m.logsumexp::<(usize,), Axis<1>>()
}

/// Subtracts from x the mean of its column.
pub fn centre<E: Scalar, D: Backend<E>>(x: Rows<E, D>) -> Rows<E, D> {
    let shape = *x.shape();
    let mean = x.with_empty_tape().sum::<(usize,), Axis<0>>() / E::of(shape.0.max(1) as f64);
    x - mean.broadcast_like::<_, Axis<0>>(&shape)
}

/// (x − mean)/√(variance + 1e-5), column by column, with the biased variance.
pub fn standardise<E: Scalar, D: Backend<E>>(x: Rows<E, D>) -> Rows<E, D> {
    let x = centre(x);
    let shape = *x.shape();
    let variance = x.with_empty_tape().square().sum::<(usize,), Axis<0>>() / E::of(shape.0.max(1) as f64);
    x / (variance + E::of(1e-5)).sqrt().broadcast_like::<_, Axis<0>>(&shape)
}

/// √(variance + 1e-4) of each column, with the unbiased variance.
///
/// # Shapes
/// (N, D) → (D,)
pub fn deviations<E: Scalar, D: Backend<E>>(x: Rows<E, D>) -> Taped<(usize,), E, D> {
    let n = x.shape().0.max(2) as f64;
    (centre(x).square().sum::<(usize,), Axis<0>>() / E::of(n - 1.0) + E::of(1e-4)).sqrt()
}

/// Σ_{d≠e} cov_de²/D with the unbiased covariance of the columns.
pub fn covariance_energy<E: Scalar, D: Backend<E>>(x: Rows<E, D>) -> Value<E, D> {
    let (n, d) = *x.shape();
    let x = centre(x);
    let left = (x.with_empty_tape() * E::one()).permute::<_, Axes2<1, 0>>();
    let covariance = left.matmul(x) / E::of(n.max(2) as f64 - 1.0);
    let off_diagonal = weights(covariance.device(), d, |i, j| if i == j { 0.0 } else { 1.0 });
    ops::total(covariance.square() * off_diagonal) / E::of(d as f64)
}

/// (1/D)·[Σ_d (1 − R_dd)² + λ·Σ_{d≠e} R_de²], where R is the cross-correlation of standardized columns.
pub fn cross_correlation<E: Scalar, D: Backend<E>>(a: Rows<E, D>, b: Rows<E, D>, lambda: f64) -> Value<E, D> {
    let (n, d) = *a.shape();
    let r = standardise(a).permute::<_, Axes2<1, 0>>().matmul(standardise(b)) / E::of(n.max(1) as f64);
    let identity = weights(r.device(), d, |i, j| if i == j { 1.0 } else { 0.0 });
    let scale = weights(r.device(), d, |i, j| if i == j { 1.0 } else { lambda });
    ops::total((r - identity).square() * scale) / E::of(d as f64)
}

/// Returns a constant square matrix from its elements.
///
/// # Shapes
/// (n, n)
pub fn weights<E: Scalar, D: Backend<E>>(
    device: &D,
    n: usize,
    at: impl Fn(usize, usize) -> f64,
) -> Matrix<E, D> {
    ops::constant(device, (0..n * n).map(|i| E::of(at(i / n, i % n))).collect(), (n, n))
}

/// Returns the mean of a term over the cluster levels of a batch. A skipped level counts as 0.
///
/// # Errors
/// If there is no level, or the error of the term.
pub fn mean_over_levels<E: Scalar, D: Backend<E>>(
    batch: &Batch<E, D>,
    term: impl Fn(usize, &Level<E, D>) -> Result<Value<E, D>>,
) -> Result<Value<E, D>> {
    let levels = batch.levels()?;
    let mut sum = term(0, &levels[0])?;
    for (m, level) in levels.iter().enumerate().skip(1) {
        sum = sum + term(m, level)?;
    }
    // On a GPU, a division by one launches two kernels.
    Ok(if levels.len() == 1 { sum } else { sum / E::of(levels.len() as f64) })
}

/// Returns the value of a term over the pairs of samples that share a prototype of level `m`. The term is given whether
/// two samples are such a pair, and the number of pairs, each in both orders. Without a pair, the level is skipped.
///
/// # Errors
/// The error of the term.
pub fn over_pairs_of_members<E: Scalar, D: Backend<E>>(
    batch: &Batch<E, D>,
    m: usize,
    level: &Level<E, D>,
    term: impl FnOnce(&dyn Fn(usize, usize) -> bool, usize) -> Result<Value<E, D>>,
) -> Result<Value<E, D>> {
    let (s, n) = (&level.assignments, batch.size());
    let together = |i: usize, l: usize| i != l && s[i].is_some() && s[i] == s[l];
    let pairs = (0..n * n).filter(|x| together(x / n, x % n)).count();
    if pairs == 0 {
        return Ok(batch.skip(format!("no two samples of the batch share a prototype of level {m}")));
    }
    term(&together, pairs)
}

/// Returns the mean of a term over the two online views.
///
/// # Errors
/// The error of the term.
pub fn mean_over_views<E: Scalar, D: Backend<E>>(
    term: impl Fn(usize) -> Result<Value<E, D>>,
) -> Result<Value<E, D>> {
    Ok((term(0)? + term(1)?) * E::of(0.5))
}

/// mean_i −Σ_j targets_ij·log softmax(logits)_ij.
///
/// # Shapes
/// (N, K), (N, K) → scalar
pub fn soft_cross_entropy<E: Scalar, D: Backend<E>>(
    logits: Rows<E, D>,
    targets: Matrix<E, D>,
) -> Value<E, D> {
    let n = logits.shape().0.max(1) as f64;
    ops::total(logits.log_softmax::<Axis<1>>() * targets) * E::of(-1.0 / n)
}

/// mean_d ReLU(γ − √(var_d + 1e-4)) of the columns.
pub fn deviation_hinge<E: Scalar, D: Backend<E>>(x: Rows<E, D>, gamma: f64) -> Value<E, D> {
    ops::mean((deviations(x) * E::of(-1.0) + E::of(gamma)).relu())
}
