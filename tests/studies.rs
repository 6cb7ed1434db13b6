//! The tables of `docs/src/study.md` match the stored results of the studies.

#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{assert_current, root};
use serde_json::Value;

/// The page with the tables.
const PAGE: &str = "docs/src/study.md";

/// A metric of the page.
struct Metric {
    /// The name in the results begins and ends with these.
    name: (&'static str, &'static str),
    label: &'static str,
    /// What values are multiplied by: fractions are shown in percent.
    scale: f64,
    /// The number of decimals.
    digits: usize,
}

const METRICS: [Metric; 5] = [
    Metric { name: ("knn/", "/t0.07"), label: "kNN, %", scale: 100.0, digits: 1 },
    Metric { name: ("linear/", "/standardised"), label: "linear, %", scale: 100.0, digits: 1 },
    Metric { name: ("kmeans/", "/nmi"), label: "NMI", scale: 1.0, digits: 3 },
    Metric {
        name: ("coagulation/classes/", "/within_rank"),
        label: "rank within classes",
        scale: 1.0,
        digits: 2,
    },
    Metric { name: ("rankme/", "/features"), label: "rank of features", scale: 1.0, digits: 1 },
];

/// The studies with tables.
const STUDIES: [&str; 6] = [
    "mechanism",
    "projector",
    "claim-cifar10",
    "claim-fashion-mnist",
    "claim-cifar10-long-tail",
    "claim-cifar10-coarse",
];

impl Metric {
    fn is(&self, name: &str) -> bool {
        name.starts_with(self.name.0) && name.ends_with(self.name.1)
    }

    fn number(&self, value: f64) -> String {
        format!("{:.*}", self.digits, self.scale * value)
    }

    fn signed(&self, value: f64) -> String {
        let text = self.number(value.abs());
        format!("{}{text}", if value < 0.0 { "−" } else { "+" })
    }

    /// Finds the metric in a row: its name in the results, and its mean over seeds with the standard deviation.
    fn of_row<'a>(&self, row: &'a Value) -> (&'a str, [f64; 2]) {
        let (name, spread) =
            row["metrics"].as_object().unwrap().iter().find(|(name, _)| self.is(name)).unwrap();
        (name, ["mean", "sd"].map(|part| spread[part].as_f64().unwrap()))
    }
}

fn rows(study: &Value) -> &[Value] {
    study["rows"].as_array().unwrap()
}

fn arm(row: &Value) -> &str {
    row["arm"].as_str().unwrap()
}

/// Returns the arm and the values of the swept paths as cells of a table. A study that tunes its arms has no such paths.
fn cells(row: &Value) -> String {
    let swept = row["set"].as_object().unwrap().values();
    let values: String =
        swept.map(|v| format!("{} | ", v.as_str().unwrap().trim_matches(['[', ']']))).collect();
    format!("| {} | {values}", arm(row))
}

/// Returns the first two lines of a table, with the swept paths after the arm.
fn heading(first: &Value, columns: &[&str]) -> String {
    let paths = first["set"].as_object().unwrap().keys().map(|path| format!("`{path}`"));
    let columns: Vec<_> = std::iter::once("arm".to_string())
        .chain(paths)
        .chain(columns.iter().map(|c| c.to_string()))
        .collect();
    format!("| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()))
}

/// Finds the difference of an arm's row in a metric; `None` for the arm that the others are compared with.
fn difference<'a>(study: &'a Value, row: &Value, metric: &str) -> Option<&'a Value> {
    let all = study["comparison"]["differences"].as_array().unwrap();
    all.iter().find(|d| d["arm"] == row["arm"] && d["set"] == row["set"] && d["metric"] == metric)
}

/// Renders the means of a study over seeds ± the standard deviations: one line for each arm and each combination of swept
/// values, with a [`star`] where it differs from the arm that others are compared with.
fn means(study: &Value) -> String {
    let mut out = heading(&rows(study)[0], &METRICS.each_ref().map(|m| m.label));
    for row in rows(study) {
        out += &cells(row);
        for metric in &METRICS {
            let (name, [mean, sd]) = metric.of_row(row);
            let star = difference(study, row, name).map_or("", star);
            out += &format!("{} ± {}{star} | ", metric.number(mean), metric.number(sd));
        }
        out = out.trim_end().to_string() + "\n";
    }
    out
}

/// Marks a difference whose p-value is below 0.05 after Holm's correction.
fn star(difference: &Value) -> &'static str {
    if difference["p_holm"].as_f64().unwrap() < 0.05 { "\\*" } else { "" }
}

/// Renders the differences of a study in the metrics that it compares: means with the 95 % intervals by Student's
/// distribution, one line for each arm and each combination of swept values.
fn differences(study: &Value) -> String {
    let all = study["comparison"]["differences"].as_array().unwrap();
    let compared = |metric: &&Metric| all.iter().any(|d| metric.is(d["metric"].as_str().unwrap()));
    let metrics: Vec<_> = METRICS.iter().filter(compared).collect();
    let labels: Vec<_> = metrics.iter().map(|m| m.label).collect();
    let mut out = heading(&rows(study)[0], &labels);
    for row in rows(study).iter().filter(|row| row["arm"] != study["comparison"]["to"]) {
        out += &cells(row);
        for metric in &metrics {
            let (name, _) = metric.of_row(row);
            let d = difference(study, row, name).unwrap_or_else(|| panic!("{name} is not compared"));
            let [mean, low, high] = [&d["mean"], &d["t_interval"][0], &d["t_interval"][1]]
                .map(|value| metric.signed(value.as_f64().unwrap()));
            out += &format!("{mean} ({low} to {high}){} | ", star(d));
        }
        out = out.trim_end().to_string() + "\n";
    }
    out
}

/// Renders the settings that were chosen for each arm by held-out training images.
fn tuned(study: &Value) -> String {
    let mut out = "| arm | chosen settings |\n|---|---|\n".to_string();
    for row in rows(study) {
        let tuned = row["tuned"].as_object().unwrap();
        let values: Vec<_> =
            tuned.iter().map(|(path, v)| format!("`{path}={}`", v.as_str().unwrap())).collect();
        out += &format!("| {} | {} |\n", arm(row), values.join(", "));
    }
    out
}

/// Renders the norm of the gradient of each term and its cosines with those of the terms before it: means over all logged
/// steps of all runs at which every term was active.
fn gradients(lines: &str) -> String {
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let terms = |event: &Value| event["terms"].as_array().unwrap().clone();
    let count = events.iter().map(|event| terms(event).len()).max().unwrap();
    let complete: Vec<_> = events.iter().map(terms).filter(|terms| terms.len() == count).collect();
    let mean = |of: &dyn Fn(&[Value]) -> f64| {
        complete.iter().map(|terms| of(terms)).sum::<f64>() / complete.len() as f64
    };
    let name = |i: usize| complete[0][i]["name"].as_str().unwrap();
    let before: Vec<_> = (0..count - 1).map(name).collect();
    let mut out = format!("| term | norm | {} |\n|{}\n", before.join(" | "), "---|".repeat(count + 1));
    for i in 0..count {
        out += &format!("| {} | {:.3} |", name(i), mean(&|terms| terms[i]["norm"].as_f64().unwrap()));
        for j in 0..count - 1 {
            let cosine = mean(&|terms| terms[i]["cosines"].get(j).map_or(f64::NAN, |c| c.as_f64().unwrap()));
            let cell = if j < i { format!("{cosine:.2}").replace('-', "−") } else { String::new() };
            out += &format!(" {cell} |");
        }
        out += "\n";
    }
    out
}

/// Replaces the text between a marker and the next end marker.
fn filled(page: &str, marker: &str, table: &str) -> String {
    let (start, end) = (format!("<!-- {marker} -->\n"), "<!-- end -->");
    let (before, rest) = page.split_once(&start).unwrap_or_else(|| panic!("the page has no {start}"));
    let (_, after) = rest.split_once(end).unwrap_or_else(|| panic!("{start} has no end"));
    format!("{before}{start}{table}{end}{after}")
}

fn stored(name: &str) -> Value {
    let text = std::fs::read_to_string(root().join(format!("studies/{name}.json"))).unwrap();
    let study: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(study["failed"].as_array().unwrap().len(), 0, "{name} has failed runs");
    study
}

/// `PAUC_UPDATE_DOCS=1 cargo test -p pauc-cli --test studies` writes the tables.
#[test]
fn tables_match_the_stored_results() {
    let mut text = std::fs::read_to_string(root().join(PAGE)).unwrap();
    for name in STUDIES {
        let study = stored(name);
        text = filled(&text, &format!("means of {name}"), &means(&study));
        text = filled(&text, &format!("differences of {name}"), &differences(&study));
        if rows(&study)[0]["tuned"].is_object() {
            text = filled(&text, &format!("settings of {name}"), &tuned(&study));
        }
    }
    let lines = std::fs::read_to_string(root().join("studies/gradients.jsonl")).unwrap();
    text = filled(&text, "gradients of terms", &gradients(&lines));
    assert_current(PAGE, &text, "studies");
}

/// Every run says what made it, so that it can be made again.
#[test]
fn stored_results_say_what_made_them() {
    let files = std::fs::read_dir(root().join("studies")).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|e| e == "json")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        for row in rows(&stored(name)) {
            assert_eq!(row["hash"].as_str().unwrap().len(), 8, "{name}");
            for run in row["runs"].as_array().unwrap() {
                for field in ["version", "simd"] {
                    assert!(run[field].is_string(), "{name}: a run without {field}");
                }
            }
        }
    }
}
