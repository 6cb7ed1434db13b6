//! Optimizers, and gradient clipping before their step.

mod adamw;
mod clip;
mod lars;
mod sgd;

pub use adamw::AdamW;
pub use clip::{clip_gradients, shorten_gradients, squared_gradients};
pub use lars::Lars;
pub use sgd::Sgd;

use crate::device::Moving;
use pauc_traits::optimizer::{State, StepContext};
use pauc_traits::param::Role;
use pauc_traits::{Compute, Error, Param, Result};
use std::cell::{Ref, RefMut};

/// A parameter to update, with N buffers of state.
struct Mover<'a, D: Compute, const N: usize> {
    param: &'a Param<D>,
    value: RefMut<'a, D::Buffer>,
    grad: Ref<'a, D::Buffer>,
    kept: &'a mut [D::Buffer; N],
    lr: f64,
}

impl<D: Compute, const N: usize> Mover<'_, D, N> {
    /// Converts it to the arguments of a device.
    fn moving(&mut self) -> Moving<'_, D::Buffer, N> {
        (&mut self.value, &self.grad, self.kept.each_mut())
    }
}

/// Returns the parameters that are not frozen, and counts the step.
fn movers<'a, D: Compute, const N: usize>(
    params: &'a [Param<D>],
    state: &'a mut State<D>,
    now: &StepContext,
) -> Result<Vec<Mover<'a, D, N>>> {
    if state.slots.len() != params.len() {
        let message = format!("the state is for {} parameters, got {}", state.slots.len(), params.len());
        return Err(Error::shape("optimizer", message));
    }
    state.steps += 1;
    let moves = params.iter().zip(&mut state.slots).filter(|(p, _)| !p.is_frozen());
    let mover = |(param, slots): (&'a Param<D>, &'a mut Vec<D::Buffer>)| {
        let (value, grad, lr) = (param.value_mut(), param.grad(), now.lr * param.lr_scale());
        Ok(Mover { param, value, grad, kept: buffers(&param.name, slots)?, lr })
    };
    moves.map(mover).collect()
}

/// Splits a parameter's state into its N buffers.
fn buffers<'a, B, const N: usize>(param: &str, slots: &'a mut [B]) -> Result<&'a mut [B; N]> {
    let got = slots.len();
    slots.try_into().map_err(|_| Error::shape(param, format!("has {got} buffers of state; expected {N}")))
}

/// Returns whether a parameter is treated like a weight. `norm_and_bias` says whether biases and parameters
/// of normalization layers are.
fn is_weight_like<D: Compute>(param: &Param<D>, norm_and_bias: bool) -> bool {
    match param.role {
        Role::Weight => true,
        Role::Bias | Role::Norm => norm_and_bias,
        Role::Scalar | Role::Statistic => false,
    }
}
