//! `postmortem`.

use crate::Failure;
use crate::args::JsonArg;
use crate::training::no_run;
use clap::Args;
use pauc::report::postmortem::{Postmortem, story::story};
use pauc::train::run_dir::RunDir;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Explain why a run ended with NaN or infinity.
///
/// Prints what was not finite first, the last steps, the samples, the likely cause and what to try, as `run` did
/// when it failed. The run's report shows the same with curves and pictures.
///
/// Example: pauc-cli postmortem runs/quickstart-0a1b2c3d/seed0
#[derive(Debug, Args)]
pub struct PostmortemArgs {
    /// The run's folder.
    run: PathBuf,
    #[command(flatten)]
    output: JsonArg,
}

impl PostmortemArgs {
    /// Prints the story of a run.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let dir = RunDir::at(&self.run);
        let found = Postmortem::read(&self.run)?;
        let status = dir.info()?.map(|info| info.status);
        if found.is_none() && status.is_none() {
            return Err(no_run(&self.run, "run.json"));
        }
        if self.output.json {
            let status = status.as_deref();
            outln!("{}", serde_json::json!({ "run": self.run, "status": status, "postmortem": found }));
            return Ok(ExitCode::SUCCESS);
        }
        match found {
            Some(postmortem) => outln!("{}", story(&postmortem, &self.run)),
            None => outln!("{}", nothing_to_tell(&self.run, status.as_deref().unwrap_or_default())),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Says why there is no postmortem.
fn nothing_to_tell(run: &Path, status: &str) -> String {
    let run = run.display();
    let what = match status {
        "finished" => "the run has finished".to_string(),
        "running" => format!("the run is marked as running; `pauc-cli tail {run}` follows it"),
        "interrupted" => format!("the run was interrupted; `pauc-cli resume {run}` continues it"),
        _ => format!("the run failed for another reason; `pauc-cli resume {run}` continues it"),
    };
    format!("{run}: no value became NaN or infinite, so there is no postmortem: {what}")
}
