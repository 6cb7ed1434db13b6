//! Compares the trained representation with random weights and raw pixels.

use crate::axis::significant;
use crate::data::ReportData;
use crate::events::{Metric, Subject};
use pauc_traits::probe::MetricKind;

/// One accuracy of the three representations, as a fraction.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The metric, protocol included.
    pub metric: String,
    /// The same network before the first step.
    pub random_init: Option<f64>,
    /// The raw pixels.
    pub raw_pixels: Option<f64>,
    /// The trained representation, at the last probe.
    pub trained: Option<f64>,
}

impl Verdict {
    /// Returns the trained accuracy minus that of the better baseline, if there is one.
    pub fn gain(&self) -> Option<f64> {
        let best = self.random_init.into_iter().chain(self.raw_pixels).reduce(f64::max)?;
        Some(self.trained? - best)
    }

    /// Returns the verdict as a sentence, for a metric with a trained value.
    pub fn sentence(&self) -> Option<String> {
        let trained = self.trained?;
        let against = |name: &str, base: Option<f64>| {
            let points = 100.0 * (trained - base?);
            let size = format!("{:.1} points", points.abs());
            Some(match points {
                p if p >= 0.05 => format!("{size} above {name}"),
                p if p <= -0.05 => format!("{size} below {name}"),
                _ => format!("equal to {name}"),
            })
        };
        let parts = [against("raw pixels", self.raw_pixels), against("random weights", self.random_init)];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let start = format!("{:.1} % by {}", 100.0 * trained, self.metric);
        Some(if parts.is_empty() { format!("{start}.") } else { format!("{start}: {}.", parts.join(", ")) })
    }
}

/// Returns the verdicts for every accuracy of the run.
pub fn verdicts(data: &ReportData) -> Vec<Verdict> {
    let verdict = |metric: &Metric| Verdict {
        metric: metric.name.clone(),
        random_init: data.latest(Subject::RandomInit, &metric.name),
        raw_pixels: data.latest(Subject::RawPixels, &metric.name),
        trained: data.latest(Subject::Trained, &metric.name),
    };
    data.metrics().into_iter().filter(|m| m.kind == MetricKind::Accuracy).map(verdict).collect()
}

/// Epochs in a row after which a loss at its chance level is reported. The first epoch contains the
/// learning-rate warm-up.
pub const EPOCHS_AT_CHANCE: u64 = 2;
/// The spread below which embeddings count as collapsed.
pub const COLLAPSED: f64 = 0.1;
/// The gradient norm up to which a network counts as one that no longer learns. It is that of a loss of unit embeddings
/// when weights are a million times too large.
pub const VANISHED: f64 = 1e-6;
/// The fraction of a level's prototypes that may have no samples.
pub const DEAD: f64 = 0.1;

/// A statement about the health of the run at its end: a problem, or that there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The statement.
    pub sentence: String,
    /// Whether it is good.
    pub well: bool,
}

/// Returns the conditions of terms, embeddings and prototypes at the end of the last epoch; none before the
/// end of the first.
pub fn conditions(data: &ReportData) -> Vec<Condition> {
    let Some(last) = data.health.last() else { return Vec::new() };
    let mut wrong = Vec::new();
    for t in last.terms.iter().filter(|t| t.is_stuck(EPOCHS_AT_CHANCE)) {
        let (mean, chance) = (significant(t.mean), significant(t.chance.unwrap_or(f64::NAN)));
        wrong.push(format!(
            "{} was no better than chance in the last {} epochs: {mean}, chance {chance}.",
            t.name, t.epochs_at_chance
        ));
    }
    if last.spread < COLLAPSED {
        wrong.push(format!("The embeddings have collapsed: their spread is {}.", significant(last.spread)));
    }
    for l in data.clusterings.last().iter().flat_map(|c| &c.levels) {
        if l.empty as f64 > DEAD * l.k as f64 {
            wrong.push(format!("{} of {} prototypes have no samples.", l.empty, l.k));
        }
    }
    if !wrong.is_empty() {
        return wrong.into_iter().map(|sentence| Condition { sentence, well: false }).collect();
    }
    let mut parts = Vec::new();
    if last.terms.iter().any(|t| t.chance.is_some() && !t.regularizer) {
        parts.push("no loss is at its chance level".to_string());
    }
    if last.spread.is_finite() {
        let rank = significant(last.rank);
        parts.push(format!("embeddings are spread ({:.2} of 1, effective rank {rank})", last.spread));
    }
    if !data.clusterings.is_empty() {
        parts.push("few prototypes are empty".into());
    }
    let sentence = format!("Healthy: {}.", parts.join(", "));
    if parts.is_empty() { Vec::new() } else { vec![Condition { sentence, well: true }] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Health, TermMean};
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn the_sentence_compares_with_the_baselines() {
        let verdict = |random_init, raw_pixels| Verdict {
            metric: "knn/cos/k20/t0.07".into(),
            random_init,
            raw_pixels,
            trained: Some(0.861),
        };
        let between = verdict(Some(0.7), Some(0.8615));
        assert_eq!(
            between.sentence().unwrap(),
            "86.1 % by knn/cos/k20/t0.07: 0.1 points below raw pixels, 16.1 points above random weights."
        );
        // Three numbers are rounded, and a difference.
        assert_within!(between.gain().unwrap(), -0.0005, tolerance::f64(2, 0.861 + 0.8615));
        assert_eq!(verdict(None, None).sentence().unwrap(), "86.1 % by knn/cos/k20/t0.07.");
        assert_eq!(verdict(None, None).gain(), None);
    }

    #[test]
    fn only_problems_at_the_end_are_reported() {
        let term = |name: &str, epochs_at_chance| TermMean {
            name: name.into(),
            mean: 5.01,
            chance: Some(5.0),
            epochs_at_chance,
            regularizer: name == "R",
        };
        let health = |spread, terms| Health { step: 1, epoch: 1.0, terms, spread, rank: 12.34 };
        let mut data = ReportData::default();
        assert_eq!(conditions(&data), []);
        data.health.push(health(0.02, vec![term("A", 3), term("B", 0), term("R", 8)]));
        let wrong = conditions(&data);
        assert_eq!(wrong.len(), 2);
        assert_eq!(
            wrong[0].sentence,
            "A was no better than chance in the last 3 epochs: 5.010, chance 5.000."
        );
        assert!(wrong[1].sentence.contains("have collapsed: their spread is 0.02000") && !wrong[1].well);
        // The last epoch counts.
        data.health.push(health(0.8, vec![term("A", 0)]));
        let healthy = conditions(&data);
        let want = "Healthy: no loss is at its chance level, embeddings are spread (0.80 of 1, effective rank 12.34).";
        assert_eq!(healthy, [Condition { sentence: want.into(), well: true }]);
    }

    #[test]
    fn every_accuracy_has_a_verdict_and_a_detail_has_none() {
        use pauc_traits::probe::Metric;
        let metrics = [
            Metric::accuracy("mine", 0.5),
            Metric::detail("mine", "l2", 0.1),
            Metric::grid_accuracy("grid/k1", 0.4),
            Metric::new("rank", 9.0),
        ];
        let metrics = metrics.map(Into::into).to_vec();
        let probe =
            crate::events::Probe { step: 1, epoch: 1.0, seconds: 0.1, subject: Subject::Trained, metrics };
        let verdicts = verdicts(&ReportData { probes: vec![probe], ..ReportData::default() });
        let found: Vec<_> = verdicts.iter().map(|v| (&*v.metric, v.trained)).collect();
        assert_eq!(found, [("mine", Some(0.5))]);
    }
}
