//! Prototype scattering (ProPos).

use crate::{findings, rows};
use dfdx::prelude::*;
use pauc_traits::batch::PrototypeOptions;
use pauc_traits::term::{Facts, Finding, TermParameter};
use pauc_traits::{
    Backend, Batch, ContrastiveLoss, Count, Needs, NonNegative, Positive, Result, Scalar, Scheduled,
    Temperature, TermInfo, Value, component, ops,
};

component! {
    /// InfoNCE between batch prototypes: each is pulled to itself in the keys and pushed from the others.
    ///
    /// ```text
    /// L = mean_j −log [ e^{p_j·p'_j/T} / (e^{p_j·p'_j/T} + Σ_{l≠j} e^{p_j·p_l/T}) ]
    /// ```
    ///
    /// p_j = norm(Σ_{s(i)=j} q_i + ρ c_j) over the batch, p'_j the same from the keys; the mean over the clusterings.
    ///
    /// # Shapes
    /// (B, D) views and keys → scalar.
    ///
    /// # Reading
    /// Chance is ln|P|, for the number of prototypes that a batch is expected to occupy.
    ///
    /// # Gradient
    /// One for all members of a prototype: clusters move as wholes, and are not contracted. Compare Alignment and
    /// Uniformity at level Prototypes, which do the same in two terms.
    ///
    /// # When to use
    /// From the first clustering on, beside a term on instances, where prototypes should stay apart and prototypes of the
    /// two branches together; with fewer prototypes than samples in a batch.
    ///
    /// ```text
    /// (term: ProtoScatter(temperature: 0.5), weight: 0.1, from: Epochs(2))
    /// ```
    ///
    /// # Degenerate batches
    /// Fewer than two occupied prototypes: the level is skipped and counts as 0.
    ///
    /// Source: Huang et al. 2022 (ProPos).
    pub struct ProtoScatter: ContrastiveLoss {
        /// The temperature T: a number, a schedule, or Learnable(init: 0.5, min: 0.01).
        pub temperature: Temperature = Positive::lit(0.5).into(),
        /// Weight ρ of the constant centroid in a batch prototype.
        pub rho: Scheduled<NonNegative> = NonNegative::lit(0.0).into(),
        /// Whether queued keys join the batch prototypes.
        pub queue: bool = false,
        /// Members that a batch prototype needs at least.
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
            return Ok(batch.skip(format!("{n} of the two occupied prototypes that level {m} needs")));
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
