//! `tail`.

use crate::Failure;
use crate::args::heading;
use crate::training::no_run;
use clap::Args;
use pauc::report::events::{Event, Log};
use pauc::report::narrate::line;
use pauc::traits::Error;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The interval at which the log is read.
const PAUSE: Duration = Duration::from_millis(300);

/// Print a run's log, and follow it until the run ends.
///
/// Prints the lines that `run` prints.
///
/// Example: pauc-cli tail runs/quickstart-0a1b2c3d/seed0
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The run's folder.
    run: PathBuf,
    /// Print the log so far and exit.
    #[arg(long, help_heading = heading::OUTPUT)]
    no_follow: bool,
}

impl TailArgs {
    /// Prints a run's log line by line.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let path = self.run.join("metrics.jsonl");
        if !path.is_file() {
            return Err(no_run(&self.run, "metrics.jsonl"));
        }
        let mut reader = Reader::default();
        loop {
            // Check for the end first: the next read then includes everything written before it.
            let ended = !running(&self.run);
            for event in reader.new_events(&path).map_err(|e| Failure::from(Error::io(&path, e)))? {
                if let Some(line) = line(&event)
                    && writeln!(std::io::stdout(), "{line}").is_err()
                {
                    // The reader has closed the pipe.
                    return Ok(ExitCode::SUCCESS);
                }
            }
            if self.no_follow || ended {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn running(run: &Path) -> bool {
    pauc::train::run_dir::RunDir::at(run).info().ok().flatten().is_some_and(|i| i.status == "running")
}

/// Reads a growing log, complete lines only.
#[derive(Default)]
struct Reader {
    position: u64,
}

impl Reader {
    fn new_events(&mut self, path: &Path) -> std::io::Result<Vec<Event>> {
        let mut file = std::fs::File::open(path)?;
        if file.metadata()?.len() < self.position {
            // A resumed run has moved its last lines aside.
            self.position = 0;
        }
        file.seek(SeekFrom::Start(self.position))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        bytes.truncate(bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1));
        self.position += bytes.len() as u64;
        Ok(Log::parse(&String::from_utf8_lossy(&bytes)).events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_once_and_only_when_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = |n: u64| format!("{{\"event\":\"warning\",\"step\":{n},\"text\":\"w\"}}\n");
        let mut reader = Reader::default();
        let mut count = |text: String| {
            std::fs::write(&path, text).unwrap();
            reader.new_events(&path).unwrap().len()
        };
        assert_eq!(count(line(1)), 1);
        assert_eq!(count(line(1) + &line(2)[..9]), 0);
        assert_eq!(count(line(1) + &line(2) + &line(3)), 2);
        assert_eq!(count(line(1)), 1, "the log became shorter");
    }
}
