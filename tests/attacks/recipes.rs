//! Mutated recipes through `check`: each is accepted or refused, with a code and a place, in little memory.

use crate::common::{all_recipes, root};
use crate::mutate::Mutator;
use crate::{count, limited, targets, wrong_cases};
use pauc_testing::{property, random::Random};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Recipes that one process checks. If the process dies, each is checked alone.
const BATCH: usize = 50;
/// The address space of a process. `check` needs less than a tenth of it for the largest shipped recipe.
const KIBIBYTES: usize = 4 << 20;

/// The shipped recipes.
fn mutator() -> Mutator {
    let read = |p: &PathBuf| std::fs::read_to_string(p).unwrap();
    Mutator::new(all_recipes().iter().map(read).collect())
}

/// Returns the mutant with this number. It depends on nothing but the seed and the number.
fn mutant(mutator: &Mutator, case: usize) -> Vec<u8> {
    mutator.mutant(&mut Random::new(property::seed(), case as u64))
}

/// Checks recipes in one process with limited memory. Returns what is wrong with its answer.
fn check(paths: &[PathBuf]) -> Result<(), String> {
    let mut command = limited(KIBIBYTES);
    let command = command.args(["check", "--no-data", "--json"]).args(paths).current_dir(root());
    let out = command.output().map_err(|e| e.to_string())?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    if !matches!(out.status.code(), Some(0 | 2)) || stderr.contains("panicked") {
        let end: String = stderr.chars().take(500).collect();
        return Err(format!("{}: {end}", out.status));
    }
    let answer: Value =
        serde_json::from_slice(&out.stdout).map_err(|e| format!("the answer is not JSON: {e}"))?;
    let answers = answer.as_array().ok_or("the answer is no list")?;
    if answers.len() != paths.len() {
        return Err(format!("{} answers for {} recipes", answers.len(), paths.len()));
    }
    answers.iter().try_for_each(complete)
}

/// Checks that a refusal says what, where and which code.
fn complete(answer: &Value) -> Result<(), String> {
    let found = answer["diagnostics"].as_array().ok_or("no diagnostics")?;
    let errors: Vec<&Value> = found.iter().filter(|d| d["severity"] == "error").collect();
    if answer["ok"].as_bool() != Some(errors.is_empty()) {
        return Err(format!("`ok` does not fit the errors: {answer}"));
    }
    for error in errors {
        let code = error["code"].as_str().unwrap_or("");
        if pauc::train::codes::find(code).is_none() {
            return Err(format!("no known code: {error}"));
        }
        let message = error["message"].as_str().unwrap_or("");
        // A file that is not text has no span; its message names the line.
        let has_place = error["span"].is_array() || (code == "E0108" && message.contains(": line "));
        if message.is_empty() || !has_place {
            return Err(format!("no message or no place: {error}"));
        }
    }
    Ok(())
}

/// Checks a batch of mutants; those of a batch that goes wrong are checked alone. Returns the wrong ones.
fn check_batch(mutator: &Mutator, folder: &Path, cases: std::ops::Range<usize>) -> Vec<String> {
    let paths: Vec<PathBuf> = cases.map(|case| folder.join(format!("{case}.ron"))).collect();
    let case = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    paths.iter().for_each(|path| std::fs::write(path, mutant(mutator, case(path))).unwrap());
    let mut wrong = Vec::new();
    let batch = check(&paths);
    for path in &paths {
        match if batch.is_ok() { Ok(()) } else { check(std::slice::from_ref(path)) } {
            Ok(()) => std::fs::remove_file(path).unwrap(),
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    match batch {
        Err(error) if wrong.is_empty() => vec![format!("only together, {paths:?}: {error}")],
        _ => wrong,
    }
}

#[test]
fn mutated_recipes_are_accepted_or_refused_with_a_place() {
    let (mutator, total) = (mutator(), count(2_000));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("attacks-{}", property::seed()));
    std::fs::create_dir_all(&folder).unwrap();
    let starts: Vec<usize> = (0..total).step_by(BATCH).collect();
    let wrong = wrong_cases(&starts, |&start| {
        let wrong = check_batch(&mutator, &folder, start..(start + BATCH).min(total));
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    });
    assert!(
        wrong.is_empty(),
        "of {total} recipes, with PAUC_TEST_SEED={}:\n{}",
        property::seed(),
        wrong.join("\n")
    );
    std::fs::remove_dir(&folder).unwrap();
}

#[test]
fn mutated_recipes_panic_nowhere_in_process() {
    let mutator = mutator();
    for case in 0..count(2_000) {
        targets::text::recipe(&mutant(&mutator, case));
    }
}

#[test]
fn mutants_depend_on_the_seed_alone_and_many_are_still_recipes() {
    let mutator = mutator();
    let all: Vec<_> = (0..400).map(|case| mutant(&mutator, case)).collect();
    assert!(all.iter().enumerate().all(|(case, bytes)| *bytes == mutant(&mutator, case)));
    let parsed = |bytes: &&Vec<u8>| {
        let text = std::str::from_utf8(bytes).ok();
        text.is_some_and(|t| pauc::train::recipe::Recipe::parse("m.ron", t, &[]).is_ok())
    };
    let accepted = all.iter().filter(parsed).count();
    assert!((20..380).contains(&accepted), "{accepted} of 400 are recipes");
}
