//! `completions`.

use crate::{Failure, args};
use clap::Args;
use std::process::ExitCode;

/// Print shell completions.
///
/// Example: pauc-cli completions bash > /etc/bash_completion.d/pauc-cli
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    shell: clap_complete::Shell,
}

impl CompletionsArgs {
    /// Prints the completions.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        clap_complete::generate(self.shell, &mut args::definition(), "pauc-cli", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
