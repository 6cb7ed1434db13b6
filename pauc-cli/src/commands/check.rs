//! `check`.

use super::here;
use crate::args::CheckArgs;
use crate::{Failure, console};
use pauc::dfdx::prelude::Cpu;
use pauc::train::diagnostic::{Diagnostic, Diagnostics};
use pauc::train::plan::{Plan, PlanError};
use pauc::train::recipe::{LoadError, Recipe};
use pauc::traits::term::Severity;
use std::process::ExitCode;

/// Checks every recipe, and reports all that is wrong with all of them.
pub fn check(args: CheckArgs) -> Result<ExitCode, Failure> {
    let device = Cpu::default();
    let mut failed = false;
    let mut results = Vec::new();
    for path in &args.recipes {
        let found = match Recipe::load(path, &args.change.set) {
            Err(LoadError::File { path, source }) => {
                return Err(Failure::new(2, format!("error: cannot read the recipe {path}: {source}")));
            }
            Err(LoadError::Recipe(found)) => found,
            Ok((recipe, source)) => {
                let place = here()?;
                let planned = if args.no_data {
                    Plan::without_data(&device, recipe, source.clone(), &place)
                } else {
                    Plan::new(&device, recipe, source.clone(), &place)
                };
                match planned {
                    Ok(plan) => plan.warnings,
                    Err(PlanError::Recipe(found)) => found,
                    Err(PlanError::Data { error, mut found }) => {
                        let message = format!("sizes were not checked: {error}");
                        let help = "get the data to have all rules checked; `run` stops here";
                        let d =
                            Diagnostic::at(Severity::Warning, "E0214", &source.text, "data", message, help);
                        found.all.push(d);
                        *found
                    }
                }
            }
        };
        failed |= found.has_errors();
        if args.json {
            results.push(json(&found));
        } else {
            eprint!("{}", found.render(console::color()));
            if !found.has_errors() {
                println!("{}: ok", path.display());
            }
        }
    }
    if args.json {
        println!("{}", serde_json::Value::Array(results));
    }
    Ok(ExitCode::from(if failed { 2 } else { 0 }))
}

fn json(found: &Diagnostics) -> serde_json::Value {
    let one = |d: &Diagnostic| {
        serde_json::json!({
            "code": d.code,
            "severity": if d.severity == Severity::Error { "error" } else { "warning" },
            "message": d.message,
            "span": d.span.as_ref().map(|s| [s.start, s.end]),
            "help": d.help,
            "replacement": d.replacement,
        })
    };
    serde_json::json!({
        "recipe": found.path,
        "ok": !found.has_errors(),
        "diagnostics": found.all.iter().map(one).collect::<Vec<_>>(),
    })
}
