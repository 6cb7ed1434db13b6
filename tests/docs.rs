//! The book's reference pages say what the registry says, and every recipe in the book is one.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{pauc, root};
use pauc::train::{codes, explain};
use pauc::traits::registry::{KINDS, Listing, catalog};

/// What the registry says in the book.
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

/// The book's contents. What follows the heading is generated: a page for each kind, and below it those of its terms.
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

/// `PAUC_UPDATE_DOCS=1 cargo test --test docs` writes the pages anew.
#[test]
fn reference_pages_are_generated_from_the_registry() {
    let folder = root().join("docs/src");
    let update = std::env::var_os("PAUC_UPDATE_DOCS").is_some();
    for (name, text) in generated_pages() {
        let path = folder.join(&name);
        if update {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == text,
            "{name} is out of date: run PAUC_UPDATE_DOCS=1 cargo test -p pauc-cli --test docs"
        );
    }
}

#[test]
fn no_page_is_of_a_term_that_is_gone() {
    for page in std::fs::read_dir(root().join("docs/src/terms")).unwrap() {
        let name = page.unwrap().file_name().into_string().unwrap();
        let is_term = |l: &Listing| explain::is_term(l.kind) && term_page(l.name) == format!("terms/{name}");
        assert!(catalog().iter().any(is_term), "no term has the page docs/src/terms/{name}: remove it");
    }
}

/// Every snippet of a term's page stands in a recipe that passes the check.
#[test]
fn snippets_of_terms_are_good_recipes() {
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
        // E0214 would say that the sizes were not checked.
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
    assert!(found.stderr.contains("50001 prototypes of only 50000"), "{}", found.stderr);
    let found = with("data=Stl10(root: \"nowhere\", train: Unlabelled)");
    assert!(found.stderr.contains("needs class labels"), "{}", found.stderr);
}
