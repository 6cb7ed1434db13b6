//! ProtoNCE, the prototypical loss of PCL.

use crate::findings::{self, error, mean_ln};
use crate::fused::{self, Bank, CpuBatch, Scale};
#[cfg(feature = "cuda")]
use crate::fused_cuda;
use crate::rows;
use dfdx::prelude::*;
use pauc_traits::batch::Level;
use pauc_traits::ops::{self, Matrix};
use pauc_traits::rng::{self, Purpose};
use pauc_traits::term::{Contrast, Facts, Finding};
use pauc_traits::{
    Backend, Batch, ContrastiveLoss, Count, Error, Needs, Result, Scalar, TermInfo, Value, component,
};
use serde::{Deserialize, Serialize};

component! {
    /// Tells each sample's prototype from the other prototypes by a softmax with a temperature for each prototype.
    ///
    /// ```text
    /// L = mean_m mean_i −log [ exp(q_i·c_s/φ_s) / Σ_j exp(q_i·c_j/φ_j) ],   s = the prototype of sample i in level m
    /// ```
    ///
    /// Every logit is divided by the concentration φ_j of its own prototype. Samples without a prototype (noise)
    /// are left out of the mean. The sum runs, by `negatives`, over
    ///
    /// * `All`: every prototype of the level;
    /// * `Sample(r)`: the distinct prototypes of the batch's samples and r others, drawn without replacement.
    ///
    /// With `duplicates: true` a prototype that several samples of the batch share stands in the sum once for each of
    /// them, also as a negative of its own samples. That is what the authors' code computes; it punishes samples for
    /// sharing a prototype.
    ///
    /// # Shapes
    /// (B, D) queries of view 0, (K, D) centroids → scalar.
    ///
    /// # Reading
    /// Chance is the mean over levels of ln(number of candidates). Its scale moves with φ.
    ///
    /// # Gradient
    /// Pulls every member towards the one centroid of its prototype: it contracts clusters, and on its own can let
    /// the diversity within a prototype collapse while prototypes stay apart ("coagulation").
    ///
    /// # When to use
    /// From the first clustering on, beside InfoNCE, with levels of different size. `All` up to about 16 000
    /// prototypes, `Sample(16384)` beyond, as PCL does on ImageNet.
    ///
    /// ```text
    /// (term: ProtoNce(), weight: 0.25, from: Epochs(2))
    /// ```
    ///
    /// # Degenerate batches
    /// A level in which no sample of the batch has a prototype is skipped and counts as 0.
    ///
    /// Source: Li et al. 2021 (PCL), with the authors' code.
    pub struct ProtoNce: ContrastiveLoss {
        /// The prototypes in the denominator: All or Sample(r).
        pub negatives: Denominator = Denominator::All,
        /// Whether shared prototypes count once for each of their samples, as in the authors' code.
        pub duplicates: bool = false,
    }
}

/// The prototypes in the denominator of [`ProtoNce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denominator {
    /// Every prototype of the level.
    All,
    /// The prototypes of the batch and this many others.
    Sample(Count),
}

impl ProtoNce {
    /// The prototypes in the denominator, and the position of each member's own prototype among them.
    fn candidates<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        (index, level): (usize, &Level<E, D>),
        prototypes: &[usize],
    ) -> Result<Option<(Vec<usize>, Vec<usize>)>> {
        let Denominator::Sample(r) = self.negatives else {
            return Ok(None);
        };
        let mut unique = prototypes.to_vec();
        unique.sort_unstable();
        unique.dedup();
        let negatives = match &level.negatives {
            Some(given) => {
                if let Some(bad) = given.iter().find(|j| **j >= level.k()) {
                    return Err(Error::shape(
                        format!("negatives of level {index}"),
                        format!("prototype {bad} of only {}", level.k()),
                    ));
                }
                given.clone()
            }
            None => {
                let rest: Vec<usize> = (0..level.k()).filter(|j| unique.binary_search(j).is_err()).collect();
                if r.get() > rest.len() {
                    return Err(Error::config(format!(
                        "ProtoNce: Sample({}) of level {index}, but of its {} prototypes the batch occupies {} and \
                         leaves {}: use a smaller number or `negatives: All`",
                        r,
                        level.k(),
                        unique.len(),
                        rest.len()
                    )));
                }
                let step = batch.clock().step;
                let mut rng = rng::stream(batch.seed(), Purpose::Negatives, step, index as u64, 0);
                rand::seq::index::sample(&mut rng, rest.len(), r.get()).iter().map(|i| rest[i]).collect()
            }
        };
        let (mut candidates, targets) = if self.duplicates {
            (prototypes.to_vec(), (0..prototypes.len()).collect())
        } else {
            let targets = prototypes.iter().filter_map(|s| unique.binary_search(s).ok()).collect();
            (unique, targets)
        };
        candidates.extend(negatives);
        Ok(Some((candidates, targets)))
    }

    /// A level with `All` through the streaming kernel.
    fn fused(&self, batch: &CpuBatch, index: usize) -> Result<Option<Value<f32, Cpu>>> {
        let level = &batch.levels()?[index];
        let (members, prototypes) = level.members();
        if self.negatives != Denominator::All || members.is_empty() {
            return Ok(None);
        }
        let dim = batch.dim();
        let Some((z, all)) = fused::embeddings(batch, 0)? else { return Ok(None) };
        let centroids = level.centroids.values();
        let pick = |from: &[f32], rows: &[usize]| -> Vec<f32> {
            rows.iter().flat_map(|i| from[i * dim..(i + 1) * dim].iter().copied()).collect()
        };
        let (queries, positives) = (pick(&all, &members), pick(centroids, &prototypes));
        let scale: Vec<f32> = level.concentration.iter().map(|phi| 1.0 / phi).collect();
        let own: Vec<f32> = prototypes.iter().map(|s| scale[*s]).collect();
        let bank = Bank { rows: centroids, scale: Scale::Each(&scale), own: Some(&prototypes) };
        let graded = fused::cross_entropy(&queries, &positives, &own, &[bank], dim);
        let mut gradient = vec![0.0; all.len()];
        for (i, row) in members.iter().zip(graded.gradient.chunks_exact(dim)) {
            gradient[i * dim..(i + 1) * dim].copy_from_slice(row);
        }
        Ok(Some(fused::scalar_with_gradients(batch.device(), graded.value, vec![(z, gradient)])))
    }

    /// A level with `All` on CUDA.
    #[cfg(feature = "cuda")]
    fn on_cuda(&self, batch: &fused_cuda::CudaBatch, index: usize) -> Result<Option<Value<f32, Cuda>>> {
        let level = &batch.levels()?[index];
        let (members, prototypes) = level.members();
        if self.negatives != Denominator::All || members.is_empty() {
            return Ok(None);
        }
        let (on, centroids) = (fused_cuda::context(batch)?, level.centroids.tensor());
        let mut queries = batch.z(0)?;
        if members.len() < batch.size() {
            queries = rows::gather(queries, &members);
        }
        let (q, bank) = (fused_cuda::dense(queries.retaped())?, fused_cuda::dense(centroids)?);
        let scale = fused_cuda::Scale::Over(&level.concentration);
        let bank = fused_cuda::Bank { rows: bank.view(), scale, own: Some(&prototypes) };
        let graded = fused_cuda::cross_entropy(&on, &q, fused_cuda::Positives::Own, &[bank], batch.dim())?;
        let gradients = vec![(queries, graded.gradient, 1.0)];
        fused_cuda::scalar_with_gradients(&on, batch.device(), &[graded.value], gradients).map(Some)
    }

    /// The definition, in plain operations.
    fn level<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        index: usize,
        level: &Level<E, D>,
    ) -> Result<Value<E, D>> {
        let (members, prototypes) = level.members();
        if members.is_empty() {
            return Ok(batch.skip(format!("no sample of the batch has a prototype in level {index}")));
        }
        let mut queries = batch.z(0)?;
        if members.len() < batch.size() {
            queries = rows::gather(queries, &members);
        }
        let (centroids, targets) = match self.candidates(batch, (index, level), &prototypes)? {
            None => (scaled(level, batch.device()), prototypes),
            Some((candidates, targets)) => {
                (rows::gather(scaled(level, batch.device()), &candidates), targets)
            }
        };
        Ok(ops::mean(ops::cross_entropy_rows(ops::dot_rows(queries, centroids), &targets)))
    }
}

/// c_j/φ_j: the product with a query is the logit.
fn scaled<E: Scalar, D: Backend<E>>(level: &Level<E, D>, device: &D) -> Matrix<E, D> {
    let inverse: Vec<E> = level.concentration.iter().map(|phi| E::one() / *phi).collect();
    let shape = level.centroids.shape();
    let inverse = ops::constant(device, inverse, (shape.0,));
    level.centroids.tensor() * inverse.broadcast_like::<_, Axis<1>>(&shape)
}

impl TermInfo for ProtoNce {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], prototypes: true, ..Needs::default() }
    }

    /// With `Sample(r)`, for the number of distinct prototypes that a batch is expected to occupy.
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        mean_ln(facts, |k| match self.negatives {
            Denominator::All => k as f64,
            Denominator::Sample(r) if self.duplicates => (facts.batch + r.get()) as f64,
            Denominator::Sample(r) => findings::expected_occupied(k, facts.batch) + r.get() as f64,
        })
    }

    /// Of the smallest level.
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
                            "Sample({r}): a batch of {} can occupy {} of the {k} prototypes of level {m}, which \
                             leaves {left}",
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
                    format!("level {m} has {k} prototype: there is nothing to tell it from"),
                    "use k of at least 2",
                )),
                _ => {}
            }
        }
        if self.duplicates && self.negatives == Denominator::All {
            found.push(error(
                findings::INCOMPATIBLE,
                "duplicates",
                "duplicates: true has no meaning with `negatives: All`, where every prototype stands once",
                "use `negatives: Sample(r)`, or leave `duplicates` out",
            ));
        }
        found
    }
}

impl<E: Scalar, D: Backend<E>> ContrastiveLoss<E, D> for ProtoNce {
    fn loss(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        rows::mean_over_levels(batch, |m, level| {
            if let Some(value) = fused::on_cpu(batch, |batch| self.fused(batch, m))? {
                return Ok(value);
            }
            #[cfg(feature = "cuda")]
            if let Some(value) = fused_cuda::on_cuda(batch, |batch| self.on_cuda(batch, m))? {
                return Ok(value);
            }
            self.level(batch, m, level)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Clusters, Condition, Data};
    use pauc_testing::{assert_within, tolerance};

    const FORMS: &[&str] = &["ProtoNce()", "ProtoNce(negatives: Sample(1))"];

    fn many() -> Data {
        testing::degenerate().into_iter().find(|(n, _)| *n == "many prototypes").unwrap().1
    }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("proto_nce", 4);
    }

    #[test]
    fn gradients_and_invariances() {
        let mut toy = Data::toy(5, 4);
        toy.levels.iter_mut().for_each(|l| l.assignments = [0, 1, 1, 0, 1].map(Some).to_vec());
        toy.levels[1].assignments[3] = None;
        for text in FORMS {
            testing::finite_differences(text, &toy);
            testing::permutation_invariant(text, &toy);
            testing::rotation_invariant(text, &toy);
        }
    }

    #[test]
    fn stays_finite_on_degenerate_batches() {
        testing::finite("ProtoNce()");
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
    fn the_fused_kernel_equals_the_plain_composition() {
        let term = ProtoNce { negatives: Denominator::All, duplicates: false };
        for (rows, dim) in [(1, 3), (2, 1), (7, 5), (33, 16), (70, 31)] {
            let plain = |b: &Batch<f32, Cpu>| rows::mean_over_levels(b, |m, level| term.level(b, m, level));
            testing::fused_equals_plain("ProtoNce()", &Data::toy(rows, dim), &|b| term.loss(b), &plain);
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
        // All other prototypes drawn is the whole denominator.
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
    fn a_collapsed_batch_stands_near_chance() {
        // Equal centroids tell nothing apart.
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
        // Logits of at most 1/φ = 5, the sum over 50 candidates, and the means.
        assert_within!(testing::value("ProtoNce()", &data), chance, tolerance::f64(80, 5.0));
        let unknown = Facts { prototypes: vec![Some(3), None], ..testing::facts(7, 4, &[]) };
        assert_eq!(testing::term("ProtoNce()").info().chance_level(&unknown), None);
    }
}
