//! Commands that a disk, a signal or the system's limits interrupt, with what has to be done before and after them.

use crate::common::pauc;
use crate::mini;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Files by their path, with their content.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A command on the short run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verb {
    Run,
    FourSteps,
    Resume,
    Branch,
    Force,
    Report,
    Export,
    Onnx,
    Embed,
    Neighbors,
    Atlas,
    Sweep,
}

impl Verb {
    /// Returns the arguments of the command for the run below `out`.
    pub fn arguments(self, out: &Path) -> Vec<String> {
        let of_run = |verb: &str, more: &[&str]| {
            let folder = mini::folder(out).unwrap().display().to_string();
            let start = ["--threads", "1", verb, &folder].map(String::from);
            start.into_iter().chain(more.iter().map(|s| s.to_string())).collect()
        };
        let file = |name: &str| out.join(name).display().to_string();
        match self {
            Verb::Run => mini::run(out),
            Verb::FourSteps => [mini::run(out), ["--max-steps", "4"].map(String::from).to_vec()].concat(),
            Verb::Resume => mini::again(out),
            Verb::Branch => of_run("resume", &["--from", "4", "--set", "optimizer.lr=0.01"]),
            Verb::Force => [mini::run(out), vec!["--force".into()]].concat(),
            Verb::Report => of_run("report", &[]),
            Verb::Export => of_run("export", &["--out", &file("encoder.safetensors")]),
            Verb::Onnx => of_run("export", &["--format", "onnx", "--out", &file("encoder.onnx")]),
            Verb::Embed => of_run("embed", &["--out", &file("vectors.npy")]),
            Verb::Neighbors => {
                let files = [
                    file("vectors.npy"),
                    "--out".into(),
                    file("near.csv"),
                    "--sheet".into(),
                    file("near.png"),
                ];
                let start =
                    ["--threads", "1", "neighbors", "-k", "2", "--duplicates", "0.99", "--outliers", "3"];
                let data = ["--data", mini::DATA];
                let words = start.into_iter().chain(data).map(String::from);
                words.chain(files).collect()
            }
            // The page, and the report with a link to it.
            Verb::Atlas => of_run("atlas", &[]),
            Verb::Sweep => mini::sweep(out),
        }
    }

    /// Returns the arguments that make good what was interrupted.
    pub fn again(self, out: &Path) -> Vec<String> {
        match self {
            Verb::Run | Verb::FourSteps | Verb::Resume => mini::again(out),
            // Once a checkpoint has the change, it is in force.
            Verb::Branch if mini::is_changed(out) => mini::again(out),
            // Half of the run before may still be there, which only `--force` replaces.
            Verb::Force if mini::again(out).contains(&"run".into()) => self.arguments(out),
            Verb::Force => mini::again(out),
            _ => self.arguments(out),
        }
    }
}

/// A command that is interrupted, and what has to be done before it.
#[derive(Debug)]
pub struct Scene {
    pub name: &'static str,
    before: &'static [Verb],
    pub attacked: Verb,
}

/// All commands that write.
pub const ALL: &[Scene] = &[
    Scene { name: "run", before: &[], attacked: Verb::Run },
    Scene { name: "resume", before: &[Verb::FourSteps], attacked: Verb::Resume },
    Scene { name: "resume --from --set", before: &[Verb::Run], attacked: Verb::Branch },
    Scene { name: "run --force", before: &[Verb::FourSteps], attacked: Verb::Force },
    Scene { name: "report", before: &[Verb::Run], attacked: Verb::Report },
    Scene { name: "export", before: &[Verb::Run], attacked: Verb::Export },
    Scene { name: "export --format onnx", before: &[Verb::Run], attacked: Verb::Onnx },
    Scene { name: "embed", before: &[Verb::Run], attacked: Verb::Embed },
    Scene { name: "neighbors", before: &[Verb::Run, Verb::Embed], attacked: Verb::Neighbors },
    Scene { name: "atlas", before: &[Verb::Run], attacked: Verb::Atlas },
    Scene { name: "sweep", before: &[], attacked: Verb::Sweep },
];

/// A scene that is ready to be played any number of times.
pub struct Stage {
    pub scene: &'static Scene,
    /// What the commands before it leave.
    prepared: TempDir,
}

impl Stage {
    /// Runs the commands that come before the attacked one.
    pub fn new(scene: &'static Scene) -> Self {
        let prepared = tempfile::tempdir().unwrap();
        for verb in scene.before {
            let output = pauc(verb.arguments(prepared.path()));
            assert_eq!(output.code, 0, "{verb:?}: {}", output.stderr);
        }
        Stage { scene, prepared }
    }

    /// Returns a new folder in which everything is done that comes before the attacked command.
    pub fn set(&self) -> (TempDir, PathBuf) {
        let (folder, out) = temporary();
        copy(self.prepared.path(), &out);
        (folder, out)
    }
}

/// Returns a folder for one case, without the links that temporary folders are reached through on some systems.
fn temporary() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().canonicalize().unwrap().join("runs");
    std::fs::create_dir(&out).unwrap();
    (folder, out)
}

/// Copies what is in a folder into another one.
fn copy(from: &Path, to: &Path) {
    for path in std::fs::read_dir(from).unwrap().map(|e| e.unwrap().path()) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Says what differs between the files that should be there and those that are.
pub fn difference(wanted: &Files, found: &Files) -> Option<String> {
    let names = wanted.keys().chain(found.keys());
    let different: Vec<_> = names.filter(|n| wanted.get(*n) != found.get(*n)).collect();
    (!different.is_empty()).then(|| format!("these files are missing, left over or different: {different:?}"))
}
