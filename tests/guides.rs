//! ARCHITECTURE.md, CONTRIBUTING.md and RELEASING.md match this repository.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::root;

const GUIDES: [&str; 3] = ["ARCHITECTURE.md", "CONTRIBUTING.md", "RELEASING.md"];

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Returns the words of a line that may be paths or functions.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-./()".contains(c);
    line.split(move |c| !is_part(c)).map(|word| word.trim_end_matches('.')).filter(|word| !word.is_empty())
}

/// Returns a word as a path in the repository, if it is one: a file with its folder, or a folder with a
/// trailing slash.
fn path(word: &str) -> Option<&str> {
    let word = word.trim_matches(['(', ')']);
    let (folder, name) = word.rsplit_once('/')?;
    // Neither a URL nor a build output.
    let is_ours = !folder.is_empty() && !word.starts_with('/') && !word.starts_with("target/");
    (is_ours && (name.is_empty() || name.contains('.'))).then_some(word)
}

/// Returns the name of a function, written `name()`.
fn function(word: &str) -> Option<&str> {
    let name = word.strip_suffix("()")?;
    (!name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(name)
}

#[test]
fn files_and_functions_that_the_guides_name_exist() {
    let (mut files, mut functions) = (0, 0);
    for guide in GUIDES {
        for line in read(guide).lines() {
            let paths: Vec<&str> = words(line).filter_map(path).collect();
            for path in &paths {
                assert!(root().join(path).exists(), "{guide} names {path}, which does not exist: {line}");
            }
            files += paths.len();
            let sources: Vec<&&str> = paths.iter().filter(|path| path.ends_with(".rs")).collect();
            for name in words(line).filter_map(function) {
                let is_defined = |path: &&&str| {
                    let source = read(path);
                    source.contains(&format!("fn {name}(")) || source.contains(&format!("fn {name}<"))
                };
                assert!(
                    sources.iter().any(is_defined),
                    "{guide}: no file of its line has `fn {name}`: {line}"
                );
                functions += 1;
            }
        }
    }
    // A change of format would make this test pass without checking anything.
    assert!(files > 80 && functions > 50, "only {files} files and {functions} functions were recognized");
}

#[test]
fn words_are_classified() {
    let line = "| what | `pauc-train/src/step.rs` | `train_step()`: clips, and/or not. See docs/src/. |";
    assert_eq!(words(line).filter_map(path).collect::<Vec<_>>(), ["pauc-train/src/step.rs", "docs/src/"]);
    let link = "[Tests](docs/src/testing.md)";
    assert_eq!(words(link).filter_map(path).collect::<Vec<_>>(), ["docs/src/testing.md"]);
    assert_eq!(words(line).filter_map(function).collect::<Vec<_>>(), ["train_step"]);
}

/// The crates from the bottom up, as ARCHITECTURE.md draws them.
const LAYERS: [&[&str]; 8] = [
    &["pauc-kernels"],
    &["pauc-cuda"],
    &["pauc-traits"],
    &["pauc-distributed"],
    &["pauc-models", "pauc-losses", "pauc-cluster", "pauc-data", "pauc-probes", "pauc-report"],
    &["pauc-train"],
    &["pauc"],
    &["pauc-cli"],
];

/// Returns a crate's folder in the repository.
fn folder(name: &str) -> &str {
    if name == "pauc" { "." } else { name }
}

fn layer(name: &str) -> usize {
    let layer = LAYERS.iter().position(|layer| layer.contains(&name));
    layer.unwrap_or_else(|| panic!("ARCHITECTURE.md has no place for {name}"))
}

#[test]
fn crates_depend_only_on_lower_layers() {
    let picture = read("ARCHITECTURE.md");
    let mut edges = 0;
    for name in LAYERS.concat() {
        assert!(words(&picture).any(|word| word == name), "ARCHITECTURE.md does not draw {name}");
        let manifest = read(&format!("{}/Cargo.toml", folder(name)));
        let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
        let entries = section.lines().take_while(|line| !line.starts_with('['));
        for entry in entries.filter(|line| line.starts_with("pauc")) {
            let dependency = entry.split(['.', ' ']).next().unwrap_or_default();
            let beside = name == "pauc-probes" && ["pauc-cluster", "pauc-data"].contains(&dependency);
            assert!(layer(dependency) < layer(name) || beside, "{name} uses {dependency}");
            edges += 1;
        }
    }
    assert!(edges > 20, "only {edges} dependencies were found");
}

#[test]
fn crates_without_a_stable_interface_say_so() {
    for name in LAYERS.concat().into_iter().filter(|name| !["pauc", "pauc-traits", "pauc-cli"].contains(name))
    {
        let manifest = read(&format!("{name}/Cargo.toml"));
        let description = manifest.lines().find(|line| line.starts_with("description")).unwrap_or_default();
        assert!(description.contains("(internal"), "{name}: {description}");
        let head = read(&format!("{name}/src/lib.rs"));
        let head: Vec<&str> = head.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(
            head.iter().take(6).any(|line| line.contains("Internal to pauc")),
            "{name}/src/lib.rs does not say so"
        );
    }
}

#[test]
fn commands_of_just_that_the_guides_name_exist() {
    let justfile = read("justfile");
    let mut named = 0;
    for guide in GUIDES {
        let text = read(guide);
        for rest in text.split("`just ").skip(1) {
            let name = rest.split(['`', ' ']).next().unwrap_or_default();
            let is_recipe =
                |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([':', ' ']));
            assert!(justfile.lines().any(is_recipe), "{guide} names `just {name}`, which does not exist");
            named += 1;
        }
    }
    assert!(named > 5, "only {named} commands were found");
}
