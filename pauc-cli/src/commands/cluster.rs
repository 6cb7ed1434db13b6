//! `cluster`.

use crate::Failure;
use crate::args::{DeviceArg, JsonArg, heading};
use crate::device::{self, DeviceJob};
use crate::ranks::{OnRanks, Ranks};
use crate::recipes::parse_component;
use clap::Args;
use pauc::models::NetworkDevice;
use pauc::train::cluster::{self, FittedLevel, Job};
use pauc::traits::Positive;
use pauc::traits::registry::kind;
use std::path::PathBuf;
use std::process::ExitCode;

/// Cluster the features in a file and score the clusters.
///
/// Reads a matrix of samples × dimensions. float32 .npy and .safetensors files are streamed (MiniBatchKMeans
/// and HierarchicalKMeans work on files larger than memory); float64, .csv and .parquet files are loaded
/// whole. In a Parquet file, either each column of floats is a dimension, or one column holds a list of
/// floats per row. Features are used as they are; recipes cluster rows of unit length.
///
/// With --json, prints objective, seconds of the fit alone, iterations, splits and metrics of each level.
///
/// Example: pauc-cli cluster features.npy --with 'KMeans(k: [100])' --labels labels.npy --out clusters.safetensors
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// The features: a .safetensors, .npy, .csv or .parquet file.
    embeddings: PathBuf,
    /// The tensor of a safetensors file, or the column of a Parquet file, with the features.
    #[arg(long, value_name = "NAME", help_heading = heading::INPUT)]
    tensor: Option<String>,
    /// Class labels to score against, numbered from 0: a .npy file, a .csv file with one label per line, or
    /// the tensor `labels` of a .safetensors file.
    #[arg(long, value_name = "FILE", help_heading = heading::INPUT)]
    labels: Option<PathBuf>,
    /// The clusterer, as a recipe writes it.
    #[arg(long, value_name = "CLUSTERER", help_heading = heading::CLUSTERING)]
    with: String,
    /// The random seed.
    #[arg(long, default_value_t = 0, value_name = "SEED", help_heading = heading::CLUSTERING)]
    seed: u64,
    /// Smoothing α of the concentration of small clusters.
    #[arg(long, default_value_t = 10.0, value_name = "ALPHA", help_heading = heading::CLUSTERING)]
    alpha: f64,
    /// The mean of the concentration over the prototypes of a level.
    #[arg(long, default_value_t = 0.2, value_name = "TEMPERATURE", help_heading = heading::CLUSTERING)]
    temperature: f64,
    /// The .safetensors file to write: prototypes.M, assignments.M (−1: noise) and concentration.M of each
    /// level M.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

impl ClusterArgs {
    /// Clusters the features in a file.
    pub fn execute(self, ranks: &Ranks) -> Result<ExitCode, Failure> {
        device::run_on(&self.device.name.clone(), OnRanks { verb: self, ranks })
    }
}

impl DeviceJob for OnRanks<'_, ClusterArgs> {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let OnRanks { verb: args, ranks } = self;
        let clusterer = parse_component::<kind::Clusterer>("the clusterer", &args.with)?;
        ranks.check_device(&args.device.name)?;
        let communicator = ranks.communicator();
        let job = Job {
            path: &args.embeddings,
            tensor: args.tensor.as_deref(),
            labels: args.labels.as_deref(),
            seed: args.seed,
            alpha: positive("--alpha", args.alpha)?,
            temperature: positive("--temperature", args.temperature)?,
            ranks: &*communicator,
        };
        ranks.compare([])?;
        // More prototypes than samples, or missing labels: the arguments do not fit the data.
        let fitted = cluster::fit(device, &clusterer, &job).map_err(Failure::of_request)?;
        if let Some(path) = args.out.as_ref().filter(|_| ranks.is_first()) {
            cluster::write(&fitted, path)?;
        }
        if args.output.json {
            let levels: Vec<_> = fitted.levels.iter().map(level_json).collect();
            let json = serde_json::json!({
                "clusterer": clusterer.name(), "rows": fitted.rows, "cols": fitted.cols,
                "seconds": fitted.seconds, "levels": levels,
            });
            outln!("{json}");
            return Ok(ExitCode::SUCCESS);
        }
        outln!("{} on {}×{}: {:.3} s", clusterer.name(), fitted.rows, fitted.cols, fitted.seconds);
        fitted.levels.iter().for_each(print_level);
        Ok(ExitCode::SUCCESS)
    }
}

fn positive(name: &str, value: f64) -> Result<Positive, Failure> {
    value.try_into().map_err(|e| Failure::new(2, format!("error: {name}: {e}")))
}

fn print_level(level: &FittedLevel) {
    let report = &level.clustering.report;
    let iterations = report.objective.len().saturating_sub(1);
    outln!(
        "k {}: objective {}, {iterations} iteration{}, {} split{}, imbalance {:.3}, {} empty, {} noise",
        level.clustering.k,
        report.objective.last().copied().unwrap_or(f64::NAN),
        if iterations == 1 { "" } else { "s" },
        report.splits,
        if report.splits == 1 { "" } else { "s" },
        report.imbalance,
        report.empty,
        report.noise
    );
    level.metrics.iter().for_each(|m| outln!("  {:<36} {:.4}", m.name, m.value));
}

fn level_json(level: &FittedLevel) -> serde_json::Value {
    let report = &level.clustering.report;
    let metrics: serde_json::Map<_, _> =
        level.metrics.iter().map(|m| (m.name.clone(), serde_json::json!(m.value))).collect();
    serde_json::json!({
        "k": level.clustering.k,
        "objective": report.objective.last(),
        "objectives": report.objective,
        "iterations": report.objective.len().saturating_sub(1),
        "moved": report.reassigned,
        "splits": report.splits,
        "splits_at": report.empty_splits,
        "imbalance": report.imbalance,
        "empty": report.empty,
        "noise": report.noise,
        "metrics": metrics,
    })
}
