//! `sweep`. Each run is a separate process: see `processes`.

mod processes;

use crate::args::{DeviceArg, JsonArg, MemoryArg, RecipeArgs, RepetitionArgs, RunsFolderArg, heading};
use crate::console::{self, catch_signals};
use crate::recipes::here;
use crate::training::{self, interrupted, run_failure};
use crate::{Failure, device};
use clap::Args;
use pauc::dfdx::prelude::Cpu;
use pauc::train::plan::{Plan, PlanError};
use pauc::train::recipe::{LoadError, Recipe, Source};
use pauc::train::run_dir::RunDir;
use pauc::train::sweep::{self, Point, Row, Standing, Sweep};
use pauc::traits::dataset::Place;
use pauc::traits::progress;
use processes::{FailedJob, Job, Launcher};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Run a hyper-parameter sweep and print a table of results.
///
/// The file names a recipe, paths in it and their values: as a grid, zipped, or drawn at random. Every
/// combination is checked before the first is trained. Finished runs are not trained again and interrupted
/// ones are resumed, so the same command continues a sweep. Each run is a separate process; a failed run does
/// not stop the others. With --json, the table lists every run.
///
/// Example: pauc-cli sweep recipes/sweeps/temperature.ron --jobs 2
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// The sweep file.
    sweep: PathBuf,
    #[command(flatten)]
    change: RecipeArgs,
    #[command(flatten)]
    memory: MemoryArg,
    #[command(flatten)]
    repetition: RepetitionArgs,
    /// Runs to train in parallel; they share the threads.
    #[arg(long, default_value = "1", value_name = "N", help_heading = heading::TRAINING)]
    jobs: NonZeroUsize,
    /// Check every combination and print the current table, without training.
    #[arg(long, help_heading = heading::TRAINING)]
    dry_run: bool,
    #[command(flatten)]
    out: RunsFolderArg,
    #[command(flatten)]
    output: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

/// A combination of values: its `--set` changes, the hash of the resulting recipe, and its seeds.
struct Combination {
    point: Point,
    name: String,
    set: Vec<String>,
    hash: String,
    seeds: Vec<u64>,
}

/// All combinations of a sweep, checked.
struct CheckedSweep {
    sweep: Sweep,
    /// The path of the recipe.
    recipe: PathBuf,
    recipe_name: String,
    combinations: Vec<Combination>,
}

impl SweepArgs {
    /// Trains every unfinished combination, and prints the results of all of them.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        training::prepare();
        device::check(&self.device.name)?;
        // All recipes are checked before the first is trained: an error in the last must not appear hours
        // later.
        let checked = self.check()?;
        let jobs = self.unfinished(&checked)?;
        let runs: usize = checked.combinations.iter().map(|c| c.seeds.len()).sum();
        errln!("{runs} runs, {} already finished", runs - jobs.len());
        let mut failed = Vec::new();
        if !self.dry_run && !jobs.is_empty() {
            catch_signals();
            let launcher = Launcher {
                recipe: &checked.recipe,
                out: &self.out.path,
                device: &self.device.name,
                force: self.repetition.force,
                memory: self.memory.limit,
            };
            failed = launcher.run_all(&jobs, self.jobs)?;
        }
        self.print_table(&checked, &failed)?;
        if !failed.is_empty() {
            return Err(failed_runs(&failed, runs));
        }
        Ok(if console::stop_asked() { interrupted() } else { ExitCode::SUCCESS })
    }

    /// Reads the sweep and plans each of its combinations.
    fn check(&self) -> Result<CheckedSweep, Failure> {
        // The checks of a recipe do not depend on the device.
        let device = Cpu::default();
        let (mut sweep, source) = Sweep::load(&self.sweep).map_err(sweep_failure)?;
        let seeds = self.repetition.distinct_seeds()?;
        if !seeds.is_empty() {
            sweep.seeds = seeds.to_vec();
        }
        let recipe = sweep.recipe_beside(&self.sweep);
        let mut combinations: Vec<Combination> = Vec::new();
        let mut by_hash = HashMap::new();
        let mut recipe_name = String::new();
        let points = sweep.points();
        let task = progress::task("checking recipes", points.len() as u64);
        for point in points {
            let mut set = sweep.set(&point);
            set.extend(self.change.set.iter().cloned());
            let place = SweptRecipe {
                sweep: &sweep,
                source: &source,
                point: &point,
                recipe: &recipe,
                memory: self.memory.limit,
            };
            let plan = place.plan(&device, &set)?;
            if combinations.is_empty() {
                err!("{}", plan.warnings.render(console::color()));
            }
            recipe_name = plan.recipe.name.to_string();
            let seeds =
                if sweep.seeds.is_empty() { vec![plan.recipe.train.seed] } else { sweep.seeds.clone() };
            let name = sweep.name(&point);
            match by_hash.entry(plan.hash.clone()) {
                Entry::Occupied(same) => {
                    let same: &Combination = &combinations[*same.get()];
                    errln!("{name} is the same recipe as {}: it is trained once", same.name);
                }
                Entry::Vacant(free) => {
                    free.insert(combinations.len());
                    combinations.push(Combination { point, name, set, hash: plan.hash, seeds });
                }
            }
            task.advance(1);
        }
        Ok(CheckedSweep { sweep, recipe, recipe_name, combinations })
    }

    fn run_dir(&self, checked: &CheckedSweep, combination: &Combination, seed: u64) -> RunDir {
        RunDir::of(&self.out.path, &checked.recipe_name, &combination.hash, seed)
    }

    /// Returns the state of a run, read from its folder.
    fn standing(&self, dir: &RunDir, seed: u64) -> Result<Standing, Failure> {
        Standing::of(dir, seed).map_err(|e| run_failure(e.into(), &self.out.path))
    }

    /// Returns the runs to train.
    fn unfinished(&self, checked: &CheckedSweep) -> Result<Vec<Job>, Failure> {
        let mut jobs = Vec::new();
        for c in &checked.combinations {
            for &seed in &c.seeds {
                let dir = self.run_dir(checked, c, seed);
                if self.repetition.force || !self.standing(&dir, seed)?.is_settled() {
                    let description = format!("{} seed {seed}", c.name);
                    jobs.push(Job { description, seed, dir, set: c.set.clone() });
                }
            }
        }
        Ok(jobs)
    }

    fn print_table(&self, checked: &CheckedSweep, failed: &[FailedJob<'_>]) -> Result<(), Failure> {
        let mut rows = Vec::new();
        for c in &checked.combinations {
            let standing = |seed: &u64| self.standing(&self.run_dir(checked, c, *seed), *seed);
            let runs = c.seeds.iter().map(standing).collect::<Result<Vec<_>, _>>()?;
            rows.push(Row::new(&checked.sweep, &c.point, &c.hash, runs));
        }
        sweep::order(&mut rows, checked.sweep.best.as_ref());
        if !self.output.json {
            out!("{}", sweep::table(&checked.sweep, &rows));
            return Ok(());
        }
        let failure = |f: &FailedJob<'_>| serde_json::json!({ "run": f.job.dir.path(), "error": f.reason });
        let json = serde_json::json!({
            "sweep": self.sweep, "recipe": checked.recipe, "name": checked.recipe_name, "rows": rows,
            "failed": failed.iter().map(failure).collect::<Vec<_>>(),
        });
        outln!("{json}");
        Ok(())
    }
}

fn sweep_failure(e: LoadError) -> Failure {
    match e {
        LoadError::File { path, source } => {
            Failure::new(2, format!("error: cannot read the sweep {path}: {source}"))
        }
        e @ LoadError::Recipe(_) => e.into(),
    }
}

fn failed_runs(failed: &[FailedJob<'_>], runs: usize) -> Failure {
    let describe = |FailedJob { job, reason }: &FailedJob<'_>| {
        format!("\n{}: {}\n{reason}", job.description, job.dir.path().display())
    };
    let all: String = failed.iter().map(describe).collect();
    Failure::new(1, format!("error: {} of {runs} runs failed{all}", failed.len()))
}

/// The recipe of one combination.
struct SweptRecipe<'a> {
    sweep: &'a Sweep,
    source: &'a Source,
    point: &'a Point,
    recipe: &'a Path,
    memory: Option<u64>,
}

impl SweptRecipe<'_> {
    /// Checks the recipe. Mistakes are shown in the changed recipe, followed by the positions of the sweep's
    /// values.
    fn plan(&self, device: &Cpu, set: &[String]) -> Result<Plan, Failure> {
        let (recipe, text) = Recipe::load(self.recipe, set).map_err(|e| {
            // A missing recipe has no values to show.
            if self.recipe.is_file() { self.with_values(e.into()) } else { e.into() }
        })?;
        Plan::new(device, recipe, text, &Place { memory: self.memory, ..here()? }).map_err(|e| match e {
            e @ PlanError::Recipe(_) => self.with_values(e.into()),
            e @ PlanError::Data { .. } => e.into(),
        })
    }

    /// Adds the positions of the values in the sweep file.
    fn with_values(&self, failure: Failure) -> Failure {
        let places = self.sweep.whence(self.point, self.source);
        let message = format!("{}\nthe recipe has these values from the sweep:\n{places}", failure.message);
        Failure { message, ..failure }
    }
}
