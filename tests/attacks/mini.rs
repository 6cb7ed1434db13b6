//! A short run, its folder, and the files that it must have in the end.

use crate::common::{events, root};
use crate::scenes::Files;
use pauc::models::weights::TensorFile;
use pauc::report::events::Log;
use pauc::train::checkpoint;
use std::path::{Path, PathBuf};

/// The dataset of the short run.
pub const DATA: &str = "Shapes(count: 60, size: 12, classes: 3, seed: 1)";

/// Returns the arguments of the short run that writes below `out`.
pub fn run(out: &Path) -> Vec<String> {
    let recipe = root().join("tests/attacks/mini.ron");
    let arguments = ["--threads", "1", "run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()];
    arguments.map(String::from).to_vec()
}

/// Returns the arguments of a sweep over the short run, two processes at a time.
pub fn sweep(out: &Path) -> Vec<String> {
    let (sweep, out) = (root().join("tests/attacks/sweep.ron"), out.to_str().unwrap());
    let arguments = ["--threads", "2", "sweep", sweep.to_str().unwrap(), "--jobs", "2", "--out", out];
    arguments.map(String::from).to_vec()
}

/// Returns the arguments that continue the run below `out`, or begin it if a process ended before `run.json` was
/// written.
pub fn again(out: &Path) -> Vec<String> {
    match folder(out).filter(|f| f.join("run.json").exists()) {
        Some(folder) => ["--threads", "1", "resume", folder.to_str().unwrap()].map(String::from).to_vec(),
        None => run(out),
    }
}

/// Returns the folder of the run below `out`, if it exists.
pub fn folder(out: &Path) -> Option<PathBuf> {
    let only = |path: &Path| std::fs::read_dir(path).ok()?.next()?.ok().map(|e| e.path());
    // Names without a recipe are those of exported files.
    let of_recipe = std::fs::read_dir(out).ok()?.flatten().map(|e| e.path()).find(|p| p.is_dir())?;
    only(&of_recipe)
}

/// Returns whether the last checkpoint of the run below `out` has another recipe than the run began with.
pub fn is_changed(out: &Path) -> bool {
    let last = folder(out).unwrap().join("checkpoints/last.safetensors");
    TensorFile::metadata_of(last).is_some_and(|metadata| metadata.contains_key("history"))
}

/// Returns every file below a folder.
fn paths(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { all.push(path) }
        }
    }
    all
}

/// Returns every file below `out` with its content: of `metrics.jsonl`, what does not depend on the clock, and of
/// others that depend on it, nothing. Files that grow in number with every process are left out.
pub fn files(out: &Path) -> Files {
    let content = |path: &Path| match name(path) {
        "run.json" | "run.lock" | "log.txt" | "report.html" => Vec::new(),
        "metrics.jsonl" => {
            events(path.parent().unwrap()).iter().flat_map(|e| format!("{e}\n").into_bytes()).collect()
        }
        _ => std::fs::read(path).unwrap(),
    };
    let stays = |path: &PathBuf| {
        !name(path).starts_with("events.out.tfevents") && name(path) != "metrics.superseded.jsonl"
    };
    let all = paths(out).into_iter().filter(stays);
    all.map(|path| (path.strip_prefix(out).unwrap().display().to_string(), content(&path))).collect()
}

/// Leaves out the checkpoints of single steps: a process that is asked to stop saves one more than others.
pub fn without_steps(files: &Files) -> Files {
    files.clone().into_iter().filter(|(name, _)| !name.contains("checkpoints/step-")).collect()
}

/// Says which file below `out` is damaged or cut off. Temporary files are not looked at.
pub fn damage(out: &Path) -> Option<String> {
    paths(out).iter().find_map(|path| wrong(path).map(|wrong| format!("{}: {wrong}", path.display())))
}

/// Says what is wrong with a file.
fn wrong(path: &Path) -> Option<String> {
    let text = || String::from_utf8(std::fs::read(path).unwrap());
    let is_cut = |end: &str| match text() {
        Ok(text) => (!text.trim_end().ends_with(end)).then(|| format!("it does not end with {end}")),
        Err(error) => Some(error.to_string()),
    };
    let is_checkpoint = path.parent().is_some_and(|p| p.ends_with("checkpoints"));
    match (name(path), path.extension().and_then(|e| e.to_str())) {
        (_, Some("safetensors")) => match TensorFile::load(path) {
            Ok(file) if is_checkpoint => checkpoint::verify(&file, path).err().map(|e| e.to_string()),
            loaded => loaded.err().map(|e| e.to_string()),
        },
        ("metrics.jsonl", _) => {
            // The process may have been killed while it wrote the last line.
            let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let damaged = Log::parse(whole).damaged;
            (!damaged.is_empty()).then(|| format!("these lines are damaged: {damaged:?}"))
        }
        (_, Some("json")) => serde_json::from_str::<serde_json::Value>(&text().unwrap_or_default())
            .err()
            .map(|e| e.to_string()),
        (_, Some("html")) => is_cut("</html>"),
        (_, Some("ron")) => is_cut(")"),
        _ => None,
    }
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}
