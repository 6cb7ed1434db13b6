//! The model card: what an exported encoder is, and how it was made.

use super::{TrainedEncoder, encoder_text};
use pauc_report::data::ReportData;
use pauc_report::events::{Metric, Subject};
use pauc_traits::encoder::TimmModel;
use pauc_traits::probe::MetricKind;
use pauc_traits::{Error, Result};
use std::fmt::Write;

/// The license of a card if nobody chose one.
pub const NO_LICENSE: &str = "unknown";

/// Returns the card of an encoder that timm loads, in Markdown with the header of Hugging Face's model cards.
///
/// # Errors
/// If `license` is not the identifier of a license, such as `mit` or `cc-by-4.0`.
pub fn text(trained: &TrainedEncoder, model: &TimmModel, license: &str) -> Result<String> {
    let is_identifier = |c: char| c.is_ascii_alphanumeric() || "-.+_".contains(c);
    if license.is_empty() || !license.chars().all(is_identifier) {
        let example = "give an identifier such as `mit`, `apache-2.0` or `cc-by-4.0`";
        return Err(Error::config(format!("{license:?} is not the identifier of a license: {example}")));
    }
    let name = &*trained.recipe.name;
    let parts = [
        header(license),
        summary(trained, model, name),
        USE.to_string(),
        evaluation(trained),
        training(trained),
        provenance(trained),
        license_note(license),
    ];
    Ok(parts.join("\n"))
}

fn header(license: &str) -> String {
    format!(
        "---\nlibrary_name: timm\nlicense: {license}\npipeline_tag: image-feature-extraction\ntags:\n- timm\n- \
         transformers\n- image-feature-extraction\n- pauc\n---\n"
    )
}

fn summary(trained: &TrainedEncoder, model: &TimmModel, name: &str) -> String {
    let input = &trained.input;
    let size = trained.config().size(input.shape()).ok().flatten();
    let made_by = trained.weights.metadata.get("made by").map_or("pauc", String::as_str);
    let encoder = encoder_text(&trained.resolved).map_or(trained.recipe.encoder.name().into(), compact);
    let mut out = format!(
        "# {name}\n\nAn image encoder, trained and exported by {made_by}.\n\n| | |\n|---|---|\n| encoder | `{encoder}` |\n\
         | model of timm | `{}` |\n",
        model.architecture
    );
    if let Some(size) = size {
        let _ = writeln!(out, "| features | {} |\n| parameters | {} |", size.output, size.parameters);
    }
    let kind = if input.channels == 1 { "gray" } else { "RGB" };
    let _ = writeln!(out, "| images | {} × {} pixels, {kind} |", input.height, input.width);
    let _ = writeln!(out, "| mean | {:?} |\n| standard deviation | {:?} |", input.mean, input.deviation);
    let _ = writeln!(out, "| training data | {} |", one_line(trained.data()));
    out
}

/// How the files are loaded. `DIR` is the folder.
const USE: &str = r#"## Use

`DIR` is this folder. With timm:

```python
import timm, torch

net = timm.create_model("local-dir:DIR", pretrained=True).eval()
config = timm.data.resolve_model_data_config(net)
transform = timm.data.create_transform(**config, is_training=False)  # resizes and normalizes a PIL image
with torch.inference_mode():
    features = net(torch.zeros(1, *config["input_size"]))
```

With transformers:

```python
import torch
from transformers import AutoModel

net = AutoModel.from_pretrained("DIR").eval()
size = net.config.pretrained_cfg["input_size"]
with torch.inference_mode():
    features = net(pixel_values=torch.zeros(1, *size)).pooler_output
```
"#;

fn evaluation(trained: &TrainedEncoder) -> String {
    let data = trained.run.as_ref().map(|run| ReportData::from_log(run.log.clone()));
    let probe = data.as_ref().and_then(|d| d.probes.iter().rfind(|p| p.subject == Subject::Trained));
    let mut out = String::from("## Evaluation\n\n");
    let (Some(data), Some(probe)) = (&data, probe) else {
        out.push_str("The run has measured nothing yet.\n");
        return out;
    };
    let _ = writeln!(
        out,
        "Measured by the run after {} optimizer steps. The name of a metric is its protocol; the same protocol on \
         the same data gives comparable numbers.",
        probe.step
    );
    if probe.step != trained.step() {
        let _ = writeln!(out, "The exported weights are those after {} steps.", trained.step());
    }
    if trained.momentum {
        out.push_str("The run's probes measure its online encoder; this is its momentum encoder.\n");
    }
    out.push_str("\n| metric | raw pixels | random weights | trained |\n|---|--:|--:|--:|\n");
    for metric in probe.metrics.iter().filter(|m| is_shown(m)) {
        let value =
            |subject| data.latest(subject, &metric.name).map_or("–".into(), |v| shown(metric.kind, v));
        let (pixels, random) = (value(Subject::RawPixels), value(Subject::RandomInit));
        let _ = writeln!(
            out,
            "| `{}` | {pixels} | {random} | {} |",
            metric.name,
            shown(metric.kind, metric.value)
        );
    }
    out
}

fn is_shown(metric: &Metric) -> bool {
    matches!(metric.kind, MetricKind::Accuracy | MetricKind::Quantity)
}

fn shown(kind: MetricKind, value: f64) -> String {
    match kind {
        MetricKind::Accuracy => format!("{:.1} %", 100.0 * value),
        _ => format!("{value:.4}"),
    }
}

fn training(trained: &TrainedEncoder) -> String {
    format!(
        "## Training\n\nThe recipe, with every default written out:\n\n```rust\n{}```\n",
        trained.resolved
    )
}

fn provenance(trained: &TrainedEncoder) -> String {
    let mut out = String::from("## Provenance\n\n| | |\n|---|---|\n");
    for (key, value) in trained.provenance() {
        let _ = writeln!(out, "| {key} | {} |", one_line(&value));
    }
    out.push_str("\n`weights` is the BLAKE3 hash of the checkpoint.\n");
    out
}

fn license_note(license: &str) -> String {
    let chosen = if license == NO_LICENSE {
        "No license was chosen for these weights: set `license` in the header of this file before you publish them."
    } else {
        "The license in the header of this file was chosen when the weights were exported."
    };
    format!("## License\n\n{chosen} The terms of the training images may also apply.\n")
}

/// Returns a component on one line.
fn compact(component: &str) -> String {
    let words: Vec<&str> = component.split_whitespace().collect();
    words.join(" ").replace("( ", "(").replace(", )", ")")
}

/// Returns text that stays in its cell of a table.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_on_one_line_and_a_cell_has_no_bars() {
        assert_eq!(compact("ResNet18(\n        stem: Small,\n    )"), "ResNet18(stem: Small)");
        assert_eq!(compact("MlpEncoder(dims: [8, 4])"), "MlpEncoder(dims: [8, 4])");
        assert_eq!(one_line("a|b\nc"), "a\\|b c");
    }
}
