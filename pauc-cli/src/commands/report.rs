//! `report`.

use crate::Failure;
use crate::args::ReportArgs;
use std::process::ExitCode;

/// Writes the reports of runs again.
pub fn report(args: ReportArgs) -> Result<ExitCode, Failure> {
    for run in &args.runs {
        if !run.join("metrics.jsonl").is_file() {
            let message = format!("error: {}: no run lies there (it has no metrics.jsonl)", run.display());
            return Err(Failure::new(2, message));
        }
        println!("{}", pauc::report::write_report(run)?.display());
    }
    Ok(ExitCode::SUCCESS)
}
