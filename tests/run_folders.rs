//! Folders of runs that were damaged, or whose process was killed: what is said, and what is kept.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Output, Running, only_run, pauc};
use std::path::{Path, PathBuf};

const RECIPE: &str = r#"Recipe(
    name: "folder",
    data: Shapes(count: 64, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: ConvNet(channels: [4]),
    projector: Mlp(dims: [8]),
    objective: [(term: InfoNce(temperature: 0.2))],
    probes: [],
    baselines: [],
    train: (epochs: 4, batch: 16, log_every: 1, checkpoint_every: Steps(2)),
)
"#;

/// Returns the arguments that train the small recipe below `folder`.
fn args(folder: &Path, more: &[&str]) -> Vec<String> {
    let recipe = folder.join("recipe.ron");
    std::fs::write(&recipe, RECIPE).unwrap();
    let out = folder.join("runs");
    let mut args: Vec<String> = ["--threads", "1", "run"].map(String::from).to_vec();
    args.extend([recipe.display().to_string(), "--out".into(), out.display().to_string()]);
    args.extend(more.iter().map(|s| s.to_string()));
    args
}

/// Trains the small recipe below `folder` and returns the run's folder.
fn trained(folder: &Path, more: &[&str]) -> PathBuf {
    let done = pauc(args(folder, more));
    assert_eq!(done.code, 0, "{}", done.stderr);
    only_run(&folder.join("runs"))
}

fn resume(run: &Path, more: &[&str]) -> Output {
    pauc([&["--threads", "1", "resume", run.to_str().unwrap()], more].concat())
}

fn assert_says(done: &Output, code: i32, texts: &[&str]) {
    assert_eq!(done.code, code, "{}", done.stderr);
    texts.iter().for_each(|text| assert!(done.stderr.contains(text), "no {text:?} in {}", done.stderr));
}

/// Starts a run without end, and waits for its first step. Returns its process and folder.
fn endless(folder: &Path) -> (Running, PathBuf) {
    let mut process = Running::start(args(folder, &["--set", "train.epochs=100000"]));
    let runs = folder.join("runs");
    let logged = || {
        let log =
            || Some(std::fs::read_dir(&runs).ok()?.flatten().next()?.path().join("seed0/metrics.jsonl"));
        let text = log().and_then(|path| std::fs::read_to_string(path).ok());
        text.is_some_and(|text| text.contains("\"event\":\"step\""))
    };
    process.wait_until("step in metrics.jsonl", logged);
    (process, only_run(&folder.join("runs")))
}

#[test]
fn run_beside_a_living_process_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let (process, run) = endless(folder.path());
    let second = pauc(args(folder.path(), &["--set", "train.epochs=100000"]));
    let holder = format!("process {} is training this run", process.0.id());
    assert_says(&second, 1, &[&holder, run.to_str().unwrap(), "pauc-cli tail"]);
    assert!(!second.stderr.contains("unfinished"), "{}", second.stderr);
}

#[test]
fn tail_of_a_killed_run_says_so_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, run) = endless(folder.path());
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    let told = pauc(["tail", run.to_str().unwrap()]);
    let remedy = format!("its process is gone; `pauc-cli resume {}` continues the run", run.display());
    assert_says(&told, 0, &[&remedy]);
    assert!(told.stdout.contains("step "), "{}", told.stdout);
}

#[test]
fn a_damaged_line_of_the_log_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &[]);
    let log = run.join("metrics.jsonl");
    let mut lines: Vec<String> = std::fs::read_to_string(&log).unwrap().lines().map(String::from).collect();
    lines[2].truncate(9);
    std::fs::write(&log, lines.join("\n") + "\n").unwrap();
    for verb in ["report", "tail"] {
        assert_says(
            &pauc([verb, run.to_str().unwrap()]),
            0,
            &["warning: ", "metrics.jsonl, line 3: not an event"],
        );
    }
}

#[test]
fn resume_without_a_checkpoint_begins_at_step_0_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &["--max-steps", "1"]);
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    std::fs::create_dir(run.join("checkpoints")).unwrap();
    assert_says(&resume(&run, &[]), 0, &["has no checkpoint; the run begins at step 0"]);
}

#[test]
fn an_output_that_cannot_be_written_ends_with_1_and_a_missing_input_with_4() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &[]);
    let run_path = run.to_str().unwrap();
    // A folder with the file's name: nobody can replace it with a file.
    std::fs::remove_file(run.join("report.html")).unwrap();
    std::fs::create_dir_all(run.join("report.html/x")).unwrap();
    assert_says(&pauc(["report", run_path]), 1, &["report.html", "cannot be written"]);
    let nowhere = folder.path().join("missing/x.safetensors").display().to_string();
    assert_says(
        &pauc(["export", run_path, "--out", &nowhere]),
        1,
        &["missing/x.safetensors", "create its folder"],
    );
    assert_says(&pauc(["embed", run_path, "--split", "train", "--out", &nowhere]), 1, &["create its folder"]);
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    assert_says(&pauc(["export", run_path, "--out", "x.safetensors"]), 4, &["last.safetensors"]);
}
