//! Changes recipes at random, along their grammar. A change replaces a value, a name, a field or an item with
//! a plausible mistake or with something hostile.

use pauc::train::recipe_text::{Node, Parts, parse};
use pauc::traits::registry::{Listing, catalog};
use pauc_testing::random::Random;
use std::ops::Range;

/// Numbers at and beyond the ends of every type that a recipe reads.
const NUMBERS: &[&str] = &[
    "0",
    "-0.0",
    "1",
    "-1",
    "2",
    "7",
    "255",
    "65536",
    "1000000",
    "2147483647",
    "-2147483648",
    "4294967295",
    "4294967296",
    "1000000000000",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "-9223372036854775808",
    "0.5",
    "1e-300",
    "5e-324",
    "1e30",
    "3.5e38",
    "1e300",
    "1.8e308",
    "1e999",
    "NaN",
    "inf",
    "-inf",
    "0x10",
    "1_000",
    "1.",
    ".5",
    "00",
    "--1",
    "1e",
    "1u8",
    "0.1f32",
];

/// Values of other types, and texts that are none.
const VALUES: &[&str] = &[
    "()",
    "[]",
    "(())",
    "[[]]",
    "{}",
    "{1: 2}",
    "None",
    "Some(1)",
    "Some(None)",
    "true",
    "'x'",
    "\"\"",
    "\"..\"",
    "\"\\u{0}\"",
    "\"\\u{1b}[31m\"",
    "\"a/b\"",
    "\"/dev/null\"",
    "\"äöü\"",
    "\"\\u{202e}x\"",
    "r#\"x\"#",
    "r\"",
    "\"",
    "/*",
    "//",
    "#![enable(unwrap_newtypes)]",
    "Steps(0)",
    "Epochs(0)",
    "Epochs(18446744073709551615)",
    "Fraction(0.5)",
    "Fraction(2.0)",
    "Linear(from: 0.0, to: 1.0, over: Epochs(1))",
    "b\"x\"",
    ":",
    ",",
    "(",
    ")",
    "[",
    "]",
    "Self",
    "r#fn",
    "\u{1f}E0102\u{1f}x\u{1f}\u{1f}\u{1f}\u{1f}",
];

/// What is put in front of, into or behind the text as bytes.
const BYTES: &[&[u8]] = &[
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xff",
    b"\x80",
    b"\xc3",
    b"\0",
    b"\r\n",
    b"\r",
    b"\t",
    "\u{a0}".as_bytes(),
    "\u{2028}".as_bytes(),
    "\u{202e}".as_bytes(),
    "é".as_bytes(),
    "𝟙".as_bytes(),
    b"#!",
    b"/* /* */",
    b"\x1b[2J",
];

/// Makes mutants of the recipes that it holds.
pub struct Mutator {
    seeds: Vec<String>,
    components: Vec<Listing>,
}

impl Mutator {
    /// Creates a mutator that begins with these recipes.
    pub fn new(seeds: Vec<String>) -> Self {
        Mutator { seeds, components: catalog() }
    }

    /// Returns a mutant: a recipe with one to five changes, as the bytes of a file.
    pub fn mutant(&self, random: &mut Random) -> Vec<u8> {
        let mut text = random.pick(&self.seeds);
        for _ in 0..1 + random.below(5) {
            text = self.change(&text, random);
        }
        let mut bytes = text.into_bytes();
        if random.one_in(10) {
            let within = random.below(bytes.len() + 1);
            let at = random.pick(&[0, within, bytes.len()]);
            bytes.splice(at..at, random.pick(BYTES).iter().copied());
        }
        bytes
    }

    /// Makes one change. A text that is no longer RON is changed by characters.
    fn change(&self, text: &str, random: &mut Random) -> String {
        let Some(root) = parse(text) else { return change_characters(text, random) };
        let mut nodes = Vec::new();
        collect(&root, &mut nodes);
        let node = random.pick(&nodes);
        match random.below(12) {
            0..=2 => replace(text, &scalar(&nodes, random).span, random.pick(NUMBERS)),
            3 => replace(text, &node.span, random.pick(VALUES)),
            4 => replace(text, &node.span, &self.component(random)),
            5 => self.splice(text, node, random),
            6 => replace(text, &name(text, node), &self.name(random)),
            7 => rename_field(text, node, &self.name(random)),
            8 => replace(text, &node.span, &nest(&text[node.span.clone()], random)),
            9 => delete_part(text, node, random),
            10 => repeat_part(text, node, random),
            _ => change_characters(text, random),
        }
    }

    /// Returns a component with some of its fields, at their defaults or at other values.
    fn component(&self, random: &mut Random) -> String {
        let listing = &self.components[random.below(self.components.len())];
        let mut fields = Vec::new();
        for field in listing.fields {
            let value = match field.default {
                Some(_) if random.one_in(2) => continue,
                Some(shown) if random.one_in(2) => shown(),
                _ if random.one_in(2) => random.pick(VALUES).to_string(),
                _ if random.one_in(2) => format!("[{}, {}]", random.pick(NUMBERS), random.pick(NUMBERS)),
                _ => random.pick(NUMBERS).to_string(),
            };
            fields.push(format!("{}: {value}", field.name));
        }
        format!("{}({})", listing.name, fields.join(", "))
    }

    /// Writes a value of another recipe in place of this one.
    fn splice(&self, text: &str, node: &Node, random: &mut Random) -> String {
        let other = random.pick(&self.seeds);
        let Some(root) = parse(&other) else { return text.into() };
        let mut nodes = Vec::new();
        collect(&root, &mut nodes);
        let from = random.pick(&nodes).span.clone();
        replace(text, &node.span, &other[from])
    }

    /// Returns the name of a component or field, perhaps misspelled.
    fn name(&self, random: &mut Random) -> String {
        let listing = &self.components[random.below(self.components.len())];
        let mut name = match listing.fields {
            [] => listing.name.to_string(),
            fields if random.one_in(2) => fields[random.below(fields.len())].name.to_string(),
            _ => listing.name.to_string(),
        };
        if random.one_in(3) {
            name.remove(random.below(name.len()));
        }
        if random.one_in(6) {
            let length = 1 << random.below(16);
            name = random.pick(&["_".into(), "Ö".into(), "Fn".into(), "x".repeat(length)]);
        }
        name
    }
}

/// Collects a value and all values in it.
fn collect<'a>(node: &'a Node, all: &mut Vec<&'a Node>) {
    all.push(node);
    match &node.parts {
        Parts::Scalar => {}
        Parts::Fields(fields) => fields.iter().for_each(|f| collect(&f.value, all)),
        Parts::Items(items) => items.iter().for_each(|item| collect(item, all)),
    }
}

/// Returns one of the scalars, most of which are numbers.
fn scalar<'a>(nodes: &[&'a Node], random: &mut Random) -> &'a Node {
    let scalars: Vec<_> = nodes.iter().copied().filter(|n| n.parts == Parts::Scalar).collect();
    if scalars.is_empty() { random.pick(nodes) } else { random.pick(&scalars) }
}

fn replace(text: &str, range: &Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..range.start], &text[range.end..])
}

/// Returns the range of the name in front of the parentheses of a value, which may be empty.
fn name(text: &str, node: &Node) -> Range<usize> {
    let length = text[node.span.clone()].find(['(', '[']).unwrap_or(node.span.len());
    node.span.start..node.span.start + length
}

fn rename_field(text: &str, node: &Node, name: &str) -> String {
    match &node.parts {
        Parts::Fields(fields) if !fields.is_empty() => {
            replace(text, &fields[name.len() % fields.len()].name_span, name)
        }
        _ => text.into(),
    }
}

/// Puts a value into brackets, sometimes very many of them, sometimes open ones.
fn nest(value: &str, random: &mut Random) -> String {
    let (open, close) = random.pick(&[
        ("(", ")"),
        ("[", "]"),
        ("Some(", ")"),
        ("Mlp(dims: ", ")"),
        ("Subset(of: ", ")"),
        ("{1: ", "}"),
        ("/* ", " */"),
        ("[(", ")]"),
    ]);
    let depth = random.pick(&[1, 2, 3, 60, 127, 128, 129, 2_000, 50_000]);
    let closed = if random.one_in(3) { 0 } else { depth };
    format!("{}{value}{}", open.repeat(depth), close.repeat(closed))
}

/// Returns the ranges of the fields or items of a value.
fn parts(node: &Node) -> Vec<Range<usize>> {
    match &node.parts {
        Parts::Scalar => Vec::new(),
        Parts::Fields(fields) => fields.iter().map(|f| f.name_span.start..f.value.span.end).collect(),
        Parts::Items(items) => items.iter().map(|item| item.span.clone()).collect(),
    }
}

/// Deletes a field or item with the comma behind it.
fn delete_part(text: &str, node: &Node, random: &mut Random) -> String {
    let parts = parts(node);
    if parts.is_empty() {
        return replace(text, &node.span, "");
    }
    let mut part = random.pick(&parts);
    if text[part.end..].starts_with(',') && !random.one_in(4) {
        part.end += 1;
    }
    replace(text, &part, "")
}

/// Writes a field or item several times, sometimes thousands of times.
fn repeat_part(text: &str, node: &Node, random: &mut Random) -> String {
    let parts = parts(node);
    if parts.is_empty() {
        return text.into();
    }
    let part = random.pick(&parts);
    let value = format!("{}, ", &text[part.clone()]);
    let times = random.pick(&[1, 1, 2, 5, 100, 3_000]);
    let times = times.min(1 + 200_000 / value.len());
    replace(text, &(part.start..part.start), &value.repeat(times))
}

/// Deletes, doubles, inserts or cuts at a character.
fn change_characters(text: &str, random: &mut Random) -> String {
    let at = |n: usize| text.floor_char_boundary(n);
    let start = at(random.below(text.len() + 1));
    let end = at((start + random.below(12)).min(text.len())).max(start);
    match random.below(5) {
        0 => replace(text, &(start..end), ""),
        1 => replace(text, &(start..start), &text[start..end]),
        2 => text[..start].into(),
        3 => replace(text, &(start..start), random.pick(VALUES)),
        _ => replace(
            text,
            &(start..start),
            random.pick(&["(", ")", "[", "]", ",", ":", "\"", "\n", "Ω", "-", "."]),
        ),
    }
}
