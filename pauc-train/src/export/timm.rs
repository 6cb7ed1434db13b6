//! A folder that timm and transformers load: weights, configuration and model card.

use super::{TrainedEncoder, card};
use pauc_traits::encoder::{TimmArgument, TimmModel};
use pauc_traits::{Error, Result, atomic};
use serde_json::{Map, Value, json};
use std::path::Path;

/// The weights.
pub const WEIGHTS: &str = "model.safetensors";
/// The configuration.
pub const CONFIG: &str = "config.json";
/// The model card.
pub const CARD: &str = "README.md";
/// The files of the folder.
pub const FILES: [&str; 3] = [CARD, CONFIG, WEIGHTS];

/// Writes the folder `out`, which `timm.create_model("local-dir:OUT", pretrained=True)` and
/// `transformers.AutoModel.from_pretrained("OUT")` load. An existing folder is replaced, see
/// [`super::check_target`]. `license` is the license in the model card.
///
/// # Errors
/// If timm has no such encoder, or the disk fails; then nothing is written.
pub fn write(trained: &TrainedEncoder, license: &str, out: &Path) -> Result<()> {
    let model = model_of(trained)?;
    let config =
        serde_json::to_string_pretty(&config(&model, trained)).map_err(|e| Error::Other(e.into()))?;
    let card = card::text(trained, &model, license)?;
    atomic::write_folder(out, |folder| {
        trained.weights.save(folder.join(WEIGHTS))?;
        atomic::write(&folder.join(CONFIG), (config + "\n").as_bytes())?;
        atomic::write(&folder.join(CARD), card.as_bytes())
    })
}

/// Returns the encoder's model.
fn model_of(trained: &TrainedEncoder) -> Result<TimmModel> {
    let name = trained.recipe.encoder.name();
    trained.config().timm(trained.input.shape()).map_err(|e| {
        Error::config(format!(
            "{name} cannot be exported for timm: {e}; `--format onnx` exports its graph, `--format safetensors` its weights"
        ))
    })
}

/// Returns `config.json`.
fn config(model: &TimmModel, trained: &TrainedEncoder) -> Value {
    let input = &trained.input;
    let features = trained.config().size(input.shape()).ok().flatten().map(|size| size.output);
    let mut arguments: Map<String, Value> =
        model.arguments.iter().map(|(name, value)| (name.to_string(), argument(value))).collect();
    if input.channels != 3 {
        arguments.insert("in_chans".into(), json!(input.channels));
    }
    json!({
        "architecture": model.architecture,
        "num_classes": 0,
        "num_features": features,
        "global_pool": model.global_pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "pauc",
            "custom_load": false,
            "input_size": [input.channels, input.height, input.width],
            "fixed_input_size": model.arguments.iter().any(|(name, _)| *name == "img_size"),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": input.mean,
            "std": input.deviation,
            "num_classes": 0,
            "first_conv": model.first_conv,
            "classifier": model.classifier,
        },
    })
}

fn argument(value: &TimmArgument) -> Value {
    match value {
        TimmArgument::Bool(value) => json!(value),
        TimmArgument::Int(value) => json!(value),
        TimmArgument::Float(value) => json!(value),
        TimmArgument::Pair(value) => json!(value),
        TimmArgument::Ints(value) => json!(value),
        TimmArgument::Text(value) => json!(value),
    }
}
