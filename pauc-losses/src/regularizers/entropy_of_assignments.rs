//! Even use of prototypes within a batch.

use crate::{findings, rows};
use dfdx::prelude::*;
use pauc_traits::batch::Level;
use pauc_traits::term::{Facts, FieldValue, Finding};
use pauc_traits::{
    Backend, Batch, Clock, Needs, NonNegative, Positive, Regularizer, Result, Scalar, Scheduled, TermInfo,
    Value, component, ops,
};

component! {
    /// Makes a batch use all prototypes evenly, by the entropy of the mean soft assignment.
    ///
    /// ```text
    /// L = mean_m [ ln K − H(mean_i a_i) + w·mean_i H(a_i) ],   a_i = softmax(q_i·Cᵀ/τ)
    /// ```
    ///
    /// H is the Shannon entropy in nats. The first difference is the distance of the entropy from its
    /// maximum. With a weight w = `sharpness` above 0, each single assignment is also made confident.
    ///
    /// # Shapes
    /// (B, D) queries of view 0, (K, D) centroids → scalar.
    ///
    /// # Reading
    /// At 0, all prototypes are used evenly (and, with w > 0, every assignment is confident). At ln K, all
    /// samples share one prototype. If the embeddings say nothing about the images, assignments are uniform.
    /// This gives the chance level w·ln K, with the last w of a schedule.
    ///
    /// # Gradient
    /// Centroids are constants: embeddings move from crowded prototypes to rare ones. With w > 0 it contracts
    /// clusters, since confident samples are close to their centroid.
    ///
    /// # When to use
    /// Beside ProtoNCE, if cluster sizes become uneven. A batch of B samples can cover only B prototypes:
    /// with K > B the optimum cannot be reached unless assignments are soft.
    ///
    /// ```text
    /// (term: EntropyOfAssignments(temperature: 0.1), weight: 0.1, from: Epochs(2))
    /// ```
    ///
    /// Source: the mean-entropy maximization of Assran et al. 2022 (MSN).
    pub struct EntropyOfAssignments: Regularizer {
        /// The temperature τ of the soft assignments.
        pub temperature: Scheduled<Positive> = Positive::lit(0.1).into(),
        /// The weight w of the entropy of single assignments.
        pub sharpness: Scheduled<NonNegative> = NonNegative::lit(0.0).into(),
    }
}

impl EntropyOfAssignments {
    fn level<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        level: &Level<E, D>,
    ) -> Result<Value<E, D>> {
        let tau = self.temperature.at(batch.clock());
        let (n, k) = (batch.size() as f64, level.k() as f64);
        let logits = ops::dot_rows(batch.z(0)?, level.centroids.tensor()) / E::of(tau);
        let log = logits.log_softmax::<Axis<1>>();
        let each = log.with_empty_tape().exp();
        let mean = each.with_empty_tape().sum::<(usize,), Axis<0>>() / E::of(n);
        // p·ln p tends to 0 as p does; the floor keeps the logarithm finite.
        let logs = (mean.with_empty_tape() + E::of(1e-30)).ln();
        let uneven = (mean * logs).sum::<Rank0, Axis<0>>() + E::of(k.ln());
        let uncertain = ops::total(each * log) * E::of(-self.sharpness.at(batch.clock()) / n);
        Ok(uneven + uncertain)
    }
}

impl TermInfo for EntropyOfAssignments {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], prototypes: true, ..Needs::default() }
    }

    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        Some(findings::mean_ln(facts, |k| k as f64)? * self.sharpness.last())
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        let mut found = findings::prototypes(facts, &Default::default());
        found.retain(|f| f.code == findings::TOO_FEW_PROTOTYPES);
        found.iter_mut().for_each(|f| f.field = None);
        found
    }

    fn temperature(&self, clock: &Clock) -> Option<FieldValue> {
        Some(FieldValue { field: "temperature", value: self.temperature.at(clock) })
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for EntropyOfAssignments {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        rows::mean_over_levels(batch, |_, level| self.level(batch, level))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Condition, Data, Forms, dot, unit};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms = Forms {
        forms: &["", "sharpness: 0.5"],
        extremes: &["temperature: 0.01, sharpness: 1"],
        ..Forms::of("EntropyOfAssignments")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn equals_plain_loops() {
        let toy = Data::toy(6, 4);
        let mut want = 0.0;
        for level in &toy.levels {
            let k = level.centroids.len() / 4;
            let mut mean = vec![0.0; k];
            for i in 0..6 {
                let q = unit(toy.views[0].as_ref().unwrap(), 4, i);
                let e: Vec<f64> =
                    (0..k).map(|j| (dot(&q, &level.centroids[j * 4..j * 4 + 4]) / 0.3).exp()).collect();
                let sum: f64 = e.iter().sum();
                for j in 0..k {
                    mean[j] += e[j] / sum / 6.0;
                    want -= 0.5 * e[j] / sum * (e[j] / sum).ln() / 6.0 / 2.0;
                }
            }
            want += ((k as f64).ln() + mean.iter().map(|p| p * p.ln()).sum::<f64>()) / 2.0;
        }
        let text = "EntropyOfAssignments(temperature: 0.3, sharpness: 0.5)";
        let allowed = Condition::of(text, &toy).of_value(tolerance::f64);
        assert_within!(testing::value(text, &toy), want, allowed);
    }

    #[test]
    fn zero_rows_are_even_and_one_prototype_for_all_is_the_worst() {
        let zero = testing::degenerate().into_iter().find(|(n, _)| *n == "zero rows").unwrap().1;
        // Entropies of at most ln 5, of sums over seven rows and five prototypes.
        let allowed = tolerance::f64(7 + 5 + 8, 2.0 * 5f64.ln());
        assert_within!(testing::value("EntropyOfAssignments()", &zero), 0.0, allowed);
        let facts = testing::facts(7, 4, &[3, 5]);
        let text = "EntropyOfAssignments(sharpness: 0.5)";
        let chance = testing::term(text).info().chance_level(&facts).unwrap();
        assert_within!(testing::value(text, &zero), chance, allowed);
        let mut one = Data::toy(6, 4);
        one.levels.truncate(1);
        one.views[0] = Some(one.levels[0].centroids[..4].repeat(6));
        let worst = testing::value("EntropyOfAssignments(temperature: 0.01)", &one);
        // The other two prototypes together keep a share of Σ exp((cosine − 1)/0.01); its entropy is
        // subtracted from ln 3.
        let own = &one.levels[0].centroids[..4];
        let shares = one.levels[0].centroids[4..].chunks(4).map(|c| ((dot(own, c) - 1.0) / 0.01).exp());
        let left: f64 = shares.map(|p| p * (1.0 - p.ln())).sum();
        assert!(left < 1e-3, "{left}");
        assert_within!(worst, 3f64.ln(), left + tolerance::f64(32, 1.0 / 0.01));
    }
}
