//! Renders the HTML page.

use crate::axis::significant;
use crate::data::ReportData;
use crate::data_issues;
use crate::events::{Metric, Status, Subject};
use crate::figure::Section;
use crate::figures;
use crate::plot::{STYLE, colors, escape};
use crate::postmortem::page;
use crate::term_gradients;
use crate::verdict::{self, Condition, Verdict};
use minijinja::{AutoEscape, Environment, context};
use pauc_traits::probe::MetricKind;
use pauc_traits::{Error, Result};
use serde::Serialize;

#[derive(Serialize)]
struct VerdictRow {
    metric: String,
    random_init: String,
    raw_pixels: String,
    trained: String,
    gain: String,
    class: &'static str,
}

#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// A table of nearest-neighbor accuracies over settings, for one distance and space.
#[derive(Serialize)]
struct Grid {
    title: String,
    table: Table,
}

#[derive(Serialize)]
struct SectionView {
    title: &'static str,
    note: Option<String>,
    wide: bool,
    table: Option<Table>,
    figures: Vec<String>,
}

pub(crate) const NONE: &str = "–";
/// The CSS rules that all pages share.
pub(crate) const PAGE_STYLE: &str = include_str!("html/page.css");
/// The file of an atlas in the folder of its run.
pub const ATLAS: &str = "atlas.html";

/// Renders the report as one HTML page.
///
/// # Errors
/// If the page's template fails, which the data of a run cannot cause.
pub fn render(data: &ReportData) -> Result<String> {
    let verdicts = verdict::verdicts(data);
    let name = if data.run.name.is_empty() { "Run" } else { &data.run.name };
    let page = templates().render_str(
        include_str!("html/report.html"),
        context! {
            name,
            light => colors(false),
            dark => colors(true),
            plot_style => STYLE,
            page_style => PAGE_STYLE.trim_end(),
            facts => facts(data),
            has_atlas => has_atlas(data),
            conditions => conditions(data).iter().map(|c| (&c.sentence, c.well)).collect::<Vec<_>>(),
            sentences => verdicts.iter().filter_map(Verdict::sentence).collect::<Vec<_>>(),
            verdicts => verdicts.iter().map(verdict_row).collect::<Vec<_>>(),
            data_note => data_issues::note(data),
            postmortem => page::view(data),
            warnings => warnings(data),
            changes => data.changes.iter().map(|c| (c.step, &c.text)).collect::<Vec<_>>(),
            sections => sections(data),
            grids => grids(data),
            metrics => metrics(data),
            phases => data.phases.iter().map(|p| (p.step, &p.name, &p.text)).collect::<Vec<_>>(),
            recipe => data.recipe,
            environment => environment_of(data),
        },
    );
    page.map_err(|e| Error::Other(e.into()))
}

/// Returns whether the run's folder has an atlas, which the report links to.
fn has_atlas(data: &ReportData) -> bool {
    !data.folder.as_os_str().is_empty() && data.folder.join(ATLAS).is_file()
}

/// Returns the settings of all templates.
pub(crate) fn templates() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_trim_blocks(true);
    environment
}

/// Returns the conditions at the end; a run that ended with NaN or infinity was not well, whatever its last epoch says.
pub(crate) fn conditions(data: &ReportData) -> Vec<Condition> {
    let mut all = verdict::conditions(data);
    all.retain(|c| !c.well || !page::is_the_end(data));
    all.extend(data_issues::condition(data));
    all
}

/// Formats a metric's name as HTML with line breaks allowed after slashes.
pub(crate) fn breakable(name: &str) -> String {
    escape(name).replace('/', "/<wbr>")
}

fn words(key: &str) -> String {
    key.replace('_', " ")
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Returns the environment of the run; changes have a place of their own.
pub(crate) fn environment_of(data: &ReportData) -> Vec<(String, String)> {
    let entries =
        data.run.environment.iter().filter(|(key, _)| !["changes", "recipes"].contains(&key.as_str()));
    entries.map(|(key, value)| (words(key), plain(value))).collect()
}

/// Formats a duration.
pub(crate) fn duration(seconds: f64) -> String {
    let rounded = seconds.round() as u64;
    match rounded {
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        0..120 => format!("{rounded} s"),
        120..7200 => format!("{} min {} s", rounded / 60, rounded % 60),
        _ => format!("{} h {} min", rounded / 3600, rounded % 3600 / 60),
    }
}

pub(crate) fn facts(data: &ReportData) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if !data.run.hash.is_empty() {
        facts.push(("recipe", data.run.hash.clone()));
    }
    facts.extend(data.run.seed.map(|s| ("seed", s.to_string())));
    let status = match data.ends.last() {
        Some(end) if end.status == Status::Finished => "finished",
        Some(end) if end.status == Status::Interrupted => "interrupted",
        Some(_) => "failed",
        None if data.run.status.is_empty() => "no end recorded",
        None => &data.run.status,
    };
    facts.push(("status", status.to_string()));
    // A run that failed has taken more steps than it has logged.
    let failed = data.postmortem.as_ref().filter(|_| page::is_the_end(data));
    let at_failure = failed.and_then(|p| Some((p.step.saturating_sub(1), p.epoch?)));
    if let Some((step, epoch)) = at_failure.or(data.steps.last().map(|last| (last.step, last.epoch))) {
        facts.push(("steps", step.to_string()));
        facts.push(("epochs", format!("{epoch:.1}").trim_end_matches(".0").to_string()));
    }
    let seconds: f64 = data.ends.iter().map(|e| e.seconds).filter(|s| s.is_finite()).sum();
    if seconds > 0.0 {
        facts.push(("wall time", duration(seconds)));
    }
    facts
}

fn percent(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or(NONE.into(), |v| format!("{:.2} %", 100.0 * v))
}

fn verdict_row(v: &Verdict) -> VerdictRow {
    let gain = v.gain().filter(|g| g.is_finite());
    VerdictRow {
        metric: breakable(&v.metric),
        random_init: percent(v.random_init),
        raw_pixels: percent(v.raw_pixels),
        trained: percent(v.trained),
        gain: gain.map_or(NONE.into(), |g| format!("{:+.2}", 100.0 * g).replace('-', "−")),
        class: match gain {
            Some(g) if g > 0.0 => "good",
            Some(g) if g < 0.0 => "bad",
            _ => "",
        },
    }
}

pub(crate) fn warnings(data: &ReportData) -> Vec<String> {
    let place = |step: u64| if step == 0 { String::new() } else { format!("step {step}: ") };
    let mut warnings: Vec<String> =
        data.warnings.iter().map(|w| format!("{}{}", place(w.step), w.text)).collect();
    for probe in data.probes.iter() {
        let failed = |m: &&Metric| m.kind == MetricKind::Converged && m.value == 0.0;
        for metric in probe.metrics.iter().filter(failed) {
            let name = metric.name.rsplit_once('/').map_or(&*metric.name, |(name, _)| name);
            warnings.push(format!("{}{name}: the fit stopped before it converged", place(probe.step)));
        }
    }
    if !data.damaged.is_empty() {
        let lines: Vec<String> = data.damaged.iter().take(5).map(usize::to_string).collect();
        let ellipsis = if data.damaged.len() > 5 { ", …" } else { "" };
        warnings.push(format!("metrics.jsonl: unreadable lines skipped: {}{ellipsis}", lines.join(", ")));
    }
    warnings
}

fn sections(data: &ReportData) -> Vec<SectionView> {
    let figures = figures::all(data);
    let view = |section: Section, note: &str| SectionView {
        title: section.title(),
        note: (!note.is_empty()).then(|| note.to_string()),
        wide: false,
        table: None,
        figures: figures.iter().filter(|f| f.section == section).map(|f| f.svg.clone()).collect(),
    };
    let mut sections = vec![
        view(
            Section::Training,
            "A term that stays at its chance level (dashed) has not learned. In long runs, lines show means over \
             neighboring steps, and bands the lowest and highest values.",
        ),
        SectionView {
            table: term_gradients::table(data),
            ..view(
                Section::TermGradients,
                "Norms show how strongly each weighted term pulls the unit embeddings, not how useful that is. Terms \
                 whose cosine is below 0 work against each other. The table has means over the logged steps of each \
                 phase.",
            )
        },
        view(
            Section::Health,
            "The spread and the rank of collapsing embeddings fall. Times cover the training steps, without probes, \
             clustering and checkpoints.",
        ),
        view(
            Section::Probes,
            "Accuracy of the frozen representation during training; dashed: the baselines.",
        ),
        view(
            Section::Coagulation,
            "Prototypes coagulate if the cosine and the rank within them approach 1 while they stay apart from each \
             other and accuracy no longer rises.",
        ),
        SectionView { table: clustering_table(data), ..view(Section::Clustering, &clustering_note(data)) },
    ];
    let (title, note) = embedding_title(data);
    sections.push(SectionView { title, wide: true, ..view(Section::Embedding, &note) });
    if let Some(found) = &data.data_issues {
        let lists = [
            (Section::Leaks, data_issues::leaks(found)),
            (Section::Labels, data_issues::wrong_labels(found)),
        ];
        for (section, list) in lists {
            let Some((table, note)) = list else { continue };
            sections.push(SectionView { table: Some(table), ..view(section, &note) });
        }
    }
    sections.retain(|s| !s.figures.is_empty() || s.table.is_some());
    sections
}

/// Returns the number and total time of clusterings; empty if there are none.
fn clustering_note(data: &ReportData) -> String {
    let Some(last) = data.clusterings.last() else { return String::new() };
    let seconds: f64 = data.clusterings.iter().map(|c| c.seconds).filter(|s| s.is_finite()).sum();
    format!(
        "{} clusterings in {}; the table shows the last one, at epoch {}.",
        data.clusterings.len(),
        duration(seconds),
        significant(last.epoch)
    )
}

/// Returns the title and the note of the section of embeddings.
fn embedding_title(data: &ReportData) -> (&'static str, String) {
    let embedding = data.embedding.as_ref();
    let title = match embedding.and_then(|e| e.test) {
        Some(false) => "Embeddings of the training split",
        _ => "Embeddings of the test split",
    };
    let counts = embedding.and_then(|e| Some((e.points.len(), e.of?)));
    let shown = counts.filter(|(n, images)| (*n as u64) < *images);
    let shown = shown.map(|(n, images)| format!("The first {n} of {images} images. "));
    let note = format!(
        "{}PCA: the two directions of largest variance, at the same scale; groups that overlap here may be \
         separate in other dimensions. t-SNE: neighbors stay neighbors; sizes of groups and distances between \
         them have no meaning.",
        shown.unwrap_or_default()
    );
    (title, note)
}

fn clustering_table(data: &ReportData) -> Option<Table> {
    let last = data.clusterings.last()?;
    let head =
        ["prototypes K", "inertia Σ‖x − c‖²", "imbalance", "empty", "splits", "φ mean", "φ min", "φ max"];
    let row = |l: &crate::events::ClusterLevel| {
        let concentrations = [l.concentration_mean, l.concentration_min, l.concentration_max];
        let mut row = vec![l.k.to_string(), significant(l.objective), significant(l.imbalance)];
        row.extend([l.empty.to_string(), l.splits.to_string()]);
        row.extend(concentrations.map(significant));
        row
    };
    Some(Table { head: head.map(str::to_string).to_vec(), rows: last.levels.iter().map(row).collect() })
}

/// Returns tables of the last values of `knn_grid/…/k…` and `knn_grid/…/k…/t…`. Rows are numbers of
/// neighbors, columns are temperatures.
fn grids(data: &ReportData) -> Vec<Grid> {
    let mut cells: Vec<(String, u64, String, f64)> = Vec::new();
    for Metric { name, .. } in data.metrics() {
        let Some(rest) = name.strip_prefix(GRID) else { continue };
        let Some((distance, rest)) = rest.split_once("/k") else { continue };
        let (k, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (Ok(k), Some(value)) = (k.parse(), data.latest(Subject::Trained, name)) else { continue };
        let (temperature, protocol) = match rest.strip_prefix("/t") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        cells.push((format!("{distance}{protocol}"), k, temperature.into(), value));
    }
    let mut titles: Vec<String> = Vec::new();
    cells.iter().for_each(|c| {
        if !titles.contains(&c.0) {
            titles.push(c.0.clone())
        }
    });
    let grid = |title: String| {
        let cells: Vec<_> = cells.iter().filter(|c| c.0 == title).collect();
        let (mut ks, mut temperatures) = (Vec::new(), Vec::new());
        for c in &cells {
            if !ks.contains(&c.1) {
                ks.push(c.1);
            }
            if !temperatures.contains(&c.2) {
                temperatures.push(c.2.clone());
            }
        }
        let head = |t: &String| if t.is_empty() { "accuracy".into() } else { format!("T {t}") };
        let row = |k: &u64| {
            let cell = |t: &String| percent(cells.iter().find(|c| c.1 == *k && c.2 == *t).map(|c| c.3));
            [k.to_string()].into_iter().chain(temperatures.iter().map(cell)).collect()
        };
        let head = ["k".to_string()].into_iter().chain(temperatures.iter().map(head)).collect();
        Grid { title, table: Table { head, rows: ks.iter().map(row).collect() } }
    };
    titles.into_iter().map(grid).collect()
}

/// The prefix of the metrics of a grid of neighbors.
const GRID: &str = "knn_grid/";

/// Returns every metric's last value for the three subjects.
fn metrics(data: &ReportData) -> Vec<(String, String, String, String)> {
    let cell = |subject, metric: &Metric| match (data.latest(subject, &metric.name), metric.kind) {
        (Some(v), MetricKind::Accuracy | MetricKind::GridAccuracy) => percent(Some(v)),
        (Some(v), _) => significant(v),
        (None, _) => NONE.into(),
    };
    let row = |metric: &Metric| {
        let [random_init, raw_pixels, trained] =
            [Subject::RandomInit, Subject::RawPixels, Subject::Trained].map(|subject| cell(subject, metric));
        (breakable(&metric.name), random_init, raw_pixels, trained)
    };
    data.metrics().into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{End, Log, Warning};

    #[test]
    fn an_empty_run_has_a_page_and_text_is_escaped() {
        let mut data = ReportData::from_log(Log::default());
        data.run.name = "<b>&".into();
        data.recipe = "Recipe(name: \"<b>\")".into();
        data.warnings.push(Warning { step: 3, text: "K > B".into() });
        let page = render(&data).unwrap();
        assert!(
            page.contains("<h1>&lt;b&gt;&amp;</h1>") && page.contains("Recipe(name: &quot;&lt;b&gt;&quot;)")
        );
        assert!(page.contains("step 3: K &gt; B") && page.contains("No accuracy was measured"));
        assert!(
            page.contains("no end recorded") && !page.contains("<h2>"),
            "sections without data are omitted"
        );
    }

    #[test]
    fn a_grid_of_neighbors_has_one_table_per_distance() {
        let cell = |name: &str, value| format!(r#"{{"name":"{name}","value":{value}}}"#);
        let cells = [
            cell("knn_grid/cos/k1/t0.07", 0.5),
            cell("knn_grid/cos/k1/t1", 0.25),
            cell("knn_grid/cos/k20/t0.07", 0.75),
            cell("knn_grid/l2/k1/labels1%", 0.125),
        ];
        let line = format!(
            r#"{{"event":"probe","step":2,"epoch":2,"seconds":1,"subject":"trained","metrics":[{}]}}"#,
            cells.join(",")
        );
        let data = ReportData::from_log(Log::parse(&(line + "\n")));
        let grids = grids(&data);
        assert_eq!((grids[0].title.as_str(), grids[1].title.as_str()), ("cos", "l2/labels1%"));
        assert_eq!(grids[0].table.head, ["k", "T 0.07", "T 1"]);
        assert_eq!(grids[0].table.rows, [["1", "50.00 %", "25.00 %"], ["20", "75.00 %", NONE]]);
        assert_eq!(grids[1].table.rows, [["1", "12.50 %"]]);
        assert!(render(&data).unwrap().contains("Neighbors at many settings"));
    }

    #[test]
    fn durations_and_status_are_formatted() {
        assert_eq!(
            [3.21, 59.6, 119.0, 600.0, 7300.0].map(duration),
            ["3.2 s", "60 s", "119 s", "10 min 0 s", "2 h 1 min"]
        );
        let end = |seconds, status| End { step: 1, seconds, status };
        let ends = vec![end(100.0, Status::Interrupted), end(50.0, Status::Finished)];
        let facts = facts(&ReportData { ends, ..ReportData::default() });
        assert_eq!(facts, [("status", "finished".to_string()), ("wall time", "2 min 30 s".to_string())]);
    }
}
