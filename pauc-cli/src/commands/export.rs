//! `export`.

use crate::Failure;
use crate::args::heading;
use crate::recipes::here;
use clap::{Args, ValueEnum};
use pauc::train::export::{self, TrainedEncoder, card, timm};
use pauc::traits::atomic;
use std::path::PathBuf;
use std::process::ExitCode;

/// Export a run's encoder for PyTorch or timm.
///
/// Example: pauc-cli export runs/quickstart-0a1b2c3d/seed0 --out encoder.safetensors
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run's folder, or a checkpoint file.
    run: PathBuf,
    /// Use the momentum encoder instead of the online encoder.
    #[arg(long, help_heading = heading::INPUT)]
    momentum: bool,
    /// The format.
    #[arg(long, default_value = "safetensors", help_heading = heading::OUTPUT)]
    format: Format,
    /// The file to write, or the folder with `--format timm`.
    #[arg(long, value_name = "PATH", help_heading = heading::OUTPUT)]
    out: PathBuf,
    /// Replace the folder of an earlier export.
    #[arg(long, help_heading = heading::OUTPUT)]
    force: bool,
    /// The license that the model card states, such as `mit` or `cc-by-4.0`.
    #[arg(long, value_name = "ID", default_value = card::NO_LICENSE, help_heading = heading::OUTPUT)]
    license: String,
}

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A file of weights with torchvision's names.
    Safetensors,
    /// A folder that timm and transformers load: weights, configuration and model card.
    Timm,
}

impl ExportArgs {
    /// Exports the encoder of a run.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        match self.format {
            Format::Safetensors => self.weights()?,
            Format::Timm => self.timm()?,
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Writes a file of weights.
    fn weights(&self) -> Result<(), Failure> {
        let file = export::encoder(&export::checkpoint_of(&self.run), self.momentum)?;
        atomic::remove_leftovers(&self.out);
        file.save(&self.out).map_err(|e| Failure::of_output(e, &self.out))?;
        outln!("{}: {} tensors", self.out.display(), file.names().count());
        Ok(())
    }

    /// Writes a folder for timm.
    fn timm(&self) -> Result<(), Failure> {
        export::check_target(&self.out, &timm::FILES, self.force).map_err(Failure::of_request)?;
        let (trained, _) = TrainedEncoder::open(&self.run, self.momentum, &here()?)?;
        atomic::remove_leftovers(&self.out);
        timm::write(&trained, &self.license, &self.out).map_err(Failure::of_request)?;
        for file in timm::FILES {
            outln!("{}", self.out.join(file).display());
        }
        Ok(())
    }
}
