//! Reads recipes from files into checked plans, and components from the command line.

use crate::{Failure, console};
use pauc::models::NetworkDevice;
use pauc::train::diagnostic::{Diagnostic, Diagnostics};
use pauc::train::plan::Plan;
use pauc::train::recipe::Recipe;
use pauc::traits::component_ron::Configured;
use pauc::traits::dataset::Place;
use pauc::traits::registry::Kind;
use std::path::Path;

/// Whether to print a recipe's warnings.
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
    memory: Option<u64>,
    warnings: Warnings,
) -> Result<Plan, Failure> {
    let (recipe, source) = Recipe::load(path, set)?;
    let plan = Plan::new(device, recipe, source, &Place { memory, ..here()? })?;
    if warnings == Warnings::Shown {
        err!("{}", plan.warnings.render(console::color()));
    }
    Ok(plan)
}

/// Returns the working directory, to which paths in recipes are relative.
pub fn here() -> Result<Place, Failure> {
    let base = std::env::current_dir();
    let base = base.map_err(|e| Failure::new(1, format!("error: cannot find the working directory: {e}")))?;
    Ok(Place::at(base))
}

/// Parses a component given as an argument.
pub fn parse_component<T: Kind + ?Sized>(argument: &str, text: &str) -> Result<Configured<T>, Failure> {
    Configured::parse(text).map_err(|e| argument_failure(argument, text, Diagnostic::from_ron(text, &e)))
}

/// Formats a mistake in a RON argument like a mistake in a recipe.
pub fn argument_failure(argument: &str, text: &str, mistake: Diagnostic) -> Failure {
    Diagnostics { text: text.into(), path: argument.into(), all: vec![mistake] }.into()
}
