//! Runs that continue from one of their checkpoints with a changed recipe.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Running, assert_says, events, only_run, pauc, resume, training};
use pauc::models::weights::TensorFile;
use std::path::{Path, PathBuf};

/// A small recipe with everything that a checkpoint stores. Its rate makes the loss infinite after some steps.
const RECIPE: &str = r#"Recipe(
    name: "branch",
    data: Shapes(count: 96, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: ConvNet(channels: [4]),
    projector: Mlp(dims: [8]),
    momentum_encoder: Ema(momentum: 0.9),
    queue: 32,
    clusterer: KMeans(k: [4], start: Epochs(1), every: Epochs(1)),
    objective: [(term: InfoNce(temperature: 0.2, negatives: QueueAndBatch)), (term: ProtoNce(), from: Epochs(1))],
    optimizer: Sgd(lr: 0.05, momentum: 0.9),
    schedule: Constant,
    probes: [Knn(k: 5, every: Epochs(1))],
    baselines: [],
    train: (epochs: 5, batch: 16, log_every: 1, checkpoint_every: Steps(4), keep: (last: 9, best: (metric: "knn/cos/k5/t0.07"))),
)
"#;

/// Returns the arguments that train the small recipe below `folder`.
fn args(folder: &Path, more: &[&str]) -> Vec<String> {
    training(RECIPE, folder, more)
}

/// Trains the small recipe below `folder` and returns the run's folder.
fn trained(folder: &Path, more: &[&str]) -> PathBuf {
    common::trained(RECIPE, folder, more)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn checkpoint(run: &Path, name: &str) -> PathBuf {
    run.join(format!("checkpoints/{name}.safetensors"))
}

/// Returns the names of the files of a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_that_diverged_finishes_from_good_at_a_lower_rate() {
    let folder = tempfile::tempdir().unwrap();
    let set =
        ["optimizer.lr=1e12", "schedule=WarmupCosine(warmup: Epochs(4))", "train.checkpoint_every=Steps(1)"];
    let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    let diverged = pauc(args(folder.path(), &set));
    let run = only_run(&folder.path().join("runs"));
    let path = run.to_str().unwrap();
    let command = format!("pauc-cli resume {path} --from good --set optimizer.lr=0.06");
    assert_says(&diverged, 1, &["not finite", "last good checkpoint", &command]);
    let told = pauc(["postmortem", path]);
    assert!(told.stdout.contains(&command), "{}", told.stdout);
    assert!(run.join("postmortem.json").exists());
    let before = json(&run.join("run.json"));

    let done = resume(&run, &["--from", "good", "--set", "optimizer.lr=0.01"]);
    let said = "the recipe changed: optimizer.lr from 1000000000000.0 to 0.01";
    assert_says(&done, 0, &[said, "finished"]);
    let losses: Vec<f64> =
        events(&run).iter().filter(|e| e["event"] == "step").map(|e| e["loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 30, "every step has a finite loss");

    let after = json(&run.join("run.json"));
    assert_eq!((&before["status"], &after["status"]), (&"failed".into(), &"finished".into()));
    let recipes = &after["recipes"];
    assert_eq!((&recipes[0]["since"], &recipes[0]["hash"]), (&0.into(), &before["hash"]));
    assert_eq!((&recipes[1]["hash"], &recipes[1]["set"][0]), (&after["hash"], &"optimizer.lr=0.01".into()));
    assert_ne!(before["hash"], after["hash"]);
    let recipe = std::fs::read_to_string(run.join("recipe.resolved.ron")).unwrap();
    assert!(recipe.contains("Since step") && recipe.contains("lr: 0.01"), "{recipe}");
    let first = std::fs::read_to_string(run.join("recipe.resolved.since-0.ron")).unwrap();
    assert!(first.contains("lr: 1000000000000.0"), "{first}");
    assert!(!run.join("postmortem.json").exists() && run.join("postmortem.json.superseded1").exists());
    let report = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("Changed during the run") && report.contains("optimizer.lr from"));
}

/// Trains the small recipe to its end.
fn finished() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &[]);
    (folder, run)
}

const CHANGE: [&str; 6] = ["--from", "12", "--set", "optimizer.lr=0.01", "--set", "objective[1].weight=0.5"];

/// Asserts that two runs have the same bits and events.
fn assert_same(one: &Path, other: &Path, what: &str) {
    let last = |run: &Path| std::fs::read(checkpoint(run, "last")).unwrap();
    assert!(last(one) == last(other), "{what}");
    assert_eq!(events(one), events(other), "{what}");
    let recipe = |run: &Path| std::fs::read_to_string(run.join("recipe.resolved.ron")).unwrap();
    assert_eq!(recipe(one), recipe(other), "{what}");
    let recipes = |run: &Path| json(&run.join("run.json"))["recipes"].clone();
    assert_eq!(recipes(one), recipes(other), "{what}");
}

#[test]
fn a_changed_run_has_the_bits_of_an_undisturbed_one_after_any_pause() {
    let (_folder, whole) = finished();
    assert_says(&resume(&whole, &CHANGE), 0, &["after step 12: the recipe changed: "]);
    for steps in ["12", "13", "16", "25"] {
        let (_folder, run) = finished();
        assert_says(&resume(&run, &[&CHANGE[..], &["--max-steps", steps]].concat()), 0, &[]);
        assert_says(&resume(&run, &[]), 0, &[]);
        assert_same(&run, &whole, &format!("paused after step {steps}"));
    }
}

#[test]
fn a_change_is_completed_wherever_the_process_was_killed() {
    let (_folder, whole) = finished();
    assert_says(&resume(&whole, &CHANGE), 0, &[]);
    // The change is in the checkpoint and nowhere else, as if the process had been killed right after it.
    let (_folder, run) = finished();
    let before = |name: &str| std::fs::read(run.join(name)).unwrap();
    let files = ["run.json", "recipe.resolved.ron", "metrics.jsonl"].map(|name| (name, before(name)));
    let steps = names(&run.join("checkpoints"));
    assert_says(&resume(&run, &[&CHANGE[..], &["--max-steps", "12"]].concat()), 0, &[]);
    let changed = std::fs::read(checkpoint(&run, "last")).unwrap();
    for (name, content) in files {
        std::fs::write(run.join(name), content).unwrap();
    }
    let done = resume(&run, &[]);
    assert_says(&done, 0, &["completed the change of the recipe", "last.safetensors"]);
    assert!(changed != std::fs::read(checkpoint(&run, "last")).unwrap() && !steps.is_empty());
    let last = |run: &Path| std::fs::read(checkpoint(run, "last")).unwrap();
    assert!(last(&run) == last(&whole));

    // Real kills at any time: either the old run or the changed one continues, from its own bits.
    let (_folder, unchanged) = finished();
    for delay in [0, 40, 80, 120, 160, 240, 320] {
        let (_folder, run) = finished();
        let command = ["--threads", "1", "resume", run.to_str().unwrap()];
        let mut process = Running::start([&command[..], &CHANGE].concat());
        std::thread::sleep(std::time::Duration::from_millis(delay));
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        let done = resume(&run, &[]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        if json(&run.join("run.json"))["recipes"].is_null() {
            assert!(last(&run) == last(&unchanged), "killed after {delay} ms, before the change");
        } else {
            assert_same(&run, &whole, &format!("killed after {delay} ms"));
        }
    }
}

#[test]
fn what_a_run_leaves_behind_is_set_aside_and_nothing_is_deleted() {
    let (_folder, run) = finished();
    let (before, log) =
        (names(&run.join("checkpoints")), std::fs::read_to_string(run.join("metrics.jsonl")).unwrap());
    let later = std::fs::read(checkpoint(&run, "step-00000030")).unwrap();
    assert_says(
        &resume(&run, &[&CHANGE[..], &["--max-steps", "13"]].concat()),
        0,
        &["up to step 30 are set aside"],
    );
    let after = names(&run.join("checkpoints"));
    for name in &before {
        let step: u64 = name.strip_prefix("step-").map_or(0, |n| n[..8].parse().unwrap());
        let name = if step > 12 { format!("{name}.superseded1") } else { name.clone() };
        assert!(after.contains(&name) || name == "best.safetensors", "no {name} in {after:?}");
    }
    let aside = run.join("checkpoints/step-00000030.safetensors.superseded1");
    assert!(std::fs::read(&aside).unwrap() == later);
    let superseded = std::fs::read_to_string(run.join("metrics.superseded.jsonl")).unwrap();
    let now = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    for line in log.lines() {
        assert!(now.contains(line) || superseded.contains(line), "{line} is lost");
    }
    // The abandoned checkpoint is still one of the run.
    let probe = ["eval", run.to_str().unwrap(), "--probe", "Knn(k: 5)", "--checkpoint"];
    assert_says(&pauc([&probe[..], &[aside.to_str().unwrap()]].concat()), 0, &[]);
    assert_says(&pauc(&probe[..4]), 0, &[]);
    let out = run.join("x.safetensors").display().to_string();
    assert_says(&pauc(["embed", run.to_str().unwrap(), "--out", &out]), 0, &[]);
    assert_eq!(
        TensorFile::metadata_of(&out).unwrap()["recipe"],
        json(&run.join("run.json"))["hash"].as_str().unwrap()
    );
}

#[test]
fn a_finished_run_is_extended_and_a_run_goes_back_without_a_change() {
    let (_folder, run) = finished();
    let tensors = || {
        let file = TensorFile::load(checkpoint(&run, "last")).unwrap();
        file.names().map(|name| (name.to_string(), file.get(name).unwrap().clone())).collect::<Vec<_>>()
    };
    let before = tensors();
    assert_says(&resume(&run, &["--from", "16"]), 0, &["those up to step 30 are set aside"]);
    assert!(tensors() == before, "the same steps give the same bits");
    assert!(json(&run.join("run.json"))["recipes"].is_null());
    assert_says(&resume(&run, &["--set", "train.epochs=6"]), 0, &["train.epochs from 5 to 6", "finished"]);
    let steps = |e: &serde_json::Value| (e["event"] == "step").then(|| e["step"].as_u64().unwrap());
    assert_eq!(events(&run).iter().filter_map(steps).collect::<Vec<_>>(), (1..=36).collect::<Vec<_>>());
    assert_says(&resume(&run, &[]), 0, &["already finished"]);
}

#[test]
fn images_may_move_to_another_folder_but_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let pixels: Vec<u8> = (0..96 * 144).map(|i| (i * 7 % 251) as u8).collect();
    let file = |pixels: &[u8]| pauc_testing::npy::file("|u1", false, "(96, 12, 12)", pixels);
    std::fs::write(at("x.npy"), file(&pixels)).unwrap();
    let data = format!("data=Npy(images: {:?})", at("x.npy"));
    let set = ["--set", &data, "--set", "probes=[]", "--set", "train.keep=(last: 9)", "--max-steps", "9"];
    let run = trained(folder.path(), &set);
    std::fs::rename(at("x.npy"), at("y.npy")).unwrap();
    let gone = resume(&run, &[]);
    assert_says(&gone, 4, &["x.npy", "if the images have moved, name their place with --set"]);
    let moved = format!("data.images={:?}", at("y.npy"));
    std::fs::write(at("y.npy"), file(&[&pixels[1..], &[0]].concat())).unwrap();
    assert_says(&resume(&run, &["--set", &moved]), 2, &["error[E0501]", "other images"]);
    std::fs::write(at("y.npy"), file(&pixels)).unwrap();
    assert_says(&resume(&run, &["--set", &moved]), 0, &["the recipe changed: data.images from", "finished"]);
    // As if they had always been there.
    let whole = tempfile::tempdir().unwrap();
    let data = format!("data=Npy(images: {:?})", at("y.npy"));
    let whole =
        trained(whole.path(), &["--set", &data, "--set", "probes=[]", "--set", "train.keep=(last: 9)"]);
    let tensors = |run: &Path| {
        let file = TensorFile::load(checkpoint(run, "last")).unwrap();
        file.names().map(|name| (name.to_string(), file.get(name).unwrap().clone())).collect::<Vec<_>>()
    };
    assert!(tensors(&run) == tensors(&whole), "the moved images are the same");
}

#[test]
fn what_a_checkpoint_depends_on_cannot_change() {
    let (_folder, run) = finished();
    let before = std::fs::read(run.join("run.json")).unwrap();
    for (set, place) in [
        ("train.batch=8", "train.batch"),
        ("train.accumulate=2", "train.accumulate"),
        ("train.seed=3", "train.seed"),
        ("name=\"x\"", "name"),
        ("data.count=95", "data.count"),
        ("encoder.channels=[5]", "encoder.channels"),
        ("projector=Mlp(dims: [9])", "projector.dims"),
        ("queue=48", "queue"),
        ("clusterer.k=[5]", "clusterer"),
        ("optimizer=AdamW(lr: 0.1)", "optimizer"),
        ("views[0].ops=[RandomResizedCrop(size: 10)]", "views"),
        ("objective[0].term=SwappedAssignment(prototypes: 8)", "objective[0].term"),
        ("baselines=[RawPixels]", "baselines"),
    ] {
        let done = resume(&run, &["--from", "20", "--set", set]);
        assert_says(
            &done,
            2,
            &["error[E0501]", &format!("a run cannot change `{place}"), "another run", "step-00000020"],
        );
    }
    assert_says(
        &resume(&run, &["--from", "20", "--set", "train.epochs=3"]),
        2,
        &["error[E0502]", "end at step 18"],
    );
    let missing = resume(&run, &["--from", "13"]);
    assert_says(&missing, 2, &["no checkpoint of step 13", "16", "30 (last"]);
    assert_says(&resume(&run, &["--from", "20", "--set", "train.epoch=3"]), 2, &["did you mean `epochs`?"]);
    assert!(std::fs::read(run.join("run.json")).unwrap() == before);
    // These can.
    let set = [
        "optimizer=Lars(lr: 0.1)",
        "schedule=WarmupCosine(warmup: Steps(2))",
        "objective[0].term.temperature=0.5",
        "momentum_encoder=Ema(momentum: 0.5)",
        "train.clip_gradient=Some(1.0)",
        "probes=[]",
        "train.log_every=2",
        "train.keep=(last: 1)",
        "concentration.alpha=5.0",
        "clusterer.every=Epochs(2)",
        "views[0].ops=[RandomResizedCrop(size: 12, scale: (0.5, 1.0))]",
    ];
    let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    assert_says(&resume(&run, &[&["--from", "20"], &set[..]].concat()), 0, &["finished"]);
}

#[test]
fn a_changed_run_is_not_taken_for_one_of_its_first_recipe() {
    let (folder, run) = finished();
    let copy = folder.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-r").args([&run, &copy]).status().unwrap();
    assert!(copied.success());
    assert_says(&resume(&run, &CHANGE), 0, &[]);
    let path = run.to_str().unwrap();
    let said = [path, "changed after step 12", "--out", "--force"];
    assert_says(&pauc(args(folder.path(), &[])), 1, &said);
    let recipe = folder.path().join("recipe.ron").display().to_string();
    let out = folder.path().join("runs").display().to_string();
    assert_says(&pauc(["reproduce", &recipe, "--out", &out, "--update"]), 1, &said);
    let compared = pauc(["compare", copy.to_str().unwrap(), path]);
    assert_eq!(compared.code, 0, "{}", compared.stderr);
    for text in ["changed after step 12: ", "optimizer.lr=0.01", "objective[1].weight: 1.0 → 0.5"] {
        assert!(compared.stdout.contains(text), "no {text:?} in {}", compared.stdout);
    }
    let tail = pauc(["tail", path]);
    assert!(tail.stdout.contains("after step 12: the recipe changed"), "{}", tail.stdout);
}
