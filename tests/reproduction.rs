//! Every shipped recipe, in its short form, gives the losses and metrics that it gave before.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{only_run, pauc_with, recipes, short_form};
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
