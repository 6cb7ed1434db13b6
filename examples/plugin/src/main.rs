//! pauc's command line with this crate's components linked in.

use pauc_plugin_example as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    pauc_cli::main().unwrap_or_else(|failure| {
        eprintln!("{}", failure.message);
        ExitCode::from(failure.code)
    })
}
