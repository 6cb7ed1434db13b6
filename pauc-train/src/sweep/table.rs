//! The runs of a sweep and their table.

use super::tuning::choice;
use super::{Axis, Choice, Point, Sweep, one_line};
use crate::compare;
use crate::progress::Goal;
use crate::run_dir::RunDir;
use crate::statistics::Spread;
use pauc_traits::Result;
use pauc_traits::probe::MetricKind;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The state of a run of a sweep on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Standing {
    /// The seed.
    pub seed: u64,
    /// The run's folder.
    pub run: PathBuf,
    /// `finished`, `interrupted`, `running`, `failed`, `missing` if it has not started, or `changed` if its recipe was
    /// changed: it is then not a run of the sweep.
    pub status: String,
    /// The version of pauc that trained it; empty if it has not started.
    pub version: String,
    /// The instruction set that its kernels used; empty if it has not started.
    pub simd: String,
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
            return Ok(Standing { seed, run, status: "missing".into(), ..Standing::default() });
        };
        let logged = run.join("metrics.jsonl").exists();
        let newest = if logged { compare::newest_metrics(&run)? } else { BTreeMap::new() };
        let accuracies = newest.values().filter(|m| m.kind == MetricKind::Accuracy);
        let accuracies = accuracies.map(|m| m.name.clone()).collect();
        let metrics = newest.into_iter().map(|(name, metric)| (name, metric.value)).collect();
        let status = if info.recipes.is_empty() { info.status } else { "changed".into() };
        let (version, simd) = (info.version, info.simd);
        Ok(Standing { seed, run, status, version, simd, metrics, accuracies })
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
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// The name of its arm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// The values by path.
    pub set: BTreeMap<String, String>,
    /// The tuned values by path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tuned: BTreeMap<String, String>,
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
        let one = |(a, v): (&Axis, &String)| (a.path.trim().to_string(), one_line(v));
        let finished: Vec<_> = runs.iter().filter(|r| r.is_finished()).map(|r| &r.metrics).collect();
        Row {
            arm: point.arm.map(|i| sweep.arms[i].name.to_string()),
            set: sweep.over.iter().zip(&point.values).map(one).collect(),
            tuned: sweep.tuned(point.arm).into_iter().zip(&point.tuned).map(one).collect(),
            hash: hash.into(),
            metrics: Spread::of_each(finished),
            runs,
        }
    }

    /// Describes how many runs are finished, and the state of the others: `2/3 failed`.
    fn progress(&self) -> String {
        let done = self.runs.iter().filter(|s| s.is_finished()).count();
        let other: BTreeSet<&str> =
            self.runs.iter().filter(|s| !s.is_finished()).map(|s| s.status.as_str()).collect();
        let other: String = other.iter().map(|status| format!(" {status}")).collect();
        format!("{done}/{}{other}", self.runs.len())
    }
}

/// Sorts the rows by the metric of `best`, best first; rows without the metric come last.
pub fn order(rows: &mut [Row], best: Option<&Choice>) {
    let Some(best) = best else { return };
    let key = |r: &Row| {
        let mean = r.metrics.get(&best.metric).map(|s| s.mean).filter(|m| m.is_finite());
        mean.map_or(f64::INFINITY, |m| if best.goal == Goal::Largest { -m } else { m })
    };
    rows.sort_by(|a, b| key(a).total_cmp(&key(b)));
}

/// Describes the order of the rows, and on which images it was measured; `None` if it is that of the file.
pub fn order_note(sweep: &Sweep) -> Option<String> {
    sweep.best.as_ref().map(|best| format!("rows: best first by {}", choice(best)))
}

/// Formats the table of a sweep: one row per combination, one column per path and metric. Metrics are
/// accuracies, or all metrics if no accuracy was measured, and always the metric of `best`.
pub fn table(sweep: &Sweep, rows: &[Row]) -> String {
    let names = shown_metrics(sweep, rows);
    let paths: Vec<&str> = sweep.over.iter().map(|a| a.path.trim()).collect();
    let arm = (!sweep.arms.is_empty()).then_some("arm");
    let tuned = rows.iter().any(|r| !r.tuned.is_empty()).then_some("tuned values");
    let head = arm.into_iter().chain(paths.iter().copied()).chain(tuned).chain(["runs"]);
    let mut cells: Vec<Vec<String>> = vec![head.chain(names.iter().copied()).map(String::from).collect()];
    for r in rows {
        let arm = arm.map(|_| r.arm.clone().unwrap_or_default());
        let values = paths.iter().map(|p| r.set.get(*p).cloned().unwrap_or_default());
        let pairs = || r.tuned.iter().map(|(path, value)| format!("{path}={value}")).collect::<Vec<_>>();
        let tuned = tuned.map(|_| pairs().join(" "));
        let metrics = names.iter().map(|n| r.metrics.get(*n).map_or("–".into(), Spread::to_string));
        let row = arm.into_iter().chain(values).chain(tuned).chain([r.progress()]).chain(metrics);
        cells.push(row.collect());
    }
    let first = usize::from(arm.is_some());
    (first..first + paths.len()).for_each(|column| shorten(&mut cells[1..], column));
    aligned(&cells)
}

/// Returns the metrics that the table shows.
fn shown_metrics<'a>(sweep: &'a Sweep, rows: &'a [Row]) -> Vec<&'a str> {
    let mut names: Vec<&str> = rows.iter().flat_map(|r| r.metrics.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    let best = sweep.best.as_ref().map(|b| b.metric.as_str());
    let accuracies: BTreeSet<&str> =
        rows.iter().flat_map(|r| &r.runs).flat_map(|s| s.accuracies.iter().map(String::as_str)).collect();
    if names.iter().any(|n| accuracies.contains(n)) {
        names.retain(|n| accuracies.contains(n) || Some(*n) == best);
    }
    names
}

/// The largest number of characters of a value in the table.
const WIDEST: usize = 48;

/// Shortens the long values of a column. Those that would look the same get a number.
pub(super) fn shorten(rows: &mut [Vec<String>], column: usize) {
    let long: BTreeSet<String> =
        rows.iter().map(|r| &r[column]).filter(|v| v.chars().count() > WIDEST).cloned().collect();
    let short = |value: &String| format!("{}…", value.chars().take(WIDEST - 6).collect::<String>());
    for value in &long {
        let alike: Vec<&String> = long.iter().filter(|other| short(other) == short(value)).collect();
        let number = alike.iter().position(|other| *other == value).map_or(0, |i| i + 1);
        let text = if alike.len() > 1 { format!("{} #{number}", short(value)) } else { short(value) };
        rows.iter_mut().filter(|r| r[column] == *value).for_each(|r| r[column] = text.clone());
    }
}

/// Joins cells to lines with aligned columns.
pub(super) fn aligned(cells: &[Vec<String>]) -> String {
    let width = |c: usize| cells.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let columns = cells.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for r in cells {
        let line: Vec<String> = r.iter().zip(&widths).map(|(v, w)| format!("{v:<w$}")).collect();
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
        s.best = Some(Choice { metric: "knn/x".into(), goal: Goal::Largest, on_test: true });
        let run = |seed, status: &str, knn: f64| Standing {
            seed,
            run: PathBuf::new(),
            status: status.into(),
            metrics: BTreeMap::from([("knn/x".to_string(), knn), ("rankme/features".to_string(), 9.0)]),
            accuracies: BTreeSet::from(["knn/x".to_string()]),
            ..Standing::default()
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

    #[test]
    fn long_values_are_shortened_and_stay_different() {
        let long = |end: &str| format!("[{}{end}]", "InfoNce(temperature: 0.2), ".repeat(20));
        let mut rows: Vec<Vec<String>> =
            [long("A()"), long("B()"), long("A()"), "[]".into()].map(|v| vec![v]).into();
        shorten(&mut rows, 0);
        let start = "[InfoNce(temperature: 0.2), InfoNce(temper…";
        let want = [format!("{start} #1"), format!("{start} #2"), format!("{start} #1"), "[]".into()];
        assert_eq!(rows.concat(), want);
        let mut alone = vec![vec![long("C()")]];
        shorten(&mut alone, 0);
        assert_eq!(alone[0][0].chars().count(), WIDEST - 5);
    }

    #[test]
    fn arms_are_named_and_the_order_is_explained() {
        let text = "Sweep(recipe: \"r.ron\", arms: [(name: \"pcl\"), (name: \"pauc\")], best: (metric: \"knn/heldout\"))";
        let s = Sweep::parse("s.ron", text).unwrap_or_else(|e| panic!("{e}")).0;
        let rows: Vec<Row> = s.points().iter().map(|p| Row::new(&s, p, "h", Vec::new())).collect();
        let table = table(&s, &rows);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines, [["arm", "runs"], ["pcl", "0/0"], ["pauc", "0/0"]]);
        let note = order_note(&s).unwrap();
        assert_eq!(note, "rows: best first by knn/heldout (largest, on training images)");
    }
}
