//! The book: its reference pages match the registry, its recipes pass the check, and its links resolve.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{assert_current, pauc, root};
use pauc::train::{codes, explain};
use pauc::traits::registry::{KINDS, Listing, catalog};
use std::path::{Path, PathBuf};

/// Returns the generated pages of the book.
fn generated_pages() -> Vec<(String, String)> {
    let page = |kind: &&str| {
        let all: Vec<_> = catalog().into_iter().filter(|l| l.kind == *kind).collect();
        (kind_page(kind), explain::page(kind, &all))
    };
    let mut pages: Vec<(String, String)> = KINDS.iter().map(page).collect();
    let terms = catalog().into_iter().filter(|l| explain::is_term(l.kind));
    pages.extend(terms.map(|l| (term_page(l.name), explain::term_page(&l))));
    let codes: Vec<_> = codes::all().map(|c| format!("## {}: {}\n\n{}\n", c.code, c.title, c.text)).collect();
    pages.push(("components/codes.md".into(), format!("# Error codes\n\n{}", codes.join("\n"))));
    pages.push(("SUMMARY.md".into(), contents()));
    pages
}

fn kind_page(kind: &str) -> String {
    format!("components/{}.md", kind.replace(' ', "-"))
}

fn term_page(name: &str) -> String {
    format!("terms/{name}.md")
}

/// Returns the book's contents. The part after the heading is generated: a page per kind, and below it the
/// pages of its terms.
fn contents() -> String {
    const HEADING: &str = "# Reference\n";
    let written = std::fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    let chapters = written.split(HEADING).next().unwrap();
    let mut contents = format!("{chapters}{HEADING}\n");
    for kind in KINDS {
        contents += &format!("- [{}]({})\n", explain::title(kind), kind_page(kind));
        for l in catalog().iter().filter(|l| l.kind == *kind && explain::is_term(kind)) {
            contents += &format!("  - [{}]({})\n", l.name, term_page(l.name));
        }
    }
    contents + "- [Error codes](components/codes.md)\n"
}

/// `list` and the book show the first line of a component's documentation alone.
#[test]
fn summaries_are_whole_sentences() {
    for listing in catalog() {
        let summary = listing.summary();
        assert!(summary.ends_with(['.', ':']), "{}: {summary:?} continues on the next line", listing.name);
    }
}

/// `PAUC_UPDATE_DOCS=1 cargo test --test docs` regenerates the pages.
#[test]
fn reference_pages_are_generated_from_the_registry() {
    for (name, text) in generated_pages() {
        assert_current(&format!("docs/src/{name}"), &text, "docs");
    }
}

#[test]
fn no_page_describes_a_removed_term() {
    for page in std::fs::read_dir(root().join("docs/src/terms")).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        let is_term = |l: &Listing| explain::is_term(l.kind) && term_page(l.name) == format!("terms/{name}");
        assert!(catalog().iter().any(is_term), "no term has the page docs/src/terms/{name}: remove it");
    }
}

/// Every snippet of a term's page is part of a recipe that passes the check.
#[test]
fn snippets_of_terms_are_valid_recipes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.ron");
    for l in catalog().into_iter().filter(|l| explain::is_term(l.kind)) {
        let start = format!("(term: {}(", l.name);
        let line = l.doc.lines().find(|line| line.contains(&start)).unwrap();
        let from = line.find(&start).unwrap();
        let snippet = line[from..].trim_end().trim_end_matches("],").trim_end_matches(']');
        let text = format!(
            "Recipe(name: \"snippet\", data: Shapes(count: 512, size: 16, classes: 4), \
             views: [(count: 2, ops: [RandomResizedCrop(size: 16)])], encoder: ConvNet(channels: [8]), \
             projector: Mlp(dims: [8]), predictor: Mlp(dims: [4, 8]), momentum_encoder: Ema(), queue: 256, \
             clusterer: KMeans(k: [20]), train: (epochs: 4, batch: 128), \
             objective: [(term: InfoNce()), {snippet}])"
        );
        std::fs::write(&path, text).unwrap();
        let checked = pauc(["check", path.to_str().unwrap()]);
        assert_eq!(checked.code, 0, "{snippet}: {}", checked.stderr);
    }
}

#[test]
fn the_binary_itself_lists_every_component() {
    let listed = pauc(["list"]);
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    for l in catalog() {
        assert!(listed.stdout.contains(&format!("  {} ", l.name)), "{} is not listed", l.name);
    }
    for name in
        ["InfoNce", "ProtoNce", "Alignment", "Uniformity", "Correlation", "KMeans", "ResNet18", "FashionMini"]
    {
        assert!(listed.stdout.contains(&format!("  {name} ")), "{name} is missing:\n{}", listed.stdout);
    }
}

#[test]
fn defaults_can_be_shown_and_every_component_has_a_summary() {
    for l in catalog() {
        assert!(l.summary().trim().len() > 10, "{} has no summary", l.name);
        for f in l.fields {
            let shown = f.default.map(|d| d()).unwrap_or_default();
            assert!(!shown.contains("cannot be shown"), "{}.{}: {shown}", l.name, f.name);
            assert!(!f.doc.trim().is_empty(), "{}.{} has no documentation", l.name, f.name);
        }
    }
}

#[test]
fn shipped_recipes_pass_every_rule_without_their_data() {
    let all = common::all_recipes();
    let of = |name: &str| all.iter().filter(|p| p.display().to_string().contains(name)).count();
    assert!(of("fashion-mini/") >= 10 && of("imagenet/") >= 7, "recipes are missing: {all:?}");
    let args = ["check", "--no-data", "--json"].map(String::from).into_iter();
    let checked = pauc(args.chain(all.iter().map(|p| p.display().to_string())));
    assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
    let results: Vec<serde_json::Value> = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(results.len(), all.len());
    for r in results {
        // E0214 would mean that the sizes were not checked.
        assert!(r["diagnostics"].as_array().unwrap().iter().all(|d| d["code"] != "E0214"), "{r}");
    }
}

#[test]
fn rules_about_sizes_are_checked_without_the_data() {
    let recipe = root().join("recipes/cifar10.ron").display().to_string();
    let with = |set: &str| pauc(["check", "--no-data", &recipe, "--set", set]);
    assert_eq!(with("train.seed=1").code, 0);
    let found = with("clusterer=KMeans(k: [50001])");
    assert_eq!(found.code, 2);
    assert!(found.stderr.contains("50001 prototypes, but only 50000"), "{}", found.stderr);
    let found = with("data=Stl10(root: \"nowhere\", train: Unlabelled)");
    assert!(found.stderr.contains("needs class labels"), "{}", found.stderr);
}

/// A Markdown page.
struct Page {
    path: PathBuf,
    /// Its lines outside of code blocks.
    prose: Vec<String>,
    text: String,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap();
        let (mut prose, mut in_code) = (Vec::new(), false);
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            } else if !in_code {
                prose.push(line.to_string());
            }
        }
        assert!(!in_code, "{}: a code block is not closed", path.display());
        Page { path, prose, text }
    }

    /// Returns the targets of its links. Text between backticks is code and has no links.
    fn links(&self) -> Vec<String> {
        let without_code = self.prose.iter().map(|line| line.split('`').step_by(2).collect::<String>());
        let links = without_code.flat_map(|line| {
            line.split("](")
                .skip(1)
                .filter_map(|rest| rest.split(')').next().map(String::from))
                .collect::<Vec<_>>()
        });
        links.collect()
    }

    /// Returns the anchors of its headings, as GitHub and mdBook name them.
    fn anchors(&self) -> Vec<String> {
        let mut anchors: Vec<String> = Vec::new();
        for line in self.prose.iter().filter(|line| line.starts_with('#')) {
            let heading = line.trim_start_matches('#').trim();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " _-".contains(*c));
            let anchor = kept.collect::<String>().to_lowercase().replace(' ', "-");
            let repeated = anchors.iter().filter(|a| **a == anchor).count();
            anchors.push(if repeated == 0 { anchor } else { format!("{anchor}-{repeated}") });
        }
        anchors
    }

    /// Returns the code blocks in a language.
    fn blocks(&self, language: &str) -> Vec<&str> {
        let start = format!("```{language}\n");
        self.text.split(&start).skip(1).filter_map(|rest| rest.split("```").next()).collect()
    }

    /// Returns the files that mdBook includes.
    fn includes(&self) -> Vec<&str> {
        self.text.split("{{#include ").skip(1).filter_map(|rest| rest.split("}}").next()).collect()
    }

    /// Resolves a path relative to its folder.
    fn target(&self, path: &str) -> PathBuf {
        let target = self.path.parent().unwrap().join(path);
        target.canonicalize().unwrap_or_else(|e| panic!("{} leads to {path}: {e}", self.path.display()))
    }
}

/// Returns the pages in a folder and, if `below`, in its subfolders.
fn pages_in(folder: &Path, below: bool) -> Vec<Page> {
    let mut pages = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() && below {
            pages.extend(pages_in(&path, below));
        } else if path.extension().is_some_and(|e| e == "md") {
            pages.push(Page::read(path));
        }
    }
    pages
}

/// Returns the pages of the book.
fn book() -> Vec<Page> {
    pages_in(&root().join("docs/src"), true)
}

#[test]
fn links_and_anchors_resolve() {
    let mut pages = book();
    for folder in [".", "benches", "golden", "pauc-cuda/emulated"] {
        pages.extend(pages_in(&root().join(folder), false));
    }
    let (mut links, mut anchors) = (0, 0);
    for page in &pages {
        page.includes().into_iter().for_each(|path| drop(page.target(path)));
        for link in page.links().into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { page.path.clone() } else { page.target(path) };
            links += 1;
            if !anchor.is_empty() {
                let known = Page::read(target).anchors();
                assert!(
                    known.iter().any(|a| a == anchor),
                    "{}: no heading {link}: {known:?}",
                    page.path.display()
                );
                anchors += 1;
            }
        }
    }
    assert!(links > 100 && anchors > 20, "only {links} links and {anchors} anchors were recognized");
}

/// `docs/pauc.css` leaves room for 114 characters in a window of 1280 pixels. What programs print is quoted as it is.
#[test]
fn lines_of_code_fit_their_page() {
    const ROOM: usize = 114;
    let mut lines = 0;
    for page in book() {
        let blocks = page.text.split("```").skip(1).step_by(2);
        for line in blocks.filter(|block| !block.starts_with("text")).flat_map(str::lines) {
            assert!(line.chars().count() <= ROOM, "{}: the page would scroll: {line}", page.path.display());
            lines += 1;
        }
    }
    assert!(lines > 300, "only {lines} lines of code were recognized");
}

#[test]
fn every_page_is_in_the_contents() {
    let folder = root().join("docs/src");
    let contents = Page::read(folder.join("SUMMARY.md")).links();
    for page in book() {
        let path = page.path.strip_prefix(&folder).unwrap().display().to_string();
        let count = contents.iter().filter(|link| **link == path).count();
        let expected = usize::from(path != "SUMMARY.md");
        assert_eq!(count, expected, "SUMMARY.md has {path} {count} times");
    }
}

/// Returns the field that starts on a line at a recipe's top level.
fn field(line: &str) -> Option<&str> {
    let (name, _) = line.split_once(": ")?;
    name.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(name)
}

/// Returns a small recipe with these fields instead of its own.
fn recipe_with(fields: &str) -> String {
    const SMALL: &[&str] = &[
        "name: \"book\"",
        "data: Shapes(count: 5000, size: 16, classes: 4)",
        "views: [(count: 2, ops: [RandomResizedCrop(size: 16)])]",
        "encoder: ResNet18(stem: Small, width: 4)",
        "projector: Mlp(dims: [8])",
        "predictor: Mlp(dims: [4, 8])",
        "objective: [(term: InfoNce()), (term: CosinePrediction())]",
        "probes: [Knn(k: 20)]",
    ];
    let given: Vec<&str> = fields.lines().filter_map(field).collect();
    let small = SMALL.iter().filter(|line| !field(line).is_some_and(|name| given.contains(&name)));
    let small: Vec<String> = small.map(|line| format!("{line},\n")).collect();
    // Snippets in the book may or may not end with a comma.
    let fields = fields.trim_end();
    let comma = if fields.ends_with(')') || fields.ends_with(']') { "," } else { "" };
    format!("Recipe(\n{}{fields}{comma}\n)", small.concat())
}

#[test]
fn recipe_snippets_in_the_book_pass_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.ron");
    let mut count = 0;
    for page in book().into_iter().chain([Page::read(root().join("README.md"))]) {
        let is_recipe = |block: &&str| !block.contains("#include") && !block.starts_with("Sweep(");
        for block in page.blocks("ron").into_iter().filter(is_recipe) {
            let is_dataset = |line: &str| line.starts_with("data: ");
            // Alternatives are checked one by one.
            let parts = if block.lines().all(is_dataset) { block.lines().collect() } else { vec![block] };
            for part in parts {
                std::fs::write(&path, recipe_with(part)).unwrap();
                let checked = pauc(["check", "--no-data", path.to_str().unwrap()]);
                assert_eq!(checked.code, 0, "{}: {part}\n{}", page.path.display(), checked.stderr);
                count += 1;
            }
        }
    }
    assert!(count >= 10, "only {count} parts of recipes were recognized");
}

/// Their recipes are those of `recipes/`, seen from a folder in it.
#[test]
fn sweeps_in_the_book_pass_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sweep.ron");
    let mut count = 0;
    for page in book() {
        for block in page.blocks("ron").into_iter().filter(|block| block.starts_with("Sweep(")) {
            let recipes = format!("\"{}/", root().join("recipes").display());
            std::fs::write(&path, block.replace("\"../", &recipes)).unwrap();
            let checked =
                pauc(["sweep", path.to_str().unwrap(), "--dry-run", "--out", "target/no-such-folder"]);
            assert_eq!(checked.code, 0, "{}: {block}\n{}", page.path.display(), checked.stderr);
            count += 1;
        }
    }
    assert!(count >= 2, "only {count} sweeps were recognized");
}
