//! Reads the folder of a run.

use crate::data_issues::{self, DataIssues};
use crate::events::{
    Change, Clustering, End, Event, Gradients, Health, Log, Metric, Phase, Probe, Stages, Step, Subject,
    Warning,
};
use crate::postmortem::Postmortem;
use crate::postmortem::page::{SamplePictures, read_pictures};
use pauc_traits::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The content of a report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReportData {
    /// The content of `run.json`.
    pub run: Run,
    /// The text of `recipe.resolved.ron`.
    pub recipe: String,
    /// Optimizer steps in ascending order, without duplicates.
    pub steps: Vec<Step>,
    /// The gradients of single terms in ascending order of steps, without duplicates.
    pub gradients: Vec<Gradients>,
    /// Clusterings in ascending order, without duplicates.
    pub clusterings: Vec<Clustering>,
    /// Probes in ascending order, without duplicates per subject.
    pub probes: Vec<Probe>,
    /// The state of terms and embeddings, per epoch.
    pub health: Vec<Health>,
    /// The time of each stage of the steps, per epoch.
    pub stages: Vec<Stages>,
    /// The phases of training.
    pub phases: Vec<Phase>,
    /// The warnings in order of occurrence, each text once.
    pub warnings: Vec<Warning>,
    /// What was changed in the run on request, in order.
    pub changes: Vec<Change>,
    /// How each of the run's processes ended.
    pub ends: Vec<End>,
    /// The embeddings in two dimensions, if available.
    pub embedding: Option<Embedding>,
    /// The prototypes at the end, if there are any.
    pub prototypes: Option<Prototypes>,
    /// `figures/prototypes.png`, if it exists.
    pub sheet: Option<Vec<u8>>,
    /// Leaked images and likely wrong labels, if they were searched for.
    pub data_issues: Option<DataIssues>,
    /// Pictures of the leaked images, if there are any.
    pub leaks_sheet: Option<Vec<u8>>,
    /// Pictures of the images with likely wrong labels, if there are any.
    pub labels_sheet: Option<Vec<u8>>,
    /// What the run knew when a value became NaN or infinite, if that happened.
    pub postmortem: Option<Postmortem>,
    /// Pictures of the samples that the postmortem names.
    pub sample_pictures: Vec<SamplePictures>,
    /// The folder of the run, as it was given.
    pub folder: PathBuf,
    /// The numbers of unreadable lines of `metrics.jsonl`.
    pub damaged: Vec<usize>,
}

/// `run.json`: the identity and environment of a run. Every field may be missing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Run {
    /// The recipe's name.
    pub name: String,
    /// The first digits of the resolved recipe's hash.
    pub hash: String,
    /// The seed.
    pub seed: Option<u64>,
    /// `running`, `finished`, `interrupted` or `failed`.
    pub status: String,
    /// Everything else: version, device, threads, data.
    #[serde(flatten)]
    pub environment: BTreeMap<String, serde_json::Value>,
}

/// `figures/embedding.json`: embeddings in two dimensions.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Embedding {
    /// Each sample's coordinates along the two principal components.
    pub points: Vec<[f32; 2]>,
    /// Each sample's coordinates by t-SNE.
    pub tsne: Option<Vec<[f32; 2]>>,
    /// The perplexity of t-SNE.
    pub perplexity: Option<f64>,
    /// Whether the samples are from the test split, not the training split.
    pub test: Option<bool>,
    /// The number of samples of the split; only some may be shown.
    pub of: Option<u64>,
    /// Each sample's class.
    pub labels: Option<Vec<u32>>,
    /// Each sample's prototype.
    pub prototypes: Option<Vec<u32>>,
    /// The class names.
    pub classes: Vec<String>,
    /// The fraction of the variance along each direction.
    pub explained: Option<[f64; 2]>,
}

/// `figures/prototypes.json`: the prototypes of the last clustering.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Prototypes {
    /// The levels.
    pub levels: Vec<PrototypeLevel>,
    /// The prototypes on the contact sheet, one per row.
    pub shown: Vec<u64>,
    /// The number of prototypes of their level.
    pub shown_of: u64,
}

/// One level of [`Prototypes`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PrototypeLevel {
    /// The number of prototypes.
    pub k: u64,
    /// The number of samples of each prototype, largest first.
    pub sizes: Vec<u64>,
    /// φ of each prototype, largest first.
    pub concentration: Vec<f64>,
    /// Histogram of the cosines of samples to their prototypes, in equal bins from −1 to 1.
    pub intra: Vec<u64>,
    /// Histogram of the cosines of pairs of prototypes, in equal bins from −1 to 1.
    pub inter: Vec<u64>,
}

impl ReportData {
    /// Reads the folder of a run. `metrics.jsonl` is required.
    ///
    /// # Errors
    /// If a file cannot be read, or `run.json`, `postmortem.json`, or a `.json` file in `figures` is damaged.
    pub fn read(run_dir: &Path) -> Result<Self> {
        let metrics = run_dir.join("metrics.jsonl");
        if !metrics.exists() {
            let remedy = "give the folder of a run, such as runs/NAME-HASH/seed0".into();
            return Err(Error::NotFound { path: metrics, remedy });
        }
        let mut data = ReportData::from_log(Log::read(&metrics)?);
        data.recipe = text(&run_dir.join("recipe.resolved.ron"))?.unwrap_or_default();
        data.run = json(&run_dir.join("run.json"))?.unwrap_or_default();
        data.embedding = json(&run_dir.join("figures/embedding.json"))?;
        data.prototypes = json(&run_dir.join("figures/prototypes.json"))?;
        data.sheet = bytes(&run_dir.join("figures/prototypes.png"))?;
        data.data_issues = json(&run_dir.join(data_issues::FILE))?;
        data.leaks_sheet = bytes(&run_dir.join(data_issues::LEAKS_SHEET))?;
        data.labels_sheet = bytes(&run_dir.join(data_issues::LABELS_SHEET))?;
        data.postmortem = Postmortem::read(run_dir)?;
        if let Some(postmortem) = &data.postmortem {
            data.sample_pictures = read_pictures(postmortem, run_dir)?;
        }
        data.folder = run_dir.to_path_buf();
        Ok(data)
    }

    /// Sorts events by step. A run that was resumed from a checkpoint may have recorded steps twice; the
    /// later record counts.
    pub fn from_log(log: Log) -> Self {
        let (mut steps, mut clusterings, mut probes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut gradients = BTreeMap::new();
        let (mut health, mut stages) = (BTreeMap::new(), BTreeMap::new());
        let mut data = ReportData { damaged: log.damaged, ..ReportData::default() };
        for event in log.events {
            match event {
                Event::Step(e) => drop(steps.insert(e.step, e)),
                Event::Gradients(e) => drop(gradients.insert(e.step, e)),
                Event::Clustering(e) => drop(clusterings.insert(e.step, e)),
                Event::Probe(e) => match probes.entry((e.subject, e.step)) {
                    std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(e)),
                    std::collections::btree_map::Entry::Occupied(mut place) => merge(place.get_mut(), e),
                },
                Event::Phase(e) if !data.phases.contains(&e) => data.phases.push(e),
                Event::Warning(e) if !data.warnings.iter().any(|w| w.text == e.text) => data.warnings.push(e),
                Event::Change(e) => data.changes.push(e),
                Event::End(e) => data.ends.push(e),
                Event::Health(e) => drop(health.insert(e.step, e)),
                Event::Stages(e) => drop(stages.insert(e.step, e)),
                Event::Phase(_) | Event::Warning(_) | Event::Diverged(_) | Event::Unknown => {}
            }
        }
        data.steps = steps.into_values().collect();
        data.gradients = gradients.into_values().collect();
        data.health = health.into_values().collect();
        data.stages = stages.into_values().collect();
        data.clusterings = clusterings.into_values().collect();
        data.probes = probes.into_values().collect();
        data
    }

    /// Returns the probes of one subject, by step.
    pub fn probes_of(&self, subject: Subject) -> impl Iterator<Item = &Probe> {
        self.probes.iter().filter(move |p| p.subject == subject)
    }

    /// Returns the last value of a metric for a subject.
    pub fn latest(&self, subject: Subject, metric: &str) -> Option<f64> {
        let value = |p: &Probe| p.metrics.iter().find(|m| m.name == metric).map(|m| m.value);
        self.probes_of(subject).filter_map(value).last()
    }

    /// Returns a metric of the trained representation over epochs.
    pub fn curve(&self, metric: &str) -> Vec<(f64, f64)> {
        let point = |p: &Probe| p.metrics.iter().find(|m| m.name == metric).map(|m| (p.epoch, m.value));
        self.probes_of(Subject::Trained).filter_map(point).collect()
    }

    /// Returns one record per metric, in order of first appearance.
    pub fn metrics(&self) -> Vec<&Metric> {
        let mut first: Vec<&Metric> = Vec::new();
        for metric in self.probes.iter().flat_map(|p| &p.metrics) {
            if !first.iter().any(|f| f.name == metric.name) {
                first.push(metric);
            }
        }
        first
    }

    /// Returns the epoch of a step, estimated from the recorded steps.
    pub fn epoch_of(&self, step: u64) -> f64 {
        let epoch = |s: &Step| if s.step > 0 { s.epoch * step as f64 / s.step as f64 } else { 0.0 };
        self.steps.last().map_or(0.0, epoch)
    }
}

/// Merges two records of one subject at one step: different probes, or the same probes repeated.
fn merge(into: &mut Probe, later: Probe) {
    for metric in later.metrics {
        match into.metrics.iter_mut().find(|m| m.name == metric.name) {
            Some(earlier) => *earlier = metric,
            None => into.metrics.push(metric),
        }
    }
}

/// Returns the content of a file, or `None` if it does not exist.
fn if_present<T>(path: &Path, read: std::io::Result<T>) -> Result<Option<T>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

fn text(path: &Path) -> Result<Option<String>> {
    if_present(path, std::fs::read_to_string(path))
}

fn bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    if_present(path, std::fs::read(path))
}

fn json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let Some(text) = text(path)? else { return Ok(None) };
    let damaged = |e: serde_json::Error| {
        Error::damaged(path, format!("invalid JSON: {e}; delete the file or write it again"))
    };
    serde_json::from_str(&text).map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_recorded_twice_count_once_and_probes_at_one_step_are_merged() {
        let step = |step, loss| {
            format!(
                r#"{{"event":"step","step":{step},"epoch":{step},"lr":0.1,"loss":{loss},"terms":[],"grad_norm":1,"images_per_second":1}}"#
            )
        };
        let probe = |name, value| {
            format!(
                r#"{{"event":"probe","step":2,"epoch":2,"seconds":1,"subject":"trained","metrics":[{{"name":"{name}","value":{value}}}]}}"#
            )
        };
        let lines = [
            step(1, 5),
            step(2, 4),
            step(3, 9),
            probe("knn", 0.1),
            step(2, 3),
            probe("rank", 7.0),
            probe("knn", 0.2),
        ];
        let data = ReportData::from_log(Log::parse(&(lines.join("\n") + "\n")));
        assert_eq!(
            data.steps.iter().map(|s| (s.step, s.loss)).collect::<Vec<_>>(),
            [(1, 5.0), (2, 3.0), (3, 9.0)]
        );
        assert_eq!(data.probes.len(), 1);
        assert_eq!(data.curve("knn"), [(2.0, 0.2)]);
        assert_eq!(
            (data.latest(Subject::Trained, "rank"), data.latest(Subject::RawPixels, "rank")),
            (Some(7.0), None)
        );
        assert_eq!(data.metrics().iter().map(|m| &*m.name).collect::<Vec<_>>(), ["knn", "rank"]);
    }

    #[test]
    fn errors_name_missing_and_damaged_files() {
        let dir = tempfile::tempdir().unwrap();
        let error = ReportData::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl: not found; give the folder of a run"), "{error}");
        std::fs::write(dir.path().join("metrics.jsonl"), "").unwrap();
        let empty = ReportData { folder: dir.path().into(), ..ReportData::default() };
        assert_eq!(ReportData::read(dir.path()).unwrap(), empty);
        std::fs::write(dir.path().join("run.json"), r#"{"name":"n","seed":3,"threads":2}"#).unwrap();
        let run = ReportData::read(dir.path()).unwrap().run;
        assert_eq!(
            (run.name.as_str(), run.seed, run.environment["threads"].as_u64()),
            ("n", Some(3), Some(2))
        );
        std::fs::write(dir.path().join("run.json"), "{").unwrap();
        let error = ReportData::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("run.json: ") && error.contains("write it again"), "{error}");
    }
}
