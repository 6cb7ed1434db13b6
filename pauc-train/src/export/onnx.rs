//! An encoder as an ONNX file, with normalization inside.

mod file;

use super::TrainedEncoder;
use file::{Axis, Model, Parameter, Port};
use pauc_traits::graph::{Attribute, Graph, Value};
use pauc_traits::{Error, Result, atomic};
use std::path::Path;

/// The name of the input.
const INPUT: &str = "images";
/// The smallest number by which a row is divided: smaller rows stay near zero.
const LEAST: f32 = 1e-30;

/// What the graph computes besides the encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outputs {
    /// Whether there is a second output `embeddings`: the projector's outputs, scaled to unit length.
    pub projector: bool,
    /// Whether `features` are scaled to unit length, too.
    pub normalize: bool,
}

/// The prefix of the projector's parameters in the graph.
const PROJECTOR: &str = "projector.";

/// Writes the encoder as an ONNX file.
///
/// The input `images` is (batch, C, H, W), with pixels between 0 and 1. The output `features` is (batch, F).
///
/// # Errors
/// If the encoder does not describe itself as a graph, a parameter is missing, or the disk fails.
pub fn write(trained: &TrainedEncoder, wanted: Outputs, out: &Path) -> Result<()> {
    let mut graph = Graph::new();
    let outputs = add_network(&mut graph, trained, wanted)?;
    let bytes = encode(&graph, trained, wanted, &outputs)?;
    atomic::write(out, &bytes)
}

/// Adds normalization, encoder and projector; returns the outputs.
fn add_network(graph: &mut Graph, trained: &TrainedEncoder, wanted: Outputs) -> Result<Vec<Port>> {
    let (input, name) = (trained.input.shape(), trained.recipe.encoder.name());
    let images = graph.input(INPUT);
    let images = normalize(graph, &images, trained);
    let features = trained.config().graph(input, graph, &images)?.ok_or_else(|| {
        Error::config(format!(
            "{name} cannot be exported to ONNX, because it does not describe its graph (`EncoderConfig::graph`); \
             `--format safetensors` exports its weights"
        ))
    })?;
    let width = trained.config().size(input)?.map(|size| size.output);
    let mut outputs = Vec::new();
    if wanted.projector {
        let embeddings = trained.recipe.projector.add_to(graph, &features, PROJECTOR);
        let embeddings = unit_length(graph, &embeddings);
        graph.output("embeddings", &embeddings);
        let width =
            width.map(|width| trained.recipe.projector.size(width)).transpose()?.map(|size| size.output);
        outputs.push(rows("embeddings", width, "the projector's outputs, scaled to unit length"));
    }
    if wanted.normalize {
        let unit = unit_length(graph, &features);
        graph.output("features", &unit);
        outputs.insert(0, rows("features", width, "the encoder's outputs, scaled to unit length"));
    } else {
        graph.output("features", &features);
        outputs.insert(0, rows("features", width, "the encoder's outputs"));
    }
    Ok(outputs)
}

/// Describes an output of (batch, width).
fn rows(name: &'static str, width: Option<usize>, description: &'static str) -> Port {
    let width = width.map_or(Axis::Dynamic("width_of_features"), Axis::Fixed);
    Port { name: name.into(), axes: vec![Axis::Dynamic("batch"), width], description }
}

/// Adds (x − mean)/deviation of each channel.
fn normalize(graph: &mut Graph, images: &Value, trained: &TrainedEncoder) -> Value {
    let shape = [1, trained.input.channels, 1, 1];
    let mean = graph.numbers(&shape, trained.input.mean.clone());
    let deviation = graph.numbers(&shape, trained.input.deviation.clone());
    let centered = graph.node("Sub", &[images, &mean], &[]);
    graph.node("Div", &[&centered, &deviation], &[])
}

/// Scales rows to unit length; a row of zeros stays. The largest element is divided out first, so that squares of large
/// numbers are finite.
fn unit_length(graph: &mut Graph, x: &Value) -> Value {
    let magnitudes = graph.node("Abs", &[x], &[]);
    let scaled = divided_by(graph, x, "ReduceMax", &magnitudes);
    divided_by(graph, &scaled, "ReduceL2", &scaled)
}

/// Divides rows by a reduction of others, unless that is almost zero.
fn divided_by(graph: &mut Graph, x: &Value, reduction: &'static str, of: &Value) -> Value {
    let size = graph.node(reduction, &[of], &[("axes", Attribute::Ints(vec![1]))]);
    let least = graph.numbers(&[], vec![LEAST]);
    let size = graph.node("Max", &[&size, &least], &[]);
    graph.node("Div", &[x, &size], &[])
}

/// Returns the content of the file.
fn encode(graph: &Graph, trained: &TrainedEncoder, wanted: Outputs, outputs: &[Port]) -> Result<Vec<u8>> {
    let sides = match graph.accepts_any_size() {
        true => [Axis::Dynamic("height"), Axis::Dynamic("width")],
        false => [Axis::Fixed(trained.input.height), Axis::Fixed(trained.input.width)],
    };
    let [height, width] = sides;
    let axes = vec![Axis::Dynamic("batch"), Axis::Fixed(trained.input.channels), height, width];
    let description = if trained.input.channels == 1 { "gray pixels, 0 to 1" } else { "RGB pixels, 0 to 1" };
    let input = Port { name: INPUT.into(), axes, description };
    let parameters = graph.parameters().map(|name| parameter(trained, name)).collect::<Result<Vec<_>>>()?;
    let mut metadata = trained.provenance().to_vec();
    metadata.push(("normalized features", wanted.normalize.to_string()));
    metadata.push(("input", serde_json::to_string(&trained.input).map_err(|e| Error::Other(e.into()))?));
    metadata.push(("resolved recipe", trained.resolved.clone()));
    Model {
        name: &trained.recipe.name,
        graph,
        parameters: &parameters,
        inputs: &[input],
        outputs,
        producer: ("pauc", env!("CARGO_PKG_VERSION")),
        metadata: &metadata,
    }
    .encode()
}

/// Returns a parameter of the graph from the checkpoint.
fn parameter<'a>(trained: &'a TrainedEncoder, name: &'a str) -> Result<Parameter<'a>> {
    let encoder = trained.weights.get(name).map(|tensor| (&trained.weights, name, tensor));
    let of_projector = || {
        let own = name.strip_prefix(PROJECTOR)?;
        trained.projector.get(own).map(|tensor| (&trained.projector, own, tensor))
    };
    let (file, own, tensor) = encoder.or_else(of_projector).ok_or_else(|| {
        let message =
            format!("has no tensor `{name}`, which the graph of {} reads", trained.recipe.encoder.name());
        Error::damaged(&trained.checkpoint, message)
    })?;
    Ok(Parameter { name, shape: &tensor.shape, values: file.f32(own)? })
}
