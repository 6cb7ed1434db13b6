//! Every shipped recipe, in its short form, gives the stored losses and metrics.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::{only_run, pauc_with, recipes, root, short_form};
use std::fmt::Write;

/// Rounds a number to the digits that are the same with another math library after fifteen steps.
fn number(v: &serde_json::Value, digits: usize) -> String {
    v.as_f64().map_or("none".into(), |v| format!("≈{digits}≈{v}"))
}

/// Returns the text with its numbers rounded, or the stored number if it is within one unit of the last
/// digit. Half a unit is the rounding of the stored number; the other half allows for another math library,
/// which may round a number at the edge to either side.
fn rounded(text: &str, stored: &str) -> String {
    let mut rounded = String::new();
    let mut stored = stored.lines();
    for line in text.lines() {
        let mut before = stored.next().unwrap_or_default().split(' ');
        let round = |word: &str| {
            let before = before.next().unwrap_or_default();
            let Some((digits, value)) = word.strip_prefix('≈').and_then(|w| w.split_once('≈')) else {
                return word.to_string();
            };
            let (digits, value): (usize, f64) = (digits.parse().unwrap(), value.parse().unwrap());
            let near = |stored: &f64| (value - stored).abs() <= 0.1f64.powi(digits as i32);
            let kept = before.parse().ok().filter(near);
            kept.map_or_else(|| format!("{value:.digits$}"), |_| before.to_string())
        };
        let _ = writeln!(rounded, "{}", line.split(' ').map(round).collect::<Vec<_>>().join(" "));
    }
    rounded
}

/// Returns the text stored under a name.
fn stored(name: &str) -> String {
    let file = root().join(format!("tests/snapshots/reproduction__{name}.snap"));
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.splitn(3, "---\n").nth(2).unwrap_or_default().to_string()
}

#[test]
fn numbers_at_the_edge_of_a_digit_match_the_stored_ones() {
    let text = "step 1 ≈2≈4.1251 ≈1≈0.2\nk ≈2≈1.5\n";
    assert_eq!(rounded(text, "step 1 4.12 0.3\nk 1.52"), "step 1 4.12 0.3\nk 1.50\n");
    assert_eq!(rounded(text, ""), "step 1 4.13 0.2\nk 1.50\n");
    let all = recipes();
    assert!(all.iter().all(|r| !stored(r.file_stem().unwrap().to_str().unwrap()).is_empty()));
}

#[test]
fn shipped_recipes_reproduce_their_losses() {
    for recipe in recipes() {
        let name = recipe.file_stem().unwrap().to_str().unwrap().to_string();
        let out = tempfile::tempdir().unwrap();
        let mut args = vec!["run".to_string(), recipe.display().to_string()];
        args.extend(["--out".to_string(), out.path().display().to_string()]);
        args.extend(short_form(&recipe));
        // Instruction sets round differently, which fifteen steps from random weights make visible.
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
                        let _ = write!(text, "  {} {}", t["name"].as_str().unwrap(), number(&t["value"], 2));
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
                            number(&l["concentration_mean"], 2)
                        );
                    }
                }
                "probe" => {
                    for m in event["metrics"].as_array().unwrap() {
                        // One of forty test images is 0.025, so use fewer digits than for losses.
                        let _ = writeln!(text, "{} {}", m["name"].as_str().unwrap(), number(&m["value"], 1));
                    }
                }
                _ => {}
            }
        }
        let text = rounded(&text, &stored(&name));
        insta::assert_snapshot!(name, text);
    }
}

/// The quickstart and every recipe on embedded images have stored metrics of the whole training, better than
/// random weights.
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
        // Random weights give 78.3 % and 84.0 %.
        assert!(value("knn/") > 0.80 && value("linear/") > 0.87, "{}", path.display());
        assert!(expected.metrics.values().all(|e| e.value.is_finite() && e.tolerance > 0.0));
        assert!(path.starts_with(root().join("recipes")));
    }
}
