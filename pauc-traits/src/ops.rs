//! The few dfdx idioms that terms share, with workarounds for dfdx's pitfalls.
//!
//! dfdx panics in a backward pass when the same tensor is on both sides of a product, and its `normalize`
//! standardizes instead of dividing by the L2 norm. The helpers here avoid both. On CUDA, dfdx differentiates
//! reductions of broadcast tensors wrongly, so no helper reduces a tensor that was only broadcast.

use crate::backend::{Backend, Scalar};
use crate::{Error, Result};
use dfdx::prelude::*;

/// A matrix with sizes that are known at run time.
pub type Matrix<E, D, T = NoneTape> = Tensor<(usize, usize), E, D, T>;
/// A vector with a size that is known at run time.
pub type Vector<E, D, T = NoneTape> = Tensor<(usize,), E, D, T>;

/// Added to a squared norm before the square root, so that a zero row has a finite gradient.
pub const NORM_EPSILON: f64 = 1e-12;

/// Returns a constant tensor from values in row-major order.
///
/// # Shapes
/// one value per element of `shape`
///
/// # Panics
/// If the number of values differs from the number of elements of the shape.
pub fn constant<E: Scalar, D: Backend<E>, S: Shape>(device: &D, values: Vec<E>, shape: S) -> Tensor<S, E, D> {
    device.tensor_from_vec(values, shape)
}

/// Returns a scalar constant.
///
/// # Shapes
/// → scalar
pub fn scalar<E: Scalar, D: Backend<E>>(device: &D, value: f64) -> Tensor<Rank0, E, D> {
    device.tensor_from_vec(vec![E::of(value)], ())
}

/// z = x / √(‖x‖² + 1e-12), row by row. A zero row stays zero and has a finite gradient.
///
/// # Shapes
/// (N, D) → (N, D)
pub fn l2_normalize<E: Scalar, D: Backend<E>, T: Tape<E, D>>(x: Matrix<E, D, T>) -> Matrix<E, D, T> {
    if x.shape().0 == 0 {
        // There is nothing to divide, and dfdx on CUDA ends the program for a sum over no elements.
        return x;
    }
    D::l2_normalize(x)
}

/// The definition of [`l2_normalize`] in dfdx operations.
pub(crate) fn l2_normalize_plain<E: Scalar, D: Backend<E>, T: Tape<E, D>>(
    x: Matrix<E, D, T>,
) -> Matrix<E, D, T> {
    let shape = *x.shape();
    let norm = (x.with_empty_tape().square().sum::<(usize,), Axis<1>>() + E::of(NORM_EPSILON)).sqrt();
    x / norm.broadcast_like::<_, Axis<1>>(&shape)
}

/// a·bᵀ, also if a and b are the same tensor.
///
/// # Shapes
/// (N, D), (M, D) → (N, M)
pub fn dot_rows<E: Scalar, D: Backend<E>, T: Tape<E, D> + Merge<R>, R: Tape<E, D>>(
    a: Matrix<E, D, T>,
    b: Matrix<E, D, R>,
) -> Matrix<E, D, T> {
    // A product with one gives the left side an identity of its own.
    (a * E::one()).matmul(b.permute::<_, Axes2<1, 0>>())
}

/// The row-wise inner products Σ_d a_id·b_id.
///
/// # Shapes
/// (N, D), (N, D) → (N,)
pub fn row_dots<E: Scalar, D: Backend<E>, T: Tape<E, D> + Merge<R>, R: Tape<E, D>>(
    a: Matrix<E, D, T>,
    b: Matrix<E, D, R>,
) -> Vector<E, D, T> {
    ((a * E::one()) * b).sum::<_, Axis<1>>()
}

/// −log softmax(logits)\[i, targets\[i\]\], row by row, as a max-shifted log-sum-exp.
///
/// # Shapes
/// (N, M), N targets → (N,)
///
/// # Panics
/// If the number of targets is not N, or a target is not below M.
pub fn cross_entropy_rows<E: Scalar, D: Backend<E>, T: Tape<E, D>>(
    logits: Matrix<E, D, T>,
    targets: &[usize],
) -> Vector<E, D, T> {
    let (rows, cols) = *logits.shape();
    assert!(
        rows == targets.len() && targets.iter().all(|t| *t < cols),
        "{rows}×{cols} logits, targets {targets:?}"
    );
    let device = logits.device().clone();
    let lse = logits.with_empty_tape().logsumexp::<(usize,), Axis<1>>();
    let index: Tensor<(usize,), usize, D> = device.tensor_from_vec(targets.to_vec(), (rows,));
    lse - logits.select(index)
}

/// Returns the mean of a vector, as a scalar.
///
/// # Shapes
/// (N,) → scalar; 0 for N = 0
pub fn mean<E: Scalar, D: Backend<E>, T: Tape<E, D>>(v: Vector<E, D, T>) -> Tensor<Rank0, E, D, T> {
    let n = v.shape().0.max(1);
    v.sum::<Rank0, Axis<0>>() / E::of(n as f64)
}

/// Returns the sum of all elements of a matrix.
///
/// # Shapes
/// (N, D) → scalar
pub fn total<E: Scalar, D: Backend<E>, T: Tape<E, D>>(m: Matrix<E, D, T>) -> Tensor<Rank0, E, D, T> {
    m.sum::<Rank0, Axes2<0, 1>>()
}

/// Returns the value of a scalar tensor.
///
/// # Shapes
/// scalar → number
pub fn item<E: Scalar, D: Backend<E>, T>(value: &Tensor<Rank0, E, D, T>) -> f64 {
    value.as_vec()[0].as_f64()
}

/// Copies a tensor's elements to the host, as plain values in row-major order.
///
/// # Shapes
/// any shape → one value per element
///
/// # Errors
/// If the device fails.
pub fn to_host<E: Scalar, D: Backend<E>, S: Shape, T>(tensor: &Tensor<S, E, D, T>) -> Result<Vec<E>> {
    D::to_host(&tensor.retaped())
}

/// Copies a gradient to the host, as plain values in row-major order; zeros if the backward pass did not
/// reach the tensor.
///
/// # Shapes
/// any shape → one value per element
///
/// # Errors
/// If the device fails.
pub fn gradient<E: Scalar, D: Backend<E>, S: Shape>(
    gradients: &mut Gradients<E, D>,
    tensor: &Tensor<S, E, D>,
) -> Result<Vec<E>> {
    gradients.try_alloc_for(tensor).map_err(Error::device)?;
    to_host(&gradients.get(tensor))
}
