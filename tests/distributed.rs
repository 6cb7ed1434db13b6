//! Training on several ranks, which the MPI launchers of this machine start.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::jobs::{on, output, ranks};
use common::{Output, events, only_run, pauc_with, processes, program, root, trained, training};
use pauc_testing::mpi::Launcher;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Batch normalization, a momentum encoder, a queue, prototypes from the second epoch on, and probes.
const RECIPE: &str = r#"Recipe(
    name: "ranks",
    data: Shapes(count: 160, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: ConvNet(channels: [4, 8]),
    projector: Mlp(dims: [8, 8]),
    momentum_encoder: Ema(momentum: 0.9),
    queue: 32,
    objective: [(term: InfoNce(temperature: 0.2)), (term: ProtoNce(), from: Epochs(1))],
    clusterer: KMeans(k: [4, 8], start: Epochs(1), every: Epochs(1)),
    optimizer: Sgd(lr: 0.05),
    train: (epochs: 3, batch: 32, shards: 4, log_every: 1, checkpoint_every: Steps(5)),
    probes: [Knn(k: 5, every: Epochs(1)), Linear(at: End)],
    baselines: [],
)"#;

fn checkpoint(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("checkpoints/last.safetensors")).unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn run_of(folder: &Path) -> PathBuf {
    only_run(&folder.join("runs"))
}

/// Checks that a text is said once, and not by each rank.
fn assert_once(out: &Output, text: &str) {
    let all = format!("{}{}", out.stdout, out.stderr);
    assert_eq!(all.matches(text).count(), 1, "{text:?} in {all}");
}

#[test]
fn runs_on_any_number_of_ranks_are_equal() {
    let launchers = Launcher::all("runs_on_any_number_of_ranks_are_equal");
    if launchers.is_empty() {
        return;
    }
    for (set, sizes) in [(&[][..], &[1, 2, 4][..]), (&["--set", "train.batch_norm=Synced"], &[2, 4])] {
        let alone = folder();
        let alone = trained(RECIPE, alone.path(), set);
        for (launcher, ranks) in launchers.iter().flat_map(|l| sizes.iter().map(move |ranks| (l, *ranks))) {
            let folder = folder();
            let out = output(&mut on(launcher, ranks, training(RECIPE, folder.path(), set)));
            assert_eq!(out.code, 0, "{launcher:?}: {}", out.stderr);
            assert_once(&out, "report: ");
            let (run, what) = (run_of(folder.path()), format!("{launcher:?}, {ranks} ranks, {set:?}"));
            assert!(checkpoint(&run) == checkpoint(&alone), "{what}: the checkpoints differ");
            assert_eq!(events(&run), events(&alone), "{what}");
        }
    }
}

#[test]
fn a_run_continues_on_another_number_of_ranks() {
    for launcher in Launcher::all("a_run_continues_on_another_number_of_ranks") {
        let (whole, parts) = (folder(), folder());
        let whole = trained(RECIPE, whole.path(), &[]);
        let out = output(&mut on(&launcher, 2, training(RECIPE, parts.path(), &["--max-steps", "4"])));
        assert_eq!(out.code, 0, "{launcher:?}: {}", out.stderr);
        let run = run_of(parts.path());
        for (ranks, more) in [(4, &["--max-steps", "9"][..]), (1, &[])] {
            let resume = ["--threads", "1", "resume", run.to_str().unwrap()];
            let args: Vec<String> = resume.iter().chain(more).map(|s| s.to_string()).collect();
            let out = output(&mut on(&launcher, ranks, &args));
            assert_eq!(out.code, 0, "{launcher:?}, {ranks} ranks: {}", out.stderr);
        }
        assert!(checkpoint(&run) == checkpoint(&whole), "{launcher:?}: the checkpoints differ");
    }
}

/// Returns what a verb prints and writes on so many ranks, without its seconds.
fn printed_and_written(mut command: Command, out: &Path) -> (String, Vec<u8>) {
    let done = output(&mut command);
    assert_eq!(done.code, 0, "{command:?}: {}", done.stderr);
    let printed = match serde_json::from_str::<serde_json::Value>(&done.stdout) {
        Ok(mut json) => {
            json.as_object_mut().unwrap().remove("seconds");
            json.to_string()
        }
        Err(_) => done.stdout,
    };
    (printed, if out.exists() { std::fs::read(out).unwrap() } else { Vec::new() })
}

#[test]
fn verbs_print_and_write_the_same_on_any_number_of_ranks() {
    let launchers = Launcher::all("verbs_print_and_write_the_same_on_any_number_of_ranks");
    let folder = folder();
    let (run, file) = (trained(RECIPE, folder.path(), &[]), folder.path().join("file.safetensors"));
    let (run, file) = (run.to_str().unwrap(), file.to_str().unwrap());
    // Six chunks of images.
    let data = ["--data", "Shapes(count: 1300, size: 12, classes: 4, seed: 2)", "--split", "train"];
    let embed = [&["embed", run], &data[..]].concat();
    let made = output(program().args(&embed).args(["--out", file]).current_dir(root()));
    assert_eq!(made.code, 0, "{}", made.stderr);
    let eval = [&["eval", run, "--probe", "Knn(k: 5)", "--probe", "Linear()", "--json"], &data[..]].concat();
    let cluster =
        |with| ["cluster", file, "--tensor", "embeddings", "--labels", file, "--json", "--with", with];
    let (k_means, batches, nested) = (
        cluster("KMeans(k: [4, 30])"),
        cluster("MiniBatchKMeans(k: [9], batch: 100)"),
        cluster("HierarchicalKMeans(k: [4, 30])"),
    );
    let dbscan = cluster("Dbscan(radius: 0.1)");
    for (number, verb) in [&embed[..], &eval, &k_means, &batches, &nested, &dbscan].into_iter().enumerate() {
        let out = folder.path().join(format!("{number}.safetensors"));
        let mut arguments = [&["--threads", "1"], verb].concat();
        if verb[0] != "eval" {
            arguments.extend(["--out", out.to_str().unwrap()]);
        }
        let mut alone = program();
        alone.args(&arguments).current_dir(root());
        let wanted = printed_and_written(alone, &out);
        assert!(verb[0] == "eval" || !wanted.1.is_empty());
        for launcher in &launchers {
            for ranks in [1, 2, 4] {
                let _ = std::fs::remove_file(&out);
                let found = printed_and_written(on(launcher, ranks, &arguments), &out);
                assert_eq!(found.0, wanted.0, "{launcher:?}, {ranks} ranks, {}", verb[0]);
                assert!(found.1 == wanted.1, "{launcher:?}, {ranks} ranks: another file of {verb:?}");
            }
        }
    }
}

#[test]
fn mistakes_are_said_once() {
    for launcher in Launcher::all("mistakes_are_said_once") {
        let folder = folder();
        let typo = RECIPE.replace("queue", "queu");
        let three = "error: 3 ranks cannot share the 4 shards";
        let eight = "error: 8 ranks cannot share the 4 shards";
        for (recipe, ranks, code, text) in
            [(&*typo, 2, 2, "did you mean `queue`?"), (RECIPE, 3, 2, three), (RECIPE, 8, 2, eight)]
        {
            let out = output(&mut on(&launcher, ranks, training(recipe, folder.path(), &[])));
            assert_once(&out, text);
            assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
            // Launchers other than Open MPI's combine the codes of all ranks.
            assert!(out.code == code || !launcher.is_open_mpi && out.code != 0, "{launcher:?}: {}", out.code);
            assert!(!folder.path().join("runs").exists(), "{launcher:?}: something was written");
        }
        let out = output(&mut on(&launcher, 2, ["sweep", "recipes/sweeps/none.ron"]));
        assert_once(&out, "error: 2 ranks were started, but `sweep` starts a process for each of its runs");
        let many = ["cluster", "python/tests/none.npy", "--with", "KMeans(k: [2])"];
        assert_once(&output(&mut on(&launcher, 2, many)), "none.npy");
        let devices = output(&mut on(&launcher, 2, ["devices"]));
        assert_eq!(devices.code, 0, "{}", devices.stderr);
        assert_once(&devices, "cpu     ");
    }
}

#[test]
fn tasks_that_cannot_find_each_other_write_nothing() {
    let (tasks, folder) = ([("SLURM_STEP_NUM_TASKS", "4")], folder());
    let out = folder.path().to_str().unwrap();
    let written = pauc_with(&tasks, ["new", "loss", "MyLoss", "--out", out]);
    assert_eq!(written.code, 2, "{}", written.stderr);
    assert!(
        written.stderr.contains("4 tasks") && written.stderr.contains("--mpi=pmix"),
        "{}",
        written.stderr
    );
    assert_eq!(std::fs::read_dir(out).unwrap().count(), 0);
    assert_eq!(pauc_with(&tasks, ["list"]).code, 0);
}

#[test]
fn a_rank_that_differs_is_named() {
    for launcher in Launcher::all("a_rank_that_differs_is_named") {
        let folder = folder();
        let args = training(RECIPE, folder.path(), &[]);
        let program = env!("CARGO_BIN_EXE_pauc-cli");
        let mut other = on(&launcher, 1, &args);
        other.args([":", "-n", "1", "env", "PAUC_SIMD=portable", program]).args(&args);
        let out = output(&mut other);
        assert_once(&out, "error: the instruction set of rank 1 on ");
        let mut other = on(&launcher, 1, &args);
        let seed: Vec<String> = args.iter().cloned().chain(["--set".into(), "train.seed=7".into()]).collect();
        other.args([":", "-n", "1", program]).args(&seed);
        let out = output(&mut other);
        assert_once(&out, "error: the command line of rank 1 on ");
        let (recipe, elsewhere) = (["run", "recipe.ron"], self::folder());
        std::fs::write(elsewhere.path().join("recipe.ron"), RECIPE.replace("lr: 0.05", "lr: 0.1")).unwrap();
        let mut other = on(&launcher, 1, recipe);
        other.current_dir(folder.path());
        other.args([":", "-n", "1", "env", "-C"]).arg(elsewhere.path()).arg(program).args(recipe);
        assert_once(&output(&mut other), "error: the recipe of rank 1 on ");
        let mut other = on(&launcher, 1, recipe);
        other.current_dir(folder.path());
        other.args([":", "-n", "1", "env", "-C", "/", program]).args(recipe);
        let out = output(&mut other);
        assert_once(&out, "error: rank 1 on ");
        assert!(out.stderr.contains("cannot read the recipe recipe.ron"), "{}", out.stderr);
        assert!(!folder.path().join("runs").exists(), "{launcher:?}: something was written");
    }
}

#[test]
fn a_killed_rank_ends_all_and_the_run_continues() {
    for launcher in Launcher::all("a_killed_rank_ends_all_and_the_run_continues") {
        let (whole, killed) = (folder(), folder());
        let more = ["--set", "train.epochs=12"];
        let whole = trained(RECIPE, whole.path(), &more);
        let args = training(RECIPE, killed.path(), &more);
        let mut job = on(&launcher, 2, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let runs = killed.path().join("runs");
        while !has_file(&runs, "last.safetensors") && job.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(last) = ranks(killed.path()).last() {
            // It may have ended by now, which the equality of runs does not depend on.
            let _ = Command::new("kill").args(["-9", &last.to_string()]).output().unwrap();
        }
        let _ = job.wait().unwrap();
        wait_for_the_end(killed.path());
        let run = run_of(killed.path());
        let resumed = output(program().args(["--threads", "1", "resume"]).arg(&run).current_dir(root()));
        assert_eq!(resumed.code, 0, "{launcher:?}: {}", resumed.stderr);
        assert!(checkpoint(&run) == checkpoint(&whole), "{launcher:?}: the checkpoints differ");
    }
}

/// Waits until no process works in a folder.
fn wait_for_the_end(folder: &Path) {
    let began = Instant::now();
    while !processes(folder).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "processes are left: {:?}", processes(folder));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn has_file(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() { has_file(&path, name) } else { path.ends_with(name) }
    })
}
