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
use crate::ranks::Ranks;
use std::process::ExitCode;

/// Runs a verb.
pub fn execute(command: Command, ranks: &Ranks) -> Result<ExitCode, Failure> {
    match command {
        Command::Check(args) => args.0.execute(),
        Command::Run(args) => args.0.execute(ranks),
        Command::Resume(args) => args.0.execute(ranks),
        Command::Sweep(args) => args.0.execute(),
        Command::Reproduce(args) => args.0.execute(ranks),
        Command::Data(command) => command.0.execute(),
        Command::Cluster(args) => args.0.execute(ranks),
        Command::Neighbors(args) => args.0.execute(),
        Command::Atlas(args) => args.0.execute(),
        Command::Tail(args) => args.0.execute(),
        Command::Report(args) => args.0.execute(),
        Command::Postmortem(args) => args.0.execute(),
        Command::Eval(args) => args.0.execute(ranks),
        Command::Embed(args) => args.0.execute(ranks),
        Command::Compare(args) => args.0.execute(),
        Command::Export(args) => args.0.execute(),
        Command::List(args) => args.0.execute(),
        Command::Explain(args) => args.0.execute(),
        Command::New(args) => args.0.execute(),
        Command::Term(args) => args.0.execute(),
        Command::Bench(args) => args.0.execute(),
        Command::Devices(args) => args.0.execute(),
        Command::Completions(args) => args.0.execute(),
        Command::Man(args) => args.0.execute(),
    }
}
