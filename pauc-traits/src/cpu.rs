//! dfdx's `Cpu` as a device for terms: dfdx's operations, with replacements for the slow ones.

use crate::backend::{Backend, Scalar, Value};
use crate::batch::Constant;
use crate::ops::{Matrix, NORM_EPSILON};
use crate::softmax::{Bank, FusedLoss, Graded, NoKernels, Positives, RowGradient, SoftmaxKernels, Weighted};
use crate::term::{ContrastiveLoss, PortableLoss, PortableRegularizer, Regularizer};
use crate::{Error, Result};
use dfdx::prelude::*;
use std::sync::Arc;

impl Backend<f32> for Cpu {
    type Softmax = CpuSoftmax;

    fn loss(term: &dyn PortableLoss) -> &dyn ContrastiveLoss<f32, Self> {
        term
    }
    fn regularizer(term: &dyn PortableRegularizer) -> &dyn Regularizer<f32, Self> {
        term
    }
    fn l2_normalize<T: Tape<f32, Self>>(x: Matrix<f32, Self, T>) -> Matrix<f32, Self, T> {
        l2_normalize(x)
    }
    fn to_host<S: Shape>(tensor: &Tensor<S, f32, Self>) -> Result<Vec<f32>> {
        Ok(values(tensor))
    }
    fn softmax_kernels(&self) -> Result<Option<CpuSoftmax>> {
        Ok(Some(CpuSoftmax { device: self.clone() }))
    }
}

impl Backend<f64> for Cpu {
    type Softmax = NoKernels;

    fn loss(term: &dyn PortableLoss) -> &dyn ContrastiveLoss<f64, Self> {
        term
    }
    fn regularizer(term: &dyn PortableRegularizer) -> &dyn Regularizer<f64, Self> {
        term
    }
    fn l2_normalize<T: Tape<f64, Self>>(x: Matrix<f64, Self, T>) -> Matrix<f64, Self, T> {
        l2_normalize(x)
    }
    fn to_host<S: Shape>(tensor: &Tensor<S, f64, Self>) -> Result<Vec<f64>> {
        Ok(values(tensor))
    }
}

/// Returns the elements of a tensor in row-major order. dfdx's `as_vec` copies them one by one.
fn values<E: Scalar, S: Shape, T: Tape<E, Cpu>>(tensor: &Tensor<S, E, Cpu, T>) -> Vec<E> {
    // `copy_into` copies the storage, which is in order only if the tensor is contiguous.
    let tensor: Tensor<S, E, Cpu> = tensor.retaped().contiguous();
    let mut values = vec![E::zero(); tensor.shape().num_elements()];
    tensor.copy_into(&mut values);
    values
}

/// [`crate::ops::l2_normalize`] in two passes over the rows. dfdx's operations take about ten times as long,
/// and every term needs this one.
fn l2_normalize<E: Scalar, T: Tape<E, Cpu>>(x: Matrix<E, Cpu, T>) -> Matrix<E, Cpu, T> {
    let (x, mut tape) = x.contiguous().split_tape(); // (N, D)
    let dim = x.shape().1.max(1);
    let mut z = values(&x);
    let mut inverses = Vec::with_capacity(x.shape().0);
    for row in z.chunks_exact_mut(dim) {
        let inverse = E::one() / (inner(row, row) + E::of(NORM_EPSILON)).sqrt();
        row.iter_mut().for_each(|v| *v *= inverse);
        inverses.push(inverse);
    }
    let z = x.device().tensor_from_vec(z, *x.shape()); // (N, D)
    if T::OWNS_TAPE {
        let (x, z) = (x.ghost(), z.clone());
        tape.add_backward_op(move |gradients: &mut Gradients<E, Cpu>| {
            let of_z: Vec<E> = gradients.get_or_alloc_mut(&z)?.to_vec();
            let of_x = gradients.get_or_alloc_mut(&x)?;
            let (z, of_z) = (values(&z), of_z.chunks_exact(dim));
            let rows = of_x.chunks_exact_mut(dim).zip(of_z).zip(z.chunks_exact(dim)).zip(&inverses);
            // ∂L/∂x = (g − (g·z)·z)/‖x‖ with g = ∂L/∂z.
            for (((of_x, g), z), inverse) in rows {
                let product = inner(g, z);
                of_x.iter_mut().zip(g).zip(z).for_each(|((s, g), z)| *s += *inverse * (*g - product * *z));
            }
            Ok(())
        });
    }
    z.put_tape(tape)
}

/// Σ a·b in eight running sums, which the compiler can vectorize.
fn inner<E: Scalar>(a: &[E], b: &[E]) -> E {
    let mut sums = [E::zero(); 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a.remainder().iter().zip(b.remainder()).fold(E::zero(), |s, (a, b)| s + *a * *b);
    for (a, b) in a.zip(b) {
        (0..8).for_each(|l| sums[l] += a[l] * b[l]);
    }
    sums.into_iter().fold(rest, |s, v| s + v)
}

/// The streaming kernels of [`pauc_kernels::softmax`]. Numbers stay in `f64` until they are recorded.
pub struct CpuSoftmax {
    device: Cpu,
}

impl SoftmaxKernels<f32, Cpu> for CpuSoftmax {
    type Rows = Arc<Vec<f32>>;
    type Number = f64;
    type Gradient = Vec<f32>;

    fn rows<T: Tape<f32, Cpu>>(&self, matrix: &Matrix<f32, Cpu, T>) -> Result<Self::Rows> {
        Ok(Arc::new(values(matrix)))
    }

    fn constant_rows(&self, constant: &Constant<f32, Cpu>) -> Result<Self::Rows> {
        Ok(constant.shared())
    }

    fn cross_entropy(
        &self,
        queries: &Self::Rows,
        positives: Positives<&Self::Rows>,
        banks: &[Bank<'_, &Self::Rows>],
        dim: usize,
    ) -> Result<Graded> {
        let positives = match positives {
            Positives::Rows(rows, scale) => Positives::Rows(&rows[..], scale),
            Positives::Own => Positives::Own,
        };
        let banks: Vec<_> =
            banks.iter().map(|b| Bank { rows: &b.rows[..], scale: b.scale, own: b.own }).collect();
        Ok(pauc_kernels::softmax::cross_entropy(queries, positives, &banks, dim))
    }

    fn in_batch(
        &self,
        views: [&Self::Rows; 2],
        scale: f32,
        dim: usize,
    ) -> Result<Graded<f64, [Vec<f32>; 2]>> {
        let all = [&views[0][..], &views[1][..]].concat();
        let Graded { value, gradient: mut first } = pauc_kernels::softmax::in_batch(&all, dim, scale);
        let second = first.split_off(views[0].len());
        Ok(Graded { value, gradient: [first, second] })
    }

    fn dot(&self, rows: &[&Self::Rows], gradients: &[&Vec<f32>]) -> Result<f64> {
        let pairs = rows.iter().zip(gradients).flat_map(|(rows, gradient)| rows.iter().zip(*gradient));
        Ok(pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
    }

    fn record(&self, loss: FusedLoss<f32, Cpu, Self>) -> Result<Value<f32, Cpu>> {
        let value = vec![sum(&loss.value) as f32];
        let value: Tensor<Rank0, f32, Cpu> =
            self.device.try_tensor_from_vec(value, ()).map_err(Error::device)?;
        let (of_value, mut tape, mut known) = (value.ghost(), OwnedTape::default(), Vec::new());
        for RowGradient { rows, gradient } in loss.gradients {
            let (rows, own) = rows.split_tape();
            tape = tape.merge(own);
            known.push((rows, gradient));
        }
        known.extend(loss.temperature.map(|temperature| {
            let derivative = vec![sum(&temperature.derivative) as f32];
            (temperature.leaf, Weighted { weight: 1.0, summand: derivative })
        }));
        tape.add_backward_op(move |gradients: &mut Gradients<f32, Cpu>| {
            let factor = gradients.get_or_alloc_mut(&of_value)?[0];
            for (rows, Weighted { weight, summand }) in &known {
                let sum = gradients.get_or_alloc_mut(rows)?;
                sum.iter_mut().zip(summand).for_each(|(s, g)| *s += factor * (g * *weight as f32));
            }
            Ok(())
        });
        Ok(value.put_tape(tape))
    }
}

fn sum(numbers: &[Weighted<f64>]) -> f64 {
    numbers.iter().fold(0.0, |sum, n| sum + n.weight * n.summand)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use pauc_testing::{assert_within, tolerance};

    fn pattern(rows: usize, cols: usize) -> Vec<f64> {
        pauc_testing::inputs::wave_f64(rows * cols, 0.3, 1.3)
    }

    /// Returns values and gradients of 2·Σ exp(z), where z are the rows of x after `normalize`.
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

    /// An element of a unit row takes at most D + 3 operations. Its gradient (g − (g·z)·z)/‖x‖ takes the same
    /// number again, with |g| = 2·e^z ≤ 2e and thus |g·z| ≤ 2e·√D. Both computations may be off.
    fn agree<E: Scalar>(x: &Matrix<E, Cpu>, rounding: fn(usize, f64) -> f64)
    where
        Cpu: Backend<E>,
    {
        let dim = x.shape().1;
        let ((z, g), (plain_z, plain_g)) = (graded(x, ops::l2_normalize), graded(x, ops::l2_normalize_plain));
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
    fn fast_and_plain_normalization_agree() {
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
        assert_eq!(ops::l2_normalize(zero).as_vec()[4..8], [0.0; 4]);
    }

    #[test]
    fn values_and_gradients_follow_the_order_of_rows() {
        let dev = Cpu::default();
        let m = dev.tensor_from_vec(pattern(3, 4), (3, 4));
        assert_eq!(ops::to_host(&m).unwrap(), pattern(3, 4));
        let t = m.clone().permute::<(usize, usize), Axes2<1, 0>>();
        assert_eq!(ops::to_host(&t).unwrap(), t.as_vec());
        let empty = dev.tensor_from_vec(Vec::<f32>::new(), (0, 4));
        assert!(ops::to_host(&empty).unwrap().is_empty());
        let mut gradients = t.leaky_trace().square().sum::<Rank0, Axes2<0, 1>>().backward();
        let doubled: Vec<f64> = t.as_vec().iter().map(|v| 2.0 * v).collect();
        assert_eq!(ops::gradient(&mut gradients, &t).unwrap(), doubled);
        // A tensor that the backward pass did not reach has a gradient of zeros.
        let unread: Matrix<f64, Cpu> = dev.zeros_like(&m);
        assert_eq!(ops::gradient(&mut gradients, &unread).unwrap(), [0.0; 12]);
    }
}
