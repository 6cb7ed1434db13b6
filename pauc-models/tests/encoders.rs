//! Encoders against PyTorch and torchvision in float64, with weights and images by formula.
#![allow(clippy::unwrap_used)] // helpers of tests

use dfdx::prelude::*;
use pauc_traits::registry::kind;
use pauc_traits::{Compute, Configured, Encoder, ImageShape, Param, Pass};
use serde_json::Value;
// Linked for its registrations.
use pauc_models as _;

type Images = Tensor<(usize, usize, usize, usize), f32, Cpu>;

fn build(recipe: &str, input: ImageShape) -> Box<dyn Encoder<Cpu>> {
    let config = Configured::<kind::Encoder>::parse(recipe).unwrap_or_else(|e| panic!("{recipe}: {e}"));
    Cpu::encoder(&*config.value).build(&Cpu::default(), input, 0).unwrap()
}

/// Channels-last images from a formula over (batch, channels, height, width) in row-major order.
fn images([batch, channels, height, width]: [usize; 4], formula: impl Fn(usize) -> f64) -> Images {
    let mut values = vec![0.0; batch * height * width * channels];
    for (n, value) in (0..values.len()).map(|n| (n, formula(n))) {
        let (b, c, y, x) =
            (n / (channels * height * width), n / (height * width) % channels, n / width % height, n % width);
        values[((b * height + y) * width + x) * channels + c] = value as f32;
    }
    Cpu::default().tensor_from_vec(values, (batch, height, width, channels))
}

fn shape([_, channels, height, width]: [usize; 4]) -> ImageShape {
    ImageShape { height, width, channels }
}

fn numbers(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// The noise of `golden/encoders.py`.
fn noise(n: usize, l: usize) -> f64 {
    let v = (12.9898 * n as f64 + 78.233 * l as f64).sin() * 43758.5453;
    v - v.floor() - 0.5
}

/// Norm, product with cos(n) and first values agree to `tolerance` of the norm, or of a value's size.
fn compare(name: &str, got: &[f32], want: &Value, tolerance: f64) {
    let l2 = want["l2"].as_f64().unwrap();
    let norm = got.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
    assert!((norm - l2).abs() <= tolerance * l2, "{name}: norm {norm} for {l2}");
    let cos: f64 = got.iter().enumerate().map(|(n, v)| *v as f64 * (n as f64).cos()).sum();
    let want_cos = want["cos"].as_f64().unwrap();
    assert!((cos - want_cos).abs() <= tolerance * l2, "{name}: product {cos} for {want_cos} of norm {l2}");
    let size = l2 / (got.len() as f64).sqrt();
    for (i, (g, w)) in got.iter().zip(numbers(&want["first"])).enumerate() {
        assert!((*g as f64 - w).abs() <= 5.0 * tolerance * size.max(w.abs()), "{name}[{i}]: {g} for {w}");
    }
}

/// Runs a case of `golden/encoders.json`; `convolution` goes into the recipe. Where a value is within rounding of zero,
/// its ReLU may open in `f32` and stay shut in `f64`: PyTorch's own
/// gradients in `f32` are 1e-3 away for ResNet-18 and 8e-3 for ResNet-50.
fn check(recipe: &str, convolution: &str, (tolerance, of_gradients): (f64, f64)) {
    let golden: Value = serde_json::from_str(include_str!("golden/encoders.json")).unwrap();
    let case = golden["cases"].as_array().unwrap().iter().find(|c| c["recipe"] == recipe).unwrap();
    let size: Vec<usize> = numbers(&case["images"]).iter().map(|v| *v as usize).collect();
    let size = [size[0], size[1], size[2], size[3]];
    let separator = if recipe.ends_with("()") { "" } else { ", " };
    let full = recipe.replace(')', &format!("{separator}convolution: {convolution})"));
    let mut encoder = build(&full, shape(size));
    let parameters = encoder.parameters();
    let want: Vec<(String, Vec<usize>)> = {
        let mut shapes: Vec<_> = case["parameters"].as_object().unwrap().iter().collect();
        shapes.sort_by_key(|(name, _)| parameters.iter().position(|p| p.name == **name));
        shapes
            .iter()
            .map(|(n, s)| (n.to_string(), numbers(s).iter().map(|v| *v as usize).collect()))
            .collect()
    };
    let have: Vec<(String, Vec<usize>)> =
        parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    assert_eq!(have, want, "{recipe}");
    for (l, p) in parameters.iter().enumerate() {
        let fan_in: usize = p.shape[1..].iter().product();
        for (n, v) in p.value_mut().iter_mut().enumerate() {
            let u = noise(n, l);
            *v = match p.shape.len() {
                4 => u * (24.0 / fan_in as f64).sqrt(),
                _ if p.name.ends_with("weight") => 1.0 + 0.2 * u,
                _ => 0.2 * u,
            } as f32;
        }
    }
    let x = images(size, |n| 2.0 * noise(n, 1000));
    let eval = encoder.forward(x.clone(), Pass::Eval).unwrap();
    compare("eval", &eval.as_vec(), &case["eval"], tolerance);
    let before: Vec<Vec<f32>> = encoder.statistics().iter().map(|s| s.value().clone()).collect();
    let train = encoder.forward(x, Pass::Train).unwrap();
    compare("train", &train.as_vec(), &case["train"], tolerance);
    let features = *train.shape();
    let factors: Vec<f32> = (0..features.0 * features.1).map(|n| noise(n, 2000) as f32).collect();
    let loss = (train * Cpu::default().tensor_from_vec(factors, features)).sum::<Rank0, _>();
    loss.backward();
    for p in &parameters {
        compare(&p.name, &p.grad(), &case["gradients"][&p.name], of_gradients);
    }
    let statistics = encoder.statistics();
    for (name, want) in case["statistics"].as_object().unwrap() {
        let p = statistics.iter().find(|p| p.name == *name).unwrap();
        compare(name, &p.value(), want, tolerance);
    }
    assert!(statistics.iter().zip(&before).all(|(s, b)| *s.value() != *b), "statistics were updated");
}

#[test]
fn conv_net_equals_pytorch() {
    check("ConvNet(channels: [20, 40, 64])", "Direct", (2e-5, 2e-5));
}

#[test]
fn narrow_resnet18_on_grey_images_equals_pytorch() {
    check("ResNet18(stem: Small, width: 16)", "Direct", (1e-5, 1e-3));
}

#[test]
fn resnet18_with_small_stem_equals_pytorch() {
    check("ResNet18(stem: Small)", "Direct", (1e-5, 1e-2));
}

#[test]
fn resnet18_with_imagenet_stem_equals_pytorch() {
    check("ResNet18(width: 32)", "Direct", (1e-5, 1e-3));
}

#[test]
fn resnet34_equals_pytorch() {
    check("ResNet34(stem: Small, width: 16)", "Direct", (1e-5, 1e-2));
}

#[test]
fn resnet50_equals_pytorch() {
    check("ResNet50(stem: Small, width: 16)", "Direct", (1e-4, 3e-2));
    check("ResNet50(width: 16)", "Direct", (1e-4, 3e-2));
}

#[test]
fn resnet101_equals_pytorch() {
    check("ResNet101(stem: Small, width: 16)", "Direct", (1e-4, 1e-1));
}

#[test]
fn resnet20_equals_pytorch() {
    check("ResNet20()", "Auto", (1e-4, 1e-1));
}

#[test]
fn winograd_equals_pytorch_within_its_rounding() {
    check("ResNet18(stem: Small, width: 16)", "Winograd", (1e-4, 1e-1));
    check("ResNet34(stem: Small, width: 16)", "Auto", (1e-4, 1e-1));
}

/// torchvision's own networks with smooth formula weights. The deeper batch statistics are too ill-conditioned for `f32`
/// (PyTorch's own features differ from its `f64` by 20 per cent), so only what does not depend on them is compared.
fn check_torchvision(case: &str, recipe: &str, side: usize) {
    let all: Vec<Value> = serde_json::from_str(include_str!("golden/torchvision.json")).unwrap();
    let want = all.iter().find(|c| c["case"] == case).unwrap();
    let size = [4, 3, side, side];
    let mut encoder = build(recipe, shape(size));
    let parameters = encoder.parameters();
    let names: Vec<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
    let listed: Vec<&str> =
        want["parameter_names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert_eq!(names, listed, "the order of torchvision's state_dict");
    let count: usize = parameters.iter().map(Param::len).sum();
    assert_eq!(count as u64, want["parameters"].as_u64().unwrap());
    for (l, p) in parameters.iter().enumerate() {
        let fan_in: usize = p.shape[1..].iter().product();
        for (n, v) in p.value_mut().iter_mut().enumerate() {
            let n = n as f64;
            *v = match p.shape.len() {
                4 => (0.37 * n + 0.11 * l as f64).sin() * (2.0 / fan_in as f64).sqrt(),
                _ if p.name.ends_with("weight") => 1.0 + 0.1 * n.sin(),
                _ => 0.1 * n.cos(),
            } as f32;
        }
    }
    let x = images(size, |n| (0.1 + 0.013 * n as f64).sin());
    let eval = encoder.forward(x.clone(), Pass::Eval).unwrap().as_vec();
    let features = &want["features_eval"];
    let l2 = eval.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
    assert!((l2 / features["l2"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{case}: norm {l2}");
    for (g, w) in eval.iter().zip(numbers(&features["first_row_first8"])) {
        assert!((*g as f64 - w).abs() < 1e-4 * w.abs().max(1.0), "{case}: {g} for {w}");
    }
    encoder.forward(x, Pass::Momentum).unwrap();
    let statistics = encoder.statistics();
    for (name, key) in
        [("bn1.running_mean", "bn1_running_mean_first4"), ("bn1.running_var", "bn1_running_var_first4")]
    {
        let p = statistics.iter().find(|p| p.name == name).unwrap();
        for (g, w) in p.value().iter().zip(numbers(&want[key])) {
            assert!((*g as f64 - w).abs() < 1e-6, "{name}: {g} for {w}");
        }
    }
}

#[test]
fn resnet18_is_torchvisions() {
    check_torchvision("resnet18/cifar", "ResNet18(stem: Small)", 32);
    check_torchvision("resnet18/imagenet", "ResNet18()", 64);
}

#[test]
fn deeper_resnets_are_torchvisions() {
    check_torchvision("resnet34/cifar", "ResNet34(stem: Small)", 32);
    check_torchvision("resnet50/cifar", "ResNet50(stem: Small)", 32);
    check_torchvision("resnet50/imagenet", "ResNet50()", 64);
}

fn build_for(recipe: &str, side: usize, channels: usize) -> Box<dyn Encoder<Cpu>> {
    build(recipe, ImageShape { height: side, width: side, channels })
}

/// Features, gradients and statistics after one training pass.
fn one_pass(recipe: &str) -> Vec<Vec<f32>> {
    let mut encoder = build_for(recipe, 14, 1);
    let x = images([5, 1, 14, 14], |n| 2.0 * noise(n, 3));
    let features = encoder.forward(x, Pass::Train).unwrap();
    let mut all = vec![features.as_vec()];
    features.square().sum::<Rank0, _>().backward();
    all.extend(encoder.parameters().iter().map(|p| p.grad().clone()));
    all.extend(encoder.statistics().iter().map(|p| p.value().clone()));
    all
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for recipe in [
        "ResNet18(stem: Small, width: 20)",
        "ResNet50(stem: Small, width: 16)",
        "ConvNet(convolution: Winograd)",
    ] {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| one_pass(recipe))
        };
        let one = with(1);
        assert!(one.iter().flatten().all(|v| v.is_finite()));
        for threads in [2, 3, 7] {
            assert!(one == with(threads), "{recipe} on {threads} threads");
        }
    }
}

#[test]
fn passes_use_and_update_statistics_as_documented() {
    let mut encoder = build_for("ConvNet(channels: [16, 16])", 8, 3);
    let x = images([4, 3, 8, 8], |n| 2.0 * noise(n, 5) + 0.3);
    let snapshot =
        |e: &dyn Encoder<Cpu>| e.statistics().iter().map(|p| p.value().clone()).collect::<Vec<_>>();
    let start = snapshot(&*encoder);
    let eval = encoder.forward(x.clone(), Pass::Eval).unwrap().as_vec();
    assert_eq!(snapshot(&*encoder), start, "evaluation leaves statistics alone");
    let momentum = encoder.forward(x.clone(), Pass::Momentum).unwrap().as_vec();
    let after = snapshot(&*encoder);
    assert_ne!(after, start);
    let train = encoder.forward(x.clone(), Pass::Train).unwrap();
    assert_eq!(train.as_vec(), momentum, "both take statistics from the batch");
    assert_ne!(momentum, eval);
    // The running mean approaches the batch's: r ← r + 0.1 (m − r).
    let twice = snapshot(&*encoder);
    for ((a, b), c) in start[0].iter().zip(&after[0]).zip(&twice[0]) {
        assert!(((c - b) - 0.9 * (b - a)).abs() < 1e-6);
    }
    // Other batch sizes, larger and smaller, see the same network.
    let mut twin = encoder.duplicate().unwrap();
    let big = images([9, 3, 8, 8], |n| 2.0 * noise(n, 5) + 0.3);
    let first = encoder.forward(big, Pass::Eval).unwrap().as_vec();
    let small = encoder.forward(x, Pass::Eval).unwrap().as_vec();
    assert_eq!(first[..small.len()], small);
    let x = images([4, 3, 8, 8], |n| 2.0 * noise(n, 5) + 0.3);
    assert_eq!(
        twin.forward(x, Pass::Eval).unwrap().as_vec(),
        small,
        "a duplicate has parameters and statistics"
    );
    twin.parameters()[0].value_mut().fill(0.0);
    assert!(encoder.parameters()[0].value().iter().any(|v| *v != 0.0), "and shares nothing");
}

#[test]
fn gradients_add_up_and_one_training_pass_is_outstanding_at_most() {
    let mut encoder = build_for("ConvNet(channels: [16, 16])", 8, 1);
    let x = images([4, 1, 8, 8], |n| 2.0 * noise(n, 5));
    let mut run = || encoder.forward(x.clone(), Pass::Train);
    let first = run().unwrap();
    let text = run().err().unwrap().to_string();
    assert!(text.contains("still waiting for its backward pass"), "{text}");
    drop(first);
    run().unwrap().square().sum::<Rank0, _>().backward();
    let once: Vec<f32> = encoder.parameters()[0].grad().clone();
    encoder.forward(x.clone(), Pass::Train).unwrap().square().sum::<Rank0, _>().backward();
    for (twice, once) in encoder.parameters()[0].grad().iter().zip(&once) {
        assert!((twice - 2.0 * once).abs() <= 1e-6 * once.abs().max(1.0));
    }
}

#[test]
fn evaluation_between_forward_and_backward_changes_nothing() {
    let gradient = |disturb: bool| {
        let mut encoder = build_for("ResNet18(stem: Small, width: 16)", 9, 1);
        let x = images([4, 1, 9, 9], |n| 2.0 * noise(n, 5));
        let features = encoder.forward(x.clone(), Pass::Train).unwrap();
        if disturb {
            encoder.forward(images([6, 1, 9, 9], |n| noise(n, 8)), Pass::Eval).unwrap();
        }
        features.square().sum::<Rank0, _>().backward();
        encoder.parameters().iter().map(|p| p.grad().clone()).collect::<Vec<_>>()
    };
    assert!(gradient(false) == gradient(true));
}

#[test]
fn wrong_images_are_refused_with_both_shapes() {
    let mut encoder = build_for("ConvNet()", 8, 1);
    let text = encoder.forward(images([2, 3, 8, 8], |_| 0.0), Pass::Eval).err().unwrap().to_string();
    assert_eq!(text, "conv1: 2 images of 8×8×3 for a network built for 8×8×1");
    let mut encoder = build_for("ConvNet(channels: [16, 16])", 2, 1);
    let text = encoder.forward(images([1, 1, 2, 2], |_| 0.0), Pass::Train).err().unwrap().to_string();
    assert_eq!(text, "bn2: a single value has no variance: use a batch of at least 2 images");
    assert!(encoder.forward(images([1, 1, 2, 2], |_| 0.0), Pass::Eval).is_ok());
}

#[test]
fn layers_tell_shapes_costs_and_algorithms() {
    let layers = build_for("ResNet18(stem: Small)", 32, 3).layers();
    let named = |name: &str| layers.iter().find(|l| l.name == name).unwrap();
    assert_eq!(named("layer2.0.conv1").output, [16, 16, 128]);
    assert_eq!(named("layer2.0.conv1").algorithm, "direct");
    assert_eq!(named("layer2.0.conv2").algorithm, "Winograd F(4×4, 3×3)");
    assert_eq!(named("layer1.0.conv1").multiply_adds, 32 * 32 * 64 * 64 * 9);
    assert_eq!(layers.iter().map(|l| l.parameters).sum::<usize>(), 11_168_832);
    assert!(
        build_for("ResNet18(stem: Small, convolution: Direct)", 32, 3)
            .layers()
            .iter()
            .all(|l| !l.algorithm.starts_with('W'))
    );
}
