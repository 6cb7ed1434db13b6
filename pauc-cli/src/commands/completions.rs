//! `completions`.

use crate::{Failure, args};
use clap::Args;
use std::process::ExitCode;

/// Print shell completions.
///
/// Shells look for them in ~/.local/share/bash-completion/completions/pauc-cli (bash),
/// ~/.config/fish/completions/pauc-cli.fish (fish), and _pauc-cli in a folder of $fpath (zsh).
///
/// Example: pauc-cli completions bash > pauc-cli.bash
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
