//! Helpers to run the binary.
#![allow(dead_code)] // each test file uses its share

pub mod jobs;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The result of a command.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Returns the project's root, to which paths in recipes are relative.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Checks that a file of the project is `text`; writes it first if `PAUC_UPDATE_DOCS` is set. `test` is the test that does
/// so.
pub fn assert_current(file: &str, text: &str, test: &str) {
    let path = root().join(file);
    if std::env::var_os("PAUC_UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let remedy = format!("PAUC_UPDATE_DOCS=1 cargo test -p pauc-cli --test {test}");
    assert!(written == text, "{file} is out of date: run {remedy}");
}

/// Runs `pauc-cli` in the project's root.
pub fn pauc<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    pauc_with(&[], args)
}

/// Runs `pauc-cli` in the project's root, with these environment variables.
pub fn pauc_with<S: AsRef<std::ffi::OsStr>>(
    variables: &[(&str, &str)],
    args: impl IntoIterator<Item = S>,
) -> Output {
    let out = Command::new(env!("CARGO_BIN_EXE_pauc-cli"))
        .args(args)
        .current_dir(root())
        .env_remove("PAUC_SIMD")
        .env("NO_COLOR", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    Output { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}

/// How long a test waits for an event before it fails; a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Returns `pauc-cli` as a command. Signals have their default actions: a process in the background ignores some, and
/// so would all that it starts.
pub fn program() -> Command {
    let path = env!("CARGO_BIN_EXE_pauc-cli");
    if !cfg!(target_os = "linux") {
        return Command::new(path);
    }
    let mut program = Command::new("env");
    program.args(["--default-signal", path]);
    program
}

/// A running `pauc-cli`. It is killed at the end of the test, if not before.
pub struct Running(pub Child);

impl Running {
    /// Starts `pauc-cli` in the project's root.
    pub fn start<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut program = program();
        program.args(args);
        Self::of(program)
    }

    /// Starts a program that starts `pauc-cli` in its place.
    pub fn of(mut program: Command) -> Self {
        program.current_dir(root()).env_remove("PAUC_SIMD").stdout(Stdio::null()).stderr(Stdio::piped());
        Running(program.spawn().unwrap())
    }

    /// Waits until `done` returns true; panics with `what` if that does not happen.
    pub fn wait_until(&mut self, what: &str, done: impl Fn() -> bool) {
        let began = Instant::now();
        loop {
            // Check the process first, so that `done` sees everything it did before it ended.
            let ended = self.0.try_wait().unwrap();
            if done() {
                return;
            }
            if let Some(status) = ended {
                panic!("the process ended with {status} before {what}: {}", self.said());
            }
            assert!(began.elapsed() < PATIENCE, "no {what} after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal, given by its name without `SIG`.
    #[cfg(unix)]
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success(), "cannot send SIG{name}: {sent}");
    }

    /// Reads the rest of stderr, until the process ends.
    fn said(&mut self) -> String {
        let mut bytes = Vec::new();
        self.0.stderr.take().unwrap().read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the process to end; returns its exit code and stderr.
    pub fn end(mut self) -> (i32, String) {
        let said = self.said();
        (self.0.wait().unwrap().code().unwrap_or(-1), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if the process has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the shipped recipes of one folder below `recipes`, sorted.
fn recipes_in(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "ron"))
        .collect();
    all.sort();
    assert!(!all.is_empty(), "{}", folder.display());
    all
}

/// Returns the shipped recipes that are small enough to run in their short form, sorted.
pub fn recipes() -> Vec<PathBuf> {
    let folder = root().join("recipes");
    [recipes_in(&folder), recipes_in(&folder.join("fashion-mini"))].concat()
}

/// Returns all shipped recipes.
pub fn all_recipes() -> Vec<PathBuf> {
    let folder = root().join("recipes");
    // `expected` holds metrics, `sweeps` holds sweeps of other recipes.
    let holds_recipes = |p: &PathBuf| p.is_dir() && !p.ends_with("expected") && !p.ends_with("sweeps");
    let below = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).filter(holds_recipes);
    let mut all = recipes_in(&folder);
    below.for_each(|dir| all.extend(recipes_in(&dir)));
    all.sort();
    all
}

/// Returns `--set` changes for the short form of a shipped recipe: its views, networks and terms on 160
/// procedural images, three epochs of five steps, clustering from the second epoch on.
pub fn short_form(recipe: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(recipe).unwrap();
    let mut set = vec![
        "data=Shapes(count: 160, size: 28, classes: 4, seed: 1)".to_string(),
        "train=(epochs: 3, batch: 32, log_every: 1)".into(),
        "schedule=WarmupCosine(warmup: Steps(3))".into(),
        "probes=[Knn(k: 5, every: Epochs(1)), Rank(every: Epochs(1))]".into(),
        "baselines=[]".into(),
    ];
    if text.contains("width: ") {
        set.push("encoder.width=4".into());
    }
    if text.contains("ConvNet(") {
        set.push("encoder.channels=[4, 8, 16]".into());
    }
    if text.contains("queue:") {
        set.push("queue=64".into());
    }
    if text.contains("clusterer:") {
        set.push("clusterer=KMeans(k: [4, 8], start: Epochs(1), every: Epochs(1))".into());
    }
    for term in 0..text.matches("(term:").count() {
        set.push(format!("objective[{term}].from=Steps(0)"));
    }
    set.into_iter().flat_map(|s| ["--set".to_string(), s]).collect()
}

/// Returns the events of a run without their times, which differ between any two runs, and without the ends of
/// interruptions.
pub fn timeless_events(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut v: serde_json::Value = serde_json::from_str(line).unwrap();
        ["seconds", "images_per_second", "stages", "peak_memory_bytes", "loader"]
            .iter()
            .for_each(|k| drop(v.as_object_mut().unwrap().remove(*k)));
        v
    };
    let continues = |v: &serde_json::Value| v["event"] != "end" || v["status"] == "finished";
    text.lines().map(timeless).filter(continues).collect()
}

/// Returns the arguments that train a recipe, which is written below `folder`, as are the runs.
pub fn training(recipe: &str, folder: &Path, more: &[&str]) -> Vec<String> {
    let path = folder.join("recipe.ron");
    std::fs::write(&path, recipe).unwrap();
    let out = folder.join("runs");
    let mut args: Vec<String> = ["--threads", "1", "run"].map(String::from).to_vec();
    args.extend([path.display().to_string(), "--out".into(), out.display().to_string()]);
    args.extend(more.iter().map(|s| s.to_string()));
    args
}

/// Trains a recipe below `folder` and returns the run's folder.
pub fn trained(recipe: &str, folder: &Path, more: &[&str]) -> PathBuf {
    let done = pauc(training(recipe, folder, more));
    assert_eq!(done.code, 0, "{}", done.stderr);
    only_run(&folder.join("runs"))
}

/// Resumes a run.
pub fn resume(run: &Path, more: &[&str]) -> Output {
    pauc([&["--threads", "1", "resume", run.to_str().unwrap()], more].concat())
}

/// Asserts that a command ended with this code, and that its messages contain these texts.
pub fn assert_says(done: &Output, code: i32, texts: &[&str]) {
    assert_eq!(done.code, code, "{}", done.stderr);
    texts.iter().for_each(|text| assert!(done.stderr.contains(text), "no {text:?} in {}", done.stderr));
}

/// Returns the folder of the only run below `out`.
pub fn only_run(out: &Path) -> PathBuf {
    let only = |dir: &Path| {
        let all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    };
    only(&only(out))
}

/// Returns the events of a run without the fields that depend on the clock and the machine, and without the stages
/// of an epoch, of which a resumed epoch has fewer.
pub fn events(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut v: serde_json::Value = serde_json::from_str(line).unwrap();
        let object = v.as_object_mut().unwrap();
        for key in ["seconds", "images_per_second", "stages", "peak_memory_bytes", "loader"] {
            object.remove(key);
        }
        v
    };
    text.lines().map(timeless).collect()
}

/// Returns the processes whose arguments have a path below `folder`. Those that have ended are left out.
#[cfg(target_os = "linux")]
pub fn processes(folder: &Path) -> Vec<u32> {
    let folder = folder.to_str().unwrap().as_bytes();
    let names_it = |id: &u32| {
        let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        arguments.split(|b| *b == 0).any(|argument| argument.starts_with(folder))
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(names_it).collect()
}
