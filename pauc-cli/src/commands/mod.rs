//! The verbs, one file each, with arguments, help text, implementation and tests.

pub mod atlas;
pub mod bench;
pub mod check;
pub mod cluster;
pub mod compare;
pub mod completions;
pub mod data;
pub mod devices;
pub mod embed;
pub mod eval;
pub mod explain;
pub mod export;
pub mod list;
pub mod man;
pub mod neighbors;
pub mod new;
pub mod postmortem;
pub mod report;
pub mod reproduce;
pub mod resume;
pub mod run;
pub mod sweep;
pub mod tail;
pub mod term;

use crate::Failure;
use crate::args::Command;
use std::process::ExitCode;

/// Runs a verb.
pub fn execute(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Check(args) => args.execute(),
        Command::Run(args) => args.execute(),
        Command::Resume(args) => args.execute(),
        Command::Sweep(args) => args.execute(),
        Command::Reproduce(args) => args.execute(),
        Command::Data(command) => command.execute(),
        Command::Cluster(args) => args.execute(),
        Command::Neighbors(args) => args.execute(),
        Command::Atlas(args) => args.execute(),
        Command::Tail(args) => args.execute(),
        Command::Report(args) => args.execute(),
        Command::Postmortem(args) => args.execute(),
        Command::Eval(args) => args.execute(),
        Command::Embed(args) => args.execute(),
        Command::Compare(args) => args.execute(),
        Command::Export(args) => args.execute(),
        Command::List(args) => args.execute(),
        Command::Explain(args) => args.execute(),
        Command::New(args) => args.execute(),
        Command::Term(args) => args.execute(),
        Command::Bench(args) => args.execute(),
        Command::Devices(args) => args.execute(),
        Command::Completions(args) => args.execute(),
        Command::Man(args) => args.execute(),
    }
}
