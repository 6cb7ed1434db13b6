//! `sweep`. Each run is a separate process: see `processes`.

mod processes;

use crate::args::{JsonArg, MemoryArg, RecipeArgs, RepetitionArgs, RunsFolderArg, heading};
use crate::commands::report::{check_page, page_failure};
use crate::console::{self, catch_signals};
use crate::recipes::here;
use crate::training::{self, interrupted, run_failure};
use crate::{Failure, device};
use clap::Args;
use pauc::dfdx::prelude::Cpu;
use pauc::report::Study;
use pauc::train::plan::{Plan, PlanError};
use pauc::train::recipe::{LoadError, Recipe, Source};
use pauc::train::run_dir::RunDir;
use pauc::train::sweep::{self, ArmComparison, Point, Row, Standing, Sweep, Trials};
use pauc::traits::atomic;
use pauc::traits::dataset::Place;
use pauc::traits::progress::{self, Task};
use pauc::traits::registry::did_you_mean;
use processes::{FailedJob, Job, Launcher};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Run a hyper-parameter sweep and print a table of results.
///
/// The file names a recipe, and paths in it with their values, which form a grid, are zipped or are drawn at
/// random. It may also name arms: variants of the recipe, which can be tuned with equal budgets and compared
/// over seeds. Every combination is checked before the first is trained. Finished runs are not trained again and interrupted
/// ones are resumed, so the same command continues a sweep. Each run is a separate process; a failed run does
/// not stop the others. With --json, the table lists every run; --report writes a page with charts.
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
    /// Also write the .html file of a page with the results: charts, differences, curves and recipes.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    report: Option<PathBuf>,
    /// Also write each chart of that page as an .svg file in this folder.
    #[arg(long, value_name = "FOLDER", help_heading = heading::OUTPUT)]
    figures: Option<PathBuf>,
    #[command(flatten)]
    output: JsonArg,
    /// The device, as for `run`. With `--jobs`, several devices separated by commas: runs are spread over them.
    #[arg(
        long = "device", value_delimiter = ',', default_value = "cpu", value_name = "DEVICES",
        help_heading = heading::GENERAL, display_order = 900
    )]
    devices: Vec<String>,
}

/// A combination of values: its `--set` changes, name and hash of the resulting recipe, and its seeds.
#[derive(Clone)]
struct Combination {
    point: Point,
    name: String,
    set: Vec<String>,
    recipe_name: String,
    hash: String,
    seeds: Vec<u64>,
}

/// All combinations of a sweep, checked.
struct CheckedSweep {
    sweep: Sweep,
    /// The text of the sweep's file.
    text: String,
    /// The path of the recipe.
    recipe: PathBuf,
    /// The combinations; in a sweep that tunes, they lack the tuned values.
    combinations: Vec<Combination>,
    /// The trials of each combination; empty without tuning.
    trials: Vec<Vec<Combination>>,
}

impl CheckedSweep {
    /// Returns the combinations to train with the sweep's seeds: in a sweep that tunes, the chosen trials.
    fn chosen(&self, tuned: &[Trials]) -> Vec<Combination> {
        let chosen = self.combinations.iter().zip(&self.trials).zip(tuned);
        let chosen = chosen.filter_map(|((combination, trials), tuned)| {
            let trial = &trials[tuned.chosen?];
            Some(Combination { seeds: combination.seeds.clone(), ..trial.clone() })
        });
        if self.sweep.tune.is_some() { chosen.collect() } else { self.combinations.clone() }
    }
}

/// What the sweep has found so far.
struct Results {
    /// In the order of the sweep's file.
    rows: Vec<Row>,
    tuned: Vec<Trials>,
    comparison: Option<ArmComparison>,
}

impl SweepArgs {
    /// Trains every unfinished combination, and prints the results of all of them.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        training::prepare();
        self.devices.iter().try_for_each(|name| device::check(name))?;
        let (devices, jobs) = (self.devices.len(), self.jobs.get());
        if devices > jobs {
            let message = format!(
                "error: --device names {devices} devices, but --jobs {jobs} trains no more than {jobs} at a time; use --jobs \
                 {devices}"
            );
            return Err(Failure::new(2, message));
        }
        self.report.iter().try_for_each(|page| check_page("--report", page))?;
        // All recipes are checked before the first is trained: an error in the last must not appear hours
        // later.
        let checked = self.check()?;
        if !self.dry_run {
            catch_signals();
        }
        let trials: Vec<&Combination> = checked.trials.iter().flatten().collect();
        let mut stages = Stages::default();
        if let Some(note) = sweep::tuning_note(&checked.sweep) {
            errln!("{note}");
            stages.train(&self, &checked, &trials)?;
        }
        let tuned = self.tuned(&checked)?;
        let chosen = checked.chosen(&tuned);
        if chosen.len() == checked.combinations.len() {
            stages.train(&self, &checked, &chosen.iter().collect::<Vec<_>>())?;
        }
        let rows = chosen.iter().map(|c| self.row(&checked, c)).collect::<Result<Vec<_>, _>>()?;
        let comparison = sweep::compare(&checked.sweep, &rows);
        let results = Results { rows, tuned, comparison };
        self.print(&checked, &results, &stages.failed)?;
        self.write_files(&checked, &results)?;
        unchosen(&checked, &results.tuned)?;
        if !stages.failed.is_empty() {
            return Err(failed_runs(&stages.failed, stages.runs));
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
        let points = sweep.points();
        let trials: Vec<Vec<Point>> =
            if sweep.tune.is_some() { points.iter().map(|p| sweep.trials(p)).collect() } else { Vec::new() };
        let count = points.len() + trials.iter().map(Vec::len).sum::<usize>();
        let mut planner = Planner {
            device: &device,
            place: SweptRecipe { sweep: &sweep, source: &source, recipe: &recipe, memory: self.memory.limit },
            more: &self.change.set,
            is_first: true,
            task: progress::task("checking recipes", count as u64),
        };
        let combinations = planner.plan_all(points)?;
        let trial_seeds = sweep.tune.as_ref().map_or(&[][..], |tune| &tune.seeds[..]);
        let mut planned = Vec::new();
        for points in trials {
            let mut trials = planner.plan_all(points)?;
            trials.iter_mut().for_each(|trial| trial.seeds = trial_seeds.to_vec());
            planned.push(trials);
        }
        drop(planner);
        Ok(CheckedSweep { sweep, text: source.text, recipe, combinations, trials: planned })
    }

    fn run_dir(&self, combination: &Combination, seed: u64) -> RunDir {
        RunDir::of(&self.out.path, &combination.recipe_name, &combination.hash, seed)
    }

    /// Returns the state of a run, read from its folder.
    fn standing(&self, dir: &RunDir, seed: u64) -> Result<Standing, Failure> {
        Standing::of(dir, seed).map_err(|e| run_failure(e.into(), &self.out.path))
    }

    /// Returns the runs to train: the first seed of every combination, then the second, so that a part of a sweep can
    /// be compared.
    fn unfinished(&self, combinations: &[&Combination]) -> Result<Vec<Job>, Failure> {
        let mut jobs = Vec::new();
        let most = combinations.iter().map(|c| c.seeds.len()).max().unwrap_or(0);
        for place in 0..most {
            for c in combinations {
                let Some(&seed) = c.seeds.get(place) else { continue };
                let dir = self.run_dir(c, seed);
                let standing = self.standing(&dir, seed)?;
                // A process that ended right after its last step left no report: `resume` writes it.
                let lacks_report = standing.is_finished() && !dir.path().join("report.html").exists();
                if self.repetition.force || lacks_report || !standing.is_settled() {
                    let description = format!("{} seed {seed}", c.name);
                    jobs.push(Job { description, seed, dir, set: c.set.clone() });
                }
            }
        }
        Ok(jobs)
    }

    fn row(&self, checked: &CheckedSweep, c: &Combination) -> Result<Row, Failure> {
        let standing = |seed: &u64| self.standing(&self.run_dir(c, *seed), *seed);
        let runs = c.seeds.iter().map(standing).collect::<Result<Vec<_>, _>>()?;
        Ok(Row::new(&checked.sweep, &c.point, &c.hash, runs))
    }

    /// Returns the trials of each combination as they are now, with the choice among them.
    fn tuned(&self, checked: &CheckedSweep) -> Result<Vec<Trials>, Failure> {
        let Some(best) = &checked.sweep.best else { return Ok(Vec::new()) };
        let mut tuned = Vec::new();
        for trials in &checked.trials {
            let rows = trials.iter().map(|c| self.row(checked, c)).collect::<Result<Vec<_>, _>>()?;
            tuned.push(Trials::new(rows, best));
        }
        Ok(tuned)
    }

    fn print(&self, checked: &CheckedSweep, results: &Results, failed: &[FailedJob]) -> Result<(), Failure> {
        let sweep = &checked.sweep;
        let mut rows = results.rows.clone();
        sweep::order(&mut rows, sweep.best.as_ref());
        if self.output.json {
            let name = checked.combinations.first().filter(|c| c.point.arm.is_none()).map(|c| &c.recipe_name);
            let failure = |f: &FailedJob| serde_json::json!({ "run": f.job.dir.path(), "error": f.reason });
            let json = serde_json::json!({
                "sweep": self.sweep, "recipe": checked.recipe, "name": name, "rows": rows,
                "best": sweep.best, "trials": results.tuned, "comparison": results.comparison,
                "failed": failed.iter().map(failure).collect::<Vec<_>>(),
            });
            outln!("{json}");
            return Ok(());
        }
        if let Some(note) = sweep::tuning_note(sweep) {
            let trials: Vec<Row> = results.tuned.iter().flat_map(|t| t.rows.clone()).collect();
            out!("{note}\n{}\n", sweep::table(sweep, &trials));
        }
        out!("{}", sweep::table(sweep, &rows));
        if let Some(note) = sweep::order_note(sweep) {
            outln!("{note}");
        }
        if let Some(comparison) = &results.comparison {
            out!("\n{}", comparison.table());
        }
        Ok(())
    }

    /// Writes the sweep's page and charts, if the options ask for them.
    fn write_files(&self, checked: &CheckedSweep, results: &Results) -> Result<(), Failure> {
        if self.report.is_none() && self.figures.is_none() {
            return Ok(());
        }
        if console::stop_asked() && !results.rows.iter().flat_map(|r| &r.runs).any(Standing::is_finished) {
            errln!("no run has finished, so there is nothing to draw: neither page nor charts were written");
            return Ok(());
        }
        let Results { rows, tuned, comparison } = results;
        let read = sweep::study(&checked.sweep, &checked.text, rows, tuned, comparison.as_ref());
        let options = [("--report", &self.report), ("--figures", &self.figures)];
        let given =
            options.iter().filter_map(|(name, path)| Some(format!(" {name} {}", path.as_ref()?.display())));
        let study = Study {
            name: self.sweep.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            command: format!("pauc-cli sweep {}{}", self.sweep.display(), given.collect::<String>()),
            ..read.map_err(|e| run_failure(e.into(), &self.out.path))?
        };
        if let Some(page) = &self.report {
            atomic::remove_leftovers(page);
            let written = pauc::report::write_study(&study, page).map_err(|e| page_failure(e, page))?;
            errln!("report: {}", written.display());
        }
        if let Some(folder) = &self.figures {
            let written = pauc::report::write_study_figures(&study, folder);
            let written = written.map_err(Failure::of_writing)?;
            errln!("{} charts: {}", written.len(), folder.display());
        }
        Ok(())
    }
}

/// The runs trained so far, and those that failed.
#[derive(Default)]
struct Stages {
    runs: usize,
    failed: Vec<FailedJob>,
}

impl Stages {
    /// Trains what is unfinished of some combinations, unless the sweep was asked to stop.
    fn train(
        &mut self,
        args: &SweepArgs,
        checked: &CheckedSweep,
        combinations: &[&Combination],
    ) -> Result<(), Failure> {
        let jobs = args.unfinished(combinations)?;
        let runs: usize = combinations.iter().map(|c| c.seeds.len()).sum();
        self.runs += runs;
        errln!("{runs} runs, {} already finished", runs - jobs.len());
        if args.dry_run || jobs.is_empty() || console::stop_asked() {
            return Ok(());
        }
        let launcher = Launcher {
            recipe: &checked.recipe,
            out: &args.out.path,
            devices: &args.devices,
            force: args.repetition.force,
            memory: args.memory.limit,
        };
        self.failed.extend(launcher.run_all(&jobs, args.jobs)?);
        Ok(())
    }
}

/// Reports combinations all of whose trials have ended without the metric that chooses among them.
fn unchosen(checked: &CheckedSweep, tuned: &[Trials]) -> Result<(), Failure> {
    let none = checked.combinations.iter().zip(tuned).find(|(_, t)| t.chosen.is_none() && t.have_ended());
    let (Some((combination, trials)), Some(best)) = (none, &checked.sweep.best) else { return Ok(()) };
    let mut names: Vec<&String> = trials.rows.iter().flat_map(|row| row.metrics.keys()).collect();
    names.sort();
    names.dedup();
    let near = did_you_mean(&best.metric, names.iter().map(|name| name.as_str()));
    let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    let message =
        format!("error: no finished trial of {} measured `{}`{near}", combination.name, best.metric);
    Err(Failure::new(1, message))
}

/// Plans combinations, and shows its progress.
struct Planner<'a> {
    device: &'a Cpu,
    place: SweptRecipe<'a>,
    /// More changes to every recipe.
    more: &'a [String],
    /// Whether no recipe was planned yet.
    is_first: bool,
    task: Task,
}

impl Planner<'_> {
    /// Plans combinations; of those with the same recipe, only the first is returned.
    fn plan_all(&mut self, points: Vec<Point>) -> Result<Vec<Combination>, Failure> {
        let mut combinations: Vec<Combination> = Vec::new();
        let mut by_hash = HashMap::new();
        for point in points {
            let combination = self.plan(point)?;
            match by_hash.entry(combination.hash.clone()) {
                Entry::Occupied(same) => {
                    let same: &Combination = &combinations[*same.get()];
                    errln!("{} is the same recipe as {}: it is trained once", combination.name, same.name);
                }
                Entry::Vacant(free) => {
                    free.insert(combinations.len());
                    combinations.push(combination);
                }
            }
            self.task.advance(1);
        }
        Ok(combinations)
    }

    fn plan(&mut self, point: Point) -> Result<Combination, Failure> {
        let sweep = self.place.sweep;
        let mut set = sweep.set(&point);
        set.extend(self.more.iter().cloned());
        let plan = self.place.plan(self.device, &point, &set)?;
        if std::mem::take(&mut self.is_first) {
            err!("{}", plan.warnings.render(console::color()));
        }
        let seeds = if sweep.seeds.is_empty() { vec![plan.recipe.train.seed] } else { sweep.seeds.clone() };
        sweep
            .check_choice(self.place.source, &plan.splits, &seeds)
            .map_err(|wrong| sweep_failure(LoadError::Recipe(wrong)))?;
        let (name, recipe_name) = (sweep.name(&point), plan.recipe.name.to_string());
        Ok(Combination { point, name, set, recipe_name, hash: plan.hash, seeds })
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

fn failed_runs(failed: &[FailedJob], runs: usize) -> Failure {
    let describe = |FailedJob { job, reason }: &FailedJob| {
        format!("\n{}: {}\n{reason}", job.description, job.dir.path().display())
    };
    let all: String = failed.iter().map(describe).collect();
    Failure::new(1, format!("error: {} of {runs} runs failed{all}", failed.len()))
}

/// The recipe of a sweep.
struct SweptRecipe<'a> {
    sweep: &'a Sweep,
    source: &'a Source,
    recipe: &'a Path,
    memory: Option<u64>,
}

impl SweptRecipe<'_> {
    /// Checks the recipe of a combination. Mistakes are shown in the changed recipe, followed by the positions of the
    /// sweep's values.
    fn plan(&self, device: &Cpu, point: &Point, set: &[String]) -> Result<Plan, Failure> {
        let (recipe, text) = Recipe::load(self.recipe, set).map_err(|e| {
            // A missing recipe has no values to show.
            if self.recipe.is_file() { self.with_values(point, e.into()) } else { e.into() }
        })?;
        Plan::new(device, recipe, text, &Place { memory: self.memory, ..here()? }).map_err(|e| match e {
            e @ PlanError::Recipe(_) => self.with_values(point, e.into()),
            e @ PlanError::Data { .. } => e.into(),
        })
    }

    /// Adds the positions of the values in the sweep file.
    fn with_values(&self, point: &Point, failure: Failure) -> Failure {
        let places = self.sweep.whence(point, self.source);
        let message = format!("{}\nthe recipe has these values from the sweep:\n{places}", failure.message);
        Failure { message, ..failure }
    }
}
