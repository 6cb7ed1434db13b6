//! The command line of pauc: arguments, messages, exit codes. A crate with components of its own builds a
//! binary that includes them by linking itself and calling [`main`].
//!
//! Each verb is one file of `commands`, with arguments, help text, implementation and tests. Code that
//! several verbs share is beside that folder.
#![forbid(unsafe_code)]
// `println!` panics if nobody reads: the macros of `console` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

// Its macros are for all other modules.
#[macro_use]
mod console;

mod args;
mod commands;
mod deferred;
mod device;
mod failure;
mod ranks;
mod recipes;
mod saved;
mod suggestion;
mod threads;
mod training;

// Links every component of the workspace into the binary.
use pauc as _;

pub use args::definition;
pub use failure::Failure;
use ranks::Ranks;
use std::process::ExitCode;

/// Refuses a `PAUC_SIMD` that this machine does not support; kernels could not report it.
fn check_instructions() -> Result<(), Failure> {
    pauc::kernels::simd::Simd::detect().map(drop).map_err(|e| Failure::new(2, format!("error: {e}")))
}

/// Runs the command line of this process.
///
/// # Errors
/// Returns the failure, with the exit code to end with.
pub fn main() -> Result<ExitCode, Failure> {
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    pauc::traits::registry::assert_linked().map_err(|e| Failure::new(1, format!("error: {e}")))?;
    check_instructions()?;
    console::survive_file_size_limit();
    pauc::kernels::malloc::exit_without_memory();
    let launcher = ranks::launcher(&cli.command)?;
    let ranks_here = ranks::sharing(launcher.as_ref(), &cli.command);
    threads::start(cli.threads.map(|t| t as usize), ranks_here)?;
    // A training is not lost with what it would have printed.
    let is_training =
        matches!(cli.command, args::Command::Run(_) | args::Command::Resume(_) | args::Command::Sweep(_));
    let execute = |command, ranks: &Ranks| {
        pauc::traits::progress::within(console::display(), || commands::execute(command, ranks))
    };
    let code = ranks::execute(launcher, cli.command, execute)?;
    match console::lost_output() {
        Some(e) if !is_training => Err(Failure::new(1, format!("error: cannot write the output: {e}"))),
        _ => Ok(code),
    }
}
