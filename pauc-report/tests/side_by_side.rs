//! One page about several runs.

// Helpers may unwrap, like the tests themselves.
#![allow(clippy::unwrap_used)]

mod synthetic;

use pauc_report::events::{Event, Log, Metric, Subject};
use pauc_report::side_by_side::{LARGEST, Mean, Recipe, RecipeChange, Side, SideBySide, render};
use pauc_report::{ReportData, write_side_by_side};
use pauc_traits::probe::MetricKind;
use std::collections::BTreeMap;
use std::path::Path;

const KNN: &str = "knn/cos/k20/t0.07";

/// The newest metrics of the trained encoder.
fn newest(log: &Log) -> BTreeMap<String, Metric> {
    let mut newest = BTreeMap::new();
    for event in &log.events {
        if let Event::Probe(p) = event
            && p.subject == Subject::Trained
        {
            newest.extend(p.metrics.iter().map(|m| (m.name.clone(), m.clone())));
        }
    }
    newest
}

/// Writes a run whose objective and accuracies differ from those of the synthetic one.
fn side(dir: &Path, name: &str, seed: u64, factor: f64, recipe: usize) -> Side {
    synthetic::write(dir).unwrap();
    let mut events = synthetic::events();
    for event in &mut events {
        match event {
            Event::Step(s) => {
                s.loss *= factor;
                s.terms[0].value = s.terms[0].value.map(|v| v * factor);
            }
            Event::Probe(p) if p.subject == Subject::Trained => {
                let accuracies = p.metrics.iter_mut().filter(|m| m.kind == MetricKind::Accuracy);
                accuracies.for_each(|m| m.value *= factor);
            }
            _ => {}
        }
    }
    let lines: Vec<String> = events.iter().map(|e| serde_json::to_string(e).unwrap()).collect();
    std::fs::write(dir.join("metrics.jsonl"), lines.join("\n") + "\n").unwrap();
    let run = serde_json::json!({
        "name": name, "hash": format!("{recipe}fa9c1d2"), "seed": seed, "status": "finished", "threads": seed + 1,
        "device": "cpu",
    });
    std::fs::write(dir.join("run.json"), run.to_string()).unwrap();
    let log = Log::read(&dir.join("metrics.jsonl")).unwrap();
    Side { metrics: newest(&log), data: ReportData::read(dir).unwrap(), recipe }
}

/// Two runs of one recipe and one of another.
fn three(dir: &Path) -> SideBySide {
    let runs = vec![
        side(&dir.join("a"), "first", 0, 1.0, 0),
        side(&dir.join("b"), "first", 1, 0.98, 0),
        side(&dir.join("c"), "<img src=x>&", 0, 1.02, 1),
    ];
    let change = RecipeChange {
        path: "objective[0].term.temperature".into(),
        first: Some("0.2".into()),
        other: Some("<b>0.5".into()),
    };
    let mean = |n, mean, sd, paired| BTreeMap::from([(KNN.to_string(), Mean { n, mean, sd, paired })]);
    let recipes = vec![
        Recipe { title: "first-0fa9c1d2".into(), means: mean(2, 0.8431, 0.0123, None), ..Recipe::default() },
        Recipe {
            title: "<img src=x>&-1fa9c1d2".into(),
            changes: vec![change],
            means: mean(1, 0.8731, f64::NAN, Some((0.0312, 2))),
        },
    ];
    SideBySide { runs, recipes }
}

#[test]
fn the_tables_have_the_numbers_of_the_logs_and_their_differences() {
    let dir = tempfile::tempdir().unwrap();
    let all = three(dir.path());
    let page = render(&all).unwrap();
    let value = |run: &str| {
        let log = Log::read(&dir.path().join(run).join("metrics.jsonl")).unwrap();
        100.0 * newest(&log)[KNN].value
    };
    let (a, b, c) = (value("a"), value("b"), value("c"));
    assert!(b < a && a < c);
    let row = format!(
        "<td>{a:.2} %</td><td>{b:.2} %<small class=\"bad\">−{:.2}</small></td>\
         <td>{c:.2} %<small class=\"good\">+{:.2}</small></td>",
        a - b,
        c - a
    );
    assert!(page.contains(&row), "no {row}");
    let means = "<td>84.31 ± 1.23 % (2)</td><td>87.31 % (1)<small class=\"good\">+3.00</small></td><td>0.031 (2)</td>";
    assert!(page.contains(means), "no {means}");
    // RankMe is the same in all of them.
    let rank = "<code>rankme/<wbr>features</code></td>";
    let rank = &page[page.rfind(rank).unwrap() + rank.len()..];
    assert_eq!(rank.split("</tr>").next().unwrap().matches("<small>±0</small>").count(), 2);
}

#[test]
fn every_point_of_a_probe_is_drawn_for_every_run() {
    let dir = tempfile::tempdir().unwrap();
    let page = render(&three(dir.path())).unwrap();
    let names = ["1 · first-0fa9c1d2, seed 0", "2 · first-0fa9c1d2, seed 1"];
    for (run, name) in ["a", "b"].into_iter().zip(names) {
        let log = Log::read(&dir.path().join(run).join("metrics.jsonl")).unwrap();
        let mut points = 0;
        for event in log.events {
            let Event::Probe(p) = event else { continue };
            if p.subject == Subject::Trained {
                let value = p.metrics.iter().find(|m| m.name == KNN).unwrap().value;
                let tooltip = format!("<title>{name}: {:.2} % at {:.3}", 100.0 * value, p.epoch);
                assert!(page.contains(tooltip.trim_end_matches('0')), "no {tooltip}");
                points += 1;
            }
        }
        assert_eq!(points, 20);
    }
    assert!(page.contains("The same in every run:") && page.contains("Learning rate"));
    assert!(page.contains("chance 7.626"), "the chance level holds for all runs");
    assert_eq!(page.matches("type=\"checkbox\"").count(), 3);
}

#[test]
fn the_page_loads_nothing_and_names_stay_text() {
    let dir = tempfile::tempdir().unwrap();
    let page = render(&three(dir.path())).unwrap();
    assert!(page.contains("&lt;img src=x&gt;&amp;-1fa9c1d2"));
    assert!(page.contains("&lt;b&gt;0.5") && page.contains("objective[0].term.temperature"));
    assert!(!page.contains("<img") && !page.contains("<b>0.5") && !page.contains("NaN"));
    let without_xmlns = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").replace("&lt;img src=x", "");
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!without_xmlns.contains(outside), "{outside}");
    }
    // Threads differ, the device does not.
    assert!(page.contains("<td>threads</td><td><b>1</b></td><td><b>2</b></td><td><b>1</b></td>"));
    assert!(page.contains("<td>device</td><td colspan=\"3\">cpu</td>"));
}

#[test]
fn the_elements_of_the_page_are_closed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let page = render(&three(dir.path())).unwrap();
    let body = &page[page.find("<body>").unwrap()..];
    let mut open: Vec<&str> = Vec::new();
    for tag in body.split('<').skip(1).map(|t| t.split('>').next().unwrap()) {
        let name = tag.split([' ', '/']).next().unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name).filter(|n| *n != "html"), "</{name}>");
            if name == "body" {
                break;
            }
        } else if !tag.ends_with('/') && !["input", "wbr"].contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn runs_without_anything_in_common_and_too_many_runs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let full = side(dir.path(), "full", 0, 1.0, 0);
    let recipes = vec![Recipe::default()];
    let empty = SideBySide { runs: vec![full.clone(), Side::default()], recipes: recipes.clone() };
    assert!(
        render(&empty).unwrap_err().to_string().contains("no two of these runs have a metric or a curve")
    );
    let many = SideBySide { runs: vec![full.clone(); LARGEST + 1], recipes: recipes.clone() };
    assert!(render(&many).unwrap_err().to_string().contains("41 runs do not fit"));
    // Colors repeat after ten runs, with other dashes.
    let eleven = SideBySide { runs: vec![full; 11], recipes };
    let page = dir.path().join("page.html");
    let text = std::fs::read_to_string(write_side_by_side(&eleven, &page).unwrap()).unwrap();
    assert!(text.contains("stroke:var(--c0)\" stroke-dasharray=\"7 3\""));
}
