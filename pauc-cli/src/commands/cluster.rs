//! `cluster`.

use super::{device, drawn};
use crate::Failure;
use crate::args::ClusterArgs;
use pauc::models::NetworkDevice;
use pauc::train::cluster::{self, FittedLevel, Job};
use pauc::train::diagnostic::Diagnostic;
use pauc::traits::registry::kind;
use pauc::traits::{Configured, Error};
use std::process::ExitCode;

/// Clusters the features of a file.
pub fn cluster(args: ClusterArgs) -> Result<ExitCode, Failure> {
    device::on(&args.device.clone(), args)
}

impl device::Job for ClusterArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        fit(self, device)
    }
}

fn fit<D: NetworkDevice>(args: ClusterArgs, device: &D) -> Result<ExitCode, Failure> {
    let clusterer = Configured::<kind::Clusterer>::parse(&args.with)
        .map_err(|e| drawn("the clusterer", &args.with, Diagnostic::from_ron(&args.with, &e)))?;
    let job = Job {
        path: &args.embeddings,
        tensor: args.tensor.as_deref(),
        labels: args.labels.as_deref(),
        seed: args.seed,
        alpha: positive("--alpha", args.alpha)?,
        temperature: positive("--temperature", args.temperature)?,
    };
    let fitted = cluster::fit(device, &clusterer, &job).map_err(|e| match e {
        // More prototypes than samples, labels that are not given: the words of the command do not fit the data.
        Error::Config { message } => Failure::new(2, format!("error: {message}")),
        e => e.into(),
    })?;
    if let Some(path) = &args.out {
        cluster::write(&fitted, path)?;
    }
    if args.json {
        let json = serde_json::json!({
            "clusterer": clusterer.name(), "rows": fitted.rows, "cols": fitted.cols, "seconds": fitted.seconds,
            "levels": fitted.levels.iter().map(of_level).collect::<Vec<_>>(),
        });
        println!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} on {}×{}: {:.3} s", clusterer.name(), fitted.rows, fitted.cols, fitted.seconds);
    for level in &fitted.levels {
        let (c, report) = (&level.clustering, &level.clustering.report);
        let objective = report.objective.last().copied().unwrap_or(f64::NAN);
        println!(
            "k {}: objective {objective}, {} iterations, {} splits, imbalance {:.3}, {} empty, {} noise",
            c.k,
            report.objective.len().saturating_sub(1),
            report.splits,
            report.imbalance,
            report.empty,
            report.noise
        );
        for m in &level.metrics {
            println!("  {:<36} {:.4}", m.name, m.value);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn positive(name: &str, value: f64) -> Result<pauc::traits::Positive, Failure> {
    value.try_into().map_err(|e| Failure::new(2, format!("error: {name}: {e}")))
}

fn of_level(level: &FittedLevel) -> serde_json::Value {
    let (c, report) = (&level.clustering, &level.clustering.report);
    let metrics: serde_json::Map<_, _> =
        level.metrics.iter().map(|m| (m.name.clone(), serde_json::json!(m.value))).collect();
    serde_json::json!({
        "k": c.k,
        "objective": report.objective.last(),
        "objectives": report.objective,
        "iterations": report.objective.len().saturating_sub(1),
        "moved": report.moved,
        "splits": report.splits,
        "splits_at": report.splits_at,
        "imbalance": report.imbalance,
        "empty": report.empty,
        "noise": report.noise,
        "metrics": metrics,
    })
}
