//! `tail`.

use crate::Failure;
use crate::args::heading;
use crate::training::{damaged_line, no_run};
use clap::Args;
use pauc::report::events::Log;
use pauc::report::narrate::line;
use pauc::train::run_dir::RunDir;
use pauc::traits::Error;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The interval at which the log is read.
const PAUSE: Duration = Duration::from_millis(300);

/// Print a run's log, and follow it until the run ends.
///
/// Prints the lines that `run` prints. Ends when the run ends, or when its process is gone.
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
            let state = State::of(&self.run);
            let new = reader.new_events(&path).map_err(|e| Failure::from(Error::io(&path, e)))?;
            for line in &new.damaged {
                errln!("warning: {}", damaged_line(&path, *line));
            }
            for event in new.events {
                if let Some(line) = line(&event)
                    && writeln!(std::io::stdout(), "{line}").is_err()
                {
                    // The reader has closed the pipe.
                    return Ok(ExitCode::SUCCESS);
                }
            }
            if state == State::Abandoned {
                let run = self.run.display();
                errln!("its process is gone; `pauc-cli resume {run}` continues the run");
            }
            if self.no_follow || state != State::Running {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Whether more events will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A process is training the run.
    Running,
    /// The run has ended.
    Ended,
    /// The process was killed before it could record how the run ended.
    Abandoned,
}

impl State {
    fn of(run: &Path) -> State {
        let dir = RunDir::at(run);
        let running = || dir.info().ok().flatten().is_some_and(|info| info.status == "running");
        if !running() {
            return State::Ended;
        }
        match dir.holder() {
            // The process may have ended well since the first look at its status.
            Ok(None) if running() => State::Abandoned,
            Ok(None) => State::Ended,
            // If the file system has no locks, nothing tells whether the process lives.
            Ok(Some(_)) | Err(_) => State::Running,
        }
    }
}

/// Reads a growing log, complete lines only.
#[derive(Default)]
struct Reader {
    position: u64,
    lines: usize,
}

impl Reader {
    /// Returns the new events, and the numbers of damaged lines among them.
    fn new_events(&mut self, path: &Path) -> std::io::Result<Log> {
        let mut file = std::fs::File::open(path)?;
        if file.metadata()?.len() < self.position {
            // A resumed run has moved its last lines aside.
            *self = Self::default();
        }
        file.seek(SeekFrom::Start(self.position))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        bytes.truncate(bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1));
        self.position += bytes.len() as u64;
        let mut log = Log::parse(&String::from_utf8_lossy(&bytes));
        log.damaged.iter_mut().for_each(|line| *line += self.lines);
        self.lines += bytes.iter().filter(|b| **b == b'\n').count();
        Ok(log)
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
            reader.new_events(&path).unwrap().events.len()
        };
        assert_eq!(count(line(1)), 1);
        assert_eq!(count(line(1) + &line(2)[..9]), 0);
        assert_eq!(count(line(1) + &line(2) + &line(3)), 2);
        assert_eq!(count(line(1)), 1, "the log became shorter");
    }

    #[test]
    fn damaged_lines_are_counted_from_the_start_of_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let good = "{\"event\":\"warning\",\"step\":1,\"text\":\"w\"}\n";
        let mut reader = Reader::default();
        let mut damaged = |text: String| {
            std::fs::write(&path, text).unwrap();
            reader.new_events(&path).unwrap().damaged
        };
        assert_eq!(damaged(format!("{good}bad\n{good}")), [2]);
        assert_eq!(damaged(format!("{good}bad\n{good}{good}{{\n")), [5]);
    }
}
