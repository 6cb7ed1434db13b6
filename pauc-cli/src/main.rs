//! `pauc-cli`: recipes in, runs out.
#![forbid(unsafe_code)]

use pauc::kernels::malloc::Allocator;
use pauc_cli::Failure;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    pauc_cli::main().unwrap_or_else(Failure::exit)
}
