//! `explain`.

use crate::Failure;
use crate::args::{DeviceArg, MemoryArg, RecipeArgs};
use crate::device::{self, DeviceJob};
use crate::recipes::{Warnings, plan};
use clap::Args;
use pauc::models::NetworkDevice;
use pauc::train::explain;
use std::path::Path;
use std::process::ExitCode;

/// Explain a component, an error code, or a recipe.
///
/// For a recipe, prints its defaults, layers, chance levels and schedule, and the memory that it needs on the
/// device.
///
/// Examples: pauc-cli explain InfoNce; pauc-cli explain E0103; pauc-cli explain recipes/quickstart.ron
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A component's name, a code such as E0103, `Recipe`, or a recipe file.
    #[arg(value_name = "NAME|CODE|RECIPE")]
    what: String,
    #[command(flatten)]
    change: RecipeArgs,
    #[command(flatten)]
    memory: MemoryArg,
    #[command(flatten)]
    device: DeviceArg,
}

impl ExplainArgs {
    /// Explains a name, a code or a recipe.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        if self.what.ends_with(".ron") || Path::new(&self.what).is_file() {
            return device::run_on(&self.device.name.clone(), self);
        }
        explain_name(&self.what)
    }
}

impl DeviceJob for ExplainArgs {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let plan = plan(device, Path::new(&self.what), &self.change.set, self.memory.limit, Warnings::Shown)?;
        out!("{}", explain::plan(device, &plan)?);
        Ok(ExitCode::SUCCESS)
    }
}

fn explain_name(name: &str) -> Result<ExitCode, Failure> {
    if let Some(text) = explain::name(name) {
        out!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    let hint = explain::suggestion(name).map(|s| format!("; did you mean `{s}`?")).unwrap_or_default();
    let message = format!("error: unknown name `{name}`{hint}\n`pauc-cli list` prints all names");
    Err(Failure::new(2, message))
}
