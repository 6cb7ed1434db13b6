//! Device kernels for terms with a softmax over inner products.
//!
//! A [`SoftmaxKernels`] computes a loss together with its gradients, without a matrix of all logits. A term
//! that uses it has two implementations: its definition in dfdx operations, and one in terms of this trait,
//! generic over devices. [`Batch::softmax_kernels`] returns the kernels, if the device has any.
//!
//! [`Scale`], [`Bank`], [`Positives`] and [`Graded`] are those of `pauc-kernels`, with the row, number and
//! gradient types of the device.

use crate::backend::{Backend, Scalar, Taped, Value};
use crate::batch::{Batch, Constant};
use crate::ops::Matrix;
use crate::{Error, Result};
use dfdx::prelude::{ReshapeTo, Tape};

pub use pauc_kernels::softmax::{Bank, Graded, Positives, Scale};

/// Cross-entropies of a softmax over inner products, with their gradients, on one device.
pub trait SoftmaxKernels<E: Scalar, D: Backend<E>>: Sized {
    /// The type of rows that the kernels read.
    type Rows;
    /// A number, which the device may still be computing.
    type Number;
    /// A gradient in row-major order, in the memory in which the kernels leave it.
    type Gradient;

    /// Converts a matrix to rows for the kernels.
    ///
    /// # Shapes
    /// (N, D)
    ///
    /// # Errors
    /// If the device fails.
    fn rows<T: Tape<E, D>>(&self, matrix: &Matrix<E, D, T>) -> Result<Self::Rows>;

    /// Converts a constant matrix to rows for the kernels.
    ///
    /// # Shapes
    /// (N, D)
    ///
    /// # Errors
    /// If the device fails.
    fn constant_rows(&self, constant: &Constant<E, D>) -> Result<Self::Rows>;

    /// Computes mean_i −log [ e^{s_i q_i·k_i} / (e^{s_i q_i·k_i} + Σ_c e^{s_c q_i·c}) ] over the rows c of
    /// all banks, and its gradient with respect to the queries q. `positives` are the keys k with their
    /// scales s.
    ///
    /// # Shapes
    /// `queries` and `positives` (B, D), each bank (M, D) → scalar, (B, D). D is `dim`.
    ///
    /// # Errors
    /// If the device fails.
    fn cross_entropy(
        &self,
        queries: &Self::Rows,
        positives: Positives<&Self::Rows, E>,
        banks: &[Bank<'_, &Self::Rows, E>],
        dim: usize,
    ) -> Result<Graded<Self::Number, Self::Gradient>>;

    /// Computes the same loss for the rows of two views, each compared with all others. The positive of a row
    /// is its other view. The gradients with respect to the views include both roles, query and candidate.
    ///
    /// # Shapes
    /// `views` (B, D) each → scalar, (B, D) each. D is `dim`.
    ///
    /// # Errors
    /// If the device fails.
    fn in_batch(
        &self,
        views: [&Self::Rows; 2],
        scale: E,
        dim: usize,
    ) -> Result<Graded<Self::Number, [Self::Gradient; 2]>>;

    /// Returns Σ a·b over the elements of some matrices a and the gradients b with respect to them.
    ///
    /// # Shapes
    /// as many gradients as matrices, of the same shapes → scalar
    ///
    /// # Errors
    /// If the device fails.
    fn dot(&self, rows: &[&Self::Rows], gradients: &[&Self::Gradient]) -> Result<Self::Number>;

    /// Records a loss with its gradients on the tape: the backward pass only scales them.
    ///
    /// # Errors
    /// If the device fails.
    fn record(&self, loss: FusedLoss<E, D, Self>) -> Result<Value<E, D>>;
}

/// A summand with its weight.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<T> {
    /// The factor of the summand.
    pub weight: f64,
    /// The summand.
    pub summand: T,
}

/// The gradient of a loss with respect to a matrix.
pub struct RowGradient<E: Scalar, D: Backend<E>, G> {
    /// The matrix, contiguous.
    pub rows: Taped<(usize, usize), E, D>,
    /// Its gradient.
    pub gradient: Weighted<G>,
}

/// The gradient of a loss with respect to ln τ of a learnable temperature τ.
pub struct TemperatureGradient<E: Scalar, D: Backend<E>, N> {
    /// ln τ, a matrix of one element.
    pub leaf: Matrix<E, D>,
    /// The derivative, a sum.
    pub derivative: Vec<Weighted<N>>,
}

/// A loss whose gradients [`SoftmaxKernels`] computed along with it. It is a sum of results of the kernels.
pub struct FusedLoss<E: Scalar, D: Backend<E>, K: SoftmaxKernels<E, D>> {
    /// The loss, a sum.
    pub value: Vec<Weighted<K::Number>>,
    /// Its gradients with respect to matrices.
    pub gradients: Vec<RowGradient<E, D, K::Gradient>>,
    /// Its gradient with respect to ln τ, if the term learns τ.
    pub temperature: Option<TemperatureGradient<E, D, K::Number>>,
}

impl<E: Scalar, D: Backend<E>, K: SoftmaxKernels<E, D>> FusedLoss<E, D, K> {
    /// Starts with zero. `log_temperature` is the leaf of a learnable temperature.
    ///
    /// # Shapes
    /// log_temperature (1, 1)
    pub fn new(log_temperature: Option<Matrix<E, D>>) -> Self {
        let temperature = log_temperature.map(|leaf| TemperatureGradient { leaf, derivative: Vec::new() });
        FusedLoss { value: Vec::new(), gradients: Vec::new(), temperature }
    }

    /// Adds `weight` times a number to the loss.
    pub fn add_value(&mut self, weight: f64, summand: K::Number) {
        self.value.push(Weighted { weight, summand });
    }

    /// Adds `weight` times a gradient to that of `rows`.
    ///
    /// # Shapes
    /// (N, D) both
    ///
    /// # Errors
    /// If the device fails.
    pub fn add_gradient(
        &mut self,
        rows: Taped<(usize, usize), E, D>,
        weight: f64,
        summand: K::Gradient,
    ) -> Result<()> {
        // dfdx stores a gradient in the layout of its tensor. Contiguous rows are not copied.
        let rows = rows.try_contiguous().map_err(Error::device)?;
        self.gradients.push(RowGradient { rows, gradient: Weighted { weight, summand } });
        Ok(())
    }

    /// Adds `weight` times a number to the derivative with respect to ln τ. The number is computed only if τ
    /// is learned.
    ///
    /// # Errors
    /// The errors of `number`.
    pub fn add_by_log_temperature(
        &mut self,
        weight: f64,
        number: impl FnOnce() -> Result<K::Number>,
    ) -> Result<()> {
        if let Some(temperature) = &mut self.temperature {
            temperature.derivative.push(Weighted { weight, summand: number()? });
        }
        Ok(())
    }
}

/// Stands in for the kernels of a device that has none. This type has no values.
#[derive(Clone, Copy, Debug)]
pub enum NoKernels {}

impl<E: Scalar, D: Backend<E>> SoftmaxKernels<E, D> for NoKernels {
    type Rows = NoKernels;
    type Number = NoKernels;
    type Gradient = NoKernels;

    fn rows<T: Tape<E, D>>(&self, _: &Matrix<E, D, T>) -> Result<NoKernels> {
        match *self {}
    }
    fn constant_rows(&self, _: &Constant<E, D>) -> Result<NoKernels> {
        match *self {}
    }
    fn cross_entropy(
        &self,
        _: &NoKernels,
        _: Positives<&NoKernels, E>,
        _: &[Bank<'_, &NoKernels, E>],
        _: usize,
    ) -> Result<Graded<NoKernels, NoKernels>> {
        match *self {}
    }
    fn in_batch(&self, _: [&NoKernels; 2], _: E, _: usize) -> Result<Graded<NoKernels, [NoKernels; 2]>> {
        match *self {}
    }
    fn dot(&self, _: &[&NoKernels], _: &[&NoKernels]) -> Result<NoKernels> {
        match *self {}
    }
    fn record(&self, _: FusedLoss<E, D, Self>) -> Result<Value<E, D>> {
        match *self {}
    }
}

impl<E: Scalar, D: Backend<E>> Batch<E, D> {
    /// Returns the kernels of the batch's device for a softmax, or `None` if it has none or the batch is
    /// empty.
    ///
    /// # Errors
    /// If the device fails.
    pub fn softmax_kernels(&self) -> Result<Option<D::Softmax>> {
        if self.size() == 0 || self.dim() == 0 {
            return Ok(None);
        }
        self.device().softmax_kernels()
    }
}
