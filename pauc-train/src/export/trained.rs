//! A trained encoder, with everything that its files should say of it.

use super::{encoder_of, part_of};
use crate::checkpoint;
use crate::network_input::NetworkInput;
use crate::plan::{Plan, PlanError};
use crate::recipe::Recipe;
use crate::recipe_text;
use crate::run_dir::{RunDir, RunInfo};
use crate::saved_run::OpenError;
use dfdx::prelude::Cpu;
use pauc_models::weights::TensorFile;
use pauc_report::events::Log;
use pauc_traits::dataset::Place;
use pauc_traits::{Compute, EncoderConfig, Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// An encoder in a checkpoint.
pub struct TrainedEncoder {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// BLAKE3 of the checkpoint file, as in the provenance of embeddings.
    pub checkpoint_hash: String,
    /// The recipe, from the checkpoint.
    pub recipe: Recipe,
    /// Its text, with every default written out.
    pub resolved: String,
    /// The images that the encoder takes.
    pub input: NetworkInput,
    /// Whether it is the momentum encoder.
    pub momentum: bool,
    /// The encoder's tensors, see [`super::encoder`].
    pub weights: TensorFile,
    /// The projector's tensors, under its own names.
    pub projector: TensorFile,
    /// What the run's folder says, if the checkpoint is in one.
    pub run: Option<RunOf>,
}

/// The folder of the run that a checkpoint is in.
pub struct RunOf {
    /// `run.json`.
    pub info: RunInfo,
    /// `metrics.jsonl`.
    pub log: Log,
}

impl TrainedEncoder {
    /// Opens the last checkpoint of the run in a folder, or a checkpoint file. Checkpoints of older versions hold
    /// neither the recipe nor how images are normalized: then the recipe is read from their run's folder, and its
    /// data is opened, whose paths start at `place`.
    ///
    /// # Errors
    /// If there is no checkpoint, it is damaged, or it has no such encoder.
    pub fn open(run: &Path, momentum: bool, place: &Place) -> Result<Self, OpenError> {
        let checkpoint = checkpoint_of(run);
        let file = TensorFile::load(&checkpoint)?;
        checkpoint::verify(&file, &checkpoint)?;
        let weights = encoder_of(&file, &checkpoint, momentum)?;
        let text = |key: &str| file.metadata.get(key).map(String::as_str);
        let resolved = match text("resolved_recipe") {
            Some(text) => text.to_string(),
            None => recipe_beside(&checkpoint)?,
        };
        let (recipe, source) =
            Recipe::parse(&checkpoint.display().to_string(), &resolved, &[]).map_err(PlanError::Recipe)?;
        let input = match text("input") {
            Some(text) => NetworkInput::parse(text, &checkpoint)?,
            None => NetworkInput::of(&Plan::new(&Cpu::default(), recipe.clone(), source, place)?),
        };
        Ok(TrainedEncoder {
            checkpoint_hash: hash_of(&checkpoint)?,
            run: RunOf::open(&checkpoint)?,
            checkpoint,
            recipe,
            resolved,
            input,
            momentum,
            weights,
            projector: part_of(&file, if momentum { "momentum.projector." } else { "projector." })?,
        })
    }

    /// Returns the configuration of the encoder.
    pub fn config(&self) -> &dyn EncoderConfig<Cpu> {
        <Cpu as Compute>::encoder(&*self.recipe.encoder.value)
    }

    /// Returns the optimizer step of the checkpoint.
    pub fn step(&self) -> u64 {
        self.weights.metadata.get("step").and_then(|s| s.parse().ok()).unwrap_or(0)
    }

    /// Returns the description of the data: that of the run, or else the dataset's name.
    pub fn data(&self) -> &str {
        let described = self.run.as_ref().map(|run| run.info.data.as_str()).filter(|data| !data.is_empty());
        described.unwrap_or_else(|| self.recipe.data.name())
    }

    /// Returns what identifies the weights, as in the provenance of embeddings.
    pub fn provenance(&self) -> [(&'static str, String); 7] {
        let text = |key: &str| self.weights.metadata.get(key).cloned().unwrap_or_default();
        [
            ("recipe", text("recipe")),
            ("seed", text("seed")),
            ("step", text("step")),
            ("weights", self.checkpoint_hash.clone()),
            ("network", if self.momentum { "momentum.encoder" } else { "encoder" }.into()),
            ("data", self.data().into()),
            ("made by", text("made by")),
        ]
    }
}

impl RunOf {
    /// Opens the folder `RUN` of a checkpoint `RUN/checkpoints/….safetensors`, if it is there.
    fn open(checkpoint: &Path) -> Result<Option<Self>> {
        let Some(folder) = checkpoint.parent().filter(|p| p.ends_with("checkpoints")).and_then(Path::parent)
        else {
            return Ok(None);
        };
        let Some(info) = RunDir::at(folder).info()? else { return Ok(None) };
        let metrics = folder.join("metrics.jsonl");
        let log = if metrics.exists() { Log::read(&metrics)? } else { Log::default() };
        Ok(Some(RunOf { info, log }))
    }
}

/// Returns the newest checkpoint of a run's folder, or the path itself if it is not a folder.
pub fn checkpoint_of(run: &Path) -> PathBuf {
    if run.is_dir() { run.join("checkpoints/last.safetensors") } else { run.to_path_buf() }
}

/// Reads the recipe of the run that a checkpoint is in.
fn recipe_beside(checkpoint: &Path) -> Result<String> {
    let run = checkpoint.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let path = run.join("recipe.resolved.ron");
    recipe_text::read(&path).map_err(|e| Error::io(&path, e))
}

fn hash_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let hashed = File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    hashed.map_err(|e| Error::io(path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}
