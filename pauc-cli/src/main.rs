//! `pauc-cli`: recipes in, runs out.
#![forbid(unsafe_code)]

use pauc_cli::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    pauc_cli::main().unwrap_or_else(Failure::exit)
}
