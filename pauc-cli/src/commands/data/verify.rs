//! `data verify`.

use super::DataArgs;
use crate::Failure;
use crate::args::{JsonArg, heading};
use clap::Args;
use pauc::data::inspect::{self, Index};
use std::path::PathBuf;
use std::process::ExitCode;

/// Read every image, and compare with an index if given. Exit code 4 if an image is unreadable or has
/// changed.
///
/// Example: pauc-cli data verify 'ImageFolder(root: "photos")'
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The index to compare with.
    #[arg(long, value_name = "FILE", help_heading = heading::INPUT)]
    index: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    output: JsonArg,
}

impl VerifyArgs {
    /// Reads every image.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let splits = self.data.tolerant_recipe()?.open()?;
        let unreadable = inspect::verify(&splits);
        let differences = match &self.index {
            // An unreadable image has no hash; it is already listed.
            Some(path) => Index::read(path)?.differences(&inspect::index(&splits)?),
            None => Vec::new(),
        };
        let images = splits.train.len() + splits.test.as_ref().map_or(0, |t| t.len());
        if self.output.json {
            let unreadable: Vec<_> = unreadable
                .iter()
                .map(|image| serde_json::json!({ "path": image.path, "reason": image.reason }))
                .collect();
            let json = serde_json::json!({
                "data": splits.description, "images": images, "unreadable": unreadable,
                "differences": differences,
            });
            outln!("{json}");
        } else {
            outln!("{}", splits.description);
            unreadable.iter().for_each(|image| outln!("{}: {}", image.path, image.reason));
            differences.iter().for_each(|d| outln!("{d}"));
            outln!("{images} images are readable, {} are not", unreadable.len());
            if self.index.is_some() {
                outln!("{} differences from the index", differences.len());
            }
        }
        Ok(ExitCode::from(if unreadable.is_empty() && differences.is_empty() { 0 } else { 4 }))
    }
}
