//! A contrastive loss.

use pauc_traits::term::{Contrast, Facts};
use pauc_traits::{
    Backend, Batch, ContrastiveLoss, Needs, Positive, Result, Scalar, Temperature, TermInfo, Value,
    component, ops,
};

component! {
    /// Softmax over cosines that identifies each sample's key among the keys of the batch.
    ///
    /// ```text
    /// L = mean_i −log [ exp(q_i·k_i/τ) / Σ_j exp(q_i·k_j/τ) ]
    /// ```
    ///
    /// # Shapes
    /// (B, D) queries of view 0 and keys of view 1 → scalar.
    ///
    /// # Reading
    /// The chance level is ln B: all cosines are equal.
    ///
    /// # Gradient
    /// Pulls each query toward its own key and pushes it away from the other keys, also from those of its own
    /// class. So it does not contract clusters.
    ///
    /// # When to use
    /// When to prefer this term to others, and which terms to combine it with.
    ///
    /// ```text
    /// (term: LossTemplate(temperature: 0.2), weight: 1.0)
    /// ```
    ///
    /// # Degenerate batches
    /// One sample has no negatives: the term is skipped.
    ///
    /// Source: the paper or code that this follows.
    pub struct LossTemplate: ContrastiveLoss {
        /// The temperature τ: a number, a schedule, or Learnable(init: 0.07, min: 0.01).
        pub temperature: Temperature = Positive::lit(0.2).into(),
    }
}

impl TermInfo for LossTemplate {
    // The inputs that the engine computes: embeddings of view 0, keys of view 1.
    fn needs(&self) -> Needs {
        Needs { queries: &[0], keys: &[1], ..Needs::default() }
    }

    // The value for embeddings that carry no information about the images.
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        (facts.batch > 0).then(|| (facts.batch as f64).ln())
    }

    // The positives and negatives per query, for `explain`.
    fn contrast(&self, facts: &Facts) -> Option<Contrast> {
        Some(Contrast { positives: 1, negatives: facts.batch.saturating_sub(1) })
    }

    // The parameter of a learnable temperature.
    fn parameters(&self, _: &Facts) -> Vec<pauc_traits::term::TermParameter> {
        self.temperature.parameters()
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for LossTemplate {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        if batch.size() < 2 {
            return Ok(batch.skip("one sample has no negatives"));
        }
        let cosines = ops::dot_rows(batch.z(0)?, batch.key(1)?);
        let own: Vec<usize> = (0..batch.size()).collect();
        Ok(ops::mean(ops::cross_entropy_rows(self.temperature.divide(batch, cosines)?, &own)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::{Cpu, TensorFromVec};
    use pauc_traits::batch::Inputs;

    const Q: [f64; 9] = [0.3, -0.2, 0.9, 0.4, 0.1, 0.8, -0.5, 0.6, 0.2];
    const K: [f64; 9] = [0.1, 0.5, 0.7, 0.6, -0.3, 0.2, 0.3, 0.3, 0.4];

    /// Returns the value for rows of three numbers, and its gradient with respect to the queries.
    fn run(q: &[f64], k: &[f64]) -> (f64, Vec<f64>) {
        let dev = Cpu::default();
        let matrix = |v: &[f64]| Some(dev.tensor_from_vec(v.to_vec(), (v.len() / 3, 3)));
        let inputs = Inputs { views: vec![matrix(q)], keys: vec![None, matrix(k)], ..Inputs::default() };
        let batch = Batch::new(&dev, inputs).unwrap();
        let term = LossTemplate { temperature: Positive::lit(0.2).into() };
        let loss = term.loss(&batch).unwrap();
        let value = ops::item(&loss);
        (value, batch.backward(loss).unwrap().views[0].clone().unwrap())
    }

    /// The largest factor of a cosine, 1/τ.
    const STEEPEST: f64 = 5.0;
    /// A bound on the rounding error of a value, which takes fewer than a hundred operations on numbers up to
    /// 1/τ.
    const ROUNDING: f64 = 100.0 * STEEPEST * f64::EPSILON;

    #[test]
    fn known_values() {
        // `Batch` divides a row by √(‖x‖² + ε), which makes a cosine smaller by at most ε/‖x‖².
        let allowed = ROUNDING + STEEPEST * ops::NORM_EPSILON;
        // Three orthogonal pairs: −ln softmax of 5 against 0 and 0.
        let axes = [1., 0., 0., 0., 1., 0., 0., 0., 1.];
        assert!((run(&axes, &axes).0 - (1.0 + 2.0 * (-5f64).exp()).ln()).abs() <= allowed);
        // Equal rows are indistinguishable.
        let same = [1., 2., 3.].repeat(4);
        assert!((run(&same, &same).0 - 4f64.ln()).abs() <= allowed);
        assert_eq!(run(&[1., 2., 3.], &[1., 2., 3.]).0, 0.0, "one sample: skipped");
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let (_, gradient) = run(&Q, &K);
        for (i, found) in gradient.iter().enumerate() {
            let difference = |step: f64| {
                let shifted = |by: f64| {
                    let mut q = Q;
                    q[i] += by;
                    run(&q, &K).0
                };
                (shifted(step) - shifted(-step)) / (2.0 * step)
            };
            let (want, wider) = (difference(1e-4), difference(2e-4));
            // Twice the step means four times the truncation error, so the two differ by three times that of
            // the smaller step. The rounding error of two values is divided by 2·step.
            let allowed = (wider - want).abs() + ROUNDING / 1e-4;
            assert!((found - want).abs() <= allowed, "{i}: {found} for {want} ± {allowed}");
        }
    }

    #[test]
    fn the_order_of_samples_and_the_axes_do_not_matter() {
        let swap_rows = |m: [f64; 9]| [m[6], m[7], m[8], m[3], m[4], m[5], m[0], m[1], m[2]];
        let turn = |m: [f64; 9]| [m[1], m[2], m[0], m[4], m[5], m[3], m[7], m[8], m[6]];
        let value = run(&Q, &K).0;
        for other in [run(&swap_rows(Q), &swap_rows(K)).0, run(&turn(Q), &turn(K)).0] {
            assert!((value - other).abs() <= 2.0 * ROUNDING);
        }
    }

    #[test]
    fn zero_rows_are_finite() {
        let (value, gradient) = run(&[0.0; 9], &[0.0; 9]);
        assert!(value.is_finite() && gradient.iter().all(|g| g.is_finite()));
    }
}
