//! `resume`.

use crate::Failure;
use crate::args::{DataChangedArg, JsonArg, MemoryArg, heading};
use crate::console::{Console, catch_signals};
use crate::device::{self, DeviceJob};
use crate::recipes::{Warnings, plan};
use crate::training::{self, interrupted, no_run, print_outcome, run_failure};
use clap::Args;
use pauc::models::NetworkDevice;
use pauc::train::rebuild;
use pauc::train::resume::{self, Continuation};
use pauc::train::run::{self, RunOptions};
use pauc::train::run_dir::RunDir;
use pauc::train::trainer::Ending;
use std::path::PathBuf;
use std::process::ExitCode;

/// Continue an interrupted run from its last checkpoint.
///
/// Example: pauc-cli resume runs/quickstart-0a1b2c3d/seed0
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The run's folder.
    run: PathBuf,
    #[command(flatten)]
    data_changed: DataChangedArg,
    #[command(flatten)]
    memory: MemoryArg,
    /// Stop at this optimizer step, counted from the start of the run.
    #[arg(long, value_name = "N", help_heading = heading::TRAINING)]
    max_steps: Option<u64>,
    #[command(flatten)]
    output: JsonArg,
    /// The device; by default the one that the run used.
    #[arg(long, value_name = "DEVICE", help_heading = heading::GENERAL, display_order = 900)]
    device: Option<String>,
}

impl ResumeArgs {
    /// Resumes a run.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        training::prepare();
        let dir = RunDir::at(&self.run);
        let Some(described) = rebuild::describe(&dir).map_err(|e| run_failure(e.into(), &self.run))? else {
            return Err(no_run(&self.run, "run.json"));
        };
        described.rebuilt.iter().for_each(|text| errln!("warning: {text}"));
        // Another device rounds differently, so the default is the device that the run started on.
        let device = self.device.clone().unwrap_or(described.info.device);
        device::run_on(&device, self)
    }
}

impl DeviceJob for ResumeArgs {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        catch_signals();
        let dir = RunDir::at(&self.run);
        let Some(info) = dir.info()? else {
            return Err(no_run(&self.run, "run.json"));
        };
        if info.status == "finished" {
            run::tidy(&dir).map_err(|e| run_failure(e.into(), &self.run))?;
            errln!("{} is already finished", self.run.display());
            return Ok(ExitCode::SUCCESS);
        }
        let plan =
            plan(device, &self.run.join("recipe.resolved.ron"), &[], self.memory.limit, Warnings::Hidden)?;
        let how = Continuation { accept_data: self.data_changed.is_accepted() };
        let threads = rayon::current_num_threads();
        let options = RunOptions { out: self.run.clone(), force: false, max_steps: self.max_steps, threads };
        let outcome = resume::resume(device, &plan, dir, &how, &options, &mut Console::new())
            .map_err(|e| run_failure(e, &self.run))?;
        print_outcome(&outcome, self.output.json);
        Ok(if outcome.ending == Ending::Interrupted { interrupted() } else { ExitCode::SUCCESS })
    }
}
