//! Folders of runs that were damaged, or whose process was killed: what is said, and what is kept.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{Running, assert_says, only_run, pauc, resume, training};
use pauc::models::weights::{TensorFile, Values};
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
    training(RECIPE, folder, more)
}

/// Trains the small recipe below `folder` and returns the run's folder.
fn trained(folder: &Path, more: &[&str]) -> PathBuf {
    common::trained(RECIPE, folder, more)
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

#[cfg(unix)]
#[test]
fn tail_ends_with_its_reader_while_the_log_is_quiet() {
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let (process, run) = endless(folder.path());
    process.signal("STOP");
    let mut tail = std::process::Command::new(env!("CARGO_BIN_EXE_pauc-cli"))
        .args(["tail", run.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut reader = tail.stdout.take().unwrap();
    let mut first = [0; 64];
    assert!(reader.read(&mut first).unwrap() > 0);
    drop(reader);
    let began = std::time::Instant::now();
    while tail.try_wait().unwrap().is_none() {
        assert!(began.elapsed().as_secs() < 60, "tail waits for a process that is stopped, and for nobody");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(tail.wait().unwrap().success());
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

/// Trains the small recipe to its end in a folder of its own, and returns its last checkpoint.
fn whole() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &[]);
    std::fs::read(run.join("checkpoints/last.safetensors")).unwrap()
}

#[test]
fn a_damaged_or_missing_description_is_rebuilt_from_the_newest_checkpoint() {
    let whole = whole();
    for (what, lost) in [("damaged", "{"), ("missing", "")] {
        let folder = tempfile::tempdir().unwrap();
        let run = trained(folder.path(), &["--max-steps", "6"]);
        let description = run.join("run.json");
        let before: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&description).unwrap()).unwrap();
        if lost.is_empty() {
            std::fs::remove_file(&description).unwrap();
            std::fs::remove_file(run.join("recipe.resolved.ron")).unwrap();
        } else {
            std::fs::write(&description, lost).unwrap();
        }
        let refused = pauc(args(folder.path(), &[]));
        let code = if lost.is_empty() { 1 } else { 4 };
        assert_says(&refused, code, &["run.json", "pauc-cli resume", "--force"]);
        assert!(run.join("checkpoints/step-00000006.safetensors").exists(), "{what}: nothing is deleted");
        assert_says(&resume(&run, &[]), 0, &["warning: rebuilt ", "run.json", "last.safetensors"]);
        assert!(std::fs::read(run.join("checkpoints/last.safetensors")).unwrap() == whole, "{what}");
        let after: serde_json::Value = serde_json::from_slice(&std::fs::read(&description).unwrap()).unwrap();
        for key in ["name", "hash", "seed", "device", "data", "data_identity"] {
            assert_eq!(before[key], after[key], "{what}: {key}");
        }
        assert_eq!(after["status"], "finished");
        assert_eq!(run.join("run.json.unusable1").exists(), !lost.is_empty(), "{what}");
    }
}

#[test]
fn force_starts_over_with_a_damaged_description() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &["--max-steps", "6"]);
    std::fs::write(run.join("run.json"), "{").unwrap();
    assert_says(&pauc(args(folder.path(), &["--force", "--max-steps", "2"])), 0, &[]);
    assert!(!run.join("checkpoints/step-00000006.safetensors").exists());
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    std::fs::remove_file(run.join("run.json")).unwrap();
    assert_says(&resume(&run, &[]), 2, &["not a run (no run.json)"]);
    // A log without a checkpoint is a result as well.
    assert_says(&pauc(args(folder.path(), &[])), 1, &["has no run.json, but"]);
}

/// Writes an .npy file of `n` gray images of 12×12 pixels, which depend on `seed`.
fn write_images(path: &Path, n: usize, seed: usize) {
    let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({n}, 12, 12, 1), }}");
    let padded = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend_from_slice(padded.as_bytes());
    bytes.extend((0..n * 144).map(|i| (i * (i / 144 + 7 + seed) % 251) as u8));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn changed_data_is_refused_or_accepted_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npy");
    write_images(&path, 200, 0);
    let data = format!("data=Npy(images: {:?})", path.display().to_string());
    let run = trained(folder.path(), &["--set", &data, "--max-steps", "5"]);
    let checkpoint = std::fs::read(run.join("checkpoints/last.safetensors")).unwrap();
    let run_path = run.to_str().unwrap();
    let embed = |more: &[&str]| {
        let out = folder.path().join("x.npy").display().to_string();
        pauc([&["embed", run_path, "--split", "train", "--out", &out], more].concat())
    };
    for (images, seed, said) in
        [(150, 0, "150 training images, the run has 200"), (200, 1, "names or pixels")]
    {
        write_images(&path, images, seed);
        assert_says(&resume(&run, &[]), 4, &["the data has changed", said, "--data-changed accept"]);
        assert_says(&embed(&[]), 4, &[said]);
        assert_says(&embed(&["--data-changed", "accept"]), 0, &[]);
        let probe = ["eval", run_path, "--split", "train", "--probe", "Rank()"];
        assert_says(&pauc(probe), 4, &[said]);
        assert!(std::fs::read(run.join("checkpoints/last.safetensors")).unwrap() == checkpoint);
    }
    write_images(&path, 150, 0);
    assert_says(
        &resume(&run, &["--data-changed", "accept", "--max-steps", "7"]),
        0,
        &["the data changed: 150"],
    );
    let description: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    let change =
        serde_json::json!({"step": 5, "what": "the data changed: 150 training images, the run has 200"});
    assert_eq!(description["changes"], serde_json::json!([change]));
    assert_eq!(description["data_identity"]["train"]["images"], 200, "run.json keeps what it was");
    assert!(std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().contains("the data changed: 150"));
    let last = TensorFile::load(run.join("checkpoints/last.safetensors")).unwrap();
    assert!(last.metadata["marks"].contains("the data changed: 150"), "{}", last.metadata["marks"]);
    // Accepted once: the changed data is now that of the run.
    assert_says(&resume(&run, &[]), 0, &[]);
}

#[test]
fn changed_data_is_accepted_with_queue_and_prototypes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images.npy");
    write_images(&path, 64, 0);
    let data = format!("data=Npy(images: {:?})", path.display().to_string());
    let set = [
        data.as_str(),
        "queue=64",
        "momentum_encoder=Ema(momentum: 0.9)",
        "clusterer=KMeans(k: [4], start: Steps(0), every: Epochs(3))",
        "objective=[(term: InfoNce(temperature: 0.2, negatives: QueueAndBatch)), (term: ProtoNce())]",
    ];
    let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
    let run = trained(folder.path(), &[&set[..], &["--max-steps", "6"]].concat());
    for images in [120, 40] {
        write_images(&path, images, 0);
        let step = if images == 120 { "10" } else { "13" };
        assert_says(
            &resume(&run, &["--data-changed", "accept", "--max-steps", step]),
            0,
            &["the data changed"],
        );
    }
}

/// Writes NaN into a tensor of a checkpoint and makes its checksum anew.
fn poison(path: &Path, tensor: &str) {
    let mut file = TensorFile::load(path).unwrap();
    let found = file.get(tensor).unwrap().clone();
    let Values::F32(mut values) = found.values else { panic!("{tensor}") };
    values[1] = f32::NAN;
    file.retain(|name| name != tensor);
    file.insert(tensor, &found.shape, Values::F32(values)).unwrap();
    let sum = pauc::train::checkpoint::checksum(&file);
    file.metadata.insert("blake3".into(), sum);
    file.save(path).unwrap();
}

#[test]
fn nan_in_a_checkpoint_is_found_by_name_and_the_one_before_is_taken() {
    let whole = whole();
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &["--max-steps", "7"]);
    let last = run.join("checkpoints/last.safetensors");
    std::fs::remove_file(run.join("checkpoints/step-00000007.safetensors")).unwrap();
    let file = TensorFile::load(&last).unwrap();
    let name =
        file.names().find(|n| n.starts_with("encoder.") && n.ends_with("running_var")).unwrap().to_string();
    poison(&last, &name);
    let said = format!("{name}` is NaN at index [1]");
    let run_path = run.to_str().unwrap();
    let out = folder.path().join("x.safetensors").display().to_string();
    let encoder_name = said.strip_prefix("encoder.").unwrap();
    assert_says(&pauc(["export", run_path, "--out", &out]), 4, &[encoder_name, "earlier checkpoint"]);
    assert!(!Path::new(&out).exists());
    let embed = ["embed", run_path, "--split", "train", "--out", &out];
    assert_says(&pauc(embed), 4, &[&said]);
    assert_says(&resume(&run, &[]), 0, &[&said, "unusable1", "step-00000006.safetensors"]);
    assert!(std::fs::read(&last).unwrap() == whole);
}

/// Returns a command that runs `pauc-cli` as another user; `None` with the reason if that is not possible here.
#[cfg(unix)]
fn as_another_user(args: &[&str]) -> Result<std::process::Command, String> {
    use std::process::Command;
    let nobody = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
        command
    };
    let binary = env!("CARGO_BIN_EXE_pauc-cli");
    let tried = nobody(binary).arg("--version").output().map_err(|e| format!("setpriv: {e}"))?;
    if !tried.status.success() {
        return Err(String::from_utf8_lossy(&tried.stderr).trim().to_string());
    }
    let mut command = nobody(binary);
    command.args(args).current_dir("/").env("NO_COLOR", "1").env_remove("PAUC_SIMD");
    Ok(command)
}

/// Folders of another user: nothing is written there, and the message names the file and the remedy.
#[cfg(unix)]
#[test]
fn folders_of_another_user_are_refused_with_a_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), &["--max-steps", "3"]);
    // Everybody may look into them.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let listing = || {
        let all = walk(folder.path());
        all.into_iter().map(|p| (p.clone(), std::fs::metadata(p).unwrap().len())).collect::<Vec<_>>()
    };
    let before = listing();
    let (recipe, out) = (folder.path().join("recipe.ron"), folder.path().join("others"));
    let (recipe, out, run) = (recipe.to_str().unwrap(), out.to_str().unwrap(), run.to_str().unwrap());
    for (args, file) in [
        (vec!["run", recipe, "--out", out], "others"),
        (vec!["resume", run], "run.lock"),
        (vec!["report", run], "report.html"),
    ] {
        let mut command = match as_another_user(&args) {
            Ok(command) => command,
            Err(why) => return println!("skipped: cannot run as another user: {why}"),
        };
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{args:?}: {said}");
        for part in [file, "ermission denied", "make it writable"] {
            assert!(said.contains(part), "{args:?}: no {part:?} in {said}");
        }
    }
    assert_eq!(listing(), before, "nothing was written");
}

/// Returns all files and folders below a folder, sorted.
#[cfg(unix)]
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    let folders: Vec<PathBuf> = all.iter().filter(|p| p.is_dir()).cloned().collect();
    all.extend(folders.iter().flat_map(|f| walk(f)));
    all.sort();
    all
}
