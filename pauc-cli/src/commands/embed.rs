//! `embed`.

use crate::Failure;
use crate::args::{DeviceArg, heading};
use crate::device::{self, DeviceJob};
use crate::ranks::{OnRanks, Ranks};
use crate::saved::SavedArgs;
use clap::{Args, ValueEnum};
use pauc::models::NetworkDevice;
use pauc::train::embed::{self, Form, Provenance, Samples, Vectors};
use pauc::train::saved_run::Part;
use pauc::traits::atomic;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write the features and embeddings of a split to a file.
///
/// A .safetensors file has `features`, `embeddings`, `ids`, `labels` and `names`, and the provenance as
/// metadata. A .parquet file has the same as columns, with vectors as lists of one size. A .csv file has the
/// columns id, label, name and one per dimension, with the provenance in x.json. With x.npy, ids, labels, names
/// and provenance are written to x.ids.npy, x.labels.npy, x.names.npy and x.json. Names are paths within the
/// dataset. Rows are in the order of the split.
///
/// Example: pauc-cli embed runs/quickstart-0a1b2c3d/seed0 --split test --out test.safetensors
#[derive(Debug, Args)]
pub struct EmbedArgs {
    #[command(flatten)]
    saved: SavedArgs,
    /// The file to write: .safetensors, .npy, .csv or .parquet.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: PathBuf,
    /// The vectors to write to a .npy or .csv file.
    #[arg(long, default_value = "features", help_heading = heading::OUTPUT)]
    vectors: VectorsName,
    #[command(flatten)]
    device: DeviceArg,
}

/// The vectors of an image.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum VectorsName {
    /// The encoder's output.
    Features,
    /// The projector's output, scaled to unit length.
    Embeddings,
}

impl From<VectorsName> for Vectors {
    fn from(name: VectorsName) -> Self {
        match name {
            VectorsName::Features => Self::Features,
            VectorsName::Embeddings => Self::Embeddings,
        }
    }
}

impl EmbedArgs {
    /// Writes the features and embeddings of a split.
    pub fn execute(self, ranks: &Ranks) -> Result<ExitCode, Failure> {
        device::run_on(&ranks.device(&self.device.name)?, OnRanks { verb: self, ranks })
    }
}

impl DeviceJob for OnRanks<'_, EmbedArgs> {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let OnRanks { verb: args, ranks } = self;
        // Refuse an unknown extension before computing anything.
        Form::of(&args.out).map_err(Failure::of_request)?;
        let saved = ranks.share_saved(args.saved.open(device)?)?;
        let part: Part = args.saved.split.into();
        let momentum = args.saved.momentum;
        let embedded = saved.embed(device, part, momentum).map_err(Failure::of_request)?;
        // Only rank 0 has the embeddings, and writes them.
        let Some((embedded, step)) = embedded else { return Ok(ExitCode::SUCCESS) };
        let provenance = Provenance::new(&saved, part, momentum, step);
        let samples = Samples::of(&**saved.source(part)?);
        atomic::remove_leftovers(&args.out);
        let written = embed::write(&embedded, &samples, &provenance, args.vectors.into(), &args.out);
        for file in written.map_err(Failure::of_writing)? {
            outln!("{}", file.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
