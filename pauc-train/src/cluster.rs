//! Clustering of the features in a file.

use crate::ranks;
use pauc_cluster::coagulation::Coagulation;
use pauc_cluster::feature_files::{self, Matrix};
use pauc_cluster::metrics::{Agreement, davies_bouldin, silhouette};
use pauc_cluster::on_ranks::{OnRanks, Rows};
use pauc_cluster::{ConcentrationKind, unit_rows};
use pauc_distributed::{Communicator, agree};
use pauc_traits::clusterer::{ClustersOnDevice, FitContext};
use pauc_traits::probe::{Metric, RowsView};
use pauc_traits::registry::kind;
use pauc_traits::{Clustering, Compute, Configured, Error, Positive, Result, atomic};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::time::Instant;

/// The largest number of samples for metrics over pairs of samples; above it, evenly spaced samples are used.
pub const MOST_MEASURED: usize = 10_000;
/// The number of random samples for the silhouette.
const MOST_IN_SILHOUETTE: usize = 2000;
/// The rows of a rank are whole blocks of this many.
const BLOCK: usize = 256;

/// What to cluster, and how.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The features: a `.safetensors`, `.npy` or `.csv` file.
    pub path: &'a Path,
    /// The tensor of a safetensors file.
    pub tensor: Option<&'a str>,
    /// Class labels, to score against.
    pub labels: Option<&'a Path>,
    /// The random seed.
    pub seed: u64,
    /// Smoothing α of the concentration.
    pub alpha: Positive,
    /// The mean of the concentration.
    pub temperature: Positive,
    /// The ranks that cluster together.
    pub ranks: &'a dyn Communicator,
}

/// The result of a fit.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// N.
    pub rows: usize,
    /// D.
    pub cols: usize,
    /// Seconds of the fit alone.
    pub seconds: f64,
    /// The levels.
    pub levels: Vec<FittedLevel>,
}

/// One level of a fit.
#[derive(Clone, Debug)]
pub struct FittedLevel {
    /// Centroids, assignments, and the fit report.
    pub clustering: Clustering,
    /// φ of each prototype.
    pub concentration: Vec<f32>,
    /// Agreement with labels, geometry, coagulation; on rank 0.
    pub metrics: Vec<Metric>,
}

/// Clusters the features in a file on a device, and measures the result. If there are several ranks, each keeps its
/// share of the rows, and they cluster on the host.
///
/// # Errors
/// If a file is missing or damaged, a feature is NaN or infinite, the clusterer does not accept this number of samples,
/// or another rank fails.
pub fn fit<D: Compute>(device: &D, clusterer: &Configured<kind::Clusterer>, job: &Job<'_>) -> Result<Fitted> {
    let mut matrix = Matrix::open(job.path, job.tensor)?;
    let RowsView { rows: n, cols, .. } = matrix.rows();
    keep_share(&mut matrix, job)?;
    let labels = job.labels.map(|path| feature_files::labels(path, n)).transpose()?;
    let on_ranks = OnRanks(job.ranks);
    let together = (job.ranks.size() > 1).then_some(&on_ranks as &dyn ClustersOnDevice);
    let context = FitContext {
        labels: labels.as_deref(),
        device: together.or(device.clusters_on_device()),
        ..FitContext::new(job.seed)
    };
    let rows = matrix.rows();
    let began = Instant::now();
    let fitted = clusterer.fit(rows, context);
    let seconds = began.elapsed().as_secs_f64();
    // A NaN here is an error of the file, not of a diverged encoder.
    let fitted = fitted.map_err(|e| match e {
        Error::NonFinite { what, place } => {
            Error::damaged(job.path, format!("{what} is not finite: {}", place.unwrap_or_default()))
        }
        e => e,
    })?;
    let rows = Rows::of(rows, &context)?;
    let chosen = measured_rows(n);
    let some = rows.gather(&chosen)?;
    let level = |mut c: Clustering| {
        let (alpha, temperature) = (job.alpha.get(), job.temperature.get());
        let kind = ConcentrationKind::PerPrototype;
        let phi = kind.of_levels(&rows, std::slice::from_ref(&c), alpha, temperature)?.concat();
        let measured = ranks::on_first(job.ranks, || {
            let mut metrics = match context.labels {
                Some(labels) => Agreement::new(labels, &c.assignments)?.metrics("labels"),
                None => Vec::new(),
            };
            metrics.extend(geometry(some.clone(), &chosen, &mut c, &phi, job.seed)?);
            Ok(metrics)
        });
        let metrics = measured?.unwrap_or_default();
        Ok(FittedLevel { clustering: c, concentration: phi, metrics })
    };
    let levels = fitted.into_iter().map(level).collect::<Result<_>>()?;
    Ok(Fitted { rows: n, cols, seconds, levels })
}

/// Keeps this rank's share of the rows, after comparing their shape with that on other ranks.
fn keep_share(matrix: &mut Matrix, job: &Job<'_>) -> Result<()> {
    let RowsView { rows: n, cols, .. } = matrix.rows();
    if job.ranks.size() == 1 {
        return Ok(());
    }
    if let Some(found) = agree(job.ranks, &[("shape of the features", format!("{n}×{cols}"))])? {
        return Err(Error::config(format!(
            "the {} of rank {} is {}, but that of rank 0 is {}; give all ranks the same file",
            found.fact, found.rank, found.other, found.first
        )));
    }
    let own = ranks::share(n.div_ceil(BLOCK), job.ranks.rank(), job.ranks.size());
    matrix.keep((own.start * BLOCK).min(n)..(own.end * BLOCK).min(n));
    Ok(())
}

/// Returns the rows that metrics over pairs are computed for, evenly spaced.
fn measured_rows(n: usize) -> Vec<u32> {
    let some = n.min(MOST_MEASURED);
    (0..some).map(|i| (i as u128 * n as u128 / some as u128) as u32).collect()
}

/// Computes the metrics over pairs of the `chosen` rows.
fn geometry(
    mut data: Vec<f32>,
    chosen: &[u32],
    c: &mut Clustering,
    phi: &[f32],
    seed: u64,
) -> Result<Vec<Metric>> {
    // Restored below: a copy of the centroids would be the largest allocation here.
    let few = chosen.iter().map(|i| c.assignments[*i as usize]).collect();
    let all = std::mem::replace(&mut c.assignments, few);
    let of_some = RowsView::new(&data, c.dim);
    let geometry = [
        ("silhouette", silhouette(of_some, &c.assignments, MOST_IN_SILHOUETTE, seed)),
        ("davies_bouldin", davies_bouldin(of_some, &c.assignments)),
    ];
    let mut metrics: Vec<Metric> =
        geometry.into_iter().filter_map(|(name, v)| Some(Metric::new(name, v?))).collect();
    unit_rows(&mut data, c.dim);
    let state = Coagulation::of_clustering(RowsView::new(&data, c.dim), c, phi);
    c.assignments = all;
    metrics.extend(state?.metrics("coagulation"));
    Ok(metrics)
}

/// Writes `prototypes.M`, `assignments.M` (−1: noise) and `concentration.M` of each level M to a safetensors
/// file, under the names that a term reads.
///
/// # Errors
/// If the disk fails.
pub fn write(fitted: &Fitted, path: &Path) -> Result<()> {
    let floats = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (m, level) in fitted.levels.iter().enumerate() {
        let c = &level.clustering;
        let assigned = c.assignments.iter().flat_map(|a| a.map_or(-1, i64::from).to_le_bytes()).collect();
        tensors.push((format!("prototypes.{m}"), Dtype::F32, vec![c.k, c.dim], floats(&c.centroids)));
        tensors.push((format!("assignments.{m}"), Dtype::I64, vec![c.assignments.len()], assigned));
        let phi = &level.concentration;
        tensors.push((format!("concentration.{m}"), Dtype::F32, vec![phi.len()], floats(phi)));
    }
    let other = |e: safetensors::SafeTensorError| Error::Other(e.into());
    let views: Vec<_> = tensors
        .iter()
        .map(|(n, t, s, b)| Ok((n.as_str(), TensorView::new(*t, s.clone(), b)?)))
        .collect::<Result<_, _>>()
        .map_err(other)?;
    let bytes = safetensors::serialize(views, None).map_err(other)?;
    atomic::write(path, &bytes)
}
