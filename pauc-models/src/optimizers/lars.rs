//! Layer-wise adaptive rate scaling.

use super::{Mover, is_weight_like, movers};
use crate::device::NetworkDevice;
use pauc_kernels::optim as kernel;
use pauc_traits::optimizer::{State, StepContext};
use pauc_traits::{
    LearningRate, NonNegative, Optimizer, Param, Positive, Result, Scheduled, UnitInterval, component,
};

component! {
    /// SGD whose step on each weight is proportional to the weight's norm, for large batches.
    ///
    /// d = a·(g + λw) with a = trust·‖w‖/(‖g‖ + λ‖w‖ + 1e-8), v ← μv + d and w ← w − η·v. If a norm is zero,
    /// and for biases and parameters of normalization layers, a is 1 and nothing decays. Source: You et al.
    /// 2017, as in lightly's `LARS`.
    pub struct Lars: Optimizer {
        /// The base learning rate η, multiplied by the schedule: a number, or `Scaled(base: 0.3, per: 256)`.
        pub lr: LearningRate,
        /// μ.
        pub momentum: UnitInterval = UnitInterval::lit(0.9),
        /// λ.
        pub weight_decay: Scheduled<NonNegative> = NonNegative::lit(1e-6).into(),
        /// The trust coefficient.
        pub trust: Positive = Positive::lit(1e-3),
        /// Whether to use Nesterov's momentum.
        pub nesterov: bool = false,
        /// Whether biases and parameters of normalization layers are scaled and decay like weights.
        pub adapt_norm_and_bias: bool = false,
    }
}

impl<D: NetworkDevice> Optimizer<D> for Lars {
    fn slots(&self) -> &'static [&'static str] {
        &["momentum"]
    }

    fn learning_rate(&self, batch: usize) -> f64 {
        self.lr.at(batch)
    }

    fn step(&self, device: &D, params: &[Param<D>], state: &mut State<D>, now: &StepContext) -> Result<()> {
        let weight_decay = self.weight_decay.at(&now.clock);
        let mut all = movers(params, state, now)?;
        let buffers: Vec<_> = all.iter().flat_map(|m| [&*m.value, &*m.grad]).collect();
        let squares = device.squared_norms(&buffers)?;
        let constants = |(m, squares): (&Mover<'_, D, 1>, &[f64; 2])| {
            let adapts = is_weight_like(m.param, self.adapt_norm_and_bias);
            let [w, g] = squares.map(f64::sqrt);
            let (weight_decay, adaptation) = if adapts && w != 0.0 && g != 0.0 {
                (weight_decay, self.trust.get() * w / (g + weight_decay * w + 1e-8))
            } else {
                (0.0, 1.0)
            };
            kernel::Sgd {
                lr: m.lr as f32,
                momentum: self.momentum.get() as f32,
                weight_decay: weight_decay as f32,
                adaptation: adaptation as f32,
                nesterov: self.nesterov,
            }
        };
        let constants: Vec<_> = all.iter().zip(squares.as_chunks::<2>().0).map(constants).collect();
        device.sgd(&mut all.iter_mut().map(Mover::moving).collect::<Vec<_>>(), &constants)
    }
}
