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
mod recipes;
mod saved;
mod suggestion;
mod training;

// Links every component of the workspace into the binary.
use pauc as _;

pub use args::definition;
pub use failure::Failure;
use std::process::ExitCode;

/// Starts the threads of the process.
fn start_threads(asked: Option<usize>) -> Result<(), Failure> {
    // Rayon's own variable takes precedence.
    let known = std::env::var_os("RAYON_NUM_THREADS").is_none();
    let machine = || std::thread::available_parallelism().ok().filter(|_| known).map(|n| n.get());
    let threads = asked.or_else(machine).unwrap_or(0);
    let rayon = std::env::var("RAYON_NUM_THREADS").ok().and_then(|v| v.parse::<usize>().ok());
    if let Some(threads) = rayon.filter(|n| asked.is_none() && *n > args::MAX_THREADS) {
        let message =
            format!("error: RAYON_NUM_THREADS={threads}: use at most {} threads", args::MAX_THREADS);
        return Err(Failure::new(2, message));
    }
    pauc::kernels::threads::start(threads)
        .map_err(|e| Failure::new(1, format!("error: cannot start {threads} threads: {e}")))
}

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
    start_threads(cli.threads.map(|t| t as usize))?;
    // A training is not lost with what it would have printed.
    let is_training =
        matches!(cli.command, args::Command::Run(_) | args::Command::Resume(_) | args::Command::Sweep(_));
    let code = pauc::traits::progress::within(console::display(), || commands::execute(cli.command))?;
    match console::lost_output() {
        Some(e) if !is_training => Err(Failure::new(1, format!("error: cannot write the output: {e}"))),
        _ => Ok(code),
    }
}
