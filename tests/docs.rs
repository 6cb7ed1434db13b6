//! The book's reference pages say what the registry says, and every recipe in the book is one.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{pauc, root};
use pauc::train::{codes, explain};
use pauc::traits::registry::{KINDS, catalog};

/// `PAUC_UPDATE_DOCS=1 cargo test --test docs` writes the pages anew.
#[test]
fn reference_pages_are_generated_from_the_registry() {
    let folder = root().join("docs/src");
    let update = std::env::var_os("PAUC_UPDATE_DOCS").is_some();
    let mut pages: Vec<(String, String)> = KINDS
        .iter()
        .map(|kind| {
            let all: Vec<_> = catalog().into_iter().filter(|l| l.kind == *kind).collect();
            (format!("components/{}.md", kind.replace(' ', "-")), explain::page(kind, &all))
        })
        .collect();
    let terms: Vec<_> = catalog().into_iter().filter(|l| explain::is_term(l.kind)).collect();
    pages.extend(terms.iter().map(|l| (format!("terms/{}.md", l.name), explain::term_page(l))));
    let codes: Vec<_> = codes::all().map(|c| format!("## {}: {}\n\n{}\n", c.code, c.title, c.text)).collect();
    pages.push(("components/codes.md".into(), format!("# Error codes\n\n{}", codes.join("\n"))));
    for (name, text) in pages {
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

/// The contents lists every page of a term once, and no page is of a term that is gone.
#[test]
fn the_contents_lead_to_every_term() {
    let contents = std::fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    let terms: Vec<_> = catalog().into_iter().filter(|l| explain::is_term(l.kind)).collect();
    for l in &terms {
        assert_eq!(contents.matches(&format!("  - [{0}](terms/{0}.md)\n", l.name)).count(), 1, "{}", l.name);
    }
    assert_eq!(std::fs::read_dir(root().join("docs/src/terms")).unwrap().count(), terms.len());
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
