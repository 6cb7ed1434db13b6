//! A recipe for a dataset on the command line, which `new recipe` and `run` write.

use crate::Failure;
use crate::args::heading;
use crate::commands::new::write_new;
use crate::recipes::{argument_failure, here};
use clap::{Args, ValueEnum};
use pauc::data::datasets::{self, Located, locate};
use pauc::data::survey::SurveyOptions;
use pauc::models::NetworkDevice;
use pauc::train::diagnostic::Diagnostic;
use pauc::train::suggest::rules::{self, Request};
use pauc::train::suggest::text::{self, Heading};
use pauc::train::suggest::{Budget, Data, Goal, Machine, choose, machine};
use pauc::traits::atomic;
use std::path::{Path, PathBuf};

/// What a recipe is for, and how long it may train.
#[derive(Debug, Args)]
pub struct SuggestArgs {
    /// What the encoder is for [default: embeddings].
    #[arg(long, value_name = "GOAL", hide_default_value = true, help_heading = heading::TRAINING)]
    goal: Option<GoalName>,
    /// The time that the run may take on this machine, such as 10min, 1h or 8h [default: 10min].
    #[arg(long, value_name = "TIME", help_heading = heading::TRAINING)]
    budget: Option<Budget>,
    /// Seconds to measure this machine [default: 8].
    #[arg(long, value_name = "SECONDS", hide = true, help_heading = heading::TRAINING)]
    measure: Option<f64>,
}

impl SuggestArgs {
    /// Returns whether an option is given.
    pub fn is_given(&self) -> bool {
        self.goal.is_some() || self.budget.is_some() || self.measure.is_some()
    }

    fn budget(&self) -> Result<Budget, Failure> {
        let usual = || "10min".parse().map_err(|e| Failure::new(2, format!("error: --budget: {e}")));
        self.budget.map_or_else(usual, Ok)
    }
}

/// What an encoder is for.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum GoalName {
    /// Embeddings in which similar images are near: InfoNCE.
    #[default]
    Embeddings,
    /// Clusters of similar images: InfoNCE, then prototypes and PAUC's terms.
    Clusters,
}

impl From<GoalName> for Goal {
    fn from(name: GoalName) -> Self {
        match name {
            GoalName::Embeddings => Goal::Embeddings,
            GoalName::Clusters => Goal::Clusters,
        }
    }
}

/// A recipe that was written.
pub struct Suggestion {
    /// Its file.
    pub path: PathBuf,
    /// What was found in the data, and how long the run takes.
    pub summary: String,
}

/// Returns whether an argument names data rather than a recipe.
pub fn is_data(argument: &str) -> bool {
    is_dataset(argument) || datasets::is_meant_as_data(Path::new(argument))
}

/// Returns whether an argument is a dataset as a recipe writes it.
fn is_dataset(argument: &str) -> bool {
    argument.contains('(') && argument.trim_end().ends_with(')') && !Path::new(argument).exists()
}

impl Suggestion {
    /// Surveys the data, measures the machine, and writes a recipe.
    pub fn write<D: NetworkDevice>(
        device: &D,
        argument: &str,
        args: &SuggestArgs,
        out: Option<&Path>,
        force: bool,
    ) -> Result<Self, Failure> {
        let (data, name) = data(argument)?;
        let path = out.map_or_else(|| PathBuf::from(format!("{name}.ron")), Path::to_path_buf);
        if !force && path.exists() {
            let message = format!(
                "error: {0} already exists; train it with `pauc-cli run {0}`, or replace it with --force",
                path.display()
            );
            return Err(Failure::new(2, message));
        }
        let surveyed = data.survey(&here()?, SurveyOptions::default())?;
        let (goal, budget) = (args.goal.unwrap_or_default().into(), args.budget()?);
        let request = Request { survey: &surveyed.survey, data: &data, goal, budget };
        let machine = measure(device, &request, &surveyed.splits, args.measure.unwrap_or(8.0))?;
        let choices = choose(&request, &machine);
        let name = out.and_then(Path::file_stem).map_or(name, |stem| recipe_name(&stem.to_string_lossy()));
        let heading =
            Heading { name: &name, data: &data, survey: &surveyed.survey, machine: &machine, goal, budget };
        let written = text::recipe(&heading, &choices)?;
        if force {
            atomic::remove_leftovers(&path);
            atomic::write(&path, written.as_bytes()).map_err(Failure::of_writing)?;
        } else {
            write_new(&path, &written)?;
        }
        Ok(Suggestion { path, summary: text::summary(&heading, &choices) })
    }
}

/// Returns the data that an argument names, and a name for its recipe.
fn data(argument: &str) -> Result<(Data, String), Failure> {
    let located = dataset(argument)?;
    let parsed = Data::parse(&located.dataset).map_err(|e| {
        argument_failure("the dataset", &located.dataset, Diagnostic::from_ron(&located.dataset, &e))
    })?;
    Ok((parsed, located.name))
}

/// Returns the dataset that an argument is, or that lies at its path.
pub fn dataset(argument: &str) -> Result<Located, Failure> {
    if is_dataset(argument) {
        let name = argument.split('(').next().unwrap_or_default().trim();
        return Ok(Located { dataset: argument.into(), name: recipe_name(&name.to_lowercase()) });
    }
    locate(Path::new(argument)).map_err(Failure::of_request)
}

/// Returns a text as the name of a recipe.
fn recipe_name(text: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = text.chars().map(fits).take(100).collect();
    let name = name.trim_start_matches('.');
    if name.is_empty() { "images".into() } else { name.into() }
}

/// Measures the candidates for some images.
fn measure<D: NetworkDevice>(
    device: &D,
    request: &Request<'_>,
    splits: &pauc::traits::dataset::Splits,
    seconds: f64,
) -> Result<Machine, Failure> {
    let picture = rules::picture(request.survey);
    let candidates = rules::candidates(picture, request.survey.short_sides.median, D::HAS_OWN_MEMORY);
    let is_enough = |machine: &Machine| rules::is_enough(request, machine);
    Ok(machine::measure(device, &candidates, splits, seconds, is_enough)?)
}
