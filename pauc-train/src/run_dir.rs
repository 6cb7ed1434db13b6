//! A run's folder: its files, and crash-safe writing.

use crate::data_identity::DataIdentity;
use crate::history::History;
use crate::lock::Claim;
use crate::progress::Change;
use pauc_report::events::Event;
use pauc_traits::{Error, Result, atomic};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// `run.json`: the description and status of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// The recipe's name.
    pub name: String,
    /// The first digits of the resolved recipe's hash.
    pub hash: String,
    /// The seed.
    pub seed: u64,
    /// `running`, `finished`, `interrupted` or `failed`.
    pub status: String,
    /// The version of pauc.
    pub version: String,
    /// The device that the run used.
    pub device: String,
    /// Threads that kernels used.
    pub threads: usize,
    /// The instruction set that kernels used.
    pub simd: String,
    /// The number of ranks that trained together, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<usize>,
    /// Operating system and processor family.
    pub platform: String,
    /// A description of the data.
    pub data: String,
    /// The name of the recipe file.
    pub recipe: String,
    /// The identity of the data; `None` in runs of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_identity: Option<DataIdentity>,
    /// What was changed in the middle of the run on request, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// The recipes of the run, if its recipe was changed.
    #[serde(default, skip_serializing_if = "History::is_empty")]
    pub recipes: History,
}

impl RunInfo {
    /// Returns the hash of the recipe that the run began with. It is a part of the folder's name.
    pub fn first_hash(&self) -> &str {
        self.recipes.first_hash().unwrap_or(&self.hash)
    }

    /// Keeps what the run says of its data and of the recipe's file: a resumed run continues with both, or has
    /// recorded the change.
    pub(crate) fn keep_origin_of(&mut self, before: RunInfo) {
        if !before.data.is_empty() {
            self.data = before.data;
        }
        self.recipe = before.recipe;
        self.data_identity = before.data_identity.or(self.data_identity.take());
    }
}

/// A run's folder.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Refers to the folder at a path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        RunDir { path: path.into() }
    }

    /// `OUT/<name>-<hash>/seed<seed>`.
    pub fn of(out: &Path, name: &str, hash: &str, seed: u64) -> Self {
        Self::at(out.join(format!("{name}-{hash}")).join(format!("seed{seed}")))
    }

    /// Refers to no folder: the run writes nothing to disk and cannot be resumed.
    ///
    /// ```
    /// assert!(pauc_train::RunDir::in_memory().is_in_memory());
    /// ```
    pub fn in_memory() -> Self {
        Self::at("")
    }

    /// Returns whether there is no folder.
    pub fn is_in_memory(&self) -> bool {
        self.path.as_os_str().is_empty()
    }

    /// Returns the folder's path; empty for a run in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the folder and its subfolders.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn create(&self) -> Result<()> {
        for part in ["checkpoints", "figures"] {
            let path = self.path.join(part);
            fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    }

    /// Writes a file of the folder atomically, like [`atomic::write`].
    ///
    /// # Errors
    /// If the disk fails; an existing file is then unchanged.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        atomic::write(&self.path.join(name), content.as_ref())
    }

    /// Reads the run's description, if there is one.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it exists and is not a description, [`Error::Io`] if it cannot be read.
    pub fn info(&self) -> Result<Option<RunInfo>> {
        let path = self.path.join("run.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| self.damaged_info(&path, &e)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    fn damaged_info(&self, path: &Path, error: &serde_json::Error) -> Error {
        let run = self.path.display();
        let remedy = "rebuilds it from the newest checkpoint, `run --force` starts over";
        Error::damaged(path, format!("{error}; `pauc-cli resume {run}` {remedy}"))
    }

    /// Writes the run's description.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn set_info(&self, info: &RunInfo) -> Result<()> {
        let text = serde_json::to_string_pretty(info).map_err(|e| Error::Other(e.into()))?;
        self.write("run.json", text + "\n")
    }

    /// Returns the path of the newest checkpoint, which may not exist yet; `None` for a run in memory.
    pub fn last_checkpoint(&self) -> Option<PathBuf> {
        (!self.is_in_memory()).then(|| self.path.join("checkpoints/last.safetensors"))
    }

    /// Opens the event log for appending.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn events(&self) -> Result<EventLog> {
        let path = self.path.join("metrics.jsonl");
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        Ok(EventLog {
            claim: Claim::on(self),
            path,
            file,
            count: bytes.iter().filter(|b| **b == b'\n').count() as u64,
        })
    }

    /// Keeps the first `count` events, those recorded in a checkpoint, and moves the others to
    /// `metrics.superseded.jsonl`, because a resumed run records them again. A last line that a crash cut
    /// short moves too. Returns the number of events kept.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn rewind_events(&self, count: u64) -> Result<u64> {
        let path = self.path.join("metrics.jsonl");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let (mut end, mut kept) = (0, 0);
        for line in bytes.split_inclusive(|b| *b == b'\n').take_while(|line| line.ends_with(b"\n")) {
            if kept == count {
                break;
            }
            end += line.len();
            kept += 1;
        }
        let superseded = &bytes[end..];
        if !superseded.is_empty() {
            let path = self.path.join("metrics.superseded.jsonl");
            let mut file =
                OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
            let line_break: &[u8] = if superseded.ends_with(b"\n") { b"" } else { b"\n" };
            let lines = [superseded, line_break].concat();
            file.write_all(&lines).map_err(|e| Error::io(&path, e))?;
            self.write("metrics.jsonl", &bytes[..end])?;
        }
        Ok(kept)
    }
}

/// `metrics.jsonl`: one event per line, only appended to.
#[derive(Debug)]
pub struct EventLog {
    claim: Claim,
    path: PathBuf,
    file: File,
    count: u64,
}

impl EventLog {
    /// Checks that no other process has got into the folder.
    ///
    /// # Errors
    /// [`Error::Config`] if the lock file was deleted or replaced.
    pub fn check_lock(&self) -> Result<()> {
        self.claim.check()
    }

    /// Appends an event in one write, so that a crash leaves whole lines and at most one partial line.
    ///
    /// # Errors
    /// If the disk fails, or as [`EventLog::check_lock`].
    pub fn append(&mut self, event: &Event) -> Result<()> {
        self.check_lock()?;
        let mut line = serde_json::to_string(event).map_err(|e| Error::Other(e.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))?;
        self.count += 1;
        Ok(())
    }

    /// Flushes all events to disk, so that a power failure loses none, and returns their number.
    ///
    /// # Errors
    /// If the disk fails, or as [`EventLog::check_lock`].
    pub fn synced(&mut self) -> Result<u64> {
        self.check_lock()?;
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))?;
        Ok(self.count)
    }
}

/// Says that a folder is not a run because it lacks a file that every run has, and names the runs that it holds.
pub fn not_a_run(folder: &Path, lacks: &str) -> String {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut runs: Vec<String> =
        below.filter(|path| path.join("run.json").is_file()).map(|path| path.display().to_string()).collect();
    runs.sort();
    let said = format!("{}: not a run (no {lacks})", folder.display());
    match &runs[..] {
        [] => said,
        [one] => format!("{said}; did you mean {one}?"),
        [first, .., last] => {
            format!("{said}; it holds {} runs, {first} to {last}: name one of them", runs.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_runs_is_told_from_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let (path, shown) = (folder.path(), folder.path().display());
        let said = format!("{shown}: not a run (no metrics.jsonl)");
        let add = |seed: &str| {
            fs::create_dir(path.join(seed)).unwrap();
            fs::write(path.join(seed).join("run.json"), "{}").unwrap();
        };
        assert_eq!(not_a_run(path, "metrics.jsonl"), said);
        add("seed3");
        fs::create_dir(path.join("figures")).unwrap();
        assert_eq!(not_a_run(path, "metrics.jsonl"), format!("{said}; did you mean {shown}/seed3?"));
        add("seed12");
        let two = format!("{said}; it holds 2 runs, {shown}/seed12 to {shown}/seed3: name one of them");
        assert_eq!(not_a_run(path, "metrics.jsonl"), two);
    }

    #[test]
    fn events_after_the_checkpoint_are_set_aside_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        let line = "{\"event\":\"warning\",\"step\":1,\"text\":\"é\"}\n";
        dir.write("metrics.jsonl", format!("{line}{line}{line}{}", &line[..12])).unwrap();
        assert_eq!(dir.rewind_events(2).unwrap(), 2);
        let read = |n| fs::read_to_string(folder.path().join(n)).unwrap();
        assert_eq!(read("metrics.jsonl"), format!("{line}{line}"));
        assert_eq!(read("metrics.superseded.jsonl"), format!("{line}{}\n", &line[..12]));
        assert_eq!(dir.events().unwrap().synced().unwrap(), 2);
        assert_eq!(dir.rewind_events(5).unwrap(), 2, "fewer than the checkpoint recorded");
        assert_eq!(read("metrics.superseded.jsonl").lines().count(), 2, "nothing more to set aside");
        assert_eq!(RunDir::at(folder.path().join("missing")).rewind_events(1).unwrap(), 0);
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path().join("missing"));
        let error = dir.write("run.json", "x").unwrap_err().to_string();
        assert!(error.contains("run.json"), "{error}");
        assert!(dir.info().unwrap().is_none());
    }
}
