//! A contrastive loss.

use dfdx::prelude::*;
use pauc_traits::backend::{Backend, Scalar, Value};
use pauc_traits::term::Facts;
use pauc_traits::{Batch, ContrastiveLoss, Needs, NonNegative, Result, TermInfo, component, ops};

component! {
    /// Triplet loss: mean_i max(0, margin − q_i·k_i + mean_{j≠i} q_i·k_j).
    ///
    /// # Shapes
    /// q, k: (B, D) unit rows → scalar
    ///
    /// With margin 0.2 and unrelated embeddings the loss is 0.2. It is 0 when every pair is closer than the
    /// mean of the others by the margin.
    pub struct Triplet: ContrastiveLoss {
        /// The margin, in cosine, by which a pair has to be closer than the mean of the others.
        pub margin: NonNegative = NonNegative::lit(0.2),
    }
}

impl TermInfo for Triplet {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], keys: &[1], ..Needs::default() }
    }
    fn chance_level(&self, _: &Facts) -> Option<f64> {
        Some(self.margin.get())
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for Triplet {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let b = batch.size();
        if b < 2 {
            return Ok(batch.skip("a triplet needs 2 samples"));
        }
        let (q, k) = (batch.z(0)?, batch.key(1)?);
        let positive = ops::row_dots(q.with_empty_tape(), k.with_empty_tape());
        let all = ops::dot_rows(q, k).sum::<(usize,), Axis<1>>();
        let others = (all - positive.with_empty_tape()) / E::of((b - 1) as f64);
        Ok(ops::mean((others - positive + E::of(self.margin.get())).relu()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::batch::Inputs;

    fn value(x: &[f64], k: &[f64], gradient: bool) -> (f64, Vec<f64>) {
        let dev = Cpu::default();
        let matrix = |v: &[f64]| dev.tensor_from_vec(v.to_vec(), (v.len() / 3, 3));
        let inputs =
            Inputs { views: vec![Some(matrix(x))], keys: vec![None, Some(matrix(k))], ..Inputs::default() };
        let batch = Batch::new(&dev, inputs).unwrap();
        let loss = Triplet { margin: NonNegative::lit(0.2) }.loss(&batch).unwrap();
        let number = ops::item(&loss);
        let gradient =
            if gradient { batch.backward(loss).unwrap().views[0].clone().unwrap() } else { Vec::new() };
        (number, gradient)
    }

    #[test]
    fn separated_pairs_cost_nothing_and_equal_rows_cost_the_margin() {
        let axes = [1., 0., 0., 0., 1., 0., 0., 0., 1.];
        assert_eq!(value(&axes, &axes, false).0, 0.0);
        let same = [1., 2., 3., 1., 2., 3.];
        // Cosines of 1 from a few operations, which cancel.
        assert!((value(&same, &same, false).0 - 0.2).abs() <= 32.0 * f64::EPSILON);
        assert_eq!(value(&[1., 2., 3.], &[1., 2., 3.], false).0, 0.0, "one sample: skipped");
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let x = [0.3, -0.2, 0.9, 0.4, 0.1, 0.8, -0.5, 0.6, 0.2];
        let k = [0.1, 0.5, 0.7, 0.6, -0.3, 0.2, 0.3, 0.3, 0.4];
        let gradient = value(&x, &k, true).1;
        for i in 0..x.len() {
            let shifted = |by: f64| {
                let mut x = x;
                x[i] += by;
                value(&x, &k, false).0
            };
            let step = 1e-5;
            let numeric = (shifted(step) - shifted(-step)) / (2.0 * step);
            // The truncation error is step²/6 times the third derivative. That of a cosine is at most
            // 12/‖x‖³. A row's loss is the difference of a cosine and a mean of others, and the shortest row
            // is 0.8 long. The rounding error is that of about 32 operations on numbers up to 2, divided by
            // the step.
            let truncation = step * step / 6.0 * 2.0 * 12.0 / 0.8f64.powi(3);
            let rounding = 32.0 * f64::EPSILON * 2.0 / step;
            let off = (numeric - gradient[i]).abs();
            assert!(off <= truncation + rounding, "{i}: {numeric} for {}", gradient[i]);
        }
    }
}
