//! Decorrelation of the columns, or orthogonality of the rows, of instances or prototypes.

use crate::{findings, rows};
use dfdx::prelude::*;
use pauc_traits::batch::PrototypeOptions;
use pauc_traits::term::{Facts, Finding};
use pauc_traits::{
    Backend, Batch, Count, Needs, NonNegative, Regularizer, Result, Scalar, Scheduled, TermInfo, Value,
    component, ops,
};
use serde::{Deserialize, Serialize};

component! {
    /// Decorrelates the dimensions of instances or prototypes.
    ///
    /// ```text
    /// Cross        L = (1/D)·[Σ_d (1 − R_dd)² + λ Σ_{d≠e} R_de²],  R = ÃᵀB̃/n
    /// Covariance   L = (1/D)·Σ_{d≠e} cov(A)_de²
    /// Gram         L = mean_{j≠l} (a_j·a_l)²
    /// ```
    ///
    /// At level `Prototypes` the rows are the n = |P| batch prototypes: A = p from the online branch and B =
    /// p' from the keys. The value is a mean over the levels of the clustering. At level `Instances`, A and B
    /// are the raw projector outputs of the two views (`Gram`: their unit embeddings) and n = B; `Covariance`
    /// and `Gram` are means of both views. The tilde standardizes columns with the biased variance + 1e-5;
    /// cov is unbiased.
    ///
    /// # What the source says
    /// `Cross` on instances is Barlow Twins (Zbontar et al. 2021) with an additional factor 1/D. `Covariance`
    /// on instances is a part of VICReg (Bardes et al. 2022). On prototypes all three are this project's
    /// readings of the abstract of Mo, Sun and Li (BMVC 2022), which names prototype-level correlation
    /// without a formula; `Cross` is the default reading.
    ///
    /// # Shapes
    /// (B, D) views and keys → scalar.
    ///
    /// # Reading
    /// 0 is best. `Cross` starts at 1, where the branches are uncorrelated. With n rows, R has at most rank n
    /// − 1. With D columns, Σ_{d≠e}R_de² has a floor of D²/(n − 1) − D, and checking a recipe warns about it.
    /// `Gram` of random unit vectors is 1/D.
    ///
    /// # Gradient
    /// On prototypes, all members of a prototype get the same gradient: clusters are not contracted. On
    /// instances it ignores clusters.
    ///
    /// # When to use
    /// `Prototypes` if embeddings use few dimensions (measured by the probe Rank), with more occupied
    /// prototypes than columns; `Gram` if there are fewer. `Instances` is an objective of its own, as in
    /// Barlow Twins, with a wide projector.
    ///
    /// ```text
    /// (term: Correlation(kind: Cross), weight: 0.1, from: Epochs(2))
    /// ```
    ///
    /// # Degenerate batches
    /// With fewer than two rows or prototypes, the level is skipped and counts as 0.
    pub struct Correlation: Regularizer {
        /// What is decorrelated: Instances or Prototypes.
        pub level: CorrelationLevel = CorrelationLevel::Prototypes,
        /// Which matrix: Cross, Covariance or Gram.
        pub kind: CorrelationKind = CorrelationKind::Cross,
        /// The weight λ of the off-diagonal elements; read by Cross.
        pub off_diagonal: Scheduled<NonNegative> = NonNegative::lit(0.005).into(),
        /// The weight ρ of the constant centroid in a batch prototype; read at level Prototypes.
        pub rho: Scheduled<NonNegative> = NonNegative::lit(0.0).into(),
        /// Whether queued keys join the batch prototypes; read at level Prototypes.
        pub queue: bool = false,
        /// The minimum number of members of a batch prototype; read at level Prototypes.
        pub n_min: Count = Count::lit(1),
    }
}

/// What [`Correlation`] decorrelates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CorrelationLevel {
    /// The samples of both views.
    Instances,
    /// The batch prototypes.
    Prototypes,
}

/// The matrix that [`Correlation`] penalizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CorrelationKind {
    /// The cross-correlation of two branches, pulled to the identity.
    Cross,
    /// The covariance of the columns, pulled to a diagonal.
    Covariance,
    /// The inner products of the rows, pulled to zero.
    Gram,
}

impl Correlation {
    fn options(&self, rho: f64) -> PrototypeOptions {
        PrototypeOptions { rho, n_min: self.n_min.get(), queue: self.queue }
    }

    fn prototypes<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>, m: usize) -> Result<Value<E, D>> {
        let p = batch.prototypes(m, self.options(self.rho.at(batch.clock())))?;
        if p.len() < 2 {
            return Ok(batch.skip(format!("level {m} needs 2 occupied prototypes, got {}", p.len())));
        }
        Ok(match self.kind {
            CorrelationKind::Cross => rows::cross_correlation(
                p.online(),
                batch.key_prototypes(m, &p)?,
                self.off_diagonal.at(batch.clock()),
            ),
            CorrelationKind::Covariance => rows::covariance_energy(p.online()),
            CorrelationKind::Gram => gram_energy(p.online()),
        })
    }

    fn instances<E: Scalar, D: Backend<E>>(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        if batch.size() < 2 {
            return Ok(batch.skip("correlation of instances needs 2 samples"));
        }
        match self.kind {
            CorrelationKind::Cross => {
                Ok(rows::cross_correlation(batch.x(0)?, batch.x(1)?, self.off_diagonal.at(batch.clock())))
            }
            CorrelationKind::Covariance => {
                rows::mean_over_views(|v| Ok(rows::covariance_energy(batch.x(v)?)))
            }
            CorrelationKind::Gram => rows::mean_over_views(|v| Ok(gram_energy(batch.z(v)?))),
        }
    }
}

/// mean_{j≠l} (r_j·r_l)².
fn gram_energy<E: Scalar, D: Backend<E>>(r: rows::Rows<E, D>) -> Value<E, D> {
    let n = r.shape().0;
    let share = 1.0 / (n * (n - 1)) as f64;
    let gram = ops::dot_rows(r.with_empty_tape(), r);
    let share = rows::weights(gram.device(), n, |j, l| if j == l { 0.0 } else { share });
    ops::total(gram.square() * share)
}

impl TermInfo for Correlation {
    fn needs(&self) -> Needs {
        let prototypes = Needs { queries: &[0], prototypes: true, queue: self.queue, ..Needs::default() };
        match (self.level, self.kind) {
            (CorrelationLevel::Instances, _) => Needs { queries: &[0, 1], ..Needs::default() },
            (CorrelationLevel::Prototypes, CorrelationKind::Cross) => Needs { keys: &[1], ..prototypes },
            (CorrelationLevel::Prototypes, _) => prototypes,
        }
    }

    /// Cross: 1, the value at zero correlation. Gram: 1/D, the mean squared cosine of random unit vectors.
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        match self.kind {
            CorrelationKind::Cross => Some(1.0),
            CorrelationKind::Covariance => None,
            CorrelationKind::Gram => Some(1.0 / facts.dim.max(1) as f64),
        }
    }

    fn check(&self, facts: &Facts) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut rank = |what: String, rows: f64| {
            let d = facts.dim as f64;
            if rows > 1.0 && d >= rows && self.kind != CorrelationKind::Gram {
                found.push(findings::warning(
                    findings::RANK_DEFICIENT,
                    "kind",
                    format!(
                        "correlation of {} dimensions over {what}: the off-diagonal energy cannot fall below \
                         D²/(n − 1) − D = {:.1}",
                        facts.dim,
                        d * d / (rows - 1.0) - d
                    ),
                    "use more prototypes or larger batches, a narrower projector, or `kind: Gram`",
                ));
            }
        };
        match self.level {
            CorrelationLevel::Instances => {
                rank(format!("the {} samples of a batch", facts.batch), facts.batch as f64);
                if facts.batch < 2 {
                    found.push(findings::error(
                        findings::TOO_FEW_ROWS,
                        "level",
                        format!("the correlation needs at least 2 samples, got a batch of {}", facts.batch),
                        "use a larger batch",
                    ));
                }
            }
            CorrelationLevel::Prototypes => {
                for (m, k) in facts.prototypes.iter().enumerate() {
                    let Some(k) = *k else { continue };
                    let occupied = findings::expected_occupied(k, facts.batch);
                    rank(format!("about {occupied:.0} occupied prototypes of level {m}"), occupied);
                }
                found.extend(findings::prototypes(facts, &self.options(self.rho.largest())));
            }
        }
        found
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for Correlation {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        match self.level {
            CorrelationLevel::Instances => self.instances(batch),
            CorrelationLevel::Prototypes => rows::mean_over_levels(batch, |m, _| self.prototypes(batch, m)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Data, Forms};
    use pauc_testing::tolerance;

    const FORMS: Forms = Forms {
        forms: &[
            "",
            "kind: Covariance, rho: 0.5",
            "kind: Gram",
            "kind: Gram, queue: true, n_min: 2",
            "level: Instances",
            "level: Instances, kind: Covariance",
            "level: Instances, kind: Gram",
        ],
        axes: &["", "kind: Covariance, rho: 0.5", "level: Instances", "level: Instances, kind: Covariance"],
        extremes: &["kind: Covariance", "queue: true, n_min: 3"],
        ..Forms::of("Correlation")
    };
    testing::inventory::submit! { FORMS }

    #[test]
    fn agrees_with_reference_values() {
        testing::golden("correlation", 4);
    }

    #[test]
    fn the_stated_floor_is_a_floor() {
        // R of a matrix with itself: for any rows, the off-diagonal energy stays above D²/(n − 1) − D.
        let (n, d) = (4, 6);
        for phase in 0..20 {
            let mut data = Data::toy(n, d);
            let rows = testing::pattern(n, d, phase as f64);
            data.views = vec![Some(rows.clone()), Some(rows.clone())];
            let on = testing::value("Correlation(level: Instances, off_diagonal: 1)", &data);
            let off = testing::value("Correlation(level: Instances, off_diagonal: 0)", &data);
            let energy = (on - off) * d as f64;
            // Standardizing adds 1e-5 to the variance v, so that R_dd is v/(v + 1e-5), slightly less than 1.
            let diagonal = (0..d).map(|j| {
                let column = || rows.iter().skip(j).step_by(d);
                let mean = column().sum::<f64>() / n as f64;
                let variance = column().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
                variance / (variance + 1e-5)
            });
            let (trace, squares) = diagonal.fold((0.0, 0.0), |(t, s), r| (t + r, s + r * r));
            let floor = trace * trace / (n as f64 - 1.0) - squares;
            // Elements of R are sums over n rows; they are squared and summed over D² elements.
            assert!(energy >= floor - tolerance::f64(4 * n + d * d + 8, (d * d) as f64), "{energy}, {floor}");
        }
    }

    #[test]
    fn narrow_batches_are_warned_of_with_the_floor() {
        let facts = testing::facts(256, 128, &[65, 1000]);
        let found = testing::term("Correlation()").info().check(&facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].code, findings::RANK_DEFICIENT);
        assert!(found[0].message.contains("about 64 occupied"), "{}", found[0].message);
        assert!(testing::term("Correlation(kind: Gram)").info().check(&facts).is_empty());
    }
}
