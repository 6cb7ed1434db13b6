//! The figures of a run.

use crate::data::{Embedding, PrototypeLevel, ReportData};
use crate::data_issues;
use crate::events::{ClusterLevel, Metric, Subject, Term};
use crate::figure::{Figure, Section};
use crate::picture;
use crate::plot::{Chart, Scale, Series};
use crate::postmortem::page;
use crate::scatter::Scatter;
use crate::term_gradients;
use pauc_traits::probe::{MetricKind, may_read_test_split};

pub(crate) const EPOCH: &str = "epoch";

/// Returns every line chart of the run, with the name of its file and its section. Some may be empty.
pub(crate) fn charts(data: &ReportData) -> Vec<(String, Section, Chart)> {
    let mut charts: Vec<(String, Section, Chart)> = Vec::new();
    let mut add = |name: &str, section, chart: Chart| charts.push((name.to_string(), section, chart));
    for (name, chart) in data.postmortem.iter().flat_map(page::figures) {
        add(name, Section::Postmortem, chart);
    }
    training(data, &mut add);
    term_gradients::charts(data, &mut add);
    health(data, &mut add);
    probes(data, &mut add);
    coagulation(data, &mut add);
    clustering(data, &mut add);
    prototypes(data, &mut add);
    charts
}

/// Returns every figure that the run has data for.
pub fn all(data: &ReportData) -> Vec<Figure> {
    let drawn = charts(data).into_iter().filter(|(_, _, chart)| !chart.is_empty());
    let mut figures: Vec<Figure> =
        drawn.map(|(name, section, chart)| Figure { name, section, svg: chart.svg() }).collect();
    if let (Some(sheet), Some(prototypes)) = (&data.sheet, &data.prototypes) {
        figures.extend(picture::contact_sheet(sheet, prototypes));
    }
    if let Some(embedding) = &data.embedding {
        figures.extend(pictures(embedding));
    }
    figures.extend(data_issues::figures(data));
    figures
}

/// Converts a text to a safe file name.
fn file_name(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    text.chars().map(safe).collect()
}

/// Returns the epochs at which phases begin, except the first phase.
pub(crate) fn marks(data: &ReportData) -> Vec<(String, f64)> {
    let later = data.phases.iter().filter(|p| p.step > 0);
    later.map(|p| (p.name.clone(), data.epoch_of(p.step))).collect()
}

fn training(data: &ReportData, add: &mut impl FnMut(&str, Section, Chart)) {
    let over_epochs = |value: &dyn Fn(&crate::events::Step) -> f64| -> Vec<(f64, f64)> {
        data.steps.iter().map(|s| (s.epoch, value(s))).collect()
    };
    let single = |title: &str, y: &str, points| Chart {
        title: title.into(),
        x: EPOCH.into(),
        y: y.into(),
        series: vec![Series { name: title.into(), points }],
        marks: marks(data),
        ..Chart::default()
    };
    add(
        "objective",
        Section::Training,
        single("Objective", "weighted sum of the terms", over_epochs(&|s| s.loss)),
    );

    let mut names: Vec<&str> = Vec::new();
    for term in data.steps.iter().flat_map(|s| &s.terms) {
        if !names.contains(&term.name.as_str()) {
            names.push(&term.name);
        }
    }
    let term_over_epochs = |name: &str, value: &dyn Fn(&Term) -> f64| {
        over_epochs(&|s| s.terms.iter().find(|t| t.name == name).map_or(f64::NAN, value))
    };
    for name in &names {
        let values =
            term_over_epochs(name, &|t| if t.skipped { f64::NAN } else { t.value.unwrap_or(f64::NAN) });
        let chance = data.steps.iter().rev().flat_map(|s| &s.terms).find(|t| t.name == *name);
        let mut chart = single(name, "value before weighting", values);
        chart.references =
            chance.and_then(|t| t.chance).map(|c| ("chance".to_string(), c)).into_iter().collect();
        add(&format!("term-{}", file_name(name)), Section::Training, chart);
    }
    let weights = |n: &&str| Series { name: n.to_string(), points: term_over_epochs(n, &|t| t.weight) };
    let series = names.iter().map(weights).collect();
    add("weights", Section::Training, Chart { series, ..single("Weights of the terms", "weight", vec![]) });
    add("learning-rate", Section::Training, single("Learning rate", "as scheduled", over_epochs(&|s| s.lr)));
    let norm = "before clipping, all parameters";
    add("gradient-norm", Section::Training, single("Gradient norm", norm, over_epochs(&|s| s.grad_norm)));
    let speed = over_epochs(&|s| s.images_per_second);
    add("throughput", Section::Training, single("Throughput", "training images / s", speed));
}

/// Appends a point to the series of that name, or starts a new series.
pub(crate) fn put(series: &mut Vec<Series>, name: &str, point: (f64, f64)) {
    match series.iter_mut().find(|s| s.name == name) {
        Some(series) => series.points.push(point),
        None => series.push(Series { name: name.into(), points: vec![point] }),
    }
}

/// The state of the embeddings in training, and the time of its stages.
fn health(data: &ReportData, add: &mut impl FnMut(&str, Section, Chart)) {
    let chart = |title: &str, y: &str, series: Vec<Series>, scale| Chart {
        title: title.into(),
        x: EPOCH.into(),
        y: y.into(),
        series,
        marks: marks(data),
        scale,
        ..Chart::default()
    };
    let over_epochs = |name: &str, value: &dyn Fn(&crate::events::Health) -> f64| {
        vec![Series { name: name.into(), points: data.health.iter().map(|h| (h.epoch, value(h))).collect() }]
    };
    let spread = over_epochs("spread", &|h| h.spread);
    let note = "1: uniform on the sphere, 0: a single point; last batch";
    add("batch-spread", Section::Health, chart("Spread of embeddings", note, spread, Scale::Plain));
    let rank = over_epochs("effective rank", &|h| h.rank);
    let note = "RankMe of the epoch's last batch";
    add("batch-rank", Section::Health, chart("Effective rank of embeddings", note, rank, Scale::Plain));
    let mut shares: Vec<Series> = Vec::new();
    for epoch in &data.stages {
        for stage in &epoch.stages {
            put(&mut shares, &stage.name, (epoch.epoch, stage.seconds / epoch.seconds));
        }
    }
    let note = "fraction of the step time; data: waiting for images";
    add("stages", Section::Health, chart("Where the time goes", note, shares, Scale::Percent));
    let of_loader = |part: usize| Series {
        name: data.stages.iter().find_map(|s| s.loader.as_ref()).map_or("", |l| l.parts()[part].0).into(),
        points: data
            .stages
            .iter()
            .filter_map(|s| {
                let l = s.loader.as_ref().filter(|l| l.images > 0)?;
                Some((s.epoch, 1e6 * l.parts()[part].1 / l.images as f64))
            })
            .collect(),
    };
    let loader = (0..3).map(of_loader).collect();
    let note = "µs per image with all views, on a loader thread";
    add("loader", Section::Health, chart("Time to prepare an image", note, loader, Scale::Plain));
    let memory = |s: &crate::events::Stages| {
        s.peak_memory_bytes.map(|bytes| (s.epoch, bytes as f64 / f64::from(1 << 20)))
    };
    let memory = Series { name: "memory".into(), points: data.stages.iter().filter_map(memory).collect() };
    add("memory", Section::Health, chart("Memory", "MiB, peak so far", vec![memory], Scale::Plain));
}

fn probes(data: &ReportData, add: &mut impl FnMut(&str, Section, Chart)) {
    let metrics = data.metrics();
    for Metric { name, .. } in metrics.iter().filter(|m| m.kind == MetricKind::Accuracy) {
        let points = data.curve(name);
        // The table of accuracies already shows a single value.
        if points.len() < 2 {
            continue;
        }
        let base = |label: &str, s| data.latest(s, name).map(|v| (label.to_string(), v));
        let bases = [base("raw pixels", Subject::RawPixels), base("random weights", Subject::RandomInit)];
        let chart = Chart {
            title: format!("Accuracy by {name}"),
            x: EPOCH.into(),
            y: format!("fraction of {} classified correctly", scored_images(name)),
            series: vec![Series { name: name.to_string(), points }],
            references: bases.into_iter().flatten().collect(),
            marks: marks(data),
            scale: Scale::Percent,
            ..Chart::default()
        };
        add(&file_name(name), Section::Probes, chart);
    }
    let grouped = [
        ("rankme/", "RankMe", "effective rank, 1 to the dimension"),
        ("spread/", "Spread of unit vectors", "1: all directions, 0: collapsed"),
    ];
    for (prefix, title, y) in grouped {
        let series_of = |m: &&Metric| {
            let space = m.name.strip_prefix(prefix)?;
            Some(Series { name: space.into(), points: data.curve(&m.name) })
        };
        let chart = Chart {
            title: title.into(),
            x: EPOCH.into(),
            y: y.into(),
            series: metrics.iter().filter_map(series_of).collect(),
            marks: marks(data),
            ..Chart::default()
        };
        add(&file_name(title), Section::Probes, chart);
    }
}

/// Returns the images on which the accuracy of this name is measured.
fn scored_images(metric: &str) -> &'static str {
    if may_read_test_split(metric) { "the test split" } else { "held-out training images" }
}

fn coagulation(data: &ReportData, add: &mut impl FnMut(&str, Section, Chart)) {
    let quantities = [
        ("intra_cosine", "Cosine within prototypes", "mean v·c of samples and their prototypes"),
        ("inter_cosine_mean", "Cosine between prototypes", "mean over pairs of occupied prototypes"),
        ("within_rank", "Rank within prototypes", "effective rank of a prototype's members"),
        ("copies", "Prototypes that are copies", "fraction within cosine 0.95 of another"),
    ];
    let metrics = data.metrics();
    for (quantity, title, y) in quantities {
        let series_of = |m: &&Metric| {
            let level = m.name.strip_prefix("coagulation/")?.strip_suffix(quantity)?.strip_suffix('/')?;
            Some(Series { name: level.into(), points: data.curve(&m.name) })
        };
        let mut series: Vec<Series> = metrics.iter().filter_map(series_of).collect();
        // Levels are sorted by k, as in the figures of the clusterings; classes come last.
        let k = |s: &Series| s.name.strip_prefix('k').and_then(|k| k.split('#').next()?.parse().ok());
        series.sort_by_key(|s| k(s).unwrap_or(u64::MAX));
        let chart = Chart {
            title: title.into(),
            x: EPOCH.into(),
            y: y.into(),
            series,
            marks: marks(data),
            scale: if quantity == "copies" { Scale::Percent } else { Scale::Plain },
            ..Chart::default()
        };
        add(&format!("coagulation-{}", file_name(quantity)), Section::Coagulation, chart);
    }
}

fn clustering(data: &ReportData, add: &mut impl FnMut(&str, Section, Chart)) {
    let levels = data.clusterings.iter().map(|c| c.levels.len()).max().unwrap_or(0);
    let series = |value: &dyn Fn(&ClusterLevel) -> f64| -> Vec<Series> {
        (0..levels)
            .map(|l| {
                let point =
                    |c: &crate::events::Clustering| c.levels.get(l).map(|level| (c.epoch, value(level)));
                let k =
                    data.clusterings.iter().rev().find_map(|c| c.levels.get(l)).map_or(0, |level| level.k);
                Series { name: format!("k{k}"), points: data.clusterings.iter().filter_map(point).collect() }
            })
            .collect()
    };
    let mut chart = |name: &str, title: &str, y: &str, value: &dyn Fn(&ClusterLevel) -> f64| {
        let (title, x, y) = (title.into(), EPOCH.into(), y.into());
        let chart = Chart { title, x, y, series: series(value), ..Chart::default() };
        add(&format!("clustering-{name}"), Section::Clustering, chart);
    };
    chart("objective", "Inertia of the clustering", "inertia Σ‖x − c‖²", &|l| l.objective);
    chart("imbalance", "Imbalance of prototypes", "K·Σ size²/n²; 1: all of the same size", &|l| {
        l.imbalance
    });
    let spread = |l: &ClusterLevel| l.concentration_max / l.concentration_min;
    let churn = |l: &ClusterLevel| l.churn.unwrap_or(f64::NAN);
    chart("churn", "Churn", "fraction of samples that changed prototype", &churn);
    chart("concentration", "Spread of concentrations φ", "largest φ / smallest φ", &spread);
}

/// Sizes and concentrations of prototypes in descending order, and histograms of cosines.
fn prototypes(data: &ReportData, add: &mut impl FnMut(&str, Section, Chart)) {
    let Some(prototypes) = &data.prototypes else { return };
    let mut chart =
        |name: &str, title: &str, x: &str, y: &str, points: &dyn Fn(&PrototypeLevel) -> Vec<(f64, f64)>| {
            let series = |l: &PrototypeLevel| Series { name: format!("k{}", l.k), points: points(l) };
            let series = prototypes.levels.iter().map(series).collect();
            let chart = Chart { title: title.into(), x: x.into(), y: y.into(), series, ..Chart::default() };
            add(&format!("prototypes-{name}"), Section::Clustering, chart);
        };
    let ranked = |values: &mut dyn ExactSizeIterator<Item = f64>| -> Vec<(f64, f64)> {
        let last = values.len().max(2) - 1;
        values.enumerate().map(|(i, v)| (100.0 * i as f64 / last as f64, v)).collect()
    };
    let rank = "prototypes from largest to smallest, %";
    chart("sizes", "Sizes of prototypes", rank, "samples", &|l| {
        ranked(&mut l.sizes.iter().map(|s| *s as f64))
    });
    chart("phi", "Concentrations φ of prototypes", rank, "φ", &|l| {
        ranked(&mut l.concentration.iter().copied())
    });
    chart(
        "intra",
        "Cosines within prototypes",
        "v·c of a sample and its prototype",
        "fraction of samples",
        &|l| histogram(&l.intra),
    );
    chart("inter", "Cosines between prototypes", "c·c' of two prototypes", "fraction of pairs", &|l| {
        histogram(&l.inter)
    });
}

/// Returns the fraction of each bin at its center. Only one empty bin is kept at each end.
fn histogram(bins: &[u64]) -> Vec<(f64, f64)> {
    let total: u64 = bins.iter().sum();
    let occupied = |n: &u64| *n > 0;
    let (Some(first), Some(last)) = (bins.iter().position(occupied), bins.iter().rposition(occupied)) else {
        return Vec::new();
    };
    let point = |b: usize| (-1.0 + 2.0 * (b as f64 + 0.5) / bins.len() as f64, bins[b] as f64 / total as f64);
    (first.saturating_sub(1)..=(last + 1).min(bins.len() - 1)).map(point).collect()
}

fn pictures(embedding: &Embedding) -> Vec<Figure> {
    let share = |i: usize| match embedding.explained {
        Some(explained) => format!("component {} ({:.0} % of variance)", i + 1, 100.0 * explained[i]),
        None => format!("component {}", i + 1),
    };
    let neighbors = match embedding.perplexity {
        Some(p) => format!("perplexity {p:.0}; distances between groups have no meaning"),
        None => "distances between groups have no meaning".into(),
    };
    let mut figures = Vec::new();
    let mut add = |name: &str, title: &str, groups: &[u32], names: &[String]| {
        let (groups, names) = (groups.to_vec(), names.to_vec());
        let axes = format!("→ {} · ↑ {}", share(0), share(1));
        let pca =
            Scatter { title: format!("PCA, {title}"), axes, points: embedding.points.clone(), groups, names };
        let tsne = embedding.tsne.clone().map(|points| Scatter {
            title: format!("t-SNE, {title}"),
            axes: neighbors.clone(),
            points,
            ..pca.clone()
        });
        for (kind, scatter) in [("pca", Some(pca)), ("tsne", tsne)] {
            figures.extend(scatter.map(|s| Figure {
                name: format!("embedding-{kind}{name}"),
                section: Section::Embedding,
                svg: s.svg(),
            }));
        }
    };
    if let Some(labels) = &embedding.labels {
        // More than twenty names would hide the points.
        let names = if embedding.classes.len() <= 20 { embedding.classes.clone() } else { Vec::new() };
        add("-classes", "by class", labels, &names);
    }
    if let Some(prototypes) = &embedding.prototypes {
        let count = prototypes.iter().collect::<std::collections::BTreeSet<_>>().len();
        let title = format!("by prototype ({count}; colors repeat)");
        add("-prototypes", &title, prototypes, &[]);
    }
    if embedding.labels.is_none() && embedding.prototypes.is_none() {
        add("", "without classes", &vec![0; embedding.points.len()], &[]);
    }
    figures
}
