//! Encoders in plain dfdx operations. They run on every device without further work, and are examples of how
//! to write one.
//!
//! An encoder owns [`Param`]s. A training pass puts them on the tape with [`Param::traced`], whose backward
//! pass adds to the gradient of the parameter. In other passes they are constants. [`Leaf`] makes this choice
//! by the type of the tape, so that layers are written only once.

mod mlp;
mod vit;

pub use mlp::MlpEncoder;
pub(crate) use mlp::Perceptron;
pub(crate) use vit::{Block as TransformerBlock, Plan as TransformerPlan};
pub use vit::{Mlp, Pool, Size, Transformer, VisionTransformer};

use dfdx::prelude::*;
use pauc_traits::{Compute, Error, Param, Result};

/// A tape type that determines how a parameter enters a computation.
pub trait Leaf<D: Compute>: Tape<f32, D> {
    /// Returns the parameter as a tensor.
    ///
    /// # Errors
    /// If the shape has another number of elements, or the device fails.
    fn leaf<S: Shape>(device: &D, param: &Param<D>, shape: S) -> Result<Tensor<S, f32, D, Self>>;
}

impl<D: Compute> Leaf<D> for OwnedTape<f32, D> {
    fn leaf<S: Shape>(device: &D, param: &Param<D>, shape: S) -> Result<Tensor<S, f32, D, Self>> {
        param.traced(device, shape)
    }
}

impl<D: Compute> Leaf<D> for NoneTape {
    fn leaf<S: Shape>(device: &D, param: &Param<D>, shape: S) -> Result<Tensor<S, f32, D, Self>> {
        device.buffer_tensor(&param.value(), shape)
    }
}

/// Computes x·Wᵀ + b.
///
/// # Shapes
/// x (N, inputs), W (outputs, inputs) or (outputs, …) with the same number of elements, b (outputs) → (N,
/// outputs)
///
/// # Errors
/// If the size of the weight is not a multiple of the bias's, or the device fails.
///
/// # Panics
/// If x and the weight have different numbers of columns, like every dfdx product.
pub fn linear<D: Compute, T: Leaf<D>>(
    x: Tensor<(usize, usize), f32, D, T>,
    [weight, bias]: &[Param<D>; 2],
) -> Result<Tensor<(usize, usize), f32, D, T>> {
    let (outputs, inputs) = (bias.len(), weight.len().checked_div(bias.len()).unwrap_or(0));
    let device = x.device().clone();
    let weight = T::leaf(&device, weight, (outputs, inputs))?;
    let weight = weight.try_permute::<_, Axes2<1, 0>>().map_err(Error::device)?;
    let y = x.try_matmul(weight).map_err(Error::device)?;
    let bias = T::leaf(&device, bias, (outputs,))?;
    let bias = bias.try_broadcast_like::<_, Axis<0>>(y.shape()).map_err(Error::device)?;
    y.try_add(bias).map_err(Error::device)
}

/// ε of layer normalization, timm's for vision transformers.
pub(crate) const LAYER_NORM_EPSILON: f64 = 1e-6;

/// Computes (x − mean)/√(variance + 1e-6)·γ + β over each row.
///
/// # Shapes
/// x (N, width), γ (width), β (width) → (N, width)
///
/// # Errors
/// If γ or β does not have the length of the rows, or the device fails.
pub fn layer_norm<D: Compute, T: Leaf<D>>(
    x: Tensor<(usize, usize), f32, D, T>,
    [gamma, beta]: &[Param<D>; 2],
) -> Result<Tensor<(usize, usize), f32, D, T>> {
    let (device, shape) = (x.device().clone(), *x.shape());
    let gamma = T::leaf(&device, gamma, (shape.1,))?;
    let beta = T::leaf(&device, beta, (shape.1,))?;
    let scaled = || {
        let gamma = gamma.try_broadcast_like::<_, Axis<0>>(&shape)?;
        let beta = beta.try_broadcast_like::<_, Axis<0>>(&shape)?;
        x.try_normalize::<Axis<1>>(LAYER_NORM_EPSILON)?.try_mul(gamma)?.try_add(beta)
    };
    scaled().map_err(Error::device)
}

/// Computes x·Φ(x), the exact GELU.
///
/// dfdx 0.13 computes the value correctly but not the derivative: for `accurate_gelu` it is Φ(x) + √2·x·φ(x),
/// which lacks a factor of 1/√2. The difference is added as (x − x₀)·(1 − √2)·x₀·φ(x₀), where x₀ is a
/// constant with x's value. This term is zero except for its gradient.
///
/// # Errors
/// If the device fails.
pub fn gelu<S: Shape, D: Compute, T: Tape<f32, D>>(x: Tensor<S, f32, D, T>) -> Result<Tensor<S, f32, D, T>> {
    use std::f32::consts::{PI, SQRT_2};
    let corrected = || {
        // Multiplying by one gives the constant its own identity on the tape.
        let constant = x.retaped::<NoneTape>().try_mul(1.0)?;
        let density = constant.clone().try_square()?.try_mul(-0.5)?.try_exp()?.try_div((2.0 * PI).sqrt())?;
        let slope = density.try_mul(constant.clone())?.try_mul(1.0 - SQRT_2)?;
        let correction = x.with_empty_tape().try_sub(constant)?.try_mul(slope)?;
        x.try_accurate_gelu()?.try_add(correction)
    };
    corrected().map_err(Error::device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::ops;

    #[test]
    fn gelu_has_the_derivative_of_its_value() {
        let dev = Cpu::default();
        let at = [-3.0f32, -1.0, -0.1, 0.0, 0.5, 2.0];
        let x = dev.tensor_from_vec(at.to_vec(), (at.len(),));
        let y = gelu(x.retaped::<OwnedTape<f32, Cpu>>()).unwrap();
        // PyTorch's torch.nn.functional.gelu and its gradient, in float64.
        let values = [-0.004049694, -0.158655254, -0.046017217, 0.0, 0.345731231, 1.954499736];
        let slopes = [-0.011945647, -0.083315471, 0.420476907, 0.5, 0.867495125, 1.085231801];
        // The references have nine decimal digits.
        const DIGITS: f64 = 0.5e-9;
        for ((got, want), x) in y.as_vec().iter().zip(values).zip(at) {
            // x/√2, erf, a sum with 1 and two products. Errors of x·(1 + erf(x/√2))/2 are relative to x.
            assert_within!(*got, want, tolerance::f32(6, x.abs().into()) + DIGITS);
        }
        let gradient = ops::gradient(&mut y.sum::<Rank0, _>().backward(), &x).unwrap();
        for ((got, want), x) in gradient.iter().zip(slopes).zip(at) {
            // (1 + erf(x/√2))/2 and √2·x·φ(x) + (1 − √2)·x·φ(x), where exp(−x²/2) has the relative error of
            // its argument and of some more operations.
            let x = f64::from(x);
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let terms = (2.0 * 2f64.sqrt() - 1.0) * x.abs() * density;
            let operations = 8 + (0.5 * x * x) as usize * 2;
            assert_within!(*got, want, tolerance::f32(5, 1.0) + tolerance::f32(operations, terms) + DIGITS);
        }
    }
}
