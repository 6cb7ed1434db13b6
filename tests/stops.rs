//! A signal ends a run in every phase, also in those that would take hours.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code
#![cfg(unix)]

mod common;

use common::{Running, only_run, pauc, training};
use std::path::{Path, PathBuf};
use std::time::Duration;

const RECIPE: &str = r#"Recipe(
    name: "stop",
    data: Shapes(count: 64, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: ConvNet(channels: [4]),
    projector: Mlp(dims: [8]),
    objective: [(term: InfoNce(temperature: 0.2))],
    probes: [],
    baselines: [],
    train: (epochs: 1, batch: 16, log_every: 1),
)
"#;

fn arguments(folder: &Path, set: &[&str]) -> Vec<String> {
    let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    training(RECIPE, folder, &set)
}

fn log(run: &Path) -> String {
    std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default()
}

/// Starts a run that logs `before`, and then begins a phase without end, of which it would log `result`. Stops it in
/// that phase. Returns its folder.
fn stopped(folder: &Path, set: &[&str], before: &str, result: &str) -> PathBuf {
    let mut process = Running::start(arguments(folder, set));
    let runs = folder.join("runs");
    let run = || Some(std::fs::read_dir(&runs).ok()?.flatten().next()?.path().join("seed0"));
    process.wait_until(before, || {
        run().is_some_and(|run| run.join("metrics.jsonl").exists() && log(&run).contains(before))
    });
    // Whether the phase has already begun decides nothing.
    std::thread::sleep(Duration::from_millis(300));
    process.signal("TERM");
    let (code, said) = process.end();
    assert_eq!(code, 130, "{set:?}: {said}");
    let run = only_run(&runs);
    assert!(!log(&run).contains(result), "{set:?}: the phase came to its end");
    let info = std::fs::read_to_string(run.join("run.json")).unwrap();
    assert!(info.contains("\"status\": \"interrupted\""), "{info}");
    assert!(run.join("checkpoints/last.safetensors").exists(), "{said}");
    run
}

#[test]
fn a_probe_without_end_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let set = ["probes=[Clusters(redos: 1000000000000)]"];
    let run = stopped(folder.path(), &set, "\"event\":\"health\"", "\"event\":\"probe\"");
    // The steps before it are saved.
    let steps = |log: &str| log.matches("\"event\":\"step\"").count();
    assert_eq!(steps(&log(&run)), 4);
}

#[test]
fn the_clustering_of_another_library_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let set = [
        "data=Shapes(count: 40000, size: 8, classes: 4)",
        "views=[(count: 2, ops: [RandomResizedCrop(size: 8)])]",
        "clusterer=Hdbscan(start: Steps(0))",
        "objective=[(term: InfoNce()), (term: ProtoNce())]",
    ];
    stopped(folder.path(), &set, "", "\"event\":\"clustering\"");
}

#[test]
fn waiting_for_views_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let set =
        ["views=[(count: 2, ops: [Resize(size: 4000), RandomResizedCrop(size: 12)])]", "train.batch=64"];
    stopped(folder.path(), &set, "\"event\":\"phase\"", "\"event\":\"step\"");
}

#[test]
fn a_stopped_phase_is_repeated_with_the_same_bits() {
    let set = ["probes=[Clusters(redos: 300)]", "train.epochs=2"];
    let whole = tempfile::tempdir().unwrap();
    let done = pauc(arguments(whole.path(), &set));
    assert_eq!(done.code, 0, "{}", done.stderr);
    let whole = only_run(&whole.path().join("runs"));
    let folder = tempfile::tempdir().unwrap();
    let mut process = Running::start(arguments(folder.path(), &set));
    let runs = folder.path().join("runs");
    let run = || Some(std::fs::read_dir(&runs).ok()?.flatten().next()?.path().join("seed0"));
    process.wait_until("the first event", || run().is_some_and(|run| !log(&run).is_empty()));
    process.signal("TERM");
    let (_, _) = process.end();
    let run = only_run(&runs);
    let done = pauc(["--threads", "1", "resume", run.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let last = |run: &Path| std::fs::read(run.join("checkpoints/last.safetensors")).unwrap();
    assert!(last(&run) == last(&whole));
}
