//! `export`.

use crate::Failure;
use crate::args::heading;
use crate::recipes::here;
use clap::{Args, ValueEnum};
use pauc::train::export::{self, TrainedEncoder, card, onnx, timm};
use pauc::traits::{Error, atomic};
use std::path::PathBuf;
use std::process::ExitCode;

/// Export a run's encoder for PyTorch, timm or ONNX.
///
/// An ONNX file takes `images`, (batch, channels, height, width) with values between 0 and 1, and normalizes them
/// itself. Its output is `features`; `--projector` adds `embeddings`.
///
/// Example: pauc-cli export runs/quickstart-0a1b2c3d/seed0 --format onnx --out encoder.onnx
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run's folder, or a checkpoint file.
    run: PathBuf,
    /// Use the momentum encoder instead of the online encoder.
    #[arg(long, help_heading = heading::INPUT)]
    momentum: bool,
    /// The format; by default `onnx` if the name ends in .onnx, else `safetensors`.
    #[arg(long, help_heading = heading::OUTPUT)]
    format: Option<Format>,
    /// The file to write, or the folder with `--format timm`.
    #[arg(long, value_name = "PATH", help_heading = heading::OUTPUT)]
    out: PathBuf,
    /// With `--format timm`: replace the folder of an earlier export.
    #[arg(long, help_heading = heading::OUTPUT)]
    force: bool,
    /// With `--format onnx`: also compute the projector's outputs, scaled to unit length.
    #[arg(long, help_heading = heading::OUTPUT)]
    projector: bool,
    /// With `--format onnx`: scale features to unit length.
    #[arg(long, help_heading = heading::OUTPUT)]
    normalize: bool,
    /// With `--format timm`: the license that the model card states, such as `mit` or `cc-by-4.0`.
    #[arg(long, value_name = "ID", default_value = card::NO_LICENSE, help_heading = heading::OUTPUT)]
    license: String,
}

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A file of weights, with the parameter names of torchvision or timm if they have the network.
    Safetensors,
    /// A folder that timm and transformers load: weights, configuration and model card.
    Timm,
    /// A graph that ONNX Runtime and other runtimes compute.
    Onnx,
}

impl ExportArgs {
    /// Exports the encoder of a run.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let is_onnx = self.out.extension().is_some_and(|ending| ending == "onnx");
        match self.format.unwrap_or(if is_onnx { Format::Onnx } else { Format::Safetensors }) {
            Format::Safetensors => self.weights()?,
            Format::Timm => self.timm()?,
            Format::Onnx => self.onnx()?,
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
        let trained = TrainedEncoder::open(&self.run, self.momentum, &here()?)?;
        atomic::remove_leftovers(&self.out);
        timm::write(&trained, &self.license, &self.out).map_err(Failure::of_request)?;
        for file in timm::FILES {
            outln!("{}", self.out.join(file).display());
        }
        Ok(())
    }

    /// Writes an ONNX file.
    fn onnx(&self) -> Result<(), Failure> {
        let trained = TrainedEncoder::open(&self.run, self.momentum, &here()?)?;
        atomic::remove_leftovers(&self.out);
        let outputs = onnx::Outputs { projector: self.projector, normalize: self.normalize };
        onnx::write(&trained, outputs, &self.out).map_err(|e| match e {
            e @ Error::Io { .. } => Failure::of_output(e, &self.out),
            e => Failure::of_request(e),
        })?;
        outln!("{}", self.out.display());
        Ok(())
    }
}
