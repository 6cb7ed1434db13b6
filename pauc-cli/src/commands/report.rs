//! `report`.

use super::no_run;
use crate::Failure;
use crate::args::ReportArgs;
use std::process::ExitCode;

/// Writes the reports of runs again.
pub fn report(args: ReportArgs) -> Result<ExitCode, Failure> {
    for run in &args.runs {
        if !run.join("metrics.jsonl").is_file() {
            return Err(no_run(run, "metrics.jsonl"));
        }
        println!("{}", pauc::report::write_report(run)?.display());
    }
    Ok(ExitCode::SUCCESS)
}
