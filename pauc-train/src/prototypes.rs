//! The E-step: from the training set's embeddings to the cluster levels that terms read.

use crate::recipe::Concentration;
use pauc_cluster::match_prototypes;
use pauc_traits::batch::{Constant, Level};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::schedule::Clock;
use pauc_traits::{Clusterer, Clustering, Compute, Result};

/// Prototypes of a level that are matched with those before: the time is cubic in their number.
const MOST_MATCHED: usize = 2000;

/// The clusterings in force, with what terms need of them at hand.
pub struct Prototypes<D: Compute> {
    /// One clustering per level, centroids as the clusterer left them.
    pub clusterings: Vec<Clustering>,
    /// φ of each prototype, level by level.
    pub concentrations: Vec<Vec<f32>>,
    centroids: Vec<Constant<f32, D>>,
}

impl<D: Compute> Prototypes<D> {
    /// Clusters unit embeddings and computes concentrations with the temperature of a step.
    ///
    /// # Shapes
    /// embeddings (N, D), unit rows, in the host's memory
    ///
    /// # Errors
    /// As [`Clusterer::fit`].
    pub fn fit(
        device: &D,
        clusterer: &dyn Clusterer,
        embeddings: RowsView<'_>,
        (scale, clock): (&Concentration, &Clock),
        context: FitContext<'_>,
    ) -> Result<Self> {
        let clusterings = clusterer.fit(embeddings, context)?;
        let (alpha, temperature) = (scale.alpha.get(), scale.now(clock));
        let concentrations = scale.kind.of_levels(embeddings, &clusterings, alpha, temperature)?;
        Ok(Self::restore(device, clusterings, concentrations))
    }

    /// Prototypes as a checkpoint kept them.
    pub fn restore(device: &D, clusterings: Vec<Clustering>, concentrations: Vec<Vec<f32>>) -> Self {
        let unit = |c: &Clustering| {
            let mut rows = c.centroids.clone();
            pauc_cluster::unit_rows(&mut rows, c.dim);
            Constant::new(device, rows, (c.k, c.dim))
        };
        let centroids = clusterings.iter().map(unit).collect();
        Prototypes { clusterings, concentrations, centroids }
    }

    /// The share of samples whose prototype does not continue the one that they had in the clusterings before, level by
    /// level. `None` where there is no such level before, or matching would take too long.
    pub fn churn(&self, before: &[Clustering]) -> Vec<Option<f64>> {
        let churn = |(m, now): (usize, &Clustering)| {
            let before = before.get(m).filter(|b| b.k.max(now.k) <= MOST_MATCHED)?;
            match_prototypes(before, now).ok().map(|m| m.churn)
        };
        self.clusterings.iter().enumerate().map(churn).collect()
    }

    /// The levels as one batch sees them, with `scale` times the concentrations of the fit: what the temperature has
    /// become since.
    pub fn levels(&self, ids: &[u64], queued: Option<&[Option<u64>]>, scale: f64) -> Vec<Level<f32, D>> {
        let level = |((c, phi), centroids): ((&Clustering, &Vec<f32>), &Constant<f32, D>)| {
            let prototype = |id: u64| c.assignments.get(id as usize).copied().flatten();
            Level {
                centroids: centroids.clone(),
                concentration: phi.iter().map(|v| (f64::from(*v) * scale) as f32).collect(),
                assignments: ids.iter().map(|id| prototype(*id)).collect(),
                queue_assignments: queued.unwrap_or(&[]).iter().map(|id| id.and_then(prototype)).collect(),
                negatives: None,
            }
        };
        self.clusterings.iter().zip(&self.concentrations).zip(&self.centroids).map(level).collect()
    }
}
