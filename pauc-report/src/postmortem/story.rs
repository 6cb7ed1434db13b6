//! A postmortem in a few lines of text.

use crate::axis::significant;
use crate::postmortem::causes::short;
use crate::postmortem::{Number, Postmortem, Remedy, StepRecord, Suspect};
use std::path::Path;

/// The largest number of steps in the table.
const ROWS: usize = 4;
/// The largest number of things to try.
const TRIED: usize = 3;
/// The width at which text is wrapped; commands are not.
const WIDTH: usize = 100;
/// The largest number of terms with a column of their own.
const COLUMNS: usize = 3;
/// The largest number of samples that are named.
const NAMED: usize = 3;

/// Returns the story of a run that failed, in about fifteen lines. `run` is its folder.
pub fn story(p: &Postmortem, run: &Path) -> String {
    let mut lines = vec![p.headline()];
    let mut tell = |label: &str, text: &str| lines.extend(wrapped(label, text));
    if let Some(first) = &p.first {
        tell("first", &first.sentence());
    }
    for line in table(p) {
        tell("", &line);
    }
    for (i, cause) in p.causes.iter().enumerate() {
        tell(if i == 0 { "cause" } else { "or" }, &format!("{}: {}", cause.title, cause.evidence));
    }
    if let Some(text) = samples(p) {
        tell("samples", &text);
    }
    tell("good", &last_good(p));
    let mut label = "try";
    for remedy in p.remedies().into_iter().take(TRIED) {
        let text = match remedy.set.as_slice() {
            [] => remedy.text.clone(),
            _ => command(p, run, remedy),
        };
        lines.push(format!("  {label:<LABEL$} {text}"));
        label = "";
    }
    lines.push(format!("  {:<LABEL$} {}", "more", run.join("report.html").display()));
    lines.join("\n")
}

/// The width of labels.
const LABEL: usize = 8;

/// Returns a text behind its label, in lines of at most [`WIDTH`] columns. Spaces at its start stay.
fn wrapped(label: &str, text: &str) -> Vec<String> {
    let mut lines = vec![format!("  {label:<LABEL$} ")];
    let start = text.len() - text.trim_start().len();
    lines[0].push_str(&text[..start]);
    for (i, word) in text[start..].split(' ').enumerate() {
        let last = lines.len() - 1;
        if i > 0 && lines[last].chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("{:indent$}{word}", "", indent = 3 + LABEL));
            continue;
        }
        if i > 0 {
            lines[last].push(' ');
        }
        lines[last].push_str(word);
    }
    lines
}

/// Returns the story in one line, for logs.
pub fn summary(p: &Postmortem) -> String {
    match p.causes.first() {
        Some(cause) => format!("{}; likely cause: {}", p.headline(), cause.title),
        None => p.headline(),
    }
}

/// Says which checkpoint is the last one of a network that still learned.
pub fn last_good(p: &Postmortem) -> String {
    match (&p.last_good, &p.newest_checkpoint) {
        (Some(good), _) => {
            let step = good.step.map(|step| format!(", step {step}")).unwrap_or_default();
            format!("the last good checkpoint is {}{step}", good.path.display())
        }
        (None, Some(newest)) => {
            format!("the network had stopped learning before the checkpoint {} was written", newest.display())
        }
        (None, None) => "no checkpoint had been written yet".into(),
    }
}

/// Returns the command that trains with the settings of a remedy: from the last good checkpoint of the run, or from
/// the beginning without one. A checkpoint cannot change how the networks compute on a GPU.
pub fn command(p: &Postmortem, run: &Path, remedy: &Remedy) -> String {
    let set = &remedy.set;
    let changes: String = set.iter().map(|s| format!(" --set {}", quoted(s))).collect();
    let of_networks = set.iter().any(|s| s.starts_with("train.cuda."));
    if p.last_good.is_some() && !of_networks && !remedy.start_over {
        return format!("pauc-cli resume {} --from good{changes}", quoted(&run.display().to_string()));
    }
    let recipe = run.join("recipe.resolved.ron");
    format!("pauc-cli run {}{changes}", quoted(&recipe.display().to_string()))
}

/// Quotes an argument for a shell if it has to be.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_string();
    }
    format!("'{}'", argument.replace('\'', "'\\''"))
}

/// Says which samples are affected.
fn samples(p: &Postmortem) -> Option<String> {
    let batch = p.samples.len() as u64;
    if batch == 0 {
        return None;
    }
    let named = |s: &Suspect| match s.class_text() {
        Some(class) => format!("{} ({class}): {}", s.name, s.why),
        None => format!("{}: {}", s.name, s.why),
    };
    if p.affected_samples == batch && batch > NAMED as u64 {
        return Some(format!("all {batch} of the batch"));
    }
    let shown: Vec<String> = p.suspects.iter().take(NAMED).map(named).collect();
    match p.affected_samples {
        0 if shown.is_empty() => None,
        0 => Some(shown.join("; ")),
        n => Some(format!("{n} of {batch}: {}", shown.join("; "))),
    }
}

/// Returns the steps to show: the first, one in the middle, and the last ones.
fn chosen(steps: &[StepRecord]) -> Vec<&StepRecord> {
    if steps.len() <= ROWS {
        return steps.iter().collect();
    }
    let tail = steps.len() - (ROWS - 2);
    [0, tail / 2].into_iter().chain(tail..steps.len()).map(|i| &steps[i]).collect()
}

/// A column of the table of steps: its title, and its value at a step.
type Column<'a> = (String, Box<dyn Fn(&StepRecord) -> Option<f64> + 'a>);

/// Returns the quantities of steps that are known, and that differ from the loss.
pub(crate) fn columns(p: &Postmortem) -> Vec<Column<'_>> {
    let number = |n: Option<Number>| n.map(|n| n.0);
    let mut columns: Vec<Column<'_>> = vec![
        ("step".into(), Box::new(|s| Some(s.step as f64))),
        ("loss".into(), Box::new(move |s| number(s.loss))),
    ];
    let mut names: Vec<&str> = Vec::new();
    for term in p.steps.iter().flat_map(|s| &s.terms) {
        if !names.contains(&term.name.as_str()) {
            names.push(&term.name);
        }
    }
    let first = p.first.as_ref().map_or("", |f| f.name.as_str());
    names.sort_by_key(|name| *name != first);
    let several = names.len() > 1;
    for name in names.into_iter().filter(|_| several).take(COLUMNS) {
        let value = move |s: &StepRecord| s.terms.iter().find(|t| t.name == name).map(|t| t.value.0);
        columns.push((name.to_string(), Box::new(value)));
    }
    columns.push(("gradient".into(), Box::new(move |s| number(s.gradient_norm))));
    columns.push(("rate".into(), Box::new(|s| s.learning_rate)));
    columns.push(("spread".into(), Box::new(|s| s.spread)));
    columns.push(("rank".into(), Box::new(|s| s.rank)));
    columns.retain(|(_, value)| p.steps.iter().any(|s| value(s).is_some()));
    columns
}

/// Formats the value in a column. Digits line up where values change from step to step.
pub(crate) fn cell(title: &str, value: f64) -> String {
    let is_setting = title == "step" || title == "rate";
    if !is_setting && (1e-3..1e3).contains(&value.abs()) { significant(value) } else { short(value) }
}

/// Returns the last steps as a table, a header first.
fn table(p: &Postmortem) -> Vec<String> {
    if p.steps.is_empty() {
        return Vec::new();
    }
    let columns = columns(p);
    let mut rows = vec![columns.iter().map(|(title, _)| title.clone()).collect::<Vec<_>>()];
    for step in chosen(&p.steps) {
        let text = |(title, value): &Column<'_>| match value(step) {
            Some(v) => cell(title, v),
            None => "–".into(),
        };
        rows.push(columns.iter().map(text).collect());
    }
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        cells.join("  ")
    };
    rows.iter().map(line).collect()
}
