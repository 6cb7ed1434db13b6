//! A postmortem as a section of the report: the story, charts of the last steps, pictures of samples.

use crate::data::ReportData;
use crate::picture::data_uri;
use crate::plot::{Chart, Scale, Series};
use crate::postmortem::story::{cell, columns, command, last_good};
use crate::postmortem::{
    Cause, FirstTensor, Postmortem, Remedy, SHOWN_SAMPLES, SHOWN_VIEWS, StepRecord, Suspect,
};
use pauc_traits::{Error, Result};
use serde::Serialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A picture beyond this size is not shown: pictures of samples are small.
const LARGEST_PICTURE: u64 = 256 << 10;
/// The ratio of the largest to the smallest value from which an axis is logarithmic.
const WIDE: f64 = 100.0;
/// The largest number of parts of the network in a chart.
const PARTS: usize = 9;

/// The pictures of a sample: each is a PNG file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SamplePictures {
    /// The image as the dataset has it, if it could be read.
    pub image: Option<Vec<u8>>,
    /// The views that the network saw.
    pub views: Vec<Vec<u8>>,
}

/// Reads the pictures of the samples of a postmortem. Those that are missing, too large or no PNG are left out.
///
/// # Errors
/// If a file cannot be read.
pub fn read_pictures(p: &Postmortem, run: &Path) -> Result<Vec<SamplePictures>> {
    let suspects = p.suspects.iter().take(SHOWN_SAMPLES).enumerate();
    suspects
        .map(|(i, suspect)| {
            let read = |view: Option<usize>| picture(&run.join(Postmortem::picture(i, view)));
            let views = (0..suspect.views.min(SHOWN_VIEWS)).map(|v| read(Some(v)));
            let views = views.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            Ok(SamplePictures { image: read(None)?, views })
        })
        .collect()
}

fn picture(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST_PICTURE + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(Some(bytes).filter(|b| b.len() as u64 <= LARGEST_PICTURE))
}

/// The section, as the page's template reads it.
#[derive(Serialize)]
pub(crate) struct PostmortemView {
    headline: String,
    /// Whether the run was continued beyond the step.
    passed: Option<String>,
    first: Option<String>,
    causes: Vec<CauseView>,
    remedies: Vec<RemedyView>,
    last_good: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    figures: Vec<String>,
    samples_note: String,
    samples: Vec<SampleView>,
}

#[derive(Serialize)]
struct CauseView {
    title: String,
    evidence: String,
}

#[derive(Serialize)]
struct RemedyView {
    text: String,
    command: Option<String>,
}

#[derive(Serialize)]
struct SampleView {
    name: String,
    facts: String,
    why: String,
    pictures: Vec<PictureView>,
}

#[derive(Serialize)]
struct PictureView {
    label: String,
    uri: String,
}

/// Returns the section about the failure of a run, if there was one.
pub(crate) fn view(data: &ReportData) -> Option<PostmortemView> {
    let p = data.postmortem.as_ref()?;
    let columns = columns(p);
    let row = |step: &StepRecord| {
        columns.iter().map(|(title, value)| value(step).map_or("–".into(), |v| cell(title, v))).collect()
    };
    Some(PostmortemView {
        headline: p.headline(),
        passed: passed(data, p),
        first: p.first.as_ref().map(FirstTensor::sentence),
        causes: p.causes.iter().map(cause).collect(),
        remedies: p.remedies().into_iter().map(remedy(p, &data.folder)).collect(),
        last_good: last_good(p),
        head: columns.iter().map(|(title, _)| title.clone()).collect(),
        rows: p.steps.iter().map(row).collect(),
        figures: figures(p).iter().map(|(_, chart)| chart.svg()).collect(),
        samples_note: samples_note(p),
        samples: p.suspects.iter().take(SHOWN_SAMPLES).enumerate().map(|(i, s)| sample(data, i, s)).collect(),
    })
}

/// Says whether the run failed for good, as far as is known: it has not passed the step that failed.
pub(crate) fn is_the_end(data: &ReportData) -> bool {
    data.postmortem.as_ref().is_some_and(|p| passed(data, p).is_none())
}

/// Says how the run went on, if it passed the step that failed.
fn passed(data: &ReportData, p: &Postmortem) -> Option<String> {
    let last = data.steps.iter().map(|s| s.step).chain(data.ends.iter().map(|e| e.step)).max()?;
    let beyond = last > p.step || (last == p.step && data.run.status == "finished");
    beyond.then(|| {
        format!(
            "The run was resumed since and is now at step {last}: what follows is about an earlier attempt."
        )
    })
}

fn cause(c: &Cause) -> CauseView {
    CauseView { title: c.title.clone(), evidence: c.evidence.clone() }
}

fn remedy<'a>(p: &'a Postmortem, run: &'a Path) -> impl Fn(&Remedy) -> RemedyView + 'a {
    |r| RemedyView { text: r.text.clone(), command: (!r.set.is_empty()).then(|| command(p, run, r)) }
}

fn samples_note(p: &Postmortem) -> String {
    let (batch, affected) = (p.samples.len() as u64, p.affected_samples);
    match affected {
        0 => format!(
            "No single sample of the batch of {batch} has values that are NaN or infinite. These stand out most."
        ),
        n if n == batch => format!(
            "All {batch} samples of the batch have values that are NaN or infinite. These are some of them."
        ),
        n => format!("{n} of {batch} samples of the batch have values that are NaN or infinite."),
    }
}

fn sample(data: &ReportData, index: usize, s: &Suspect) -> SampleView {
    let image = format!("image {}", s.id);
    let mut facts: Vec<String> = Some(image).filter(|image| *image != s.name).into_iter().collect();
    facts.extend(s.class_text());
    facts.push(format!("row {} of the batch", s.row));
    let mut pictures = Vec::new();
    let mut add = |label: String, png: &Vec<u8>| {
        pictures.extend(data_uri(png).map(|uri| PictureView { label, uri }));
    };
    if let Some(found) = data.sample_pictures.get(index) {
        found.image.iter().for_each(|png| add("image".into(), png));
        found.views.iter().enumerate().for_each(|(v, png)| add(format!("view {v}"), png));
    }
    SampleView { name: s.name.clone(), facts: facts.join(" · "), why: s.why.clone(), pictures }
}

/// Returns charts of the last steps with the names of their files.
pub(crate) fn figures(p: &Postmortem) -> Vec<(&'static str, Chart)> {
    let mut losses = vec![over(p, "loss", |s| s.loss.map(|n| n.0))];
    let terms = names(p, |s| s.terms.iter().map(|t| &*t.name).collect());
    for name in terms.iter().filter(|_| terms.len() > 1) {
        losses.push(over(p, name, |s| s.terms.iter().find(|t| t.name == *name).map(|t| t.value.0)));
    }
    let mut norms = vec![over(p, "whole network", |s| s.gradient_norm.map(|n| n.0))];
    let parts = names(p, |s| s.gradient_by_part.iter().map(|g| &*g.part).collect());
    for part in parts.iter().filter(|_| parts.len() > 1).take(PARTS) {
        norms.push(over(p, part, |s| s.gradient_by_part.iter().find(|g| g.part == *part).map(|g| g.norm.0)));
    }
    let spread = vec![over(p, "spread", |s| s.spread)];
    let rank = vec![over(p, "rank", |s| s.rank)];
    let lengths = vec![
        over(p, "longest", |s| s.embedding_norms.map(|l| l.most.0)),
        over(p, "mean", |s| s.embedding_norms.map(|l| l.mean.0)),
        over(p, "shortest", |s| s.embedding_norms.map(|l| l.least.0)),
    ];
    let mut rate = vec![over(p, "rate", |s| s.learning_rate)];
    // A rate that does not change is in the table.
    rate.retain(|rate| rate.points.windows(2).any(|two| two[0].1 != two[1].1));
    let sphere = "1: uniform on the sphere, 0: a single point";
    let all = [
        ("postmortem-loss", "Loss of the last steps", "weighted sum, and each term", losses),
        ("postmortem-gradient", "Gradient of the last steps", "norm before clipping", norms),
        ("postmortem-spread", "Spread of the last steps", sphere, spread),
        ("postmortem-rank", "Effective rank of the last steps", "RankMe of the embeddings of a view", rank),
        ("postmortem-lengths", "Lengths of the embeddings", "outputs of the projector", lengths),
        ("postmortem-rate", "Learning rate of the last steps", "as scheduled", rate),
    ];
    let charts = all.map(|(name, title, y, series)| (name, chart(p, title, y, series)));
    charts.into_iter().filter(|(_, chart)| !chart.is_empty()).collect()
}

/// Returns a quantity over the last steps.
fn over(p: &Postmortem, name: &str, value: impl Fn(&StepRecord) -> Option<f64>) -> Series {
    let point = |s: &StepRecord| (s.step as f64, value(s).unwrap_or(f64::NAN));
    Series { name: name.into(), points: p.steps.iter().map(point).collect() }
}

/// Returns a chart over the last steps, with a mark at the one that failed.
fn chart(p: &Postmortem, title: &str, y: &str, series: Vec<Series>) -> Chart {
    Chart {
        title: title.into(),
        x: "step".into(),
        y: y.into(),
        scale: scale_of(&series),
        series,
        marks: vec![("failed".into(), p.step as f64)],
        ..Chart::default()
    }
}

/// Returns the different names of the steps, in order of first appearance.
fn names<'a>(p: &'a Postmortem, of: impl Fn(&'a StepRecord) -> Vec<&'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in p.steps.iter().flat_map(of) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Chooses a logarithmic axis for positive values over many orders of magnitude.
fn scale_of(series: &[Series]) -> Scale {
    let values = || series.iter().flat_map(|s| &s.points).map(|p| p.1).filter(|v| v.is_finite());
    let (low, high) = values().fold((f64::INFINITY, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
    if low > 0.0 && high / low > WIDE { Scale::Log } else { Scale::Plain }
}
