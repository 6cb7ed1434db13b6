//! The command line of pauc: arguments, messages, exit codes. A crate with components of its own makes a binary
//! that knows them by linking itself and calling [`main`].

mod args;
mod commands;
mod console;

// Links every component of the workspace into the binary.
use pauc as _;

use clap::Parser;
use pauc::traits::Error;
use std::process::ExitCode;

/// Why a command failed: what to print, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// 1 the run failed, 2 usage or recipe, 3 a comparison failed, 4 data missing or damaged.
    pub code: u8,
    /// What to print.
    pub message: String,
}

impl Failure {
    fn new(code: u8, message: impl std::fmt::Display) -> Self {
        Failure { code, message: message.to_string() }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::new(if e.is_about_data() { 4 } else { 1 }, format!("error: {e}"))
    }
}

/// Starts the threads of the process.
fn start_threads(asked: Option<usize>) -> Result<(), Failure> {
    // Rayon's own variable, if set, stays in force.
    let known = std::env::var_os("RAYON_NUM_THREADS").is_none();
    let machine = || std::thread::available_parallelism().ok().filter(|_| known).map(|n| n.get());
    let threads = asked.or_else(machine).unwrap_or(0);
    pauc::kernels::threads::start(threads)
        .map_err(|e| Failure::new(1, format!("error: cannot start {threads} threads: {e}")))
}

/// Runs the command line of this process.
///
/// # Errors
/// What went wrong, with the exit code to end with.
pub fn main() -> Result<ExitCode, Failure> {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => e.exit(),
    };
    pauc::traits::registry::assert_linked().map_err(|e| Failure::new(1, format!("error: {e}")))?;
    start_threads(args.threads.map(|t| t.get()))?;
    commands::dispatch(args.command)
}
