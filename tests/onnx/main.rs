//! Exported ONNX files: a plain interpreter of the operators computes from pixels what pauc computes.
//!
//! The interpreter follows ONNX's documentation, shares no code with the program, and sums in `f64`. ONNX Runtime and
//! ONNX's own checker do the same in `tests/python/interop.py`.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

#[path = "../common/mod.rs"]
mod common;
mod interpreter;

use common::{only_run, pauc};
use interpreter::{Model, Tensor};
use pauc::dfdx::prelude::{Cpu, HasShape as _, TensorFromVec as _};
use pauc::models::weights::{TensorFile, load_into};
use pauc::train::checkpoint;
use pauc::traits::dataset::Place;
use pauc::traits::registry::kind;
use pauc::traits::{BuildOptions, Compute, Configured, ImageShape, Pass};
use std::path::{Path, PathBuf};

/// Gray photographs, embedded in the program, at their own size: the evaluation view leaves them as they are.
const PHOTOGRAPHS: &str = "Subset(of: FashionMini(), train: PerClass(8), test: PerClass(2))";
/// Generated RGB images.
const SHAPES: &str = "Shapes(count: 80, size: 28, classes: 4, seed: 1)";

const RECIPE: &str = r#"Recipe(
    name: "onnx",
    views: [(count: 2, ops: [RandomResizedCrop(size: 28)])],
    momentum_encoder: Ema(momentum: 0.9),
    objective: [(term: InfoNce(temperature: 0.2, negatives: Keys))],
    train: (epochs: 1, batch: 32),
)
"#;

fn trained(folder: &Path, set: &[&str]) -> PathBuf {
    let recipe = folder.join("recipe.ron");
    std::fs::write(&recipe, RECIPE).unwrap();
    let out = folder.join("runs");
    let mut args = vec!["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()];
    args.extend(set.iter().flat_map(|s| ["--set", s]));
    let done = pauc(&args);
    assert_eq!(done.code, 0, "{}", done.stderr);
    only_run(&out)
}

/// Runs a verb on a run that writes a file, and returns its path.
fn written(verb: &str, run: &Path, name: &str, more: &[&str]) -> PathBuf {
    let out = run.join(name);
    let args = [verb, run.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let done = pauc(args.iter().chain(more));
    assert_eq!(done.code, 0, "{}", done.stderr);
    out
}

/// The images to compare: the interpreter is slow.
const IMAGES: usize = 2;

/// The first test images of a dataset, (N, C, H, W), between 0 and 1.
struct Images {
    pixels: Vec<f32>,
    shape: [usize; 4],
}

fn images_of(dataset: &str) -> Images {
    let data = Configured::<kind::Dataset>::parse(dataset).unwrap();
    let test = data.open(&Place::at(".")).unwrap().test.unwrap();
    let ImageShape { height, width, channels } = test.shape().unwrap();
    let mut pixels = Vec::new();
    for i in 0..IMAGES {
        let image = test.image(i).unwrap();
        for channel in 0..channels {
            let values = image.pixels.iter().skip(channel).step_by(channels);
            pixels.extend(values.map(|v| f32::from(*v) / 255.0));
        }
    }
    Images { pixels, shape: [IMAGES, channels, height, width] }
}

/// Computes the outputs of a file, in order.
fn computed(file: &Path, images: &Images) -> Vec<Vec<f32>> {
    let model = Model::read(file);
    let outputs = model.run(Tensor { shape: images.shape.to_vec(), values: images.pixels.clone() });
    outputs.into_iter().map(|tensor| tensor.values).collect()
}

/// Checks that values agree within 1e-5 of the largest.
fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.0, "{what}: every value is zero");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * largest, "{what}: value {i} is {got}, expected {want}");
    }
}

/// Trains an encoder, exports it and compares features and embeddings of the test images.
fn compare(encoder: &str, projector: &str, data: &str, more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let set = [format!("encoder={encoder}"), format!("projector={projector}"), format!("data={data}")];
    let run = trained(folder.path(), &set.each_ref().map(String::as_str));
    let with_projector: Vec<&str> = ["--projector"].into_iter().chain(more.iter().copied()).collect();
    let file = written("export", &run, "encoder.onnx", &with_projector);
    let embedded = TensorFile::load(written("embed", &run, "test.safetensors", more)).unwrap();
    let outputs = computed(&file, &images_of(data));
    assert_eq!(outputs.len(), 2, "{encoder}");
    for (output, name) in outputs.iter().zip(["features", "embeddings"]) {
        let width = embedded.get(name).unwrap().shape[1];
        assert_close(output, &embedded.f32(name).unwrap()[..IMAGES * width], &format!("{encoder}: {name}"));
    }
    let said = Model::read(&file).metadata;
    for key in ["recipe", "seed", "step", "weights", "network", "data"] {
        assert_eq!(said[key], embedded.metadata[key], "{key}");
    }
    assert!(said["resolved recipe"].starts_with("Recipe("), "{said:?}");
}

const WITH_NORMS: &str = "Mlp(dims: [16, 8], batch_norm: true, last_batch_norm: true, bias: false)";

#[test]
fn plain_and_residual_networks_are_computed_from_their_files() {
    compare("ConvNet(channels: [8, 16])", "Mlp(dims: [16, 8])", PHOTOGRAPHS, &[]);
    // Maps of 7×7 in 3×3 cells of different sizes.
    compare("ConvNet(channels: [8, 8, 8], grid: 3)", "Identity", PHOTOGRAPHS, &[]);
    compare("ResNet18(stem: ImageNet, width: 8)", WITH_NORMS, SHAPES, &["--momentum"]);
    compare("ResNet34(stem: Small, width: 4)", "Identity", PHOTOGRAPHS, &[]);
    compare("ResNet50(stem: Small, width: 4)", "Identity", SHAPES, &[]);
    compare("ResNet20(width: 4)", "Identity", PHOTOGRAPHS, &[]);
    compare("WideResNet(depth: 10, widen: 1)", "Identity", PHOTOGRAPHS, &[]);
    compare("WideResNet50(stem: Small, width: 2)", "Identity", SHAPES, &[]);
}

#[test]
fn conv_next_computes_the_same_from_pixels() {
    let next = |size: &str| format!("ConvNeXt(size: {size}, patch: 4, layer_scale: 0.5)");
    compare(&next("Custom(depths: [1, 2], widths: [8, 12])"), "Identity", SHAPES, &[]);
    compare("ConvNeXt(size: Atto, patch: 3, layer_scale: 0.5)", "Identity", PHOTOGRAPHS, &[]);
}

#[test]
fn transformers_and_perceptrons_are_computed_from_their_files() {
    let vit = |rest| format!("VisionTransformer(size: Custom(width: 24, heads: 3), depth: 2, {rest})");
    compare(&vit("patch: 7"), WITH_NORMS, SHAPES, &[]);
    compare(&vit("patch: 4, pool: Mean"), "Identity", PHOTOGRAPHS, &["--momentum"]);
    compare(
        &vit("patch: 7, layer_scale: 0.5, registers: 3, prefix_positions: false"),
        "Identity",
        PHOTOGRAPHS,
        &[],
    );
    compare(&vit("patch: 14, mlp: SwiGlu, registers: 2, pool: Mean"), "Identity", SHAPES, &[]);
    compare(&vit("patch: 14, mlp: SwiGlu, registers: 2, drop_path: 0.5"), "Identity", SHAPES, &[]);
    compare("MlpEncoder(dims: [32, 16])", "Mlp(dims: [8])", SHAPES, &[]);
}

#[test]
fn every_encoder_of_the_program_has_a_graph_of_its_own_parameters() {
    let device = Cpu::default();
    let input = ImageShape { height: 32, width: 32, channels: 3 };
    for entry in <kind::Encoder as pauc::traits::registry::Kind>::entries() {
        let config = Configured::<kind::Encoder>::parse(&format!("{}()", entry.name)).unwrap();
        let config = Cpu::encoder(&*config.value);
        let mut graph = pauc::traits::graph::Graph::new();
        let images = graph.input("images");
        assert!(config.graph(input, &mut graph, &images).unwrap().is_some(), "{}", entry.name);
        let encoder = config.build(&device, input, BuildOptions::seed(0)).unwrap();
        let parameters = [encoder.parameters(), encoder.statistics()].concat();
        let mut names: Vec<_> = parameters.into_iter().map(|p| p.name).collect();
        names.sort();
        assert_eq!(graph.parameters().collect::<Vec<_>>(), names, "{}", entry.name);
    }
}

#[test]
fn a_convolutional_network_takes_images_of_any_size() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = "ResNet18(stem: Small, width: 4)";
    let data = format!("data={SHAPES}");
    let run = trained(folder.path(), &[&format!("encoder={encoder}"), &data, "projector=Identity"]);
    let file = written("export", &run, "encoder.onnx", &["--normalize"]);
    assert_eq!(Model::read(&file).metadata["normalized features"], "true");
    let weights = TensorFile::load(written("export", &run, "encoder.safetensors", &[])).unwrap();
    let (shape, device) = (ImageShape { height: 40, width: 24, channels: 3 }, Cpu::default());
    let config = Configured::<kind::Encoder>::parse(encoder).unwrap();
    let mut network = Cpu::encoder(&*config.value).build(&device, shape, BuildOptions::seed(0)).unwrap();
    load_into(&device, &network.parameters(), &network.statistics(), &weights, "").unwrap();
    // The same pixels, once planar and once normalized with the channels last.
    let pixel = |c: usize, i: usize| ((c * 960 + i) as f32 * 0.37).sin() * 0.5 + 0.5;
    let planar = (0..3).flat_map(|c| (0..960).map(move |i| pixel(c, i))).collect();
    let images = Images { pixels: planar, shape: [1, 3, 40, 24] };
    let input: serde_json::Value = serde_json::from_str(&weights.metadata["input"]).unwrap();
    let number = |key: &str, c: usize| input[key][c].as_f64().unwrap() as f32;
    let normalized = (0..960).flat_map(|i| (0..3).map(move |c| (c, i)));
    let normalized =
        normalized.map(|(c, i)| (pixel(c, i) - number("mean", c)) / number("deviation", c)).collect();
    let normalized = device.tensor_from_vec(normalized, (1, 40, 24, 3));
    let features = network.forward(normalized, Pass::Eval).unwrap();
    assert_eq!(*features.shape(), (1, 32));
    let mut want = features.as_vec();
    let length = want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    want.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    assert_close(&computed(&file, &images)[0], &want, encoder);
}

/// Version 0.2.0 stored less in its checkpoints.
#[test]
fn a_checkpoint_without_recipe_and_normalization_is_exported_alike() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("data={PHOTOGRAPHS}");
    let set = [
        &data,
        "encoder=ConvNet(channels: [4])",
        "momentum_encoder=None",
        "objective[0].term.negatives=InBatch",
    ];
    let run = trained(folder.path(), &set);
    let export = |name| written("export", &run, name, &["--format", "onnx"]);
    let now = export("now.onnx");
    let last = run.join("checkpoints/last.safetensors");
    let mut file = TensorFile::load(&last).unwrap();
    for key in ["resolved_recipe", "input", "device", "blake3"] {
        file.metadata.remove(key).unwrap();
    }
    let sum = checkpoint::checksum(&file);
    file.metadata.insert("blake3".into(), sum);
    file.save(&last).unwrap();
    let images = images_of(PHOTOGRAPHS);
    assert_eq!(computed(&export("then.onnx"), &images), computed(&now, &images));
    std::fs::remove_file(run.join("recipe.resolved.ron")).unwrap();
    let out = run.join("alone.onnx");
    let args = ["export", run.to_str().unwrap(), "--format", "onnx", "--out", out.to_str().unwrap()];
    common::assert_says(&pauc(args), 4, &["recipe.resolved.ron"]);
}

#[test]
fn what_cannot_be_exported_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let set =
        ["encoder=ConvNet(channels: [4])", "momentum_encoder=None", "objective[0].term.negatives=InBatch"];
    let run = trained(folder.path(), &set);
    let refused = |out: &Path, run: &Path, more: &[&str], code, says: &str| {
        let args = ["export", run.to_str().unwrap(), "--format", "onnx", "--out", out.to_str().unwrap()];
        let done = pauc(args.iter().chain(more));
        assert_eq!(done.code, code, "{}", done.stderr);
        assert!(done.stderr.contains(says), "{says}: {}", done.stderr);
        assert!(!out.exists());
    };
    let out = folder.path().join("encoder.onnx");
    refused(&out, &run, &["--momentum"], 4, "remove `--momentum`");
    refused(&folder.path().join("missing/encoder.onnx"), &run, &[], 1, "missing/encoder.onnx");
    let half = std::fs::read(run.join("checkpoints/last.safetensors")).unwrap();
    let damaged = folder.path().join("half.safetensors");
    std::fs::write(&damaged, &half[..half.len() / 2]).unwrap();
    refused(&out, &damaged, &[], 4, "half.safetensors: truncated or corrupt");
}
