//! Several runs on one page: their curves over each other, and tables of their differences.
//!
//! `overlay` draws the curves, `tables` compares the metrics, and this module is the page.

mod overlay;
mod tables;

use crate::data::ReportData;
use crate::events::Metric;
use crate::figure::Section;
use crate::html::{self, NONE, PAGE_STYLE};
use crate::plot::{PALETTE, STYLE, colors};
use crate::postmortem::page::{self, PostmortemView};
use minijinja::context;
use overlay::Overlays;
use pauc_traits::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;

/// Several runs, and the recipes that they belong to.
#[derive(Clone, Debug, Default)]
pub struct SideBySide {
    /// The runs; the others are compared with the first.
    pub runs: Vec<Side>,
    /// The recipes, each of them once; that of the first run comes first.
    pub recipes: Vec<Recipe>,
}

/// One of the runs.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// The content of its folder.
    pub data: ReportData,
    /// The newest record of each metric of the trained encoder, by name.
    pub metrics: BTreeMap<String, Metric>,
    /// Its recipe, as an index of [`SideBySide::recipes`].
    pub recipe: usize,
}

/// One of the recipes.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Its name and the first digits of its hash.
    pub title: String,
    /// What differs from the first recipe.
    pub changes: Vec<RecipeChange>,
    /// The metrics over its seeds, by name.
    pub means: BTreeMap<String, Mean>,
}

/// A value that differs from that of the first recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecipeChange {
    /// Its path, in the form of `--set`.
    pub path: String,
    /// The value in the first recipe; `None` if it is absent.
    pub first: Option<String>,
    /// The value in this recipe.
    pub other: Option<String>,
}

/// A metric over the seeds of a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The number of seeds.
    pub n: usize,
    /// The mean.
    pub mean: f64,
    /// The standard deviation, with n − 1 in the denominator; NaN for a single seed.
    pub sd: f64,
    /// The two-sided p-value of a paired t-test against the first recipe, and the number of seeds that both have;
    /// `None` for fewer than two.
    pub paired: Option<(f64, usize)>,
}

/// The largest number of runs on a page: each has its own color or dashes.
pub const LARGEST: usize = 4 * PALETTE.len();

/// A run, as the page's template reads it.
#[derive(Serialize)]
struct RunView {
    number: usize,
    name: String,
    recipe: String,
    folder: String,
    /// The index of its color.
    color: usize,
    /// The lengths of dashes and gaps in the legend; empty for a solid line.
    dashes: &'static str,
    facts: Vec<(&'static str, String)>,
    conditions: Vec<(String, bool)>,
    changes: Vec<(u64, String)>,
    warnings: Vec<String>,
    postmortem: Option<PostmortemView>,
    recipe_text: String,
}

#[derive(Serialize)]
struct RecipeView<'a> {
    letter: String,
    title: &'a str,
    changes: &'a [RecipeChange],
}

#[derive(Serialize)]
struct SectionView {
    title: &'static str,
    figures: Vec<String>,
}

/// A row of the table of provenance: one value that all runs share, or the value of each.
#[derive(Serialize)]
struct Fact {
    name: String,
    shared: Option<String>,
    values: Vec<String>,
}

/// Renders the page.
///
/// # Errors
/// [`Error::Config`] if there are more than [`LARGEST`] runs, or no two of them have a metric or a curve in common.
pub fn render(all: &SideBySide) -> Result<String> {
    if all.runs.len() > LARGEST {
        let n = all.runs.len();
        let message = format!("{n} runs do not fit on one page; name at most {LARGEST} runs");
        return Err(Error::config(message));
    }
    let names: Vec<String> = all.runs.iter().enumerate().map(|(i, run)| name(i, run)).collect();
    let data: Vec<&ReportData> = all.runs.iter().map(|r| &r.data).collect();
    let overlays = overlay::overlay(&data, &names);
    if overlays.figures.is_empty() && overlays.equal.is_empty() && !tables::have_common_metric(&all.runs) {
        return Err(Error::config(
            "no two of these runs have a metric or a curve in common; name runs that have trained for a while",
        ));
    }
    let page = html::templates().render_str(
        include_str!("../html/side_by_side.html"),
        context! {
            light => colors(false),
            dark => colors(true),
            plot_style => STYLE,
            page_style => PAGE_STYLE.trim_end(),
            runs => all.runs.iter().enumerate().map(|(i, run)| run_view(i, run)).collect::<Vec<_>>(),
            recipes => recipes(all),
            tables => tables::tables(all),
            sections => sections(&overlays),
            equal => overlays.equal,
            single => overlays.single.iter().map(|(title, i)| (title, i + 1)).collect::<Vec<_>>(),
            provenance => provenance(&data),
        },
    );
    page.map_err(|e| Error::Other(e.into()))
}

/// Returns the name of a run in tooltips: its number, recipe and seed.
fn name(i: usize, run: &Side) -> String {
    format!("{} · {}", i + 1, title(run))
}

fn title(run: &Side) -> String {
    let r = &run.data.run;
    let seed = r.seed.map(|s| format!(", seed {s}")).unwrap_or_default();
    let name = if r.name.is_empty() { "Run" } else { &r.name };
    format!("{name}-{}{seed}", r.hash)
}

/// Returns the letter of a recipe; after Z come numbers.
fn letter(recipe: usize) -> String {
    match u8::try_from(recipe) {
        Ok(i @ 0..26) => char::from(b'A' + i).to_string(),
        _ => format!("R{}", recipe + 1),
    }
}

fn run_view(i: usize, run: &Side) -> RunView {
    let data = &run.data;
    RunView {
        number: i + 1,
        name: title(run),
        recipe: letter(run.recipe),
        folder: data.folder.display().to_string(),
        color: i % PALETTE.len(),
        dashes: ["", "7 3", "2 3", "9 3 2 3"][i / PALETTE.len() % 4],
        facts: html::facts(data).into_iter().filter(|f| !["recipe", "seed"].contains(&f.0)).collect(),
        conditions: html::conditions(data).into_iter().map(|c| (c.sentence, c.well)).collect(),
        changes: data.changes.iter().map(|c| (c.step, c.text.clone())).collect(),
        warnings: html::warnings(data),
        postmortem: page::view(data),
        recipe_text: data.recipe.clone(),
    }
}

fn recipes(all: &SideBySide) -> Vec<RecipeView<'_>> {
    let mut views = Vec::new();
    for (i, r) in all.recipes.iter().enumerate() {
        views.push(RecipeView { letter: letter(i), title: &r.title, changes: &r.changes });
    }
    views
}

fn sections(overlays: &Overlays) -> Vec<SectionView> {
    let all = [
        Section::Training,
        Section::TermGradients,
        Section::Health,
        Section::Probes,
        Section::Coagulation,
        Section::Clustering,
    ];
    let view = |section: Section| SectionView {
        title: section.title(),
        figures: overlays.figures.iter().filter(|f| f.section == section).map(|f| f.svg.clone()).collect(),
    };
    all.into_iter().map(view).filter(|s| !s.figures.is_empty()).collect()
}

fn provenance(runs: &[&ReportData]) -> Vec<Fact> {
    let each: Vec<BTreeMap<String, String>> =
        runs.iter().map(|data| html::environment_of(data).into_iter().collect()).collect();
    let mut names: Vec<&String> = each.iter().flat_map(BTreeMap::keys).collect();
    names.sort();
    names.dedup();
    let row = |name: &String| {
        let value = |of: &BTreeMap<String, String>| of.get(name).cloned().unwrap_or_else(|| NONE.into());
        let values: Vec<String> = each.iter().map(value).collect();
        let shared = values.windows(2).all(|pair| pair[0] == pair[1]).then(|| values[0].clone());
        Fact { name: name.clone(), shared, values }
    };
    names.into_iter().map(row).collect()
}
