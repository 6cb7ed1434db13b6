//! `compare`.

use crate::Failure;
use crate::args::CompareArgs;
use pauc::train::compare::{self, Beside, Comparison, Group};
use pauc::traits::Error;
use std::process::ExitCode;

/// Compares runs.
pub fn compare(args: CompareArgs) -> Result<ExitCode, Failure> {
    let compared = compare::compare(&args.runs).map_err(|e| match e {
        Error::Config { message } => Failure::new(2, format!("error: {message}")),
        e => e.into(),
    })?;
    if args.json {
        println!("{}", serde_json::json!(compared));
    } else {
        print!("{}", text(&compared));
    }
    let beyond = args.within.map(|w| compared.beyond(w.get())).unwrap_or_default();
    if beyond.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let lines: Vec<String> = beyond.iter().map(|b| format!("\n  {b}")).collect();
    Err(Failure::new(3, format!("error: these differ by more than --within allows:{}", lines.concat())))
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
    let of = |r: &compare::Run| match r.status.as_str() {
        "finished" => r.seed.to_string(),
        other => format!("{} ({other})", r.seed),
    };
    let seeds: Vec<String> = g.runs.iter().map(of).collect();
    format!("{}-{}, seed {}", g.name, g.hash, seeds.join(", "))
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
