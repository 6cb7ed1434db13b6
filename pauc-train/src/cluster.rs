//! Clustering of the features in a file.

use pauc_cluster::coagulation::Coagulation;
use pauc_cluster::feature_files::{self, Matrix};
use pauc_cluster::metrics::{Agreement, davies_bouldin, silhouette};
use pauc_cluster::{concentration, unit_rows};
use pauc_traits::clusterer::FitContext;
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
    /// Agreement with labels, geometry, coagulation.
    pub metrics: Vec<Metric>,
}

/// Clusters the features in a file on a device, and measures the result.
///
/// # Errors
/// If a file is missing or damaged, a feature is NaN or infinite, or the clusterer does not accept this
/// number of samples.
pub fn fit<D: Compute>(device: &D, clusterer: &Configured<kind::Clusterer>, job: &Job<'_>) -> Result<Fitted> {
    let matrix = Matrix::open(job.path, job.tensor)?;
    let rows = matrix.rows();
    let labels = job.labels.map(|path| feature_files::labels(path, rows.rows)).transpose()?;
    let context = FitContext {
        labels: labels.as_deref(),
        device: device.clusters_on_device(),
        ..FitContext::new(job.seed)
    };
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
    let level = |mut c: Clustering| {
        let phi = concentration(rows, &c, job.alpha.get(), job.temperature.get())?;
        let metrics = measure(rows, &mut c, &phi, labels.as_deref(), job.seed)?;
        Ok(FittedLevel { clustering: c, concentration: phi, metrics })
    };
    let levels = fitted.into_iter().map(level).collect::<Result<_>>()?;
    Ok(Fitted { rows: rows.rows, cols: rows.cols, seconds, levels })
}

/// Computes the metrics of one level.
fn measure(
    rows: RowsView<'_>,
    c: &mut Clustering,
    phi: &[f32],
    labels: Option<&[u32]>,
    seed: u64,
) -> Result<Vec<Metric>> {
    let mut metrics = match labels {
        Some(labels) => Agreement::new(labels, &c.assignments)?.metrics("labels"),
        None => Vec::new(),
    };
    let some = rows.rows.min(MOST_MEASURED);
    let chosen: Vec<usize> =
        (0..some).map(|i| (i as u128 * rows.rows as u128 / some as u128) as usize).collect();
    let mut data: Vec<f32> = chosen.iter().flat_map(|i| rows.row(*i)).copied().collect();
    // Restored below: a copy of the centroids would be the largest allocation here.
    let few = chosen.iter().map(|i| c.assignments[*i]).collect();
    let all = std::mem::replace(&mut c.assignments, few);
    let of_some = RowsView::new(&data, rows.cols);
    let geometry = [
        ("silhouette", silhouette(of_some, &c.assignments, MOST_IN_SILHOUETTE, seed)),
        ("davies_bouldin", davies_bouldin(of_some, &c.assignments)),
    ];
    metrics.extend(geometry.into_iter().filter_map(|(name, v)| Some(Metric::new(name, v?))));
    unit_rows(&mut data, rows.cols);
    let state = Coagulation::of_clustering(RowsView::new(&data, rows.cols), c, phi);
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
