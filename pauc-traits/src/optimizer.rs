//! Optimizers and their state.

use crate::registry::Component;
use crate::{Clock, Compute, Param, Result};

/// The conditions of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepContext {
    /// The learning rate of the schedule, before the factor of each parameter ([`Param::lr_scale`]).
    pub lr: f64,
    /// The position in the run, for values with their own schedule.
    pub clock: Clock,
}

/// The state that an optimizer carries from step to step.
#[derive(Debug)]
pub struct State<D: Compute> {
    /// The number of steps taken.
    pub steps: u64,
    /// The buffers of each parameter, in the order of the parameters, and within one in the order of
    /// [`Optimizer::slots`].
    pub slots: Vec<Vec<D::Buffer>>,
}

/// A registered optimizer.
pub trait Optimizer<D: Compute>: Component {
    /// Returns the names of the buffers kept for each parameter, such as `["momentum"]`.
    fn slots(&self) -> &'static [&'static str];

    /// Returns the base learning rate for a batch of this number of images. The schedule multiplies it.
    fn learning_rate(&self, batch: usize) -> f64;

    /// Updates all parameters that are not frozen.
    ///
    /// # Errors
    /// If the device fails.
    fn step(&self, device: &D, params: &[Param<D>], state: &mut State<D>, now: &StepContext) -> Result<()>;

    /// Returns the state before the first step.
    ///
    /// # Errors
    /// If the device fails.
    fn start(&self, device: &D, params: &[Param<D>]) -> Result<State<D>> {
        let zeros = |p: &Param<D>| self.slots().iter().map(|_| device.zero_buffer(p.len())).collect();
        Ok(State { steps: 0, slots: params.iter().map(zeros).collect::<Result<_>>()? })
    }
}

/// Properties of an optimizer that do not depend on the device.
impl crate::Configured<crate::registry::kind::Optimizer> {
    fn anywhere(&self) -> &dyn Optimizer<dfdx::prelude::Cpu> {
        dfdx::prelude::Cpu::optimizer(&*self.value)
    }

    /// Returns [`Optimizer::learning_rate`].
    pub fn learning_rate(&self, batch: usize) -> f64 {
        self.anywhere().learning_rate(batch)
    }

    /// Returns [`Optimizer::slots`].
    pub fn slots(&self) -> &'static [&'static str] {
        self.anywhere().slots()
    }
}
