//! `postmortem.json`: what a run knew when a value became NaN or infinite.
//!
//! The run writes the evidence. [`causes`] explains it, [`story`] tells it in a few lines, and [`page`] shows it
//! in the report. Every field may be missing: earlier versions wrote fewer.

pub mod causes;
pub mod page;
pub mod story;

use pauc_traits::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::{Path, PathBuf};

/// The file in the folder of a run.
pub const FILE: &str = "postmortem.json";
/// The number of steps before the failed one that are told.
pub const STEPS: usize = 20;
/// The largest number of terms, parts of the network or causes that are told.
const MOST_ENTRIES: usize = 64;
/// The largest number of samples that are shown.
pub const SHOWN_SAMPLES: usize = 6;
/// The largest number of views of each that are shown.
pub const SHOWN_VIEWS: usize = 4;

/// A number that may be NaN or infinite. JSON has no such numbers, so they are written as `"NaN"`, `"inf"` and
/// `"-inf"`; `null` is read as NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Number(pub f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { s.serialize_f64(self.0) } else { s.collect_str(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
            Null,
        }
        Ok(Number(match Written::deserialize(d)? {
            Written::Number(value) => value,
            Written::Text(text) => text.parse().unwrap_or(f64::NAN),
            Written::Null => f64::NAN,
        }))
    }
}

/// Everything that is known about the failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Postmortem {
    /// The step that failed, counted from 1.
    pub step: u64,
    /// The steps of the whole run; 0 if unknown.
    pub total_steps: u64,
    /// The epoch of the step, with fractions.
    pub epoch: Option<f64>,
    /// What the run found to be NaN or infinite.
    pub what: String,
    /// Where it was found.
    pub place: Option<String>,
    /// Whether the failure was found between steps: in a probe, a clustering or a checkpoint.
    pub between_steps: bool,
    /// The first tensor, in the order of computation, that is NaN or infinite, if repeating the step found one.
    pub first: Option<FirstTensor>,
    /// The last steps, oldest first; the last one is the step that failed.
    pub steps: Vec<StepRecord>,
    /// The terms at the step that failed.
    pub terms: Vec<TermEvidence>,
    /// The parameters before that step, by part of the network.
    pub parameters: Vec<PartSize>,
    /// The settings of the recipe that the causes refer to.
    pub settings: Settings,
    /// The samples of the batch that stand out, at most [`SHOWN_SAMPLES`].
    pub suspects: Vec<Suspect>,
    /// Samples of the batch with values that are NaN or infinite.
    pub affected_samples: u64,
    /// What probably caused the failure, most likely first.
    pub causes: Vec<Cause>,
    /// The last checkpoint of a network that still learned.
    pub last_good: Option<GoodCheckpoint>,
    /// The newest checkpoint.
    pub newest_checkpoint: Option<PathBuf>,
    /// The ids of all samples of the batch.
    pub samples: Vec<u64>,
    /// The norms of the gradients of the steps before.
    pub gradient_norms: Vec<GradientNorm>,
    /// The file with the tensors of the failed batch.
    pub tensors: Option<String>,
}

/// The kinds of tensors, in the order in which a step computes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorKind {
    /// Normalized pixels of a view.
    Pixels,
    /// A parameter, before the step.
    Parameter,
    /// A running statistic: the activations that it summarizes.
    Statistic,
    /// Outputs of the encoder.
    Features,
    /// Outputs of the projector.
    Embeddings,
    /// Their squared lengths.
    SquaredLengths,
    /// Outputs of the predictor.
    Predictions,
    /// Embeddings by the momentum encoder.
    Keys,
    /// The value of a term.
    Term,
    /// The gradient of a term at the embeddings.
    TermGradient,
    /// The gradient of a parameter.
    Gradient,
    /// Anything else.
    #[default]
    #[serde(other)]
    Other,
}

/// A tensor with NaN or infinity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FirstTensor {
    /// Its kind.
    pub kind: TensorKind,
    /// Its name: that of a parameter or a term, or `view 0`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The index of the first element that is NaN or infinite.
    pub index: Vec<usize>,
    /// That element.
    pub value: Number,
    /// How many elements are NaN or infinite.
    pub non_finite: u64,
    /// The number of elements.
    pub elements: u64,
}

impl FirstTensor {
    /// Returns the tensor as a noun, without its values.
    pub fn noun(&self) -> String {
        let name = &self.name;
        match self.kind {
            TensorKind::Pixels => format!("the pixels of {name}"),
            TensorKind::Parameter => format!("the parameter {name}"),
            TensorKind::Statistic => format!("the running statistic {name}"),
            TensorKind::Features => format!("the features of {name}"),
            TensorKind::Embeddings => format!("the embeddings of {name}"),
            TensorKind::SquaredLengths => format!("the squared lengths of the embeddings of {name}"),
            TensorKind::Predictions => format!("the predictions of {name}"),
            TensorKind::Keys => format!("the keys of {name}"),
            TensorKind::Term => format!("the value of {name}"),
            TensorKind::TermGradient => format!("the gradient of {name} at the embeddings"),
            TensorKind::Gradient => format!("the gradient of {name}"),
            TensorKind::Other => name.clone(),
        }
    }

    /// Returns the tensor and what is wrong with it.
    pub fn sentence(&self) -> String {
        let (noun, value) = (self.noun(), self.value.0);
        match self.elements {
            0 | 1 => format!("{noun}: {value}"),
            elements => {
                let count = match self.non_finite {
                    n if n == elements => format!("all {elements} values"),
                    n => format!("{n} of {elements} values"),
                };
                format!("{noun}: {count}, the first at {:?} is {value}", self.index)
            }
        }
    }
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepRecord {
    /// The step, counted from 1.
    pub step: u64,
    /// The weighted sum of the terms; `None` if the step did not get there.
    pub loss: Option<Number>,
    /// The terms.
    pub terms: Vec<TermRecord>,
    /// The learning rate of the schedule.
    pub learning_rate: Option<f64>,
    /// The norm of the gradient before clipping; `None` if it was not computed.
    pub gradient_norm: Option<Number>,
    /// The same for each part of the network.
    pub gradient_by_part: Vec<PartNorm>,
    /// The spread of the embeddings of one view: 1 is uniform on the sphere, 0 is a single point.
    pub spread: Option<f64>,
    /// Their effective rank.
    pub rank: Option<f64>,
    /// The lengths of these embeddings before they are normalized.
    pub embedding_norms: Option<Lengths>,
}

/// A term at a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TermRecord {
    /// Its name.
    pub name: String,
    /// Its value before weighting.
    pub value: Number,
    /// Its weight.
    pub weight: f64,
    /// Its temperature, if it has one that the recipe gives.
    pub temperature: Option<f64>,
}

/// The norm of the gradient of a part of the network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartNorm {
    /// The part, such as `encoder.layer1`, `projector`, or the name of a term.
    pub part: String,
    /// The norm.
    pub norm: Number,
}

/// Lengths of vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lengths {
    /// The shortest.
    pub least: Number,
    /// The mean.
    pub mean: Number,
    /// The longest.
    pub most: Number,
}

/// The parameters of a part of the network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartSize {
    /// The part.
    pub part: String,
    /// Their norm.
    pub norm: Number,
    /// The largest absolute value.
    pub largest: Number,
    /// The parameter that has it.
    pub largest_in: String,
}

/// A term at the step that failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TermEvidence {
    /// Its name.
    pub name: String,
    /// Its value before weighting.
    pub value: Number,
    /// The norm of its gradient at the embeddings, times its weight.
    pub gradient_norm: Number,
    /// The temperature that divides cosines, if it has one.
    pub temperature: Option<f64>,
    /// The path of the temperature in the recipe.
    pub temperature_path: Option<String>,
    /// The largest absolute cosine of two embeddings of the first views, divided by the temperature.
    pub largest_logit: Option<Number>,
}

/// Settings of the recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The optimizer.
    pub optimizer: String,
    /// Its learning rate, before the schedule.
    pub learning_rate: Option<f64>,
    /// The norm at which gradients are clipped.
    pub clip_gradient: Option<f64>,
    /// The steps of the warm-up.
    pub warmup_steps: u64,
    /// The device.
    pub device: String,
    /// The precision of matrix products on a GPU; `None` on the CPU.
    pub precision: Option<String>,
}

/// A sample that stands out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suspect {
    /// Its index in the training split.
    pub id: u64,
    /// Its row in the batch.
    pub row: u64,
    /// Its label.
    pub label: Option<u32>,
    /// The name of its class.
    pub class: Option<String>,
    /// Its name in the dataset, such as a path.
    pub name: String,
    /// Why it stands out.
    pub why: String,
    /// Whether one of its views is an image of a single color.
    pub constant: bool,
    /// The number of its views that are shown.
    pub views: usize,
}

impl Suspect {
    /// Returns its label and the name of its class, if it has one.
    pub fn class_text(&self) -> Option<String> {
        let label = self.label?;
        Some(match &self.class {
            Some(class) if *class != label.to_string() => format!("class {label}, {class}"),
            _ => format!("class {label}"),
        })
    }
}

/// The kinds of causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// The data has values that are not finite, or a sample that the network cannot handle.
    Data,
    /// A temperature is so small that its quotients overflow.
    Temperature,
    /// A term computes NaN from finite inputs.
    Term,
    /// The network had stopped learning long before.
    DeadNetwork,
    /// The learning rate is far too high.
    LearningRate,
    /// The gradient grew from step to step.
    GrowingGradient,
    /// The precision of the GPU's matrix products has too small a range.
    Precision,
    /// Anything else.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A probable cause.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// Its kind.
    pub kind: CauseKind,
    /// The cause in a few words.
    pub title: String,
    /// The evidence, with its numbers.
    pub evidence: String,
    /// What to try.
    pub remedies: Vec<Remedy>,
}

/// Something to try.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remedy {
    /// Changes to the recipe, as `--set` takes them; empty for anything else.
    pub set: Vec<String>,
    /// What it does.
    pub text: String,
    /// Whether it has to start over, because the checkpoints of the run are no good either.
    pub start_over: bool,
}

/// A checkpoint of a network that still learned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GoodCheckpoint {
    /// Its file.
    pub path: PathBuf,
    /// Its step.
    pub step: Option<u64>,
}

/// The norm of a step's gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GradientNorm {
    /// The step, counted from 1.
    pub step: u64,
    /// The norm.
    pub norm: Number,
}

impl Postmortem {
    /// Reads the postmortem in the folder of a run, if there is one.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not one, [`Error::Io`] if it cannot be read.
    pub fn read(run: &Path) -> Result<Option<Self>> {
        let path = run.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let damaged = |e| Error::damaged(&path, format!("not a postmortem: {e}; delete the file"));
        Self::parse(&text).map(Some).map_err(damaged)
    }

    /// Parses the text of a `postmortem.json`.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str::<Self>(text).map(Self::completed)
    }

    /// Fills in what earlier versions did not write, and leaves out what none writes.
    fn completed(mut self) -> Self {
        if self.steps.is_empty() {
            let record = |n: &GradientNorm| StepRecord {
                step: n.step,
                gradient_norm: Some(n.norm),
                ..StepRecord::default()
            };
            self.steps = self.gradient_norms.iter().map(record).collect();
        }
        self.steps.drain(..self.steps.len().saturating_sub(STEPS + 1));
        for step in &mut self.steps {
            step.terms.truncate(MOST_ENTRIES);
            step.gradient_by_part.truncate(MOST_ENTRIES);
        }
        self.suspects.truncate(SHOWN_SAMPLES);
        self.causes.truncate(MOST_ENTRIES);
        self
    }

    /// Returns what failed and when, without a full stop.
    pub fn headline(&self) -> String {
        let of = if self.total_steps > 0 { format!(" of {}", self.total_steps) } else { String::new() };
        let when = match self.between_steps {
            true => format!("after step {}{of}", self.step.saturating_sub(1)),
            false => format!("at step {}{of}", self.step),
        };
        let value = self.first.as_ref().filter(|f| f.kind == TensorKind::Term).map(|f| f.value.0);
        let became = match value {
            Some(value) if value.is_nan() => "became NaN",
            Some(_) => "became infinite",
            None => "is not finite",
        };
        format!("{} {became} {when}", self.what)
    }

    /// Returns what to try for all causes, each once.
    pub fn remedies(&self) -> Vec<&Remedy> {
        let mut all: Vec<&Remedy> = Vec::new();
        for remedy in self.causes.iter().flat_map(|c| &c.remedies) {
            if !all.contains(&remedy) {
                all.push(remedy);
            }
        }
        all
    }

    /// Returns the records of the steps before the one that failed.
    pub fn before(&self) -> &[StepRecord] {
        match self.steps.split_last() {
            Some((last, before)) if last.step >= self.step => before,
            _ => &self.steps,
        }
    }

    /// Returns the name of the file with a picture of a sample in the folder of the run; `view` is `None` for the
    /// image as the dataset has it. Names follow from numbers, so that the file cannot name any other file.
    pub fn picture(sample: usize, view: Option<usize>) -> String {
        match view {
            Some(view) => format!("figures/postmortem-{sample}-view{view}.png"),
            None => format!("figures/postmortem-{sample}-image.png"),
        }
    }
}
