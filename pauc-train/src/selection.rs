//! Decisions based on the metrics of probes: which checkpoint is the best, and whether to stop early.

use crate::progress::{Best, Peak, RunProgress, StopEarly};
use pauc_traits::probe::Metric;

/// Returns the value of a metric among the measured ones.
pub(crate) fn value_of(metrics: &[Metric], name: &str) -> Option<f64> {
    metrics.iter().find(|m| m.name == name).map(|m| m.value)
}

/// Records the metric of `train.keep` after a step. Returns whether it is the best so far.
pub(crate) fn record_best(progress: &mut RunProgress, best: &Best, metrics: &[Metric], step: u64) -> bool {
    let Some(value) = value_of(metrics, &best.metric) else { return false };
    let improves = best.goal.improves(value, progress.best);
    if improves {
        progress.best = Some(Peak { step, value });
    }
    improves
}

/// Records the metric of `train.stop_early` after a step. Returns the reason to stop once patience is
/// exhausted.
pub(crate) fn record_patience(
    progress: &mut RunProgress,
    stop: &StopEarly,
    metrics: &[Metric],
    step: u64,
) -> Option<String> {
    let value = value_of(metrics, &stop.metric)?;
    let before = progress.patience;
    if stop.goal.improves(value, before.map(|(best, _)| best)) {
        progress.patience = Some((Peak { step, value }, 0));
        return None;
    }
    let (best, since) = before.map(|(best, since)| (best, since + 1))?;
    progress.patience = Some((best, since));
    (since >= stop.patience.get() as u64).then(|| {
        format!(
            "{} has not improved for {since} probes; its best was {} after step {}; stopping early",
            stop.metric, best.value, best.step
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Goal;
    use pauc_traits::Count;

    fn measured(value: f64) -> [Metric; 1] {
        [Metric::accuracy("knn", value)]
    }

    #[test]
    fn patience_counts_probes_since_the_best_one() {
        let stop = StopEarly { metric: "knn".into(), goal: Goal::Largest, patience: Count::lit(2) };
        let mut progress = RunProgress::default();
        let mut record = |value, step| record_patience(&mut progress, &stop, &measured(value), step);
        assert_eq!(record(0.5, 1), None);
        assert_eq!(record(0.4, 2), None);
        assert_eq!(record(0.6, 3), None);
        assert_eq!(record(0.6, 4), None);
        let reason = record(0.5, 5).unwrap();
        assert!(reason.contains("2 probes") && reason.contains("0.6 after step 3"), "{reason}");
    }

    #[test]
    fn only_a_better_value_is_the_best() {
        let best = Best { metric: "knn".into(), goal: Goal::Largest };
        let mut progress = RunProgress::default();
        assert!(record_best(&mut progress, &best, &measured(0.5), 1));
        assert!(!record_best(&mut progress, &best, &measured(0.5), 2));
        assert!(!record_best(&mut progress, &best, &[], 3), "not measured");
        assert_eq!(progress.best, Some(Peak { step: 1, value: 0.5 }));
    }
}
