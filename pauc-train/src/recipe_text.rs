//! Positions of values in a recipe's text, for error messages and for `--set path=value`.
//!
//! RON's own parser builds the values; this one only finds their positions. It accepts everything that RON
//! accepts in a recipe, and is used only on text that RON accepts or is about to check.

use std::io;
use std::ops::Range;
use std::path::Path;

/// How deep brackets may nest. RON's parser has the same limit, so text beyond it is refused with a position.
pub const MAX_DEPTH: usize = 128;

/// The position of a value in the text, with its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The range of the value, including name and brackets.
    pub span: Range<usize>,
    /// Its parts.
    pub parts: Parts,
}

/// The parts of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Parts {
    /// A number, a string, a word, or `()`.
    Scalar,
    /// `Name(field: value, …)`, with or without the name.
    Fields(Vec<Field>),
    /// `[a, b]` or `(a, b)`.
    Items(Vec<Node>),
}

/// A field of a struct.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// The range of the name.
    pub name_span: Range<usize>,
    /// Its value.
    pub value: Node,
}

/// Why a path cannot be set.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SetError {
    /// Not of the form `path=value`.
    #[error("`{0}` is not of the form path=value, such as train.epochs=5")]
    Form(String),
    /// The path does not exist.
    #[error("`{path}`: {message}")]
    Path {
        /// The path as given.
        path: String,
        /// Where it ends and why.
        message: String,
    },
    /// The value is not one value of RON.
    #[error("`{path}` cannot be set to this: it is not a single value")]
    Value {
        /// The path as given.
        path: String,
    },
    /// The text is not RON.
    #[error("the recipe is not valid RON, so its values cannot be set")]
    Unreadable,
}

impl SetError {
    /// Returns the part of the assignment that is wrong.
    pub fn span(&self, assignment: &str) -> Range<usize> {
        let equals = assignment.find('=').unwrap_or(assignment.len());
        match self {
            SetError::Path { .. } => 0..equals,
            SetError::Value { .. } => equals + 1..assignment.len(),
            SetError::Form(_) | SetError::Unreadable => 0..assignment.len(),
        }
    }

    /// Returns what to do.
    pub fn help(&self) -> &'static str {
        match self {
            SetError::Value { .. } => "close every bracket and quotation mark; each --set gives one value",
            _ => "write it as path=value, such as --set train.epochs=5",
        }
    }
}

#[derive(Debug, PartialEq)]
enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && word.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Splits a path such as `objective[0].weight`, or the equivalent `objective.0.weight`, into steps.
fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, mut rest) = part.split_at(part.find('[').unwrap_or(part.len()));
        match name.parse() {
            Ok(index) => steps.push(Step::Item(index)),
            Err(_) if is_name(name) => steps.push(Step::Field(name)),
            Err(_) if name.is_empty() => {}
            Err(_) => return None,
        }
        while let Some(inner) = rest.strip_prefix('[') {
            let (index, after) = inner.split_once(']')?;
            steps.push(Step::Item(index.parse().ok()?));
            rest = after;
        }
        if !rest.is_empty() || part.is_empty() {
            return None;
        }
    }
    Some(steps)
}

/// Reads the text of a recipe or sweep. A byte order mark, as some editors write it, is left out.
///
/// # Errors
/// If the file cannot be read, or is not UTF-8; then the error names the line.
pub fn read(path: &Path) -> io::Result<String> {
    let text = String::from_utf8(std::fs::read(path)?).map_err(|e| {
        let (valid, bytes) = (e.utf8_error().valid_up_to(), e.as_bytes());
        let line = bytes[..valid].iter().filter(|b| **b == b'\n').count() + 1;
        let message = format!(
            "line {line} is not UTF-8: byte 0x{:02x} at offset {valid}; save the file as UTF-8",
            bytes[valid]
        );
        io::Error::new(io::ErrorKind::InvalidData, message)
    })?;
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Ok(rest.to_string()),
        None => Ok(text),
    }
}

/// Finds the positions of all values; `None` if the text is not RON, or nested deeper than [`MAX_DEPTH`].
pub fn parse(text: &str) -> Option<Node> {
    let mut scanner = Scanner { text, at: 0, depth: 0 };
    scanner.blank();
    while scanner.rest().starts_with("#!") {
        scanner.at += scanner.rest().find(']')? + 1;
        scanner.blank();
    }
    let node = scanner.value()?;
    scanner.blank();
    (scanner.at == text.len()).then_some(node)
}

/// Returns the value at a path such as `objective[2].term.temperature`; `None` if the text leaves it out.
pub fn find<'a>(root: &'a Node, path: &str) -> Option<&'a Node> {
    steps(path)?.iter().try_fold(root, |node, step| child(node, step))
}

/// Returns the range of the deepest part of a path in the text: the value itself, or its innermost parent.
pub fn nearest(root: &Node, path: &str) -> Range<usize> {
    let mut node = root;
    for step in steps(path).unwrap_or_default() {
        match child(node, &step) {
            Some(next) => node = next,
            None => break,
        }
    }
    node.span.clone()
}

/// Returns the innermost value that contains the byte at `offset` or ends there.
pub fn value_at(root: &Node, offset: usize) -> &Node {
    let holds = |n: &Node| n.span.start <= offset && offset <= n.span.end;
    let mut node = root;
    loop {
        let next = match &node.parts {
            Parts::Scalar => None,
            Parts::Fields(fields) => fields.iter().map(|f| &f.value).find(|n| holds(n)),
            Parts::Items(items) => items.iter().find(|n| holds(n)),
        };
        match next {
            Some(next) => node = next,
            None => return node,
        }
    }
}

fn child<'a>(node: &'a Node, step: &Step<'_>) -> Option<&'a Node> {
    match (step, &node.parts) {
        (Step::Field(name), Parts::Fields(fields)) => {
            fields.iter().find(|f| f.name == *name).map(|f| &f.value)
        }
        (Step::Item(i), Parts::Items(items)) => items.get(*i),
        _ => None,
    }
}

/// Applies `path=value` to the text: replaces the value, or inserts a field that was left out.
///
/// # Errors
/// If the assignment is malformed, or a part of its path does not exist. Text that is not a single value is
/// refused here, since the mistake would otherwise show somewhere else in the recipe.
pub fn set(text: &str, assignment: &str) -> Result<String, SetError> {
    let form = || SetError::Form(assignment.to_string());
    let (path, value) = assignment.split_once('=').ok_or_else(form)?;
    let (path, value) = (path.trim(), value.trim());
    let steps = steps(path).filter(|s| !s.is_empty()).ok_or_else(form)?;
    if value.is_empty() {
        return Err(form());
    }
    let root = parse(text).ok_or(SetError::Unreadable)?;
    let span = parse(value).ok_or_else(|| SetError::Value { path: path.to_string() })?.span;
    // Without comments, which could hide what follows.
    let value = &value[span];
    let mut node = &root;
    for (depth, step) in steps.iter().enumerate() {
        if let Some(next) = child(node, step) {
            node = next;
            continue;
        }
        let stuck = |message: String| SetError::Path { path: path.to_string(), message };
        return match (step, &node.parts) {
            (Step::Field(_), Parts::Fields(_)) => {
                let mut written = value.to_string();
                for later in steps[depth + 1..].iter().rev() {
                    match later {
                        Step::Field(name) => written = format!("({name}: {written})"),
                        Step::Item(_) => return Err(stuck("this list does not exist".into())),
                    }
                }
                let Step::Field(name) = step else { return Err(form()) };
                let open = node.span.start + text[node.span.clone()].find('(').unwrap_or(0) + 1;
                Ok(format!("{}{name}: {written}, {}", &text[..open], &text[open..]))
            }
            (Step::Item(i), Parts::Items(items)) => {
                Err(stuck(format!("item {i} does not exist; the list has {} (counted from 0)", items.len())))
            }
            (Step::Item(_), _) => {
                Err(stuck(format!("`{}` is not a list", first_line(&text[node.span.clone()]))))
            }
            (Step::Field(name), Parts::Items(items)) => {
                let last = items.len().saturating_sub(1);
                Err(stuck(format!("a list has no field `{name}`; its items are [0] to [{last}]")))
            }
            (Step::Field(name), Parts::Scalar) => {
                Err(stuck(format!("`{}` has no field `{name}`", first_line(&text[node.span.clone()]))))
            }
        };
    }
    Ok(format!("{}{value}{}", &text[..node.span.start], &text[node.span.end..]))
}

/// Returns the first line of a value, for error messages.
fn first_line(value: &str) -> String {
    match value.split_once('\n') {
        Some((first, _)) => format!("{first}…"),
        None => value.to_string(),
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// The number of open brackets.
    depth: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip(&mut self, token: char) -> Option<()> {
        self.rest().starts_with(token).then(|| self.at += token.len_utf8())
    }

    /// Skips spaces and comments.
    fn blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if trimmed.starts_with("/*") {
                // Block comments nest.
                let (mut depth, mut i) = (0usize, 0);
                let bytes = trimmed.as_bytes();
                while i < bytes.len() {
                    match bytes.get(i..i + 2) {
                        Some(b"/*") => (depth, i) = (depth + 1, i + 2),
                        Some(b"*/") => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
                self.at += i;
            } else {
                return;
            }
        }
    }

    fn word(&mut self) -> Option<Range<usize>> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_-+.".contains(c))).unwrap_or(rest.len());
        (end > 0).then(|| {
            self.at += end;
            self.at - end..self.at
        })
    }

    /// Parses a name. A raw one begins with `r#`, which is not a part of it.
    fn name(&mut self) -> Option<Range<usize>> {
        if self.rest().starts_with("r#") {
            self.at += 2;
        }
        self.word()
    }

    fn value(&mut self) -> Option<Node> {
        let start = self.at;
        let node = |end, parts| Some(Node { span: start..end, parts });
        match self.rest().chars().next()? {
            '"' => {
                self.string()?;
                node(self.at, Parts::Scalar)
            }
            // Bytes are written like strings.
            'b' if ["b\"", "b'", "br\"", "br#"].iter().any(|s| self.rest().starts_with(s)) => {
                self.at += 1;
                self.value()?;
                node(self.at, Parts::Scalar)
            }
            'r' if ["r\"", "r#\"", "r##"].iter().any(|s| self.rest().starts_with(s)) => {
                let hashes = self.rest()[1..].chars().take_while(|c| *c == '#').count();
                let close = format!("\"{}", "#".repeat(hashes));
                let body = self.at + 2 + hashes;
                self.at = body + self.text.get(body..)?.find(&close)? + close.len();
                node(self.at, Parts::Scalar)
            }
            '\'' => {
                self.at += 1;
                self.skip('\\');
                self.at += self.rest().chars().next()?.len_utf8();
                // The rest of an escape, such as `41` of `\x41`.
                self.at += self.rest().find('\'')? + 1;
                node(self.at, Parts::Scalar)
            }
            '{' => {
                self.map()?;
                node(self.at, Parts::Scalar)
            }
            '[' => {
                let parts = self.sequence(']')?;
                node(self.at, parts)
            }
            '(' => {
                let parts = self.sequence(')')?;
                node(self.at, parts)
            }
            _ => {
                self.name()?;
                let end = self.at;
                self.blank();
                if self.rest().starts_with('(') {
                    let parts = self.sequence(')')?;
                    node(self.at, parts)
                } else {
                    self.at = end;
                    node(end, Parts::Scalar)
                }
            }
        }
    }

    fn string(&mut self) -> Option<()> {
        self.skip('"')?;
        loop {
            let c = self.rest().chars().next()?;
            self.at += c.len_utf8();
            match c {
                '\\' => self.at += self.rest().chars().next()?.len_utf8(),
                '"' => return Some(()),
                _ => {}
            }
        }
    }

    /// Counts an open bracket; `None` if it is too deep: deeper recursion would overflow the stack.
    fn open(&mut self) -> Option<()> {
        self.depth += 1;
        self.at += 1;
        (self.depth <= MAX_DEPTH).then_some(())
    }

    /// Passes over a map. No value of a recipe is one, but a sweep may list anything.
    fn map(&mut self) -> Option<()> {
        self.open()?;
        loop {
            self.blank();
            if self.skip('}').is_some() {
                break;
            }
            self.value()?;
            self.blank();
            self.skip(':')?;
            self.blank();
            self.value()?;
            self.blank();
            if self.skip(',').is_none() {
                self.skip('}')?;
                break;
            }
        }
        self.depth -= 1;
        Some(())
    }

    /// Parses the parts between brackets. Parentheses around named values give fields, everything else gives
    /// items.
    fn sequence(&mut self, close: char) -> Option<Parts> {
        self.open()?;
        let (mut fields, mut items) = (Vec::new(), Vec::new());
        loop {
            self.blank();
            if self.skip(close).is_some() {
                break;
            }
            let before = self.at;
            let named = (close == ')').then(|| self.name()).flatten().and_then(|span| {
                self.blank();
                self.skip(':').map(|()| span)
            });
            match named {
                Some(name_span) => {
                    self.blank();
                    let name = self.text[name_span.clone()].to_string();
                    fields.push(Field { name, name_span, value: self.value()? });
                }
                None => {
                    self.at = before;
                    items.push(self.value()?);
                }
            }
            self.blank();
            if self.skip(',').is_none() {
                self.skip(close)?;
                break;
            }
        }
        self.depth -= 1;
        Some(if items.is_empty() && close == ')' { Parts::Fields(fields) } else { Parts::Items(items) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r##"#![enable(implicit_some)]
Recipe( // a comment with ) and "
    name: "a \" name)", /* nested /* comment */ */
    objective: [
        (term: InfoNce(temperature: 0.2), weight: 1e-1),
        (term: ProtoNce()),
    ],
    raw: r#"x"y"#, tuple: (1, -2.5), c: ')',
)"##;

    fn at(path: &str) -> Option<&'static str> {
        find(&parse(TEXT).unwrap(), path).map(|n| &TEXT[n.span.clone()])
    }

    #[test]
    fn every_value_is_found_at_its_position() {
        assert_eq!(at("name"), Some(r#""a \" name)""#));
        assert_eq!(at("objective[0].term.temperature"), Some("0.2"));
        assert_eq!(at("objective[0].weight"), Some("1e-1"));
        assert_eq!(at("objective[1].term"), Some("ProtoNce()"));
        assert_eq!(at("raw"), Some(r##"r#"x"y"#"##));
        assert_eq!((at("tuple[1]"), at("c")), (Some("-2.5"), Some("')'")));
        assert_eq!(
            (at("nothing"), at("objective[2]"), at("name.x"), at("objective[x]")),
            (None, None, None, None)
        );
        let root = parse(TEXT).unwrap();
        assert_eq!(&TEXT[nearest(&root, "objective[1].term.negatives")], "ProtoNce()");
        let offset = TEXT.find("0.2").unwrap();
        assert_eq!(&TEXT[value_at(&root, offset + 3).span.clone()], "0.2");
    }

    /// RON accepts all of these, so that an error about another value needs its position behind them.
    #[test]
    fn unusual_forms_are_passed_over() {
        let bytes = [r##"br#"x"y"#"##, r#"b"x\"y""#, "b'x'", r#"br"x""#];
        let maps = ["{}", "{1: \"}\", 'a': (x: [2]), \"b\": {2: 3,},}"];
        let others = [r"'\''", r"'\x41'", r"'\u{41}'", "0xf_f", "r#type", "r#Name(r#type: 1)", "(r#a: 1)"];
        for form in bytes.into_iter().chain(maps).chain(others) {
            let text = format!("#![enable(unwrap_newtypes)] S(a: {form}, r#last: [{form}, 7])");
            let root = parse(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(&text[find(&root, "a").unwrap().span.clone()], form);
            assert_eq!(&text[nearest(&root, "last[1]")], "7", "{text}");
            assert!(ron::from_str::<ron::Value>(&text).is_ok(), "{text}");
        }
        assert_eq!(parse(&"{1:".repeat(100_000)), None);
    }

    #[test]
    fn values_are_replaced_or_inserted() {
        let text = "Recipe(a: 1, list: [1, 2], train: (epochs: 3))";
        assert_eq!(set(text, "train.epochs=5").unwrap(), "Recipe(a: 1, list: [1, 2], train: (epochs: 5))");
        assert_eq!(set(text, "list[1]=7").unwrap(), "Recipe(a: 1, list: [1, 7], train: (epochs: 3))");
        assert_eq!(set(text, "list.1=7"), set(text, "list[1]=7"));
        assert_eq!(
            set(text, "train.seed=5").unwrap(),
            "Recipe(a: 1, list: [1, 2], train: (seed: 5, epochs: 3))"
        );
        assert_eq!(set("Recipe()", "a.b=X(c: 1)").unwrap(), "Recipe(a: (b: X(c: 1)), )");
        assert!(parse(&set("Recipe()", "a.b=2").unwrap()).is_some());
    }

    #[test]
    fn impossible_assignments_say_why() {
        let message = |assignment| set("Recipe(a: 1, list: [1])", assignment).unwrap_err().to_string();
        assert!(message("a").contains("path=value"));
        assert!(message("a=").contains("path=value"));
        assert!(message("a.b=1").contains("`1` has no field `b`"));
        assert!(message("list[3]=1").contains("item 3 does not exist; the list has 1"));
        assert!(message("a[0]=1").contains("not a list"));
        assert!(message("list.b=1").contains("no field `b`; its items are [0] to [0]"));
        assert!(message("\"a=1\"").contains("path=value"));
        assert_eq!(set("Recipe(", "a=1"), Err(SetError::Unreadable));
        let deep = format!("a={}", "(".repeat(100_000));
        for assignment in ["a=(", "a=1)", "a=1, b: 2", "a=\"", "a=/* x", "b=[1, 2", &deep] {
            let error = set("Recipe(a: 1)", assignment).unwrap_err();
            let path = assignment[..1].to_string();
            assert_eq!(error, SetError::Value { path });
            assert_eq!(error.span(assignment), 2..assignment.len());
        }
        assert_eq!(set("Recipe(a: 1, c: 2)", "a=3 // all").unwrap(), "Recipe(a: 3, c: 2)");
    }
}
