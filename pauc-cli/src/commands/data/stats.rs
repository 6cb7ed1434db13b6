//! `data stats`.

use super::DataArgs;
use crate::Failure;
use crate::args::JsonArg;
use clap::Args;
use pauc::data::inspect::{self, Stats};
use std::process::ExitCode;

/// Print sizes, mean and deviation, classes and duplicate images.
///
/// Example: pauc-cli data stats 'Cifar10(root: "data/cifar10")'
#[derive(Debug, Args)]
pub struct StatsArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    output: JsonArg,
}

impl StatsArgs {
    /// Measures the data.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let stats = inspect::stats(&self.data.recipe()?.open()?)?;
        if self.output.json {
            outln!("{}", serde_json::json!(stats));
        } else {
            out!("{}", table(&stats));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(stats: &Stats) -> String {
    let mut lines = vec![stats.description.clone()];
    for s in &stats.splits {
        let three = |v: [usize; 3]| format!("{} to {}, median {}", v[0], v[2], v[1]);
        let channel = |of: fn(&(f32, f32)) -> f32| {
            s.channels.iter().map(|c| format!("{:.4}", of(c))).collect::<Vec<_>>().join(" ")
        };
        lines.push(format!("\n{}: {} images", s.split, s.images));
        lines.push(format!("  height     {}", three(s.heights)));
        lines.push(format!("  width      {}", three(s.widths)));
        lines.push(format!("  mean       {}", channel(|c| c.0)));
        lines.push(format!("  deviation  {}", channel(|c| c.1)));
        let width = s.classes.keys().map(|c| c.chars().count()).max().unwrap_or(0);
        lines.extend(s.classes.iter().map(|(class, n)| format!("  {class:<width$}  {n}")));
    }
    let (groups, shared) = (stats.duplicates.len(), stats.shared_groups);
    lines.push(format!("\n{groups} groups of identical images, {shared} of them in both splits"));
    lines.extend(stats.duplicates.iter().take(10).map(|g| format!("  {}", g.join(" = "))));
    lines.push(String::new());
    lines.join("\n")
}
