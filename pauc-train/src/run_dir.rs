//! A run's folder: what lies where, and how it is written so that a crash loses nothing.

use pauc_report::events::Event;
use pauc_traits::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// `run.json`: what a run is and how it stands.
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
    /// The device that the run was made on.
    pub device: String,
    /// Threads that kernels used.
    pub threads: usize,
    /// The instruction set that kernels used.
    pub simd: String,
    /// Operating system and processor family.
    pub platform: String,
    /// One line on the data.
    pub data: String,
    /// The name of the recipe file.
    pub recipe: String,
}

/// A run's folder.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The folder at a path, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        RunDir { path: path.into() }
    }

    /// `OUT/<name>-<hash>/seed<seed>`.
    pub fn of(out: &Path, name: &str, hash: &str, seed: u64) -> Self {
        Self::at(out.join(format!("{name}-{hash}")).join(format!("seed{seed}")))
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the folder and its parts.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn create(&self) -> Result<()> {
        for part in ["checkpoints", "figures"] {
            let path = self.path.join(part);
            fs::create_dir_all(&path).map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    }

    /// Writes a file of the folder whole: under a temporary name, synced, then renamed.
    ///
    /// # Errors
    /// If the disk refuses; the file that was there before is then untouched.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path.join(name);
        let temporary = path.with_file_name(format!(
            ".{}.{}.tmp",
            path.file_name().and_then(|n| n.to_str()).unwrap_or("file"),
            std::process::id()
        ));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(content.as_ref())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|e| {
            // The temporary file is of no use to anybody; a failure to remove it changes nothing.
            let _ = fs::remove_file(&temporary);
            Error::io(&path, e)
        })
    }

    /// The run's own description, if the folder has one.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn info(&self) -> Result<Option<RunInfo>> {
        let path = self.path.join("run.json");
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::damaged(&path, e.to_string()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    /// Writes the run's description.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn set_info(&self, info: &RunInfo) -> Result<()> {
        let text = serde_json::to_string_pretty(info).map_err(|e| Error::Other(e.into()))?;
        self.write("run.json", text + "\n")
    }

    /// Where the newest checkpoint is, or will be.
    pub fn last_checkpoint(&self) -> Option<PathBuf> {
        (!self.path.as_os_str().is_empty()).then(|| self.path.join("checkpoints/last.safetensors"))
    }

    /// Opens the event log for appending.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn events(&self) -> Result<EventLog> {
        let path = self.path.join("metrics.jsonl");
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(EventLog { path, file })
    }

    /// Sets aside the events of steps after `step`, which a continued run will record again: they move to
    /// `metrics.superseded.jsonl`. A last line that a crash cut short goes with them.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn rewind_events(&self, step: u64) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let Ok(file) = File::open(&path) else { return Ok(()) };
        let (mut kept, mut superseded) = (String::new(), String::new());
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|e| Error::io(&path, e))?;
            let value: Option<serde_json::Value> = serde_json::from_str(&line).ok();
            let at = value.as_ref().and_then(|v| v.get("step")).and_then(|s| s.as_u64());
            let ending = value.as_ref().is_some_and(|v| v.get("event").is_some_and(|e| e == "end"));
            let keep = at.is_some_and(|s| s <= step) && !ending;
            let to = if keep { &mut kept } else { &mut superseded };
            to.push_str(&line);
            to.push('\n');
        }
        if !superseded.is_empty() {
            let path = self.path.join("metrics.superseded.jsonl");
            let mut file =
                OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
            file.write_all(superseded.as_bytes()).map_err(|e| Error::io(&path, e))?;
            self.write("metrics.jsonl", kept)?;
        }
        Ok(())
    }
}

/// `metrics.jsonl`: one event a line, appended.
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Appends an event as one write, so that a crash leaves whole lines and at most one cut one.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_string(event).map_err(|e| Error::Other(e.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_after_the_checkpoint_are_set_aside_not_lost() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        let lines = "{\"event\":\"warning\",\"step\":1,\"text\":\"a\"}\n{\"event\":\"warning\",\"step\":5,\"text\":\"b\"}\n{\"event\":\"war";
        dir.write("metrics.jsonl", lines).unwrap();
        dir.rewind_events(3).unwrap();
        let read = |n| fs::read_to_string(folder.path().join(n)).unwrap();
        assert_eq!(read("metrics.jsonl").lines().count(), 1);
        assert_eq!(read("metrics.superseded.jsonl").lines().count(), 2);
        dir.rewind_events(3).unwrap();
        assert_eq!(read("metrics.superseded.jsonl").lines().count(), 2, "nothing more to set aside");
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
