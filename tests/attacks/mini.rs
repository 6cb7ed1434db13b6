//! A short run, its folder, and the files that it must have in the end.

use crate::common::root;
use pauc::models::weights::TensorFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Returns the arguments of the short run that writes below `out`.
pub fn run(out: &Path) -> Vec<String> {
    let recipe = root().join("tests/attacks/mini.ron");
    let arguments = ["--threads", "1", "run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()];
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

/// Returns every file below `out` with its content. The content is empty if it depends on the clock. Files that
/// grow in number with every process are left out.
pub fn files(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![out.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if !name.starts_with("events.out.tfevents") && name != "metrics.superseded.jsonl" {
                let timed =
                    ["run.json", "run.lock", "metrics.jsonl", "log.txt", "report.html"].contains(&name);
                let content = if timed { Vec::new() } else { std::fs::read(&path).unwrap() };
                all.insert(path.strip_prefix(out).unwrap().display().to_string(), content);
            }
        }
    }
    all
}

/// Says what differs between the files that should be there and those that are.
pub fn difference(wanted: &BTreeMap<String, Vec<u8>>, found: &BTreeMap<String, Vec<u8>>) -> Option<String> {
    let names = wanted.keys().chain(found.keys());
    let different: Vec<_> = names.filter(|n| wanted.get(*n) != found.get(*n)).collect();
    (!different.is_empty()).then(|| format!("these files are missing, left over or different: {different:?}"))
}
