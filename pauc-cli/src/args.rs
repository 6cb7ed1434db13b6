//! The command line: its verbs, their groups in the help text, and the flags that several verbs share.
//!
//! The arguments of each verb are defined in a file of their own under `commands`.

use crate::Failure;
use crate::commands::{
    atlas::AtlasArgs, bench::BenchArgs, check::CheckArgs, cluster::ClusterArgs, compare::CompareArgs,
    completions::CompletionsArgs, data::DataCommand, devices::DevicesArgs, embed::EmbedArgs, eval::EvalArgs,
    explain::ExplainArgs, export::ExportArgs, list::ListArgs, man::ManArgs, neighbors::NeighborsArgs,
    new::NewCommand, postmortem::PostmortemArgs, report::ReportArgs, reproduce::ReproduceArgs,
    resume::ResumeArgs, run::RunArgs, sweep::SweepArgs, tail::TailArgs, term::TermArgs,
};
use crate::console;
use crate::deferred::Deferred;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use pauc::train::memory::parse_bytes;
use pauc::train::sweep::duplicate;
use std::fmt::Write;
use std::path::PathBuf;

/// The largest number of threads. More would keep other processes from starting threads, long before they
/// helped.
pub const MAX_THREADS: usize = 1024;

/// Contrastive and prototypical self-supervised learning from recipes.
#[derive(Debug, Parser)]
#[command(name = "pauc-cli", version, max_term_width = 100, arg_required_else_help = true)]
#[command(disable_help_flag = true)]
pub struct Cli {
    /// Threads for computing; all cores by default. Results do not depend on it.
    #[arg(long, global = true, value_name = "N", help_heading = heading::GENERAL, display_order = 901)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MAX_THREADS as u64))]
    pub threads: Option<u64>,
    /// Print help; `-h` prints a summary.
    #[arg(short, long, global = true, action = ArgAction::Help)]
    #[arg(help_heading = heading::GENERAL, display_order = 902)]
    help: Option<bool>,
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs. The help text of a verb is the doc comment of its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    Check(Deferred<CheckArgs>),
    Run(Deferred<RunArgs>),
    Resume(Deferred<ResumeArgs>),
    Sweep(Deferred<SweepArgs>),
    Reproduce(Deferred<ReproduceArgs>),
    #[command(subcommand)]
    Data(Deferred<DataCommand>),
    Cluster(Deferred<ClusterArgs>),
    #[command(visible_alias = "neighbours")]
    Neighbors(Deferred<NeighborsArgs>),
    Atlas(Deferred<AtlasArgs>),
    Tail(Deferred<TailArgs>),
    Report(Deferred<ReportArgs>),
    Postmortem(Deferred<PostmortemArgs>),
    Eval(Deferred<EvalArgs>),
    Embed(Deferred<EmbedArgs>),
    Compare(Deferred<CompareArgs>),
    Export(Deferred<ExportArgs>),
    List(Deferred<ListArgs>),
    Explain(Deferred<ExplainArgs>),
    #[command(subcommand)]
    New(Deferred<NewCommand>),
    Term(Deferred<TermArgs>),
    Bench(Deferred<BenchArgs>),
    Devices(Deferred<DevicesArgs>),
    Completions(Deferred<CompletionsArgs>),
    Man(Deferred<ManArgs>),
}

/// Verbs that help lists under one heading.
struct VerbGroup {
    heading: &'static str,
    verbs: &'static [&'static str],
}

/// All verbs, in the order in which the help lists them.
const GROUPS: &[VerbGroup] = &[
    VerbGroup { heading: "Train", verbs: &["check", "run", "resume", "sweep", "reproduce"] },
    VerbGroup { heading: "Data and features", verbs: &["data", "cluster", "neighbors", "atlas"] },
    VerbGroup {
        heading: "Look into a run",
        verbs: &["tail", "report", "postmortem", "eval", "embed", "compare", "export"],
    },
    VerbGroup { heading: "Components", verbs: &["list", "explain", "new", "term", "bench"] },
    VerbGroup { heading: "This program", verbs: &["devices", "completions", "man", "help"] },
];

/// Headings of options, in the order in which the help prints them.
pub mod heading {
    /// Inputs besides the positional arguments.
    pub const INPUT: &str = "Input";
    /// Changes to a recipe.
    pub const RECIPE: &str = "Recipe";
    /// Which runs are trained, and for how long.
    pub const TRAINING: &str = "Training";
    /// Settings of a clustering.
    pub const CLUSTERING: &str = "Clustering";
    /// Settings of a measurement.
    pub const MEASUREMENT: &str = "Measurement";
    /// Where results go.
    pub const OUTPUT: &str = "Output";
    /// Options of nearly every verb.
    pub const GENERAL: &str = "General";

    #[cfg(test)]
    pub const ORDER: [&str; 7] = [INPUT, RECIPE, TRAINING, CLUSTERING, MEASUREMENT, OUTPUT, GENERAL];
}

/// Returns the definition of the whole command line, with verbs in groups.
pub fn definition() -> clap::Command {
    let command = Cli::command();
    let header = *command.get_styles().get_header();
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}\n{header}{}:{header:#}\n{{options}}",
        verbs_in_groups(&command),
        heading::GENERAL
    );
    command.help_template(template)
}

fn verbs_in_groups(command: &clap::Command) -> String {
    let mut command = command.clone();
    // Adds the verb `help`.
    command.build();
    let header = *command.get_styles().get_header();
    let width = GROUPS.iter().flat_map(|g| g.verbs).map(|verb| verb.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (i, group) in GROUPS.iter().enumerate() {
        let gap = if i == 0 { "" } else { "\n" };
        let _ = writeln!(text, "{gap}{header}{}:{header:#}", group.heading);
        for verb in group.verbs {
            let about = command.find_subcommand(verb).and_then(|c| c.get_about());
            let _ = writeln!(text, "  {verb:<width$}  {}", about.cloned().unwrap_or_default());
        }
    }
    text
}

/// Reads the arguments of this process.
///
/// # Errors
/// If they are wrong, or ask for the help or the version.
pub fn parse() -> Result<Cli, clap::Error> {
    let mut matches = Cli::command().try_get_matches();
    // Only help needs the verbs in groups. To collect them takes longer than the rest of the start.
    if matches.as_ref().is_err_and(shows_help) {
        matches = definition().try_get_matches();
    }
    Cli::from_arg_matches(&matches?)
}

fn shows_help(error: &clap::Error) -> bool {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand};
    matches!(error.kind(), DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand)
}

/// Changes to a recipe's values.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    /// Change a value of the recipe, by its path; may be given several times.
    #[arg(long = "set", value_name = "PATH=VALUE", help_heading = heading::RECIPE)]
    pub set: Vec<String>,
}

/// The memory that a run may take.
#[derive(Debug, Args)]
pub struct MemoryArg {
    /// Refuse recipes that need more memory than this, such as 8GiB; by default that of the machine.
    #[arg(id = "memory", long = "memory", value_name = "BYTES", value_parser = bytes)]
    #[arg(help_heading = heading::RECIPE)]
    pub limit: Option<u64>,
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "write a number and a unit, such as 8GiB or 500MB".into())
}

/// The device that a command runs on.
#[derive(Debug, Args)]
pub struct DeviceArg {
    /// The device: cpu, or cuda:0 in a build with the feature `cuda`; `devices` lists them.
    #[arg(id = "device", long = "device", default_value = "cpu", value_name = "DEVICE")]
    #[arg(help_heading = heading::GENERAL, display_order = 900)]
    pub name: String,
}

/// Whether the data may differ from that of the run.
#[derive(Clone, Copy, Debug, Args)]
pub struct DataChangedArg {
    /// What to do if the data is no longer that of the run: `accept` continues. By default it is an error.
    #[arg(long, value_name = "WHAT", help_heading = heading::INPUT)]
    data_changed: Option<OnChangedData>,
}

impl DataChangedArg {
    /// Returns whether to continue with data that has changed.
    pub fn is_accepted(&self) -> bool {
        self.data_changed.is_some()
    }
}

/// What to do if the data has changed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnChangedData {
    /// Continue.
    Accept,
}

/// How a run depends on the process that started it.
#[derive(Debug, Args)]
pub struct SweepArg {
    /// Save and stop when stdin ends: `sweep` starts its runs with this, so that they end with it.
    #[arg(long, hide = true, help_heading = heading::TRAINING)]
    stop_at_end_of_stdin: bool,
}

impl SweepArg {
    /// Ends this process with the sweep that started it, if there is one.
    pub fn watch(&self) {
        if self.stop_at_end_of_stdin {
            console::stop_at_end_of_stdin();
        }
    }
}

/// The output format.
#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print the result as JSON.
    #[arg(long, help_heading = heading::OUTPUT)]
    pub json: bool,
}

/// The output folder of training.
#[derive(Debug, Args)]
pub struct RunsFolderArg {
    /// The folder to write runs to.
    #[arg(id = "out", long = "out", default_value = "runs", value_name = "DIR")]
    #[arg(help_heading = heading::OUTPUT)]
    pub path: PathBuf,
}

/// Which runs of a recipe are trained.
#[derive(Debug, Args)]
pub struct RepetitionArgs {
    /// Train once per seed; replaces the seeds in the file.
    #[arg(long, value_delimiter = ',', value_name = "SEEDS", help_heading = heading::TRAINING)]
    pub seeds: Vec<u64>,
    /// Train finished runs again and replace them.
    #[arg(long, help_heading = heading::TRAINING)]
    pub force: bool,
}

impl RepetitionArgs {
    /// Returns the seeds, each of them once.
    ///
    /// # Errors
    /// If a seed is given twice.
    pub fn distinct_seeds(&self) -> Result<&[u64], Failure> {
        match duplicate(&self.seeds) {
            Some(seed) => {
                Err(Failure::new(2, format!("error: --seeds: {seed} is given twice; remove one of them")))
            }
            None => Ok(&self.seeds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn every_verb_is_in_one_group_and_fits_on_its_line() {
        let mut command = Cli::command();
        command.build();
        let mut verbs: Vec<&str> = command.get_subcommands().map(|c| c.get_name()).collect();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|g| g.verbs).copied().collect();
        verbs.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(grouped, verbs);
        let listing = verbs_in_groups(&Cli::command());
        for line in listing.lines().filter(|line| line.starts_with("  ")) {
            assert!(line.chars().count() <= 80, "longer than 80 columns: {line}");
        }
    }

    /// Asserts that every option is under a heading, and that headings have the same order everywhere.
    fn check_headings(command: &clap::Command) {
        // clap's own, without headings.
        if command.get_name() == "help" {
            return;
        }
        let place = |heading: &str| heading::ORDER.iter().position(|h| *h == heading);
        let mut last = 0;
        for option in command.get_arguments().filter(|a| !a.is_positional()) {
            let name = format!("`{} --{}`", command.get_name(), option.get_id());
            let Some(found) = option.get_help_heading().and_then(place) else {
                panic!("{name} is not under a heading of `heading::ORDER`");
            };
            assert!(found >= last, "{name} follows an option of a later heading");
            last = found;
        }
        command.get_subcommands().for_each(check_headings);
    }

    #[test]
    fn options_are_under_headings_in_one_order() {
        let mut command = definition();
        command.build();
        command.get_subcommands().for_each(check_headings);
    }
}
