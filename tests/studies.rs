//! The tables of `docs/src/study.md` match the stored results of the studies.

#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::root;
use serde_json::Value;

/// A metric of the page.
struct Metric {
    /// The name in the results begins and ends with these.
    name: (&'static str, &'static str),
    label: &'static str,
    /// Whether it is a fraction that the page shows in percent.
    is_percent: bool,
}

const METRICS: [Metric; 5] = [
    Metric { name: ("knn/", "/t0.07"), label: "kNN, %", is_percent: true },
    Metric { name: ("linear/lbfgs/standardised", "standardised"), label: "linear, %", is_percent: true },
    Metric { name: ("kmeans/", "/nmi"), label: "NMI", is_percent: false },
    Metric {
        name: ("coagulation/classes/within_rank", "within_rank"),
        label: "rank within classes",
        is_percent: false,
    },
    Metric { name: ("rankme/features", "rankme/features"), label: "rank of features", is_percent: false },
];

impl Metric {
    fn is(&self, name: &str) -> bool {
        name.starts_with(self.name.0) && name.ends_with(self.name.1)
    }

    /// Formats a value: percentages and values from 10 on with one decimal, others with two, and with three below 1.
    fn number(&self, value: f64) -> String {
        let digits = match value.abs() {
            _ if self.is_percent => 1,
            10.0.. => 1,
            1.0.. => 2,
            _ => 3,
        };
        let value = if self.is_percent { 100.0 * value } else { value };
        format!("{value:.digits$}")
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

/// Returns the values of the swept paths as cells of a table.
fn cells(row: &Value) -> String {
    let values = row["set"].as_object().unwrap().values();
    values.map(|v| format!("{} | ", v.as_str().unwrap().trim_matches(['[', ']']))).collect()
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

/// Renders the means of a study over seeds: one line for each arm and each combination of swept values. A star marks
/// a difference whose p-value is below 0.05 after Holm's correction.
fn means(study: &Value) -> String {
    let mut out = heading(&rows(study)[0], &METRICS.each_ref().map(|m| m.label));
    for row in rows(study) {
        out += &format!("| {} | {}", arm(row), cells(row));
        for metric in &METRICS {
            let (name, [mean, sd]) = metric.of_row(row);
            let differs = difference(study, row, name).is_some_and(|d| d["p_holm"].as_f64().unwrap() < 0.05);
            let star = if differs { "\\*" } else { "" };
            out += &format!("{} ± {}{star} | ", metric.number(mean), metric.number(sd));
        }
        out = out.trim_end().to_string() + "\n";
    }
    out
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}

/// Renders the differences of a study: the mean, its 95 % interval by Student's distribution, and Holm's p-value.
fn differences(study: &Value) -> String {
    let all = study["comparison"]["differences"].as_array().unwrap();
    let mut out = heading(&all[0], &["metric", "difference", "95 % interval", "p"]);
    for d in all {
        let metric = METRICS.iter().find(|m| m.is(d["metric"].as_str().unwrap())).unwrap();
        let shown = |value: &Value| metric.signed(value.as_f64().unwrap());
        let ends = [0, 1].map(|end| shown(&d["t_interval"][end]));
        out += &format!(
            "| {} | {}{} | {} | {} to {} | {} |\n",
            arm(d),
            cells(d),
            metric.label,
            shown(&d["mean"]),
            ends[0],
            ends[1],
            p_value(d["p_holm"].as_f64().unwrap())
        );
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
    let path = root().join("docs/src/study.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let mechanism = stored("mechanism");
    text = filled(&text, "means of mechanism", &means(&mechanism));
    text = filled(&text, "differences of mechanism", &differences(&mechanism));
    text = filled(&text, "means of projector", &means(&stored("projector")));
    if std::env::var_os("PAUC_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(
        page == text,
        "study.md is out of date: run PAUC_UPDATE_DOCS=1 cargo test -p pauc-cli --test studies"
    );
}

/// Every run says what made it, so that it can be made again.
#[test]
fn stored_results_say_what_made_them() {
    for entry in std::fs::read_dir(root().join("studies")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let study: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for row in rows(&study) {
            assert_eq!(row["hash"].as_str().unwrap().len(), 8, "{}", path.display());
            for run in row["runs"].as_array().unwrap() {
                for field in ["version", "simd"] {
                    assert!(run[field].is_string(), "{}: a run without {field}", path.display());
                }
            }
        }
    }
}
