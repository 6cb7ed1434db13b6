//! Export of a run's encoder: for PyTorch and other recipes, for timm and transformers, and as an ONNX graph.

pub mod card;
mod folder;
pub mod onnx;
pub mod timm;
mod trained;

pub use folder::check_target;
pub use trained::{RunOf, TrainedEncoder, checkpoint_of};

use crate::recipe_text::{self, Parts};
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::{Error, Result};
use std::path::Path;

/// Returns the encoder in a checkpoint, under its own names: torchvision's for networks that torchvision has,
/// with the counters `num_batches_tracked` that PyTorch expects beside running statistics.
///
/// The metadata says how to build and to feed the network: `encoder` as the recipe writes it, and `input`, a
/// [`NetworkInput`](crate::network_input::NetworkInput).
///
/// `momentum` selects the momentum encoder instead of the online encoder.
///
/// # Errors
/// If the file does not exist, is damaged, does not contain this encoder, or an element of it is NaN or
/// infinite.
pub fn encoder(checkpoint: &Path, momentum: bool) -> Result<TensorFile> {
    encoder_of(&TensorFile::load(checkpoint)?, checkpoint, momentum)
}

/// As [`encoder`], from the content of the checkpoint.
fn encoder_of(from: &TensorFile, checkpoint: &Path, momentum: bool) -> Result<TensorFile> {
    let prefix = if momentum { "momentum.encoder." } else { "encoder." };
    let steps = from.metadata.get("step").and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut file = part_of(from, prefix)?;
    let norms: Vec<String> =
        file.names().filter_map(|n| n.strip_suffix("running_mean")).map(String::from).collect();
    for norm in norms {
        file.insert(format!("{norm}num_batches_tracked"), &[], Values::I64(vec![steps]))?;
    }
    if file.names().next().is_none() {
        let remedy = if momentum {
            "the run may have no momentum encoder; remove `--momentum`"
        } else {
            "is it a checkpoint?"
        };
        return Err(Error::damaged(checkpoint, format!("no tensor starts with `{prefix}`: {remedy}")));
    }
    if let Some(element) = file.first_non_finite(|_| true) {
        let remedy = "export an earlier checkpoint, or train again with a lower learning rate";
        return Err(Error::damaged(checkpoint, format!("the encoder's {element}; {remedy}")));
    }
    for key in ["recipe", "seed", "step", "input"] {
        if let Some(value) = from.metadata.get(key) {
            file.metadata.insert(key.into(), value.clone());
        }
    }
    if let Some(text) = from.metadata.get("resolved_recipe").and_then(|recipe| encoder_text(recipe)) {
        file.metadata.insert("encoder".into(), text.into());
    }
    // Some versions of transformers read no file without it.
    file.metadata.insert("format".into(), "pt".into());
    file.metadata.insert("made by".into(), format!("pauc {}", env!("CARGO_PKG_VERSION")));
    Ok(file)
}

/// Returns the tensors whose names start with `prefix`, without it.
fn part_of(from: &TensorFile, prefix: &str) -> Result<TensorFile> {
    let mut file = TensorFile::new();
    for full in from.names() {
        if let (Some(name), Some(tensor)) = (full.strip_prefix(prefix), from.get(full)) {
            file.insert(name, &tensor.shape, tensor.values.clone())?;
        }
    }
    Ok(file)
}

/// Returns the encoder as a recipe writes it.
fn encoder_text(recipe: &str) -> Option<&str> {
    match recipe_text::parse(recipe)?.parts {
        Parts::Fields(fields) => {
            fields.into_iter().find(|f| f.name == "encoder").and_then(|f| recipe.get(f.value.span))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_encoder_is_exported_under_its_own_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.safetensors");
        let mut file = TensorFile::new();
        file.metadata.insert("step".into(), "7".into());
        let recipe = "Recipe(name: \"a\", encoder: ResNet18(stem: Small, width: 64), train: (epochs: 1))";
        file.metadata.insert("resolved_recipe".into(), recipe.into());
        for name in ["encoder.bn1.running_mean", "encoder.conv1.weight", "projector.0.weight"] {
            file.insert(name, &[2], Values::F32(vec![1.0, 2.0])).unwrap();
        }
        file.save(&path).unwrap();
        let got = encoder(&path, false).unwrap();
        let names: Vec<_> = got.names().collect();
        assert_eq!(names, ["bn1.num_batches_tracked", "bn1.running_mean", "conv1.weight"]);
        assert_eq!(got.i64("bn1.num_batches_tracked").unwrap(), [7]);
        assert_eq!(got.metadata["step"], "7");
        assert_eq!(got.metadata["encoder"], "ResNet18(stem: Small, width: 64)");
        assert_eq!((&*got.metadata["format"], got.metadata.get("input")), ("pt", None));
        let missing = encoder(&path, true).unwrap_err().to_string();
        assert!(missing.contains("momentum.encoder.") && missing.contains("--momentum"), "{missing}");
    }
}
