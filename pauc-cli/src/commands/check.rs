//! `check`.

use crate::args::{JsonArg, MemoryArg, RecipeArgs, heading};
use crate::recipes::here;
use crate::{Failure, console};
use clap::Args;
use pauc::dfdx::prelude::Cpu;
use pauc::train::diagnostic::{Diagnostic, Diagnostics};
use pauc::train::plan::{Plan, PlanError};
use pauc::train::recipe::{LoadError, Recipe};
use pauc::train::recipe_text::{self, Node};
use pauc::traits::Error;
use pauc::traits::dataset::Place;
use pauc::traits::term::Severity;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Check recipes without training.
///
/// Checks names, values, rules across fields and the sizes of the data. Reports all mistakes in all recipes.
///
/// Example: pauc-cli check recipes/*.ron
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The recipe files.
    #[arg(required = true, value_name = "RECIPE")]
    recipes: Vec<PathBuf>,
    #[command(flatten)]
    change: RecipeArgs,
    #[command(flatten)]
    memory: MemoryArg,
    /// Do not read the data; check against the sizes that the authors of the dataset published.
    #[arg(long, help_heading = heading::RECIPE)]
    no_data: bool,
    #[command(flatten)]
    output: JsonArg,
}

impl CheckArgs {
    /// Checks every recipe, and reports all mistakes in all of them.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let device = Cpu::default();
        let mut failed = false;
        let mut results = Vec::new();
        for path in &self.recipes {
            let diagnostics = self.diagnose(&device, path)?;
            failed |= diagnostics.has_errors();
            if self.output.json {
                results.push(json(path, &diagnostics));
            } else {
                err!("{}", diagnostics.render(console::color()));
                if !diagnostics.has_errors() {
                    outln!("{}: ok", path.display());
                }
            }
        }
        if self.output.json {
            outln!("{}", serde_json::Value::Array(results));
        }
        Ok(ExitCode::from(if failed { 2 } else { 0 }))
    }

    /// Returns the mistakes and warnings of one recipe.
    fn diagnose(&self, device: &Cpu, path: &Path) -> Result<Diagnostics, Failure> {
        let (recipe, source) = match Recipe::load(path, &self.change.set) {
            Ok(loaded) => loaded,
            Err(LoadError::Recipe(diagnostics)) => return Ok(diagnostics),
            Err(e @ LoadError::File { .. }) => return Ok(unreadable(path, &e)),
        };
        let place = Place { memory: self.memory.limit, ..here()? };
        let root = recipe_text::parse(&source.text);
        let planned = if self.no_data {
            Plan::without_data(device, recipe, source, &place)
        } else {
            Plan::new(device, recipe, source, &place)
        };
        Ok(match planned {
            Ok(plan) => plan.warnings,
            Err(PlanError::Recipe(diagnostics)) => diagnostics,
            Err(PlanError::Data { error, mut found }) => {
                found.all.push(data_missing(root.as_ref(), &error));
                *found
            }
        })
    }
}

/// Reports a file that cannot be read, so that the other recipes are still checked.
fn unreadable(path: &Path, error: &LoadError) -> Diagnostics {
    let mistake = Diagnostic::at(Severity::Error, "E0108", None, "", error.to_string(), "");
    Diagnostics { text: String::new(), path: path.display().to_string(), all: vec![mistake] }
}

/// Warns that rules about sizes were not checked.
fn data_missing(root: Option<&Node>, error: &Error) -> Diagnostic {
    let message = format!("sizes were not checked: {error}");
    let help = "get the data to check all rules; `run` fails without it";
    Diagnostic::at(Severity::Warning, "E0214", root, "data", message, help)
}

fn json(path: &Path, diagnostics: &Diagnostics) -> serde_json::Value {
    let diagnostic = |d: &Diagnostic| {
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
        "recipe": path.display().to_string(),
        "ok": !diagnostics.has_errors(),
        "diagnostics": diagnostics.all.iter().map(diagnostic).collect::<Vec<_>>(),
    })
}
