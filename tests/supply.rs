//! Dependencies: `deny.toml` allows their licenses and sources, and THIRD-PARTY.md lists them.
//!
//! `cargo deny` reads the same `deny.toml` and also knows advisories, for which it needs the network.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{assert_current, root};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Returns what cargo knows of every package in `Cargo.lock`, for all features and platforms.
fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--all-features", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}\n`cargo fetch` downloads what is missing");
    serde_json::from_slice(&out.stdout).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Returns the strings of a list in `deny.toml`, given the text before its bracket.
fn deny_list(before: &str) -> BTreeSet<String> {
    let file = read("deny.toml");
    let start = file.find(before).unwrap_or_else(|| panic!("deny.toml has no `{before}`")) + before.len();
    let list = &file[start..];
    let list = &list[..list.find(']').unwrap()];
    list.split('"').skip(1).step_by(2).map(String::from).collect()
}

/// Whether an SPDX expression is fulfilled by the licenses for which `allowed` is true. `AND` binds tighter than
/// `OR`; a slash is the old form of `OR`.
fn fulfilled(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (result, end) = alternatives(&words, allowed);
    assert_eq!(end, words.len(), "`{expression}` is no SPDX expression");
    result
}

/// Evaluates up to a closing parenthesis; returns the result and the number of words.
fn alternatives(words: &[&str], allowed: &dyn Fn(&str) -> bool) -> (bool, usize) {
    let (mut any, mut all, mut at) = (false, true, 0);
    while at < words.len() && words[at] != ")" {
        match words[at] {
            "AND" => {}
            "OR" => {
                any |= all;
                all = true;
            }
            "(" => {
                let (inner, length) = alternatives(&words[at + 1..], allowed);
                all &= inner;
                at += length + 1; // at the closing parenthesis
            }
            license if words.get(at + 1) == Some(&"WITH") => {
                all &= allowed(&format!("{license} WITH {}", words[at + 2]));
                at += 2;
            }
            license => all &= allowed(license),
        }
        at += 1;
    }
    (any | all, at)
}

#[test]
fn expressions_are_evaluated_as_spdx_says() {
    let allowed = |l: &str| matches!(l, "MIT" | "Zlib" | "A WITH x");
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/Apache-2.0", true),
        ("MIT AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND Zlib", true),
        ("(GPL-3.0 OR MIT) AND Zlib", true),
        ("(GPL-3.0 OR MIT) AND Unicode-3.0", false),
        ("Zlib AND (GPL-3.0 OR (MIT))", true),
        ("A WITH x", true),
        ("A WITH y OR B", false),
    ] {
        assert_eq!(fulfilled(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn every_package_has_an_allowed_license() {
    let allowed = deny_list("\nallow = [");
    let exceptions = deny_list("\nexceptions = [");
    for package in metadata()["packages"].as_array().unwrap() {
        let (name, license) = (text(package, "name"), text(package, "license"));
        let is_allowed =
            |l: &str| allowed.contains(l) || (exceptions.contains(name) && exceptions.contains(l));
        assert!(
            !license.is_empty() && fulfilled(license, &is_allowed),
            "{name} has the license `{license}`, which deny.toml does not allow"
        );
    }
}

#[test]
fn every_package_is_from_crates_io_with_a_checksum() {
    let source = "registry+https://github.com/rust-lang/crates.io-index";
    assert_eq!(
        deny_list("\nallow-registry = [").into_iter().collect::<Vec<_>>(),
        [&source["registry+".len()..]]
    );
    let banned: BTreeSet<String> = read("deny.toml")
        .lines()
        .filter_map(|l| Some(l.trim().strip_prefix("{ name = \"")?.split('"').next()?.to_string()))
        .collect();
    assert!(banned.contains("openssl-sys"), "{banned:?}");
    let lock = read("Cargo.lock");
    let mut foreign = 0;
    for package in lock.split("[[package]]").skip(1) {
        let field = |key: &str| {
            let line = package.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(" = \""));
            line.map(|v| v.trim_end_matches('"'))
        };
        let name = field("name").unwrap();
        assert!(!banned.contains(name), "deny.toml bans {name}");
        if name == "pauc" || name.starts_with("pauc-") {
            assert_eq!(field("source"), None, "{name} is a crate of this workspace");
            continue;
        }
        assert_eq!(field("source"), Some(source), "{name}");
        assert!(field("checksum").is_some_and(|c| c.len() == 64), "{name} has no checksum");
        foreign += 1;
    }
    assert!(foreign > 100, "{foreign} packages");
}

/// Returns the foreign packages that `pauc-cli` links, with any of its features and on any platform.
fn linked(metadata: &Value) -> Vec<&Value> {
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let nodes: BTreeMap<&str, &Value> = nodes.iter().map(|n| (text(n, "id"), n)).collect();
    let packages = metadata["packages"].as_array().unwrap();
    let start = packages.iter().find(|p| text(p, "name") == "pauc-cli").unwrap();
    let (mut found, mut open) = (BTreeSet::new(), vec![text(start, "id")]);
    while let Some(id) = open.pop() {
        if !found.insert(id) {
            continue;
        }
        // A kind of null is a normal dependency; the others are for tests and build scripts.
        let is_linked = |d: &&Value| d["dep_kinds"].as_array().unwrap().iter().any(|k| k["kind"].is_null());
        open.extend(nodes[id]["deps"].as_array().unwrap().iter().filter(is_linked).map(|d| text(d, "pkg")));
    }
    let mut linked: Vec<&Value> =
        packages.iter().filter(|p| found.contains(text(p, "id")) && !p["source"].is_null()).collect();
    linked.sort_by_key(|p| (text(p, "name"), text(p, "version")));
    linked
}

/// Returns the table in THIRD-PARTY.md.
fn table(packages: &[&Value]) -> String {
    let mut page = "# Third-party packages\n\n\
        The programs of a release contain these packages from crates.io: those of every feature and platform. A test\n\
        (`tests/supply.rs`) keeps the table up to date. [RELEASING.md](RELEASING.md) says how to write the texts of\n\
        their licenses into one file, which belongs beside a binary that is passed on.\n\n\
        | package | version | license |\n|---|---|---|\n"
        .to_string();
    for p in packages {
        let license = text(p, "license").replace('/', " OR ");
        page += &format!("| {} | {} | {license} |\n", text(p, "name"), text(p, "version"));
    }
    page
}

/// `PAUC_UPDATE_DOCS=1 cargo test -p pauc-cli --test supply` writes the list.
#[test]
fn third_party_packages_are_listed() {
    let metadata = metadata();
    assert_current("THIRD-PARTY.md", &table(&linked(&metadata)), "supply");
}

/// Returns the texts of licenses and notices in the source of a package.
fn license_texts(package: &Value) -> Vec<String> {
    let folder = Path::new(text(package, "manifest_path")).parent().unwrap();
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| {
        let name = p.file_name().unwrap().to_string_lossy().to_uppercase();
        let begins = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
        p.is_file() && begins.iter().any(|b| name.starts_with(b))
    });
    paths.sort();
    let read =
        |p| String::from_utf8_lossy(&std::fs::read(p).unwrap()).replace("\r\n", "\n").trim().to_string();
    paths.iter().map(read).collect()
}

/// Returns the usual text of the license of a package that has none in its source. `permission` is that of MIT.
fn usual_text(package: &Value, name: &str, permission: &str) -> String {
    let is_under = |wanted: &str| fulfilled(text(package, "license"), &|license| license == wanted);
    if is_under("MIT") {
        let authors = package["authors"].as_array().unwrap().iter().filter_map(Value::as_str);
        return format!("Copyright (c) {}\n\n{permission}", authors.collect::<Vec<_>>().join(", "));
    }
    // It is the same for all authors.
    assert!(is_under("Apache-2.0"), "{name} has no text of its license");
    read("LICENSE-APACHE")
}

/// Writes the texts of all licenses to the file that `PAUC_LICENSES` names, each text once.
#[test]
fn texts_of_licenses_can_be_written() {
    let metadata = metadata();
    let own_license = read("LICENSE-MIT");
    let permission = &own_license[own_license.find("Permission is hereby granted").unwrap()..];
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked(&metadata) {
        let name =
            format!("{} {} ({})", text(package, "name"), text(package, "version"), text(package, "license"));
        let own = license_texts(package);
        let own = if own.is_empty() { vec![usual_text(package, &name, permission)] } else { own };
        for license in own {
            texts.entry(license).or_default().push(name.clone());
        }
    }
    let rule = "=".repeat(100);
    let file: String =
        texts.iter().map(|(text, names)| format!("{}\n\n{text}\n\n{rule}\n", names.join("\n"))).collect();
    assert!(file.contains("Apache License") && file.contains("Permission is hereby granted"));
    if let Some(path) = std::env::var_os("PAUC_LICENSES") {
        std::fs::write(path, file).unwrap();
    }
}
