//! The recipes of a run whose recipe was changed on request.

use crate::compare;
use crate::retention::supersede;
use crate::run_dir::RunDir;
use pauc_models::weights::TensorFile;
use pauc_traits::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One of the recipes of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipeSince {
    /// The number of steps taken before the first step of this recipe.
    pub since: u64,
    /// The hash of the run while it has this recipe: see [`History::hash`].
    pub hash: String,
    /// The values that differ from the recipe before, as `--set` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<String>,
    /// The resolved recipe, except where another file holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<String>,
}

/// The recipes of a run, oldest first; empty if its recipe was never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History {
    recipes: Vec<RecipeSince>,
}

impl History {
    /// Returns whether the run has the recipe that it began with.
    pub fn is_empty(&self) -> bool {
        self.recipes.is_empty()
    }

    /// Returns the recipes, oldest first.
    pub fn recipes(&self) -> &[RecipeSince] {
        &self.recipes
    }

    /// Returns the hash of a run with these recipes; `None` if the recipe was never changed. Each change hashes the
    /// hash before it, the step and the new recipe, so that equal hashes mean equal recipes at equal steps.
    pub fn hash(&self) -> Option<&str> {
        self.recipes.last().map(|r| r.hash.as_str())
    }

    /// Returns the hash of the recipe that the run began with, if the recipe was changed.
    pub fn first_hash(&self) -> Option<&str> {
        self.recipes.first().map(|r| r.hash.as_str())
    }

    /// Returns the step since which the run has its newest recipe.
    pub fn since(&self) -> Option<u64> {
        self.recipes.last().map(|r| r.since)
    }

    /// Returns these recipes and a new one after `step` steps. `before` is the newest recipe until now, with the run's
    /// hash. Recipes without a step are left out.
    pub(crate) fn changed(&self, step: u64, before: RecipeText<'_>, now: RecipeText<'_>) -> Self {
        let mut recipes = self.recipes.clone();
        if recipes.is_empty() {
            let hash = before.hash.to_string();
            recipes.push(RecipeSince { since: 0, hash, set: Vec::new(), resolved: None });
        }
        if let Some(last) = recipes.last_mut() {
            last.resolved = Some(before.resolved.into());
        }
        while recipes.len() > 1 && recipes.last().is_some_and(|r| r.since >= step) {
            recipes.pop();
        }
        let count = recipes.len();
        let Some(last) = recipes.last_mut() else { return Self::default() };
        let last_text = last.resolved.as_deref().unwrap_or_default();
        if last_text == now.resolved {
            last.resolved = None;
            return if count == 1 { Self::default() } else { History { recipes } };
        }
        let chained = format!("{} until step {step}, then {}", last.hash, now.hash);
        let hash = blake3::hash(chained.as_bytes()).to_hex()[..8].to_string();
        let changes = compare::changes(last_text, now.resolved).into_iter();
        let set = changes.filter_map(|c| Some(format!("{}={}", c.path, c.other?))).collect();
        recipes.push(RecipeSince { since: step, hash, set, resolved: None });
        History { recipes }
    }

    /// Returns these recipes without their texts, for `run.json`.
    pub(crate) fn without_texts(&self) -> Self {
        let plain = |r: &RecipeSince| RecipeSince { resolved: None, ..r.clone() };
        History { recipes: self.recipes.iter().map(plain).collect() }
    }

    /// Reads the recipes of the run that wrote a checkpoint.
    fn of(metadata: &BTreeMap<String, String>) -> Option<Self> {
        match metadata.get(KEY) {
            None => Some(Self::default()),
            Some(text) => serde_json::from_str(text).ok(),
        }
    }
}

/// The key of the history in a checkpoint's metadata.
pub(crate) const KEY: &str = "history";

/// The hash and the text of a resolved recipe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecipeText<'a> {
    pub hash: &'a str,
    pub resolved: &'a str,
}

/// What the metadata of a checkpoint say of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The number of steps taken.
    pub step: u64,
    /// The hash of the run.
    pub hash: String,
    /// The seed.
    pub seed: String,
    /// The resolved recipe; checkpoints of version 0.2.0 have none.
    pub resolved: Option<String>,
    /// The recipes of the run.
    pub history: History,
}

impl Written {
    /// Reads the metadata of a file, which need not be intact; `None` if it is not a checkpoint.
    pub fn of_file(path: &Path) -> Option<Self> {
        Self::of(&TensorFile::metadata_of(path)?)
    }

    /// As [`Written::of_file`]; `None` only if there is no file, or it is not a checkpoint.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        Ok(TensorFile::read_metadata(path)?.and_then(|metadata| Self::of(&metadata)))
    }

    /// Reads the metadata of a checkpoint.
    pub fn of(metadata: &BTreeMap<String, String>) -> Option<Self> {
        Some(Written {
            step: metadata.get("step")?.parse().ok()?,
            hash: metadata.get("recipe")?.clone(),
            seed: metadata.get("seed")?.clone(),
            resolved: metadata.get("resolved_recipe").cloned(),
            history: History::of(metadata)?,
        })
    }

    /// Returns the hash of the recipe that the run began with.
    pub fn first_hash(&self) -> &str {
        self.history.first_hash().unwrap_or(&self.hash)
    }
}

/// Returns the recipes of the run in a folder, with their texts as far as they are known.
///
/// # Errors
/// If `run.json` cannot be read.
pub fn of_run(dir: &RunDir) -> Result<History> {
    let Some(info) = dir.info()?.filter(|info| !info.recipes.is_empty()) else {
        return Ok(History::default());
    };
    let written = dir.checkpoints().into_iter().filter_map(|path| Written::of_file(&path));
    let with_texts = written.map(|w| w.history).find(|h| h.hash() == info.recipes.hash());
    Ok(with_texts.unwrap_or(info.recipes))
}

/// Writes the newest recipe of a run as `recipe.resolved.ron`, and each one before it as
/// `recipe.resolved.since-….ron`. Such files of recipes that the run no longer has are renamed.
///
/// # Errors
/// If the disk fails.
pub(crate) fn write_recipes(dir: &RunDir, resolved: &str, history: &History) -> Result<()> {
    let name = |recipe: &RecipeSince| format!("recipe.resolved.since-{}.ron", recipe.since);
    let (mut header, mut names) = (String::new(), Vec::new());
    if let Some((newest, before)) = history.recipes.split_last() {
        for recipe in before {
            if let Some(text) = &recipe.resolved {
                dir.write(&name(recipe), text)?;
            }
            names.push(name(recipe));
        }
        let (since, hash, set) = (newest.since, &newest.hash, newest.set.join(", "));
        header = format!("// Since step {since} of this run, whose hash is now {hash}. Changed: {set}\n");
        header.push_str(&format!("// Before: {}\n", names.join(", ")));
    }
    let entries = std::fs::read_dir(dir.path()).into_iter().flatten().flatten();
    for file in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let is_former = file.starts_with("recipe.resolved.since-") && file.ends_with(".ron");
        if is_former && !names.contains(&file) {
            supersede(&dir.path().join(file))?;
        }
    }
    dir.write("recipe.resolved.ron", header + resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(hash: &'a str, resolved: &'a str) -> RecipeText<'a> {
        RecipeText { hash, resolved }
    }

    const A: &str = "Recipe(lr: 1.0)";
    const B: &str = "Recipe(lr: 0.5)";
    const C: &str = "Recipe(lr: 0.1)";

    #[test]
    fn a_hash_depends_on_every_recipe_and_step() {
        let begun = History::default();
        let lower = |step| begun.changed(step, text("aa", A), text("bb", B));
        assert_eq!((begun.hash(), lower(5).first_hash(), lower(5).since()), (None, Some("aa"), Some(5)));
        let by_hand = blake3::hash(b"aa until step 5, then bb").to_hex();
        assert_eq!(lower(5).hash().unwrap(), &by_hand[..8]);
        assert_ne!(lower(5).hash(), lower(6).hash());
        let twice = lower(5).changed(9, text("bb", B), text("aa", A));
        assert_ne!(twice.hash(), Some("aa"));
        let recipes: Vec<_> = twice.recipes().iter().map(|r| (r.since, r.resolved.as_deref())).collect();
        assert_eq!(recipes, [(0, Some(A)), (5, Some(B)), (9, None)]);
        assert_eq!(twice.recipes()[1].set, ["lr=0.5"]);
    }

    #[test]
    fn a_recipe_without_a_step_is_forgotten() {
        let first = History::default().changed(5, text("aa", A), text("bb", B));
        let again = first.changed(5, text("bb", B), text("cc", C));
        assert_eq!(again, History::default().changed(5, text("aa", A), text("cc", C)));
        assert_eq!(first.changed(5, text("bb", B), text("aa", A)), History::default());
    }
}
