//! The events in `metrics.jsonl`: one JSON object per line, tagged by `"event"`.
//!
//! The writer and all readers share these types. NaN and infinite numbers are written as `null`. Readers
//! accept a truncated last line, unknown kinds of events, and unknown fields.

use pauc_traits::probe::MetricKind;
use pauc_traits::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Writes NaN and infinite numbers as `null`, which is read back as NaN.
mod nullable {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
        if v.is_finite() { s.serialize_f64(*v) } else { s.serialize_none() }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
    }

    /// The same for every number of a list.
    pub mod list {
        use serde::{Deserialize, Deserializer, Serializer};

        pub fn serialize<S: Serializer>(list: &[f64], s: S) -> Result<S::Ok, S::Error> {
            s.collect_seq(list.iter().map(|v| v.is_finite().then_some(*v)))
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f64>, D::Error> {
            let list = Vec::<Option<f64>>::deserialize(d)?;
            Ok(list.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect())
        }
    }
}

/// The default of a number that earlier versions did not write.
fn nan() -> f64 {
    f64::NAN
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The state after an optimizer step; written every `log_every` steps.
    Step(Step),
    /// The gradients of single terms at the embeddings.
    Gradients(Gradients),
    /// A clustering of the training split.
    Clustering(Clustering),
    /// Probes of a representation.
    Probe(Probe),
    /// The health of terms and embeddings, after each epoch.
    Health(Health),
    /// The time of each stage in an epoch.
    Stages(Stages),
    /// The begin of a phase of training.
    Phase(Phase),
    /// A warning to the user.
    Warning(Warning),
    /// A change of the recipe or the data, on request.
    Change(Change),
    /// A value became NaN or infinite, and ended the process.
    Diverged(Diverged),
    /// The end of the process, for any other reason.
    End(End),
    /// An event of a kind that this version does not know.
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
    /// The terms in the recipe's order. Terms that have not started are missing or have weight 0.
    pub terms: Vec<Term>,
    /// The norm of the gradient of all parameters, before clipping.
    #[serde(with = "nullable")]
    pub grad_norm: f64,
    /// Throughput: training images (not views) per second.
    #[serde(with = "nullable")]
    pub images_per_second: f64,
}

/// One term of the objective at one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// Its name; if a recipe uses a component twice, the names must differ.
    pub name: String,
    /// Its value before weighting; `None` if it was not computed, or is NaN or infinite.
    pub value: Option<f64>,
    /// Its weight.
    #[serde(with = "nullable")]
    pub weight: f64,
    /// Its chance level, if known: its value for a representation that has learned nothing.
    pub chance: Option<f64>,
    /// Whether it was skipped because the batch did not allow it.
    pub skipped: bool,
}

/// The gradients of the terms at the embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gradients {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with fraction.
    pub epoch: f64,
    /// The active terms in the recipe's order.
    pub terms: Vec<TermGradient>,
    /// The norm of the sum of the weighted gradients; NaN if some terms read predictions and others do not.
    #[serde(default = "nan", with = "nullable")]
    pub total: f64,
}

impl Gradients {
    /// Returns the cosine of each pair of terms, with the names of the two.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str, f64)> {
        self.terms.iter().flat_map(|term| {
            let earlier = self.terms.iter().zip(&term.cosines);
            earlier.map(|(other, cosine)| (other.name.as_str(), term.name.as_str(), *cosine))
        })
    }
}

/// One term's gradient at the unit embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermGradient {
    /// The term's name.
    pub name: String,
    /// The norm of the weighted gradient over the batch.
    #[serde(with = "nullable")]
    pub norm: f64,
    /// The cosines with the gradients of the terms before it in the list. Two terms with a cosine below 0
    /// work against each other. NaN if one of the two gradients is zero, or if only one of the two terms reads
    /// predictions.
    #[serde(with = "nullable::list")]
    pub cosines: Vec<f64>,
}

/// A clustering of the training split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clustering {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// The duration, including the computation of features.
    #[serde(with = "nullable")]
    pub seconds: f64,
    /// The levels.
    pub levels: Vec<ClusterLevel>,
}

/// One level of a clustering.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterLevel {
    /// The fraction of samples whose prototype does not match their previous prototype (Hungarian matching).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn: Option<f64>,
    /// The number of prototypes.
    pub k: u64,
    /// The inertia Σ‖x − c‖² at the end.
    #[serde(with = "nullable")]
    pub objective: f64,
    /// K·Σ size²/n²: 1 if all prototypes have the same size.
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

/// The subject of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// The representation being trained.
    Trained,
    /// The same network before the first step.
    RandomInit,
    /// The raw pixels.
    RawPixels,
}

/// The results of probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// The duration.
    #[serde(with = "nullable")]
    pub seconds: f64,
    /// The representation that was probed.
    pub subject: Subject,
    /// The metrics.
    pub metrics: Vec<Metric>,
}

/// A measurement, with its protocol in the name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredMetric")]
pub struct Metric {
    /// The quantity and the protocol, such as `knn/cos/k20/t0.07`.
    pub name: String,
    /// The value; accuracies are fractions.
    #[serde(with = "nullable")]
    pub value: f64,
    /// How readers treat it. If a file has no kind, it is derived from the name:
    /// [`MetricKind::of_stored_name`].
    pub kind: MetricKind,
}

/// A metric as stored in a file.
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

/// The health of training: the terms over an epoch, and the embeddings of its last batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// The terms of the epoch's last step.
    pub terms: Vec<TermMean>,
    /// √D times the mean over dimensions of the standard deviation of unit embeddings: 1 is uniform on the
    /// sphere, 0 is a single point.
    #[serde(with = "nullable")]
    pub spread: f64,
    /// RankMe of the embeddings: the exponential of the entropy of their singular values.
    #[serde(with = "nullable")]
    pub rank: f64,
}

/// A term, averaged over an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermMean {
    /// The term's name.
    pub name: String,
    /// The mean of its values, before weighting.
    #[serde(with = "nullable")]
    pub mean: f64,
    /// Its chance level, if known: its value for a representation that has learned nothing.
    pub chance: Option<f64>,
    /// The number of epochs in a row in which the mean was within a hundredth of chance, or worse.
    pub epochs_at_chance: u64,
    /// Whether it is a regularizer, which may stay at chance while the losses improve.
    #[serde(default)]
    #[serde(alias = "regulariser")]
    pub regularizer: bool,
}

impl TermMean {
    /// Whether it is a loss that has been at chance for at least `epochs` epochs.
    pub fn is_stuck(&self, epochs: u64) -> bool {
        !self.regularizer && self.epochs_at_chance >= epochs
    }
}

/// The time of each stage over the steps of an epoch; in a resumed epoch, over the steps since the resume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stages {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: f64,
    /// The time of the steps, without probes, clustering and checkpoints.
    #[serde(with = "nullable")]
    pub seconds: f64,
    /// Training images (not views) per second of that time.
    #[serde(with = "nullable")]
    pub images_per_second: f64,
    /// The stages of a step; `data` is the time of waiting for the loader.
    pub stages: Vec<StageTime>,
    /// The peak memory of the process since its start, if the system provides it.
    pub peak_memory_bytes: Option<u64>,
    /// The work of the loader's threads in the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<LoaderTime>,
}

/// The work of the loader's threads, summed over threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoaderTime {
    /// Prepared images, each with all its views.
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
    /// Returns the parts of the work with their seconds.
    pub fn parts(&self) -> [(&'static str, f64); 3] {
        [("read", self.read), ("augment", self.augment), ("normalise", self.normalize)]
    }

    /// Returns the images per second of one thread that only loads.
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / (self.read + self.augment + self.normalize).max(1e-9)
    }
}

/// The time of one stage over an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// The stage.
    pub name: String,
    /// Its time.
    #[serde(with = "nullable")]
    pub seconds: f64,
}

/// The begin of a phase of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Optimizer steps done.
    pub step: u64,
    /// Its name, such as `warm-up` or `prototypes`.
    pub name: String,
    /// Its meaning, in one sentence.
    pub text: String,
}

/// A warning to the user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// Optimizer steps done.
    pub step: u64,
    /// The problem and its remedy.
    pub text: String,
}

/// A change in the middle of a run, on request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Optimizer steps done before it.
    pub step: u64,
    /// What was changed.
    pub text: String,
}

/// A value became NaN or infinite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diverged {
    /// The step that failed, counted from 1; after a failure between steps, the next one.
    pub step: u64,
    /// The story of the failure, in one line.
    pub text: String,
}

/// The status at the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All steps are done.
    Finished,
    /// Stopped by the user or the system, with a checkpoint.
    Interrupted,
    /// Stopped by an error.
    Failed,
}

/// The end of a process. A resumed run has several.
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
    /// The numbers, from 1, of lines that are not events; a truncated last line does not count.
    pub damaged: Vec<usize>,
}

impl Log {
    /// Parses the text of a `metrics.jsonl`. A last line without a line break was truncated by a crash; it is
    /// ignored if it cannot be parsed. Events of unknown kinds are ignored.
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
    fn events_are_written_in_the_documented_form() {
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
    fn metrics_without_a_kind_get_it_from_their_name() {
        let read = |text: &str| serde_json::from_str::<Metric>(text).unwrap();
        let written = read(r#"{"name":"mine","value":0.8,"kind":"accuracy"}"#);
        assert_eq!((written.value, written.kind), (0.8, MetricKind::Accuracy));
        let named = read(r#"{"name":"knn/cos/k20/t0.07","value":null}"#);
        assert!(named.value.is_nan() && named.kind == MetricKind::Accuracy);
        assert_eq!(read(r#"{"name":"mine","value":0.8}"#).kind, MetricKind::Quantity);
    }

    #[test]
    fn events_round_trip_and_null_is_read_as_nan() {
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
    fn gradients_round_trip_and_may_lack_what_has_no_value() {
        let term = |name: &str, cosines| TermGradient { name: name.into(), norm: 0.5, cosines };
        let terms = vec![term("A", vec![]), term("B", vec![-0.25]), term("C", vec![f64::NAN, 1.0])];
        let written = Event::Gradients(Gradients { step: 8, epoch: 0.5, terms, total: f64::NAN });
        let text = serde_json::to_string(&written).unwrap();
        assert!(text.ends_with(r#"{"name":"C","norm":0.5,"cosines":[null,1.0]}],"total":null}"#), "{text}");
        // Earlier versions did not write the total.
        for text in [text.clone(), text.replace(r#","total":null"#, "")] {
            let Event::Gradients(read) = Log::parse(&(text + "\n")).events.remove(0) else { panic!() };
            let pairs: Vec<_> = read.pairs().map(|(a, b, cosine)| (format!("{a}{b}"), cosine)).collect();
            assert_eq!((pairs[0].clone(), pairs[2].clone()), (("AB".into(), -0.25), ("BC".into(), 1.0)));
            assert!(pairs.len() == 3 && pairs[1].1.is_nan() && read.total.is_nan());
        }
    }

    #[test]
    fn damaged_gradients_are_named_by_their_line() {
        let good = r#"{"event":"gradients","step":1,"epoch":0.5,"terms":[{"name":"A","norm":1,"cosines":[]}],"total":1}"#;
        let damaged = [
            (r#""terms""#, r#""term""#),
            (r#""norm":1"#, r#""norm":"large""#),
            (r#""cosines":[]"#, r#""cosines":["a"]"#),
            (r#""cosines":[]"#, r#""cosines":0.5"#),
            (r#""total":1"#, r#""total":[]"#),
            (r#""step":1"#, r#""step":-1"#),
        ];
        let lines: String = damaged.iter().map(|(part, by)| good.replace(part, by) + "\n").collect();
        let log = Log::parse(&format!("{good}\n{lines}{good}\n"));
        assert_eq!((log.events.len(), log.damaged), (2, vec![2, 3, 4, 5, 6, 7]));
    }

    #[test]
    fn truncated_unknown_and_damaged_lines_do_not_stop_the_reader() {
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
