//! Rebuilds what describes a run from its newest intact checkpoint.

use crate::checkpoint::verify;
use crate::history::{History, Written, write_recipes};
use crate::recipe::Recipe;
use crate::retention::set_aside;
use crate::run_dir::{RunDir, RunInfo};
use pauc_models::weights::TensorFile;
use pauc_traits::{Error, Result};
use std::path::PathBuf;

/// The description of a run.
#[derive(Debug)]
pub struct Described {
    /// The content of `run.json`.
    pub info: RunInfo,
    /// The files that were rebuilt, in a sentence; `None` if nothing had to be.
    pub rebuilt: Option<String>,
}

/// Reads the description of the run in a folder. Writes `run.json` and `recipe.resolved.ron` again if they
/// are missing, or `run.json` if it is damaged; the damaged file is renamed. If a process was killed after it had
/// changed the recipe in a checkpoint, changes both files too. Returns `None` if the folder has neither a description
/// nor an intact checkpoint.
///
/// # Errors
/// If `run.json` is damaged and there is no intact checkpoint, if another process is working on the run, or
/// if the disk fails.
pub fn describe(dir: &RunDir) -> Result<Option<Described>> {
    let info = dir.info();
    let resolved = dir.path().join("recipe.resolved.ron");
    if let (Ok(Some(info)), true) = (&info, resolved.is_file()) {
        return complete_change(dir, info.clone());
    }
    let Some((path, checkpoint)) = newest_intact(dir) else {
        return Ok(info?.map(|info| Described { info, rebuilt: None }));
    };
    let _lock = dir.lock()?;
    let mut rebuilt = Vec::new();
    let text = |key: &str| checkpoint.metadata.get(key).cloned();
    if !resolved.is_file() {
        let recipe = text("resolved_recipe").ok_or_else(|| Error::NotFound {
            path: resolved.clone(),
            remedy: format!("{} has no copy of the recipe; copy the file from another seed", path.display()),
        })?;
        write_recipes(dir, &recipe, &history_of(&checkpoint))?;
        rebuilt.push("recipe.resolved.ron".to_string());
    }
    let info = match info {
        Ok(Some(info)) => info,
        Err(e) if !matches!(e, Error::Damaged { .. }) => return Err(e),
        unusable => {
            if unusable.is_err() {
                let aside = set_aside(&dir.path().join("run.json"))?;
                rebuilt.push(format!("run.json (the damaged file is now {})", aside.display()));
            } else {
                rebuilt.push("run.json".to_string());
            }
            let info = info_of(&checkpoint, &resolved)?;
            dir.set_info(&info)?;
            info
        }
    };
    let rebuilt = format!("rebuilt {} from {}", rebuilt.join(" and "), path.display());
    Ok(Some(Described { info, rebuilt: Some(rebuilt) }))
}

/// Completes a change of the recipe that is in `last.safetensors`, but not yet in the description.
fn complete_change(dir: &RunDir, info: RunInfo) -> Result<Option<Described>> {
    let last = dir.checkpoint("last");
    let is_newer = |written: &Written| {
        let run = (info.seed.to_string(), info.first_hash());
        written.hash != info.hash && run == (written.seed.clone(), written.first_hash())
    };
    let checkpoint = || {
        Written::of_file(&last).filter(is_newer)?;
        let file = TensorFile::load(&last).ok()?;
        verify(&file, &last).ok().map(|()| file)
    };
    let Some(written) = checkpoint().and_then(|file| Written::of(&file.metadata)) else {
        return Ok(Some(Described { info, rebuilt: None }));
    };
    let _lock = dir.lock()?;
    if let Some(resolved) = &written.resolved {
        write_recipes(dir, resolved, &written.history)?;
    }
    let recipes = written.history.without_texts();
    let info = RunInfo { hash: written.hash, recipes, status: "interrupted".into(), ..info };
    dir.set_info(&info)?;
    let rebuilt = format!("completed the change of the recipe that {} begins with", last.display());
    Ok(Some(Described { info, rebuilt: Some(rebuilt) }))
}

fn history_of(checkpoint: &TensorFile) -> History {
    Written::of(&checkpoint.metadata).map_or_else(History::default, |written| written.history)
}

/// Returns the newest checkpoint that passes its hash.
fn newest_intact(dir: &RunDir) -> Option<(PathBuf, TensorFile)> {
    dir.checkpoints().into_iter().find_map(|path| {
        let file = TensorFile::load(&path).ok()?;
        verify(&file, &path).ok()?;
        Some((path, file))
    })
}

/// Returns the description that follows from a checkpoint and the run's resolved recipe. What only the
/// process knew is left empty until a process trains the run again.
fn info_of(checkpoint: &TensorFile, resolved: &std::path::Path) -> Result<RunInfo> {
    let (recipe, _) = Recipe::load(resolved, &[]).map_err(|e| Error::damaged(resolved, e.to_string()))?;
    let text = |key: &str| checkpoint.metadata.get(key).cloned().unwrap_or_default();
    let device = checkpoint.metadata.get("device").cloned();
    Ok(RunInfo {
        ranks: None,
        name: recipe.name.to_string(),
        hash: text("recipe"),
        seed: recipe.train.seed,
        status: "interrupted".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: device.unwrap_or_else(|| "cpu".into()),
        threads: 0,
        simd: String::new(),
        platform: String::new(),
        data: String::new(),
        recipe: "recipe.resolved.ron".into(),
        data_identity: None,
        changes: Vec::new(),
        recipes: history_of(checkpoint).without_texts(),
    })
}
