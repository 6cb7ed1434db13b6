//! Reads several runs for one page.

use crate::compare::{self, Beside, Group};
use crate::run_dir::not_a_run;
use crate::statistics::Spread;
use pauc_report::ReportData;
use pauc_report::side_by_side::{Mean, Recipe, RecipeChange, Side, SideBySide};
use pauc_traits::{Error, Result, progress};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Reads the runs in folders, or in the `seed…` folders below them, in the order of the folders.
///
/// # Errors
/// [`Error::Config`] if a folder is not a run, or one run is named twice; others if a file cannot be read or is
/// damaged.
pub fn read(folders: &[PathBuf]) -> Result<SideBySide> {
    let mut paths = Vec::new();
    for folder in folders {
        paths.extend(compare::runs_in(folder)?);
    }
    if let Some(lacking) = paths.iter().find(|p| !p.join("metrics.jsonl").is_file()) {
        return Err(Error::config(not_a_run(lacking, "metrics.jsonl")));
    }
    let groups = compare::groups(folders)?;
    let task = progress::task("reading runs", paths.len() as u64);
    let mut runs = Vec::new();
    for path in &paths {
        runs.push(side(path, &groups)?);
        task.advance(1);
    }
    let beside = compare::against_first(&groups);
    let recipe = |(i, group): (usize, &Group)| recipe(group, i.checked_sub(1).map(|i| &beside[i]));
    Ok(SideBySide { runs, recipes: groups.iter().enumerate().map(recipe).collect() })
}

fn side(path: &Path, groups: &[Group]) -> Result<Side> {
    let recipe = groups.iter().position(|g| g.runs.iter().any(|r| r.path == path)).unwrap_or(0);
    Ok(Side { data: ReportData::read(path)?, metrics: compare::newest_metrics(path)?, recipe })
}

/// Returns a recipe with what differs from the first, if it is another one.
fn recipe(group: &Group, beside: Option<&Beside>) -> Recipe {
    let paired: BTreeMap<&String, (f64, usize)> = beside
        .iter()
        .flat_map(|b| &b.metrics)
        .filter_map(|d| Some((&d.metric, d.paired.as_ref().map(|p| (p.p, p.n))?)))
        .collect();
    let mean = |(name, s): (String, Spread)| {
        let paired = paired.get(&name).copied();
        (name, Mean { n: s.n, mean: s.mean, sd: s.sd, paired })
    };
    Recipe {
        title: format!("{}-{}", group.name, group.hash),
        changes: beside.iter().flat_map(|b| &b.recipe).map(reported).collect(),
        means: Spread::of_each(group.runs.iter().map(|r| &r.metrics)).into_iter().map(mean).collect(),
    }
}

/// Returns a change as the pages show it.
pub(crate) fn reported(change: &compare::Change) -> RecipeChange {
    RecipeChange { path: change.path.clone(), first: change.first.clone(), other: change.other.clone() }
}
