//! Arguments that `eval` and `embed` share: a trained run and the images to use.

use crate::Failure;
use crate::args::{DataChangedArg, heading};
use crate::recipes::{here, parse_component};
use clap::{Args, ValueEnum};
use pauc::models::NetworkDevice;
use pauc::train::saved_run::{Part, SavedRun};
use pauc::traits::registry::kind;
use std::path::PathBuf;

/// The run and the images.
#[derive(Debug, Args)]
pub struct SavedArgs {
    /// The run's folder.
    pub run: PathBuf,
    /// The split to use.
    #[arg(long, default_value = "test", help_heading = heading::INPUT)]
    pub split: SplitName,
    /// Another dataset instead of the run's own, as a recipe writes it. Its images are normalized with the
    /// statistics of the run's own data.
    #[arg(long, value_name = "DATASET", help_heading = heading::INPUT)]
    pub data: Option<String>,
    #[command(flatten)]
    pub data_changed: DataChangedArg,
    /// Use the momentum encoder instead of the online encoder.
    #[arg(long, help_heading = heading::INPUT)]
    pub momentum: bool,
    /// The checkpoint to read; by default the last.
    #[arg(long, value_name = "FILE", help_heading = heading::INPUT)]
    pub checkpoint: Option<PathBuf>,
}

/// A split.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SplitName {
    /// The training split.
    Train,
    /// The test split.
    Test,
}

impl From<SplitName> for Part {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Self::Train,
            SplitName::Test => Self::Test,
        }
    }
}

impl SavedArgs {
    /// Opens the run with its own data or with that of `--data`.
    pub fn open<D: NetworkDevice>(&self, device: &D) -> Result<SavedRun, Failure> {
        let parse = |text: &String| parse_component::<kind::Dataset>("--data", text);
        let data = self.data.as_ref().map(parse).transpose()?;
        let saved = SavedRun::open(device, &self.run, &here()?, data.as_ref(), self.checkpoint.as_deref())?;
        Ok(saved.accept_changed_data(self.data_changed.is_accepted()))
    }
}
