//! Optimisers, and the clipping of gradients before they step.

mod adamw;
mod clip;
mod lars;
mod sgd;

pub use adamw::AdamW;
pub use clip::clip_gradients;
pub use lars::Lars;
pub use sgd::Sgd;

use pauc_traits::optimizer::{Moment, State};
use pauc_traits::param::Role;
use pauc_traits::{Compute, Error, Param, Result};

/// Calls `update` with each parameter that is not frozen, its buffers and its learning rate, and counts the step.
fn step<D: Compute>(
    params: &[Param<D>],
    state: &mut State<D>,
    now: &Moment,
    update: impl Fn(&Param<D>, &mut [D::Buffer], f64) -> Result<()>,
) -> Result<()> {
    if state.slots.len() != params.len() {
        let message = format!("the state is for {} parameters, got {}", state.slots.len(), params.len());
        return Err(Error::shape("optimizer", message));
    }
    for (param, slots) in params.iter().zip(&mut state.slots).filter(|(p, _)| !p.is_frozen()) {
        update(param, slots, now.lr * param.lr_scale())?;
    }
    state.steps += 1;
    Ok(())
}

/// Takes a parameter's buffers apart.
fn buffers<'a, B, const N: usize>(param: &str, slots: &'a mut [B]) -> Result<&'a mut [B; N]> {
    let got = slots.len();
    slots.try_into().map_err(|_| Error::shape(param, format!("has {got} buffers of state instead of {N}")))
}

/// Whether a parameter is treated like a weight, where `norm_and_bias` says so of biases and normalisation layers.
fn is_weight_like<D: Compute>(param: &Param<D>, norm_and_bias: bool) -> bool {
    match param.role {
        Role::Weight => true,
        Role::Bias | Role::Norm => norm_and_bias,
        Role::Scalar | Role::Statistic => false,
    }
}
