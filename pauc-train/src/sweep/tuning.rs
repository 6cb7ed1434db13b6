//! Tuning: the trials of each arm, and the choice among them.

use super::{Choice, Row, Sweep};
use crate::progress::Goal;
use pauc_traits::probe::may_read_test_split;
use serde::Serialize;

/// The trials of one combination of an arm with values of `over`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trials {
    /// The trials, in the order of the draws.
    pub rows: Vec<Row>,
    /// The index of the best; `None` before all have ended.
    pub chosen: Option<usize>,
}

impl Trials {
    /// Chooses among trials.
    pub fn new(rows: Vec<Row>, best: &Choice) -> Self {
        let chosen = choose(&rows, best);
        Trials { rows, chosen }
    }

    /// Returns whether every run has ended.
    pub fn have_ended(&self) -> bool {
        self.rows.iter().all(has_ended)
    }
}

/// Returns whether all runs of a trial have ended; a failed run has.
fn has_ended(row: &Row) -> bool {
    row.runs.iter().all(|run| run.is_settled() || run.status == "failed")
}

/// Returns the index of the trial with the best mean over its seeds, the first of equals. Returns `None` before all
/// trials have ended, or if none measured the metric. A trial with a failed run is not chosen.
pub fn choose(trials: &[Row], best: &Choice) -> Option<usize> {
    if !trials.iter().all(has_ended) {
        return None;
    }
    let value = |row: &Row| {
        let mean = row.metrics.get(&best.metric)?.mean;
        let is_whole = row.runs.iter().all(|run| run.is_finished());
        (is_whole && mean.is_finite()).then_some(if best.goal == Goal::Largest { mean } else { -mean })
    };
    let values = trials.iter().enumerate().filter_map(|(i, row)| Some((i, value(row)?)));
    values.reduce(|a, b| if b.1 > a.1 { b } else { a }).map(|(i, _)| i)
}

/// Describes the budget of each arm and what chose; `None` without tuning.
pub fn tuning_note(sweep: &Sweep) -> Option<String> {
    let (tune, best) = (sweep.tune.as_ref()?, sweep.best.as_ref()?);
    let seeds: Vec<String> = tune.seeds.iter().map(u64::to_string).collect();
    let seeds = format!("seed{} {}", if seeds.len() == 1 { "" } else { "s" }, seeds.join(", "));
    Some(format!(
        "tuning: {} trials for each of {} arms, {seeds}, chosen by {}",
        tune.trials,
        sweep.arms.len().max(1),
        choice(best)
    ))
}

/// Describes a metric, its direction, and the images on which it is measured.
pub(super) fn choice(best: &Choice) -> String {
    let goal = if best.goal == Goal::Largest { "largest" } else { "smallest" };
    let split = if may_read_test_split(&best.metric) { "the test split" } else { "training images" };
    format!("{} ({goal}, on {split})", best.metric)
}
