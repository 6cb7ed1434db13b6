//! `report`.

use crate::Failure;
use crate::training::{damaged_line, no_run};
use clap::Args;
use pauc::report::ReportData;
use pauc::traits::{atomic, progress};
use std::path::PathBuf;
use std::process::ExitCode;

/// Write the report of a run again.
///
/// Example: pauc-cli report runs/quickstart-0a1b2c3d/seed0
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The runs' folders.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
}

impl ReportArgs {
    /// Writes the reports again.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let task = progress::task("writing reports", self.runs.len() as u64);
        for run in &self.runs {
            if !run.join("metrics.jsonl").is_file() {
                return Err(no_run(run, "metrics.jsonl"));
            }
            let (output, data) = (run.join("report.html"), ReportData::read(run)?);
            for line in &data.damaged {
                errln!("warning: {}", damaged_line(&run.join("metrics.jsonl"), *line));
            }
            atomic::remove_leftovers(&output);
            let written = pauc::report::write_report_of(&data, run);
            outln!("{}", written.map_err(|e| Failure::of_output(e, &output))?.display());
            task.advance(1);
        }
        Ok(ExitCode::SUCCESS)
    }
}
