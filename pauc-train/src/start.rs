//! The weights that a recipe's encoder starts from: a file, or a folder of timm or transformers.

use crate::recipe::StartWeights;
use pauc_models::pretrained;
use pauc_models::weights::TensorFile;
use pauc_traits::dataset::Place;
use pauc_traits::{Compute, Error, ImageShape, Param, Result};
use serde::Deserialize;
use std::path::Path;

/// The weights in a folder of timm or transformers.
const WEIGHTS: &str = "model.safetensors";
/// The configuration in such a folder.
const CONFIG: &str = "config.json";

/// Tensors for an encoder, and what became of the others.
#[derive(Clone, Debug)]
pub struct Start {
    /// The tensors, named as in the file.
    pub file: TensorFile,
    /// What was left out or changed, for people.
    pub notes: Vec<String>,
    /// The model that a folder says it has.
    architecture: Option<String>,
}

/// The part of `config.json` that is read. Every field may be missing.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    architecture: Option<String>,
    pretrained_cfg: Preprocessing,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Preprocessing {
    /// The name of the classifier, or a list of names.
    classifier: serde_json::Value,
}

impl Start {
    /// Reads the weights that a recipe names. Relative paths start at `place`.
    ///
    /// # Errors
    /// If there are none, or they cannot be read.
    pub fn read(weights: &StartWeights, place: &Place) -> Result<Start> {
        let path = place.resolve(&weights.path);
        let config = if path.is_dir() { read_config(&path.join(CONFIG))? } else { Config::default() };
        let mut file = TensorFile::load(if path.is_dir() { weights_in(&path)? } else { path })?;
        let mut except = weights.except.clone();
        except.extend(config.pretrained_cfg.classifier.as_str().map(|name| format!("{name}.")));
        let is_excepted = |own: &str| except.iter().any(|e| own.starts_with(e));
        let own = |name: &str| name.strip_prefix(&weights.prefix).map(String::from);
        let skipped: Vec<&str> =
            file.names().filter(|n| own(n).is_some_and(|own| is_excepted(&own))).collect();
        let notes =
            if skipped.is_empty() { Vec::new() } else { vec![format!("without {}", listed(&skipped))] };
        file.retain(|name| own(name).is_some_and(|own| !is_excepted(&own)));
        Ok(Start { file, notes, architecture: config.architecture })
    }

    /// Changes the tensors to the shapes of the encoder's parameters where that has a usual meaning, see
    /// [`pretrained::adapt`].
    ///
    /// # Errors
    /// If positions cannot be resized.
    pub fn adapt<D: Compute>(&mut self, params: &[Param<D>], input: ImageShape, prefix: &str) -> Result<()> {
        self.notes.extend(pretrained::adapt(&mut self.file, params, input, prefix)?);
        Ok(())
    }

    /// Adds to an error what the folder says of its model.
    pub fn explain(&self, error: Error) -> Error {
        match (error, &self.architecture) {
            (Error::Damaged { path, message }, Some(architecture)) => {
                let message = format!("{message}; {CONFIG} beside it says that it is a {architecture}");
                Error::Damaged { path, message }
            }
            (error, _) => error,
        }
    }
}

fn read_config(path: &Path) -> Result<Config> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::damaged(path, e.to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Returns the file of weights in a folder.
fn weights_in(folder: &Path) -> Result<std::path::PathBuf> {
    let path = folder.join(WEIGHTS);
    if path.is_file() {
        return Ok(path);
    }
    let remedy = if folder.join("pytorch_model.bin").exists() {
        "the folder has only `pytorch_model.bin`, a pickle; save the model again with `safe_serialization=True`"
    } else {
        "a folder of timm or transformers has its weights there; or give the file of weights itself"
    };
    Err(Error::NotFound { path, remedy: remedy.into() })
}

/// Returns the first names, and the number of the others.
fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 6;
    match names.len().saturating_sub(SHOWN) {
        0 => names.join(", "),
        more => format!("{} and {more} other tensors", names[..SHOWN].join(", ")),
    }
}
