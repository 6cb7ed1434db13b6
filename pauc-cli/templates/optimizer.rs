//! An optimizer.

use pauc_traits::optimizer::{State, StepContext};
use pauc_traits::{Compute, LearningRate, Optimizer, Param, Result, UnitInterval, component};

component! {
    /// Updates by the sign of an averaged gradient: m ← βm + (1 − β)g, w ← w − η·sign(m).
    ///
    /// Works on every device, since it computes on the host: each step copies all parameters to the host and
    /// back. It has no weight decay.
    ///
    /// Source: the paper or code that this follows.
    pub struct OptimizerTemplate: Optimizer {
        /// The base learning rate η, multiplied by the schedule: a number, or `Scaled(base: 0.3, per: 256)`.
        pub lr: LearningRate,
        /// The decay β of the average.
        pub beta: UnitInterval = UnitInterval::lit(0.9),
    }
}

impl<D: Compute> Optimizer<D> for OptimizerTemplate {
    // The names of the buffers in checkpoints.
    fn slots(&self) -> &'static [&'static str] {
        &["average"]
    }

    fn learning_rate(&self, batch: usize) -> f64 {
        self.lr.at(batch)
    }

    fn step(&self, device: &D, params: &[Param<D>], state: &mut State<D>, now: &StepContext) -> Result<()> {
        state.steps += 1;
        let beta = self.beta.get() as f32;
        for (param, slots) in params.iter().zip(&mut state.slots).filter(|(param, _)| !param.is_frozen()) {
            let lr = (now.lr * param.lr_scale()) as f32;
            let gradient = device.download(&param.grad())?;
            let (mut values, mut average) = (device.download(&param.value())?, device.download(&slots[0])?);
            for ((value, average), gradient) in values.iter_mut().zip(&mut average).zip(gradient) {
                *average = beta * *average + (1.0 - beta) * gradient;
                // `signum` of 0 is 1.
                *value -= if *average == 0.0 { 0.0 } else { lr * average.signum() };
            }
            device.overwrite(&mut param.value_mut(), &values)?;
            device.overwrite(&mut slots[0], &average)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::Cpu;
    use pauc_traits::param::Role;
    use pauc_traits::{Clock, Positive};

    const NOW: f64 = 0.25;

    fn stepped(gradients: &[[f32; 3]], change: impl Fn(&Param<Cpu>)) -> (Vec<f32>, Vec<f32>) {
        let dev = Cpu::default();
        let optimizer = OptimizerTemplate { lr: Positive::lit(NOW).into(), beta: UnitInterval::lit(0.5) };
        let param = Param::new(&dev, "weight", &[3], Role::Weight, &[1.0, 2.0, 3.0]).unwrap();
        change(&param);
        let params = [param];
        let mut state = Optimizer::<Cpu>::start(&optimizer, &dev, &params).unwrap();
        for gradient in gradients {
            params[0].grad_mut().copy_from_slice(gradient);
            let now = StepContext { lr: NOW, clock: Clock::still() };
            optimizer.step(&dev, &params, &mut state, &now).unwrap();
        }
        assert_eq!(state.steps, gradients.len() as u64);
        (params[0].value().clone(), state.slots[0][0].clone())
    }

    #[test]
    fn steps_are_those_computed_by_hand() {
        let (value, average) = stepped(&[[4.0, -2.0, 0.0], [-8.0, -2.0, 0.0]], |_| ());
        // The averages are (2, −1, 0), then (−3, −1.5, 0).
        assert_eq!(average, [-3.0, -1.5, 0.0]);
        assert_eq!(value, [1.0, 2.5, 3.0]);
    }

    #[test]
    fn frozen_and_scaled_parameters_are_respected() {
        let gradient = [[4.0, -2.0, 0.0]];
        assert_eq!(stepped(&gradient, |p| p.set_frozen(true)).0, [1.0, 2.0, 3.0]);
        assert_eq!(stepped(&gradient, |p| p.set_lr_scale(2.0)).0, [0.5, 2.5, 3.0]);
    }
}
