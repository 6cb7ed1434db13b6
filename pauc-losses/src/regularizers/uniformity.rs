//! Uniformity of instances, of prototypes, of the members of a prototype, and of instances against other prototypes'
//! centroids.

use crate::{findings, rows, sphere};
use dfdx::prelude::*;
use pauc_traits::batch::{Level, PrototypeOptions};
use pauc_traits::term::{Facts, Finding};
use pauc_traits::{
    Backend, Batch, Count, Needs, NonNegative, Positive, Regularizer, Result, Scalar, Scheduled, TermInfo,
    Value, component,
};
use serde::{Deserialize, Serialize};

component! {
    /// Spreads instances, prototypes or their members over the sphere: the log of a mean Gaussian potential.
    ///
    /// ```text
    /// Instances        L = log mean_{i<j} exp(−t ‖z_i − z_j‖²), mean of both views
    /// Prototypes       L = log mean_{j<l} exp(−t ‖p_j − p_l‖²), p_j = norm(Σ_{s(i)=j} q_i + ρ c_j)
    /// OtherCentroids   L = log mean_{i, j≠s(i)} exp(−t ‖q_i − c_j‖²)
    /// Members          L = log mean exp(−t ‖q_i − q_l‖²) over the pairs i < l of one prototype
    /// ```
    ///
    /// The last three are means over the levels of the clustering. With `queue: true`, `Instances` takes one
    /// mean over the pairs within view 0 and the pairs of view 0 with queued keys, and `Prototypes` adds
    /// queued keys of known samples to the sums of their prototypes.
    ///
    /// # What the source says
    /// `Instances` is Wang and Isola (2020); its queue form is their MoCo code. The other three are this
    /// project's readings of the abstract of Mo, Sun and Li (BMVC 2022), which names prototype-level
    /// uniformity without a formula; `Prototypes` is the default reading. `Members` takes "prototypical features" to
    /// be the embeddings that belong to one prototype.
    ///
    /// # Shapes
    /// (B, D) views, (M, D) queue, (K, D) centroids → scalar.
    ///
    /// # Reading
    /// Lower is more uniform; 0 means collapse. The chance level is the expectation for random unit vectors
    /// in D dimensions, log E exp(−t‖u − v‖²), integrated numerically. It tends to −2t for large D. For n
    /// points, the minimum is −2tn/(n − 1), which a simplex reaches.
    ///
    /// # Gradient
    /// `Prototypes` gives all members of a prototype the same gradient: clusters are pushed apart as a whole
    /// and not contracted. `Instances` spreads members of one cluster like any others. `Members` pushes the members of
    /// a prototype apart, while ProtoNCE pulls them together. Centroids are constants: only embeddings move.
    ///
    /// # When to use
    /// `Instances` against collapse, beside a term that only pulls. `Prototypes` from the first clustering
    /// on, best with a rising weight, and with fewer prototypes than samples per batch. `OtherCentroids` if
    /// batches occupy few prototypes. `Members` if embeddings within prototypes lose their diversity (measured by the
    /// probe Coagulation), with fewer prototypes than samples per batch.
    ///
    /// ```text
    /// (term: Uniformity(level: Prototypes, t: 2.0), weight: Linear(from: 0.0, to: 0.1, over: Epochs(5)), from: Epochs(2))
    /// ```
    ///
    /// # Degenerate batches
    /// With fewer than two rows or prototypes, or (`Members`) without two samples of one prototype, there is no pair: the
    /// level is skipped and counts as 0.
    pub struct Uniformity: Regularizer {
        /// What is spread: Instances, Prototypes, OtherCentroids or Members.
        pub level: UniformityLevel = UniformityLevel::Prototypes,
        /// The sharpness t of the potential.
        pub t: Scheduled<Positive> = Positive::lit(2.0).into(),
        /// The weight ρ of the constant centroid in a batch prototype; read at level Prototypes.
        pub rho: Scheduled<NonNegative> = NonNegative::lit(0.0).into(),
        /// Whether queued keys take part; read at levels Instances and Prototypes.
        pub queue: bool = false,
        /// The minimum number of members of a batch prototype; read at level Prototypes.
        pub n_min: Count = Count::lit(1),
    }
}

/// What [`Uniformity`] spreads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UniformityLevel {
    /// The samples of a view.
    Instances,
    /// The batch prototypes.
    Prototypes,
    /// Each sample against the centroids of the prototypes that it does not belong to.
    OtherCentroids,
    /// All pairs of samples of one prototype.
    Members,
}

impl Uniformity {
    fn options(&self, rho: f64) -> PrototypeOptions {
        PrototypeOptions { rho, n_min: self.n_min.get(), queue: self.queue }
    }

    /// −t‖a_i − b_j‖² of unit rows.
    fn exponents<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        a: rows::Rows<E, D>,
        b: rows::Rows<E, D>,
    ) -> rows::Rows<E, D> {
        rows::squared_distances(a, b) * E::of(-self.t.at(batch.clock()))
    }

    /// log mean_{i<j} exp(−t‖r_i − r_j‖²), computed over both orders of each pair.
    fn among<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>, r: rows::Rows<E, D>) -> Value<E, D> {
        let n = r.shape().0;
        let pairs = rows::mask(self.exponents(batch, r.with_empty_tape(), r), |i, j| i == j);
        rows::log_mean_exp(pairs, n * (n - 1))
    }

    fn instances<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let n = batch.size();
        if self.queue {
            let (z, queue) = (batch.z(0)?, batch.queue()?.tensor());
            let m = queue.shape().0;
            // Each unordered pair within the batch counts once, as does each pair with the queue.
            let pairs =
                rows::mask(self.exponents(batch, z.with_empty_tape(), z.with_empty_tape()), |i, j| i >= j);
            let queued = self.exponents(batch, z, queue.retaped());
            return Ok(rows::log_mean_exp(rows::beside(pairs, queued), n * (n - 1) / 2 + n * m));
        }
        if n < 2 {
            return Ok(batch.skip("uniformity of instances needs 2 samples"));
        }
        rows::mean_over_views(|v| Ok(self.among(batch, batch.z(v)?)))
    }

    fn prototypes<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>, m: usize) -> Result<Value<E, D>> {
        let p = batch.prototypes(m, self.options(self.rho.at(batch.clock())))?;
        if p.len() < 2 {
            return Ok(batch.skip(format!("level {m} needs 2 occupied prototypes, got {}", p.len())));
        }
        Ok(self.among(batch, p.online()))
    }

    fn other_centroids<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        m: usize,
        level: &Level<E, D>,
    ) -> Result<Value<E, D>> {
        let (members, prototypes) = level.members();
        let pairs = members.len() * (level.k() - 1);
        if pairs == 0 {
            return Ok(batch.skip(format!("no sample can be compared with another centroid in level {m}")));
        }
        let exponents =
            self.exponents(batch, rows::gather(batch.z(0)?, &members), level.centroids.tensor().retaped());
        Ok(rows::log_mean_exp(rows::mask(exponents, |i, j| prototypes[i] == j), pairs))
    }

    fn members<E: Scalar, D: Backend<E>>(
        &self,
        batch: &Batch<E, D>,
        m: usize,
        level: &Level<E, D>,
    ) -> Result<Value<E, D>> {
        rows::over_pairs_of_members(batch, m, level, |together, pairs| {
            let z = batch.z(0)?;
            let exponents = self.exponents(batch, z.with_empty_tape(), z);
            Ok(rows::log_mean_exp(rows::mask(exponents, |i, l| !together(i, l)), pairs))
        })
    }
}

impl TermInfo for Uniformity {
    fn needs(&self) -> Needs {
        let prototypes = Needs { queries: &[0], prototypes: true, ..Needs::default() };
        match self.level {
            UniformityLevel::Instances if self.queue => {
                Needs { queries: &[0], queue: true, ..Needs::default() }
            }
            UniformityLevel::Instances => Needs { queries: &[0, 1], ..Needs::default() },
            UniformityLevel::Prototypes => Needs { queue: self.queue, ..prototypes },
            UniformityLevel::OtherCentroids | UniformityLevel::Members => prototypes,
        }
    }

    /// log E exp(−t‖u − v‖²) of random unit vectors in D dimensions, with the last t of a schedule.
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        Some(sphere::uniformity(facts.dim, self.t.last()))
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        match self.level {
            UniformityLevel::Instances if facts.batch < 2 && !self.queue => vec![findings::error(
                findings::TOO_FEW_ROWS,
                "level",
                format!("the term needs at least 2 samples, got a batch of {}", facts.batch),
                "use a larger batch",
            )],
            UniformityLevel::Instances | UniformityLevel::Members => Vec::new(),
            UniformityLevel::Prototypes => findings::prototypes(facts, &self.options(self.rho.largest())),
            UniformityLevel::OtherCentroids => {
                let mut found = findings::prototypes(facts, &PrototypeOptions::default());
                found.retain(|f| f.code == findings::TOO_FEW_PROTOTYPES);
                found
            }
        }
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for Uniformity {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        match self.level {
            UniformityLevel::Instances => self.instances(batch),
            UniformityLevel::Prototypes => rows::mean_over_levels(batch, |m, _| self.prototypes(batch, m)),
            UniformityLevel::OtherCentroids => {
                rows::mean_over_levels(batch, |m, level| self.other_centroids(batch, m, level))
            }
            UniformityLevel::Members => rows::mean_over_levels(batch, |m, l| self.members(batch, m, l)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Condition, Data, Forms, dot, unit};
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::ops::NORM_EPSILON;

    const FORMS: Forms = Forms {
        forms: &[
            "",
            "rho: 0.5, n_min: 2, queue: true",
            "level: Instances",
            "level: Instances, queue: true, t: 3",
            "level: OtherCentroids",
            "level: Members",
        ],
        extremes: &[
            "level: Instances, t: 1000",
            "level: Instances, t: Linear(from: 1, to: 3, over: Epochs(2))",
        ],
        ..Forms::of("Uniformity")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("uniformity", 7);
    }

    #[test]
    fn a_simplex_reaches_the_lower_bound() {
        // Three unit vectors at 120 degrees: −2t·3/2.
        let h = 3f64.sqrt() / 2.0;
        let mut data = Data::toy(3, 2);
        data.views = vec![Some(vec![1.0, 0.0, -0.5, h, -0.5, -h]); 2];
        data.levels.truncate(1);
        data.levels[0].assignments = vec![Some(0), Some(1), Some(2)];
        for level in ["Instances", "Prototypes"] {
            let got = testing::value(&format!("Uniformity(level: {level}, t: 2)"), &data);
            // The exponent −t·d² is −6 for each pair; h is rounded too. Rows are slightly shorter than one:
            // d² = 2 − 2·cosine, and a cosine of −1/2 loses a fraction ε of itself, twice if prototypes are
            // sums of rows.
            let short = 2.0 * 2.0 * NORM_EPSILON;
            assert_within!(got, -6.0, tolerance::f64(32, 6.0) + short, "{level}");
        }
    }

    #[test]
    fn members_are_spread_in_pairs() {
        let data = Data::toy(8, 4);
        let row = |i| unit(data.views[0].as_ref().unwrap(), 4, i);
        let want = testing::mean_over_pairs_of_members(&data, |pairs| {
            let potential = |(i, l): &(usize, usize)| (-3.0 * (2.0 - 2.0 * dot(&row(*i), &row(*l)))).exp();
            (pairs.iter().map(potential).sum::<f64>() / pairs.len() as f64).ln()
        });
        let text = "Uniformity(level: Members, t: 3)";
        let allowed = Condition::of(text, &data).of_value(tolerance::f64);
        assert_within!(testing::value(text, &data), want, allowed);
    }

    #[test]
    fn samples_without_company_are_skipped() {
        let mut data = Data::toy(6, 4);
        data.levels.iter_mut().for_each(|l| l.assignments.fill(None));
        data.levels[0].assignments[1] = Some(0);
        let outcome = testing::run::<f64>("Uniformity(level: Members)", &data);
        assert_eq!((outcome.value, outcome.skipped.len()), (0.0, 2));
        assert!(outcome.skipped[0].contains("no two samples of the batch share"), "{:?}", outcome.skipped);
    }

    #[test]
    fn one_prototype_is_skipped_and_many_are_warned_of() {
        let mut data = Data::toy(6, 4);
        data.levels.iter_mut().for_each(|l| l.assignments.fill(Some(2)));
        let outcome = testing::run::<f64>("Uniformity()", &data);
        assert_eq!((outcome.value, outcome.skipped.len()), (0.0, 2));
        assert!(outcome.skipped[0].contains("needs 2 occupied prototypes, got 1"), "{:?}", outcome.skipped);
        let facts = testing::facts(256, 128, &[25_000, 1, 100]);
        let codes =
            |text| testing::term(text).info().check(&facts).iter().map(|f| f.code).collect::<Vec<_>>();
        assert_eq!(codes("Uniformity()"), [findings::SINGLETONS, findings::TOO_FEW_PROTOTYPES]);
        assert_eq!(codes("Uniformity(n_min: 2)"), [findings::TOO_FEW_PROTOTYPES]);
        let rho = "Uniformity(n_min: 2, rho: 50)";
        let dominated = findings::CENTROID_DOMINATES;
        assert_eq!(codes(rho), [dominated, findings::TOO_FEW_PROTOTYPES, dominated]);
    }
}
