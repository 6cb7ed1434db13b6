//! `export`.

use crate::Failure;
use crate::args::heading;
use clap::Args;
use pauc::train::export;
use pauc::traits::atomic;
use std::path::PathBuf;
use std::process::ExitCode;

/// Export a run's encoder with torchvision's weight names.
///
/// Example: pauc-cli export runs/quickstart-0a1b2c3d/seed0 --out encoder.safetensors
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run's folder, or a checkpoint file.
    run: PathBuf,
    /// Use the momentum encoder instead of the online encoder.
    #[arg(long, help_heading = heading::INPUT)]
    momentum: bool,
    /// The file to write.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

impl ExportArgs {
    /// Exports the encoder of a run.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let last = self.run.join("checkpoints/last.safetensors");
        let checkpoint = if self.run.is_dir() { &last } else { &self.run };
        let file = export::encoder(checkpoint, self.momentum)?;
        atomic::remove_leftovers(&self.out);
        file.save(&self.out).map_err(|e| Failure::of_output(e, &self.out))?;
        outln!("{}: {} tensors", self.out.display(), file.names().count());
        Ok(ExitCode::SUCCESS)
    }
}
