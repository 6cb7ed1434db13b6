//! Optimizers, with their whole state in the open.

use crate::registry::Component;
use crate::{Clock, Compute, Param, Result};

/// What holds for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepContext {
    /// The learning rate, schedule included, before the factor of each parameter ([`Param::lr_scale`]).
    pub lr: f64,
    /// Where the run is, for values that follow a schedule of their own.
    pub clock: Clock,
}

/// What an optimizer carries from step to step.
#[derive(Debug)]
pub struct State<D: Compute> {
    /// Steps taken.
    pub steps: u64,
    /// For each parameter, in the order of the parameters, its buffers in the order of [`Optimizer::slots`].
    pub slots: Vec<Vec<D::Buffer>>,
}

/// A registered optimizer.
pub trait Optimizer<D: Compute>: Component {
    /// The names of the buffers kept for each parameter, such as `["momentum"]`.
    fn slots(&self) -> &'static [&'static str];

    /// The base learning rate for a batch of so many images, which the run's schedule multiplies.
    fn learning_rate(&self, batch: usize) -> f64;

    /// One update of all parameters that are not frozen.
    ///
    /// # Errors
    /// If the device fails.
    fn step(&self, device: &D, params: &[Param<D>], state: &mut State<D>, now: &StepContext) -> Result<()>;

    /// The state before the first step.
    ///
    /// # Errors
    /// If the device fails.
    fn start(&self, device: &D, params: &[Param<D>]) -> Result<State<D>> {
        let zeros = |p: &Param<D>| self.slots().iter().map(|_| device.zero_buffer(p.len())).collect();
        Ok(State { steps: 0, slots: params.iter().map(zeros).collect::<Result<_>>()? })
    }
}

/// What is asked of an optimizer before it is on any device: the same on all of them.
impl crate::Configured<crate::registry::kind::Optimizer> {
    fn anywhere(&self) -> &dyn Optimizer<dfdx::prelude::Cpu> {
        dfdx::prelude::Cpu::optimizer(&*self.value)
    }

    /// [`Optimizer::learning_rate`].
    pub fn learning_rate(&self, batch: usize) -> f64 {
        self.anywhere().learning_rate(batch)
    }

    /// [`Optimizer::slots`].
    pub fn slots(&self) -> &'static [&'static str] {
        self.anywhere().slots()
    }
}
