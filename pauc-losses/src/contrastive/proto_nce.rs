//! ProtoNCE, the prototypical loss of PCL.

use crate::findings::{self, error, mean_ln};
use crate::rows;
use dfdx::prelude::*;
use pauc_traits::batch::Level;
use pauc_traits::ops::{self, Matrix};
use pauc_traits::rng::{self, Purpose};
use pauc_traits::softmax::{Bank, FusedLoss, Graded, Positives, Scale, SoftmaxKernels};
use pauc_traits::term::{Contrast, Facts, Finding};
use pauc_traits::{
    Backend, Batch, ContrastiveLoss, Count, Error, Needs, Result, Scalar, TermInfo, Value, component,
};
use serde::{Deserialize, Serialize};

/// The largest weight beside an InfoNCE of weight 1 with which the study `mechanism` measured no loss of accuracy
/// against weight 0.
const HARMLESS_WEIGHT: f64 = 4.0;

component! {
    /// Picks out each sample's prototype by a softmax over prototypes, with one temperature per prototype.
    ///
    /// ```text
    /// L = mean_m mean_i −log [ exp(q_i·c_s/φ_s) / Σ_j exp(q_i·c_j/φ_j) ],   s = the prototype of sample i in level m
    /// ```
    ///
    /// Each logit is divided by the concentration φ_j of its prototype. Samples without a prototype (noise)
    /// are left out of the mean. By `negatives`, the sum runs over
    ///
    /// * `All`: every prototype of the level;
    /// * `Sample(r)`: the distinct prototypes of the batch's samples, and r others, drawn without
    ///   replacement.
    ///
    /// With `duplicates: true`, a prototype that several samples of the batch share appears in the sum once
    /// per sample, also as a negative of its own samples. The authors' code computes this form; it penalizes
    /// samples for sharing a prototype.
    ///
    /// # Shapes
    /// (B, D) queries of view 0, (K, D) centroids → scalar.
    ///
    /// # Reading
    /// The chance level is the mean over levels of ln(number of candidates). The scale of the loss changes
    /// with φ.
    ///
    /// # Gradient
    /// Pulls all members toward the centroid of their prototype: it contracts clusters. On its own it can let
    /// the diversity within a prototype collapse while prototypes stay apart ("coagulation").
    ///
    /// # When to use
    /// From the first clustering on, beside InfoNCE, with levels of different sizes. `All` up to about 16 000
    /// prototypes; beyond that `Sample(16384)`, as PCL does on ImageNet.
    ///
    /// ```text
    /// (term: ProtoNce(), weight: 0.25, from: Epochs(2))
    /// ```
    ///
    /// # Degenerate batches
    /// If no sample of the batch has a prototype in a level, the level is skipped and counts as 0.
    ///
    /// Source: Li et al. 2021 (PCL), with the authors' code.
    pub struct ProtoNce: ContrastiveLoss {
        /// The prototypes in the denominator: All or Sample(r).
        pub negatives: Denominator = Denominator::All,
        /// Whether a shared prototype counts once per sample, as in the authors' code.
        pub duplicates: bool = false,
    }
}

/// The prototypes in the denominator of [`ProtoNce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denominator {
    /// Every prototype of the level.
    All,
    /// The prototypes of the batch and this number of others.
    Sample(Count),
}

/// The samples of a batch that have a prototype in a level.
struct Members<'a, E: Scalar, D: Backend<E>> {
    /// The index of the level.
    index: usize,
    level: &'a Level<E, D>,
    /// The indices of their rows in the batch, N of B.
    samples: Vec<usize>,
    /// The indices of their prototypes, N.
    prototypes: Vec<usize>,
}

impl<E: Scalar, D: Backend<E>> Members<'_, E, D> {
    /// Returns their embeddings, with gradient: (N, D).
    fn queries(&self, batch: &Batch<E, D>) -> Result<rows::Rows<E, D>> {
        let z = batch.z(0)?; // (B, D)
        Ok(if self.samples.len() < batch.size() { rows::gather(z, &self.samples) } else { z })
    }
}

/// Returns the mean over levels of `loss`. A level without members in the batch is skipped.
fn mean_over_levels<E: Scalar, D: Backend<E>>(
    batch: &Batch<E, D>,
    loss: impl Fn(&Members<'_, E, D>) -> Result<Value<E, D>>,
) -> Result<Value<E, D>> {
    rows::mean_over_levels(batch, |index, level| {
        let (samples, prototypes) = level.members();
        if samples.is_empty() {
            return Ok(batch.skip(format!("no sample of the batch has a prototype in level {index}")));
        }
        loss(&Members { index, level, samples, prototypes })
    })
}

/// The prototypes in a denominator.
struct Candidates {
    /// By index; an index may occur twice.
    prototypes: Vec<usize>,
    /// The position of each member's own prototype in `prototypes`.
    positives: Vec<usize>,
}

/// The definition, in dfdx operations.
impl ProtoNce {
    pub(crate) fn plain<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        mean_over_levels(batch, |members| {
            let queries = members.queries(batch)?; // (N, D)
            let scaled = scaled_centroids(members.level, batch.device()); // (K, D)
            let (candidates, positives) = match self.negatives {
                Denominator::All => (scaled, members.prototypes.clone()), // (K, D), N
                Denominator::Sample(r) => {
                    let Candidates { prototypes, positives } = self.sample(batch, members, r)?;
                    (rows::gather(scaled, &prototypes), positives) // (C, D), N
                }
            };
            let logits = ops::dot_rows(queries, candidates); // (N, C)
            let losses = ops::cross_entropy_rows(logits, &positives); // (N,)
            Ok(ops::mean(losses)) // scalar
        })
    }

    /// Returns the prototypes of the members and `r` others.
    fn sample<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        members: &Members<'_, E, D>,
        r: Count,
    ) -> Result<Candidates> {
        let mut occupied = members.prototypes.clone();
        occupied.sort_unstable();
        occupied.dedup();
        let negatives = match &members.level.negatives {
            Some(given) => given_negatives(members, given)?,
            None => draw_negatives(batch, members, &occupied, r)?,
        };
        let (mut prototypes, positives) = if self.duplicates {
            (members.prototypes.clone(), (0..members.prototypes.len()).collect())
        } else {
            let place = |prototype: &usize| occupied.binary_search(prototype).ok();
            let positives = members.prototypes.iter().filter_map(place).collect();
            (occupied, positives)
        };
        prototypes.extend(negatives);
        Ok(Candidates { prototypes, positives })
    }
}

/// Returns c_j/φ_j, whose inner product with a query is the logit: (K, D).
fn scaled_centroids<E: Scalar, D: Backend<E>>(level: &Level<E, D>, device: &D) -> Matrix<E, D> {
    let shape = level.centroids.shape();
    let scales = ops::constant(device, scales(level), (shape.0,)); // (K,)
    level.centroids.tensor() * scales.broadcast_like::<_, Axis<1>>(&shape) // (K, D)
}

/// Returns 1/φ_j of each prototype.
fn scales<E: Scalar, D: Backend<E>>(level: &Level<E, D>) -> Vec<E> {
    level.concentration.iter().map(|phi| E::one() / *phi).collect()
}

/// Returns the negatives that were supplied with the level.
fn given_negatives<E: Scalar, D: Backend<E>>(
    members: &Members<'_, E, D>,
    given: &[usize],
) -> Result<Vec<usize>> {
    if let Some(bad) = given.iter().find(|prototype| **prototype >= members.level.k()) {
        return Err(Error::shape(
            format!("negatives of level {}", members.index),
            format!("prototype {bad}, but there are only {}", members.level.k()),
        ));
    }
    Ok(given.to_vec())
}

/// Draws `r` of the prototypes that are not `occupied`, without replacement.
fn draw_negatives<E: Scalar, D: Backend<E>>(
    batch: &Batch<E, D>,
    members: &Members<'_, E, D>,
    occupied: &[usize],
    r: Count,
) -> Result<Vec<usize>> {
    let (index, k) = (members.index, members.level.k());
    let rest: Vec<usize> = (0..k).filter(|prototype| occupied.binary_search(prototype).is_err()).collect();
    if r.get() > rest.len() {
        return Err(Error::config(format!(
            "ProtoNce: Sample({r}) of level {index}, but of its {k} prototypes the batch occupies {} and leaves \
             {}; use a smaller number, or `negatives: All`",
            occupied.len(),
            rest.len()
        )));
    }
    let mut rng = rng::stream(batch.seed(), Purpose::Negatives, batch.clock().step, index as u64, 0);
    Ok(rand::seq::index::sample(&mut rng, rest.len(), r.get()).iter().map(|i| rest[i]).collect())
}

/// The fused form, through the device's kernels.
impl ProtoNce {
    /// Returns whether the kernels can compute this form.
    pub(crate) fn has_fused(&self) -> bool {
        self.negatives == Denominator::All
    }

    pub(crate) fn fused<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        kernels: &D::Softmax,
    ) -> Result<Value<E, D>> {
        mean_over_levels(batch, |members| {
            let z = members.queries(batch)?; // (N, D)
            let queries = kernels.rows(&z)?; // (N, D)
            let centroids = kernels.constant_rows(&members.level.centroids)?; // (K, D)
            let scales = scales(members.level); // K
            let bank = Bank { rows: &centroids, scale: Scale::Each(&scales), own: Some(&members.prototypes) };
            let Graded { value, gradient } =
                kernels.cross_entropy(&queries, Positives::Own, &[bank], batch.dim())?; // scalar, (N, D)
            let mut loss = FusedLoss::new(None);
            loss.add_value(1.0, value);
            loss.add_gradient(z, 1.0, gradient)?;
            kernels.record(loss) // scalar
        })
    }
}

impl TermInfo for ProtoNce {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], prototypes: true, ..Needs::default() }
    }

    /// With `Sample(r)`, uses the expected number of distinct prototypes in a batch.
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        mean_ln(facts, |k| match self.negatives {
            Denominator::All => k as f64,
            Denominator::Sample(r) if self.duplicates => (facts.batch + r.get()) as f64,
            Denominator::Sample(r) => findings::expected_occupied(k, facts.batch) + r.get() as f64,
        })
    }

    /// The contrast of the smallest level.
    fn contrast(&self, facts: &Facts) -> Option<Contrast> {
        let k = facts.prototypes.iter().copied().collect::<Option<Vec<_>>>()?.into_iter().min()?;
        let negatives = match self.negatives {
            Denominator::All => k - 1,
            Denominator::Sample(r) if self.duplicates => facts.batch + r.get() - 1,
            Denominator::Sample(r) => {
                (findings::expected_occupied(k, facts.batch).round() as usize + r.get()).saturating_sub(1)
            }
        };
        Some(Contrast { positives: 1, negatives })
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        let mut found = Vec::new();
        for (m, k) in facts.prototypes.iter().enumerate() {
            let Some(k) = *k else { continue };
            match self.negatives {
                Denominator::Sample(r) if r.get() > k.saturating_sub(facts.batch) => {
                    let left = k.saturating_sub(facts.batch.min(k));
                    found.push(error(
                        findings::TOO_MANY_NEGATIVES,
                        "negatives",
                        format!(
                            "Sample({r}): a batch of {} can occupy {} of the {k} prototypes of level {m}, \
                             which leaves {left}",
                            facts.batch,
                            facts.batch.min(k)
                        ),
                        if left == 0 {
                            "use `negatives: All`".into()
                        } else {
                            format!("use `negatives: All` or at most Sample({left})")
                        },
                    ));
                }
                _ if k < 2 => found.push(error(
                    findings::TOO_FEW_PROTOTYPES,
                    "negatives",
                    format!("level {m} needs at least 2 prototypes, got {k}"),
                    "set `k` to at least 2",
                )),
                _ => {}
            }
        }
        if facts.relative_weight > HARMLESS_WEIGHT {
            found.push(findings::warning_of_term(
                findings::PROTOTYPES_DOMINATE,
                format!(
                    "the weight is {} times that of the terms without prototypes, so prototypes contract their images",
                    facts.relative_weight
                ),
                format!("use a weight of at most {HARMLESS_WEIGHT} times theirs"),
            ));
        }
        if self.duplicates && self.negatives == Denominator::All {
            found.push(error(
                findings::INCOMPATIBLE,
                "duplicates",
                "`duplicates: true` has no meaning with `negatives: All`, which counts every prototype once",
                "use `negatives: Sample(r)`, or remove `duplicates`",
            ));
        }
        found
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for ProtoNce {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        match batch.softmax_kernels()? {
            Some(kernels) if self.has_fused() => self.fused(batch, &kernels),
            _ => self.plain(batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Clusters, Condition, Data, Forms};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: Forms = Forms { forms: &["", "negatives: Sample(1)"], ..Forms::of("ProtoNce") };
    testing::inventory::submit! { FORMS }

    fn many() -> Data {
        testing::degenerate().into_iter().find(|(n, _)| *n == "many prototypes").unwrap().1
    }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("proto_nce", 4);
    }

    #[test]
    fn cold_prototypes_are_finite_and_noise_alone_is_skipped() {
        let mut cold = Data::toy(7, 4);
        cold.levels.iter_mut().for_each(|l| l.concentration.fill(0.01));
        assert!(testing::run::<f32>("ProtoNce()", &cold).value.is_finite());
        let mut noise = Data::toy(7, 4);
        noise.levels.iter_mut().for_each(|l| l.assignments.fill(None));
        let outcome = testing::run::<f64>("ProtoNce()", &noise);
        assert_eq!((outcome.value, outcome.skipped.len()), (0.0, 2));
        assert!(outcome.gradients["view0"].iter().all(|g| *g == 0.0));
    }

    #[test]
    fn fused_and_plain_agree() {
        let term: ProtoNce = testing::parse("ProtoNce()");
        assert!(
            term.has_fused() && !testing::parse::<ProtoNce>("ProtoNce(negatives: Sample(1))").has_fused()
        );
        for (rows, dim) in [(1, 3), (2, 1), (7, 5), (33, 16), (70, 31)] {
            let fused = |batch: &Batch<f32, Cpu>| term.fused(batch, &batch.softmax_kernels()?.unwrap());
            let plain = |batch: &Batch<f32, Cpu>| term.plain(batch);
            testing::fused_equals_plain("ProtoNce()", &Data::toy(rows, dim), &fused, &plain);
        }
    }

    #[test]
    fn draws_depend_on_seed_and_step_alone() {
        let data = many();
        let at = |seed, step| {
            testing::value("ProtoNce(negatives: Sample(20))", &Data { seed, step, ..data.clone() })
        };
        assert_eq!(at(1, 5), at(1, 5));
        assert_ne!(at(1, 5), at(1, 6));
        assert_ne!(at(1, 5), at(2, 5));
        // Drawing all other prototypes gives the complete denominator.
        let (drawn, all) = ("ProtoNce(negatives: Sample(93))", "ProtoNce()");
        let allowed = Condition::of(all, &data).of_value(tolerance::f64);
        assert_within!(testing::value(drawn, &data), testing::value(all, &data), allowed);
    }

    #[test]
    fn too_many_negatives_are_an_error_with_numbers() {
        let error =
            testing::try_run::<f64>("ProtoNce(negatives: Sample(94))", &many()).unwrap_err().to_string();
        assert!(error.contains("100 prototypes the batch occupies 7 and leaves 93"), "{error}");
        let term = testing::term("ProtoNce(negatives: Sample(90))");
        assert!(term.info().check(&testing::facts(10, 4, &[100])).is_empty());
        let found = term.info().check(&testing::facts(11, 4, &[100]));
        assert_eq!(found[0].code, findings::TOO_MANY_NEGATIVES);
        assert!(found[0].message.contains("leaves 89"), "{}", found[0].message);
        let found = testing::term("ProtoNce(duplicates: true)").info().check(&testing::facts(10, 4, &[100]));
        assert_eq!(found[0].code, findings::INCOMPATIBLE);
    }

    #[test]
    fn a_weight_beyond_those_that_were_harmless_is_warned_of() {
        let codes = |relative_weight| {
            let facts = Facts { relative_weight, ..testing::facts(256, 32, &[100]) };
            testing::term("ProtoNce()").info().check(&facts).iter().map(|f| f.code).collect::<Vec<_>>()
        };
        assert_eq!((codes(4.0), codes(16.0)), (vec![], vec![findings::PROTOTYPES_DOMINATE]));
    }

    #[test]
    fn a_collapsed_batch_is_near_chance() {
        // Equal centroids make all prototypes indistinguishable.
        let mut data = Data::toy(7, 4);
        data.levels = [3, 50]
            .map(|k| Clusters {
                centroids: testing::unit(&[1.0, 2.0, 3.0, 4.0], 4, 0).repeat(k),
                concentration: vec![0.2; k],
                assignments: vec![Some(1); 7],
                ..Clusters::default()
            })
            .to_vec();
        let chance =
            testing::term("ProtoNce()").info().chance_level(&testing::facts(7, 4, &[3, 50])).unwrap();
        // Logits of at most 1/φ = 5, a sum over 50 candidates, and the means.
        assert_within!(testing::value("ProtoNce()", &data), chance, tolerance::f64(80, 5.0));
        let unknown = Facts { prototypes: vec![Some(3), None], ..testing::facts(7, 4, &[]) };
        assert_eq!(testing::term("ProtoNce()").info().chance_level(&unknown), None);
    }
}
