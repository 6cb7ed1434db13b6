//! Alignment of views, of prototypes, and of the members of a prototype.

use crate::{findings, rows, sphere};
use dfdx::prelude::*;
use pauc_traits::batch::{Level, PrototypeOptions};
use pauc_traits::term::{Facts, Finding};
use pauc_traits::{
    Backend, Batch, Count, Needs, NonNegative, Positive, Regularizer, Result, Scalar, Scheduled, TermInfo,
    Value, component, ops,
};
use serde::{Deserialize, Serialize};

component! {
    /// Pulls together views, the prototypes of two branches, or the members of one prototype.
    ///
    /// ```text
    /// Instances    L = mean_i ‖z⁰_i − z¹_i‖^α
    /// Prototypes   L = mean_j ‖p_j − p'_j‖^α        p_j = norm(Σ_{s(i)=j} q_i + ρ c_j), p'_j the same from the keys
    /// Centroid     L = mean_i ‖q_i − c_s(i)‖^α
    /// Members      L = mean ‖q_i − q_l‖^α over the pairs i < l of one prototype
    /// ```
    ///
    /// All levels except `Instances` are means over the levels of the clustering.
    ///
    /// # What the source says
    /// `Instances` is Wang and Isola (2020). The other three are this project's readings of the abstract of
    /// Mo, Sun and Li (BMVC 2022), which names prototype-level alignment without a formula; `Prototypes` is
    /// the default reading.
    ///
    /// # Shapes
    /// (B, D) views and keys, (K, D) centroids → scalar.
    ///
    /// # Reading
    /// 0 is perfect. Random unit vectors give 2 for α = 2, in any dimension; this is the chance level shown.
    ///
    /// # Gradient
    /// `Prototypes` gives all members of a prototype the same gradient: it moves clusters and does not
    /// contract them. `Centroid` and `Members` contract clusters and can cause the coagulation that the paper
    /// describes. Below α = 2 the distance is smoothed by 1e-6 at zero.
    ///
    /// # When to use
    /// `Instances` with `Uniformity(level: Instances)` replaces a softmax. `Prototypes` from the first
    /// clustering on, beside InfoNCE and `Uniformity`. `Centroid` and `Members` for comparison, or if you
    /// want tight clusters.
    ///
    /// ```text
    /// (term: Alignment(level: Prototypes), weight: 0.1, from: Epochs(2))
    /// ```
    ///
    /// # Degenerate batches
    /// A level without a member (for `Members`: without a pair) in the batch is skipped and counts as 0.
    pub struct Alignment: Regularizer {
        /// What is aligned: Instances, Prototypes, Centroid or Members.
        pub level: AlignmentLevel = AlignmentLevel::Prototypes,
        /// The exponent α of the distance.
        pub alpha: Positive = Positive::lit(2.0),
        /// The weight ρ of the constant centroid in a batch prototype; read at level Prototypes.
        pub rho: Scheduled<NonNegative> = NonNegative::lit(0.0).into(),
        /// Whether queued keys join the batch prototypes; read at level Prototypes.
        pub queue: bool = false,
        /// The minimum number of members of a batch prototype; read at level Prototypes.
        pub n_min: Count = Count::lit(1),
    }
}

/// What [`Alignment`] aligns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlignmentLevel {
    /// The two views of a sample.
    Instances,
    /// The batch prototypes of the online branch and those of the keys.
    Prototypes,
    /// Each sample and the centroid of its prototype.
    Centroid,
    /// All pairs of samples of one prototype.
    Members,
}

impl Alignment {
    fn options(&self, rho: f64) -> PrototypeOptions {
        PrototypeOptions { rho, n_min: self.n_min.get(), queue: self.queue }
    }

    fn prototypes<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>, m: usize) -> Result<Value<E, D>> {
        let p = batch.prototypes(m, self.options(self.rho.at(batch.clock())))?;
        if p.is_empty() {
            return Ok(batch.skip(format!("no prototype of level {m} is occupied")));
        }
        let distances = rows::distances_to_the(self.alpha.get(), p.online(), batch.key_prototypes(m, &p)?);
        Ok(ops::mean(distances))
    }

    fn centroid<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        m: usize,
        level: &Level<E, D>,
    ) -> Result<Value<E, D>> {
        let (members, prototypes) = level.members();
        if members.is_empty() {
            return Ok(batch.skip(format!("no sample of the batch has a prototype in level {m}")));
        }
        let centroids = rows::gather(level.centroids.tensor(), &prototypes).retaped();
        let samples = rows::gather(batch.z(0)?, &members);
        Ok(ops::mean(rows::distances_to_the(self.alpha.get(), samples, centroids)))
    }

    fn members<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        m: usize,
        level: &Level<E, D>,
    ) -> Result<Value<E, D>> {
        rows::over_pairs_of_members(batch, m, level, |together, pairs| {
            let weight = |i, l| if together(i, l) { 1.0 / pairs as f64 } else { 0.0 };
            let share = rows::weights(batch.device(), batch.size(), weight);
            let z = batch.z(0)?;
            let distances = rows::power(rows::squared_distances(z.with_empty_tape(), z), self.alpha.get());
            Ok(ops::total(distances * share))
        })
    }
}

impl TermInfo for Alignment {
    fn needs(&self) -> Needs {
        let prototypes = Needs { queries: &[0], prototypes: true, ..Needs::default() };
        match self.level {
            AlignmentLevel::Instances => Needs { queries: &[0, 1], ..Needs::default() },
            AlignmentLevel::Prototypes => Needs { keys: &[1], queue: self.queue, ..prototypes },
            AlignmentLevel::Centroid | AlignmentLevel::Members => prototypes,
        }
    }

    /// E ‖u − v‖^α of random unit vectors: 2 at α = 2.
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        Some(sphere::distance(facts.dim, self.alpha.get()))
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        match self.level {
            AlignmentLevel::Prototypes => {
                let mut found = findings::prototypes(facts, &self.options(self.rho.largest()));
                // A single prototype can be aligned with its key prototype.
                found.retain(|f| f.code != findings::TOO_FEW_PROTOTYPES);
                found
            }
            _ => Vec::new(),
        }
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for Alignment {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        match self.level {
            AlignmentLevel::Instances => {
                Ok(ops::mean(rows::distances_to_the(self.alpha.get(), batch.z(0)?, batch.z(1)?)))
            }
            AlignmentLevel::Prototypes => rows::mean_over_levels(batch, |m, _| self.prototypes(batch, m)),
            AlignmentLevel::Centroid => rows::mean_over_levels(batch, |m, l| self.centroid(batch, m, l)),
            AlignmentLevel::Members => rows::mean_over_levels(batch, |m, l| self.members(batch, m, l)),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, Condition, Data, Forms, dot, unit};
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::ops::NORM_EPSILON;

    const FORMS: Forms = Forms {
        forms: &[
            "",
            "rho: 0.5, queue: true, n_min: 2, alpha: 3",
            "level: Instances",
            "level: Instances, alpha: 1",
            "level: Centroid, alpha: 1.5",
            "level: Members",
            "level: Members, alpha: 1",
        ],
        extremes: &["queue: true, rho: 9", "level: Instances, alpha: 0.5", "level: Centroid"],
        ..Forms::of("Alignment")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("alignment", 5);
    }

    #[test]
    fn members_are_compared_in_pairs() {
        let data = Data::toy(8, 4);
        let row = |i| unit(data.views[0].as_ref().unwrap(), 4, i);
        let want = testing::mean_over_pairs_of_members(&data, |pairs| {
            let power =
                |(i, l): &(usize, usize)| (2.0 - 2.0 * dot(&row(*i), &row(*l)) + NORM_EPSILON).powf(0.75);
            pairs.iter().map(power).sum::<f64>() / pairs.len() as f64
        });
        let text = "Alignment(level: Members, alpha: 1.5)";
        let allowed = Condition::of(text, &data).of_value(tolerance::f64);
        assert_within!(testing::value(text, &data), want, allowed);
    }

    #[test]
    fn equal_branches_are_aligned_and_nothing_assigned_is_skipped() {
        let mut data = Data::toy(6, 4);
        data.keys[1] = data.views[0].clone();
        // Both branches use the same computation: their four coordinates differ by the rounding of at most 30
        // operations.
        assert_within!(testing::value("Alignment()", &data), 0.0, 4.0 * tolerance::f64(30, 1.0).powi(2));
        data.levels.iter_mut().for_each(|l| l.assignments.fill(None));
        for text in ["Alignment()", "Alignment(level: Centroid)", "Alignment(level: Members)"] {
            let outcome = testing::run::<f64>(text, &data);
            assert_eq!((outcome.value, outcome.skipped.len()), (0.0, 2), "{text}");
        }
    }
}
