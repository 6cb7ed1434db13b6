//! The progress of a run besides its steps. Every checkpoint stores it, so that a resumed run neither repeats
//! nor forgets anything.

use crate::data_identity::DataIdentity;
use pauc_report::verdict::{COLLAPSED, VANISHED};
use pauc_traits::component;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunProgress {
    /// Events in `metrics.jsonl`.
    pub events: u64,
    /// Whether the baselines were measured.
    pub baselines: bool,
    /// The last step after which the end-of-epoch probes ran.
    pub probed: Option<u64>,
    /// The last phase that was announced.
    pub phase: String,
    /// The warnings given so far; each is given once.
    pub warned: Vec<String>,
    /// The best value so far of the metric of `train.keep`.
    pub best: Option<Peak>,
    /// The best value so far of the metric of `train.stop_early`, and the number of probes since.
    pub patience: Option<(Peak, u64)>,
    /// Whether `train.stop_early` has ended the run.
    pub stopped: bool,
    /// The sums of terms over this epoch, by name.
    pub terms: BTreeMap<String, Sum>,
    /// The identity of the data; `None` in checkpoints of older versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<DataIdentity>,
    /// The state of the network at the last step of which a checkpoint was saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<NetworkHealth>,
    /// What was changed in the run on request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// The newest of these, while they are not in `metrics.jsonl`. They follow its first `events` events.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unlogged: Vec<Change>,
}

/// The state of the network after a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkHealth {
    /// The norm of the step's gradient before clipping.
    pub gradient_norm: f64,
    /// The spread of the step's embeddings: 1 is uniform on the sphere, 0 is a single point.
    pub spread: Option<f64>,
}

impl NetworkHealth {
    /// Returns whether the network can still learn: its gradient has not vanished, and its embeddings have not
    /// collapsed.
    pub fn is_alive(&self) -> bool {
        self.gradient_norm > VANISHED && self.spread.is_none_or(|spread| spread >= COLLAPSED)
    }
}

/// A change of data or settings in the middle of a run, on request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The number of steps taken before it.
    pub step: u64,
    /// What was changed.
    pub what: String,
}

impl RunProgress {
    /// Reads the progress from the metadata of a checkpoint; `None` if there is none.
    pub(crate) fn of(metadata: &BTreeMap<String, String>) -> Option<Self> {
        serde_json::from_str(metadata.get("marks")?).ok()
    }

    /// Records a warning; returns whether it is the first under `key`.
    pub fn first(&mut self, key: &str) -> bool {
        let first = !self.warned.iter().any(|k| k == key);
        if first {
            self.warned.push(key.to_string());
        }
        first
    }
}

/// The best value of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peak {
    /// The step after which it was measured.
    pub step: u64,
    /// The value.
    pub value: f64,
}

/// A term's sum over an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// The sum.
    pub sum: f64,
    /// The number of values.
    pub count: u64,
    /// The number of consecutive epochs with a mean at the chance level.
    pub at_chance: u64,
}

component! {
    /// Which checkpoints to keep.
    pub struct Keep {
        /// The number of newest checkpoints.
        pub last: pauc_traits::Count = pauc_traits::Count::lit(2),
        /// Also keep the best checkpoint by a metric of the probes, as `checkpoints/best.safetensors`; it is
        /// written whenever a probe of the trained encoder gives a better value.
        pub best: Option<Best> = None,
    }
}

component! {
    /// A metric of the probes, and whether larger or smaller is better.
    pub struct Best {
        /// The metric as in the log, with its protocol: `"knn/cos/k20/t0.07"`.
        pub metric: String,
        /// Whether larger or smaller values are better.
        pub goal: Goal = Goal::Largest,
    }
}

component! {
    /// Ends the run when a metric has stopped improving.
    pub struct StopEarly {
        /// The metric as in the log, with its protocol: `"knn/cos/k20/t0.07"`.
        pub metric: String,
        /// Whether larger or smaller values are better.
        pub goal: Goal = Goal::Largest,
        /// Probes in a row without a better value after which the run ends.
        pub patience: pauc_traits::Count,
    }
}

/// Whether larger or smaller values of a metric are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// The largest, as for accuracies.
    Largest,
    /// The smallest.
    Smallest,
}

impl Goal {
    /// Returns whether `new` is better than the best value before.
    pub fn improves(self, new: f64, before: Option<Peak>) -> bool {
        new.is_finite()
            && before.is_none_or(|b| match self {
                Goal::Largest => new > b.value,
                Goal::Smallest => new < b.value,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_as_they_were() {
        let mut marks =
            RunProgress { events: 7, probed: Some(3), phase: "warm-up".into(), ..RunProgress::default() };
        marks.best = Some(Peak { step: 1, value: 0.1 + 0.2 });
        marks.terms.insert("InfoNce".into(), Sum { sum: 1.0 / 3.0, count: 3, at_chance: 1 });
        assert!(marks.first("a") && !marks.first("a") && marks.first("b"));
        let text = serde_json::to_string(&marks).unwrap();
        assert_eq!(serde_json::from_str::<RunProgress>(&text).unwrap(), marks);
    }

    #[test]
    fn better_is_strictly_better_and_a_number() {
        let before = Some(Peak { step: 0, value: 0.5 });
        assert!(Goal::Largest.improves(0.6, before) && !Goal::Largest.improves(0.5, before));
        assert!(Goal::Smallest.improves(0.4, before) && !Goal::Smallest.improves(0.5, before));
        assert!(Goal::Largest.improves(-1.0, None) && !Goal::Largest.improves(f64::NAN, None));
    }
}
