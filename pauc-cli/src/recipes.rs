//! From a recipe's file to a checked plan, and components given on the command line.

use crate::{Failure, console};
use pauc::models::NetworkDevice;
use pauc::train::diagnostic::{Diagnostic, Diagnostics};
use pauc::train::plan::Plan;
use pauc::train::recipe::Recipe;
use pauc::traits::component_ron::Configured;
use pauc::traits::dataset::Place;
use pauc::traits::registry::Kind;
use std::path::Path;

/// Whether a recipe's warnings are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Warnings {
    /// On stderr.
    Shown,
    /// Not again.
    Hidden,
}

/// Reads a recipe, opens its data and checks every rule.
pub fn plan<D: NetworkDevice>(
    device: &D,
    path: &Path,
    set: &[String],
    warnings: Warnings,
) -> Result<Plan, Failure> {
    let (recipe, source) = Recipe::load(path, set)?;
    let plan = Plan::new(device, recipe, source, &here()?)?;
    if warnings == Warnings::Shown {
        eprint!("{}", plan.warnings.render(console::color()));
    }
    Ok(plan)
}

/// Relative paths of recipes start in the working directory.
pub fn here() -> Result<Place, Failure> {
    let base = std::env::current_dir();
    let base =
        base.map_err(|e| Failure::new(1, format!("error: the working directory cannot be found: {e}")))?;
    Ok(Place { base })
}

/// Reads a component from the text of an argument.
pub fn parse_component<T: Kind + ?Sized>(argument: &str, text: &str) -> Result<Configured<T>, Failure> {
    Configured::parse(text).map_err(|e| argument_failure(argument, text, Diagnostic::from_ron(text, &e)))
}

/// A mistake in an argument in RON, drawn as mistakes in recipes are.
pub fn argument_failure(argument: &str, text: &str, mistake: Diagnostic) -> Failure {
    Diagnostics { text: text.into(), path: argument.into(), all: vec![mistake] }.into()
}
