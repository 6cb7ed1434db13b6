//! The runs of a sweep and their table.

use super::{Point, Sweep, one_line};
use crate::compare;
use crate::progress::{Best, Goal};
use crate::run_dir::RunDir;
use crate::statistics::Spread;
use pauc_traits::Result;
use pauc_traits::probe::MetricKind;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The state of a run of a sweep on disk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The seed.
    pub seed: u64,
    /// The run's folder.
    pub run: PathBuf,
    /// `finished`, `interrupted`, `running`, `failed`, `missing` if it has not started, or `changed` if its recipe was
    /// changed: it is then not a run of the sweep.
    pub status: String,
    /// The newest value of each metric of the trained encoder.
    pub metrics: BTreeMap<String, f64>,
    /// The metrics that are accuracies.
    #[serde(skip)]
    pub accuracies: BTreeSet<String>,
}

impl Standing {
    /// Reads the state of a run's folder, which need not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(dir: &RunDir, seed: u64) -> Result<Self> {
        let run = dir.path().to_path_buf();
        let Some(info) = dir.info()? else {
            let (metrics, accuracies) = (BTreeMap::new(), BTreeSet::new());
            return Ok(Standing { seed, run, status: "missing".into(), metrics, accuracies });
        };
        let logged = run.join("metrics.jsonl").exists();
        let newest = if logged { compare::newest_metrics(&run)? } else { BTreeMap::new() };
        let accuracies = newest.values().filter(|m| m.kind == MetricKind::Accuracy);
        let accuracies = accuracies.map(|m| m.name.clone()).collect();
        let metrics = newest.into_iter().map(|(name, metric)| (name, metric.value)).collect();
        let status = if info.recipes.is_empty() { info.status } else { "changed".into() };
        Ok(Standing { seed, run, status, metrics, accuracies })
    }

    /// Returns whether there is nothing to train: the run is finished, or its recipe was changed.
    pub fn is_settled(&self) -> bool {
        self.is_finished() || self.status == "changed"
    }

    /// Returns whether the run is finished.
    pub fn is_finished(&self) -> bool {
        self.status == "finished"
    }
}

/// A combination with its runs and the metrics of the finished ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The values by path.
    pub set: BTreeMap<String, String>,
    /// The first digits of the hash of its recipe.
    pub hash: String,
    /// Its runs, by seed.
    pub runs: Vec<Standing>,
    /// The statistics of each metric over the seeds of finished runs.
    pub metrics: BTreeMap<String, Spread>,
}

impl Row {
    /// Combines the runs of a combination.
    pub fn new(sweep: &Sweep, point: &Point, hash: &str, runs: Vec<Standing>) -> Self {
        let set = sweep.over.iter().zip(&point.values);
        let set = set.map(|(a, v)| (a.path.trim().to_string(), one_line(v))).collect();
        let finished: Vec<_> = runs.iter().filter(|r| r.is_finished()).map(|r| &r.metrics).collect();
        Row { set, hash: hash.into(), metrics: Spread::of_each(finished), runs }
    }
}

/// Sorts the rows by the metric of `best`, best first; rows without the metric come last.
pub fn order(rows: &mut [Row], best: Option<&Best>) {
    let Some(best) = best else { return };
    let key = |r: &Row| {
        let mean = r.metrics.get(&best.metric).map(|s| s.mean).filter(|m| m.is_finite());
        mean.map_or(f64::INFINITY, |m| if best.goal == Goal::Largest { -m } else { m })
    };
    rows.sort_by(|a, b| key(a).total_cmp(&key(b)));
}

/// Formats the table of a sweep: one row per combination, one column per path and metric. Metrics are
/// accuracies, or all metrics if no accuracy was measured, and always the metric of `best`.
pub fn table(sweep: &Sweep, rows: &[Row]) -> String {
    let mut names: Vec<&str> = rows.iter().flat_map(|r| r.metrics.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    let best = sweep.best.as_ref().map(|b| b.metric.as_str());
    let accuracies: BTreeSet<&str> =
        rows.iter().flat_map(|r| &r.runs).flat_map(|s| s.accuracies.iter().map(String::as_str)).collect();
    if names.iter().any(|n| accuracies.contains(n)) {
        names.retain(|n| accuracies.contains(n) || Some(*n) == best);
    }
    let paths: Vec<&str> = sweep.over.iter().map(|a| a.path.trim()).collect();
    let mut cells = vec![
        paths
            .iter()
            .copied()
            .chain(["runs"])
            .chain(names.iter().copied())
            .map(String::from)
            .collect::<Vec<_>>(),
    ];
    for r in rows {
        let done = r.runs.iter().filter(|s| s.is_finished()).count();
        let mut other: Vec<&str> =
            r.runs.iter().filter(|s| !s.is_finished()).map(|s| s.status.as_str()).collect();
        other.sort_unstable();
        other.dedup();
        let mut runs = format!("{done}/{}", r.runs.len());
        other.iter().for_each(|status| runs.push_str(&format!(" {status}")));
        let values = paths.iter().map(|p| r.set.get(*p).cloned().unwrap_or_default());
        let metrics = names.iter().map(|n| r.metrics.get(*n).map_or("–".into(), Spread::to_string));
        cells.push(values.chain([runs]).chain(metrics).collect());
    }
    let width = |c: usize| cells.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for r in &cells {
        let line: Vec<String> = r.iter().enumerate().map(|(c, v)| format!("{v:<w$}", w = width(c))).collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_means_over_seeds_and_the_best_first() {
        let text = "Sweep(recipe: \"r.ron\", over: [(path: \"a\", values: [1, 2, 3])])";
        let mut s = Sweep::parse("s.ron", text).unwrap_or_else(|e| panic!("{e}")).0;
        s.best = Some(Best { metric: "knn/x".into(), goal: Goal::Largest });
        let run = |seed, status: &str, knn: f64| Standing {
            seed,
            run: PathBuf::new(),
            status: status.into(),
            metrics: BTreeMap::from([("knn/x".to_string(), knn), ("rankme/features".to_string(), 9.0)]),
            accuracies: BTreeSet::from(["knn/x".to_string()]),
        };
        let runs = [
            vec![run(0, "finished", 0.5), run(1, "finished", 0.7)],
            vec![run(0, "failed", 0.9), run(1, "missing", 0.9)],
            vec![run(0, "finished", 0.8), run(1, "interrupted", 0.1)],
        ];
        let points = s.points();
        let mut rows: Vec<Row> =
            points.iter().zip(runs).map(|(p, runs)| Row::new(&s, p, "h", runs)).collect();
        order(&mut rows, s.best.as_ref());
        let table = table(&s, &rows);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["a", "runs", "knn/x"]);
        assert_eq!(lines[1], ["3", "1/2", "interrupted", "0.8000"]);
        assert_eq!(lines[2], ["1", "2/2", "0.6000", "±", "0.1414"]);
        assert_eq!(lines[3], ["2", "0/2", "failed", "missing", "–"]);
    }
}
