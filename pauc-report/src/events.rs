//! What a run writes into `metrics.jsonl`: one JSON object a line, tagged by `"event"`.
//!
//! The writer and every reader share these types. Numbers that are not finite are written as `null`. Readers
//! survive a last line that a crash cut off, lines of kinds that they do not know, and fields that they do not know.

use pauc_traits::probe::MetricKind;
use pauc_traits::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Non-finite numbers as `null`, which reads back as NaN.
mod nullable {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
        if v.is_finite() { s.serialize_f64(*v) } else { s.serialize_none() }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
    }
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Optimizer steps, every one or every few.
    Step(Step),
    /// The gradients of single terms at the embeddings.
    Gradients(Gradients),
    /// A clustering of the training split.
    Clustering(Clustering),
    /// Probes of a representation.
    Probe(Probe),
    /// Whether anything is learnt, after each epoch.
    Health(Health),
    /// Where the time of an epoch went.
    Stages(Stages),
    /// A stretch of training begins.
    Phase(Phase),
    /// Something the user should know.
    Warning(Warning),
    /// The process ends, whichever way.
    End(End),
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The state of training after an optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with fraction.
    pub epoch: f64,
    /// The learning rate.
    #[serde(with = "nullable")]
    pub lr: f64,
    /// The objective: the weighted sum of the terms.
    #[serde(with = "nullable")]
    pub loss: f64,
    /// The terms in the recipe's order; terms that have not started are left out or have weight 0.
    pub terms: Vec<Term>,
    /// The length of the gradient of all parameters, before clipping.
    #[serde(with = "nullable")]
    pub grad_norm: f64,
    /// Throughput: training images (not views) a second.
    #[serde(with = "nullable")]
    pub images_per_second: f64,
}

/// One term of the objective at one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// Its name; a recipe that uses a component twice has to make the names differ.
    pub name: String,
    /// Its value before weighting; `None` where it was not computed or is not finite.
    pub value: Option<f64>,
    /// Its weight.
    #[serde(with = "nullable")]
    pub weight: f64,
    /// The value it has for a representation that has learnt nothing, where one is known.
    pub chance: Option<f64>,
    /// Whether the batch did not allow it to be computed.
    pub skipped: bool,
}

/// Which terms pull the embeddings where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gradients {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with fraction.
    pub epoch: f64,
    /// The active terms in the recipe's order.
    pub terms: Vec<TermGradient>,
}

/// One term's gradient at the unit embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermGradient {
    /// The term's name.
    pub name: String,
    /// The length of the weighted gradient over the batch.
    #[serde(with = "nullable")]
    pub norm: f64,
    /// The cosines with the gradients of the terms before it in the list: below 0, the two fight.
    pub cosines: Vec<f64>,
}

/// A clustering of the training split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clustering {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// How long it took, features included.
    #[serde(with = "nullable")]
    pub seconds: f64,
    /// Level by level.
    pub levels: Vec<ClusterLevel>,
}

/// One level of a clustering.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterLevel {
    /// The share of samples whose prototype does not continue the one from the clustering before (Hungarian matching).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn: Option<f64>,
    /// The number of prototypes.
    pub k: u64,
    /// Σ‖x − c‖² at the end.
    #[serde(with = "nullable")]
    pub objective: f64,
    /// K·Σ size²/n²: 1 when all prototypes have the same size.
    #[serde(with = "nullable")]
    pub imbalance: f64,
    /// Prototypes without samples.
    pub empty: u64,
    /// Empty prototypes refilled by splitting a large one.
    pub splits: u64,
    /// The mean concentration φ.
    #[serde(with = "nullable")]
    pub concentration_mean: f64,
    /// The smallest concentration φ.
    #[serde(with = "nullable")]
    pub concentration_min: f64,
    /// The largest concentration φ.
    #[serde(with = "nullable")]
    pub concentration_max: f64,
}

/// What a probe looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The representation being trained.
    Trained,
    /// The same network before the first step.
    RandomInit,
    /// The pixels themselves.
    RawPixels,
}

/// The results of probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// How long it took.
    #[serde(with = "nullable")]
    pub seconds: f64,
    /// What was probed.
    pub subject: Subject,
    /// The metrics.
    pub metrics: Vec<Metric>,
}

/// A number with the protocol in its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredMetric")]
pub struct Metric {
    /// What was measured and how, such as `knn/cos/k20/t0.07`.
    pub name: String,
    /// The value; accuracies are fractions.
    #[serde(with = "nullable")]
    pub value: f64,
    /// What readers do with it. Where a file does not say, its name tells: [`MetricKind::of_stored_name`].
    pub kind: MetricKind,
}

/// A metric as a file may hold it.
#[derive(Deserialize)]
struct StoredMetric {
    name: String,
    #[serde(with = "nullable")]
    value: f64,
    kind: Option<MetricKind>,
}

impl From<StoredMetric> for Metric {
    fn from(m: StoredMetric) -> Self {
        let kind = m.kind.unwrap_or_else(|| MetricKind::of_stored_name(&m.name));
        Metric { name: m.name, value: m.value, kind }
    }
}

impl From<pauc_traits::probe::Metric> for Metric {
    fn from(m: pauc_traits::probe::Metric) -> Self {
        Metric { name: m.name, value: m.value, kind: m.kind }
    }
}

/// Whether anything is learnt: the terms over an epoch, and the embeddings of its last batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// The terms of the epoch's last step.
    pub terms: Vec<TermMean>,
    /// √D times the mean over dimensions of the standard deviation of unit embeddings: 1 is uniform on the sphere, 0 one
    /// point.
    #[serde(with = "nullable")]
    pub spread: f64,
    /// RankMe of the embeddings: the exponential of the entropy of their singular values.
    #[serde(with = "nullable")]
    pub rank: f64,
}

/// A term over an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermMean {
    /// The term's name.
    pub name: String,
    /// The mean of its values, before weighting.
    #[serde(with = "nullable")]
    pub mean: f64,
    /// The value it has for a representation that has learnt nothing, where one is known.
    pub chance: Option<f64>,
    /// How many epochs in a row the mean has been within a hundredth of chance, or worse than it.
    pub epochs_at_chance: u64,
    /// Whether it is a regularizer, which may rightly stay there while the losses move.
    #[serde(default)]
    #[serde(alias = "regulariser")]
    pub regularizer: bool,
}

impl TermMean {
    /// Whether it is a loss that has taught nothing for at least so many epochs.
    pub fn is_stuck(&self, epochs: u64) -> bool {
        !self.regularizer && self.epochs_at_chance >= epochs
    }
}

/// Where the time of an epoch's steps went; of an epoch that was interrupted, those since it was continued.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// The time of the steps, without probes, clustering and checkpoints.
    #[serde(with = "nullable")]
    pub seconds: f64,
    /// Training images (not views) a second of that time.
    #[serde(with = "nullable")]
    pub images_per_second: f64,
    /// The parts of a step; `data` is waiting for the loader.
    pub stages: Vec<StageTime>,
    /// The most memory the process has held since it began, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// What the loader's threads did meanwhile, beside the steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<LoaderTime>,
}

/// The work of a loader's threads, added up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoaderTime {
    /// Images that were prepared, all their views each.
    pub images: u64,
    /// Seconds of reading and decoding.
    #[serde(with = "nullable")]
    pub read: f64,
    /// Seconds of augmentations.
    #[serde(with = "nullable")]
    pub augment: f64,
    /// Seconds of normalization.
    #[serde(rename = "normalise", with = "nullable")]
    pub normalize: f64,
}

impl LoaderTime {
    /// The parts of the work with their seconds.
    pub fn parts(&self) -> [(&'static str, f64); 3] {
        [("read", self.read), ("augment", self.augment), ("normalise", self.normalize)]
    }

    /// Images a second of one thread that does nothing else.
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / (self.read + self.augment + self.normalize).max(1e-9)
    }
}

/// The time of one stage, over an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// The stage.
    pub name: String,
    /// Its time.
    #[serde(with = "nullable")]
    pub seconds: f64,
}

/// A stretch of training begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Optimizer steps done.
    pub step: u64,
    /// Its name, such as `warm-up` or `prototypes`.
    pub name: String,
    /// What it means, in one sentence.
    pub text: String,
}

/// Something the user should know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// Optimizer steps done.
    pub step: u64,
    /// What, and what to do about it.
    pub text: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All steps are done.
    Finished,
    /// Stopped from outside, with a checkpoint.
    Interrupted,
    /// Stopped by an error.
    Failed,
}

/// The process ends. A resumed run has several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Optimizer steps done.
    pub step: u64,
    /// Wall time of this process.
    #[serde(with = "nullable")]
    pub seconds: f64,
    /// How it ended.
    pub status: Status,
}

/// The lines of a `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// The events that could be read, in the order of the file.
    pub events: Vec<Event>,
    /// The numbers, from 1, of lines before the last that are no events.
    pub damaged: Vec<usize>,
}

impl Log {
    /// Takes the text of a `metrics.jsonl` apart. A last line without its line break was cut off by a crash, and is
    /// left out if it does not read; lines of unknown kinds are left out.
    pub fn parse(text: &str) -> Log {
        let mut log = Log::default();
        let lines = text.split_inclusive('\n').enumerate();
        for (i, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(Event::Unknown) => {}
                Ok(event) => log.events.push(event),
                Err(_) if !line.ends_with('\n') => {}
                Err(_) => log.damaged.push(i + 1),
            }
        }
        log
    }

    /// Reads a `metrics.jsonl`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(path: &Path) -> Result<Log> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Ok(Log::parse(&String::from_utf8_lossy(&bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> Event {
        Event::Step(Step {
            step: 12,
            epoch: 0.5,
            lr: 0.06,
            loss: f64::NAN,
            terms: vec![Term {
                name: "InfoNce".into(),
                value: Some(f64::INFINITY),
                weight: 1.0,
                chance: None,
                skipped: false,
            }],
            grad_norm: 3.25,
            images_per_second: f64::INFINITY,
        })
    }

    #[test]
    fn the_written_form_is_the_documented_one() {
        assert_eq!(
            serde_json::to_string(&step()).unwrap(),
            r#"{"event":"step","step":12,"epoch":0.5,"lr":0.06,"loss":null,"terms":[{"name":"InfoNce","value":null,"#
                .to_string()
                + r#""weight":1.0,"chance":null,"skipped":false}],"grad_norm":3.25,"images_per_second":null}"#
        );
        let metrics = vec![pauc_traits::probe::Metric::accuracy("knn/cos/k20/t0.07", 0.8).into()];
        let probe = Probe { step: 3, epoch: 1.0, seconds: 0.5, subject: Subject::RawPixels, metrics };
        assert_eq!(
            serde_json::to_string(&Event::Probe(probe)).unwrap(),
            r#"{"event":"probe","step":3,"epoch":1.0,"seconds":0.5,"subject":"raw_pixels","#.to_string()
                + r#""metrics":[{"name":"knn/cos/k20/t0.07","value":0.8,"kind":"accuracy"}]}"#
        );
        let end = Event::End(End { step: 9, seconds: 1.5, status: Status::Interrupted });
        assert_eq!(
            serde_json::to_string(&end).unwrap(),
            r#"{"event":"end","step":9,"seconds":1.5,"status":"interrupted"}"#
        );
    }

    #[test]
    fn metrics_of_files_without_kinds_have_those_of_their_names() {
        let read = |text: &str| serde_json::from_str::<Metric>(text).unwrap();
        let written = read(r#"{"name":"mine","value":0.8,"kind":"accuracy"}"#);
        assert_eq!((written.value, written.kind), (0.8, MetricKind::Accuracy));
        let named = read(r#"{"name":"knn/cos/k20/t0.07","value":null}"#);
        assert!(named.value.is_nan() && named.kind == MetricKind::Accuracy);
        assert_eq!(read(r#"{"name":"mine","value":0.8}"#).kind, MetricKind::Quantity);
    }

    #[test]
    fn events_round_trip_and_null_reads_as_not_finite() {
        let text = serde_json::to_string(&step()).unwrap() + "\n";
        let Event::Step(read) = Log::parse(&text).events.remove(0) else { panic!("no step") };
        assert!(read.loss.is_nan() && read.images_per_second.is_nan());
        assert_eq!((read.step, read.grad_norm, read.terms[0].value), (12, 3.25, None));
        let level = r#"{"k":100,"objective":1,"imbalance":2,"empty":0,"splits":3,"concentration_mean":0.2,"#
            .to_string()
            + r#""concentration_min":0.1,"concentration_max":0.3}"#;
        let text = format!(r#"{{"event":"clustering","step":1,"epoch":2,"seconds":3,"levels":[{level}]}}"#);
        let Event::Clustering(read) = Log::parse(&text).events.remove(0) else { panic!("no clustering") };
        assert_eq!((read.epoch, read.levels[0].objective, read.levels[0].splits), (2.0, 1.0, 3));
    }

    #[test]
    fn a_cut_line_unknown_kinds_and_damage_do_not_stop_the_reader() {
        let warning = r#"{"event":"warning","step":4,"text":"K is large","colour":"a field of the future"}"#;
        let text = format!(
            "{warning}\n\nnot json\n{{\"event\":\"weather\",\"sun\":1}}\n{warning}\n{}",
            &warning[..30]
        );
        let log = Log::parse(&text);
        let want = Event::Warning(Warning { step: 4, text: "K is large".into() });
        assert_eq!(log.events, [want.clone(), want]);
        assert_eq!(log.damaged, [3]);
    }
}
