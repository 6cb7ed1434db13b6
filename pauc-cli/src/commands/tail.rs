//! `tail`.

use crate::Failure;
use crate::args::heading;
use crate::training::{damaged_line, no_run};
use clap::Args;
use pauc::report::events::Log;
use pauc::report::narrate::line;
use pauc::train::run_dir::RunDir;
use pauc::traits::Error;
use std::hash::{DefaultHasher, Hasher};
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
            if !reader_stays(PAUSE) {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Waits, and returns whether the reader of stdout is still there after that. While the log is quiet, nothing is written
/// that could fail.
#[cfg(unix)]
fn reader_stays(pause: Duration) -> bool {
    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let stdout = std::io::stdout();
    // Without events, only a closed pipe or socket ends the wait.
    let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    match poll(&mut polled, PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO)) {
        Ok(0) | Err(Errno::EINTR) => true,
        Ok(_) => false,
        Err(_) => {
            std::thread::sleep(pause);
            true
        }
    }
}

#[cfg(not(unix))]
fn reader_stays(pause: Duration) -> bool {
    std::thread::sleep(pause);
    true
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

/// Reads a growing log, complete lines only. If the run goes back to an earlier checkpoint, the log changes from there
/// on; lines that stay are not read again.
#[derive(Default)]
struct Reader {
    position: u64,
    /// The hashes of the lines before the position.
    lines: Vec<u64>,
    /// The length of the last of them, with its line break.
    last: u64,
}

impl Reader {
    /// Returns the new events, and the numbers of damaged lines among them.
    fn new_events(&mut self, path: &Path) -> std::io::Result<Log> {
        let mut file = std::fs::File::open(path)?;
        if !self.continues(&mut file)? {
            let bytes = read_from(&mut file, 0)?;
            let same = |(line, hash): &(&[u8], &u64)| hash_of(line) == **hash;
            let kept: Vec<&[u8]> =
                complete_lines(&bytes).zip(&self.lines).take_while(same).map(|(line, _)| line).collect();
            self.lines.truncate(kept.len());
            self.position = kept.iter().map(|line| line.len() as u64).sum();
            self.last = kept.last().map_or(0, |line| line.len() as u64);
        }
        let mut bytes = read_from(&mut file, self.position)?;
        bytes.truncate(bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1));
        let mut log = Log::parse(&String::from_utf8_lossy(&bytes));
        log.damaged.iter_mut().for_each(|line| *line += self.lines.len());
        self.position += bytes.len() as u64;
        self.lines.extend(complete_lines(&bytes).map(hash_of));
        self.last = complete_lines(&bytes).last().map_or(self.last, |line| line.len() as u64);
        Ok(log)
    }

    /// Returns whether the last line that was read is still in its place.
    fn continues(&self, file: &mut std::fs::File) -> std::io::Result<bool> {
        let Some(hash) = self.lines.last() else { return Ok(true) };
        if file.metadata()?.len() < self.position {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(self.position - self.last))?;
        let mut line = Vec::new();
        file.take(self.last).read_to_end(&mut line)?;
        Ok(hash_of(&line) == *hash)
    }
}

fn read_from(file: &mut std::fs::File, position: u64) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(position))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the lines that end in a line break.
fn complete_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|b| *b == b'\n').filter(|line| line.ends_with(b"\n"))
}

fn hash_of(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(line);
    hasher.finish()
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
        assert_eq!(count(line(1)), 0, "the log became shorter");
        assert_eq!(count(line(1) + &line(4)), 1);
        // Longer than before, with other lines from the second one on.
        assert_eq!(count(line(1) + &line(5) + &line(6)), 2);
        assert_eq!(count(line(7) + &line(5) + &line(6) + &line(8)), 1, "no run changes only its first line");
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
