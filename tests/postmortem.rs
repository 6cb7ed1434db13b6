//! A run that ends with NaN or infinity: what the terminal, the log, the report and the verb say.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Output, only_run, pauc};
use std::path::{Path, PathBuf};

const RECIPE: &str = r#"Recipe(
    name: "diverging",
    data: Shapes(count: 64, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: MlpEncoder(dims: [16]),
    projector: Mlp(dims: [8]),
    objective: [(term: InfoNce(temperature: 0.2))],
    optimizer: Sgd(lr: 0.05),
    schedule: Constant,
    probes: [],
    baselines: [],
    train: (epochs: 2, batch: 16, log_every: 1, checkpoint_every: Steps(2)),
)
"#;

/// Trains the small recipe below `folder`; returns what was printed, and the run's folder.
fn train(folder: &Path, set: &[&str]) -> (Output, PathBuf) {
    let recipe = folder.join("recipe.ron");
    std::fs::write(&recipe, RECIPE).unwrap();
    let (recipe, out) = (recipe.display().to_string(), folder.join("runs"));
    let mut args = vec!["--threads", "1", "run", &recipe, "--out", out.to_str().unwrap()];
    args.extend(set.iter().flat_map(|s| ["--set", *s]));
    (pauc(args), only_run(&out))
}

#[test]
fn a_run_that_diverges_tells_its_story_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let (done, run) = train(folder.path(), &["optimizer.lr=1e30"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    let error = done.stderr.split_once("error: ").unwrap().1.trim_end();
    assert!(error.lines().count() <= 16, "{error}");
    for part in ["InfoNce is not finite at step 2 of 8", "the learning rate is far too high", "report.html"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let path = run.to_str().unwrap();
    let again = pauc(["postmortem", path]);
    assert_eq!((again.code, again.stdout.trim_end()), (0, error));
    let json = pauc(["postmortem", path, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json["status"].as_str(), json["postmortem"]["step"].as_u64()), (Some("failed"), Some(2)));
    assert_eq!(json["postmortem"]["causes"][0]["kind"], "learning_rate");
    assert_eq!(json["postmortem"]["first"]["kind"], "embeddings");
    let told = pauc(["tail", path]);
    assert!(
        told.code == 0 && told.stdout.contains("failed: InfoNce is not finite at step 2 of 8"),
        "{told:?}"
    );
    let page = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(
        page.contains("InfoNce is not finite at step 2 of 8") && page.contains("Gradient of the last steps")
    );
    assert!(page.matches("<img src=\"data:image/png;base64,").count() >= 3, "pictures of samples");
    // The command that it proposes works.
    let command = error.lines().find_map(|line| line.split_once("pauc-cli run ")).unwrap().1;
    let out = folder.path().join("repaired").display().to_string();
    let args = ["run"].into_iter().chain(command.split(' ')).chain(["--out", &out]);
    let repaired = pauc(args);
    assert_eq!(repaired.code, 0, "{}", repaired.stderr);
    let repaired = only_run(&folder.path().join("repaired"));
    let nothing = pauc(["postmortem", repaired.to_str().unwrap()]);
    assert!(nothing.code == 0 && nothing.stdout.contains("no value became NaN or infinite"), "{nothing:?}");
    assert!(nothing.stdout.contains("the run has finished"), "{nothing:?}");
    assert_eq!(pauc(["postmortem", folder.path().to_str().unwrap()]).code, 2, "not a run");
}

#[test]
fn a_network_with_nan_is_never_written_and_the_refusal_is_told() {
    let folder = tempfile::tempdir().unwrap();
    // The gradient is finite, but its product with the rate is not.
    let set = ["objective[0].weight=1e6", "optimizer.lr=3e38"];
    let (done, run) = train(folder.path(), &[&set[..], &["train.checkpoint_every=Steps(1)"]].concat());
    assert_eq!(done.code, 1, "{}", done.stderr);
    for part in
        ["the network is not finite after step 1 of 8", "the parameter ", "far too high", "no checkpoint"]
    {
        assert!(done.stderr.contains(part), "no {part:?} in {}", done.stderr);
    }
    let left = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(left, 0, "nothing half-written");
    // `resume` begins again, fails in the same way, and writes nothing either.
    let again = pauc(["--threads", "1", "resume", run.to_str().unwrap()]);
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(again.stderr.contains("the network is not finite after step 1 of 8"), "{}", again.stderr);
    assert_eq!(std::fs::read_dir(run.join("checkpoints")).unwrap().count(), 0);
}

#[test]
fn a_resumed_run_keeps_its_checkpoints_when_it_would_write_nan() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing is learned before step 4, whose update overflows.
    let late = "objective=[(term: InfoNce(), weight: 0.0), (term: InfoNce(), weight: 1e6, from: Steps(3))]";
    let optimizer = "optimizer=Sgd(lr: 3e38, weight_decay: 0.0)";
    let (done, run) = train(folder.path(), &[late, optimizer, "train.checkpoint_every=Steps(2)"]);
    let last = run.join("checkpoints/last.safetensors");
    let says = |done: &Output| {
        assert_eq!(done.code, 1, "{}", done.stderr);
        for part in
            ["the network is not finite after step 4 of 8", "the parameter ", "last.safetensors was written"]
        {
            assert!(done.stderr.contains(part), "no {part:?} in {}", done.stderr);
        }
    };
    says(&done);
    let kept = std::fs::read(&last).unwrap();
    says(&pauc(["--threads", "1", "resume", run.to_str().unwrap()]));
    assert!(std::fs::read(&last).unwrap() == kept, "the checkpoint of step 2");
    let names = std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["last.safetensors", "step-00000002.safetensors"]);
}
