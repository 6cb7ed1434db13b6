//! The arguments.

use clap::{Args as ClapArgs, Parser, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Contrastive and prototypical self-supervised learning from recipes.
#[derive(Debug, Parser)]
#[command(name = "pauc-cli", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Args {
    /// Threads for computing; all cores by default. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train what a recipe describes.
    ///
    /// Example: pauc-cli run recipes/quickstart.ron --set train.epochs=5
    Run(RunArgs),
    /// Continue an interrupted run from its last checkpoint.
    ///
    /// Example: pauc-cli resume runs/quickstart-0a1b2c3d/seed0
    Resume(ResumeArgs),
    /// Check recipes without training: names, values, rules across fields, sizes of data.
    ///
    /// Example: pauc-cli check recipes/*.ron
    Check(CheckArgs),
    /// Explain a component, an error code, or everything that follows from a recipe.
    ///
    /// Examples: pauc-cli explain InfoNce; pauc-cli explain E0103; pauc-cli explain recipes/quickstart.ron
    Explain(ExplainArgs),
    /// List the components that recipes can name.
    ///
    /// Example: pauc-cli list "contrastive loss"
    List(ListArgs),
    /// Value, chance level and gradients of one term on given tensors.
    ///
    /// Reads view0, view1, key0, key1, queue, labels, prototypes.M, assignments.M, concentration.M, negatives.M from a
    /// safetensors file; views and keys are raw projector outputs, f32 or f64.
    ///
    /// Example: pauc-cli term 'InfoNce(temperature: 0.2)' --inputs batch.safetensors --grads out.safetensors
    Term(TermArgs),
    /// Cluster features of a file: prototypes, assignments, concentrations, and how good they are.
    ///
    /// Reads a matrix of samples × dimensions: float32 of a .npy or .safetensors file without loading all of it
    /// (MiniBatchKMeans and HierarchicalKMeans work on files larger than memory), float64 and .csv as a whole. Features are
    /// used as they are; recipes cluster rows of unit length.
    ///
    /// Example: pauc-cli cluster features.npy --with 'KMeans(k: [100])' --labels labels.npy --out clusters.safetensors
    Cluster(ClusterArgs),
    /// Write a run's report again.
    ///
    /// Example: pauc-cli report runs/quickstart-0a1b2c3d/seed0
    Report(ReportArgs),
    /// Print the completions of a shell.
    ///
    /// Example: pauc-cli completions bash > /etc/bash_completion.d/pauc-cli
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, ClapArgs)]
pub struct RecipeArgs {
    /// Change a value of the recipe, by its path; may be given several times.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// The recipe files, trained one after the other.
    #[arg(required = true, value_name = "RECIPE")]
    pub recipes: Vec<PathBuf>,
    #[command(flatten)]
    pub change: RecipeArgs,
    /// The folder that runs are put into.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub out: PathBuf,
    /// The device to train on: `cpu` is the only one of this build.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Train once for each of these seeds.
    #[arg(long, value_delimiter = ',', value_name = "SEEDS")]
    pub seeds: Vec<u64>,
    /// Stop after so many optimiser steps.
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// Train again what has been trained already, replacing it.
    #[arg(long)]
    pub force: bool,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ResumeArgs {
    /// The run's folder.
    pub run: PathBuf,
    /// Stop at this optimiser step of the whole run.
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// The recipe files.
    #[arg(required = true, value_name = "RECIPE")]
    pub recipes: Vec<PathBuf>,
    #[command(flatten)]
    pub change: RecipeArgs,
    /// Print what was found as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ExplainArgs {
    /// A component's name, a code such as E0103, `Recipe`, or a recipe file.
    #[arg(value_name = "NAME|CODE|RECIPE")]
    pub what: String,
    #[command(flatten)]
    pub change: RecipeArgs,
}

#[derive(Debug, ClapArgs)]
pub struct ListArgs {
    /// Only this kind, such as `encoder` or `"contrastive loss"`.
    pub kind: Option<String>,
    /// Print names, kinds, fields and defaults as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct TermArgs {
    /// The term, as a recipe writes it.
    pub term: String,
    /// The tensors.
    #[arg(long, value_name = "FILE")]
    pub inputs: PathBuf,
    /// Where to write the gradients.
    #[arg(long, value_name = "FILE")]
    pub grads: Option<PathBuf>,
    /// Print value and chance level as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ClusterArgs {
    /// The features: a .safetensors, .npy or .csv file.
    pub embeddings: PathBuf,
    /// The clusterer, as a recipe writes it.
    #[arg(long, value_name = "CLUSTERER")]
    pub with: String,
    /// Class labels to score against, numbered from 0: a .npy file, a .csv file with one a line, or the tensor `labels` of
    /// a .safetensors file.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Where to write prototypes.M, assignments.M (−1: noise) and concentration.M of each level M, as safetensors.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The tensor of a safetensors file that holds the features.
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// The seed of everything random.
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    pub seed: u64,
    /// Smoothing α of the concentration of small clusters.
    #[arg(long, default_value_t = 10.0, value_name = "ALPHA")]
    pub alpha: f64,
    /// The mean of the concentration over the prototypes of a level.
    #[arg(long, default_value_t = 0.2, value_name = "TEMPERATURE")]
    pub temperature: f64,
    /// Print objective, seconds of the fit alone, iterations, splits and metrics of each level as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ReportArgs {
    /// The runs' folders.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
}
