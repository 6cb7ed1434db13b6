//! What a run has done and seen besides taking steps: kept in every checkpoint, so that a continued run neither repeats
//! nor forgets anything.

use pauc_traits::component;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The marks of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunProgress {
    /// Events in `metrics.jsonl`.
    pub events: u64,
    /// Whether the baselines were measured.
    pub baselines: bool,
    /// The last step whose end-of-epoch probes were made.
    pub probed: Option<u64>,
    /// The phase that was announced last.
    pub phase: String,
    /// What was warned of: each thing once.
    pub warned: Vec<String>,
    /// The best probe so far by the metric of `train.keep`.
    pub best: Option<Peak>,
    /// The best probe so far by the metric of `train.stop_early`, and how many probes came after it.
    pub patience: Option<(Peak, u64)>,
    /// Whether `train.stop_early` has ended the run.
    pub stopped: bool,
    /// The values of terms in this epoch, by name.
    pub terms: BTreeMap<String, Sum>,
}

impl RunProgress {
    /// Whether this is the first warning under `key`.
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
    /// The step it was measured after.
    pub step: u64,
    /// The value.
    pub value: f64,
}

/// The values of a term, added up over an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sum {
    /// The sum.
    pub sum: f64,
    /// The number of values.
    pub count: u64,
    /// How many epochs in a row the mean was at the chance level.
    pub at_chance: u64,
}

component! {
    /// Which checkpoints stay.
    pub struct Keep {
        /// How many of the newest.
        pub last: pauc_traits::Count = pauc_traits::Count::lit(2),
        /// The best by a metric of the probes as well, as `checkpoints/best.safetensors`; one is written whenever a
        /// probe of the trained encoder gives a better value.
        pub best: Option<Best> = None,
    }
}

component! {
    /// A metric of the probes, and which way is better.
    pub struct Best {
        /// The metric with its protocol, as in the log: `"knn/cos/k20/t0.07"`.
        pub metric: String,
        /// Which value is best.
        pub goal: Goal = Goal::Largest,
    }
}

component! {
    /// Ends the run at a probe when a metric has not improved for a while.
    pub struct StopEarly {
        /// The metric with its protocol, as in the log: `"knn/cos/k20/t0.07"`.
        pub metric: String,
        /// Which value is best.
        pub goal: Goal = Goal::Largest,
        /// So many probes in a row without a better value end the run.
        pub patience: pauc_traits::Count,
    }
}

/// Which value of a metric is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// The largest, as for accuracies.
    Largest,
    /// The smallest.
    Smallest,
}

impl Goal {
    /// Whether `new` is better than what was best before.
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
