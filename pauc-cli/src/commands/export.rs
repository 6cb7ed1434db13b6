//! `export`.

use crate::Failure;
use crate::args::heading;
use clap::Args;
use pauc::train::export;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write a run's encoder as weights with torchvision's names.
///
/// Example: pauc-cli export runs/quickstart-0a1b2c3d/seed0 --out encoder.safetensors
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run's folder, or a checkpoint file.
    run: PathBuf,
    /// Take the momentum encoder instead of the online one.
    #[arg(long, help_heading = heading::INPUT)]
    momentum: bool,
    /// The file to write.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

impl ExportArgs {
    /// Writes the encoder of a run.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let last = self.run.join("checkpoints/last.safetensors");
        let checkpoint = if self.run.is_dir() { &last } else { &self.run };
        let file = export::encoder(checkpoint, self.momentum)?;
        file.save(&self.out)?;
        println!("{}: {} tensors", self.out.display(), file.names().count());
        Ok(ExitCode::SUCCESS)
    }
}
