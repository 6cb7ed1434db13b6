//! Code that the training verbs share.

use crate::Failure;
use crate::failure::limit_to_raise;
use pauc::report::postmortem::story::story;
use pauc::train::run::{self, Outcome, RunError};
use pauc::train::run_dir::not_a_run;
use pauc::train::trainer::Ending;
use pauc::traits::Error;
use std::path::Path;
use std::process::ExitCode;

/// Prepares the process for training: keeps freed memory for the next step.
pub fn prepare() {
    pauc::kernels::malloc::keep_freed();
}

/// The exit code of a run that a signal interrupted.
pub fn interrupted() -> ExitCode {
    ExitCode::from(130)
}

/// Reports a folder that is not a run because it lacks a file that every run has.
pub fn no_run(folder: &Path, lacks: &str) -> Failure {
    Failure::new(2, format!("error: {}", not_a_run(folder, lacks)))
}

/// Says that a line of a log, counted from 1, is left out.
pub fn damaged_line(log: &Path, line: usize) -> String {
    format!("{}, line {line}: not an event; the line is left out", log.display())
}

/// Reports an error of the run in `folder`. A disk that refuses writes there is not an error of the data.
pub fn run_failure(e: RunError, folder: &Path) -> Failure {
    match e {
        RunError::Failed(Error::Io { ref path, ref source }) if path.starts_with(folder) => {
            let help = "runs are written there; free some space, make it writable, or choose another folder \
                with --out";
            let help = limit_to_raise(source).unwrap_or(help);
            Failure::new(1, format!("error: {e}\n{help}"))
        }
        RunError::Failed(e) => e.into(),
        RunError::Diverged { path, postmortem, .. } => {
            Failure::new(1, format!("error: {}", story(&postmortem, &path)))
        }
        RunError::AlreadyDone(_)
        | RunError::Unfinished { .. }
        | RunError::Running { .. }
        | RunError::Undescribed { .. }
        | RunError::Changed { .. }
        | RunError::NoRun(_) => Failure::new(1, format!("error: {e}")),
    }
}

/// Prints the result of a run.
pub fn print_outcome(outcome: &Outcome, json: bool) {
    if json {
        outln!("{}", outcome_json(outcome));
        return;
    }
    if outcome.ending != Ending::Finished {
        outln!("\nnot finished; `pauc-cli resume {}` continues", outcome.dir.path().display());
    }
    out!("\n{}", run::table(&outcome.summary));
    if let Some(report) = &outcome.report {
        outln!("\nreport: {}", report.display());
    }
}

fn outcome_json(outcome: &Outcome) -> serde_json::Value {
    let mut metrics_by_subject = serde_json::Map::new();
    for (subject, metrics) in &outcome.summary {
        let name = serde_json::json!(subject).as_str().unwrap_or_default().to_string();
        let values: serde_json::Map<_, _> =
            metrics.iter().map(|m| (m.name.clone(), serde_json::json!(m.value))).collect();
        metrics_by_subject.insert(name, values.into());
    }
    serde_json::json!({
        "run": outcome.dir.path(), "metrics": metrics_by_subject, "report": outcome.report,
    })
}
