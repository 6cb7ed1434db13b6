//! The arguments.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use pauc::traits::{Count, Positive};
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
    /// Reads view0, view1, key0, key1, prediction0, prediction1, queue, labels, prototypes.M, assignments.M,
    /// concentration.M, negatives.M, ln_temperature and centre from a safetensors file; views, keys and predictions are raw
    /// outputs of the heads, f32 or f64. Where features and clusters.M (the rows that were clustered, and their prototypes)
    /// stand in place of concentration.M, concentrations are computed from them, and printed with --json.
    ///
    /// Example: pauc-cli term 'InfoNce(temperature: 0.2)' --inputs batch.safetensors --grads out.safetensors
    Term(TermArgs),
    /// Cluster features of a file: prototypes, assignments, concentrations, and how good they are.
    ///
    /// Reads a matrix of samples × dimensions: float32 of a .npy or .safetensors file without loading all of it
    /// (MiniBatchKMeans and HierarchicalKMeans work on files larger than memory), float64, .csv and .parquet as a whole. In
    /// a Parquet file, each column of floats is a dimension, or one has a list of floats for each row. Features are used
    /// as they are; recipes cluster rows of unit length.
    ///
    /// Example: pauc-cli cluster features.npy --with 'KMeans(k: [100])' --labels labels.npy --out clusters.safetensors
    Cluster(ClusterArgs),
    /// Probe a run again: any probe, on any labelled split, or on another dataset.
    ///
    /// On `test`, probes learn from the training split and are scored on the test split. `train` leaves the test split
    /// alone: every fifth image of the training split is scored, the others are learnt from, and names of metrics end in
    /// `@train/5`. `pauc-cli list probe` lists the probes.
    ///
    /// Example: pauc-cli eval runs/quickstart-0a1b2c3d/seed0 --probe 'Knn(k: 20)' --probe 'Linear()'
    Eval(EvalArgs),
    /// Write a split's features and embeddings, with ids, labels and where they came from.
    ///
    /// A .safetensors file holds `features`, `embeddings`, `ids` and `labels`, and the provenance as metadata. Beside x.npy lie
    /// x.ids.npy, x.labels.npy and x.json. A .parquet file (built with the feature `parquet`) holds the same as columns, vectors
    /// as lists. Rows stand in the order of the split.
    ///
    /// Example: pauc-cli embed runs/quickstart-0a1b2c3d/seed0 --split test --out test.safetensors
    Embed(EmbedArgs),
    /// Compare runs: what differs between their recipes, and by how much their metrics differ.
    ///
    /// Runs of one recipe that differ only in their seed are one group, with mean and standard deviation. Groups are compared
    /// with the first: the difference of means, and over seeds that both have a paired two-sided t-test. Exit code 3 only
    /// with `--within`.
    ///
    /// Example: pauc-cli compare runs/simclr-0a1b2c3d runs/pcl-4e5f6a7b
    Compare(CompareArgs),
    /// Train a recipe, and hold its metrics against what is stored of them.
    ///
    /// What is stored lies in `expected/NAME.json` beside the recipe: a value and a tolerance for each metric. Exit code 3 if a
    /// metric is outside its tolerance, was not measured, or is not stored. A recipe that is trained already is not trained
    /// again. `--update` stores what the recipe gives, keeps tolerances that are there, and gives others the larger of 0.02 and
    /// 5 % of the value.
    ///
    /// Example: pauc-cli reproduce recipes/quickstart.ron --update
    Reproduce(ReproduceArgs),
    /// Train a recipe with several values in some of its places, and put the results into a table.
    ///
    /// The file names a recipe, paths of it and their values, as a grid, side by side, or drawn at random. Every combination is
    /// checked before the first is trained. What is finished is not trained again and what was interrupted goes on, so that the
    /// same command continues a sweep. Runs are processes of their own; those that fail do not stop the others.
    ///
    /// Example: pauc-cli sweep recipes/sweeps/temperature.ron --jobs 2
    Sweep(SweepArgs),
    /// Write a run's encoder as a file of weights with torchvision's names.
    ///
    /// Example: pauc-cli export runs/quickstart-0a1b2c3d/seed0 --out encoder.safetensors
    Export(ExportArgs),
    /// Time training steps of an encoder, whole and by stage; or, with `data`, the loader.
    ///
    /// Example: pauc-cli bench --encoder 'ResNet18(stem: Small, width: 16)' --batch 64 --size 32 --threads 2
    Bench(BenchArgs),
    /// Write the skeleton of a component of one's own.
    #[command(subcommand)]
    New(New),
    /// Print a run's log as `run` prints it, and follow it until the run ends.
    ///
    /// Example: pauc-cli tail runs/quickstart-0a1b2c3d/seed0
    Tail(TailArgs),
    /// Write a run's report again.
    ///
    /// Example: pauc-cli report runs/quickstart-0a1b2c3d/seed0
    Report(ReportArgs),
    /// Look at a recipe's data: can it be read, did it change, what is in it, what do its views look like.
    #[command(subcommand)]
    Data(DataCommand),
    /// List the devices of this machine that this program can use.
    ///
    /// Example: pauc-cli devices
    Devices(DevicesArgs),
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

/// What `run` and `sweep` train with, and where.
#[derive(Debug, ClapArgs)]
pub struct TrainingArgs {
    #[command(flatten)]
    pub change: RecipeArgs,
    /// The folder that runs are put into.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub out: PathBuf,
    /// The device: cpu, or cuda:0 where this program was built with the feature `cuda`; `devices` lists them.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
}

#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// The recipe files, trained one after the other.
    #[arg(required = true, value_name = "RECIPE")]
    pub recipes: Vec<PathBuf>,
    #[command(flatten)]
    pub training: TrainingArgs,
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
pub struct SweepArgs {
    /// The sweep file.
    pub sweep: PathBuf,
    #[command(flatten)]
    pub training: TrainingArgs,
    /// Train each combination once for each of these seeds, in place of the sweep's own.
    #[arg(long, value_delimiter = ',', value_name = "SEEDS")]
    pub seeds: Vec<u64>,
    /// How many runs are trained at a time; they share the threads.
    #[arg(long, default_value = "1", value_name = "N")]
    pub jobs: NonZeroUsize,
    /// Train again what has been trained already, replacing it.
    #[arg(long)]
    pub force: bool,
    /// Check every combination and print the table as it stands, without training.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the table as JSON, with every run.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ResumeArgs {
    /// The run's folder.
    pub run: PathBuf,
    /// The device; the one that the run was on if left out.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
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
    /// Do not look for the data's files: check sizes by what the authors of the dataset published.
    #[arg(long)]
    pub no_data: bool,
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
    /// The device whose memory is planned: cpu, or cuda:0 where this program was built with the feature `cuda`.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
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
    /// How concentrations are computed where the file gives `features` and `clusters.M` instead of them.
    #[arg(long, value_name = "RON", default_value = "(alpha: 10, temperature: 0.2)")]
    pub concentration: String,
    /// Where to write the gradients.
    #[arg(long, value_name = "FILE")]
    pub grads: Option<PathBuf>,
    /// Print value and chance level as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum New {
    /// A contrastive loss in one file, with its tests.
    ///
    /// Example: pauc-cli new term MyLoss --out src
    Term(NewTermArgs),
}

#[derive(Debug, ClapArgs)]
pub struct NewTermArgs {
    /// The term's name, in CamelCase.
    pub name: String,
    /// The folder that the file is put into.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub out: PathBuf,
}

/// Which run, and which images.
#[derive(Debug, ClapArgs)]
pub struct SavedArgs {
    /// The run's folder.
    pub run: PathBuf,
    /// The images to look at.
    #[arg(long, default_value = "test")]
    pub split: SplitName,
    /// Another dataset in place of the run's own, as a recipe writes it. Its images are normalised with the statistics of
    /// the run's own data.
    #[arg(long, value_name = "DATASET")]
    pub data: Option<String>,
    /// Take the momentum encoder instead of the online one.
    #[arg(long)]
    pub momentum: bool,
    /// Another checkpoint of the run than its last.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// The device: cpu, or cuda:0 where this program was built with the feature `cuda`; `devices` lists them.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
}

/// A split.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SplitName {
    /// The training split.
    Train,
    /// The test split.
    Test,
}

impl From<SplitName> for pauc::train::saved_run::Part {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::Train => Self::Train,
            SplitName::Test => Self::Test,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub struct EvalArgs {
    #[command(flatten)]
    pub of: SavedArgs,
    /// A probe, as a recipe writes it; may be given several times.
    #[arg(long, required = true, value_name = "PROBE")]
    pub probe: Vec<String>,
    /// Print the metrics as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct EmbedArgs {
    #[command(flatten)]
    pub of: SavedArgs,
    /// The file to write: .safetensors, .npy or (built with the feature `parquet`) .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The vectors of a .npy file.
    #[arg(long, default_value = "features")]
    pub vectors: VectorsName,
}

/// Vectors of an image.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum VectorsName {
    /// Before the projector.
    Features,
    /// Projector outputs as unit rows.
    Embeddings,
}

impl From<VectorsName> for pauc::train::embed::Vectors {
    fn from(name: VectorsName) -> Self {
        match name {
            VectorsName::Features => Self::Features,
            VectorsName::Embeddings => Self::Embeddings,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub struct CompareArgs {
    /// Folders of runs, or folders that hold the runs of several seeds. The first one's recipe is what the others are
    /// compared with.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// End with exit code 3 if the mean of any metric differs from the first recipe's by more than this.
    #[arg(long, value_name = "DIFFERENCE")]
    pub within: Option<pauc::traits::NonNegative>,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ReproduceArgs {
    /// The recipe file.
    pub recipe: PathBuf,
    #[command(flatten)]
    pub change: RecipeArgs,
    /// Another file of expectations than the recipe's own.
    #[arg(long, value_name = "FILE")]
    pub expected: Option<PathBuf>,
    /// The device: cpu, or cuda:0 where this program was built with the feature `cuda`; `devices` lists them.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Store what the recipe gives.
    #[arg(long)]
    pub update: bool,
    /// The folder that runs are put into.
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub out: PathBuf,
    /// Print the differences as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ExportArgs {
    /// The run's folder, or a checkpoint file.
    pub run: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Take the momentum encoder instead of the online one.
    #[arg(long)]
    pub momentum: bool,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// What to time instead of an encoder.
    #[command(subcommand)]
    pub what: Option<BenchCommand>,
    /// The encoder, as a recipe writes it.
    #[arg(long, default_value = "ResNet18(stem: Small, width: 64)")]
    pub encoder: String,
    /// Rows that pass the encoder in one step.
    #[arg(long, default_value = "64", value_name = "N")]
    pub batch: Count,
    /// Height and width of the images, in pixels.
    #[arg(long, default_value = "32", value_name = "N")]
    pub size: Count,
    /// What is timed: a training step without (`simclr`) or with (`moco`) momentum encoder and queue, or `inference`.
    #[arg(long, default_value = "simclr")]
    pub form: Form,
    /// The device: cpu, or cuda:0 where this program was built with the feature `cuda`; `devices` lists them.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// How long to repeat the step.
    #[arg(long, default_value = "5", value_name = "SECONDS")]
    pub seconds: Positive,
    #[command(flatten)]
    pub change: RecipeArgs,
    /// Also print the time of every layer.
    #[arg(long)]
    pub layers: bool,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The form of a timed step.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Form {
    /// Two views in one batch.
    Simclr,
    /// Queries against keys and a queue.
    Moco,
    /// Features only, in evaluation mode.
    Inference,
}

#[derive(Debug, ClapArgs)]
pub struct ClusterArgs {
    /// The features: a .safetensors, .npy, .csv or (built with the feature `parquet`) .parquet file.
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
    /// The tensor of a safetensors file, or the column of a Parquet file, that holds the features.
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
    /// The device: cpu, or cuda:0 where this program was built with the feature `cuda`; `devices` lists them.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Print objective, seconds of the fit alone, iterations, splits and metrics of each level as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct DevicesArgs {
    /// Print them as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct TailArgs {
    /// The run's folder.
    pub run: PathBuf,
    /// Print what is there now, and do not wait for more.
    #[arg(long)]
    pub no_follow: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ReportArgs {
    /// The runs' folders.
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Fetch a standard dataset from where its authors keep it. Needs a binary with the feature `download`.
    ///
    /// What an interruption left behind is continued; files have their names only once their checksums are right.
    ///
    /// Example: pauc-cli data fetch Cifar10 --root data/cifar10
    Fetch(FetchArgs),
    /// Read every image; with an index, compare with it. Exit code 4 if one cannot be read or anything changed.
    ///
    /// Example: pauc-cli data verify 'ImageFolder(root: "photos")'
    Verify(VerifyArgs),
    /// Write down what every image is, for `data verify` to compare with.
    ///
    /// Example: pauc-cli data index recipe.ron --out photos.index.json
    Index(IndexArgs),
    /// Count and measure: sizes, mean and deviation, classes, images that are there twice.
    ///
    /// Example: pauc-cli data stats 'Cifar10(root: "data/cifar10")'
    Stats(StatsArgs),
    /// Draw images with their views: evaluation first, then the random ones of an epoch.
    ///
    /// Example: pauc-cli data preview recipes/fashion-mini/simclr.ron --out views.png
    Preview(PreviewArgs),
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How many images a second are read, augmented and normalised.
    ///
    /// Example: pauc-cli bench data recipes/fashion-mini/simclr.ron --loader-threads 1,2
    Data(BenchDataArgs),
}

#[derive(Debug, ClapArgs)]
pub struct DataArgs {
    /// A recipe file, or a dataset as recipes write it (which has the default views).
    #[arg(value_name = "RECIPE|DATASET")]
    pub what: String,
    #[command(flatten)]
    pub change: RecipeArgs,
}

#[derive(Debug, ClapArgs)]
pub struct FetchArgs {
    /// The dataset: Mnist, FashionMnist, Cifar10, Cifar100 or Stl10.
    pub name: String,
    /// The folder to put it into.
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// The folder on another server that has the same files.
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// The index to compare with.
    #[arg(long, value_name = "FILE")]
    pub index: Option<PathBuf>,
    /// Print what was found as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct IndexArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Where to write the index.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct StatsArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Print the statistics as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct PreviewArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Where to write the picture.
    #[arg(long, value_name = "FILE", default_value = "preview.png")]
    pub out: PathBuf,
    /// How many images to show.
    #[arg(long, value_name = "N", default_value = "8")]
    pub images: NonZeroUsize,
    /// The epoch whose views are shown.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub epoch: u64,
}

#[derive(Debug, ClapArgs)]
pub struct BenchDataArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Numbers of loader threads to measure; 0 works on the thread that asks.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2")]
    pub loader_threads: Vec<usize>,
    /// How long to measure each.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub seconds: f64,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
}
