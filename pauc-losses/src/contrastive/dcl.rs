//! Decoupled contrastive learning.

use crate::{findings, rows};
use dfdx::prelude::*;
use pauc_traits::term::{Contrast, Facts, FieldValue, Finding, TermParameter};
use pauc_traits::{
    Backend, Batch, Clock, ContrastiveLoss, Needs, Positive, Result, Scalar, Temperature, TermInfo, Value,
    component, ops,
};

component! {
    /// In-batch InfoNCE without the positive in the denominator.
    ///
    /// ```text
    /// L = mean_a [ −Z_a·Z_partner(a)/τ + log Σ_{c ≠ a, partner(a)} exp(Z_a·Z_c/τ) ],   Z = [z⁰; z¹]
    /// ```
    ///
    /// # Shapes
    /// Two views (B, D) → scalar.
    ///
    /// # Reading
    /// Can be negative. The chance level, where all cosines are equal, is ln(2B − 2).
    ///
    /// # Gradient
    /// The pull toward the positive does not fade once the positive wins, so small batches learn faster than
    /// with InfoNCE. It ignores clusters and does not contract them: members of a cluster are pushed apart
    /// like any others.
    ///
    /// # When to use
    /// Batches below 256 without a queue.
    ///
    /// ```text
    /// (term: Dcl(temperature: 0.1))
    /// ```
    ///
    /// # Degenerate batches
    /// With one sample there are no negatives: the term is skipped.
    ///
    /// Source: Yeh et al. 2022.
    pub struct Dcl: ContrastiveLoss {
        /// The temperature τ: a number, a schedule, or Learnable(init: 0.07, min: 0.01).
        pub temperature: Temperature = Positive::lit(0.1).into(),
    }
}

impl TermInfo for Dcl {
    fn needs(&self) -> Needs {
        Needs { queries: &[0, 1], ..Needs::default() }
    }

    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        (facts.batch > 1).then(|| (2.0 * facts.batch as f64 - 2.0).ln())
    }

    fn contrast(&self, facts: &Facts) -> Option<Contrast> {
        Some(Contrast { positives: 1, negatives: (2 * facts.batch).saturating_sub(2) })
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        findings::at_least_two(facts)
    }

    fn parameters(&self, _: &Facts) -> Vec<TermParameter> {
        self.temperature.parameters()
    }

    fn temperature(&self, clock: &Clock) -> Option<FieldValue> {
        Some(FieldValue { field: "temperature", value: self.temperature.planned(clock) })
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for Dcl {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let b = batch.size();
        if b < 2 {
            return Ok(batch.skip("one sample has no negatives"));
        }
        let positives = ops::row_dots(batch.z(0)?, batch.z(1)?).reshape_like(&(b, 1));
        let positives = ops::total(self.temperature.divide(batch, positives)?) / E::of(b as f64);
        let all = rows::stack(batch.z(0)?, batch.z(1)?);
        let logits = self.temperature.divide(batch, ops::dot_rows(all.with_empty_tape(), all))?;
        let negatives = rows::mask(logits, |a, c| a % b == c % b);
        Ok(ops::mean(rows::log_sum_exp(negatives)) - positives)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Forms};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms = Forms {
        forms: &["", "temperature: Learnable()"],
        extremes: &["temperature: 0.01"],
        ..Forms::of("Dcl")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("dcl", 1);
    }

    #[test]
    fn is_at_chance_when_collapsed() {
        let data = testing::degenerate().into_iter().find(|(n, _)| *n == "identical rows").unwrap().1;
        // Fourteen unit rows and cosines divided by 0.1; they differ only by rounding.
        assert_within!(testing::value("Dcl()", &data), 12f64.ln(), tolerance::f64(64, 10.0));
    }
}
