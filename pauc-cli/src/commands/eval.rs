//! `eval`.

use crate::Failure;
use crate::args::{DeviceArg, JsonArg, heading};
use crate::device::{self, DeviceJob};
use crate::ranks::{OnRanks, Ranks};
use crate::recipes::parse_component;
use crate::saved::SavedArgs;
use clap::Args;
use pauc::models::NetworkDevice;
use pauc::traits::registry::kind;
use std::process::ExitCode;

/// Probe a run on any labeled split or another dataset.
///
/// With `--split test`, probes learn from the training split and are scored on the test split.
/// `--split train` does not touch the test split: every fifth training image is scored, the others are
/// learned from, and names of metrics end in `@train/5`. `pauc-cli list probe` lists the probes.
///
/// Example: pauc-cli eval runs/quickstart-0a1b2c3d/seed0 --probe 'Knn(k: 20)' --probe 'Linear()'
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    saved: SavedArgs,
    /// A probe, as a recipe writes it; may be given several times.
    #[arg(long, required = true, value_name = "PROBE", help_heading = heading::MEASUREMENT)]
    probe: Vec<String>,
    #[command(flatten)]
    output: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

impl EvalArgs {
    /// Probes a run.
    pub fn execute(self, ranks: &Ranks) -> Result<ExitCode, Failure> {
        device::run_on(&ranks.device(&self.device.name)?, OnRanks { verb: self, ranks })
    }
}

impl DeviceJob for OnRanks<'_, EvalArgs> {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let OnRanks { verb: args, ranks } = self;
        let parse = |text: &String| parse_component::<kind::Probe>("--probe", text);
        let probes = args.probe.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let saved = ranks.share_saved(args.saved.open(device)?)?;
        let part = args.saved.split.into();
        let metrics = saved.eval(device, &probes, part, args.saved.momentum).map_err(Failure::of_request)?;
        if args.output.json {
            let values: serde_json::Map<_, _> =
                metrics.iter().map(|m| (m.name.clone(), serde_json::json!(m.value))).collect();
            let json = serde_json::json!({
                "run": args.saved.run, "split": part.name(), "data": saved.plan.splits.description,
                "weights": saved.weights, "metrics": values,
            });
            outln!("{json}");
            return Ok(ExitCode::SUCCESS);
        }
        outln!("{}, split {}", saved.plan.splits.description, part.name());
        let width = metrics.iter().map(|m| m.name.chars().count()).max().unwrap_or(0);
        metrics.iter().for_each(|m| outln!("  {:<width$}  {:.4}", m.name, m.value));
        if metrics.is_empty() {
            errln!("warning: these probes measure nothing on this data");
        }
        Ok(ExitCode::SUCCESS)
    }
}
