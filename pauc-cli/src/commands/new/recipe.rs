//! `new recipe`.

use crate::Failure;
use crate::args::{DeviceArg, heading};
use crate::device::{self, DeviceJob};
use crate::suggestion::{SuggestArgs, Suggestion};
use clap::Args;
use pauc::models::NetworkDevice;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a commented recipe that fits your images, this machine and your time.
///
/// Lists the images and reads a sample of them, measures how fast this machine trains two or three encoders, and chooses
/// views, encoder, batch, negatives, clusters, epochs and probes. Comments in the recipe give the reasons, with their
/// numbers. `pauc-cli run FOLDER` does the same and trains at once.
///
/// Example: pauc-cli new recipe photos --budget 1h --out my.ron
#[derive(Debug, Args)]
pub struct NewRecipeArgs {
    /// A folder of images, with or without a folder per class; an archive, table or array; or a dataset as a recipe
    /// writes it.
    #[arg(value_name = "FOLDER|DATASET")]
    data: String,
    #[command(flatten)]
    suggest: SuggestArgs,
    /// The recipe to write; by default, the name of the folder with the extension `.ron`, in the working directory.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
    /// Replace the recipe if it exists.
    #[arg(long, help_heading = heading::OUTPUT)]
    force: bool,
    #[command(flatten)]
    device: DeviceArg,
}

impl NewRecipeArgs {
    /// Writes the recipe.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        device::run_on(&self.device.name.clone(), self)
    }
}

impl DeviceJob for NewRecipeArgs {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let out = self.out.as_deref();
        let suggestion = Suggestion::write(device, &self.data, &self.suggest, out, self.force)?;
        outln!("{}", suggestion.summary);
        outln!("wrote {0}; train it with `pauc-cli run {0}`", suggestion.path.display());
        Ok(ExitCode::SUCCESS)
    }
}
