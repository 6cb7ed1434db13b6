//! `reproduce`.

use crate::Failure;
use crate::args::{DeviceArg, JsonArg, MemoryArg, RecipeArgs, RunsFolderArg, heading};
use crate::console::{Console, catch_signals};
use crate::device::{self, DeviceJob};
use crate::ranks::{OnRanks, Ranks};
use crate::recipes::{Warnings, plan};
use crate::training::{self, interrupted, run_failure};
use clap::Args;
use pauc::models::NetworkDevice;
use pauc::train::compare;
use pauc::train::plan::Plan;
use pauc::train::reproduce::{Expectation, path_beside};
use pauc::train::run::{self, RunError, RunOptions};
use pauc::train::run_dir::RunDir;
use pauc::train::trainer::Ending;
use pauc::traits::Error;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Train a recipe and compare its metrics with stored ones.
///
/// The stored metrics are in `expected/NAME.json` beside the recipe: a value and a tolerance per metric. Exit
/// code 3 if a metric is outside its tolerance, was not measured, or is not stored. A finished run is not
/// trained again. `--update` stores the metrics of this run. It keeps existing tolerances; new ones are the
/// larger of 0.02 and 5 % of the value.
///
/// Example: pauc-cli reproduce recipes/quickstart.ron --update
#[derive(Debug, Args)]
pub struct ReproduceArgs {
    /// The recipe file.
    recipe: PathBuf,
    #[command(flatten)]
    change: RecipeArgs,
    #[command(flatten)]
    memory: MemoryArg,
    /// The file with the expected metrics; by default `expected/NAME.json` beside the recipe.
    #[arg(long, value_name = "FILE", help_heading = heading::MEASUREMENT)]
    expected: Option<PathBuf>,
    /// Store the metrics of this run as the expected ones.
    #[arg(long, help_heading = heading::MEASUREMENT)]
    update: bool,
    #[command(flatten)]
    out: RunsFolderArg,
    #[command(flatten)]
    output: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

impl ReproduceArgs {
    /// Trains a recipe, unless its run is finished, and compares its metrics with the stored ones.
    pub fn execute(self, ranks: &Ranks) -> Result<ExitCode, Failure> {
        training::prepare();
        device::run_on(&ranks.device(&self.device.name)?, OnRanks { verb: self, ranks })
    }
}

impl DeviceJob for OnRanks<'_, ReproduceArgs> {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let OnRanks { verb: args, ranks } = self;
        let path = args.expected.clone().unwrap_or_else(|| path_beside(&args.recipe));
        let stored = match Expectation::read(&path) {
            Err(Error::NotFound { .. }) if args.update => None,
            read => Some(read?),
        };
        let plan = plan(device, &args.recipe, &args.change.set, args.memory.limit, Warnings::Shown)?;
        let plan = ranks.share(plan)?;
        ranks.compare([&plan])?;
        let Some(run) = trained(device, &plan, args.out.path.clone())? else {
            return Ok(interrupted());
        };
        // Only rank 0 compares the metrics.
        if !ranks.is_first() {
            return Ok(ExitCode::SUCCESS);
        }
        let metrics = compare::metrics(&run)?;
        let now = Expectation {
            recipe: plan.hash.clone(),
            seed: plan.recipe.train.seed,
            version: env!("CARGO_PKG_VERSION").into(),
            simd: RunDir::at(&run).info()?.map(|i| i.simd).unwrap_or_default(),
            metrics: BTreeMap::new(),
        };
        if args.update {
            now.of(&metrics, stored.as_ref()).write(&path)?;
            outln!("{}: stored", path.display());
            return Ok(ExitCode::SUCCESS);
        }
        let Some(stored) = stored else { return Ok(ExitCode::SUCCESS) };
        let differences = stored.differences(&metrics);
        let reproduced = differences.is_empty();
        if args.output.json {
            let json = serde_json::json!({
                "run": run, "expected": path, "reproduced": reproduced, "differences": differences,
            });
            outln!("{json}");
        } else if reproduced {
            outln!("reproduced: {} metrics within their tolerances", stored.metrics.len());
        }
        if reproduced {
            return Ok(ExitCode::SUCCESS);
        }
        let mut message = format!(
            "error: metrics of {} differ from those stored in {}",
            args.recipe.display(),
            path.display()
        );
        differences.iter().for_each(|d| message.push_str(&format!("\n  {d}")));
        message.push_str(&changes(&stored, &now));
        Err(Failure::new(3, message))
    }
}

/// Returns the folder of the recipe's finished run, training it if necessary; `None` if training was
/// interrupted.
fn trained<D: NetworkDevice>(device: &D, plan: &Plan, out: PathBuf) -> Result<Option<PathBuf>, Failure> {
    catch_signals();
    let threads = rayon::current_num_threads();
    let options = RunOptions { out, force: false, max_steps: None, threads };
    match run::run(device, plan, &options, &mut Console::new()) {
        Ok(outcome) if outcome.ending != Ending::Finished => Ok(None),
        Ok(outcome) => Ok(Some(Path::to_path_buf(outcome.dir.path()))),
        Err(RunError::AlreadyDone(done)) => {
            errln!("{} is finished; comparing its metrics", done.display());
            Ok(Some(done))
        }
        Err(e) => Err(run_failure(e, &options.out)),
    }
}

/// Lists the differences between the two runs other than their metrics, one per line.
fn changes(then: &Expectation, now: &Expectation) -> String {
    let mut lines = String::new();
    let texts = [
        ("recipe", &then.recipe, &now.recipe),
        ("version", &then.version, &now.version),
        ("instruction set", &then.simd, &now.simd),
    ];
    for (what, then, now) in texts.into_iter().filter(|(_, then, now)| then != now) {
        lines.push_str(&format!("\n  the {what} differs: {then} then, {now} now"));
    }
    if then.seed != now.seed {
        lines.push_str(&format!("\n  the seed differs: {} then, {} now", then.seed, now.seed));
    }
    lines
}
