//! Encoders, heads, optimisers and whole training steps on CUDA beside the CPU. They need a GPU, or an emulated one.
#![allow(clippy::unwrap_used)] // helpers of tests

use pauc::dfdx::prelude::*;
use pauc::models::ema::MomentumConfig;
use pauc::models::network::{Network, backward_with};
use pauc::models::optimizers::clip_gradients;
use pauc::models::{HeadConfig, NetworkDevice};
use pauc::traits::open_set::options;
use pauc::traits::optimizer::Moment;
use pauc::traits::param::clear_gradients;
use pauc::traits::registry::kind;
use pauc::traits::{Clock, Compute, Configured, ImageShape, Param, Pass};

/// Relative, of outputs and of gradients.
const SHALLOW: (f64, f64) = (1e-4, 1e-4);
/// Many normalisations over few values, each of which divides by a small deviation: PyTorch in `f32` is further from itself
/// in `f64`.
const DEEP: (f64, f64) = (1e-3, 2e-3);

fn device() -> Cuda {
    pauc::cuda::open(0).unwrap_or_else(|e| panic!("these tests need a GPU, or an emulated one: {e}"))
}

/// A smooth pattern without symmetries.
fn pattern(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| ((phase + 1.7 * i as f64).sin() + 0.3 * (0.37 * i as f64).cos()) as f32).collect()
}

fn norm(v: impl Iterator<Item = f64>) -> f64 {
    v.map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖a − b‖/‖b‖, with a floor for a b that vanishes but for rounding.
fn distance_above(floor: f64, a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let off = norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    off / norm(b.iter().map(|b| f64::from(*b))).max(floor)
}

type Named = Vec<(String, Vec<f32>)>;

/// What a step leaves: features and embeddings, then gradients, then parameters and statistics of both networks.
fn step<D: NetworkDevice>(
    dev: &D,
    (encoder, head, optimizer): (&str, &str, &str),
    input: ImageShape,
    batch: usize,
) -> Named {
    let config = Configured::<kind::Encoder>::parse(encoder).unwrap();
    let head: HeadConfig = options().from_str(head).unwrap();
    let mut network = Network::build(dev, D::encoder(&*config.value), &head, input, 3).unwrap();
    let mut branch = network.duplicate().unwrap();
    let optimizer = Configured::<kind::Optimizer>::parse(optimizer).unwrap();
    let optimizer = D::optimizer(&*optimizer.value);
    let params = network.parameters();
    let mut state = optimizer.start(dev, &params).unwrap();
    let ema: MomentumConfig = options().from_str("Ema(momentum: 0.9)").unwrap();
    let mut found = Named::new();
    for round in 0..2 {
        let shape = (batch, input.height, input.width, input.channels);
        let images = dev.tensor_from_vec(pattern(batch * input.len(), round as f64), shape);
        clear_gradients(dev, &params).unwrap();
        let keys = branch.forward(images.clone(), Pass::Momentum).unwrap();
        let output = network.forward(images, Pass::Train).unwrap();
        found.push((format!("keys {round}"), keys.embeddings.as_vec()));
        found.push((format!("features {round}"), output.features.as_vec()));
        found.push((format!("embeddings {round}"), output.embeddings.as_vec()));
        let gradient = pattern(batch * network.embedding_dim(), 2.0);
        backward_with(output.embeddings, gradient, None).unwrap();
        if round == 0 {
            for p in &params {
                found.push((format!("gradient of {}", p.name), dev.download(&p.grad()).unwrap()));
            }
        }
        let norm = clip_gradients(dev, &params, 5.0).unwrap();
        found.push((format!("norm {round}"), vec![norm as f32]));
        let now = Moment { lr: optimizer.learning_rate(batch), clock: Clock::still() };
        optimizer.step(dev, &params, &mut state, &now).unwrap();
        ema.update(dev, &network, &branch, &Clock::still()).unwrap();
    }
    let all =
        |n: &Network<D>| -> Vec<Param<D>> { n.parameters().into_iter().chain(n.statistics()).collect() };
    for (which, params) in [("online", all(&network)), ("momentum", all(&branch))] {
        for p in params {
            found.push((format!("{which} {}", p.name), dev.download(&p.value()).unwrap()));
        }
    }
    let images = dev.tensor_from_vec(
        pattern(batch * input.len(), 5.0),
        (batch, input.height, input.width, input.channels),
    );
    found.push(("evaluation".into(), network.forward(images, Pass::Eval).unwrap().embeddings.as_vec()));
    found
}

/// Of two steps from the same start: outputs, parameters and statistics agree within `tolerance`, gradients within
/// `of_gradients`. A bias before a normalisation has no gradient but rounding: the largest gradient is the measure.
fn compare(what: (&str, &str, &str), input: ImageShape, batch: usize, (tolerance, of_gradients): (f64, f64)) {
    let (cuda, cpu) = (step(&device(), what, input, batch), step(&Cpu::default(), what, input, batch));
    assert_eq!(cuda.len(), cpu.len());
    let gradients = cpu.iter().filter(|(name, _)| name.starts_with("gradient"));
    let largest = gradients.map(|(_, g)| norm(g.iter().map(|g| f64::from(*g)))).fold(0.0, f64::max);
    let mut wrong = Vec::new();
    for ((name, got), (same, want)) in cuda.iter().zip(&cpu) {
        assert_eq!(name, same);
        let (floor, limit) =
            if name.starts_with("gradient") { (0.01 * largest, of_gradients) } else { (1e-3, tolerance) };
        let off = distance_above(floor, got, want);
        if off.is_nan() || off > limit {
            wrong.push(format!("{name} is off by {off:.1e}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}: {} are off; {}",
        what.0,
        wrong.len(),
        wrong[..wrong.len().min(8)].join(", ")
    );
}

fn image(side: usize, channels: usize) -> ImageShape {
    ImageShape { height: side, width: side, channels }
}

const HEAD: &str = "Mlp(dims: [12, 8], batch_norm: true)";

#[test]
fn a_step_of_a_conv_net_equals_that_of_the_cpu() {
    let sgd = "Sgd(lr: 0.1, weight_decay: 1e-2)";
    compare(
        ("ConvNet(channels: [8, 16, 12], grid: 2, convolution: Direct)", HEAD, sgd),
        image(8, 3),
        6,
        SHALLOW,
    );
    let oblong = ImageShape { height: 9, width: 13, channels: 1 };
    let head = "Mlp(dims: [8], bias: false, last_batch_norm: true)";
    compare(("ConvNet(channels: [8, 8], convolution: Direct)", head, "AdamW(lr: 1e-2)"), oblong, 5, SHALLOW);
}

#[test]
fn a_step_of_a_residual_network_equals_that_of_the_cpu() {
    let lars = "Lars(lr: 0.5, weight_decay: 1e-2)";
    compare(("ResNet18(stem: Small, width: 4, convolution: Direct)", HEAD, lars), image(16, 3), 6, DEEP);
    let nesterov = "Sgd(lr: 0.05, nesterov: true)";
    compare(("ResNet20(width: 4, convolution: Direct)", "Identity", nesterov), image(16, 1), 4, DEEP);
}

#[test]
fn the_stem_and_bottlenecks_of_large_networks_equal_those_of_the_cpu() {
    let (head, sgd) = ("Mlp(dims: [8, 8], bias: false)", "Sgd(lr: 0.01)");
    compare(("ResNet18(width: 4, convolution: Direct)", head, sgd), image(40, 3), 5, DEEP);
    compare(("ResNet50(stem: Small, width: 4, convolution: Direct)", head, sgd), image(16, 3), 8, DEEP);
}

#[test]
fn a_step_of_a_perceptron_equals_that_of_the_cpu() {
    compare(("MlpEncoder(dims: [24, 16])", HEAD, "Sgd(lr: 0.1)"), image(6, 3), 7, SHALLOW);
}

#[test]
fn a_step_of_a_vision_transformer_equals_that_of_the_cpu() {
    let of = |pool: &str| {
        format!(
            "VisionTransformer(size: Custom(width: 12, heads: 3), patch: 4, depth: 2, mlp_ratio: 2, pool: {pool})"
        )
    };
    for pool in ["Class", "Mean"] {
        // Features of images are alike before training, and a normalisation would divide by next to nothing.
        compare((&of(pool), "Mlp(dims: [12, 8])", "Sgd(lr: 0.1)"), image(8, 3), 4, SHALLOW);
    }
}

#[test]
fn images_of_other_sizes_share_parameters() {
    let run = |out: &mut Vec<Vec<f32>>, dev: &dyn Fn() -> Vec<Vec<f32>>| out.extend(dev());
    fn sizes<D: NetworkDevice>(dev: &D) -> Vec<Vec<f32>> {
        let config =
            Configured::<kind::Encoder>::parse("ResNet18(stem: Small, width: 2, convolution: Direct)")
                .unwrap();
        let head: HeadConfig = options().from_str("Mlp(dims: [6])").unwrap();
        let mut network = Network::build(dev, D::encoder(&*config.value), &head, image(16, 3), 1).unwrap();
        let batch = |side: usize, n: usize| {
            dev.tensor_from_vec(pattern(n * side * side * 3, side as f64), (n, side, side, 3))
        };
        let output = network.forward_sizes(vec![batch(16, 3), batch(8, 4)], Pass::Train).unwrap();
        let values = output.embeddings.as_vec();
        backward_with(output.embeddings, pattern(7 * 6, 1.0), None).unwrap();
        let mut all = vec![values];
        all.extend(network.parameters().iter().map(|p| dev.download(&p.grad()).unwrap()));
        all
    }
    let (mut cuda, mut cpu) = (Vec::new(), Vec::new());
    run(&mut cuda, &|| sizes(&device()));
    run(&mut cpu, &|| sizes(&Cpu::default()));
    for (n, (got, want)) in cuda.iter().zip(&cpu).enumerate() {
        let off = distance_above(1e-2, got, want);
        assert!(off < DEEP.1, "{n}: {off:e}");
    }
}

#[test]
fn a_second_outstanding_pass_is_refused_and_a_batch_of_one_has_no_statistics() {
    let dev = device();
    let config = Configured::<kind::Encoder>::parse("ConvNet(channels: [4])").unwrap();
    let mut encoder = Cuda::encoder(&*config.value).build(&dev, image(4, 1), 0).unwrap();
    let images = |n: usize| dev.tensor_from_vec(pattern(n * 16, 0.0), (n, 4, 4, 1));
    let first = encoder.forward(images(2), Pass::Train).unwrap();
    let e = encoder.forward(images(2), Pass::Train).unwrap_err();
    assert!(e.to_string().contains("still waiting"), "{e}");
    drop(first);
    encoder.forward(images(2), Pass::Train).unwrap();
    let e = encoder.forward(dev.tensor_from_vec(pattern(25, 0.0), (1, 5, 5, 1)), Pass::Eval).unwrap_err();
    assert!(e.to_string().contains("5×5×1"), "{e}");
    let head: HeadConfig = options().from_str("Mlp(dims: [4], last_batch_norm: true)").unwrap();
    let mut head = dev.head(&head, 3, 0, 1).unwrap();
    let x = dev.tensor_from_vec(pattern(3, 0.0), (1usize, 3usize));
    let e = head.forward(x.leaky_trace(), Pass::Train).unwrap_err();
    assert!(e.to_string().contains("at least 2 samples"), "{e}");
}
