//! The 2-D picture of the test embeddings.

use crate::engine::Engine;
use crate::run_dir::RunDir;
use pauc_models::device::NetworkDevice;
use pauc_traits::probe::Rows;
use pauc_traits::{Error, Result};

/// Points drawn at most.
const POINTS: usize = 2000;

/// Writes `figures/embedding.json`: the test (or training) embeddings on their two principal axes, with classes and
/// the nearest prototypes of the coarsest level.
///
/// # Errors
/// If the device or the disk fails.
pub fn embedding<D: NetworkDevice>(engine: &mut Engine<'_, D>, dir: &RunDir) -> Result<()> {
    let plan = engine.plan;
    let source = plan.splits.test.as_ref().unwrap_or(&plan.splits.train);
    let embedded = crate::evaluate::embed(&mut engine.network, &plan.evaluation, source)?;
    let keep = source.len().min(POINTS);
    let rows = Rows::new(&embedded.embeddings[..keep * embedded.dim], embedded.dim);
    let projection = pauc_probes::pca::pca2(rows)?;
    let coarsest = engine.prototypes.as_ref().and_then(|p| p.clusterings.iter().min_by_key(|c| c.k));
    let prototypes: Option<Vec<usize>> = coarsest.map(|c| {
        let mut centroids = c.centroids.clone();
        pauc_cluster::unit_rows(&mut centroids, c.dim);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let nearest = |row: &[f32]| {
            let similar = centroids.chunks_exact(c.dim).map(|c| dot(c, row)).enumerate();
            similar.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(j, _)| j)
        };
        rows.iter().map(nearest).collect()
    });
    let json = serde_json::json!({
        "points": projection.points,
        "explained": projection.explained,
        "labels": source.labels().map(|l| &l[..keep]),
        "classes": plan.splits.classes,
        "prototypes": prototypes,
    });
    let text = serde_json::to_string(&json).map_err(|e| Error::Other(e.into()))?;
    dir.write("figures/embedding.json", text)
}
