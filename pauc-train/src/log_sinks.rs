//! Logs besides `metrics.jsonl`: `log.txt` for people, and an event file for TensorBoard.

use pauc_report::events::Event;
use pauc_report::narrate::line;
use pauc_report::tensorboard::EventFile;
use pauc_traits::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The open files. Both are only appended to, so steps that a resumed run repeats appear twice.
#[derive(Debug)]
pub struct LogSinks {
    path: PathBuf,
    text: File,
    board: EventFile,
}

impl LogSinks {
    /// Opens `log.txt` in a run's folder, and creates an event file.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn open(run: &Path) -> Result<Self> {
        let path = run.join("log.txt");
        let text = OpenOptions::new().create(true).append(true).open(&path);
        let text = text.map_err(|e| Error::io(&path, e))?;
        Ok(LogSinks { path, text, board: EventFile::create(run)? })
    }

    /// Appends an event to both files.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        if let Some(line) = line(event) {
            let written = self.text.write_all(format!("{line}\n").as_bytes());
            written.map_err(|e| Error::io(&self.path, e))?;
        }
        self.board.append(event)
    }
}
