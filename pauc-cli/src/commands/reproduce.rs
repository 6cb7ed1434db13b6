//! `reproduce`.

use super::device::{self, Job};
use super::plan;
use crate::Failure;
use crate::args::ReproduceArgs;
use crate::console::{Console, catch_signals};
use pauc::models::NetworkDevice;
use pauc::train::compare;
use pauc::train::engine::Ending;
use pauc::train::reproduce::{Expectation, path_beside};
use pauc::train::run::{self, RunError, RunOptions};
use pauc::train::run_dir::RunDir;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Trains a recipe, unless that has been done, and holds what it gives against what is stored of it.
pub fn reproduce(args: ReproduceArgs) -> Result<ExitCode, Failure> {
    device::on(&args.device.clone(), args)
}

impl Job for ReproduceArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        compared(self, device)
    }
}

fn compared<D: NetworkDevice>(args: ReproduceArgs, device: &D) -> Result<ExitCode, Failure> {
    let path = args.expected.unwrap_or_else(|| path_beside(&args.recipe));
    let before = match Expectation::read(&path) {
        Err(pauc::traits::Error::NotFound { .. }) if args.update => None,
        read => Some(read?),
    };
    let plan = plan(device, &args.recipe, &args.change.set, false)?;
    catch_signals();
    let threads = rayon::current_num_threads();
    let options = RunOptions { out: args.out, force: false, max_steps: None, threads };
    let run = match run::run(device, &plan, &options, &mut Console::new()) {
        Ok(outcome) if outcome.ending != Ending::Finished => return Ok(ExitCode::from(130)),
        Ok(outcome) => outcome.dir.path().to_path_buf(),
        Err(RunError::AlreadyDone(done)) => {
            eprintln!("{} is already done: its metrics are taken", done.display());
            done
        }
        Err(e) => return Err(super::run::failure(e, &options.out)),
    };
    let got = compare::metrics(&run)?;
    let simd = RunDir::at(&run).info()?.map(|i| i.simd).unwrap_or_default();
    let now = Expectation {
        recipe: plan.hash.clone(),
        seed: plan.recipe.train.seed,
        version: env!("CARGO_PKG_VERSION").into(),
        simd,
        metrics: BTreeMap::new(),
    };
    if args.update {
        now.of(&got, before.as_ref()).write(&path)?;
        println!("{}: stored", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(stored) = before else { return Ok(ExitCode::SUCCESS) };
    let found = stored.differences(&got);
    if args.json {
        let json = serde_json::json!({
            "run": run, "expected": path, "reproduced": found.is_empty(), "differences": found,
        });
        println!("{json}");
    }
    if found.is_empty() {
        if !args.json {
            println!("reproduced: {} metrics within their tolerances", stored.metrics.len());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut message = format!("error: {} does not give what {} says", args.recipe.display(), path.display());
    found.iter().for_each(|d| message.push_str(&format!("\n  {d}")));
    let changes = [
        ("recipe", &stored.recipe, &now.recipe),
        ("version", &stored.version, &now.version),
        ("instruction set", &stored.simd, &now.simd),
    ];
    for (what, then, now) in changes.into_iter().filter(|(_, then, now)| then != now) {
        message.push_str(&format!("\n  the {what} differs: {then} then, {now} now"));
    }
    if stored.seed != now.seed {
        message.push_str(&format!("\n  the seed differs: {} then, {} now", stored.seed, now.seed));
    }
    Err(Failure::new(3, message))
}
