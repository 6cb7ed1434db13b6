//! The page of a sweep: what its variants reach, how they differ, and how they got there.
//!
//! `figures` draws charts over all runs, `dots` and `map` are two kinds of charts, and this module is the page.

mod dots;
pub(crate) mod figures;
mod files;
mod map;

pub use files::charts;

use crate::axis::significant;
use crate::data::ReportData;
use crate::events::Metric;
use crate::html::{self, NONE, PAGE_STYLE, breakable};
use crate::plot::{STYLE, colors};
use crate::side_by_side::RecipeChange;
use minijinja::context;
use pauc_traits::probe::MetricKind;
use pauc_traits::{Error, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A sweep with everything that its page shows.
#[derive(Clone, Debug, Default)]
pub struct Study {
    /// The name of its file, without folder and ending.
    pub name: String,
    /// The command that writes the page.
    pub command: String,
    /// What was tuned and by what, and the order of the table; one sentence each.
    pub notes: Vec<String>,
    /// The metrics that matter most, as in the log.
    pub metrics: Vec<String>,
    /// The variants, in the order of the sweep's file.
    pub variants: Vec<Variant>,
    /// The paired differences between arms, if the sweep asks for them.
    pub differences: Option<Differences>,
    /// The trials of tuned arms.
    pub trials: Vec<TunedArm>,
    /// The text of the sweep.
    pub text: String,
}

/// Values of paths of the recipe, with the paths, in the order of the sweep's file.
pub type Values = Vec<(String, String)>;

/// An arm with values of the swept paths.
#[derive(Clone, Debug, Default)]
pub struct Variant {
    /// The name of the arm; empty in a sweep without arms.
    pub arm: String,
    /// The values of the swept paths.
    pub values: Values,
    /// The tuned values that were chosen.
    pub tuned: Values,
    /// The first digits of the hash of its recipe.
    pub hash: String,
    /// What differs from the recipe of the first variant.
    pub changes: Vec<RecipeChange>,
    /// Its runs with results, by seed.
    pub runs: Vec<StudyRun>,
    /// The number of its runs, with those that are not finished.
    pub planned: usize,
    /// Means over finished runs, by metric.
    pub means: BTreeMap<String, Mean>,
}

/// A finished run.
#[derive(Clone, Debug, Default)]
pub struct StudyRun {
    /// The seed.
    pub seed: u64,
    /// The content of its folder.
    pub data: ReportData,
    /// The newest record of each metric of the trained encoder, by name.
    pub metrics: BTreeMap<String, Metric>,
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The number of seeds.
    pub n: usize,
    /// The mean.
    pub mean: f64,
    /// The standard deviation, with n − 1 in the denominator; NaN for a single seed.
    pub sd: f64,
    /// The 95 % confidence interval of the mean by Student's distribution; `None` for a single seed.
    pub interval: Option<[f64; 2]>,
}

/// Paired differences between arms.
#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// The arm that the others are compared with.
    pub to: String,
    /// The number of tests that Holm's correction takes together.
    pub tests: usize,
    /// The number of resamples of each bootstrap.
    pub resamples: usize,
    /// The differences.
    pub all: Vec<Difference>,
}

/// The difference of a metric between an arm and the arm that it is compared with.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    /// The arm.
    pub arm: String,
    /// The values of the swept paths.
    pub values: Values,
    /// The metric.
    pub metric: String,
    /// The number of pairs.
    pub n: usize,
    /// The mean over the pairs.
    pub mean: f64,
    /// Its 95 % confidence interval by Student's distribution.
    pub t_interval: Option<[f64; 2]>,
    /// Its 95 % confidence interval by a bootstrap.
    pub bootstrap_interval: Option<[f64; 2]>,
    /// The p-value of Student's paired two-sided t-test.
    pub p: Option<f64>,
    /// The p-value after Holm's correction.
    pub p_holm: Option<f64>,
    /// Cohen's d of pairs.
    pub cohens_d: Option<f64>,
}

/// The trials of an arm with values of the swept paths.
#[derive(Clone, Debug, Default)]
pub struct TunedArm {
    /// The name of the arm.
    pub arm: String,
    /// The values of the swept paths.
    pub values: Values,
    /// The tuned values and the metric of each trial; `None` if it was not measured.
    pub trials: Vec<(Values, Option<f64>)>,
    /// The index of the chosen trial.
    pub chosen: Option<usize>,
}

/// Renders the page.
///
/// # Errors
/// [`Error::Config`] if no run has finished.
pub fn render(study: &Study) -> Result<String> {
    if study.variants.iter().all(|v| v.runs.is_empty()) {
        return Err(Error::config(
            "no run of the sweep has finished, so its page would be empty; train it first",
        ));
    }
    let names = Names::new(study);
    let kinds = kinds(study);
    let page = html::templates().render_str(
        include_str!("../html/study.html"),
        context! {
            name => study.name,
            light => colors(false),
            dark => colors(true),
            plot_style => STYLE,
            page_style => PAGE_STYLE.trim_end(),
            facts => facts(study),
            notes => study.notes,
            unfinished => unfinished(study, &names),
            accuracies => figures::metrics(study, &names, &kinds),
            over => figures::over_values(study, &names, &kinds),
            table => metric_table(study, &names, &kinds, true),
            forest => figures::differences(study, &names, &kinds),
            differences => study.differences.as_ref().map(|d| difference_table(d, &names, &kinds)),
            compared => study.differences.as_ref().map(|d| (&d.to, d.tests, d.resamples)),
            maps => figures::maps(study, &names, &kinds),
            against => figures::against(study, &names, &kinds),
            curves => figures::curves(study, &names),
            embeddings => figures::embeddings(study, &names),
            trials => trials(study, &names),
            recipes => recipes(study, &names),
            other => metric_table(study, &names, &kinds, false),
            provenance => provenance(study),
            command => study.command,
            text => study.text,
        },
    );
    page.map_err(|e| Error::Other(e.into()))
}

/// How the page names variants.
struct Names {
    /// The arms, in the order of their first variant; each has a color.
    arms: Vec<String>,
    /// The short name of each swept path.
    paths: BTreeMap<String, String>,
}

impl Names {
    fn new(study: &Study) -> Self {
        let mut arms: Vec<String> = Vec::new();
        for variant in &study.variants {
            if !arms.contains(&variant.arm) {
                arms.push(variant.arm.clone());
            }
        }
        let tuned = study.trials.iter().flat_map(|t| &t.trials).flat_map(|(values, _)| values);
        let all: BTreeSet<&String> = study
            .variants
            .iter()
            .flat_map(|v| v.values.iter().chain(&v.tuned))
            .chain(tuned)
            .map(|v| &v.0)
            .collect();
        let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_string();
        let short = |path: &String| {
            let is_unique = all.iter().filter(|other| last(other) == last(path)).count() == 1;
            (path.clone(), if is_unique { last(path) } else { path.clone() })
        };
        Names { arms, paths: all.iter().map(|path| short(path)).collect() }
    }

    fn short<'a>(&'a self, path: &'a str) -> &'a str {
        self.paths.get(path).map_or(path, String::as_str)
    }

    fn color(&self, arm: &str) -> usize {
        self.arms.iter().position(|a| a == arm).unwrap_or(0)
    }

    /// Describes values: `k=[10, 20] · weight=0.25`.
    fn values(&self, values: &[(String, String)]) -> String {
        let one = |(path, value): &(String, String)| format!("{}={value}", self.short(path));
        values.iter().map(one).collect::<Vec<_>>().join(" · ")
    }

    /// Describes an arm with values.
    fn variant(&self, arm: &str, values: &[(String, String)]) -> String {
        let values = self.values(values);
        match (arm.is_empty(), values.is_empty()) {
            (_, true) if arm.is_empty() => "recipe".into(),
            (_, true) => arm.into(),
            (true, _) => values,
            _ => format!("{arm} · {values}"),
        }
    }
}

/// Returns the kind of every metric.
fn kinds(study: &Study) -> BTreeMap<String, MetricKind> {
    let runs = study.variants.iter().flat_map(|v| &v.runs);
    runs.flat_map(|run| run.metrics.iter().map(|(name, metric)| (name.clone(), metric.kind))).collect()
}

fn is_accuracy(kinds: &BTreeMap<String, MetricKind>, metric: &str) -> bool {
    kinds.get(metric) == Some(&MetricKind::Accuracy)
}

fn facts(study: &Study) -> Vec<(&'static str, String)> {
    let count = |n: usize| n.to_string();
    let arms: BTreeSet<&String> = study.variants.iter().map(|v| &v.arm).collect();
    let seeds: BTreeSet<u64> = study.variants.iter().flat_map(|v| &v.runs).map(|r| r.seed).collect();
    let done: usize = study.variants.iter().map(|v| v.runs.len()).sum();
    let planned: usize = study.variants.iter().map(|v| v.planned).sum();
    let ends =
        |run: &StudyRun| run.data.ends.iter().map(|e| e.seconds).filter(|s| s.is_finite()).sum::<f64>();
    let seconds: f64 = study.variants.iter().flat_map(|v| &v.runs).map(ends).sum();
    let mut facts = vec![("arms", count(arms.len())), ("combinations", count(study.variants.len()))];
    facts.push(("seeds", count(seeds.len())));
    facts.push(("finished runs", format!("{done} of {planned}")));
    facts.push(("training time, all runs", html::duration(seconds)));
    facts
}

/// Returns the variants with runs that are not finished.
fn unfinished(study: &Study, names: &Names) -> Vec<String> {
    let missing = study.variants.iter().filter(|v| v.runs.len() < v.planned);
    missing
        .map(|v| format!("{}: {} of {} runs", names.variant(&v.arm, &v.values), v.runs.len(), v.planned))
        .collect()
}

#[derive(Serialize)]
struct Table {
    head: Vec<String>,
    rows: Vec<TableRow>,
}

#[derive(Serialize)]
struct TableRow {
    /// The index of the arm's color.
    color: usize,
    cells: Vec<String>,
}

/// Formats a value: accuracies in percent.
fn value(v: f64, is_accuracy: bool) -> String {
    if !v.is_finite() {
        NONE.into()
    } else if is_accuracy {
        format!("{:.2} %", 100.0 * v)
    } else {
        significant(v)
    }
}

/// Formats a difference with its sign: of accuracies in percentage points.
fn signed(v: f64, is_accuracy: bool) -> String {
    if !v.is_finite() {
        return NONE.into();
    }
    let size = if is_accuracy { format!("{:.2}", 100.0 * v.abs()) } else { significant(v.abs()) };
    format!("{}{size}", if v < 0.0 { "−" } else { "+" })
}

/// Returns the means of metrics by variant: of the most important ones, or of all others.
fn metric_table(
    study: &Study,
    names: &Names,
    kinds: &BTreeMap<String, MetricKind>,
    is_main: bool,
) -> Option<Table> {
    let others = kinds.iter().filter(|(name, kind)| {
        matches!(kind, MetricKind::Accuracy | MetricKind::Quantity) && !study.metrics.contains(name)
    });
    let metrics: Vec<&String> =
        if is_main { study.metrics.iter().collect() } else { others.map(|(name, _)| name).collect() };
    if metrics.is_empty() {
        return None;
    }
    let head = ["variant".to_string(), "seeds".to_string()].into_iter();
    let head = head.chain(metrics.iter().map(|name| breakable(name))).collect();
    let row = |v: &Variant| {
        let cell = |metric: &&String| {
            let Some(mean) = v.means.get(*metric) else { return NONE.to_string() };
            let is_accuracy = is_accuracy(kinds, metric);
            let sd = if mean.n > 1 { format!(" ± {}", value(mean.sd, is_accuracy)) } else { String::new() };
            value(mean.mean, is_accuracy) + &sd.replace(" %", "")
        };
        let cells = [names.variant(&v.arm, &v.values), v.runs.len().to_string()].into_iter();
        TableRow { color: names.color(&v.arm), cells: cells.chain(metrics.iter().map(cell)).collect() }
    };
    Some(Table { head, rows: study.variants.iter().map(row).collect() })
}

fn difference_table(all: &Differences, names: &Names, kinds: &BTreeMap<String, MetricKind>) -> Table {
    let head = ["variant", "metric", "n", "difference", "95 % (t)", "95 % (bootstrap)", "p", "p (Holm)", "d"];
    let row = |d: &Difference| {
        let is_accuracy = is_accuracy(kinds, &d.metric);
        let interval = |i: Option<[f64; 2]>| {
            i.map_or(NONE.into(), |i| {
                format!("{} … {}", signed(i[0], is_accuracy), signed(i[1], is_accuracy))
            })
        };
        let p = |p: Option<f64>| p.map_or(NONE.into(), |p| format!("{p:.4}"));
        let cells = vec![
            names.variant(&d.arm, &d.values),
            d.metric.clone(),
            d.n.to_string(),
            signed(d.mean, is_accuracy),
            interval(d.t_interval),
            interval(d.bootstrap_interval),
            p(d.p),
            p(d.p_holm),
            d.cohens_d.map_or(NONE.into(), |v| format!("{v:+.2}").replace('-', "−")),
        ];
        TableRow { color: names.color(&d.arm), cells }
    };
    Table { head: head.map(String::from).to_vec(), rows: all.all.iter().map(row).collect() }
}

/// Returns the trials of all arms, best values first as they were drawn, with a mark at the chosen one.
fn trials(study: &Study, names: &Names) -> Option<Table> {
    if study.trials.is_empty() {
        return None;
    }
    let head = ["arm", "trial", "tuned values", "metric", ""].map(String::from).to_vec();
    let mut rows = Vec::new();
    for tuned in &study.trials {
        for (i, (values, metric)) in tuned.trials.iter().enumerate() {
            let cells = vec![
                names.variant(&tuned.arm, &tuned.values),
                (i + 1).to_string(),
                names.values(values),
                metric.map_or(NONE.into(), significant),
                if tuned.chosen == Some(i) { "chosen".into() } else { String::new() },
            ];
            rows.push(TableRow { color: names.color(&tuned.arm), cells });
        }
    }
    Some(Table { head, rows })
}

#[derive(Serialize)]
struct RecipeView<'a> {
    color: usize,
    title: String,
    changes: &'a [RecipeChange],
}

/// Returns what differs from the first variant, for each of the others.
fn recipes<'a>(study: &'a Study, names: &Names) -> Vec<RecipeView<'a>> {
    let view = |v: &'a Variant| RecipeView {
        color: names.color(&v.arm),
        title: format!("{} · {}", names.variant(&v.arm, &v.values), v.hash),
        changes: &v.changes,
    };
    study.variants.iter().map(view).collect()
}

/// Returns where the runs come from: each quantity with its values, and how many runs have each.
fn provenance(study: &Study) -> Values {
    let mut all: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let runs: Vec<&StudyRun> = study.variants.iter().flat_map(|v| &v.runs).collect();
    for (name, value) in runs.iter().flat_map(|run| html::environment_of(&run.data)) {
        *all.entry(name).or_default().entry(value).or_default() += 1;
    }
    let text = |values: BTreeMap<String, usize>| match values.len() {
        1 => values.into_keys().next().unwrap_or_default(),
        _ => values.iter().map(|(v, n)| format!("{v} ({n} runs)")).collect::<Vec<_>>().join("; "),
    };
    let mut rows: Values = all.into_iter().map(|(name, values)| (name, text(values))).collect();
    let hash = |v: &Variant| v.hash.clone();
    rows.push(("recipe hashes".into(), study.variants.iter().map(hash).collect::<Vec<_>>().join(", ")));
    rows
}
