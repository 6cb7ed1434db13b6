//! `run` and `resume`.

use super::device::{self, Job};
use super::{no_run, plan};
use crate::Failure;
use crate::args::{ResumeArgs, RunArgs};
use crate::console::{Console, catch_signals};
use pauc::models::NetworkDevice;
use pauc::train::compare;
use pauc::train::engine::Ending;
use pauc::train::run::{self, Outcome, RunError, RunOptions};
use pauc::train::run_dir::RunDir;
use pauc::train::statistics::Spread;
use pauc::traits::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Trains every recipe with every seed.
pub fn run(args: RunArgs) -> Result<ExitCode, Failure> {
    device::on(&args.training.device.clone(), args)
}

impl Job for RunArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        train(self, device)
    }
}

fn train<D: NetworkDevice>(args: RunArgs, device: &D) -> Result<ExitCode, Failure> {
    catch_signals();
    // All recipes are read before the first is trained: an error in the last must not wait for hours.
    let mut plans = Vec::new();
    for (of, path) in args.recipes.iter().enumerate() {
        let mut seeds: Vec<Option<u64>> = args.seeds.iter().copied().map(Some).collect();
        if seeds.is_empty() {
            seeds.push(None);
        }
        for (i, seed) in seeds.into_iter().enumerate() {
            let mut set = args.training.change.set.clone();
            set.extend(seed.map(|s| format!("train.seed={s}")));
            plans.push((of, plan(device, path, &set, i > 0)?));
        }
    }
    let threads = rayon::current_num_threads();
    let options =
        RunOptions { out: args.training.out, force: args.force, max_steps: args.max_steps, threads };
    let mut finished: Vec<(usize, u64, PathBuf)> = Vec::new();
    for (of, plan) in &plans {
        let (name, seed) = (&plan.recipe.name, plan.recipe.train.seed);
        eprintln!("{}: {}", &**name, plan.splits.description);
        match run::run(device, plan, &options, &mut Console::new()) {
            Ok(outcome) => {
                show(&outcome, args.json);
                if outcome.ending == Ending::Interrupted {
                    return Ok(ExitCode::from(130));
                }
                if outcome.ending == Ending::Finished {
                    finished.push((*of, seed, outcome.dir.path().to_path_buf()));
                }
            }
            Err(RunError::AlreadyDone(path)) => {
                run::tidy(&RunDir::at(&path))?;
                eprintln!("{}", RunError::AlreadyDone(path.clone()));
                finished.push((*of, seed, path));
            }
            Err(e) => return Err(failure(e, &options.out)),
        }
    }
    if args.seeds.len() > 1 {
        for (of, recipe) in args.recipes.iter().enumerate() {
            over_seeds(recipe, finished.iter().filter(|f| f.0 == of), args.json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the mean and standard deviation of each metric over a recipe's finished runs.
fn over_seeds<'a>(
    recipe: &Path,
    runs: impl Iterator<Item = &'a (usize, u64, PathBuf)>,
    json: bool,
) -> Result<(), Failure> {
    let (mut seeds, mut metrics) = (Vec::new(), Vec::new());
    for (_, seed, run) in runs {
        seeds.push(*seed);
        metrics.push(compare::metrics(run)?);
    }
    let spread = Spread::of_each(&metrics);
    if json {
        println!("{}", serde_json::json!({ "recipe": recipe, "seeds": seeds, "metrics": spread }));
        return Ok(());
    }
    let list: Vec<String> = seeds.iter().map(u64::to_string).collect();
    println!("\n{}: mean ± standard deviation over the seeds {}", recipe.display(), list.join(", "));
    let width = spread.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    spread.iter().for_each(|(name, s)| println!("  {name:<width$}  {s}"));
    Ok(())
}

/// Continues a run.
pub fn resume(args: ResumeArgs) -> Result<ExitCode, Failure> {
    let Some(info) = RunDir::at(&args.run).info()? else {
        return Err(no_run(&args.run, "run.json"));
    };
    // Another device rounds differently: a run goes on where it began unless told otherwise.
    let device = args.device.clone().unwrap_or(info.device);
    device::on(&device, args)
}

impl Job for ResumeArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        go_on(self, device)
    }
}

fn go_on<D: NetworkDevice>(args: ResumeArgs, device: &D) -> Result<ExitCode, Failure> {
    catch_signals();
    let dir = RunDir::at(&args.run);
    let Some(info) = dir.info()? else {
        return Err(no_run(&args.run, "run.json"));
    };
    if info.status == "finished" {
        run::tidy(&dir)?;
        eprintln!("{} is already done", args.run.display());
        return Ok(ExitCode::SUCCESS);
    }
    let plan = plan(device, &args.run.join("recipe.resolved.ron"), &[], true)?;
    let threads = rayon::current_num_threads();
    let options = RunOptions { out: args.run.clone(), force: false, max_steps: args.max_steps, threads };
    let outcome = run::resume(device, &plan, dir, &options, &mut Console::new());
    let outcome = outcome.map_err(|e| failure(e, &args.run))?;
    show(&outcome, args.json);
    Ok(if outcome.ending == Ending::Interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// What went wrong with a run in `folder`: a disk that refuses what is written there is no fault of the data.
pub(super) fn failure(e: RunError, folder: &Path) -> Failure {
    match e {
        RunError::Failed(e @ Error::Io { .. }) if is_below(&e, folder) => {
            let help = "runs are written there: make room, give the right to write, or take another folder";
            Failure::new(1, format!("error: {e}\n{help}"))
        }
        RunError::Failed(e) => e.into(),
        RunError::AlreadyDone(_) | RunError::Unfinished { .. } | RunError::NoRun(_) => {
            Failure::new(1, format!("error: {e}"))
        }
    }
}

fn is_below(e: &Error, folder: &Path) -> bool {
    matches!(e, Error::Io { path, .. } if path.starts_with(folder))
}

fn show(outcome: &Outcome, json: bool) {
    if json {
        let subjects: serde_json::Map<_, _> = outcome
            .summary
            .iter()
            .map(|(s, metrics)| {
                let values: serde_json::Map<_, _> =
                    metrics.iter().map(|m| (m.name.clone(), serde_json::json!(m.value))).collect();
                (
                    serde_json::json!(s).as_str().unwrap_or_default().to_string(),
                    serde_json::Value::Object(values),
                )
            })
            .collect();
        println!(
            "{}",
            serde_json::json!({ "run": outcome.dir.path(), "metrics": subjects, "report": outcome.report })
        );
        return;
    }
    if outcome.ending != Ending::Finished {
        println!("\nnot finished; `pauc-cli resume {}` continues", outcome.dir.path().display());
    }
    print!("\n{}", run::table(&outcome.summary));
    if let Some(report) = &outcome.report {
        println!("\nreport: {}", report.display());
    }
}
