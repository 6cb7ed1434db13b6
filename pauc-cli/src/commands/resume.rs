//! `resume`.

use crate::Failure;
use crate::args::{DataChangedArg, JsonArg, MemoryArg, RecipeArgs, SweepArg, heading};
use crate::console::{self, Console};
use crate::device::{self, DeviceJob};
use crate::ranks::{OnRanks, Ranks};
use crate::recipes::{Warnings, here, plan};
use crate::training::{self, interrupted, no_run, print_outcome, run_failure};
use clap::Args;
use pauc::models::NetworkDevice;
use pauc::train::branch::{Branch, Origin, StartingPoint};
use pauc::train::plan::Plan;
use pauc::train::resume::{self, Continuation};
use pauc::train::run::{self, RunOptions};
use pauc::train::run_dir::RunDir;
use pauc::train::trainer::Ending;
use pauc::train::{history, rebuild};
use pauc::traits::dataset::Place;
use std::path::PathBuf;
use std::process::ExitCode;

/// Continue a run from its last checkpoint or an earlier one.
///
/// `--from good --set optimizer.lr=0.01` helps a run that diverged. `--set` changes the recipe from the checkpoint on.
/// It cannot change what the checkpoint depends on, such as the images, the networks, the batch size or the seed.
/// Later checkpoints are kept under names that end in `.superseded1`, and later events in metrics.superseded.jsonl.
/// Either option also continues a finished run.
///
/// Example: pauc-cli resume runs/quickstart-0a1b2c3d/seed0
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The run's folder.
    run: PathBuf,
    /// The checkpoint to continue from: a step, `good`, `last` or `best`; by default the last. `good` is the last one
    /// of a network that still learned.
    #[arg(long, value_name = "CHECKPOINT", help_heading = heading::INPUT)]
    from: Option<StartingPoint>,
    #[command(flatten)]
    data_changed: DataChangedArg,
    #[command(flatten)]
    change: RecipeArgs,
    #[command(flatten)]
    memory: MemoryArg,
    /// Stop at this optimizer step, counted from the start of the run.
    #[arg(long, value_name = "N", help_heading = heading::TRAINING)]
    max_steps: Option<u64>,
    #[command(flatten)]
    sweep: SweepArg,
    #[command(flatten)]
    output: JsonArg,
    /// The device; by default the one that the run used.
    #[arg(long, value_name = "DEVICE", help_heading = heading::GENERAL, display_order = 900)]
    device: Option<String>,
}

impl ResumeArgs {
    /// Resumes a run.
    pub fn execute(self, ranks: &Ranks) -> Result<ExitCode, Failure> {
        training::prepare();
        let dir = RunDir::at(&self.run);
        let describe = || rebuild::describe(&dir).map_err(|e| run_failure(e.into(), &self.run));
        let Some(described) = ranks.first_then_others(describe)? else {
            return Err(no_run(&self.run, "run.json"));
        };
        described.rebuilt.iter().for_each(|text| errln!("warning: {text}"));
        // Another device rounds differently, so the default is the device that the run started on.
        let device = self.device.clone().unwrap_or_else(|| ranks.device_of_run(&described.info.device));
        device::run_on(&ranks.device(&device)?, OnRanks { verb: self, ranks })
    }
}

impl DeviceJob for OnRanks<'_, ResumeArgs> {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let OnRanks { verb: args, ranks } = self;
        args.sweep.watch();
        let dir = RunDir::at(&args.run);
        let Some(info) = dir.info()? else {
            return Err(no_run(&args.run, "run.json"));
        };
        let branches = args.from.is_some() || !args.change.set.is_empty();
        if info.status == "finished" && !branches {
            ranks.on_first(|| run::tidy(&dir).map_err(|e| run_failure(e.into(), &args.run)))?;
            errln!("{} is already finished", args.run.display());
            return Ok(ExitCode::SUCCESS);
        }
        let (plan, branch) = if branches {
            args.branch(device, &dir).map(|(plan, branch)| (plan, Some(branch)))?
        } else {
            let recipe = args.run.join("recipe.resolved.ron");
            let plan = plan(device, &recipe, &[], args.memory.limit, Warnings::Hidden)
                .map_err(with_place_of_data)?;
            (plan.with_history(history::of_run(&dir)?), None)
        };
        let plan = ranks.share(plan)?;
        ranks.compare([&plan])?;
        // Until now, a signal ends the process: nothing has changed.
        console::catch_signals();
        let how = Continuation { accept_data: args.data_changed.is_accepted(), branch };
        let threads = rayon::current_num_threads();
        let options = RunOptions { out: args.run.clone(), force: false, max_steps: args.max_steps, threads };
        let outcome = resume::resume(device, &plan, dir, &how, &options, &mut Console::new())
            .map_err(|e| run_failure(e, &args.run))?;
        print_outcome(&outcome, args.output.json);
        Ok(if outcome.ending == Ending::Interrupted { interrupted() } else { ExitCode::SUCCESS })
    }
}

/// Adds to an error of the data how to name its new place.
fn with_place_of_data(failure: Failure) -> Failure {
    let help = "if the images have moved, name their place with --set, for example \
        --set 'data.root=\"/new/folder\"'";
    let message = if failure.code == 4 { format!("{}\n{help}", failure.message) } else { failure.message };
    Failure { message, ..failure }
}

impl ResumeArgs {
    /// Plans a run that continues from a checkpoint of its own, with a changed recipe if `--set` changes it.
    fn branch<D: NetworkDevice>(&self, device: &D, dir: &RunDir) -> Result<(Plan, Branch), Failure> {
        let from = self.from.unwrap_or(StartingPoint::Last);
        let origin = Origin::find(dir, from).map_err(Failure::of_request)?;
        let (recipe, source) = origin.recipe(&self.change.set)?;
        let place = Place { memory: self.memory.limit, ..here()? };
        let plan = Plan::new(device, recipe, source, &place)?;
        err!("{}", plan.warnings.render(console::color()));
        Ok(origin.continued_with(plan)?)
    }
}
