//! `tail`.

use super::no_run;
use crate::Failure;
use crate::args::TailArgs;
use pauc::report::events::{Event, Log};
use pauc::report::narrate::line;
use pauc::traits::Error;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How often a log is looked at again.
const PAUSE: Duration = Duration::from_millis(300);

/// Prints a run's log line by line.
pub fn tail(args: TailArgs) -> Result<ExitCode, Failure> {
    let path = args.run.join("metrics.jsonl");
    if !path.is_file() {
        return Err(no_run(&args.run, "metrics.jsonl"));
    }
    let mut reader = Reader::default();
    loop {
        // Whether it has ended is asked first: what was written until then is in what is read next.
        let ended = !running(&args.run);
        for event in reader.new_events(&path).map_err(|e| Failure::from(Error::io(&path, e)))? {
            if let Some(line) = line(&event)
                && writeln!(std::io::stdout(), "{line}").is_err()
            {
                // Whoever read this has closed the pipe.
                return Ok(ExitCode::SUCCESS);
            }
        }
        if args.no_follow || ended {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(PAUSE);
    }
}

fn running(run: &Path) -> bool {
    pauc::train::run_dir::RunDir::at(run).info().ok().flatten().is_some_and(|i| i.status == "running")
}

/// Reads a growing log, whole lines only.
#[derive(Default)]
struct Reader {
    at: u64,
}

impl Reader {
    fn new_events(&mut self, path: &Path) -> std::io::Result<Vec<Event>> {
        let mut file = std::fs::File::open(path)?;
        if file.metadata()?.len() < self.at {
            // A run that was continued has set its last lines aside.
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        bytes.truncate(bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1));
        self.at += bytes.len() as u64;
        Ok(Log::parse(&String::from_utf8_lossy(&bytes)).events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_once_and_only_when_they_are_whole() {
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
        assert_eq!(count(line(1)), 1, "the log was set back");
    }
}
