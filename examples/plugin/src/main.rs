//! pauc's command line with this crate's components linked in.

use pauc_cli::Failure;
use pauc_plugin_example as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    pauc_cli::main().unwrap_or_else(Failure::exit)
}
