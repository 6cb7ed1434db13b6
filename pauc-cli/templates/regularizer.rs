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
    /// From 0, the optimum, to α, where all embeddings are equal. Independent random directions give α/B on
    /// average, which is the chance level.
    ///
    /// # Gradient
    /// Pushes every embedding by the same amount, away from the mean of the batch. So it does not contract
    /// clusters.
    ///
    /// # When to use
    /// When to prefer this term to others, and which terms to combine it with.
    ///
    /// ```text
    /// (term: RegularizerTemplate(alpha: 1.0), weight: 1.0)
    /// ```
    ///
    /// Source: the paper or code that this follows.
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

    // The expected value for independent random directions.
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
        let term = RegularizerTemplate { alpha: NonNegative::lit(ALPHA) };
        let penalty = term.penalty(&batch).unwrap();
        let value = ops::item(&penalty);
        (value, batch.backward(penalty).unwrap().views[0].clone().unwrap())
    }

    /// The α of the tests.
    const ALPHA: f64 = 2.0;
    /// A bound on the rounding error of a value, which takes fewer than a hundred operations on numbers up to
    /// α.
    const ROUNDING: f64 = 100.0 * ALPHA * f64::EPSILON;

    #[test]
    fn known_values() {
        // `Batch` divides a row by √(‖x‖² + ε), which makes a squared length smaller by at most ε/‖x‖².
        let allowed = ROUNDING + ALPHA * ops::NORM_EPSILON;
        let same = [1., 2., 3.].repeat(4);
        assert!((run(&same, &same).0 - ALPHA).abs() <= allowed, "equal rows: collapse");
        let opposite = [1., 2., 3., -1., -2., -3.];
        assert!(run(&opposite, &opposite).0.abs() <= allowed, "opposite rows: their mean is the origin");
        // Three orthogonal rows: a mean of length 1/√3.
        let axes = [1., 0., 0., 0., 1., 0., 0., 0., 1.];
        assert!((run(&axes, &axes).0 - ALPHA / 3.0).abs() <= allowed);
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let (_, gradient) = run(&X, &Y);
        for (i, found) in gradient.iter().enumerate() {
            let difference = |step: f64| {
                let shifted = |by: f64| {
                    let mut x = X;
                    x[i] += by;
                    run(&x, &Y).0
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
    fn zero_rows_are_finite() {
        let (value, gradient) = run(&[0.0; 9], &[0.0; 9]);
        assert!(value.is_finite() && gradient.iter().all(|g| g.is_finite()));
    }
}
