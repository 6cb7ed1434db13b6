//! `eval` and `embed`.

use super::device::{self, Job};
use super::{drawn, here};
use crate::args::{EmbedArgs, EvalArgs, SavedArgs};
use crate::{Failure, console};
use pauc::models::NetworkDevice;
use pauc::train::diagnostic::Diagnostic;
use pauc::train::embed::{self, Form, Provenance};
use pauc::train::plan::PlanError;
use pauc::train::recipe::LoadError;
use pauc::train::saved_run::{OpenError, Part, SavedRun};
use pauc::traits::component_ron::Configured;
use pauc::traits::registry::kind;
use std::process::ExitCode;

/// Probes a run.
pub fn eval(args: EvalArgs) -> Result<ExitCode, Failure> {
    device::on(&args.of.device.clone(), args)
}

impl Job for EvalArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        probe(self, device)
    }
}

fn probe<D: NetworkDevice>(args: EvalArgs, device: &D) -> Result<ExitCode, Failure> {
    let parse = |text: &String| {
        Configured::<kind::Probe>::parse(text)
            .map_err(|e| drawn("--probe", text, Diagnostic::from_ron(text, &e)))
    };
    let probes = args.probe.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let saved = open(device, &args.of)?;
    let part = args.of.split.into();
    let metrics = saved.eval(device, &probes, part, args.of.momentum).map_err(usage)?;
    if args.json {
        let values: serde_json::Map<_, _> =
            metrics.iter().map(|m| (m.name.clone(), serde_json::json!(m.value))).collect();
        let json = serde_json::json!({
            "run": args.of.run, "split": part.name(), "data": saved.plan.splits.description,
            "weights": saved.weights, "metrics": values,
        });
        println!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}, split {}", saved.plan.splits.description, part.name());
    let width = metrics.iter().map(|m| m.name.chars().count()).max().unwrap_or(0);
    for m in &metrics {
        println!("  {:<width$}  {:.4}", m.name, m.value);
    }
    if metrics.is_empty() {
        eprintln!("warning: these probes have nothing to measure here");
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes what a run's network makes of a split.
pub fn embed(args: EmbedArgs) -> Result<ExitCode, Failure> {
    device::on(&args.of.device.clone(), args)
}

impl Job for EmbedArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        write(self, device)
    }
}

fn write<D: NetworkDevice>(args: EmbedArgs, device: &D) -> Result<ExitCode, Failure> {
    Form::of(&args.out).map_err(usage)?;
    let saved = open(device, &args.of)?;
    let part: Part = args.of.split.into();
    let (embedded, step) = saved.embed(device, part, args.of.momentum).map_err(usage)?;
    let from = Provenance::new(&saved, part, args.of.momentum, step);
    let labels = saved.source(part)?.labels();
    for file in embed::write(&embedded, labels, &from, args.vectors.into(), &args.out)? {
        println!("{}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn open<D: NetworkDevice>(device: &D, args: &SavedArgs) -> Result<SavedRun, Failure> {
    let parse = |text: &String| {
        Configured::<kind::Dataset>::parse(text)
            .map_err(|e| drawn("--data", text, Diagnostic::from_ron(text, &e)))
    };
    let data = args.data.as_ref().map(parse).transpose()?;
    let opened = SavedRun::open(device, &args.run, &here()?, data.as_ref(), args.checkpoint.as_deref());
    opened.map_err(|e| match e {
        OpenError::Recipe(LoadError::Recipe(found)) | OpenError::Plan(PlanError::Recipe(found)) => {
            Failure::new(2, found.render(console::color()).trim_end())
        }
        OpenError::Plan(PlanError::Data { error, .. }) => Failure::new(4, format!("error: {error}")),
        OpenError::Other(e) => usage(e),
        e @ (OpenError::NoRun(_) | OpenError::Recipe(_)) => Failure::new(2, format!("error: {e}")),
    })
}

/// Requests that do not fit the run are errors of usage.
fn usage(e: pauc::traits::Error) -> Failure {
    let code = if matches!(e, pauc::traits::Error::Config { .. }) { Some(2) } else { None };
    let failure = Failure::from(e);
    Failure { code: code.unwrap_or(failure.code), ..failure }
}
