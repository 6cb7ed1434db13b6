//! `run` and `resume`.

use super::{device, no_run, plan};
use crate::Failure;
use crate::args::{ResumeArgs, RunArgs};
use crate::console::{Console, catch_signals};
use pauc::train::engine::Ending;
use pauc::train::run::{self, Outcome, RunError, RunOptions};
use pauc::train::run_dir::RunDir;
use std::process::ExitCode;

/// Trains every recipe with every seed.
pub fn run(args: RunArgs) -> Result<ExitCode, Failure> {
    let device = device(&args.device)?;
    catch_signals();
    // All recipes are read before the first is trained: an error in the last must not wait for hours.
    let mut plans = Vec::new();
    for path in &args.recipes {
        let mut seeds: Vec<Option<u64>> = args.seeds.iter().copied().map(Some).collect();
        if seeds.is_empty() {
            seeds.push(None);
        }
        for (i, seed) in seeds.into_iter().enumerate() {
            let mut set = args.change.set.clone();
            set.extend(seed.map(|s| format!("train.seed={s}")));
            plans.push(plan(&device, path, &set, i > 0)?);
        }
    }
    let threads = rayon::current_num_threads();
    let options = RunOptions { out: args.out, force: args.force, max_steps: args.max_steps, threads };
    for plan in &plans {
        let name = &plan.recipe.name;
        eprintln!("{}: {}", &**name, plan.splits.description);
        match run::run(&device, plan, &options, &mut Console::new()) {
            Ok(outcome) => {
                show(&outcome, args.json);
                if outcome.ending == Ending::Interrupted {
                    return Ok(ExitCode::from(130));
                }
            }
            Err(RunError::AlreadyDone(path)) => {
                run::tidy(&RunDir::at(&path))?;
                eprintln!("{}", RunError::AlreadyDone(path));
            }
            Err(e) => return Err(failure(e)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Continues a run.
pub fn resume(args: ResumeArgs) -> Result<ExitCode, Failure> {
    let device = device("cpu")?;
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
    let plan = plan(&device, &args.run.join("recipe.resolved.ron"), &[], true)?;
    let threads = rayon::current_num_threads();
    let options = RunOptions { out: args.run.clone(), force: false, max_steps: args.max_steps, threads };
    let outcome = run::resume(&device, &plan, dir, &options, &mut Console::new()).map_err(failure)?;
    show(&outcome, args.json);
    Ok(if outcome.ending == Ending::Interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn failure(e: RunError) -> Failure {
    match e {
        RunError::Failed(e) => e.into(),
        RunError::AlreadyDone(_) | RunError::Unfinished { .. } | RunError::NoRun(_) => {
            Failure::new(1, format!("error: {e}"))
        }
    }
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
