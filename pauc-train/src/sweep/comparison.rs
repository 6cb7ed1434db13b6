//! The paired differences between the arms of a sweep.

use super::table::{aligned, shorten};
use super::{CompareArms, Row, Sweep};
use crate::statistics::{PairedDifference, Resamples, holm};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The differences of all arms from one of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmComparison {
    /// The arm that the others are compared with.
    pub to: String,
    /// The number of tests that Holm's correction takes together: those of all arms, values and metrics.
    pub tests: usize,
    /// The number of resamples of each bootstrap.
    pub resamples: usize,
    /// The seed of the bootstrap.
    pub seed: u64,
    /// The differences.
    pub differences: Vec<ArmDifference>,
    /// Metrics to compare that `to` and another arm never have for the same seed.
    pub not_measured: Vec<String>,
}

/// The difference of a metric between two arms.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmDifference {
    /// The arm.
    pub arm: String,
    /// The values of the paths of `over`.
    pub set: BTreeMap<String, String>,
    /// The metric.
    pub metric: String,
    /// The arm's value minus that of the other, over the seeds that both have.
    #[serde(flatten)]
    pub difference: PairedDifference,
}

/// Compares the arms of a sweep; `None` if it does not ask for that.
pub fn compare(sweep: &Sweep, rows: &[Row]) -> Option<ArmComparison> {
    let CompareArms { to, metrics, resamples, seed } = sweep.compare.as_ref()?;
    let options = Resamples { count: *resamples, seed: *seed };
    let measured: BTreeSet<&str> =
        rows.iter().flat_map(|r| &r.runs).flat_map(|run| run.accuracies.iter().map(String::as_str)).collect();
    let names: Vec<&str> = match metrics[..] {
        [] => measured.into_iter().collect(),
        _ => metrics.iter().map(String::as_str).collect(),
    };
    let mut differences = Vec::new();
    for row in rows.iter().filter(|row| row.arm.as_ref().is_some_and(|arm| arm != to)) {
        let is_base = |other: &&Row| other.arm.as_ref() == Some(to) && other.set == row.set;
        let Some(base) = rows.iter().find(is_base) else { continue };
        for metric in &names {
            let Some(difference) = PairedDifference::of(&pairs(base, row, metric), options) else { continue };
            let (arm, set) = (row.arm.clone().unwrap_or_default(), row.set.clone());
            differences.push(ArmDifference { arm, set, metric: metric.to_string(), difference });
        }
    }
    let corrected = holm(&differences.iter().map(|d| d.difference.p).collect::<Vec<_>>());
    differences.iter_mut().zip(&corrected).for_each(|(d, p)| d.difference.p_holm = *p);
    let has = |metric: &&str| differences.iter().any(|d| d.metric == **metric);
    let not_measured = names.iter().filter(|m| !has(m)).map(|m| m.to_string()).collect();
    let tests = corrected.iter().flatten().count();
    Some(ArmComparison {
        to: to.clone(),
        tests,
        resamples: resamples.get(),
        seed: *seed,
        differences,
        not_measured,
    })
}

/// Returns the differences of a metric over the seeds that both rows have finished.
fn pairs(base: &Row, row: &Row, metric: &str) -> Vec<f64> {
    let values = |row: &Row| -> BTreeMap<u64, f64> {
        let finished = row.runs.iter().filter(|run| run.is_finished());
        finished.filter_map(|run| Some((run.seed, *run.metrics.get(metric)?))).collect()
    };
    let (base, other) = (values(base), values(row));
    let pairs = base.iter().filter_map(|(seed, a)| Some(other.get(seed)? - a));
    pairs.filter(|d| d.is_finite()).collect()
}

impl ArmComparison {
    /// Formats the differences as a table with an explanation.
    pub fn table(&self) -> String {
        if self.differences.is_empty() {
            return format!(
                "differences from {0}: no other arm has finished a seed that {0} has finished\n",
                self.to
            );
        }
        let paths: BTreeSet<&String> = self.differences.iter().flat_map(|d| d.set.keys()).collect();
        let head = ["metric", "n", "difference", "95 % (t)", "95 % (bootstrap)", "p", "p (Holm)", "d"];
        let head = ["arm"].into_iter().chain(paths.iter().map(|p| p.as_str())).chain(head);
        let mut cells: Vec<Vec<String>> = vec![head.map(String::from).collect()];
        let interval = |i: Option<[f64; 2]>| i.map_or("–".into(), |[a, b]| format!("[{a:+.4}, {b:+.4}]"));
        let number = |v: Option<f64>, digits: usize| v.map_or("–".into(), |v| format!("{v:.digits$}"));
        for ArmDifference { arm, set, metric, difference: d } in &self.differences {
            let values = paths.iter().map(|p| set.get(*p).cloned().unwrap_or_default());
            let numbers = [
                metric.clone(),
                d.n.to_string(),
                format!("{:+.4}", d.mean),
                interval(d.t_interval),
                interval(d.bootstrap_interval),
                number(d.p, 4),
                number(d.p_holm, 4),
                d.cohens_d.map_or("–".into(), |v| format!("{v:+.2}")),
            ];
            cells.push([arm.clone()].into_iter().chain(values).chain(numbers).collect());
        }
        (1..1 + paths.len()).for_each(|column| shorten(&mut cells[1..], column));
        let mut out = format!("differences from {}, paired over seeds\n{}", self.to, aligned(&cells));
        out.push_str(&format!(
            "p: Student's paired two-sided t-test; Holm's correction for {} tests; d: Cohen's d of pairs; bootstrap: \
             percentiles of {} resamples, seed {}\n",
            self.tests, self.resamples, self.seed
        ));
        for metric in &self.not_measured {
            out.push_str(&format!("{metric}: no other arm has it for a seed of {}\n", self.to));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Standing;
    use pauc_testing::{assert_within, tolerance};

    fn row(arm: &str, set: &str, knn: &[f64]) -> Row {
        let run = |(seed, value): (usize, &f64)| Standing {
            seed: seed as u64,
            status: if value.is_nan() { "failed" } else { "finished" }.into(),
            metrics: BTreeMap::from([("knn".to_string(), *value), ("rank".to_string(), 1.0)]),
            accuracies: BTreeSet::from(["knn".to_string()]),
            ..Standing::default()
        };
        Row {
            arm: Some(arm.into()),
            set: BTreeMap::from([("k".to_string(), set.to_string())]),
            runs: knn.iter().enumerate().map(run).collect(),
            ..Row::default()
        }
    }

    fn compared(more: &str, rows: &[Row]) -> ArmComparison {
        let text = format!(
            "Sweep(recipe: \"r.ron\", arms: [(name: \"a\"), (name: \"b\"), (name: \"c\")], compare: (to: \"a\"{more}))"
        );
        let sweep = Sweep::parse("s.ron", &text).unwrap_or_else(|e| panic!("{e}")).0;
        compare(&sweep, rows).unwrap()
    }

    #[test]
    fn arms_are_paired_by_seed_and_value() {
        let rows = [
            row("a", "1", &[0.50, 0.60, 0.40]),
            row("a", "2", &[0.1, 0.1, f64::NAN]),
            row("b", "1", &[0.55, 0.67, 0.46]),
            row("b", "2", &[0.1, 0.2, 0.9]),
            row("c", "1", &[0.5, f64::NAN, f64::NAN]),
        ];
        let found = compared("", &rows);
        let sizes: Vec<_> =
            found.differences.iter().map(|d| (&*d.arm, &*d.set["k"], d.difference.n)).collect();
        assert_eq!(sizes, [("b", "1", 3), ("b", "2", 2), ("c", "1", 1)]);
        let first = &found.differences[0].difference;
        assert_within!(first.mean, 0.06, tolerance::f64(8, 1.5));
        // Two tests, so the smaller p-value is doubled.
        assert_eq!((found.tests, first.p_holm), (2, first.p.map(|p| 2.0 * p)));
        assert_eq!(found.differences[2].difference.p_holm, None);
        let table = found.table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[0].starts_with("differences from a") && lines[1].starts_with("arm  k  metric  n"),
            "{table}"
        );
        assert!(lines[2].starts_with("b    1  knn     3  +0.0600"), "{table}");
        assert!(lines[5].contains("Holm's correction for 2 tests"), "{table}");
    }

    #[test]
    fn metrics_are_those_asked_for() {
        let rows = [row("a", "1", &[0.5, 0.5]), row("b", "1", &[0.6, 0.7])];
        let found = compared(", metrics: [\"rank\", \"nmi\"]", &rows);
        let names: Vec<&str> = found.differences.iter().map(|d| &*d.metric).collect();
        assert_eq!(names, ["rank"]);
        assert_eq!(found.differences[0].difference.p, Some(1.0), "no difference at all");
        assert_eq!(found.not_measured, ["nmi"]);
        assert!(found.table().contains("nmi: no other arm has it for a seed of a"));
        let none = compared("", &rows[..1]).table();
        assert_eq!(none, "differences from a: no other arm has finished a seed that a has finished\n");
    }
}
