//! The metrics of several runs as tables.

use super::{Mean, Side, SideBySide, letter};
use crate::axis::significant;
use crate::html::{NONE, breakable};
use pauc_traits::probe::MetricKind;
use serde::Serialize;
use std::collections::BTreeMap;

/// A table with one row per metric.
#[derive(Serialize)]
pub(super) struct Table {
    title: &'static str,
    note: &'static str,
    /// Whether the columns are runs, which have colors.
    by_run: bool,
    /// Whether it is shown at once.
    open: bool,
    head: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// The metric's name as HTML.
    metric: String,
    cells: Vec<Cell>,
}

#[derive(Default, Serialize)]
struct Cell {
    value: String,
    /// The difference to the first column, and its class.
    difference: Option<(String, &'static str)>,
}

/// Whether two of the runs have the same metric.
pub(super) fn have_common_metric(runs: &[Side]) -> bool {
    kinds(runs).keys().any(|name| runs.iter().filter(|r| r.metrics.contains_key(*name)).count() > 1)
}

/// Returns the tables of all metrics.
pub(super) fn tables(all: &SideBySide) -> Vec<Table> {
    let kinds = kinds(&all.runs);
    let of = |is_main: &dyn Fn(MetricKind) -> bool| -> Vec<(&String, MetricKind)> {
        kinds.iter().filter(|(_, kind)| is_main(**kind)).map(|(name, kind)| (*name, *kind)).collect()
    };
    let accuracies = of(&|kind| kind == MetricKind::Accuracy);
    let others = of(&|kind| kind != MetricKind::Accuracy);
    let mut tables = vec![Table {
        title: "Accuracies at the last probe",
        note: "On the test split; those with /heldout on held-out training images. Differences to the first run, in \
               percentage points.",
        by_run: true,
        open: true,
        head: (1..=all.runs.len()).map(|n| n.to_string()).collect(),
        rows: by_run(&all.runs, &accuracies),
    }];
    if all.runs.len() > all.recipes.len() {
        let compared = [accuracies, of(&|kind| kind == MetricKind::Quantity)].concat();
        tables.push(by_recipe(all, &compared));
    }
    tables.push(Table {
        title: "All other metrics at the last probe",
        note: "Differences to the first run.",
        by_run: true,
        open: false,
        head: (1..=all.runs.len()).map(|n| n.to_string()).collect(),
        rows: by_run(&all.runs, &others),
    });
    tables.retain(|t| !t.rows.is_empty());
    tables
}

/// Returns the kind of every metric.
fn kinds(runs: &[Side]) -> BTreeMap<&String, MetricKind> {
    runs.iter().rev().flat_map(|r| &r.metrics).map(|(name, metric)| (name, metric.kind)).collect()
}

fn by_run(runs: &[Side], metrics: &[(&String, MetricKind)]) -> Vec<Row> {
    let row = |(name, kind): &(&String, MetricKind)| {
        let value = |run: &Side| run.metrics.get(*name).map(|m| m.value);
        let first = runs.first().and_then(value);
        let cell = |(i, run): (usize, &Side)| {
            let Some(v) = value(run) else { return Cell { value: NONE.into(), difference: None } };
            let difference = first.filter(|_| i > 0).map(|f| difference(v - f, *kind));
            Cell { value: in_units(v, *kind), difference }
        };
        Row { metric: breakable(name), cells: runs.iter().enumerate().map(cell).collect() }
    };
    metrics.iter().map(row).collect()
}

fn by_recipe(all: &SideBySide, metrics: &[(&String, MetricKind)]) -> Table {
    let mut head = Vec::new();
    for i in 0..all.recipes.len() {
        head.push(letter(i));
        if i > 0 {
            head.push("p (pairs)".into());
        }
    }
    let row = |(name, kind): &(&String, MetricKind)| {
        let mut cells = Vec::new();
        let first = all.recipes[0].means.get(*name);
        for (i, recipe) in all.recipes.iter().enumerate() {
            let mean = recipe.means.get(*name);
            let value = mean.map_or(NONE.into(), |m| mean_text(m, *kind));
            let both = mean.zip(first).filter(|_| i > 0);
            let difference = both.map(|(m, f)| difference(m.mean - f.mean, *kind));
            cells.push(Cell { value, difference });
            if i > 0 {
                let p = mean.and_then(|m| m.paired).map_or(NONE.into(), |(p, n)| format!("{p:.3} ({n})"));
                cells.push(Cell { value: p, difference: None });
            }
        }
        Row { metric: breakable(name), cells }
    };
    Table {
        title: "Means over seeds",
        note: "Mean ± standard deviation over the seeds of each recipe, number of seeds, difference of the mean to that \
               of the first recipe, and p of a paired two-sided t-test over the seeds that both have.",
        by_run: false,
        open: true,
        head,
        rows: metrics.iter().map(row).collect(),
    }
}

fn is_fraction(kind: MetricKind) -> bool {
    matches!(kind, MetricKind::Accuracy | MetricKind::GridAccuracy)
}

/// Formats a value: accuracies in percent, others with four digits.
fn in_units(value: f64, kind: MetricKind) -> String {
    if is_fraction(kind) && value.is_finite() {
        format!("{:.2} %", 100.0 * value)
    } else {
        significant(value)
    }
}

fn mean_text(m: &Mean, kind: MetricKind) -> String {
    let n = m.n;
    match (is_fraction(kind) && m.mean.is_finite(), m.sd.is_finite()) {
        (true, true) => format!("{:.2} ± {:.2} % ({n})", 100.0 * m.mean, 100.0 * m.sd),
        (false, true) => {
            let mean = significant(m.mean);
            // As many decimals as the mean has.
            let sd = match mean.split_once('.') {
                Some((_, decimals)) if !mean.contains('e') => format!("{:.*}", decimals.len(), m.sd),
                _ => significant(m.sd),
            };
            format!("{mean} ± {sd} ({n})")
        }
        (_, false) => format!("{} ({n})", in_units(m.mean, kind)),
    }
}

/// Formats a difference with its sign; only for accuracies it is known which sign is good.
fn difference(value: f64, kind: MetricKind) -> (String, &'static str) {
    if !value.is_finite() {
        return (NONE.into(), "");
    }
    let fraction = is_fraction(kind);
    let text = if fraction { format!("{:.2}", 100.0 * value.abs()) } else { significant(value.abs()) };
    if text.chars().all(|c| "0.".contains(c)) {
        return ("±0".into(), "");
    }
    match value > 0.0 {
        true => (format!("+{text}"), if fraction { "good" } else { "" }),
        false => (format!("−{text}"), if fraction { "bad" } else { "" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_differences_have_the_units_of_their_kind() {
        let (accuracy, quantity) = (MetricKind::Accuracy, MetricKind::Quantity);
        assert_eq!(in_units(0.8125, accuracy), "81.25 %");
        assert_eq!(in_units(12.5, quantity), "12.50");
        assert_eq!(in_units(f64::NAN, accuracy), "NaN or infinite");
        assert_eq!(difference(0.0125, accuracy), ("+1.25".into(), "good"));
        assert_eq!(difference(-0.0125, accuracy), ("−1.25".into(), "bad"));
        assert_eq!(difference(-2.0, quantity), ("−2.000".into(), ""));
        assert_eq!(difference(0.0, quantity), ("±0".into(), ""));
        assert_eq!(difference(f64::NAN, quantity), (NONE.into(), ""));
        let mean = |n, sd| Mean { n, mean: 0.5, sd, paired: None };
        assert_eq!(mean_text(&mean(3, 0.01), accuracy), "50.00 ± 1.00 % (3)");
        assert_eq!(mean_text(&mean(3, 0.01), quantity), "0.5000 ± 0.0100 (3)");
        assert_eq!(mean_text(&mean(1, f64::NAN), accuracy), "50.00 % (1)");
    }
}
