//! `compare`.

use crate::Failure;
use crate::args::{JsonArg, heading};
use clap::Args;
use pauc::train::compare::{self, Beside, Comparison, Group};
use pauc::train::history::RecipeSince;
use pauc::traits::NonNegative;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compare the recipes and the metrics of runs.
///
/// Prints the differences between their recipes and between their metrics. Runs that differ only in their
/// seed form a group, with mean and standard deviation. Every group is compared with the first: the
/// difference of means, and a paired two-sided t-test over the seeds that both have. Exit code 3 only with
/// `--within`.
///
/// Example: pauc-cli compare runs/simclr-0a1b2c3d runs/pcl-4e5f6a7b
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folders of runs, or folders with the runs of several seeds. The others are compared with the first.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// End with exit code 3 if the mean of a metric differs from the first recipe's by more than this.
    #[arg(long, value_name = "DIFFERENCE", help_heading = heading::MEASUREMENT)]
    within: Option<NonNegative>,
    #[command(flatten)]
    output: JsonArg,
}

impl CompareArgs {
    /// Compares runs.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let compared = compare::compare(&self.runs).map_err(Failure::of_request)?;
        if self.output.json {
            outln!("{}", serde_json::json!(compared));
        } else {
            out!("{}", text(&compared));
        }
        let beyond = self.within.map(|w| compared.beyond(w.get())).unwrap_or_default();
        if beyond.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let lines: Vec<String> = beyond.iter().map(|b| format!("\n  {b}")).collect();
        Err(Failure::new(3, format!("error: metrics differ by more than --within:{}", lines.concat())))
    }
}

fn text(c: &Comparison) -> String {
    let mut out = String::new();
    for (i, g) in c.groups.iter().enumerate() {
        out.push_str(&format!("[{i}] {}\n", title(g)));
    }
    for (i, b) in c.beside.iter().enumerate() {
        out.push_str(&format!("\n[{}] against [0]\n", i + 1));
        for change in &b.recipe {
            let side = |v: &Option<String>| v.clone().unwrap_or_else(|| "–".into());
            out.push_str(&format!("  {}: {} → {}\n", change.path, side(&change.first), side(&change.other)));
        }
        out.push_str(&table(b, i + 1));
    }
    out
}

fn title(g: &Group) -> String {
    let seed_and_status = |r: &compare::Run| match r.status.as_str() {
        "finished" => r.seed.to_string(),
        other => format!("{} ({other})", r.seed),
    };
    let seeds: Vec<String> = g.runs.iter().map(seed_and_status).collect();
    let change = |r: &RecipeSince| format!("; changed after step {}: {}", r.since, r.set.join(", "));
    let changes: String = g.recipes.recipes().iter().skip(1).map(change).collect();
    format!("{}-{}, seed {}{changes}", g.name, g.hash, seeds.join(", "))
}

fn table(b: &Beside, number: usize) -> String {
    let first = ["metric", "[0]", &format!("[{number}]"), "difference", "p (pairs)"].map(String::from);
    let rows = b.metrics.iter().map(|d| {
        let p = d.paired.as_ref().map_or("–".into(), |p| format!("{:.3} ({})", p.p, p.n));
        [d.metric.clone(), d.first.to_string(), d.other.to_string(), format!("{:+.4}", d.difference), p]
    });
    let rows: Vec<[String; 5]> = std::iter::once(first).chain(rows).collect();
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for r in &rows {
        out.push_str(&format!("  {:<w$}", r[0], w = width(0)));
        (1..5).for_each(|c| out.push_str(&format!("  {:>w$}", r[c], w = width(c))));
        out.push('\n');
    }
    for m in &b.not_compared {
        out.push_str(&format!("  {m}: only one of the recipes has it\n"));
    }
    out
}
