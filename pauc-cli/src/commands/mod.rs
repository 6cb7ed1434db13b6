//! One file a verb.

mod bench;
mod check;
mod cluster;
mod compare;
mod data;
mod device;
mod eval;
mod explain;
mod export;
mod fetch;
mod list;
mod new;
mod report;
mod reproduce;
mod run;
mod sweep;
mod tail;
mod term;

use crate::args::{Args, Command};
use crate::{Failure, console};
use clap::CommandFactory;
use pauc::models::NetworkDevice;
use pauc::train::diagnostic::{Diagnostic, Diagnostics};
use pauc::train::plan::{Plan, PlanError};
use pauc::train::recipe::{LoadError, Recipe};
use pauc::traits::dataset::Place;
use std::path::Path;
use std::process::ExitCode;

/// Carries out a verb.
pub fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    let trains = matches!(
        command,
        Command::Run(_) | Command::Resume(_) | Command::Sweep(_) | Command::Reproduce(_) | Command::Bench(_)
    );
    if trains {
        pauc::kernels::malloc::keep_freed();
    }
    match command {
        Command::Run(args) => run::run(args),
        Command::Resume(args) => run::resume(args),
        Command::Check(args) => check::check(args),
        Command::Explain(args) => explain::explain(args),
        Command::List(args) => list::list(args),
        Command::Term(args) => term::term(args),
        Command::Bench(args) => bench::bench(args),
        Command::Export(args) => export::export(args),
        Command::New(what) => new::new(what),
        Command::Compare(args) => compare::compare(args),
        Command::Eval(args) => eval::eval(args),
        Command::Embed(args) => eval::embed(args),
        Command::Cluster(args) => cluster::cluster(args),
        Command::Tail(args) => tail::tail(args),
        Command::Sweep(args) => sweep::sweep(args),
        Command::Reproduce(args) => reproduce::reproduce(args),
        Command::Report(args) => report::report(args),
        Command::Data(command) => data::data(command),
        Command::Devices(args) => device::devices(args.json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "pauc-cli", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn load(path: &Path, set: &[String]) -> Result<(Recipe, pauc::train::recipe::Source), Failure> {
    Recipe::load(path, set).map_err(|e| match e {
        LoadError::File { .. } => Failure::new(2, format!("error: {e}")),
        LoadError::Recipe(found) => Failure::new(2, found.render(console::color()).trim_end()),
    })
}

/// Reads, opens and checks; prints warnings.
fn plan<D: NetworkDevice>(device: &D, path: &Path, set: &[String], quiet: bool) -> Result<Plan, Failure> {
    let (recipe, source) = load(path, set)?;
    let plan = Plan::new(device, recipe, source, &here()?).map_err(|e| match e {
        PlanError::Recipe(found) => Failure::new(2, found.render(console::color()).trim_end()),
        PlanError::Data { error, .. } => Failure::new(4, format!("error: {error}")),
    })?;
    if !quiet {
        eprint!("{}", plan.warnings.render(console::color()));
    }
    Ok(plan)
}

/// A mistake in a component on the command line, drawn as mistakes in recipes are.
fn drawn(argument: &str, text: &str, mistake: Diagnostic) -> Failure {
    let found = Diagnostics { text: text.into(), path: argument.into(), all: vec![mistake] };
    Failure::new(2, found.render(console::color()).trim_end())
}

/// A folder that is no run's: it lacks a file that every run has.
fn no_run(folder: &Path, lacks: &str) -> Failure {
    Failure::new(2, format!("error: {}: no run lies there (it has no {lacks})", folder.display()))
}

/// Relative paths of recipes start in the working directory.
fn here() -> Result<Place, Failure> {
    let base = std::env::current_dir();
    let base =
        base.map_err(|e| Failure::new(1, format!("error: the working directory cannot be found: {e}")))?;
    Ok(Place { base })
}
