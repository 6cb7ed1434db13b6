//! Every shipped recipe, in its short form, gives the losses and metrics that it gave before.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{only_run, pauc_with, recipes, root, short_form};
use std::fmt::Write;

/// Digits that survive another mathematical library's rounding over fifteen steps.
fn rounded(v: &serde_json::Value) -> String {
    v.as_f64().map_or("none".into(), |v| format!("{v:.2}"))
}

#[test]
fn shipped_recipes_reproduce_their_losses() {
    for recipe in recipes() {
        let name = recipe.file_stem().unwrap().to_str().unwrap().to_string();
        let out = tempfile::tempdir().unwrap();
        let mut args = vec!["run".to_string(), recipe.display().to_string()];
        args.extend(["--out".to_string(), out.path().display().to_string()]);
        args.extend(short_form(&recipe));
        // Instruction sets round differently, and fifteen steps from random weights make that visible.
        let done = pauc_with(&[("PAUC_SIMD", "portable")], &args);
        assert_eq!(done.code, 0, "{name}: {}", done.stderr);
        let run = only_run(out.path());
        assert!(run.join("report.html").is_file());
        let mut text = String::new();
        for line in std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines() {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            match event["event"].as_str().unwrap() {
                "step" => {
                    let _ = write!(text, "step {:>2}", event["step"]);
                    for t in event["terms"].as_array().unwrap() {
                        let _ = write!(text, "  {} {}", t["name"].as_str().unwrap(), rounded(&t["value"]));
                    }
                    text.push('\n');
                }
                "phase" => {
                    let _ = writeln!(text, "phase {}", event["name"].as_str().unwrap());
                }
                "clustering" => {
                    for l in event["levels"].as_array().unwrap() {
                        let _ = writeln!(
                            text,
                            "k {} concentration {}",
                            l["k"],
                            rounded(&l["concentration_mean"])
                        );
                    }
                }
                "probe" => {
                    for m in event["metrics"].as_array().unwrap() {
                        // One of forty test images is 0.025: a coarser digit than the losses'.
                        let value = m["value"].as_f64().map_or("none".into(), |v| format!("{v:.1}"));
                        let _ = writeln!(text, "{} {value}", m["name"].as_str().unwrap());
                    }
                }
                _ => {}
            }
        }
        insta::assert_snapshot!(name, text);
    }
}

/// The quickstart and every recipe on embedded images has stored metrics of its whole training, and it has learnt something.
#[test]
fn metrics_of_whole_trainings_are_stored() {
    let stored: Vec<_> = recipes()
        .into_iter()
        .filter(|r| r.parent().unwrap().ends_with("fashion-mini") || r.ends_with("quickstart.ron"))
        .collect();
    assert_eq!(stored.len(), 11);
    for recipe in stored {
        let path = pauc::train::reproduce::path_beside(&recipe);
        let expected = pauc::train::reproduce::Expectation::read(&path).unwrap_or_else(|e| panic!("{e}"));
        let value = |start: &str| {
            let found = expected.metrics.iter().find(|(name, _)| name.starts_with(start));
            found.unwrap_or_else(|| panic!("{}: no {start}", path.display())).1.value
        };
        // What an encoder with random weights gives: 78.3 % and 84.0 %.
        assert!(value("knn/") > 0.80 && value("linear/") > 0.87, "{}", path.display());
        assert!(expected.metrics.values().all(|e| e.value.is_finite() && e.tolerance > 0.0));
        assert!(path.starts_with(root().join("recipes")));
    }
}
