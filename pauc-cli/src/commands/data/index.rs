//! `data index`.

use super::DataArgs;
use crate::Failure;
use crate::args::heading;
use clap::Args;
use pauc::data::inspect;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write the hash and class of every image, for `data verify`.
///
/// Example: pauc-cli data index recipe.ron --out photos.index.json
#[derive(Debug, Args)]
pub struct IndexArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Where to write the index.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

impl IndexArgs {
    /// Writes the index.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let index = inspect::index(&self.data.recipe()?.open()?)?;
        index.write(&self.out)?;
        outln!("{}: {} images, {}", self.out.display(), index.images.len(), &index.check[..16]);
        Ok(ExitCode::SUCCESS)
    }
}
