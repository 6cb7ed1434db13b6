//! `data preview`.

use super::DataArgs;
use crate::Failure;
use crate::args::heading;
use clap::Args;
use pauc::data::preview::{PreviewOptions, preview};
use pauc::traits::atomic;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Draw images with their evaluation view and the random views of one epoch.
///
/// Example: pauc-cli data preview recipes/fashion-mini/simclr.ron --out views.png
#[derive(Debug, Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    data: DataArgs,
    /// The number of images.
    #[arg(long, value_name = "N", default_value = "8", help_heading = heading::OUTPUT)]
    images: NonZeroUsize,
    /// The epoch of the random views.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = heading::OUTPUT)]
    epoch: u64,
    /// The image file to write.
    #[arg(long, value_name = "FILE", default_value = "preview.png", help_heading = heading::OUTPUT)]
    out: PathBuf,
}

impl PreviewArgs {
    /// Draws the images.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let mut data = self.data.recipe()?;
        let splits = data.open_with_views()?;
        let (training, evaluation) = (data.training_views(&splits)?, data.evaluation_view(&splits)?);
        let seed = data.recipe.train.seed;
        let options = PreviewOptions { images: self.images.get(), seed, epoch: self.epoch };
        let png = preview(&*splits.train, &training, &evaluation, options)?;
        atomic::remove_leftovers(&self.out);
        atomic::write(&self.out, &png)?;
        let count = self.images.get().min(splits.train.len());
        outln!(
            "{}: {count} images, each with its evaluation view and {} random views of epoch {}",
            self.out.display(),
            training.len(),
            self.epoch
        );
        Ok(ExitCode::SUCCESS)
    }
}
