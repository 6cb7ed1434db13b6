//! The text of a suggested recipe.

use super::machine::Machine;
use super::rules::{Choice, Choices};
use super::{Budget, Data, Goal, count, time};
use pauc_data::survey::Survey;
use pauc_traits::Result;
use std::fmt::Write;

/// The width of comments.
const WIDTH: usize = 100;

/// What a recipe is written for, besides its choices.
#[derive(Clone, Copy, Debug)]
pub struct Heading<'a> {
    /// The recipe's name.
    pub name: &'a str,
    /// The dataset.
    pub data: &'a Data,
    /// What was found in it.
    pub survey: &'a Survey,
    /// The machine.
    pub machine: &'a Machine,
    /// What the encoder is for.
    pub goal: Goal,
    /// The time for the run.
    pub budget: Budget,
}

/// Writes the recipe, with the reason for each choice as a comment.
///
/// # Errors
/// If a setting of the dataset is not one.
pub fn recipe(heading: &Heading<'_>, choices: &Choices) -> Result<String> {
    let mut out = String::new();
    comment(&mut out, "", &sentences(heading, choices));
    let _ = write!(out, "Recipe(\n    version: 1,\n    name: {:?},\n", heading.name);
    for (field, choice) in &choices.data {
        comment(&mut out, "    ", &format!("{field}: {}", choice.why));
    }
    let settings: Vec<(&str, String)> = choices.data.iter().map(|(f, c)| (*f, c.value.clone())).collect();
    let mut data = heading.data.with(&settings)?;
    if let Some(Choice { value: [train, test], why }) = &choices.part {
        comment(&mut out, "    ", why);
        data = format!("Subset(of: {data}, train: PerClass({train}), test: PerClass({test}))");
    }
    let _ = writeln!(out, "    data: {data},");
    field(&mut out, "views", &choices.views, String::clone);
    field(&mut out, "encoder", &choices.encoder, String::clone);
    field(&mut out, "projector", &choices.projector, String::clone);
    if let Some(momentum) = &choices.momentum {
        field(&mut out, "momentum_encoder", momentum, |m| format!("Ema(momentum: {m})"));
    }
    if let Some(queue) = &choices.queue {
        field(&mut out, "queue", queue, usize::to_string);
    }
    if let Some(clusterer) = &choices.clusterer {
        field(&mut out, "clusterer", clusterer, String::clone);
    }
    field(&mut out, "objective", &choices.objective, |terms| list(terms));
    field(&mut out, "optimizer", &choices.learning_rate, |lr| {
        format!("Sgd(lr: {lr:?}, momentum: 0.9, weight_decay: 5e-4)")
    });
    out.push_str("    schedule: WarmupCosine(warmup: Fraction(0.05)),\n");
    train(&mut out, choices);
    field(&mut out, "probes", &choices.probes, |probes| list(probes));
    if !choices.baselines.is_empty() {
        comment(&mut out, "    ", "Without training: what accuracies have to beat.");
        let _ = writeln!(out, "    baselines: [{}],", choices.baselines.join(", "));
    }
    out.push_str(")\n");
    Ok(out)
}

fn train(out: &mut String, choices: &Choices) {
    comment(out, "    ", &format!("epochs: {}", choices.epochs.why));
    comment(out, "    ", &format!("batch: {}", choices.batch.why));
    let micro = choices.micro_batch.as_ref().map_or_else(String::new, |micro| {
        comment(out, "    ", &format!("micro_batch: {}", micro.why));
        format!("micro_batch: {}, ", micro.value)
    });
    let _ = writeln!(
        out,
        "    train: (epochs: {}, batch: {}, {micro}log_every: {}, checkpoint_every: Fraction(0.1)),",
        choices.epochs.value, choices.batch.value, choices.log_every
    );
}

/// Describes the data and the plan in a few sentences.
pub fn summary(heading: &Heading<'_>, choices: &Choices) -> String {
    sentences(heading, choices).replace('\u{a0}', " ")
}

/// As [`summary`], with no-break spaces within numbers.
fn sentences(heading: &Heading<'_>, choices: &Choices) -> String {
    let goal = match heading.goal {
        Goal::Embeddings => "Embeddings",
        Goal::Clusters => "Clusters",
    };
    let exceeds = if choices.seconds > heading.budget.seconds() { ", which is too short" } else { "" };
    format!(
        "{goal} for {}: {} The run takes about {} on {} (budget: {}{exceeds}).",
        heading.data.text,
        found(heading.survey),
        time(choices.seconds),
        heading.machine.describe(),
        heading.budget
    )
}

/// Describes what was found in the data.
pub fn found(survey: &Survey) -> String {
    let range = |r: pauc_data::survey::Range| {
        if r.least == r.most { r.least.to_string() } else { format!("{} to {}", r.least, r.most) }
    };
    let mut text = format!("{} images", count(survey.images()));
    if survey.test > 0 {
        let _ = write!(text, " ({} of them for testing)", count(survey.test));
    }
    if survey.is_labeled() {
        let _ = write!(text, " in {} classes", count(survey.classes.len()));
    }
    let _ = write!(text, ", {} × {} pixels", range(survey.heights), range(survey.widths));
    let colors = match survey.gray {
        g if g >= 1.0 => "gray".to_string(),
        g if g <= 0.0 => "in color".into(),
        g => format!("{:.0} % gray", g * 100.0),
    };
    let _ = write!(text, ", {colors}.");
    let whole =
        if survey.is_complete() { "all".to_string() } else { format!("a sample of {}", count(survey.read)) };
    let _ = write!(
        text,
        " Of {whole}, {} cannot be read, and {} are copies of others",
        count(survey.unreadable.len()),
        count(survey.copies)
    );
    if survey.shared > 0 {
        let _ = write!(text, ", {} of them of an image in the other split", count(survey.shared));
    }
    text.push('.');
    text
}

fn field<T>(out: &mut String, name: &str, choice: &Choice<T>, text: impl Fn(&T) -> String) {
    comment(out, "    ", &choice.why);
    let _ = writeln!(out, "    {name}: {},", text(&choice.value));
}

fn list(items: &[String]) -> String {
    let short = items.join(", ");
    if short.len() <= 80 {
        return format!("[{short}]");
    }
    let lines: String = items.iter().map(|item| format!("        {item},\n")).collect();
    format!("[\n{lines}    ]")
}

/// Writes a comment, broken into lines.
fn comment(out: &mut String, indent: &str, text: &str) {
    let mut line = format!("{indent}//");
    // A name with a line break would end the comment.
    for word in text.split(|c: char| c.is_ascii_whitespace()).filter(|word| !word.is_empty()) {
        if line.chars().count() + 1 + word.chars().count() > WIDTH && line.trim() != "//" {
            out.push_str(&line);
            out.push('\n');
            line = format!("{indent}//");
        }
        line.push(' ');
        line.extend(word.chars().map(|c| match c {
            '\u{a0}' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        }));
    }
    out.push_str(&line);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_broken_into_lines_and_cannot_be_left() {
        let mut out = String::new();
        comment(&mut out, "  ", &format!("one {} two\u{1b}\n) evil", "x".repeat(120)));
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines, ["  // one", &format!("  // {}", "x".repeat(120)), "  // two\u{fffd} ) evil"]);
    }
}
