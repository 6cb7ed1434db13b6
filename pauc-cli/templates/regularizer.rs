//! A regularizer.

use dfdx::prelude::*;
use pauc_traits::term::Facts;
use pauc_traits::{
    Backend, Batch, Needs, NonNegative, Regularizer, Result, Scalar, TermInfo, Value, component,
};

component! {
    /// Keeps the mean of the embeddings near the origin.
    ///
    /// ```text
    /// L = mean of both views, α·‖mean_i z_i‖²
    /// ```
    ///
    /// # Shapes
    /// Two views (B, D) → scalar.
    ///
    /// # Reading
    /// α means complete collapse, 0 is the optimum. Chance is α/B.
    ///
    /// # Gradient
    /// Pushes all embeddings equally away from their mean. It does not contract clusters.
    ///
    /// # When to use
    /// Write here when this is the right term, and which terms to combine it with.
    ///
    /// ```text
    /// (term: RegularizerTemplate(alpha: 1.0), weight: 1.0)
    /// ```
    ///
    /// Source: the paper or code that the idea is from.
    pub struct RegularizerTemplate: Regularizer {
        /// The factor α.
        pub alpha: NonNegative = NonNegative::lit(1.0),
    }
}

impl TermInfo for RegularizerTemplate {
    // The inputs that the engine computes: embeddings of both views.
    fn needs(&self) -> Needs {
        Needs { queries: &[0, 1], ..Needs::default() }
    }

    // The value for uninformative embeddings, which have independent directions.
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        (facts.batch > 0).then(|| self.alpha.get() / facts.batch as f64)
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for RegularizerTemplate {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let mean_length = |view| -> Result<Value<E, D>> {
            let mean = batch.z(view)?.mean::<(usize,), Axis<0>>();
            Ok(mean.square().sum::<Rank0, _>())
        };
        Ok((mean_length(0)? + mean_length(1)?) * E::of(0.5 * self.alpha.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::batch::Inputs;
    use pauc_traits::ops;

    const X: [f64; 9] = [0.3, -0.2, 0.9, 0.4, 0.1, 0.8, -0.5, 0.6, 0.2];
    const Y: [f64; 9] = [0.1, 0.5, 0.7, 0.6, -0.3, 0.2, 0.3, 0.3, 0.4];

    /// Returns the value for rows of three numbers, and its gradient with respect to the first view.
    fn run(x: &[f64], y: &[f64]) -> (f64, Vec<f64>) {
        let dev = Cpu::default();
        let matrix = |v: &[f64]| Some(dev.tensor_from_vec(v.to_vec(), (v.len() / 3, 3)));
        let inputs = Inputs { views: vec![matrix(x), matrix(y)], ..Inputs::default() };
        let batch = Batch::new(&dev, inputs).unwrap();
        let term = RegularizerTemplate { alpha: NonNegative::lit(2.0) };
        let penalty = term.penalty(&batch).unwrap();
        let value = ops::item(&penalty);
        (value, batch.backward(penalty).unwrap().views[0].clone().unwrap())
    }

    #[test]
    fn known_values() {
        let same = [1., 2., 3.].repeat(4);
        assert!((run(&same, &same).0 - 2.0).abs() < 1e-9, "equal rows: collapse");
        let opposite = [1., 2., 3., -1., -2., -3.];
        assert!(run(&opposite, &opposite).0.abs() < 1e-9, "opposite rows: their mean is the origin");
        // Three orthogonal rows: a mean of length 1/√3.
        let axes = [1., 0., 0., 0., 1., 0., 0., 0., 1.];
        assert!((run(&axes, &axes).0 - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let (_, gradient) = run(&X, &Y);
        for i in 0..X.len() {
            let shifted = |by: f64| {
                let mut x = X;
                x[i] += by;
                run(&x, &Y).0
            };
            let want = (shifted(1e-6) - shifted(-1e-6)) / 2e-6;
            assert!(
                (gradient[i] - want).abs() < 1e-6 * (1.0 + want.abs()),
                "{i}: {} for {want}",
                gradient[i]
            );
        }
    }

    #[test]
    fn zero_rows_are_finite() {
        let (value, gradient) = run(&[0.0; 9], &[0.0; 9]);
        assert!(value.is_finite() && gradient.iter().all(|g| g.is_finite()));
    }
}
