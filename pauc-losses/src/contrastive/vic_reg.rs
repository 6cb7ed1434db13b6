//! Variance, invariance, covariance.

use crate::{findings, rows};
use pauc_traits::term::{Facts, Finding};
use pauc_traits::{
    Backend, Batch, ContrastiveLoss, Needs, NonNegative, Result, Scalar, Scheduled, TermInfo, Value,
    component, ops,
};

component! {
    /// Pulls views together, keeps the variance of every dimension, and decorrelates dimensions.
    ///
    /// ```text
    /// L = w_i·mean (x⁰ − x¹)² + w_v·½ Σ_v mean_d ReLU(1 − √(var(x^v)_d + 1e-4)) + w_c·Σ_v Σ_{d≠e} cov(x^v)_de²/D
    /// ```
    ///
    /// It reads the raw projector outputs and uses unbiased variance and covariance, as the authors' code
    /// does.
    ///
    /// # Shapes
    /// Two views (B, D) → scalar.
    ///
    /// # Reading
    /// 0 is perfect. There is no chance level: the value depends on the scale of the outputs.
    ///
    /// # Gradient
    /// Uses no negatives. It ignores clusters and does not contract them: the embeddings of one image are
    /// pulled together, and the batch as a whole is spread.
    ///
    /// # When to use
    /// Without a momentum encoder, a queue or large batches, with a wide projector (the authors' has 8192
    /// outputs, with 256 to 2048 samples per batch). The three weights may follow schedules.
    ///
    /// ```text
    /// (term: VicReg())
    /// ```
    ///
    /// # Degenerate batches
    /// With one sample there is no variance: the term is skipped.
    ///
    /// Source: Bardes et al. 2022.
    pub struct VicReg: ContrastiveLoss {
        /// The weight w_i of the squared distance between views.
        pub invariance: Scheduled<NonNegative> = NonNegative::lit(25.0).into(),
        /// The weight w_v of the hinge on the standard deviations.
        pub variance: Scheduled<NonNegative> = NonNegative::lit(25.0).into(),
        /// The weight w_c of the covariances.
        pub covariance: Scheduled<NonNegative> = NonNegative::lit(1.0).into(),
    }
}

impl TermInfo for VicReg {
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

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for VicReg {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let elements = (batch.size() * batch.dim()) as f64;
        if batch.size() < 2 {
            return Ok(batch.skip("one sample has no variance"));
        }
        let invariance = ops::total((batch.x(0)? - batch.x(1)?).square()) / E::of(elements);
        let variance = rows::mean_over_views(|v| Ok(rows::deviation_hinge(batch.x(v)?, 1.0)))?;
        let covariance = rows::covariance_energy(batch.x(0)?) + rows::covariance_energy(batch.x(1)?);
        let weight = |w: &Scheduled<NonNegative>| E::of(w.at(batch.clock()));
        Ok(invariance * weight(&self.invariance)
            + variance * weight(&self.variance)
            + covariance * weight(&self.covariance))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Forms};

    const FORMS: Forms =
        Forms { forms: &["", "variance: 0, covariance: 0"], axes: &[""], ..Forms::of("VicReg") };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("vicreg", 1);
    }
}
