//! The few dfdx idioms that terms share, with dfdx's traps taken out of the way.
//!
//! dfdx panics in a backward pass when one tensor stands on both sides of a product, and its `normalize` is
//! standardisation, not the L2 norm; the helpers here do the right thing. On CUDA it differentiates reductions of
//! broadcast tensors wrongly, so no helper reduces a tensor that was only broadcast.

use crate::backend::{Backend, Scalar};
use crate::{Error, Result};
use dfdx::prelude::*;
use std::any::Any;

/// A matrix whose sizes are known at run time.
pub type Matrix<E, D, T = NoneTape> = Tensor<(usize, usize), E, D, T>;
/// A vector whose size is known at run time.
pub type Vector<E, D, T = NoneTape> = Tensor<(usize,), E, D, T>;

/// Added to a squared norm before its root, so that a zero row has a finite gradient.
pub const NORM_EPSILON: f64 = 1e-12;

/// A constant tensor from values in row-major order.
///
/// # Panics
/// If there are not as many values as the shape has elements.
pub fn constant<E: Scalar, D: Backend<E>, S: Shape>(device: &D, values: Vec<E>, shape: S) -> Tensor<S, E, D> {
    device.tensor_from_vec(values, shape)
}

/// A scalar constant.
pub fn scalar<E: Scalar, D: Backend<E>>(device: &D, value: f64) -> Tensor<Rank0, E, D> {
    device.tensor_from_vec(vec![E::of(value)], ())
}

/// z = x / √(‖x‖² + 1e-12), row by row. A zero row stays zero and has a finite gradient.
///
/// # Shapes
/// (N, D) → (N, D)
pub fn l2_normalize<E: Scalar, D: Backend<E>, T: Tape<E, D>>(x: Matrix<E, D, T>) -> Matrix<E, D, T> {
    if x.shape().0 == 0 {
        // Nothing to divide, and dfdx on CUDA ends the program over sums of nothing.
        return x;
    }
    let (x, mut tape) = x.split_tape();
    match l2_normalize_on_cpu::<E, D, T, f32>(&x, &mut tape)
        .or_else(|| l2_normalize_on_cpu::<E, D, T, f64>(&x, &mut tape))
        .or_else(|| l2_normalize_on_cuda(&x, &mut tape))
    {
        Some(z) => z.put_tape(tape),
        None => l2_normalize_plain(x.put_tape(tape)),
    }
}

/// The definition of [`l2_normalize`] in plain operations.
fn l2_normalize_plain<E: Scalar, D: Backend<E>, T: Tape<E, D>>(x: Matrix<E, D, T>) -> Matrix<E, D, T> {
    let shape = *x.shape();
    let norm = (x.with_empty_tape().square().sum::<(usize,), Axis<1>>() + E::of(NORM_EPSILON)).sqrt();
    x / norm.broadcast_like::<_, Axis<1>>(&shape)
}

/// [`l2_normalize`] in two passes over the rows if the tensor is one of the CPU with elements `F`; dfdx's operations
/// take some ten times as long, and every term needs this one.
fn l2_normalize_on_cpu<E: Scalar, D: Backend<E>, T: Tape<E, D>, F: Scalar>(
    x: &Matrix<E, D>,
    tape: &mut T,
) -> Option<Matrix<E, D>> {
    let of = (x as &dyn Any).downcast_ref::<Matrix<F, Cpu>>().filter(|x| is_row_major(x))?;
    let dim = of.shape().1.max(1);
    let mut z = values(of);
    let mut inverse = Vec::with_capacity(of.shape().0);
    for row in z.chunks_exact_mut(dim) {
        let scale = F::one() / (inner(row, row) + F::of(NORM_EPSILON)).sqrt();
        row.iter_mut().for_each(|v| *v *= scale);
        inverse.push(scale);
    }
    let made: Box<dyn Any> = Box::new(of.device().tensor_from_vec(z, *of.shape()));
    let made = *made.downcast::<Matrix<E, D>>().ok()?;
    if T::OWNS_TAPE {
        let (z, of) = (made.clone(), of.clone());
        tape.add_backward_op(move |gradients: &mut Gradients<E, D>| {
            let (z, gradients) = (&z as &dyn Any, gradients as &mut dyn Any);
            let known = (z.downcast_ref::<Matrix<F, Cpu>>(), gradients.downcast_mut::<Gradients<F, Cpu>>());
            let (Some(z), Some(gradients)) = known else { return Ok(()) };
            // ∂L/∂x = (g − (g·z)·z)/‖x‖.
            let add = |gradients: &mut Gradients<F, Cpu>| -> Result<(), CpuError> {
                let g: Vec<F> = gradients.get_or_alloc_mut(z)?.to_vec();
                let sum = gradients.get_or_alloc_mut(&of)?;
                let rows = sum.chunks_exact_mut(dim).zip(g.chunks_exact(dim));
                for (((sum, g), z), scale) in rows.zip(values(z).chunks_exact(dim)).zip(&inverse) {
                    let along = inner(g, z);
                    sum.iter_mut().zip(g).zip(z).for_each(|((s, g), z)| *s += *scale * (*g - along * *z));
                }
                Ok(())
            };
            // The device is the CPU, so its error is this one.
            add(gradients)
                .or_else(|e| (Box::new(e) as Box<dyn Any>).downcast::<D::Err>().map_or(Ok(()), |e| Err(*e)))
        });
    }
    Some(made)
}

#[cfg(not(feature = "cuda"))]
fn l2_normalize_on_cuda<E: Scalar, D: Backend<E>, T: Tape<E, D>>(
    _: &Matrix<E, D>,
    _: &mut T,
) -> Option<Matrix<E, D>> {
    None
}

/// [`l2_normalize`] in one kernel each way if the tensor is one of CUDA: of dfdx's operations there are a dozen.
#[cfg(feature = "cuda")]
fn l2_normalize_on_cuda<E: Scalar, D: Backend<E>, T: Tape<E, D>>(
    x: &Matrix<E, D>,
    tape: &mut T,
) -> Option<Matrix<E, D>> {
    use pauc_cuda::{rows, tensor};
    let of = (x as &dyn Any).downcast_ref::<Matrix<f32, Cuda>>().filter(|x| tensor::is_contiguous(*x))?;
    // Whatever fails here fails again in plain operations, which report it.
    let (made, inverse) = rows::unit(of, NORM_EPSILON as f32).ok()?;
    let z = tensor::Contiguous::new(made.clone()).ok()?;
    let made = *(Box::new(made) as Box<dyn Any>).downcast::<Matrix<E, D>>().ok()?;
    if T::OWNS_TAPE {
        let (ghost, of) = (made.clone(), x.clone());
        tape.add_backward_op(move |gradients: &mut Gradients<E, D>| {
            let add = |gradients: &mut Gradients<E, D>| -> Option<Result<(), CudaError>> {
                let gradients = (gradients as &mut dyn Any).downcast_mut::<Gradients<f32, Cuda>>()?;
                let ghost = (&ghost as &dyn Any).downcast_ref::<Matrix<f32, Cuda>>()?;
                let of = (&of as &dyn Any).downcast_ref::<Matrix<f32, Cuda>>()?;
                Some((|| {
                    let g = tensor::gradient_copy(gradients.get_or_alloc_mut(ghost)?)?;
                    let sum = tensor::gradient_mut(gradients.get_or_alloc_mut(of)?);
                    Ok(rows::unit_gradient(&z, g.view(), &inverse, sum)?)
                })())
            };
            match add(gradients) {
                // The device is CUDA, so its error is this one.
                Some(Err(e)) => {
                    (Box::new(e) as Box<dyn Any>).downcast::<D::Err>().map_or(Ok(()), |e| Err(*e))
                }
                _ => Ok(()),
            }
        });
    }
    Some(made)
}

/// Σ a·b in eight running sums, which the compiler can put side by side.
fn inner<E: Scalar>(a: &[E], b: &[E]) -> E {
    let mut sums = [E::zero(); 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a.remainder().iter().zip(b.remainder()).fold(E::zero(), |s, (a, b)| s + *a * *b);
    for (a, b) in a.zip(b) {
        (0..8).for_each(|l| sums[l] += a[l] * b[l]);
    }
    sums.into_iter().fold(rest, |s, v| s + v)
}

/// Whether a CPU tensor's storage holds its elements in row-major order, as its gradient then does too.
pub fn is_row_major<E: Scalar>(m: &Matrix<E, Cpu>) -> bool {
    let (rows, cols) = *m.shape();
    if rows * cols == 0 {
        return true;
    }
    // dfdx does not tell strides, but they show in the addresses of elements.
    let address = |i: usize, j: usize| std::ptr::from_ref(&m[[i, j]]) as usize;
    let step = |i, j| address(i, j).wrapping_sub(address(0, 0)) / size_of::<E>();
    (rows == 1 || step(1, 0) == cols) && (cols == 1 || step(0, 1) == 1)
}

/// The elements of a CPU tensor in row-major order.
pub fn values<E: Scalar>(m: &Matrix<E, Cpu>) -> Vec<E> {
    // dfdx copies storage fast but regardless of strides, and elements in order slowly.
    if !is_row_major(m) {
        return m.as_vec();
    }
    let mut out = vec![E::zero(); m.shape().0 * m.shape().1];
    m.copy_into(&mut out);
    out
}

/// a·bᵀ, also when a and b are the same tensor.
///
/// # Shapes
/// (N, D), (M, D) → (N, M)
pub fn dot_rows<E: Scalar, D: Backend<E>, T: Tape<E, D> + Merge<R>, R: Tape<E, D>>(
    a: Matrix<E, D, T>,
    b: Matrix<E, D, R>,
) -> Matrix<E, D, T> {
    // A product by one gives the left side an identity of its own.
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

/// −log softmax(logits)\[i, targets\[i\]\], row by row, through a max-shifted log-sum-exp.
///
/// # Shapes
/// (N, M), N targets → (N,)
///
/// # Panics
/// If there are not N targets or one is not below M.
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

/// The mean of a vector, as a scalar.
pub fn mean<E: Scalar, D: Backend<E>, T: Tape<E, D>>(v: Vector<E, D, T>) -> Tensor<Rank0, E, D, T> {
    let n = v.shape().0.max(1);
    v.sum::<Rank0, Axis<0>>() / E::of(n as f64)
}

/// The sum of all elements of a matrix.
pub fn total<E: Scalar, D: Backend<E>, T: Tape<E, D>>(m: Matrix<E, D, T>) -> Tensor<Rank0, E, D, T> {
    m.sum::<Rank0, Axes2<0, 1>>()
}

/// The single value of a scalar tensor.
pub fn item<E: Scalar, D: Backend<E>, T>(value: &Tensor<Rank0, E, D, T>) -> f64 {
    value.as_vec()[0].as_f64()
}

/// A tensor's elements as plain values in row-major order, in host memory.
///
/// # Errors
/// If the device fails.
pub fn to_host<E: Scalar, D: Backend<E>, S: Shape, T>(of: &Tensor<S, E, D, T>) -> Result<Vec<E>> {
    let of: Tensor<S, E, D> = of.retaped();
    // dfdx's way out of a tensor goes over its elements one by one.
    if let Some(of) = (&of as &dyn Any).downcast_ref::<Matrix<E, Cpu>>() {
        return Ok(values(of));
    }
    match cuda_to_host(&of) {
        Some(found) => found,
        None => Ok(of.as_vec()),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_to_host<E: Scalar, D: Backend<E>, S: Shape>(_: &Tensor<S, E, D>) -> Option<Result<Vec<E>>> {
    None
}

#[cfg(feature = "cuda")]
fn cuda_to_host<E: Scalar, D: Backend<E>, S: Shape>(of: &Tensor<S, E, D>) -> Option<Result<Vec<E>>> {
    let of = (of as &dyn Any).downcast_ref::<Tensor<S, f32, Cuda>>()?;
    in_precision(pauc_cuda::tensor::to_host(of))
}

/// Numbers of the device as `E`, which is `f32` too wherever the device is CUDA.
#[cfg(feature = "cuda")]
fn in_precision<E: Scalar>(found: pauc_cuda::Result<Vec<f32>>) -> Option<Result<Vec<E>>> {
    use crate::cuda::OnDevice;
    match found.on_device() {
        Ok(v) => (Box::new(v) as Box<dyn Any>).downcast::<Vec<E>>().ok().map(|v| Ok(*v)),
        Err(e) => Some(Err(e)),
    }
}

/// A gradient as plain values in row-major order, zeros if the backward pass did not reach the tensor.
///
/// # Errors
/// If the device fails.
pub fn gradient<E: Scalar, D: Backend<E>, S: Shape>(
    gradients: &mut Gradients<E, D>,
    of: &Tensor<S, E, D>,
) -> Result<Vec<E>> {
    gradients.try_alloc_for(of).map_err(Error::device)?;
    // On the CPU a row-major gradient is a vector already, and on CUDA one in the device's memory.
    if let Some(of) = (of as &dyn Any).downcast_ref::<Matrix<E, Cpu>>().filter(|m| is_row_major(m))
        && let Some(gradients) = (gradients as &mut dyn Any).downcast_mut::<Gradients<E, Cpu>>()
        && let Ok(found) = gradients.get_or_alloc_mut(of)
    {
        return Ok(found.to_vec());
    }
    match cuda_gradient(gradients, of) {
        Some(found) => found,
        None => to_host(&gradients.get(of)),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_gradient<E: Scalar, D: Backend<E>, S: Shape>(
    _: &mut Gradients<E, D>,
    _: &Tensor<S, E, D>,
) -> Option<Result<Vec<E>>> {
    None
}

#[cfg(feature = "cuda")]
fn cuda_gradient<E: Scalar, D: Backend<E>, S: Shape>(
    gradients: &mut Gradients<E, D>,
    of: &Tensor<S, E, D>,
) -> Option<Result<Vec<E>>> {
    use pauc_cuda::tensor;
    let of = (of as &dyn Any).downcast_ref::<Tensor<S, f32, Cuda>>().filter(|t| tensor::is_contiguous(*t))?;
    let gradients = (gradients as &mut dyn Any).downcast_mut::<Gradients<f32, Cuda>>()?;
    let found = gradients.get_or_alloc_mut(of).map_err(pauc_cuda::Error::from);
    in_precision(found.and_then(|g| tensor::gradient(g).to_host(&*pauc_cuda::Context::of(of.device())?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn pattern(rows: usize, cols: usize) -> Vec<f64> {
        pauc_testing::inputs::wave_f64(rows * cols, 0.3, 1.3)
    }

    fn graded<E: Scalar>(
        x: &Matrix<E, Cpu>,
        normalize: impl Fn(Matrix<E, Cpu, OwnedTape<E, Cpu>>) -> Matrix<E, Cpu, OwnedTape<E, Cpu>>,
    ) -> (Vec<f64>, Vec<f64>)
    where
        Cpu: Backend<E>,
    {
        let z = normalize(x.leaky_trace());
        let wide = |v: Vec<E>| v.into_iter().map(E::as_f64).collect();
        let values = wide(z.as_vec());
        let gradients = (z.exp() * E::of(2.0)).sum::<Rank0, Axes2<0, 1>>().backward();
        (values, wide(gradients.get(x).as_vec()))
    }

    /// An element of a unit row takes at most D + 3 operations, and its gradient (g − (g·z)·z)/‖x‖ as many again, with
    /// |g| = 2·e^z ≤ 2e and so |g·z| ≤ 2e·√D. Both computations may be off.
    fn agree<E: Scalar>(x: &Matrix<E, Cpu>, rounding: fn(usize, f64) -> f64)
    where
        Cpu: Backend<E>,
    {
        let dim = x.shape().1;
        let ((z, g), (plain_z, plain_g)) = (graded(x, l2_normalize), graded(x, l2_normalize_plain));
        let steepest = 2.0 * std::f64::consts::E * (1.0 + (dim as f64).sqrt());
        for (i, row) in x.as_vec().chunks(dim).enumerate() {
            let norm = (row.iter().map(|v| v.as_f64().powi(2)).sum::<f64>() + NORM_EPSILON).sqrt();
            for at in i * dim..(i + 1) * dim {
                assert_within!(z[at], plain_z[at], 2.0 * rounding(dim + 3, 1.0), "{at}");
                let allowed = 2.0 * rounding(2 * dim + 8, steepest / norm);
                assert_within!(g[at], plain_g[at], allowed, "gradient of {at}");
            }
        }
    }

    #[test]
    fn fast_and_plain_normalisation_agree() {
        let dev = Cpu::default();
        for (rows, cols) in [(1, 1), (3, 1), (1, 5), (4, 8), (7, 19)] {
            let wide = dev.tensor_from_vec(pattern(rows, cols), (rows, cols));
            agree(&wide, tolerance::f64);
            agree(&wide.permute::<(usize, usize), Axes2<1, 0>>(), tolerance::f64);
            let narrow = pattern(rows, cols).iter().map(|v| *v as f32).collect();
            agree(&dev.tensor_from_vec(narrow, (rows, cols)), tolerance::f32);
        }
        let mut zero = pattern(3, 4);
        zero[4..8].fill(0.0);
        let zero = dev.tensor_from_vec(zero, (3, 4));
        agree(&zero, tolerance::f64);
        assert_eq!(l2_normalize(zero).as_vec()[4..8], [0.0; 4]);
    }

    #[test]
    fn values_follow_the_order_of_rows() {
        let dev = Cpu::default();
        let m = dev.tensor_from_vec(pattern(3, 4), (3, 4));
        assert!(is_row_major(&m) && values(&m) == m.as_vec());
        let t = m.permute::<(usize, usize), Axes2<1, 0>>();
        assert!(!is_row_major(&t) && values(&t) == t.as_vec());
        assert!(values(&dev.tensor_from_vec(Vec::<f32>::new(), (0, 4))).is_empty());
    }
}
