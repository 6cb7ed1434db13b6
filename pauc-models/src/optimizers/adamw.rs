//! Adam with decoupled weight decay.

use super::{Mover, is_weight_like, movers};
use crate::device::NetworkDevice;
use pauc_kernels::optim as kernel;
use pauc_traits::optimizer::{State, StepContext};
use pauc_traits::{
    LearningRate, NonNegative, Optimizer, Param, Positive, Result, Scheduled, UnitInterval, component,
};

component! {
    /// Adam with decoupled weight decay: w ← (1 − ηλ)w − η·m̂/(√ŝ + ε).
    ///
    /// m and s are moving averages of g and g². Their bias from the start at zero is corrected by the number
    /// of steps of the run, so a parameter that is unfrozen later starts with shorter steps. Source:
    /// Loshchilov & Hutter 2019, PyTorch's `AdamW`.
    pub struct AdamW: Optimizer {
        /// The base learning rate η, multiplied by the schedule: a number, or `Scaled(base: 0.3, per: 256)`.
        pub lr: LearningRate,
        /// The momentum of m.
        pub beta1: UnitInterval = UnitInterval::lit(0.9),
        /// The momentum of s.
        pub beta2: UnitInterval = UnitInterval::lit(0.999),
        /// ε, added to the root.
        pub epsilon: Positive = Positive::lit(1e-8),
        /// λ, multiplied by the current learning rate.
        pub weight_decay: Scheduled<NonNegative> = NonNegative::lit(0.01).into(),
        /// Whether biases and parameters of normalization layers also decay, as by default in PyTorch.
        pub decay_norm_and_bias: bool = true,
    }
}

impl<D: NetworkDevice> Optimizer<D> for AdamW {
    fn slots(&self) -> &'static [&'static str] {
        &["mean", "square"]
    }

    fn learning_rate(&self, batch: usize) -> f64 {
        self.lr.at(batch)
    }

    fn step(&self, device: &D, params: &[Param<D>], state: &mut State<D>, now: &StepContext) -> Result<()> {
        let weight_decay = self.weight_decay.at(&now.clock);
        let number = state.steps + 1;
        let mut all = movers(params, state, now)?;
        let constants = |m: &Mover<'_, D, 2>| kernel::AdamW {
            lr: m.lr,
            betas: (self.beta1.get(), self.beta2.get()),
            epsilon: self.epsilon.get(),
            weight_decay: match is_weight_like(m.param, self.decay_norm_and_bias) {
                true => weight_decay,
                false => 0.0,
            },
            step: number,
        };
        let constants: Vec<_> = all.iter().map(constants).collect();
        device.adamw(&mut all.iter_mut().map(Mover::moving).collect::<Vec<_>>(), &constants)
    }
}
