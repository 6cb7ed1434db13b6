//! Reads the runs of a sweep for its page.

use super::tuning::choice;
use super::{ArmComparison, ArmDifference, Axis, Row, Sweep, Trials, tuning_note};
use crate::compare;
use crate::side_by_side::reported;
use crate::statistics::Spread;
use pauc_report::ReportData;
use pauc_report::study::{Difference, Differences, Mean, Study, StudyRun, TunedArm, Variant};
use pauc_traits::probe::MetricKind;
use pauc_traits::{Result, progress};
use std::collections::{BTreeMap, BTreeSet};

/// Reads the finished runs of a sweep. The rows and the trials are in the order of the sweep's file; `text` is its
/// content.
///
/// # Errors
/// If a file of a run cannot be read or is damaged.
pub fn study(
    sweep: &Sweep,
    text: &str,
    rows: &[Row],
    trials: &[Trials],
    comparison: Option<&ArmComparison>,
) -> Result<Study> {
    let task = progress::task("reading runs", rows.iter().map(|row| row.runs.len() as u64).sum());
    let mut variants: Vec<Variant> = Vec::new();
    let mut first_recipe: Option<String> = None;
    for row in rows {
        let mut variant = variant(sweep, row)?;
        if let Some(run) = variant.runs.first() {
            let first = first_recipe.get_or_insert_with(|| run.data.recipe.clone());
            let changes = compare::changes(first, &run.data.recipe);
            variant.changes = changes.iter().map(reported).collect();
        }
        task.advance(row.runs.len() as u64);
        variants.push(variant);
    }
    Ok(Study {
        notes: notes(sweep),
        metrics: main_metrics(sweep, &variants),
        variants,
        differences: comparison.map(|all| differences(sweep, all)),
        trials: trials.iter().filter_map(|t| tuned_arm(sweep, t)).collect(),
        text: text.to_string(),
        ..Study::default()
    })
}

/// Describes what was tuned, and by what something was chosen or sorted.
fn notes(sweep: &Sweep) -> Vec<String> {
    let sorted = || sweep.best.as_ref().map(|best| format!("best: by {}", choice(best)));
    let text = tuning_note(sweep).or_else(sorted).unwrap_or_else(|| "nothing was chosen".into());
    vec![sentence(&text)]
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str())
}

/// Returns the values of some axes by path, in their order.
fn values<'a>(
    axes: impl Iterator<Item = &'a Axis>,
    by_path: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let paths = axes.map(|axis| axis.path.trim().to_string());
    paths.filter_map(|path| by_path.get(&path).cloned().map(|value| (path, value))).collect()
}

/// Returns the tuned values of a row, in the order of the file.
fn tuned(sweep: &Sweep, row: &Row) -> Vec<(String, String)> {
    let arm = row.arm.as_ref().and_then(|arm| sweep.arms.iter().position(|a| *a.name == **arm));
    values(sweep.tuned(arm).into_iter(), &row.tuned)
}

fn variant(sweep: &Sweep, row: &Row) -> Result<Variant> {
    let mut runs: Vec<StudyRun> = Vec::new();
    for standing in row.runs.iter().filter(|run| run.is_finished()) {
        let data = ReportData::read(&standing.run)?;
        let embedding = data.embedding.clone().filter(|_| runs.is_empty());
        // What the page does not show is not kept for every run.
        let data = ReportData {
            embedding,
            steps: Vec::new(),
            gradients: Vec::new(),
            sheet: None,
            leaks_sheet: None,
            labels_sheet: None,
            sample_pictures: Vec::new(),
            ..data
        };
        let metrics = compare::newest_metrics(&standing.run)?;
        runs.push(StudyRun { seed: standing.seed, data, metrics });
    }
    Ok(Variant {
        arm: row.arm.clone().unwrap_or_default(),
        values: values(sweep.over.iter(), &row.set),
        tuned: tuned(sweep, row),
        hash: row.hash.clone(),
        changes: Vec::new(),
        planned: row.runs.len(),
        means: row.metrics.iter().map(|(name, spread)| (name.clone(), mean(spread))).collect(),
        runs,
    })
}

fn mean(spread: &Spread) -> Mean {
    Mean { n: spread.n, mean: spread.mean, sd: spread.sd, interval: spread.t_interval() }
}

/// Returns the metrics that the sweep compares, or all accuracies, and the metric that it chooses by.
fn main_metrics(sweep: &Sweep, variants: &[Variant]) -> Vec<String> {
    let compared = sweep.compare.iter().flat_map(|c| c.metrics.iter().cloned());
    let mut all: Vec<String> = compared.collect();
    if all.is_empty() {
        let metrics = variants.iter().flat_map(|v| &v.runs).flat_map(|run| run.metrics.values());
        let accuracies = metrics.filter(|m| m.kind == MetricKind::Accuracy).map(|m| m.name.clone());
        all = accuracies.collect::<BTreeSet<_>>().into_iter().collect();
    }
    let best = sweep.best.iter().map(|best| best.metric.clone()).filter(|best| !all.contains(best));
    all.extend(best.collect::<Vec<_>>());
    all
}

fn differences(sweep: &Sweep, all: &ArmComparison) -> Differences {
    let one = |ArmDifference { arm, set, metric, difference: d }: &ArmDifference| Difference {
        arm: arm.clone(),
        values: values(sweep.over.iter(), set),
        metric: metric.clone(),
        n: d.n,
        mean: d.mean,
        t_interval: d.t_interval,
        bootstrap_interval: d.bootstrap_interval,
        p: d.p,
        p_holm: d.p_holm,
        cohens_d: d.cohens_d,
    };
    Differences {
        to: all.to.clone(),
        tests: all.tests,
        resamples: all.resamples,
        all: all.differences.iter().map(one).collect(),
    }
}

/// Returns the trials of an arm; `None` if there are none.
fn tuned_arm(sweep: &Sweep, trials: &Trials) -> Option<TunedArm> {
    let first = trials.rows.first()?;
    let metric = sweep.best.as_ref().map(|best| best.metric.as_str()).unwrap_or_default();
    let trial = |row: &Row| (tuned(sweep, row), row.metrics.get(metric).map(|spread| spread.mean));
    Some(TunedArm {
        arm: first.arm.clone().unwrap_or_default(),
        values: values(sweep.over.iter(), &first.set),
        trials: trials.rows.iter().map(trial).collect(),
        chosen: trials.chosen,
    })
}
