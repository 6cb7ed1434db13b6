//! `data`: commands on the data of a recipe.

pub mod fetch;
pub mod index;
pub mod preview;
pub mod stats;
pub mod verify;

use crate::Failure;
use crate::args::RecipeArgs;
use crate::recipes::here;
use crate::suggestion;
use clap::{Args, Subcommand};
use pauc::data::ViewPipeline;
use pauc::train::recipe::{Recipe, Source};
use pauc::train::suggest::defaults;
use pauc::traits::Error;
use pauc::traits::dataset::Splits;
use std::path::Path;
use std::process::ExitCode;

/// Fetch, verify, index, measure or preview data.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    Fetch(fetch::FetchArgs),
    Verify(verify::VerifyArgs),
    Index(index::IndexArgs),
    Stats(stats::StatsArgs),
    Preview(preview::PreviewArgs),
}

impl DataCommand {
    /// Runs a verb of `data`.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        match self {
            DataCommand::Fetch(args) => args.execute(),
            DataCommand::Verify(args) => args.execute(),
            DataCommand::Index(args) => args.execute(),
            DataCommand::Stats(args) => args.execute(),
            DataCommand::Preview(args) => args.execute(),
        }
    }
}

/// The data to read.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// A recipe file, a folder or archive of images, or a dataset as a recipe writes it.
    #[arg(value_name = "RECIPE|FOLDER|DATASET")]
    what: String,
    #[command(flatten)]
    change: RecipeArgs,
}

impl DataArgs {
    /// Returns the recipe, or a recipe with the given dataset.
    pub fn recipe(&self) -> Result<DataRecipe, Failure> {
        self.recipe_with(None)
    }

    /// Returns the recipe with unreadable images skipped and listed, if its dataset supports that.
    fn tolerant_recipe(&self) -> Result<DataRecipe, Failure> {
        let strict = self.recipe()?;
        let skip = ["data", "data.of"].map(|path| format!("{path}.on_error=Skip(max: {})", u32::MAX));
        Ok(skip.into_iter().find_map(|set| self.recipe_with(Some(set)).ok()).unwrap_or(strict))
    }

    fn recipe_with(&self, change: Option<String>) -> Result<DataRecipe, Failure> {
        let set: Vec<String> = self.change.set.iter().cloned().chain(change).collect();
        let (recipe, source) = if suggestion::is_data(&self.what) {
            let dataset = suggestion::dataset(&self.what)?.dataset;
            let text = format!("Recipe(name: \"data\", data: {dataset}, objective: [])");
            Recipe::parse("the dataset", &text, &set)?
        } else {
            Recipe::load(Path::new(&self.what), &set)?
        };
        Ok(DataRecipe { recipe, source })
    }
}

/// A recipe of which only `data` and `views` are read.
pub struct DataRecipe {
    /// The recipe.
    pub recipe: Recipe,
    source: Source,
}

impl DataRecipe {
    /// Opens the data.
    pub fn open(&self) -> Result<Splits, Failure> {
        Ok(self.recipe.data.open(&here()?)?)
    }

    /// Opens the data, and fills in the views that fit it if the recipe has none. That reads some of the images.
    pub fn open_with_views(&mut self) -> Result<Splits, Failure> {
        let splits = self.open()?;
        defaults::fill(&mut self.recipe, &self.source.text, &splits);
        Ok(splits)
    }

    /// Returns the random views of training.
    pub fn training_views(&self, splits: &Splits) -> Result<ViewPipeline, Failure> {
        let (shape, statistics) = (splits.train.shape(), &splits.statistics);
        ViewPipeline::training(&self.recipe.views, shape, statistics).map_err(view_failure)
    }

    /// Returns the evaluation view.
    fn evaluation_view(&self, splits: &Splits) -> Result<ViewPipeline, Failure> {
        let (shape, statistics) = (splits.train.shape(), &splits.statistics);
        ViewPipeline::evaluation(&self.recipe.views, shape, statistics).map_err(view_failure)
    }
}

/// Reports views that do not fit the images as a mistake in the recipe.
fn view_failure(e: Error) -> Failure {
    Failure::new(2, format!("error: {e}"))
}
