//! A recipe: the description of a whole experiment in one file.

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::progress::{Keep, StopEarly};
use crate::recipe_text::{self, SetError};
use pauc_cluster::ConcentrationKind;
use pauc_data::ViewSpec;
use pauc_models::ema::MomentumConfig;
use pauc_models::heads::HeadConfig;
use pauc_models::schedule::LrSchedule;
use pauc_models::{BuildOptions, DeviceOptions, Precision};
use pauc_traits::backend::{PortableEncoder, PortableOptimizer};
use pauc_traits::component_ron::{Term, options};
use pauc_traits::schedule::Clock;
use pauc_traits::term::Severity;
use pauc_traits::{
    Clusterer, Configured, Count, Dataset, DecayFactor, NonNegative, Positive, Probe, Scheduled,
    TrainingSpan, component,
};
use serde::{Deserialize, Serialize};
use std::path::Path;

component! {
    /// A whole experiment: data, views, networks, objective, clustering, optimization and evaluation.
    ///
    /// Fields that are left out have the defaults shown here. Nothing is inherited or merged;
    /// `pauc-cli explain recipe.ron` prints the resolved recipe.
    pub struct Recipe {
        /// The version of the recipe language; this is version 1.
        pub version: Version = Version,
        /// The experiment's name, used for its folder: letters, digits, `-`, `_` and `.`.
        pub name: Name,
        /// The dataset.
        pub data: Configured<dyn Dataset> = default("FashionMini()"),
        /// The random views of each image; the first `count` of the first entry are views 0, 1, …. If a recipe leaves
        /// them out, they follow the size and the colors of its images; those shown are for 28 pixels.
        pub views: Vec<ViewSpec> = default("[(count: 2, ops: [RandomResizedCrop(size: 28, scale: (0.3, 1.0)), HorizontalFlip(p: 0.5)])]"),
        /// The network from images to features. If a recipe leaves it out, it follows the size of the views: that shown
        /// up to 64 pixels, `ResNet18(width: 32)` for larger ones.
        pub encoder: Configured<dyn PortableEncoder> = default("ResNet18(stem: Small, width: 16)"),
        /// A file of weights that the encoder starts from; none: random weights.
        pub encoder_weights: Option<StartWeights> = None,
        /// Parts of the encoder that keep their weights: parameters or layers, such as `"conv1"` or
        /// `"layer1"`. Running statistics of frozen layers are still updated.
        pub frozen: Vec<String> = Vec::new(),
        /// The network from features to embeddings; not used after training.
        pub projector: HeadConfig = default("Mlp(dims: [256, 128])"),
        /// The network from embeddings to predictions of keys, for terms that predict; its last width is the projector's.
        pub predictor: Option<HeadConfig> = None,
        /// The momentum encoder, a moving average of encoder and projector that computes the keys; none: keys
        /// come from the other view.
        pub momentum_encoder: Option<MomentumConfig> = None,
        /// The number of past keys to keep as negatives; needs a momentum encoder. If a recipe leaves it out and a term
        /// reads the queue, it follows the number of images.
        pub queue: Option<Count> = None,
        /// The clusterer of the training set's embeddings.
        pub clusterer: Option<Configured<dyn Clusterer>> = None,
        /// How the concentration φ of a prototype is computed.
        pub concentration: Concentration = Concentration::default(),
        /// The terms whose weighted sum is minimized.
        pub objective: Vec<WeightedTerm>,
        /// The optimizer.
        pub optimizer: Configured<dyn PortableOptimizer> = default("Sgd(lr: 0.06, momentum: 0.9, weight_decay: 5e-4)"),
        /// Factors on the learning rate of single parts. If several parts match a parameter, the longest
        /// wins.
        pub lr_scale: Vec<LrScale> = Vec::new(),
        /// The factor between the learning rates of adjacent layers of the encoder: the last one and the heads have the
        /// whole rate, the one before it this fraction, and so on. BEiT fine-tunes with 0.65. Multiplies `lr_scale`.
        #[added_in("0.3")]
        pub layer_decay: DecayFactor = DecayFactor::lit(1.0),
        /// The learning rate over the run.
        pub schedule: LrSchedule = default("WarmupCosine(warmup: Epochs(1))"),
        /// Length, batch and seed.
        pub train: TrainConfig = TrainConfig::default(),
        /// The probes to run during training.
        pub probes: Vec<Configured<dyn Probe>> = Vec::new(),
        /// What else to measure with the accuracy probes, before training.
        pub baselines: Vec<Baseline> = Vec::new(),
    }
}

component! {
    /// Weights from a safetensors file of F32, F16 or BF16: one written by `pauc-cli export`, a checkpoint, or one
    /// from PyTorch with torchvision's or timm's names; or a folder of timm or transformers with such a file.
    ///
    /// Stems are adapted to gray and RGB images, and the positions of a vision transformer to another number of
    /// patches, as in timm. A warning lists what was adapted and what was left out.
    pub struct StartWeights {
        /// The file, or the folder with `model.safetensors` and `config.json`.
        pub path: std::path::PathBuf,
        /// The prefix of the encoder's names in the file, such as `"encoder."` in a checkpoint.
        pub prefix: String = String::new(),
        /// Prefixes of tensors in the file that do not belong to the encoder; by default torchvision's and timm's
        /// classifiers.
        pub except: Vec<String> = ["fc.", "head.weight", "head.bias", "head.fc."].map(String::from).to_vec(),
    }
}

component! {
    /// A factor on the learning rate of some parameters.
    pub struct LrScale {
        /// The parameters: a layer such as `"encoder.layer1"`, `"projector"`, `"predictor"`, or a term's name
        /// for the parameters of the term.
        pub part: String,
        /// The factor; to keep a part fixed, use `frozen`.
        pub factor: Positive,
    }
}

component! {
    /// A term, its weight and its start.
    pub struct WeightedTerm {
        /// A contrastive loss or a regularizer.
        pub term: Term,
        /// Its factor in the sum.
        pub weight: Scheduled<NonNegative> = NonNegative::lit(1.0).into(),
        /// The start. Terms that read prototypes also wait for the first clustering.
        pub from: TrainingSpan = TrainingSpan::Steps(0),
    }
}

component! {
    /// PCL's concentration φ of a prototype: mean distance of its members over ln(members + α), rescaled so that
    /// the mean over prototypes is the temperature.
    pub struct Concentration {
        /// What has a φ of its own: PerPrototype as in PCL, PerLevel (the prototypes of a level share the
        /// mean), or Constant.
        pub kind: ConcentrationKind = ConcentrationKind::PerPrototype,
        /// Smoothing α of small clusters.
        pub alpha: Positive = Positive::lit(10.0),
        /// The mean of φ over prototypes: the temperature of prototype softmaxes. A schedule is evaluated at
        /// every step, also between clusterings.
        pub temperature: Scheduled<Positive> = Positive::lit(0.2).into(),
    }
}

/// Where the terms of a run on a GPU are evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terms {
    /// On the device of the encoder.
    #[default]
    Gpu,
    /// On the CPU, from a copy of the embeddings.
    Host,
}

component! {
    /// GPU settings. A run on the CPU ignores them: it computes in F32 and is deterministic.
    pub struct CudaConfig {
        /// Precision of matrix products in encoders and heads: Tf32, tensor cores with 11 significant bits;
        /// F32, nearly as on the CPU and several times slower; or Bf16, with which convolutional networks
        /// also store feature maps in 16 bits.
        pub precision: Precision = Precision::Tf32,
        /// Where terms are evaluated: Gpu, or Host. Small batches are often faster on the host.
        pub terms: Terms = Terms::Gpu,
        /// Activation checkpointing: recomputes the outputs of normalization and ReLU in the backward pass,
        /// instead of keeping them. Less memory, more time.
        pub recompute: bool = false,
        /// Makes every run on the same GPU give the same bits. Terms are evaluated on the CPU, since dfdx's
        /// sums on a GPU have no fixed order; encoders made of plain dfdx operations are refused.
        pub deterministic: bool = false,
    }
}

/// The images over which batch normalization takes its statistics, if a batch has shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BatchNormStatistics {
    /// The images of a shard.
    #[default]
    PerShard,
    /// All images of the batch.
    Synced,
}

component! {
    /// Length, batch and seed of a run.
    pub struct TrainConfig {
        /// Epochs.
        pub epochs: Count = Count::lit(20),
        /// Images per batch. An incomplete last batch of an epoch is dropped.
        pub batch: Count = Count::lit(256),
        /// Images whose activations are in memory at once; none: the whole batch. Terms always see the whole
        /// batch: the network runs once to embed it, and once more to differentiate each micro-batch.
        pub micro_batch: Option<Count> = None,
        /// The equal parts into which the images of a batch are divided for the networks, a power of two. Each shard
        /// has its own batch statistics and its own sum of gradients, and all of these sums form a binary tree.
        /// Terms see the whole batch.
        #[added_in("0.3")]
        pub shards: Count = Count::lit(1),
        /// The images over which batch normalization takes its statistics, with `shards`: those of a shard (PerShard)
        /// or of the whole batch (Synced). With Synced, the shards change the result only by rounding, and the
        /// activations of all of them are kept.
        #[added_in("0.3")]
        pub batch_norm: BatchNormStatistics = BatchNormStatistics::PerShard,
        /// Batches whose gradients are averaged for one optimizer step. Terms see one batch at a time, so
        /// this does not add negatives; see `micro_batch` for that.
        pub accumulate: Count = Count::lit(1),
        /// The random seed.
        pub seed: u64 = 0,
        /// The largest norm of the whole gradient; none: no clipping.
        pub clip_gradient: Option<Positive> = None,
        /// Optimizer steps between two lines of the log.
        pub log_every: Count = Count::lit(10),
        /// Whether each line of the log includes the gradient of every term at the embeddings: its norm, its cosine
        /// with those of the other terms, and the norm of the sum. It shows which terms pull how strongly, and which
        /// work against each other. Costs one more backward pass per term, from the loss to the embeddings, at logged
        /// steps only, and does not change the run.
        pub term_gradients: bool = false,
        /// The interval between checkpoints; also within epochs, such as `Steps(500)`.
        pub checkpoint_every: TrainingSpan = TrainingSpan::epochs(5),
        /// Which checkpoints to keep.
        pub keep: Keep = Keep::default(),
        /// Early stopping; none: never.
        pub stop_early: Option<StopEarly> = None,
        /// GPU settings.
        pub cuda: CudaConfig = CudaConfig::default(),
    }
}

impl TrainConfig {
    /// Returns the options that networks are built with.
    pub fn build_options(&self) -> BuildOptions {
        let CudaConfig { precision, recompute, .. } = self.cuda;
        BuildOptions { seed: self.seed, device: DeviceOptions { precision, recompute } }
    }

    /// Returns the number of images in a shard of the batch.
    pub fn shard(&self) -> usize {
        self.batch.get() / self.shards.get()
    }

    /// Returns the number of images per optimizer step.
    pub fn images_per_step(&self) -> usize {
        self.batch.get().saturating_mul(self.accumulate.get())
    }
}

impl Concentration {
    /// Parses a concentration as a recipe writes it.
    ///
    /// # Errors
    /// If the text is not a concentration.
    pub fn parse(text: &str) -> Result<Self, ron::error::SpannedError> {
        options().from_str(text)
    }

    /// Returns the temperature at a step.
    pub fn now(&self, clock: &Clock) -> f64 {
        self.temperature.at(clock)
    }
}

/// A representation that the accuracy probes also measure, for comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Baseline {
    /// The encoder with its initial weights.
    RandomInit,
    /// The pixels of the evaluation view.
    RawPixels,
}

/// The version of the recipe language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Version;

impl TryFrom<u32> for Version {
    type Error = String;
    fn try_from(v: u32) -> Result<Self, String> {
        if v == 1 {
            Ok(Version)
        } else {
            Err(format!("must be 1, the only version of recipes so far, got {v}"))
        }
    }
}

impl From<Version> for u32 {
    fn from(_: Version) -> u32 {
        1
    }
}

/// A name that is also valid for a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = String;
    fn try_from(v: String) -> Result<Self, String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !v.is_empty() && v.len() <= 100 && v.chars().all(fine) && !v.starts_with('.') {
            Ok(Name(v))
        } else {
            Err(format!(
                "must be 1 to 100 letters, digits, `-`, `_` or `.`, not starting with `.`, got {v:?}"
            ))
        }
    }
}

impl From<Name> for String {
    fn from(v: Name) -> String {
        v.0
    }
}

impl std::ops::Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// Parses a default that is written like a recipe.
///
/// # Panics
/// If the text does not parse, which a test of all defaults rules out.
fn default<T: for<'de> Deserialize<'de>>(text: &str) -> T {
    options().from_str(text).unwrap_or_else(|e| panic!("default `{text}`: {e}"))
}

/// A recipe's text and its origin.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path, for messages.
    pub path: String,
    /// The text of the file.
    pub original: String,
    /// The text after the `--set` changes.
    pub text: String,
}

impl Recipe {
    /// Reads a recipe file and applies `--set` assignments.
    ///
    /// # Errors
    /// [`LoadError::File`] if the file cannot be read, [`LoadError::Recipe`] if its text is not a recipe.
    pub fn load(path: &Path, set: &[String]) -> Result<(Recipe, Source), LoadError> {
        let text = recipe_text::read(path)
            .map_err(|source| LoadError::File { path: path.display().to_string(), source })?;
        Self::parse(&path.display().to_string(), &text, set).map_err(LoadError::Recipe)
    }

    /// Parses a recipe.
    ///
    /// # Errors
    /// The mistakes, with their positions in the text.
    pub fn parse(path: &str, original: &str, set: &[String]) -> Result<(Recipe, Source), Diagnostics> {
        let fail =
            |text: &str, d: Diagnostic| Diagnostics { text: text.into(), path: path.into(), all: vec![d] };
        let mut text = original.to_string();
        // Report errors of the file itself before those of assignments to it.
        let read = |text: &str| {
            options().from_str::<Recipe>(text).map_err(|e| fail(text, Diagnostic::from_ron(text, &e)))
        };
        if recipe_text::parse(&text).is_none() {
            read(&text)?;
        }
        for assignment in set {
            let assigned = recipe_text::set(&with_default(&text, assignment), assignment);
            text = assigned.map_err(|error| not_assigned(assignment, &error))?;
        }
        let recipe = read(&text)?;
        Ok((recipe, Source { path: path.into(), original: original.into(), text }))
    }

    /// Returns the recipe with every default written out, except for those of fields that were added to a component
    /// after its first release.
    ///
    /// # Errors
    /// If a plugin's component cannot be serialized.
    pub fn resolved(&self) -> Result<String, ron::Error> {
        let pretty = ron::ser::PrettyConfig::new().depth_limit(2).separate_tuple_members(false);
        options().to_string_pretty(self, pretty).map(|text| format!("Recipe{text}\n"))
    }

    /// Returns the first eight hexadecimal digits of the BLAKE3 hash of the resolved recipe without its seed,
    /// so that runs that differ only in their seed have the same hash.
    ///
    /// # Errors
    /// As [`Recipe::resolved`].
    pub fn hash(&self) -> Result<String, ron::Error> {
        let mut seedless = self.clone();
        seedless.train.seed = 0;
        Ok(blake3::hash(seedless.resolved()?.as_bytes()).to_hex()[..8].to_string())
    }

    /// Returns the factor on the learning rate of the named parameter.
    pub fn lr_scale_of(&self, parameter: &str) -> f64 {
        let fitting = self.lr_scale.iter().filter(|s| belongs(parameter, &s.part));
        fitting.max_by_key(|s| s.part.len()).map_or(1.0, |s| s.factor.get())
    }

    /// Returns the number of views of each image.
    pub fn view_count(&self) -> usize {
        self.views.iter().map(|v| v.count.get()).fold(0, usize::saturating_add)
    }
}

/// Reports an assignment that cannot be applied; its place is in the assignment.
fn not_assigned(assignment: &str, error: &SetError) -> Diagnostics {
    let help = error.help();
    let mut found = Diagnostic::at(Severity::Error, "E0107", None, "", error.to_string(), help);
    found.span = Some(error.span(assignment));
    Diagnostics { text: assignment.into(), path: "the assignment".into(), all: vec![found] }
}

/// Writes out the default of the component or list that an assignment changes in part, if the text leaves it out:
/// `optimizer.lr=0.1` needs to know which optimizer, `views[0].count=4` which views.
fn with_default(text: &str, assignment: &str) -> String {
    let unchanged = || text.to_string();
    let path = assignment.split_once('=').map_or("", |(path, _)| path.trim());
    let Some((name, _)) = path.split_once(['.', '[']) else { return unchanged() };
    let is_left_out = recipe_text::parse(text).is_some_and(|root| recipe_text::find(&root, name).is_none());
    let field = Recipe::FIELDS.iter().find(|f| f.name == name);
    let default = field.and_then(|f| f.default).map(|default| default());
    match default.filter(|d| is_left_out && !d.starts_with('(') && d != "None") {
        Some(default) => recipe_text::set(text, &format!("{name}={default}")).unwrap_or_else(|_| unchanged()),
        None => unchanged(),
    }
}

/// Returns whether the dotted name of a parameter or a path is `part` or below it.
pub(crate) fn belongs(name: &str, part: &str) -> bool {
    name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Why a recipe could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the recipe {path}: {source}")]
    File {
        /// Its path.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The text is not a recipe.
    #[error(transparent)]
    Recipe(Diagnostics),
}
