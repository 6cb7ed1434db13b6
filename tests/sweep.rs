//! `sweep`, and several seeds of `run`.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Output, pauc};
use pauc_testing::{assert_within, tolerance};
use serde_json::Value;
use std::path::{Path, PathBuf};

const RECIPE: &str = r#"Recipe(version: 1, name: "swept", data: Shapes(count: 80, size: 12, classes: 4),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: MlpEncoder(dims: [16]), projector: Mlp(dims: [6]),
    objective: [(term: InfoNce(temperature: 0.2))],
    train: (epochs: 2, batch: 16), probes: [Knn(k: 5), Rank()])"#;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(sweep: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("recipe.ron"), RECIPE).unwrap();
        std::fs::write(folder.path().join("sweep.ron"), sweep).unwrap();
        Place { folder }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn sweep(&self, more: &[&str]) -> Output {
        let (sweep, out) = (self.at("sweep.ron"), self.at("runs"));
        let done = pauc(["sweep", &sweep, "--out", &out].iter().chain(more).copied());
        assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
        done
    }

    fn refused(&self, sweep: &str, says: &[&str]) {
        std::fs::write(self.at("sweep.ron"), sweep).unwrap();
        let done = self.sweep(&[]);
        assert_eq!(done.code, 2, "{}", done.stderr);
        for text in says {
            assert!(done.stderr.contains(text), "no `{text}` in\n{}", done.stderr);
        }
        assert!(!Path::new(&self.at("runs")).exists(), "nothing is trained");
    }

    /// As `refused`, beside finished runs.
    fn refused_with_runs(&self, sweep: &str, says: &str) {
        std::fs::write(self.at("sweep.ron"), sweep).unwrap();
        let done = self.sweep(&[]);
        assert!(done.code == 2 && done.stderr.contains(says), "{}", done.stderr);
    }
}

const SWEEP: &str = r#"Sweep(recipe: "recipe.ron", set: ["train.log_every=1"], over: [
    (path: "objective[0].term.temperature", values: [0.1, 0.5]),
    (path: "optimizer", values: [Sgd(lr: 0.05), AdamW(lr: 1e-3)]),
], seeds: [0, 1], best: (metric: "rankme/features"))"#;

fn json(out: &Output) -> Value {
    assert_eq!(out.code, 0, "{}", out.stderr);
    serde_json::from_str(&out.stdout).unwrap()
}

/// Asserts a mean and a standard deviation of two values, from at most eight operations.
fn assert_spread_of(found: &Value, a: f64, b: f64) {
    let within = tolerance::f64(8, a.abs() + b.abs());
    assert_within!(found["mean"].as_f64().unwrap(), (a + b) / 2.0, within);
    assert_within!(found["sd"].as_f64().unwrap(), (a - b).abs() / 2f64.sqrt(), within);
}

fn checkpoints(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for group in std::fs::read_dir(out).unwrap() {
        for run in std::fs::read_dir(group.unwrap().path()).unwrap() {
            let run = run.unwrap().path();
            let bytes = std::fs::read(run.join("checkpoints/last.safetensors")).unwrap();
            found.push((run.strip_prefix(out).unwrap().to_path_buf(), bytes));
        }
    }
    found.sort();
    found
}

#[test]
fn every_combination_is_trained_once_and_a_sweep_resumes() {
    let place = Place::new(SWEEP);
    let dry = place.sweep(&["--dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    assert!(
        dry.stdout.contains("0/2 missing") && dry.stderr.contains("8 runs, 0 already finished"),
        "{dry:?}"
    );

    // One run is finished, and one was interrupted in its second epoch, before the sweep starts.
    let recipe = place.at("recipe.ron");
    let by_hand = |temperature: &str, more: &[&str]| {
        let temperature = format!("objective[0].term.temperature={temperature}");
        let (out, set) =
            (place.at("runs"), ["--set", "train.log_every=1", "--set", "optimizer=Sgd(lr: 0.05)"]);
        let args = ["run", &recipe, "--out", &out, "--set", &temperature];
        let done = pauc(args.iter().chain(&set).chain(more).copied());
        assert_eq!(done.code, 0, "{}", done.stderr);
    };
    by_hand("0.1", &["--seeds", "0"]);
    by_hand("0.5", &["--seeds", "1", "--max-steps", "5"]);
    let done = place.sweep(&["--jobs", "3", "--json"]);
    assert!(done.stderr.contains("8 runs, 1 already finished"), "{}", done.stderr);
    let table = json(&done);
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    let rank = |row: &Value| row["metrics"]["rankme/features"]["mean"].as_f64().unwrap();
    assert!(rows.windows(2).all(|w| rank(&w[0]) >= rank(&w[1])), "best first");
    for row in rows {
        assert_eq!(row["metrics"]["knn/cos/k5/t0.07"]["n"], 2);
        let of = |run: &Value| run["metrics"]["rankme/features"].as_f64().unwrap();
        let runs = row["runs"].as_array().unwrap();
        assert!(runs.iter().all(|r| r["status"] == "finished"), "{runs:?}");
        assert!(runs.iter().all(|r| r["version"].is_string() && r["simd"] != ""), "{runs:?}");
        let (a, b) = (of(&runs[0]), of(&runs[1]));
        assert_ne!(a, b);
        assert_spread_of(&row["metrics"]["rankme/features"], a, b);
    }
    // Nothing is left to do.
    let again = place.sweep(&[]);
    assert!(again.code == 0 && again.stderr.contains("8 runs, 8 already finished"), "{}", again.stderr);
    assert_eq!(again.stdout.matches("2/2").count(), 4, "{}", again.stdout);
    assert!(again.stdout.contains(" ± ") && again.stdout.contains("AdamW(lr: 1e-3)"), "{}", again.stdout);

    // A run that ended before its report was written gets it.
    let of_a_run = |json: &Value| PathBuf::from(json["run"].as_str().unwrap()).join("report.html");
    let rows = json(&place.sweep(&["--json"]));
    let report = of_a_run(&rows["rows"][0]["runs"][0]);
    std::fs::remove_file(&report).unwrap();
    let again = place.sweep(&[]);
    assert!(again.code == 0 && again.stderr.contains("8 runs, 7 already finished"), "{}", again.stderr);
    assert!(report.is_file());

    // Neither parallel processes nor an interruption change a bit.
    let alone = place.at("alone");
    let sweep = place.at("sweep.ron");
    let one = pauc(["sweep", &sweep, "--out", &alone]);
    assert_eq!(one.code, 0, "{}", one.stderr);
    assert!(checkpoints(Path::new(&alone)) == checkpoints(Path::new(&place.at("runs"))));
}

#[test]
fn mistakes_stop_a_sweep_before_anything_is_trained() {
    let place = Place::new("");
    let with = |over: &str| format!("Sweep(recipe: \"recipe.ron\", over: [{over}])");
    let value = with("(path: \"objective[0].term.temperature\", values: [0.1, -1.0])");
    place.refused(&value, &["E0106", "greater than 0, got -1", "sweep.ron:1:90", "temperature=-1.0"]);
    place.refused(&with("(path: \"train.epoch\", values: [1])"), &["did you mean `epochs`?", "sweep.ron:1:"]);
    place.refused(&with("(path: \"objective[4].weight\", values: [1])"), &["E0107", "item 4 does not exist"]);
    place.refused(&with("(path: \"queue\", values: [32])"), &["E0202", "queue=32"]);
    place.refused(&with("(path: \"train.seed\", values: [1, 2])"), &["E0403", "write `seeds: [0, 1, 2]`"]);
    place.refused(&with("(path: \"a\", values: [1)"), &["E0101"]);
    place.refused(
        "Sweep(recipe: \"none.ron\", over: [(path: \"a\", values: [1])])",
        &["cannot read the recipe"],
    );
    let none = pauc(["sweep", "no/such/sweep.ron"]);
    assert!(
        none.code == 2 && none.stderr.contains("cannot read the sweep no/such/sweep.ron"),
        "{}",
        none.stderr
    );
}

#[test]
fn a_run_that_fails_does_not_stop_the_others() {
    let place = Place::new(
        r#"Sweep(recipe: "recipe.ron", over: [(path: "optimizer.lr", values: [1e30, 0.01, 0.02])], set: ["optimizer=Sgd(lr: 1.0)"])"#,
    );
    let refused = place.sweep(&["--device", "cpu,cpu,cpu", "--jobs", "2"]);
    let says = "error: --device names 3 devices, but --jobs 2 trains no more than 2 at a time; use --jobs 3";
    assert!(refused.code == 2 && refused.stderr.contains(says), "{}", refused.stderr);
    let done = place.sweep(&["--jobs", "2", "--device", "cpu,cpu"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    for text in [
        "1 of 3 runs failed",
        "optimizer.lr=1e30 seed 0",
        "is not finite",
        "the learning rate is far too high",
    ] {
        assert!(done.stderr.contains(text), "`{text}` is not in\n{}", done.stderr);
    }
    assert!(done.stdout.contains("0/1 failed") && done.stdout.matches("1/1").count() == 2, "{}", done.stdout);
}

#[cfg(unix)]
#[test]
fn an_interrupted_sweep_saves_its_runs_and_resumes() {
    // More steps than the runs take before they are interrupted, but finite if nothing interrupts them.
    let place = Place::new(
        r#"Sweep(recipe: "recipe.ron", over: [(path: "train.batch", values: [16, 20])], set: ["train.epochs=1000000"])"#,
    );
    let mut sweep =
        common::Running::start(["sweep", &place.at("sweep.ron"), "--out", &place.at("runs"), "--jobs", "2"]);
    let training = || {
        let Ok(groups) = std::fs::read_dir(place.at("runs")) else { return 0 };
        let logs = groups.map(|g| g.unwrap().path().join("seed0/metrics.jsonl"));
        let begun =
            |p: &PathBuf| std::fs::read_to_string(p).is_ok_and(|text| text.contains("\"event\":\"step\""));
        logs.filter(begun).count()
    };
    sweep.wait_until("step in the logs of both runs", || training() == 2);
    sweep.signal("INT");
    let (status, stderr) = sweep.end();
    assert_eq!(status, 130, "{stderr}");
    for (run, bytes) in checkpoints(Path::new(&place.at("runs"))) {
        assert!(!bytes.is_empty(), "{}", run.display());
        let info = Path::new(&place.at("runs")).join(run).join("run.json");
        assert!(std::fs::read_to_string(info).unwrap().contains("interrupted"));
    }
}

#[test]
fn several_seeds_print_mean_and_deviation() {
    let place = Place::new("");
    let (recipe, out) = (place.at("recipe.ron"), place.at("runs"));
    let args = ["run", &recipe, "--out", &out, "--seeds", "3,4"];
    let done = pauc(args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("mean ± standard deviation over the seeds 3, 4"), "{}", done.stdout);
    // The same from finished runs, as JSON, compared with the runs' logs: a line per run, and one over the seeds.
    let again = pauc(args.iter().chain(&["--json"]).copied());
    assert_eq!(again.code, 0, "{}", again.stderr);
    let lines: Vec<Value> = again.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [third, fourth, all] = &lines[..] else { panic!("{}", again.stdout) };
    let compared: Vec<f64> = [3, 4]
        .map(|seed| {
            let group = std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
            let log = std::fs::read_to_string(group.join(format!("seed{seed}/metrics.jsonl"))).unwrap();
            let probe = log.lines().rev().find(|l| l.contains("rankme/features")).unwrap();
            let probe: Value = serde_json::from_str(probe).unwrap();
            let all = probe["metrics"].as_array().unwrap();
            all.iter().find(|m| m["name"] == "rankme/features").unwrap()["value"].as_f64().unwrap()
        })
        .into();
    let (a, b) = (compared[0], compared[1]);
    assert_spread_of(&all["metrics"]["rankme/features"], a, b);
    for (run, seed, value) in [(third, 3, a), (fourth, 4, b)] {
        assert!(run["run"].as_str().unwrap().ends_with(&format!("seed{seed}")), "{run}");
        assert_eq!(run["metrics"]["trained"]["rankme/features"], value);
    }
}

#[test]
fn the_shipped_sweeps_are_valid() {
    let files = [
        ("recipes/sweeps/temperature.ron", 18),
        ("studies/mechanism.ron", 100),
        ("studies/projector.ron", 60),
        ("studies/gradients.ron", 5),
        ("studies/ablation.ron", 210),
    ];
    for (file, runs) in files {
        let done = pauc(["sweep", file, "--dry-run", "--out", "target/no-such-folder"]);
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(done.stderr.contains(&format!("{runs} runs, 0 already finished")), "{}", done.stderr);
    }
}

/// Writes 10 000 gray images in the format of Fashion-MNIST, and as many of CIFAR-10.
fn write_datasets(folder: &Path) {
    let labels = |n: usize| (0..n).map(|i| (i % 10) as u8);
    for (split, n) in [("train", 10_000usize), ("t10k", 100)] {
        let size = (n as u32).to_be_bytes();
        let [rows, columns] = [28u32.to_be_bytes(); 2];
        let mut images = [&[0, 0, 8, 3], &size[..], &rows, &columns].concat();
        images.resize(images.len() + n * 28 * 28, 128);
        let labels = [&[0, 0, 8, 1], &size[..], &labels(n).collect::<Vec<u8>>()].concat();
        std::fs::write(folder.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
    for (file, n) in [("data_batch_1.bin", 10_000), ("test_batch.bin", 100)] {
        let records: Vec<u8> =
            labels(n).flat_map(|label| std::iter::once(label).chain([128; 3072])).collect();
        std::fs::write(folder.join(file), records).unwrap();
    }
}

#[test]
fn studies_of_other_data_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    write_datasets(folder.path());
    let files = [
        ("gpu-cifar10", "data.root", "cifar10", 25),
        ("claim-fashion-mnist", "data.of.root", "fashion-mnist", 7),
        ("claim-cifar10", "data.of.root", "cifar10", 7),
        ("claim-cifar10-long-tail", "data.of.of.root", "cifar10", 7),
        ("claim-cifar10-coarse", "data.of.of.root", "cifar10", 7),
    ];
    for (name, root, data, runs) in files {
        let file = format!("studies/{name}.ron");
        let text = std::fs::read_to_string(common::root().join(&file)).unwrap();
        let documented = format!("pauc-cli sweep {file} --set '{root}=\"data/{data}\"'");
        assert!(text.contains(&documented), "no `{documented}` in {file}");
        // Every combination opens the data, so one trial of each arm has to do.
        let recipes = format!("\"{}/", common::root().join("recipes").display());
        let text = text.replace("\"../recipes/", &recipes).replace("trials: 6", "trials: 1");
        let copy = folder.path().join("sweep.ron").display().to_string();
        std::fs::write(&copy, text).unwrap();
        let set = format!("{root}={:?}", folder.path());
        let done = pauc(["sweep", &copy, "--dry-run", "--out", "target/no-such-folder", "--set", &set]);
        assert_eq!(done.code, 0, "{file}: {}", done.stderr);
        assert!(done.stderr.contains(&format!("{runs} runs, 0 already finished")), "{file}: {}", done.stderr);
    }
}

const ARMS: &str = r#"Sweep(recipe: "recipe.ron", set: ["probes=[Knn(k: 5), HeldOut(probe: Knn(k: 5))]"],
    arms: [(name: "cold"), (name: "warm", set: ["objective[0].term.temperature=0.5"])],
    seeds: [0, 1, 2], best: (metric: "knn/cos/k5/t0.07/heldout"), compare: (to: "cold", metrics: ["knn/cos/k5/t0.07"]))"#;

#[test]
fn arms_are_compared_over_seeds() {
    let place = Place::new(ARMS);
    let done = place.sweep(&["--jobs", "2"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("] warm seed 2"), "{}", done.stderr);
    let lines: Vec<Vec<&str>> = done.stdout.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..2], ["arm", "runs"], "{}", done.stdout);
    for text in [
        "rows: best first by knn/cos/k5/t0.07/heldout (largest, on training images)",
        "differences from cold, paired over seeds",
        "Holm's correction for 1 tests",
    ] {
        assert!(done.stdout.contains(text), "no `{text}` in\n{}", done.stdout);
    }
    // Folders have the names of the arms.
    let mut folders: Vec<String> = std::fs::read_dir(place.at("runs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort();
    assert!(folders[0].starts_with("cold-") && folders[1].starts_with("warm-"), "{folders:?}");

    let page = place.at("page.html");
    let charts = place.at("charts");
    let table = json(&place.sweep(&["--json", "--report", &page, "--figures", &charts]));
    let metric = std::fs::read_to_string(Path::new(&charts).join("metric-knn-cos-k5-t0-07.svg")).unwrap();
    assert!(metric.contains("<title>knn/cos/k5/t0.07</title>") && metric.contains("background"), "{metric}");
    assert!(Path::new(&charts).join("difference-knn-cos-k5-t0-07-that-of-cold.svg").is_file());
    let page = std::fs::read_to_string(page).unwrap().replace("&#x2f;", "/");
    for text in ["Best: by knn/cos/k5/t0.07/heldout (largest, on training images).", "Differences from cold"]
    {
        assert!(page.contains(text), "no `{text}`");
    }
    let wrong = place.sweep(&["--report", "page.txt"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("--report page.txt: give the page a name"), "{wrong:?}");
    assert_eq!(table["best"]["on_test"], false);
    let rows = table["rows"].as_array().unwrap();
    let values = |arm: &str| -> Vec<f64> {
        let row = rows.iter().find(|r| r["arm"] == arm).unwrap();
        let runs = row["runs"].as_array().unwrap();
        runs.iter().map(|r| r["metrics"]["knn/cos/k5/t0.07"].as_f64().unwrap()).collect()
    };
    let (cold, warm) = (values("cold"), values("warm"));
    let mean = cold.iter().zip(&warm).map(|(a, b)| b - a).sum::<f64>() / 3.0;
    let difference = &table["comparison"]["differences"][0];
    assert_eq!((&difference["arm"], &difference["n"]), (&Value::from("warm"), &Value::from(3)));
    assert_within!(difference["mean"].as_f64().unwrap(), mean, tolerance::f64(8, 2.0));
}

#[test]
fn a_choice_by_the_test_split_must_be_said() {
    let place = Place::new("");
    let on_test = ARMS.replace("/heldout", "");
    place.refused(&on_test, &["E0406", "is a metric of the test split", "HeldOut", "sweep.ron:3:"]);
    let said = on_test.replace("t0.07\"), compare", "t0.07\", on_test: true), compare");
    std::fs::write(place.at("sweep.ron"), said).unwrap();
    let done = place.sweep(&["--dry-run"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains("(largest, on the test split)"), "{}", done.stdout);
    let early = place.sweep(&["--dry-run", "--report", &place.at("page.html")]);
    assert!(early.code == 2 && early.stderr.contains("no run of the sweep has finished"), "{early:?}");
}

#[test]
fn every_arm_is_tuned_with_the_same_budget() {
    let tune = r#"tune: (trials: 3, over: [(path: "optimizer.lr", values: [0.01, 0.02, 0.04, 0.08])]), best"#;
    let place = Place::new(&ARMS.replace("best", tune));
    let dry = place.sweep(&["--dry-run"]);
    assert_eq!(dry.code, 0, "{}", dry.stderr);
    assert!(dry.stderr.contains("6 runs, 0 already finished"), "{}", dry.stderr);
    let done = place.sweep(&["--jobs", "2", "--json"]);
    let table = json(&done);
    let note = "tuning: 3 trials for each of 2 arms, seed 1000, chosen by knn/cos/k5/t0.07/heldout (largest, on training images)";
    assert!(done.stderr.contains(note), "{}", done.stderr);
    let (rows, trials) = (table["rows"].as_array().unwrap(), table["trials"].as_array().unwrap());
    assert_eq!((rows.len(), trials.len()), (2, 2));
    for tried in trials {
        let tried_rows = tried["rows"].as_array().unwrap();
        let value = |r: &Value| r["runs"][0]["metrics"]["knn/cos/k5/t0.07/heldout"].as_f64().unwrap();
        let best = tried_rows.iter().map(value).fold(f64::MIN, f64::max);
        let chosen = &tried_rows[tried["chosen"].as_u64().unwrap() as usize];
        assert!(tried_rows.len() == 3 && value(chosen) == best);
        let row = rows.iter().find(|r| r["arm"] == chosen["arm"]).unwrap();
        assert_eq!((&row["tuned"], &row["hash"]), (&chosen["tuned"], &chosen["hash"]));
        let seeds: Vec<u64> =
            row["runs"].as_array().unwrap().iter().map(|r| r["seed"].as_u64().unwrap()).collect();
        assert_eq!(seeds, [0, 1, 2], "fresh seeds");
    }
    let again = place.sweep(&[]);
    assert!(again.stderr.contains("6 runs, 6 already finished"), "{}", again.stderr);
    assert!(again.stdout.starts_with(note) && again.stdout.contains("optimizer.lr"), "{}", again.stdout);
    // A metric that no trial measures.
    let typo = std::fs::read_to_string(place.at("sweep.ron"))
        .unwrap()
        .replace("t0.07/heldout\")", "t0.7/heldout\")");
    std::fs::write(place.at("sweep.ron"), typo).unwrap();
    let done = place.sweep(&[]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("did you mean `knn/cos/k5/t0.07/heldout`?"), "{}", done.stderr);
    place.refused_with_runs(&ARMS.replace("best", &tune.replace("trials: 3", "trials: 5")), "E0407");
}

#[test]
fn sizes_are_checked_before_anything_is_listed() {
    let place = Place::new(SWEEP);
    let list = |n: usize| (0..n).map(|i| format!("0.{i:06}")).collect::<Vec<_>>().join(", ");
    let axis = |path: &str, n: usize| format!("(path: \"{path}\", values: [{}])", list(n));
    let paths = ["objective[0].term.temperature", "objective[0].weight", "optimizer.lr"];
    let grid: Vec<String> = paths.iter().map(|p| axis(p, 1000)).collect();
    place.refused(
        &format!("Sweep(recipe: \"recipe.ron\", over: [{}])", grid.join(", ")),
        &["E0404", "1.000e9 runs", "combine: Random"],
    );
    // The product of 64 lists of two wraps to 0 in 64 bits.
    let wide: Vec<String> = (0..64).map(|i| axis(&format!("objective[{i}].weight"), 2)).collect();
    place.refused(&format!("Sweep(recipe: \"recipe.ron\", over: [{}])", wide.join(", ")), &["E0404"]);
    place.refused(
        "Sweep(recipe: \"recipe.ron\", over: [(path: \"optimizer.lr\", values: [0.1])], combine: Random(runs: 1000000000000))",
        &["E0404", "1.000e12 runs"],
    );
}

#[test]
fn a_seed_counts_once() {
    let place = Place::new(SWEEP);
    place.refused(&SWEEP.replace("[0, 1]", "[1, 0, 1]"), &["E0403", "the seed 1 is given twice"]);
    std::fs::write(place.at("sweep.ron"), SWEEP).unwrap();
    let by_argument = place.sweep(&["--seeds", "3,3"]);
    assert!(by_argument.code == 2 && by_argument.stderr.contains("--seeds: 3 is given twice"));
    let run = pauc(["run", &place.at("recipe.ron"), "--out", &place.at("runs"), "--seeds", "1,1,1"]);
    assert!(run.code == 2 && run.stderr.contains("--seeds: 1 is given twice"), "{}", run.stderr);
}

#[test]
fn thousands_of_threads_are_refused() {
    let out = pauc(["--threads", "65536", "list"]);
    assert!(out.code == 2 && out.stderr.contains("1..=1024"), "{}", out.stderr);
    let out = common::pauc_with(&[("RAYON_NUM_THREADS", "1000000")], ["list"]);
    assert!(out.code == 2 && out.stderr.contains("at most 1024"), "{}", out.stderr);
}
