//! Shards that are normalized together, compared with the whole batch and with finite differences.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

use dfdx::prelude::{Backward, Cpu, TensorFromVec, Trace};
use pauc_models::heads::{HeadConfig, MlpHead};
use pauc_models::network::{Network, backward_with};
use pauc_models::{BuildOptions, Head};
use pauc_testing::inputs::{Perturbation, wave};
use pauc_testing::tolerance::{SIGMAS, UNIT_F32};
use pauc_testing::vectors::{distance, norm};
use pauc_testing::{assert_within, tolerance};
use pauc_traits::component_ron::options as ron_options;
use pauc_traits::encoder::Images;
use pauc_traits::registry::kind;
use pauc_traits::shards::{ShardExchange, ShardGroup};
use pauc_traits::{Compute, Configured, Error, ImageShape, Param, Pass, Result};
use std::rc::Rc;

/// The exchange of one process, which has all shards.
#[derive(Debug)]
struct OneProcess;

impl ShardExchange for OneProcess {
    fn gather(&self, own: &[f64]) -> Vec<f64> {
        own.to_vec()
    }
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

fn group(count: usize, samples: usize) -> ShardGroup {
    ShardGroup { count, samples, exchange: Rc::new(OneProcess) }
}

const SAMPLES: usize = 8;
const VIEWS: usize = 2;

fn network((encoder, head): (&str, &str), input: ImageShape) -> Network<Cpu> {
    let config = Configured::<kind::Encoder>::parse(encoder).unwrap();
    let head: HeadConfig = ron_options().from_str(head).unwrap();
    let encoder = <Cpu as Compute>::encoder(&*config.value);
    let mut network = Network::build(&Cpu::default(), encoder, &head, input, BuildOptions::seed(3)).unwrap();
    let dim = network.embedding_dim();
    let predictor = format!("Mlp(dims: [6, {dim}], batch_norm: true)");
    network.add_predictor(&ron_options().from_str(&predictor).unwrap()).unwrap();
    network
}

/// How a batch passes through a network.
#[derive(Clone, Copy, Debug)]
enum Way {
    Whole,
    /// As this many shards that are normalized together.
    Together(usize),
}

type Named = Vec<(String, Vec<f32>)>;

/// Returns outputs, gradients and running statistics of a training pass over images of these sizes, with perturbed
/// weights and images.
fn pass(parts: (&str, &str), sizes: &[ImageShape], way: Way, mut rounding: Perturbation) -> Named {
    let cpu = Cpu::default();
    let mut net = network(parts, sizes[0]);
    let mut perturb = |values: &mut [f32]| {
        values.iter_mut().for_each(|v| *v = rounding.apply(f64::from(*v)) as f32);
    };
    net.parameters().iter().for_each(|p| perturb(&mut p.value_mut()));
    let images = |(i, shape): (usize, &ImageShape)| -> Images<Cpu> {
        let mut values = wave(VIEWS * SAMPLES * shape.len(), 0.3 + i as f32, 1.7);
        perturb(&mut values);
        cpu.tensor_from_vec(values, (VIEWS * SAMPLES, shape.height, shape.width, shape.channels))
    };
    let images: Vec<_> = sizes.iter().enumerate().map(images).collect();
    let (output, predictions) = match way {
        Way::Whole => {
            let output = net.forward_sizes(images, Pass::Train).unwrap();
            let predictions = net.predict(&output.embeddings.retaped(), Pass::Train).unwrap();
            (output, predictions)
        }
        Way::Together(count) => {
            let group = group(count, SAMPLES / count);
            let images = images.into_iter().map(|images| (images, None)).collect();
            let output = net.forward_shards(images, Pass::Train, &group).unwrap();
            let predictions = net.predict_shards(&output.embeddings.retaped(), Pass::Train, &group).unwrap();
            (output, predictions)
        }
    };
    let predictions = predictions.unwrap();
    let mut found = vec![
        ("features".into(), output.features.as_vec()),
        ("embeddings".into(), output.embeddings.as_vec()),
        ("predictions".into(), predictions.as_vec()),
    ];
    let gradient = |seed| wave(found[1].1.len(), seed, 1.3);
    backward_with(output.embeddings, gradient(0.9), Some((predictions, gradient(2.9)))).unwrap();
    for (i, p) in net.parameters().iter().enumerate() {
        let mut sum = p.grad().clone();
        if let Way::Together(count) = way {
            assert!(sum.iter().all(|g| *g == 0.0), "{} has the gradient of a shard", p.name);
            for shard in 0..count {
                let own = net.parameters_of_shard(shard)[i].grad().clone();
                sum.iter_mut().zip(own).for_each(|(sum, g)| *sum += g);
            }
        }
        found.push((format!("gradient of {}", p.name), sum));
    }
    found.extend(net.statistics().iter().map(|p| (p.name.clone(), p.value().clone())));
    found
}

/// Asserts that shards that are normalized together give the results of the whole batch, up to rounding. To show how
/// far rounding propagates, weights and images are perturbed by six deviations of a layer's rounding, up or down at
/// random.
fn assert_equal_to_the_batch(parts: (&str, &str), sizes: &[ImageShape]) {
    // Inner products of up to 600 terms; see `of_layer` in the tests of CUDA.
    let unit = (600f64 / 6.0).sqrt() * UNIT_F32;
    let exact = Perturbation::new(0.0, 0);
    let whole = pass(parts, sizes, Way::Whole, exact.clone());
    let draws: Vec<Named> =
        (0..8).map(|draw| pass(parts, sizes, Way::Whole, Perturbation::new(SIGMAS * unit, draw))).collect();
    let size = |v: &[f32]| norm(v.iter().map(|v| f64::from(*v)));
    let largest = whole.iter().filter(|(name, _)| name.starts_with("gradient"));
    let largest = largest.map(|(_, g)| size(g)).fold(0.0, f64::max);
    for count in [1, 2, 4, 8] {
        let together = pass(parts, sizes, Way::Together(count), exact.clone());
        for (i, ((name, want), (_, got))) in whole.iter().zip(&together).enumerate() {
            let response = draws.iter().map(|d| distance(&d[i].1, want)).fold(0.0, f64::max);
            // What cancels is as exact as its terms: gradients before a normalization, and means.
            let least = match name.strip_suffix("running_mean") {
                Some(layer) => {
                    let variance = whole.iter().find(|(name, _)| *name == format!("{layer}running_var"));
                    variance.map_or(0.0, |(_, v)| v.iter().map(|v| f64::from(*v)).sum::<f64>().sqrt())
                }
                None if name.starts_with("gradient") => largest,
                None => 0.0,
            };
            let (off, allowed) = (distance(got, want), response + unit * size(want).max(least));
            assert!(
                off <= allowed,
                "{parts:?}, {count} shards: {name} is off by {off:e}, allowed {allowed:e}"
            );
        }
    }
}

const INPUT: ImageShape = ImageShape { height: 8, width: 8, channels: 3 };
const LARGER: ImageShape = ImageShape { height: 12, width: 10, channels: 3 };
const HEAD: &str = "Mlp(dims: [12, 8], batch_norm: true, last_batch_norm: true)";

#[test]
fn shards_normalized_together_equal_the_whole_batch() {
    for encoder in [
        "ConvNet(channels: [8, 16, 12], grid: 2)",
        "ResNet18(stem: Small, width: 4)",
        // Bottlenecks, and a stem with max pooling.
        "ResNet50(width: 4)",
        // Pre-activation: normalized sums, and convolutions without normalization.
        "WideResNet(depth: 10, widen: 1)",
    ] {
        let large = ImageShape { height: 40, width: 40, channels: 3 };
        let sizes = if encoder.contains("Net50") { vec![large] } else { vec![INPUT, LARGER] };
        assert_equal_to_the_batch((encoder, HEAD), &sizes);
    }
    // Encoders without normalization pass one shard after the other.
    assert_equal_to_the_batch(("MlpEncoder(dims: [16])", HEAD), &[INPUT]);
    let transformer =
        "VisionTransformer(size: Custom(width: 12, heads: 3), patch: 4, depth: 2, mlp_ratio: 2)";
    let tiled = ImageShape { height: 12, width: 12, channels: 3 };
    assert_equal_to_the_batch(
        (transformer, "Mlp(dims: [12, 8], bias: false, batch_norm: true)"),
        &[INPUT, tiled],
    );
}

#[test]
fn a_pass_without_a_tape_gives_the_same_numbers() {
    let cpu = Cpu::default();
    for encoder in ["ConvNet(channels: [8, 16])", "MlpEncoder(dims: [16])"] {
        let images: Images<Cpu> =
            cpu.tensor_from_vec(wave(VIEWS * SAMPLES * INPUT.len(), 0.3, 1.7), (VIEWS * SAMPLES, 8, 8, 3));
        let embed = |pass| {
            let mut net = network((encoder, HEAD), INPUT);
            let output = net.forward_shards(vec![(images.clone(), None)], pass, &group(4, 2)).unwrap();
            let statistics = net.statistics().iter().flat_map(|p| p.value().clone()).collect::<Vec<_>>();
            (output.features.as_vec(), output.embeddings.as_vec(), statistics)
        };
        assert_eq!(embed(Pass::Train), embed(Pass::Momentum), "{encoder}");
    }
}

/// Σ G·(γ·(x·Wᵀ − mean)/√(variance + ε) + β) in f64, with moments over all rows.
fn objective(x: &[f64], w: &[f64], (gamma, beta): (&[f64], &[f64]), g: &[f32]) -> f64 {
    let (inputs, outputs) = (w.len() / gamma.len(), gamma.len());
    let rows = x.len() / inputs;
    let product =
        |r: usize, o: usize| (0..inputs).map(|i| x[r * inputs + i] * w[o * inputs + i]).sum::<f64>();
    let mut total = 0.0;
    for o in 0..outputs {
        let y: Vec<f64> = (0..rows).map(|r| product(r, o)).collect();
        let mean = y.iter().sum::<f64>() / rows as f64;
        let variance = y.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / rows as f64;
        for (r, v) in y.iter().enumerate() {
            total +=
                f64::from(g[r * outputs + o]) * (gamma[o] * (v - mean) / (variance + 1e-5).sqrt() + beta[o]);
        }
    }
    total
}

#[test]
fn gradients_through_merged_statistics_agree_with_finite_differences() {
    let (rows, inputs, outputs) = (16, 5, 3);
    let cpu = Cpu::default();
    let config = ron_options().from_str("Mlp(dims: [3], bias: false, last_batch_norm: true)").unwrap();
    let HeadConfig::Mlp(config) = config else { panic!("not a perceptron") };
    let mut head = MlpHead::new(&cpu, &config, inputs, 3, 1).unwrap();
    let parameters = head.parameters();
    parameters[1].value_mut().copy_from_slice(&[0.7, -1.2, 1.5]);
    parameters[2].value_mut().copy_from_slice(&[0.1, 0.2, -0.3]);
    let (x, g) = (wave(rows * inputs, 0.4, 2.0), wave(rows * outputs, 1.4, 1.0));

    let with_own = |_| parameters.iter().map(|p| p.with_own_gradient(&cpu).unwrap()).collect::<Vec<_>>();
    let shards: Vec<Vec<Param<Cpu>>> = (0..4).map(with_own).collect();
    let leaf = cpu.tensor_from_vec(x.clone(), (rows, inputs));
    let y = head.forward_shards(leaf.leaky_trace(), Pass::Train, &group(4, 2), &shards).unwrap();
    let weights = cpu.tensor_from_vec(g.clone(), (rows, outputs));
    let gradients = pauc_traits::ops::total(y * weights).backward();
    let sum = |i: usize| {
        let mut sum = vec![0.0; parameters[i].len()];
        shards.iter().for_each(|s| sum.iter_mut().zip(&*s[i].grad()).for_each(|(sum, g)| *sum += g));
        sum
    };
    let found = [gradients.get(&leaf).as_vec(), sum(0), sum(1), sum(2)];

    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let mut at = vec![wide(&x)];
    at.extend(parameters.iter().map(|p| wide(&p.value())));
    let step = 1e-4;
    for (which, found) in found.iter().enumerate() {
        for (i, found) in found.iter().enumerate() {
            let mut value = |offset: f64| {
                let before = at[which][i];
                at[which][i] += offset;
                let value = objective(&at[0], &at[1], (&at[2], &at[3]), &g);
                at[which][i] = before;
                value
            };
            let numeric = (value(step) - value(-step)) / (2.0 * step);
            // Standardized rows are of order one, with up to 16 summands of both signs, three times over.
            let exact = tolerance::central_difference(step, 1e3, 300, 10.0);
            assert_within!(*found, numeric, exact + tolerance::f32(3 * rows, 16.0), "{which}, {i}");
        }
    }
}

#[test]
fn what_cannot_be_normalized_together_is_an_error() {
    // A single value per channel has no variance, in an encoder and in a head.
    let one = ImageShape { height: 1, width: 1, channels: 3 };
    for (encoder, size) in [("ConvNet(channels: [4])", one), ("MlpEncoder(dims: [4])", INPUT)] {
        let mut net = network((encoder, HEAD), size);
        let shape = (1, size.height, size.width, 3);
        let images = Cpu::default().tensor_from_vec(wave(size.len(), 0.1, 1.0), shape);
        let error = net.forward_shards(vec![(images, None)], Pass::Momentum, &group(1, 1)).unwrap_err();
        assert!(matches!(&error, Error::Shape { .. }), "{error}");
        assert!(error.to_string().contains("a single value has no variance"), "{error}");
    }
}
