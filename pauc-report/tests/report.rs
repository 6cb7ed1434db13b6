//! A complete report from the folder of a run.

// Helpers may unwrap, like the tests themselves.
#![allow(clippy::unwrap_used)]

mod synthetic;

use pauc_report::events::{Event, Log, Subject};
use pauc_report::{ReportData, write_figures, write_report};

fn page() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    synthetic::write(dir.path()).unwrap();
    let page = std::fs::read_to_string(write_report(dir.path()).unwrap()).unwrap();
    (dir, page)
}

#[test]
fn the_page_loads_nothing_and_holds_every_part() {
    let (_dir, page) = page();
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        let without_xmlns = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!without_xmlns.contains(outside), "{outside}");
    }
    for part in [
        "<h1>pauc-fashion</h1>",
        "3fa9c1d2",
        "prefers-color-scheme:dark",
        "Training",
        "<h2>Gradients of the terms</h2>",
        "<td>cosine: ProtoNce · Alignment</td>",
        "Coagulation",
        "Clustering",
        "Embeddings of the test split",
        "The first 2000 of 10000 images",
        "t-SNE, by class",
        "Neighbors at many settings",
        "Where the time goes",
        "Healthy: no loss is at its chance level",
        "Resolved recipe",
        "avx512",
        "most prototypes have a single sample",
        "15 clusterings",
        "chance 7.626",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("NaN") && !page.contains(">inf"));
}

#[test]
fn the_verdict_has_the_numbers_of_the_log() {
    let (dir, page) = page();
    let data = ReportData::read(dir.path()).unwrap();
    let trained = data.latest(Subject::Trained, "knn/cos/k20/t0.07").unwrap();
    assert!(page.contains(&format!("<b>{:.2} %</b>", 100.0 * trained)));
    assert!(page.contains("79.81 %") && page.contains("73.42 %"));
    assert!(page.contains(&format!(">+{:.2}<", 100.0 * (trained - 0.7981))));
}

#[test]
fn every_open_tag_of_every_figure_is_closed_in_order() {
    let (dir, _) = page();
    let files = write_figures(dir.path()).unwrap();
    assert_eq!(files.len(), 32, "{files:?}");
    for file in files {
        let svg = std::fs::read_to_string(&file).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("--c0:"), "{}", file.display());
        let mut open: Vec<&str> = Vec::new();
        for tag in svg.split('<').skip(1).map(|t| t.split('>').next().unwrap()) {
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{}", file.display());
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        assert!(open.is_empty(), "{}", file.display());
    }
}

#[test]
fn a_crashed_run_has_a_report() {
    let (dir, _) = page();
    let path = dir.path().join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    // Truncated within a warm-up step: no prototypes, no linear probe, no end.
    std::fs::write(&path, &text[..text.len() / 6]).unwrap();
    std::fs::remove_file(dir.path().join("figures/embedding.json")).unwrap();
    std::fs::remove_file(dir.path().join("run.json")).unwrap();
    let page = std::fs::read_to_string(write_report(dir.path()).unwrap()).unwrap();
    assert!(page.contains("no end recorded") && page.contains("Training"));
    assert!(!page.contains("<h2>Clustering") && !page.contains("unreadable lines"));
}

#[test]
fn the_synthetic_log_reads_back_as_written() {
    let (dir, _) = page();
    let log = Log::read(&dir.path().join("metrics.jsonl")).unwrap();
    assert_eq!(log.events.len(), synthetic::events().len());
    assert!(matches!(log.events.last(), Some(Event::End(_))) && log.damaged.is_empty());
}
