//! A run that is killed at any point and resumed equals the uninterrupted run.
//!
//! `PAUC_KILLS=200` kills 200 runs instead of a few.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Running, events, only_run, pauc, root};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A small quickstart recipe with everything that a checkpoint stores: queue, momentum encoder, prototypes
/// renewed every epoch, probes and baselines, checkpoints within epochs, the best one.
fn args(out: &Path, more: &[&str]) -> Vec<String> {
    let recipe = root().join("recipes/quickstart.ron").display().to_string();
    let start = ["--threads", "1", "run", &recipe, "--out", out.to_str().unwrap()];
    let mut args = start.map(String::from).to_vec();
    let set = [
        "data=Shapes(count: 160, size: 28, classes: 4, seed: 1)",
        "encoder.channels=[4, 8, 16]",
        "queue=64",
        "clusterer=KMeans(k: [4, 8], start: Epochs(1), every: Epochs(1))",
        "schedule=WarmupCosine(warmup: Steps(3))",
        "train=(epochs: 4, batch: 16, accumulate: 2, log_every: 2, checkpoint_every: Steps(3), keep: (last: 2, best: (metric: \"knn/cos/k5/t0.07\")))",
        "lr_scale=[(part: \"encoder\", factor: 0.5), (part: \"projector\", factor: 2.0)]",
        "probes=[Knn(k: 5, every: Epochs(1)), Coagulation(every: Epochs(2)), Linear(at: End)]",
    ];
    args.extend(set.iter().flat_map(|s| ["--set".to_string(), s.to_string()]));
    args.extend((1..5).flat_map(|i| ["--set".to_string(), format!("objective[{i}].from=Epochs(1)")]));
    args.extend(more.iter().map(|s| s.to_string()));
    args
}

/// Runs a process to its end. Returns its exit code and stderr.
fn to_its_end(args: &[String]) -> (i32, String) {
    Running::start(args).end()
}

/// More steps than a run can take before a test ends it.
const ENDLESS: [&str; 2] = ["--set", "train.epochs=100000"];

/// Waits until a run below `out` has logged a step.
fn wait_for_a_step(process: &mut Running, out: &Path) {
    let logged = || {
        let log = files(out).into_iter().find(|p| p.ends_with("metrics.jsonl"));
        log.is_some_and(|p| std::fs::read_to_string(p).unwrap_or_default().contains("\"event\":\"step\""))
    };
    process.wait_until("step in metrics.jsonl", logged);
}

fn checkpoint(run: &Path, name: &str) -> Vec<u8> {
    std::fs::read(run.join(format!("checkpoints/{name}.safetensors"))).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

/// A finished, uninterrupted run.
struct Whole {
    folder: tempfile::TempDir,
    run: PathBuf,
    /// Its duration; others are killed within it. No assertion depends on when a kill happens.
    time: Duration,
}

impl Whole {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let (code, stderr) = to_its_end(&args(folder.path(), &[]));
        assert_eq!(code, 0, "{stderr}");
        Whole { run: only_run(folder.path()), folder, time: began.elapsed() }
    }

    /// Asserts that another run is bit-identical and has no additional files.
    fn same(&self, run: &Path, what: &str) {
        for name in ["last", "best", "step-00000020", "step-00000018"] {
            assert!(checkpoint(&self.run, name) == checkpoint(run, name), "{what}: {name} differs");
        }
        assert_eq!(events(&self.run), events(run), "{what}");
        let names = |run: &Path| -> Vec<PathBuf> {
            files(run).iter().map(|p| p.strip_prefix(run).unwrap().to_path_buf()).collect()
        };
        let mut found = names(run);
        let mut wanted = names(&self.run);
        // TensorBoard's files have the time in their names, and every process creates one.
        let stays = |p: &PathBuf| {
            let name = p.display().to_string();
            !name.starts_with("events.out.tfevents") && name != "metrics.superseded.jsonl"
        };
        found.retain(stays);
        wanted.retain(stays);
        assert_eq!(found, wanted, "{what}");
    }
}

/// Runs `resume` until the run is finished.
fn finish(out: &Path, what: &str) -> PathBuf {
    // A run that was killed before its folder had a name starts from the beginning.
    let begun = out.exists() && files(out).iter().any(|p| p.ends_with("run.json"));
    let (code, stderr) = if begun {
        to_its_end(&["--threads".into(), "1".into(), "resume".into(), only_run(out).display().to_string()])
    } else {
        to_its_end(&args(out, &[]))
    };
    assert_eq!(code, 0, "{what}: {stderr}");
    assert!(!stderr.contains("unusable"), "{what}: {stderr}");
    only_run(out)
}

#[test]
fn a_run_killed_anywhere_and_resumed_is_the_same() {
    let kills: u64 = std::env::var("PAUC_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(8);
    let whole = Whole::new();
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as f64 / (1u64 << 53) as f64
    };
    for n in 0..kills {
        let folder = tempfile::tempdir().unwrap();
        // Every third run is killed twice.
        let mut delays = vec![whole.time.mul_f64(next())];
        if n % 3 == 0 {
            delays.push(whole.time.mul_f64(0.5 * next()));
        }
        let what = format!("kill {n} after {delays:?} of {:?}", whole.time);
        for (i, delay) in delays.iter().enumerate() {
            let begun = files(folder.path()).iter().any(|p| p.ends_with("run.json"));
            let mut child = if i > 0 && begun {
                Running::start([
                    "--threads".into(),
                    "1".into(),
                    "resume".into(),
                    only_run(folder.path()).display().to_string(),
                ])
            } else {
                Running::start(args(folder.path(), &[]))
            };
            std::thread::sleep(*delay);
            child.0.kill().unwrap();
            child.0.wait().unwrap();
        }
        let run = finish(folder.path(), &what);
        whole.same(&run, &what);
    }
}

#[test]
fn a_kill_while_writing_a_checkpoint_resumes_from_the_previous_one() {
    let whole = Whole::new();
    // The files left by a process that dies between writing and renaming, or between the two names of a
    // checkpoint.
    let folder = tempfile::tempdir().unwrap();
    let (status, stderr) = to_its_end(&args(folder.path(), &["--max-steps", "7"]));
    assert_eq!(status, 0, "{stderr}");
    let run = only_run(folder.path());
    let folder_of = run.join("checkpoints");
    let whole_file = checkpoint(&run, "last");
    let half = &whole_file[..whole_file.len() / 2];
    std::fs::write(folder_of.join(format!(".step-00000009.safetensors.{}.tmp", u32::MAX)), half).unwrap();
    std::fs::write(run.join(format!(".run.json.{}.tmp", u32::MAX)), "{").unwrap();
    std::fs::write(run.join("report.html.tmp"), "<").unwrap();
    std::fs::remove_file(folder_of.join("last.safetensors")).unwrap();
    let run = finish(folder.path(), "no last checkpoint");
    whole.same(&run, "no last checkpoint");
}

#[test]
fn pauses_at_every_step_change_nothing() {
    let whole = Whole::new();
    let folder = tempfile::tempdir().unwrap();
    let (status, stderr) = to_its_end(&args(folder.path(), &["--max-steps", "1"]));
    assert_eq!(status, 0, "{stderr}");
    let run = only_run(folder.path());
    for step in 2..=20 {
        let done = pauc(["resume", run.to_str().unwrap(), "--max-steps", &step.to_string()]);
        assert_eq!(done.code, 0, "{}", done.stderr);
    }
    assert_eq!(events(&whole.run), events(&run));
    assert!(checkpoint(&whole.run, "last") == checkpoint(&run, "last"));
    assert!(checkpoint(&whole.run, "best") == checkpoint(&run, "best"));
}

/// A change to the bytes of a file.
type Damage = fn(&mut Vec<u8>);

#[test]
fn a_damaged_checkpoint_is_renamed_and_the_previous_one_used() {
    let whole = Whole::new();
    let damage: [(&str, Damage); 3] = [
        ("one bit", |bytes| {
            let at = bytes.len() - 5;
            bytes[at] ^= 1;
        }),
        ("cut short", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
    ];
    for (what, damage) in damage {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(to_its_end(&args(folder.path(), &["--max-steps", "7"])).0, 0);
        let run = only_run(folder.path());
        let path = run.join("checkpoints/last.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let done = pauc(["resume", run.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{what}: {}", done.stderr);
        for text in ["last.safetensors", "unusable1", "resuming from", "step-00000006.safetensors"] {
            assert!(done.stderr.contains(text), "{what}: no {text} in {}", done.stderr);
        }
        assert!(
            std::fs::read(run.join("checkpoints/last.safetensors.unusable1")).unwrap() == bytes,
            "{what}"
        );
        assert!(checkpoint(&whole.run, "last") == checkpoint(&run, "last"), "{what}");
        assert_eq!(events(&whole.run), events(&run), "{what}");
    }
}

#[test]
fn without_a_usable_checkpoint_nothing_is_changed() {
    let whole = Whole::new();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(to_its_end(&args(folder.path(), &["--max-steps", "2", "--seeds", "5"])).0, 0);
    let run = only_run(folder.path());
    // A checkpoint of another seed: valid, but not of this run.
    let (foreign, last) = (checkpoint(&whole.run, "last"), run.join("checkpoints/last.safetensors"));
    std::fs::remove_file(run.join("checkpoints/step-00000002.safetensors")).unwrap();
    std::fs::write(&last, &foreign).unwrap();
    let log = std::fs::read(run.join("metrics.jsonl")).unwrap();
    let done = pauc(["resume", run.to_str().unwrap()]);
    assert_eq!(done.code, 4, "{}", done.stderr);
    assert!(
        done.stderr.contains("seed 0, but this run is") && done.stderr.contains("seed 5"),
        "{}",
        done.stderr
    );
    assert!(
        std::fs::read(&last).unwrap() == foreign && std::fs::read(run.join("metrics.jsonl")).unwrap() == log
    );

    std::fs::write(&last, "no checkpoint at all").unwrap();
    let done = pauc(["resume", run.to_str().unwrap()]);
    assert_eq!(done.code, 4, "{}", done.stderr);
    assert!(done.stderr.contains("truncated or corrupt safetensors file"), "{}", done.stderr);
    drop(whole.folder);
}

#[cfg(unix)]
#[test]
fn signals_save_a_checkpoint_and_end_with_130() {
    for signal in ["INT", "TERM", "USR1"] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Running::start(args(folder.path(), &ENDLESS));
        wait_for_a_step(&mut child, folder.path());
        child.signal(signal);
        let (status, stderr) = child.end();
        assert_eq!(status, 130, "{signal}: {stderr}");
        let run = only_run(folder.path());
        assert!(std::fs::read_to_string(run.join("run.json")).unwrap().contains("interrupted"), "{signal}");
        // Seven steps later, in the next epoch, it equals the uninterrupted run.
        let stopped = events(&run).last().unwrap()["step"].as_u64().unwrap();
        let later = (stopped + 7).to_string();
        let done = pauc(["--threads", "1", "resume", run.to_str().unwrap(), "--max-steps", &later]);
        assert_eq!(done.code, 0, "{signal}: {}", done.stderr);
        let whole = tempfile::tempdir().unwrap();
        let more = [&ENDLESS[..], &["--max-steps", &later]].concat();
        assert_eq!(to_its_end(&args(whole.path(), &more)).0, 0);
        let whole = only_run(whole.path());
        assert!(checkpoint(&whole, "last") == checkpoint(&run, "last"), "{signal} at step {stopped}");
        assert_eq!(events(&whole), events(&run), "{signal} at step {stopped}");
    }
}

#[test]
fn two_processes_cannot_share_a_run() {
    let folder = tempfile::tempdir().unwrap();
    // The first is still running when the second starts.
    let mut first = Running::start(args(folder.path(), &ENDLESS));
    wait_for_a_step(&mut first, folder.path());
    let run = only_run(folder.path());
    for (second, what) in [
        (args(folder.path(), &[&ENDLESS[..], &["--force"]].concat()), "run"),
        (vec!["resume".into(), run.display().to_string()], "resume"),
    ] {
        let (status, stderr) = to_its_end(&second);
        assert_eq!(status, 1, "{what}: {stderr}");
        let process = format!("process {} is working on this run", first.0.id());
        assert!(stderr.contains(&process) && stderr.contains(run.to_str().unwrap()), "{what}: {stderr}");
    }
    assert!(first.0.try_wait().unwrap().is_none(), "the first still runs");
}

#[test]
fn a_finished_run_is_replaced_only_if_forced_and_other_folders_never() {
    let folder = tempfile::tempdir().unwrap();
    let steps = ["--set", "train.epochs=1"];
    assert_eq!(to_its_end(&args(folder.path(), &steps)).0, 0);
    let run = only_run(folder.path());
    let before = checkpoint(&run, "last");
    std::fs::write(run.join("note"), "mine").unwrap();
    let (status, stderr) = to_its_end(&args(folder.path(), &steps));
    assert!(status == 0 && stderr.contains("is already finished"), "{stderr}");
    // An invalid recipe removes nothing, forced or not.
    let wrong = ["--set", "train.epochs=1", "--force", "--set", "queue=8"];
    assert_eq!(to_its_end(&args(folder.path(), &wrong)).0, 2);
    assert!(run.join("note").exists());
    let (status, stderr) = to_its_end(&args(folder.path(), &["--set", "train.epochs=1", "--force"]));
    assert_eq!(status, 0, "{stderr}");
    assert!(checkpoint(&run, "last") == before && !run.join("note").exists());

    std::fs::remove_dir_all(&run).unwrap();
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("thesis.tex"), "mine").unwrap();
    let (status, stderr) = to_its_end(&args(folder.path(), &["--set", "train.epochs=1", "--force"]));
    assert!(status == 1 && stderr.contains("not a run"), "{stderr}");
    assert_eq!(files(&run), [run.join("thesis.tex")]);
}

/// A full disk, simulated by a limit on file sizes that the process sees as an error.
#[cfg(unix)]
#[test]
fn a_full_disk_stops_the_run_and_keeps_the_previous_checkpoint() {
    let whole = Whole::new();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(to_its_end(&args(folder.path(), &["--max-steps", "7"])).0, 0);
    let run = only_run(folder.path());
    let before = checkpoint(&run, "last");
    let blocks = before.len() / 1024 - 8; // less than the next checkpoint, more than the log
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" resume \"$1\"");
    let out = Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_pauc-cli"), run.to_str().unwrap()])
        .current_dir(root())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    for text in ["cannot write the checkpoint of step 9", "last.safetensors is unchanged", "free some space"]
    {
        assert!(stderr.contains(text), "{text}: {stderr}");
    }
    assert!(checkpoint(&run, "last") == before);
    let run = finish(folder.path(), "the disk has room again");
    whole.same(&run, "the disk has room again");
}
