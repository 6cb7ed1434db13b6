//! Prototype scattering (ProPos).

use crate::{findings, rows};
use dfdx::prelude::*;
use pauc_traits::batch::PrototypeOptions;
use pauc_traits::term::{Facts, FieldValue, Finding, TermParameter};
use pauc_traits::{
    Backend, Batch, Clock, ContrastiveLoss, Count, Needs, NonNegative, Positive, Result, Scalar, Scheduled,
    Temperature, TermInfo, Value, component, ops,
};

component! {
    /// InfoNCE between batch prototypes: pulls each to its copy from the keys, pushes it from the others.
    ///
    /// ```text
    /// L = mean_j −log [ e^{p_j·p'_j/T} / (e^{p_j·p'_j/T} + Σ_{l≠j} e^{p_j·p_l/T}) ]
    /// ```
    ///
    /// p_j = norm(Σ_{s(i)=j} q_i + ρ c_j) over the batch, and p'_j is the same computed from the keys. The
    /// loss is the mean over levels.
    ///
    /// # Shapes
    /// (B, D) views and keys → scalar.
    ///
    /// # Reading
    /// The chance level is ln|P|, where |P| is the expected number of prototypes that occur in a batch.
    ///
    /// # Gradient
    /// All members of a prototype get the same gradient: clusters move as a whole and are not contracted.
    /// Alignment and Uniformity at level Prototypes do the same in two terms.
    ///
    /// # When to use
    /// From the first clustering on, beside a term on instances. It keeps prototypes apart and the prototypes
    /// of the two branches together. Use fewer prototypes than samples per batch.
    ///
    /// ```text
    /// (term: ProtoScatter(temperature: 0.5), weight: 0.1, from: Epochs(2))
    /// ```
    ///
    /// # Degenerate batches
    /// With fewer than two occupied prototypes, the level is skipped and counts as 0.
    ///
    /// Source: Huang et al. 2022 (ProPos).
    pub struct ProtoScatter: ContrastiveLoss {
        /// The temperature T: a number, a schedule, or Learnable(init: 0.5, min: 0.01).
        pub temperature: Temperature = Positive::lit(0.5).into(),
        /// The weight ρ of the constant centroid in a batch prototype.
        pub rho: Scheduled<NonNegative> = NonNegative::lit(0.0).into(),
        /// Whether queued keys join the batch prototypes.
        pub queue: bool = false,
        /// The minimum number of members of a batch prototype.
        pub n_min: Count = Count::lit(1),
    }
}

impl ProtoScatter {
    fn options(&self, rho: f64) -> PrototypeOptions {
        PrototypeOptions { rho, n_min: self.n_min.get(), queue: self.queue }
    }

    fn level<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>, m: usize) -> Result<Value<E, D>> {
        let p = batch.prototypes(m, self.options(self.rho.at(batch.clock())))?;
        let n = p.len();
        if n < 2 {
            return Ok(batch.skip(format!("level {m} needs 2 occupied prototypes, got {n}")));
        }
        let (online, keys) = (p.online(), batch.key_prototypes(m, &p)?);
        let positives = ops::row_dots(online.with_empty_tape(), keys).reshape_like(&(n, 1));
        let others = rows::mask(ops::dot_rows(online.with_empty_tape(), online), |j, l| j == l);
        let logits = self.temperature.divide(batch, rows::beside(positives, others))?;
        Ok(ops::mean(ops::cross_entropy_rows(logits, &vec![0; n])))
    }
}

impl TermInfo for ProtoScatter {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], keys: &[1], prototypes: true, queue: self.queue, ..Needs::default() }
    }

    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        findings::mean_ln(facts, |k| findings::expected_occupied(k, facts.batch))
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        findings::prototypes(facts, &self.options(self.rho.largest()))
    }

    fn parameters(&self, _: &Facts) -> Vec<TermParameter> {
        self.temperature.parameters()
    }

    fn temperature(&self, clock: &Clock) -> Option<FieldValue> {
        Some(FieldValue { field: "temperature", value: self.temperature.planned(clock) })
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for ProtoScatter {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        rows::mean_over_levels(batch, |m, _| self.level(batch, m))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Forms};

    const FORMS: Forms = Forms {
        forms: &["", "rho: 0.5, queue: true, n_min: 2", "temperature: Learnable(init: 0.5)"],
        extremes: &["temperature: 0.01", "temperature: Learnable()"],
        ..Forms::of("ProtoScatter")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("proto_scatter", 1);
    }
}
