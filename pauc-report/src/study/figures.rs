//! The charts of a study.

use super::dots::{Dots, Row};
use super::map::Map;
use super::{Names, Study, StudyRun, Values, Variant, is_accuracy};
use crate::data::Embedding;
use crate::figure::Section;
use crate::figures;
use crate::plot::{Chart, PALETTE, Scale, Series};
use crate::scatter::Scatter;
use pauc_traits::probe::MetricKind;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

type Kinds = BTreeMap<String, MetricKind>;

/// Charts under one heading.
#[derive(Serialize)]
pub(super) struct Group {
    pub title: String,
    pub figures: Vec<String>,
}

fn scale_of(kinds: &Kinds, metric: &str) -> Scale {
    if is_accuracy(kinds, metric) { Scale::Percent } else { Scale::Plain }
}

/// Returns the combinations of values, in the order of their first variant.
fn combinations(study: &Study) -> Vec<&[(String, String)]> {
    let mut all: Vec<&[(String, String)]> = Vec::new();
    for v in &study.variants {
        if !all.contains(&&v.values[..]) {
            all.push(&v.values);
        }
    }
    all
}

/// Returns rows for each combination of values: a heading, unless there is one combination only, and one row per item.
fn rows<T>(
    study: &Study,
    names: &Names,
    items: &[T],
    of: impl Fn(&T) -> (&str, &[(String, String)]),
    row: impl Fn(&T) -> Row,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for values in combinations(study) {
        let here: Vec<&T> = items.iter().filter(|item| of(item).1 == values).collect();
        let heading = names.values(values);
        let is_alone = names.arms.len() == 1;
        if !heading.is_empty() && !here.is_empty() && !is_alone {
            rows.push(Row { label: heading.clone(), ..Row::default() });
        }
        for item in here {
            let arm = of(item).0;
            let label = if is_alone && !heading.is_empty() { heading.clone() } else { arm.to_string() };
            rows.push(Row { label, color: names.color(arm), ..row(item) });
        }
    }
    rows
}

/// Draws each of the study's metrics by variant, with every seed as a dot.
pub(super) fn metrics(study: &Study, names: &Names, kinds: &Kinds) -> Vec<String> {
    let chart = |metric: &String| {
        let row = |v: &Variant| {
            let dot = |run: &StudyRun| Some((format!("seed {}", run.seed), run.metrics.get(metric)?.value));
            let mean = v.means.get(metric);
            Row {
                dots: v.runs.iter().filter_map(dot).collect(),
                mean: mean.map(|m| m.mean),
                interval: mean.and_then(|m| m.interval),
                ..Row::default()
            }
        };
        Dots {
            title: metric.clone(),
            x: "each dot a seed; mean with 95 % interval (t)".into(),
            rows: rows(study, names, &study.variants, |v| (v.arm.as_str(), v.values.as_slice()), row),
            scale: scale_of(kinds, metric),
            has_zero: false,
        }
        .svg()
    };
    study.metrics.iter().filter_map(chart).collect()
}

/// Draws the paired differences by metric, with their intervals.
pub(super) fn differences(study: &Study, names: &Names, kinds: &Kinds) -> Vec<String> {
    let Some(all) = &study.differences else { return Vec::new() };
    let metrics: BTreeSet<&String> = all.all.iter().map(|d| &d.metric).collect();
    let chart = |metric: &String| {
        let of_metric: Vec<_> = all.all.iter().filter(|d| d.metric == *metric).collect();
        let (factor, unit) = if is_accuracy(kinds, metric) { (100.0, ", points") } else { (1.0, "") };
        let row = |d: &&super::Difference| Row {
            mean: Some(factor * d.mean),
            interval: d.t_interval.map(|i| i.map(|bound| factor * bound)),
            ..Row::default()
        };
        Dots {
            title: format!("{metric} − that of {}", all.to),
            x: format!("difference{unit}; mean over seeds with 95 % interval (t)"),
            rows: rows(study, names, &of_metric, |d| (d.arm.as_str(), d.values.as_slice()), row),
            scale: Scale::Plain,
            has_zero: true,
        }
        .svg()
    };
    metrics.into_iter().filter_map(chart).collect()
}

/// Returns the metric of a run, or the mean over the levels of its prototypes for `prototypes/…`.
fn quantity(run: &StudyRun, metric: &str) -> Option<f64> {
    let Some(of_level) = metric.strip_prefix(LEVELS) else { return Some(run.metrics.get(metric)?.value) };
    let levels = run.metrics.iter().filter(|(name, _)| is_level(name, of_level));
    mean(levels.map(|(_, m)| m.value))
}

/// The prefix of a quantity that is averaged over the levels of the prototypes.
const LEVELS: &str = "prototypes/";

/// Returns whether a metric is a quantity of one level of prototypes.
fn is_level(name: &str, quantity: &str) -> bool {
    let level = name.strip_prefix("coagulation/k").and_then(|rest| rest.split_once('/'));
    level.is_some_and(|(_, rest)| rest == quantity)
}

/// Returns the mean of the finite values, if there are any.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let finite: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    (!finite.is_empty()).then(|| finite.iter().sum::<f64>() / finite.len() as f64)
}

/// Draws accuracies against the rank within prototypes and within classes; every point is a run.
pub(super) fn against(study: &Study, names: &Names, kinds: &Kinds) -> Vec<String> {
    let ranks = [
        ("prototypes/within_rank", "effective rank within prototypes, mean over levels"),
        ("coagulation/classes/within_rank", "effective rank within classes"),
    ];
    let accuracies: Vec<&String> = kinds.keys().filter(|name| is_accuracy(kinds, name)).collect();
    let mut figures = Vec::new();
    for metric in accuracies {
        for (rank, x) in ranks {
            let of_arm = |arm: &String| {
                let runs = study.variants.iter().filter(|v| v.arm == *arm).flat_map(|v| &v.runs);
                let point = |run: &StudyRun| Some((quantity(run, rank)?, run.metrics.get(metric)?.value));
                let name = if arm.is_empty() { "runs".into() } else { arm.clone() };
                Series { name, points: runs.filter_map(point).collect() }
            };
            let chart = Chart {
                title: metric.clone(),
                x: x.into(),
                y: "accuracy; each dot a run".into(),
                series: names.arms.iter().map(of_arm).collect(),
                scale: Scale::Percent,
                is_cloud: true,
                ..Chart::default()
            };
            if !chart.is_empty() {
                figures.push(chart.svg());
            }
        }
    }
    figures
}

/// Returns the swept paths with several values, each with its values in the order of the file.
fn swept(study: &Study) -> Vec<(&String, Vec<String>)> {
    let values_of = |path: &str| {
        let mut all: Vec<String> = Vec::new();
        for (_, value) in study.variants.iter().flat_map(|v| &v.values).filter(|v| v.0 == path) {
            if !all.contains(value) {
                all.push(value.clone());
            }
        }
        all
    };
    let paths = study.variants.iter().take(1).flat_map(|v| &v.values).map(|(path, _)| path);
    paths.map(|path| (path, values_of(path))).filter(|(_, all)| all.len() > 1).collect()
}

/// Draws the study's metrics over the values of the last path that has at least three, with a line and a band for each
/// arm; the bands are the 95 % intervals of the means. Each combination of the other values has a chart.
pub(super) fn over_values(study: &Study, names: &Names, kinds: &Kinds) -> Option<Group> {
    let (path, all) = swept(study).into_iter().rev().find(|(_, all)| all.len() > 2)?;
    let rest = |v: &Variant| v.values.iter().filter(|p| p.0 != *path).cloned().collect::<Vec<_>>();
    let mut others: Vec<Values> = Vec::new();
    for v in &study.variants {
        if !others.contains(&rest(v)) {
            others.push(rest(v));
        }
    }
    let chart = |metric: &String, other: &Values| {
        let values = names.values(other);
        let title = if values.is_empty() { metric.clone() } else { format!("{metric}, {values}") };
        let mut chart = Chart {
            title,
            x: format!("{}; bands: 95 % intervals of the means (t)", names.short(path)),
            y: "mean over seeds".into(),
            scale: scale_of(kinds, metric),
            places: all.clone(),
            ..Chart::default()
        };
        for arm in &names.arms {
            let of_arm = study.variants.iter().filter(|v| v.arm == *arm && rest(v) == *other);
            let place = |v: &Variant| v.values.iter().find(|p| p.0 == *path).map(|p| p.1.clone());
            let place = |v: &Variant| all.iter().position(|value| Some(value) == place(v).as_ref());
            let means = of_arm.filter_map(|v| Some((place(v)? as f64, *v.means.get(metric)?)));
            let means: Vec<_> = means.filter(|(_, m)| m.mean.is_finite()).collect();
            let name = if arm.is_empty() { metric.clone() } else { arm.clone() };
            let points = means.iter().map(|(x, m)| (*x, m.mean)).collect();
            chart.series.push(Series { name, points });
            let bound = |(x, m): &(f64, super::Mean)| m.interval.map(|[low, high]| [*x, low, high]);
            chart.bands.push(means.iter().filter_map(bound).collect());
        }
        (!chart.is_empty()).then(|| chart.svg())
    };
    let figures = study.metrics.iter().flat_map(|metric| others.iter().filter_map(move |o| chart(metric, o)));
    let figures: Vec<String> = figures.collect();
    Some(Group { title: format!("Results over {path}"), figures }).filter(|g| !g.figures.is_empty())
}

/// Draws the study's metrics over two swept values, for each arm, if two paths are swept.
pub(super) fn maps(study: &Study, names: &Names, kinds: &Kinds) -> Vec<Group> {
    let swept = swept(study);
    let [(row_path, row_values), (column_path, column_values)] = &swept[..] else { return Vec::new() };
    let map = |metric: &String, arm: &String, range: [f64; 2]| {
        let cell = |row: &String, column: &String| {
            let has = |v: &&Variant| {
                let is =
                    |path: &String, value: &String| v.values.iter().any(|p| p.0 == *path && p.1 == *value);
                v.arm == *arm && is(row_path, row) && is(column_path, column)
            };
            study.variants.iter().find(has)?.means.get(metric).map(|m| m.mean).filter(|m| m.is_finite())
        };
        let cells = row_values.iter().map(|row| column_values.iter().map(|c| cell(row, c)).collect());
        Map {
            title: if arm.is_empty() { metric.clone() } else { format!("{arm}: {metric}") },
            columns: (names.short(column_path).into(), column_values.clone()),
            rows: (names.short(row_path).into(), row_values.clone()),
            cells: cells.collect(),
            scale: scale_of(kinds, metric),
            range,
        }
        .svg()
    };
    let group = |metric: &String| {
        let means = study.variants.iter().filter_map(|v| Some(v.means.get(metric)?.mean));
        let means = means.filter(|m| m.is_finite());
        let range = means.fold([f64::INFINITY, f64::NEG_INFINITY], |r, m| [r[0].min(m), r[1].max(m)]);
        let figures = names.arms.iter().map(|arm| map(metric, arm, range)).collect();
        Group { title: metric.clone(), figures }
    };
    study.metrics.iter().map(group).collect()
}

type Points = Vec<(f64, f64)>;

/// A quantity over the epochs of a run.
struct Curve {
    section: Section,
    /// The names of its figure and series in the report of the run.
    key: String,
    /// The chart without its series.
    frame: Chart,
    points: Points,
}

/// The curves of all runs of a variant.
struct Curves<'a> {
    variant: &'a Variant,
    curves: Vec<Curve>,
}

/// Returns the curves of a run that the study shows.
fn run_curves(run: &StudyRun) -> Vec<Curve> {
    let mut found: Vec<Curve> = Vec::new();
    for (figure, section, chart) in figures::charts(&run.data) {
        let is_shown = match section {
            Section::Probes | Section::Coagulation => true,
            Section::Health => ["batch-spread", "batch-rank"].contains(&figure.as_str()),
            _ => false,
        };
        if !is_shown {
            continue;
        }
        let frame = |name: &str| Chart {
            title: if chart.series.len() > 1 {
                format!("{}: {name}", chart.title)
            } else {
                chart.title.clone()
            },
            series: Vec::new(),
            marks: Vec::new(),
            references: Vec::new(),
            ..chart.clone()
        };
        let levels: Vec<&Series> =
            chart.series.iter().filter(|s| section == Section::Coagulation && s.name != "classes").collect();
        for s in chart.series.iter().filter(|s| section != Section::Coagulation || s.name == "classes") {
            let (key, frame) = (format!("{figure}/{}", s.name), frame(&s.name));
            found.push(Curve { section, key, frame, points: s.points.clone() });
        }
        if !levels.is_empty() {
            let frame = Chart { title: format!("{}, mean over levels", chart.title), ..frame("") };
            let points = merged(levels.iter().map(|s| &s.points)).into_iter();
            let points = points.filter_map(|(x, values)| Some((x, mean(values.into_iter())?))).collect();
            found.push(Curve { section, key: format!("{figure}/levels"), frame, points });
        }
    }
    found
}

/// Returns the values of several curves at each x, by ascending x.
fn merged<'a>(curves: impl Iterator<Item = &'a Points>) -> Vec<(f64, Vec<f64>)> {
    let mut all: Vec<(f64, f64)> = curves.flatten().copied().filter(|p| p.0.is_finite()).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut merged: Vec<(f64, Vec<f64>)> = Vec::new();
    for (x, y) in all {
        match merged.last_mut() {
            Some((last, values)) if *last == x => values.push(y),
            _ => merged.push((x, vec![y])),
        }
    }
    merged
}

/// Draws accuracies, coagulation and health over epochs: means over seeds in bands from the lowest to the highest. If
/// lines would share colors, each arm, or each combination of values, has charts of its own.
pub(super) fn curves(study: &Study, names: &Names) -> Vec<Group> {
    let of_variant = |v| Curves { variant: v, curves: v.runs.iter().flat_map(run_curves).collect() };
    let all: Vec<Curves<'_>> = study.variants.iter().map(of_variant).collect();
    let combinations = combinations(study);
    let panels: Vec<(String, Vec<&Curves<'_>>)> = if study.variants.len() <= PALETTE.len() {
        vec![(String::new(), all.iter().collect())]
    } else if combinations.len() <= PALETTE.len() {
        let of = |arm: &String| (arm.clone(), all.iter().filter(|c| c.variant.arm == *arm).collect());
        names.arms.iter().map(of).collect()
    } else {
        let of = |values: &&[(String, String)]| {
            (names.values(values), all.iter().filter(|c| c.variant.values == **values).collect())
        };
        combinations.iter().map(of).collect()
    };
    let mut groups = Vec::new();
    for section in [Section::Probes, Section::Coagulation, Section::Health] {
        for (panel, variants) in &panels {
            let figures = panel_figures(section, variants, names);
            let title = if section == Section::Health { "Health" } else { section.title() };
            let title = if panel.is_empty() { title.to_string() } else { format!("{title}: {panel}") };
            if !figures.is_empty() {
                groups.push(Group { title, figures });
            }
        }
    }
    groups
}

/// Draws each quantity of a section in a chart with a line and a band for each variant.
fn panel_figures(section: Section, variants: &[&Curves<'_>], names: &Names) -> Vec<String> {
    let mut first: Vec<&Curve> = Vec::new();
    for curve in variants.iter().flat_map(|v| &v.curves).filter(|c| c.section == section) {
        if !first.iter().any(|other| other.key == curve.key) {
            first.push(curve);
        }
    }
    let share_an_arm = variants.windows(2).all(|pair| pair[0].variant.arm == pair[1].variant.arm);
    let mut figures = Vec::new();
    for Curve { key, frame, .. } in first {
        let mut chart = frame.clone();
        for Curves { variant, curves } in variants {
            let points = merged(curves.iter().filter(|c| c.key == *key).map(|c| &c.points));
            if points.is_empty() {
                continue;
            }
            let arm = if share_an_arm { "" } else { &variant.arm };
            let name = names.variant(arm, &variant.values);
            let line = points.iter().map(|(x, all)| (*x, mean(all.iter().copied()).unwrap_or(f64::NAN)));
            chart.series.push(Series { name, points: line.collect() });
            let bound = |all: &[f64], pick: fn(f64, f64) -> f64| all.iter().copied().fold(f64::NAN, pick);
            let band = points.iter().map(|(x, all)| [*x, bound(all, f64::min), bound(all, f64::max)]);
            chart.bands.push(band.collect());
        }
        if !chart.is_empty() {
            figures.push(chart.svg());
        }
    }
    figures
}

/// The largest number of maps of embeddings.
const MOST: usize = 12;

/// Draws the embeddings of the first seed of each variant, if they are of the same images as those of the first one. The
/// arms of one combination are side by side; of many combinations, evenly spaced ones are shown.
pub(super) fn embeddings(study: &Study, names: &Names) -> Vec<String> {
    let combinations = combinations(study);
    let most = (MOST / names.arms.len()).max(1).min(combinations.len());
    let place = |i: usize| if most > 1 { i * (combinations.len() - 1) / (most - 1) } else { 0 };
    let shown = (0..most).map(|i| combinations[place(i)]);
    let variants = shown.flat_map(|values| study.variants.iter().filter(move |v| v.values == values));
    let of = |v: &Variant| v.runs.iter().find_map(|run| Some((run.seed, run.data.embedding.clone()?)));
    let all: Vec<(&Variant, u64, Embedding)> =
        variants.filter_map(|v| of(v).map(|(seed, e)| (v, seed, e))).collect();
    let Some((_, _, first)) = all.first() else { return Vec::new() };
    let is_alike = |e: &Embedding| {
        (e.points.len(), e.test, e.of, &e.labels) == (first.points.len(), first.test, first.of, &first.labels)
    };
    let has_tsne = all.iter().all(|(_, _, e)| e.tsne.is_some());
    let draw = |(v, seed, e): &(&Variant, u64, Embedding)| {
        let points = e.tsne.clone().filter(|_| has_tsne).unwrap_or_else(|| e.points.clone());
        let kind = if has_tsne { "t-SNE; distances between groups have no meaning" } else { "PCA" };
        Scatter {
            title: format!("{}, seed {seed}", names.variant(&v.arm, &v.values)),
            axes: kind.into(),
            groups: e.labels.clone().unwrap_or_else(|| vec![0; points.len()]),
            points,
            names: if e.classes.len() <= 20 { e.classes.clone() } else { Vec::new() },
        }
        .svg()
    };
    all.iter().filter(|(_, _, e)| is_alike(e)).map(draw).collect()
}
