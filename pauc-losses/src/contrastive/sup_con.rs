//! Supervised contrastive learning.

use crate::{findings, rows};
use dfdx::prelude::*;
use pauc_traits::term::{Contrast, Facts, FieldValue, Finding, TermParameter};
use pauc_traits::{
    Backend, Batch, Clock, ContrastiveLoss, Needs, Positive, Result, Scalar, Temperature, TermInfo, Value,
    component, ops,
};

component! {
    /// InfoNCE in which all samples of the same class are positives.
    ///
    /// ```text
    /// L = mean_a −1/|P(a)| Σ_{p ∈ P(a)} log softmax_{c ≠ a}(Z_a·Z_c/τ)[p],   Z = [z⁰; z¹]
    /// ```
    ///
    /// P(a) holds the other rows with the label of a. It always includes the sample's own other view. This is
    /// L_out of the paper, without its ratio of base temperatures.
    ///
    /// # Shapes
    /// Two views (B, D), B labels → scalar.
    ///
    /// # Reading
    /// The chance level is ln(2B − 1). With more than one positive, the optimum is ln|P|, not 0.
    ///
    /// # Gradient
    /// Contracts classes, as a prototype term contracts clusters. It is an upper bound for what
    /// self-supervised terms reach with the same network.
    ///
    /// # When to use
    /// On labeled data, as an oracle for comparison with other objectives. Never use it in a run that claims
    /// to see no labels.
    ///
    /// ```text
    /// (term: SupCon(temperature: 0.1))
    /// ```
    ///
    /// # Degenerate batches
    /// With one sample there is a single candidate, its other view: the value is 0.
    ///
    /// Source: Khosla et al. 2020.
    pub struct SupCon: ContrastiveLoss {
        /// The temperature τ: a number, a schedule, or Learnable(init: 0.07, min: 0.01).
        pub temperature: Temperature = Positive::lit(0.1).into(),
    }
}

impl TermInfo for SupCon {
    fn needs(&self) -> Needs {
        Needs { queries: &[0, 1], labels: true, ..Needs::default() }
    }

    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        (facts.batch > 0).then(|| (2.0 * facts.batch as f64 - 1.0).ln())
    }

    /// The contrast for classes of equal size.
    fn contrast(&self, facts: &Facts) -> Option<Contrast> {
        let others = 2 * facts.batch.checked_sub(1)?;
        let positives = 1 + others / facts.classes?.max(1);
        Some(Contrast { positives, negatives: others + 1 - positives })
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

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for SupCon {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let (b, labels) = (batch.size(), batch.labels()?);
        let n = 2 * b;
        let mut positives = std::collections::HashMap::new();
        labels.iter().for_each(|l| *positives.entry(*l).or_insert(-1.0) += 2.0);
        let share = rows::weights(batch.device(), n, |a, p| {
            let same = a != p && labels[a % b] == labels[p % b];
            if same { 1.0 / (positives[&labels[a % b]] * n as f64) } else { 0.0 }
        });
        let all = rows::stack(batch.z(0)?, batch.z(1)?);
        let cosines = self.temperature.divide(batch, ops::dot_rows(all.with_empty_tape(), all))?;
        let pull = ops::total(cosines.with_empty_tape() * share);
        Ok(ops::mean(rows::log_sum_exp(rows::mask(cosines, |a, c| a == c))) - pull)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Condition, Data, Forms};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms = Forms {
        forms: &["", "temperature: Learnable()"],
        extremes: &["temperature: 0.01"],
        ..Forms::of("SupCon")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("sup_con", 1);
    }

    #[test]
    fn with_every_sample_its_own_class_it_is_in_batch_info_nce() {
        let data = Data { labels: Some((0..6).collect()), ..Data::toy(6, 4) };
        let (a, b) = (testing::value("SupCon()", &data), testing::value("InfoNce(temperature: 0.1)", &data));
        assert_within!(a, b, Condition::of("SupCon()", &data).of_value(tolerance::f64));
    }
}
