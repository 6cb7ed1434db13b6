//! The E-step: from the embeddings of the training set to the cluster levels that terms read.

use crate::recipe::Concentration;
use pauc_cluster::match_prototypes;
use pauc_cluster::on_ranks::Rows;
use pauc_traits::batch::{Constant, Level};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::schedule::Clock;
use pauc_traits::{Clusterer, Clustering, Compute, Result};
use rayon::prelude::*;

/// The largest number of prototypes of a level to match with the previous ones: the time is cubic in it.
const MOST_MATCHED: usize = 2000;

/// The current clusterings, with the data that terms need.
pub struct Prototypes<D: Compute> {
    /// One clustering per level, with the clusterer's centroids.
    pub clusterings: Vec<Clustering>,
    /// φ of each prototype, level by level.
    pub concentrations: Vec<Vec<f32>>,
    centroids: Vec<Constant<f32, D>>,
}

impl<D: Compute> Prototypes<D> {
    /// Clusters unit embeddings and computes concentrations with the temperature of a step.
    ///
    /// # Shapes
    /// embeddings (N, D), unit rows, on the host; on several ranks, the share of this rank
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
        let rows = Rows::of(embeddings, &context)?;
        let concentrations = scale.kind.of_levels(&rows, &clusterings, alpha, temperature)?;
        Ok(Self::restore(device, clusterings, concentrations))
    }

    /// Restores prototypes from a checkpoint.
    pub fn restore(device: &D, clusterings: Vec<Clustering>, concentrations: Vec<Vec<f32>>) -> Self {
        let unit = |c: &Clustering| {
            let mut rows = c.centroids.clone();
            pauc_cluster::unit_rows(&mut rows, c.dim);
            Constant::new(device, rows, (c.k, c.dim))
        };
        let centroids = clusterings.iter().map(unit).collect();
        Prototypes { clusterings, concentrations, centroids }
    }

    /// Returns the fraction of samples whose prototype does not continue their previous one, level by level;
    /// `None` if there was no such level of these samples, or matching would take too long.
    ///
    /// # Errors
    /// If the run was asked to stop.
    pub fn churn(&self, before: &[Clustering]) -> Result<Vec<Option<f64>>> {
        let churn = |(m, now): (usize, &Clustering)| {
            let fits = |b: &&Clustering| {
                b.k.max(now.k) <= MOST_MATCHED && b.assignments.len() == now.assignments.len()
            };
            let before = before.get(m).filter(fits);
            before.map(|before| Ok(match_prototypes(before, now)?.churn)).transpose()
        };
        self.clusterings.iter().enumerate().map(churn).collect()
    }

    /// Returns the levels for one batch, with the concentrations of the fit times `scale`, which accounts for
    /// a change of the temperature.
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

/// Returns the prototype of the largest cosine for each row.
///
/// # Shapes
/// rows (N, D) → N
pub fn nearest(clustering: &Clustering, rows: RowsView<'_>) -> Vec<u32> {
    let mut centroids = clustering.centroids.clone();
    pauc_cluster::unit_rows(&mut centroids, clustering.dim);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let nearest = |row: &[f32]| {
        let similar = centroids.chunks_exact(clustering.dim).map(|c| dot(c, row)).enumerate();
        similar.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(j, _)| j as u32)
    };
    rows.data.par_chunks(rows.cols.max(1)).map(nearest).collect()
}
