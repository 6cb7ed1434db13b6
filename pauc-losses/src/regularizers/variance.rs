//! A hinge on the standard deviation of every dimension.

use crate::{findings, rows};
use pauc_traits::term::{Facts, Finding};
use pauc_traits::{
    Backend, Batch, Needs, Positive, Regularizer, Result, Scalar, Scheduled, TermInfo, Value, component,
};

component! {
    /// Keeps every dimension of the raw outputs spread over the batch.
    ///
    /// ```text
    /// L = mean of both views, mean_d ReLU(γ − √(var(x)_d + 1e-4))
    /// ```
    ///
    /// It uses the unbiased variance. This is the variance part of VICReg.
    ///
    /// # Shapes
    /// Two views (B, D) → scalar.
    ///
    /// # Reading
    /// 0 means satisfied; γ − 0.01 means complete collapse. There is no chance level.
    ///
    /// # Gradient
    /// Scales a dimension up until its deviation reaches γ; there the gradient vanishes. It ignores clusters
    /// and does not contract them.
    ///
    /// # When to use
    /// Against collapse to a point or a line, beside a term that pulls and reads raw outputs. It does not
    /// decorrelate dimensions: add `Correlation(level: Instances, kind: Covariance)` for that.
    ///
    /// ```text
    /// (term: Variance(gamma: 1.0), weight: 1.0)
    /// ```
    ///
    /// # Degenerate batches
    /// With one sample there is no variance: the term is skipped.
    ///
    /// Source: Bardes et al. 2022 (VICReg).
    pub struct Variance: Regularizer {
        /// The standard deviation γ that every dimension should reach.
        pub gamma: Scheduled<Positive> = Positive::lit(1.0).into(),
    }
}

impl TermInfo for Variance {
    fn needs(&self) -> Needs {
        Needs { queries: &[0, 1], ..Needs::default() }
    }

    fn chance_level(&self, _: &Facts) -> Option<f64> {
        None
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        findings::at_least_two(facts)
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for Variance {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        if batch.size() < 2 {
            return Ok(batch.skip("one sample has no variance"));
        }
        rows::mean_over_views(|v| Ok(rows::deviation_hinge(batch.x(v)?, self.gamma.at(batch.clock()))))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Condition, Data, Forms};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms =
        Forms { forms: &["gamma: 1.5"], axes: &["gamma: 1.5"], extremes: &[""], ..Forms::of("Variance") };
    testing::inventory::submit! { FORMS }

    #[test]
    fn equals_plain_loops() {
        let toy = Data::toy(6, 4);
        for gamma in [0.5, 1.0, 2.0] {
            let mut want = 0.0;
            for view in toy.views.iter().flatten() {
                for d in 0..4 {
                    let column: Vec<f64> = view.iter().skip(d).step_by(4).copied().collect();
                    let mean = column.iter().sum::<f64>() / 6.0;
                    let var = column.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 5.0;
                    want += (gamma - (var + 1e-4f64).sqrt()).max(0.0) / 8.0;
                }
            }
            let text = format!("Variance(gamma: {gamma})");
            let allowed = Condition::of(&text, &toy).of_value(tolerance::f64);
            assert_within!(testing::value(&text, &toy), want, allowed, "{text}");
        }
        // It is also the variance part of VICReg.
        let text = "VicReg(invariance: 0, covariance: 0)";
        let allowed = Condition::of(text, &toy).of_value(tolerance::f64);
        assert_within!(testing::value(text, &toy), 25.0 * testing::value("Variance()", &toy), allowed);
    }

    #[test]
    fn equal_rows_are_complete_collapse() {
        let data = testing::degenerate().into_iter().find(|(n, _)| *n == "identical rows").unwrap().1;
        // 1 − √1e-4: the rounding of a mean of seven appears only in its square.
        assert_within!(testing::value("Variance()", &data), 0.99, tolerance::f64(12, 1.0));
    }
}
