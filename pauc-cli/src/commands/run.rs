//! `run`.

use crate::Failure;
use crate::args::{
    DeviceArg, JsonArg, MemoryArg, RecipeArgs, RepetitionArgs, RunsFolderArg, SweepArg, heading,
};
use crate::console::{self, Console};
use crate::device::{self, DeviceJob};
use crate::ranks::{OnRanks, Ranks};
use crate::recipes::{Warnings, plan};
use crate::suggestion::{self, SuggestArgs, Suggestion};
use crate::training::{self, interrupted, print_outcome, run_failure};
use clap::Args;
use pauc::models::NetworkDevice;
use pauc::train::compare;
use pauc::train::plan::Plan;
use pauc::train::run::{self, RunError, RunOptions};
use pauc::train::run_dir::RunDir;
use pauc::train::statistics::Spread;
use pauc::train::trainer::Ending;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Train recipes, or images with a recipe that fits them.
///
/// For a folder of images, or other data, `run` first writes a recipe to the working directory, as `new recipe` does.
///
/// Examples: pauc-cli run recipes/quickstart.ron --set train.epochs=5; pauc-cli run photos --budget 1h
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The recipe files, trained one after the other; or folders of images and other data, as for `new recipe`.
    #[arg(required = true, value_name = "RECIPE|FOLDER")]
    recipes: Vec<PathBuf>,
    #[command(flatten)]
    change: RecipeArgs,
    #[command(flatten)]
    memory: MemoryArg,
    #[command(flatten)]
    repetition: RepetitionArgs,
    #[command(flatten)]
    suggest: SuggestArgs,
    /// Stop after N optimizer steps.
    #[arg(long, value_name = "N", help_heading = heading::TRAINING)]
    max_steps: Option<u64>,
    #[command(flatten)]
    sweep: SweepArg,
    #[command(flatten)]
    out: RunsFolderArg,
    #[command(flatten)]
    output: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

impl RunArgs {
    /// Trains every recipe with every seed.
    pub fn execute(self, ranks: &Ranks) -> Result<ExitCode, Failure> {
        training::prepare();
        device::run_on(&ranks.device(&self.device.name)?, OnRanks { verb: self, ranks })
    }
}

/// A planned run, and the index of its recipe on the command line.
struct PlannedRun {
    recipe: usize,
    plan: Plan,
}

/// A finished run, and the index of its recipe on the command line.
struct FinishedRun {
    recipe: usize,
    seed: u64,
    folder: PathBuf,
}

impl DeviceJob for OnRanks<'_, RunArgs> {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let OnRanks { verb: mut args, ranks } = self;
        args.sweep.watch();
        args.write_recipes(device, ranks)?;
        // All recipes are checked before the first is trained: an error in the last must not appear hours
        // later.
        let planned = args.plan_all(device, ranks)?;
        ranks.compare(planned.iter().map(|run| &run.plan))?;
        // Until now, a signal ends the process: there is nothing to save.
        console::catch_signals();
        let options = RunOptions {
            out: args.out.path.clone(),
            force: args.repetition.force,
            max_steps: args.max_steps,
            threads: rayon::current_num_threads(),
        };
        let mut finished: Vec<FinishedRun> = Vec::new();
        for PlannedRun { recipe, plan } in &planned {
            let (recipe, seed) = (*recipe, plan.recipe.train.seed);
            errln!("{}: {}", &*plan.recipe.name, plan.splits.description);
            match run::run(device, plan, &options, &mut Console::new()) {
                Ok(outcome) => {
                    print_outcome(&outcome, args.output.json);
                    if outcome.ending == Ending::Interrupted {
                        return Ok(interrupted());
                    }
                    if outcome.ending == Ending::Finished {
                        finished.push(FinishedRun { recipe, seed, folder: outcome.dir.path().to_path_buf() });
                    }
                }
                Err(RunError::AlreadyDone(folder)) => {
                    if ranks.is_first() {
                        tidy(&folder, args.output.json)?;
                    }
                    finished.push(FinishedRun { recipe, seed, folder });
                }
                Err(e) => return Err(run_failure(e, &options.out)),
            }
        }
        if args.repetition.seeds.len() > 1 && ranks.is_first() {
            for (i, recipe) in args.recipes.iter().enumerate() {
                let of_recipe: Vec<_> = finished.iter().filter(|run| run.recipe == i).collect();
                print_over_seeds(recipe, &of_recipe, args.output.json)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Cleans up a run that is finished already, and says so.
fn tidy(folder: &Path, json: bool) -> Result<(), Failure> {
    let done = run::tidy(&RunDir::at(folder)).map_err(|e| run_failure(e.into(), folder))?;
    errln!("{}", RunError::AlreadyDone(folder.to_path_buf()));
    if json {
        print_outcome(&done, true);
    }
    Ok(())
}

impl RunArgs {
    /// Writes a recipe for each argument that names data, and puts it in its place.
    fn write_recipes<D: NetworkDevice>(&mut self, device: &D, ranks: &Ranks) -> Result<(), Failure> {
        let is_data = |path: &PathBuf| path.to_str().is_some_and(suggestion::is_data);
        if let Some(path) = self.recipes.iter().find(|path| is_data(path) && ranks.are_several()) {
            let message = format!(
                "error: {}: several ranks cannot write a recipe for data, which depends on measured times; write it \
                 with `pauc-cli new recipe` on one rank, and train the recipe on several",
                path.display()
            );
            return Err(Failure::new(2, message));
        }
        if self.suggest.is_given() && !self.recipes.iter().any(is_data) {
            let message = "error: --goal and --budget are for data; change a recipe with --set, such as \
                `--set train.epochs=5`";
            return Err(Failure::new(2, message));
        }
        for path in self.recipes.iter_mut().filter(|path| is_data(path)) {
            let argument = path.to_string_lossy().into_owned();
            let force = self.repetition.force;
            let written = Suggestion::write(device, &argument, &self.suggest, None, force)?;
            errln!("{}\nwrote {}", written.summary, written.path.display());
            *path = written.path;
        }
        Ok(())
    }

    fn plan_all<D: NetworkDevice>(&self, device: &D, ranks: &Ranks) -> Result<Vec<PlannedRun>, Failure> {
        let mut planned = Vec::new();
        for (recipe, path) in self.recipes.iter().enumerate() {
            let seeds = self.repetition.distinct_seeds()?;
            let mut seeds: Vec<Option<u64>> = seeds.iter().copied().map(Some).collect();
            if seeds.is_empty() {
                seeds.push(None);
            }
            let mut warnings = Warnings::Shown;
            for seed in seeds {
                let mut set = self.change.set.clone();
                set.extend(seed.map(|s| format!("train.seed={s}")));
                let plan = plan(device, path, &set, self.memory.limit, warnings)?;
                planned.push(PlannedRun { recipe, plan: ranks.share(plan)? });
                warnings = Warnings::Hidden;
            }
        }
        Ok(planned)
    }
}

/// Prints the mean and standard deviation of each metric over a recipe's finished runs.
fn print_over_seeds(recipe: &Path, runs: &[&FinishedRun], json: bool) -> Result<(), Failure> {
    let seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
    let metrics = runs.iter().map(|run| compare::metrics(&run.folder)).collect::<Result<Vec<_>, _>>()?;
    let spread = Spread::of_each(&metrics);
    if json {
        outln!("{}", serde_json::json!({ "recipe": recipe, "seeds": seeds, "metrics": spread }));
        return Ok(());
    }
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    outln!("\n{}: mean ± standard deviation over the seeds {}", recipe.display(), seeds.join(", "));
    let width = spread.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    spread.iter().for_each(|(name, s)| outln!("  {name:<width$}  {s}"));
    Ok(())
}
