//! Mistakes in a recipe, with their positions and remedies, rendered in the style of rustc.

use crate::recipe_text;
use annotate_snippets::{AnnotationKind, Level, Patch, Renderer, Snippet};
use pauc_traits::component_ron::Problem;
use pauc_traits::term::Severity;
use ron::error::{Error as Ron, SpannedError};
use std::ops::Range;

/// One error or warning about a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The code that `explain` describes.
    pub code: &'static str,
    /// The mistake.
    pub message: String,
    /// The position, in bytes of the recipe's text.
    pub span: Option<Range<usize>>,
    /// A short label for the position.
    pub label: String,
    /// The remedy.
    pub help: Option<String>,
    /// The text to write in place of the span.
    pub replacement: Option<String>,
}

impl Diagnostic {
    /// Creates an error or warning about the value at a path of the recipe. `root` has the positions in its
    /// text, see [`recipe_text::parse`].
    pub fn at(
        severity: Severity,
        code: &'static str,
        root: Option<&recipe_text::Node>,
        path: &str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        let span = root.map(|root| recipe_text::nearest(root, path));
        let help = Some(help.into()).filter(|h: &String| !h.is_empty());
        let message = message.into();
        Diagnostic { severity, code, message, span, label: String::new(), help, replacement: None }
    }

    /// Renders the diagnostic over the recipe's text.
    pub fn render(&self, text: &str, path: &str, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(self.message.as_str()).id(self.code);
        let excerpt = self.span.as_ref().map(|span| Excerpt::new(text, span));
        let main = match &excerpt {
            Some(excerpt) => {
                let mut mark = AnnotationKind::Primary.span(excerpt.span.clone());
                if !self.label.is_empty() {
                    mark = mark.label(self.label.as_str());
                }
                title.element(
                    Snippet::source(excerpt.lines).line_start(excerpt.first).path(path).annotation(mark),
                )
            }
            None => title.element(annotate_snippets::Origin::path(path)),
        };
        let mut report = vec![main];
        if let (Some(new), Some(excerpt)) = (&self.replacement, &excerpt) {
            let patch = Patch::new(excerpt.span.clone(), new.as_str());
            let patch = Snippet::source(excerpt.lines).line_start(excerpt.first).path(path).patch(patch);
            report.push(Level::HELP.secondary_title(format!("did you mean `{new}`?")).element(patch));
        }
        if let Some(help) = &self.help {
            report.push(annotate_snippets::Group::with_title(Level::HELP.secondary_title(help.as_str())));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&report)
    }

    /// Converts an error of RON's parser, or one that a component raised during parsing.
    pub fn from_ron(text: &str, error: &SpannedError) -> Self {
        let span = byte(text, error.span.start)..byte(text, error.span.end);
        let mut d = Diagnostic {
            severity: Severity::Error,
            code: "E0101",
            message: String::new(),
            span: Some(span),
            label: String::new(),
            help: None,
            replacement: None,
        };
        let plain = error.code.to_string();
        if let Some(problem) = Problem::parse(&plain) {
            let Problem { code, message, word, suggestion, help } = problem;
            // The parser's position is after the offending word, or after the value that begins with it; show
            // the word itself.
            d.span = d.span.map(|s| match word.and_then(|w| last_word(text, s.end, &w)) {
                Some(word) => word,
                None => word_before(text, s),
            });
            return Diagnostic { code, message, replacement: suggestion, help, ..d };
        }
        if let Some(Problem { code, message, suggestion, help, .. }) = Problem::of_ron(&error.code) {
            return Diagnostic { code, message, replacement: suggestion, help, ..d };
        }
        let root = recipe_text::parse(text);
        let value = root.as_ref().map(|root| value(text, root, &d).span.clone());
        let found = value.as_ref().map(|span| shortened(&text[span.clone()]));
        if let Some(message) = value_problem(&error.code, found.as_deref()) {
            (d.code, d.message) = ("E0106", message);
            // The parser stopped somewhere in or after the value: show all of it.
            d.span = value.or(d.span);
            return d;
        }
        match &error.code {
            Ron::MissingStructField { field, outer } => {
                let owner = outer.as_ref().map(|o| format!(" of `{o}`")).unwrap_or_default();
                (d.code, d.message) =
                    ("E0104", format!("the field `{field}`{owner} is missing and has no default"));
            }
            code => (d.message, d.help) = syntax_message(text, code),
        }
        d
    }
}

/// Describes an error in a value of a correct text, of which `found` is the beginning; `None` for other errors.
fn value_problem(error: &Ron, found: Option<&str>) -> Option<String> {
    let message = match error {
        error if exceeds_depth(error) => return None,
        Ron::Message(message) => value_message(message),
        Ron::InvalidValueForType { expected, found } => mismatch(expected, found),
        Ron::IntegerOutOfBounds => integer_message(found.unwrap_or_default()),
        Ron::ExpectedBoolean => {
            format!("expected true or false, found {}", found.unwrap_or("something else"))
        }
        Ron::ExpectedInteger
        | Ron::ExpectedFloat
        | Ron::ExpectedString
        | Ron::ExpectedArray
        | Ron::ExpectedUnit
        | Ron::ExpectedOption => {
            let expected = error.to_string();
            let found = found.map(|f| format!(", found {f}")).unwrap_or_default();
            format!("expected a value of type {}{found}", expected.trim_start_matches("Expected "))
        }
        _ => return None,
    };
    Some(message)
}

/// Returns whether brackets nest too deeply. Errors inside of components arrive as text.
fn exceeds_depth(error: &Ron) -> bool {
    let text = Ron::ExceededRecursionLimit.to_string();
    matches!(error, Ron::ExceededRecursionLimit) || matches!(error, Ron::Message(m) if *m == text)
}

/// Describes a syntax error, and its remedy if there is one.
fn syntax_message(text: &str, error: &Ron) -> (String, Option<String>) {
    if text.trim().is_empty() {
        let help = "write `Recipe(name: …, objective: […])`, or begin with a shipped recipe";
        return ("the text is empty".into(), Some(help.into()));
    }
    match error {
        Ron::ExpectedStructLike | Ron::ExpectedNamedStructLike(_) => (
            "a name must be followed by its fields in parentheses".into(),
            Some("write `Name()` to leave all fields at their defaults".into()),
        ),
        Ron::ExpectedComma | Ron::ExpectedStructLikeEnd | Ron::ExpectedArrayEnd => (
            "expected a comma or a closing bracket".into(),
            Some("separate fields and items by commas, and close every bracket".into()),
        ),
        Ron::ExpectedIdentifier => ("expected a name, as in `Name(field: value)`".into(), None),
        Ron::Eof => ("the text ends too early: a bracket is not closed".into(), None),
        error if exceeds_depth(error) => (
            format!("brackets are nested more than {} deep", recipe_text::MAX_DEPTH),
            Some("close the open brackets; no recipe is nested this deeply".into()),
        ),
        error => (error.to_string(), None),
    }
}

/// Describes a value of the wrong kind. serde and RON add words of their own to both parts.
fn mismatch(expected: &str, found: &str) -> String {
    let found = found.trim_start_matches("Unexpected ").trim_start_matches("enum variant named ");
    format!("expected {}, found {found}", expected.trim_end_matches(" instead"))
}

/// Describes a whole number that its field cannot hold. RON does not say which type the field has, so the
/// bound is the nearest one that the number violates.
fn integer_message(number: &str) -> String {
    let digits = number.replace('_', "");
    let magnitude = digits.trim_start_matches(['-', '+']);
    let exceeds = |bound: &str| {
        let magnitude = magnitude.trim_start_matches('0');
        (magnitude.len(), magnitude) > (bound.len(), bound)
    };
    let bound = if digits.starts_with('-') {
        "at least 0".to_string()
    } else {
        let bounds = [u64::MAX, i64::MAX as u64, u64::from(u32::MAX), 255].map(|b| b.to_string());
        let bound = bounds.into_iter().find(|b| exceeds(b));
        bound.map_or_else(|| "smaller".into(), |b| format!("at most {b}"))
    };
    format!("`{number}` is out of range: this whole number must be {bound}")
}

/// Returns the value at or before a parser's error.
fn value<'a>(text: &str, root: &'a recipe_text::Node, d: &Diagnostic) -> &'a recipe_text::Node {
    let at = d.span.as_ref().map_or(0, |s| s.start);
    let blank = text[at..].len() - text[at..].trim_start().len();
    recipe_text::value_at(root, at + blank)
}

/// Returns the beginning of a value, for messages.
fn shortened(value: &str) -> String {
    const MOST: usize = 60;
    let line = value.lines().next().unwrap_or_default();
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < value.len() => format!("{line}…"),
        None => line.to_string(),
    }
}

/// Rewords serde's messages about values.
fn value_message(message: &str) -> String {
    if *message == Ron::ExpectedArray.to_string() {
        return "expected a list, such as `[1, 2]`".into();
    }
    match message.split_once(", expected ") {
        Some((got, expected)) => {
            let got = got.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
            mismatch(expected, got)
        }
        None => message.to_string(),
    }
}

/// The lines of a text that contain a span. Only these are rendered, so that the size of the text does not matter.
struct Excerpt<'a> {
    lines: &'a str,
    /// The number of the first line, counted from 1.
    first: usize,
    /// The span, relative to the excerpt.
    span: Range<usize>,
}

impl<'a> Excerpt<'a> {
    fn new(text: &'a str, span: &Range<usize>) -> Self {
        let span = clamp(text, span);
        let start = text[..span.start].rfind('\n').map_or(0, |i| i + 1);
        let end = text[span.end..].find('\n').map_or(text.len(), |i| span.end + i);
        let first = text[..start].bytes().filter(|b| *b == b'\n').count() + 1;
        Excerpt { lines: &text[start..end], first, span: span.start - start..span.end - start }
    }
}

fn clamp(text: &str, span: &Range<usize>) -> Range<usize> {
    let end = span.end.min(text.len());
    let start = span.start.min(end);
    // An empty span at the end of a line is not drawn: show the character before it.
    if start == end && start > 0 { text.floor_char_boundary(start - 1)..end } else { start..end }
}

/// Converts a position to a byte offset. RON counts lines and columns from one, columns in characters.
fn byte(text: &str, at: ron::error::Position) -> usize {
    let line_start: usize = text.split_inclusive('\n').take(at.line.saturating_sub(1)).map(str::len).sum();
    let line = text[line_start..].split('\n').next().unwrap_or("");
    line_start + line.char_indices().nth(at.col.saturating_sub(1)).map_or(line.len(), |(i, _)| i)
}

/// Returns the last occurrence of `word` before `end` as a whole word.
fn last_word(text: &str, end: usize, word: &str) -> Option<Range<usize>> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |at: usize| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    };
    let mut places = text[..end.min(text.len())].rmatch_indices(word).map(|(at, _)| at);
    places.find(|at| whole(*at)).map(|at| at..at + word.len())
}

fn word_before(text: &str, span: Range<usize>) -> Range<usize> {
    if span.start < span.end {
        let word = text[span.clone()].trim();
        if !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return span;
        }
    }
    let before = text[..span.end.min(text.len())].trim_end();
    let start = before.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |i| i + 1);
    if start < before.len() { start..before.len() } else { span }
}

/// The number of diagnostics to render for one recipe.
const MOST_SHOWN: usize = 100;

/// The diagnostics of a recipe, errors first.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    /// The recipe's text, after the `--set` changes.
    pub text: String,
    /// The path to print.
    pub path: String,
    /// The errors and warnings.
    pub all: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Returns whether there is an error.
    pub fn has_errors(&self) -> bool {
        self.all.iter().any(|d| d.severity == Severity::Error)
    }

    /// Renders the diagnostics, errors first, followed by a summary line. Of a very large number, the first
    /// ones are shown.
    pub fn render(&self, color: bool) -> String {
        let mut all: Vec<&Diagnostic> = self.all.iter().collect();
        all.sort_by_key(|d| std::cmp::Reverse(d.severity));
        let mut out = String::new();
        for d in all.iter().take(MOST_SHOWN) {
            out.push_str(&d.render(&self.text, &self.path, color));
            out.push_str("\n\n");
        }
        if all.len() > MOST_SHOWN {
            let rest = all.len() - MOST_SHOWN;
            out.push_str(&format!("… and {rest} more; `pauc-cli check --json` lists all of them\n\n"));
        }
        let count = |s| self.all.iter().filter(|d| d.severity == s).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        if errors > 0 {
            let code = all[0].code;
            out.push_str(&format!(
                "{} and {} in {}; `pauc-cli explain {code}` says more\n",
                plural(errors, "error"),
                plural(warnings, "warning"),
                self.path
            ));
        }
        out
    }
}

impl std::fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}
