//! `pauc-cli`: recipes in, runs out.
#![forbid(unsafe_code)]

use pauc_cli::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    match pauc_cli::main() {
        Ok(code) => code,
        Err(Failure { code, message }) => {
            eprintln!("{message}");
            ExitCode::from(code)
        }
    }
}
