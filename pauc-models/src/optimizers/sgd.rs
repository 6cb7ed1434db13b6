//! Stochastic gradient descent.

use super::{Mover, is_weight_like, movers};
use crate::device::NetworkDevice;
use pauc_kernels::optim as kernel;
use pauc_traits::optimizer::{State, StepContext};
use pauc_traits::{LearningRate, NonNegative, Optimizer, Param, Result, Scheduled, UnitInterval, component};

component! {
    /// Stochastic gradient descent with momentum: v ← μv + g + λw, w ← w − η·v.
    ///
    /// With Nesterov's momentum, w ← w − η·(g + λw + μv). Source: PyTorch's `SGD` without dampening. The
    /// defaults are those of MoCo and PCL.
    pub struct Sgd: Optimizer {
        /// The base learning rate η, multiplied by the schedule: a number, or `Scaled(base: 0.3, per: 256)`.
        pub lr: LearningRate,
        /// μ.
        pub momentum: UnitInterval = UnitInterval::lit(0.9),
        /// λ, coupled: the decay passes through the momentum.
        pub weight_decay: Scheduled<NonNegative> = NonNegative::lit(1e-4).into(),
        /// Whether to use Nesterov's momentum.
        pub nesterov: bool = false,
        /// Whether biases and parameters of normalization layers also decay, as by default in PyTorch.
        pub decay_norm_and_bias: bool = true,
    }
}

impl<D: NetworkDevice> Optimizer<D> for Sgd {
    fn slots(&self) -> &'static [&'static str] {
        &["momentum"]
    }

    fn learning_rate(&self, batch: usize) -> f64 {
        self.lr.at(batch)
    }

    fn step(&self, device: &D, params: &[Param<D>], state: &mut State<D>, now: &StepContext) -> Result<()> {
        let weight_decay = self.weight_decay.at(&now.clock);
        let mut all = movers(params, state, now)?;
        let constants = |m: &Mover<'_, D, 1>| kernel::Sgd {
            lr: m.lr as f32,
            momentum: self.momentum.get() as f32,
            weight_decay: match is_weight_like(m.param, self.decay_norm_and_bias) {
                true => weight_decay as f32,
                false => 0.0,
            },
            adaptation: 1.0,
            nesterov: self.nesterov,
        };
        let constants: Vec<_> = all.iter().map(constants).collect();
        device.sgd(&mut all.iter_mut().map(Mover::moving).collect::<Vec<_>>(), &constants)
    }
}
