//! Encoders compared with PyTorch and torchvision in float64, with weights and images from formulas.
#![allow(clippy::unwrap_used)] // helpers of tests

use dfdx::prelude::*;
use pauc_models::drop_path;
use pauc_testing::assert_within;
use pauc_testing::tolerance::{self, SIGMAS, random_walk};
use pauc_traits::component_ron::OpenSet;
use pauc_traits::encoder::{Draws, Layer};
use pauc_traits::param::clear_gradients;
use pauc_traits::registry::kind;
use pauc_traits::{BuildOptions, Compute, Configured, Encoder, ImageShape, Param, Pass};
use serde_json::Value;

type Images = Tensor<(usize, usize, usize, usize), f32, Cpu>;

fn build(recipe: &str, input: ImageShape) -> Box<dyn Encoder<Cpu>> {
    let config = Configured::<kind::Encoder>::parse(recipe).unwrap_or_else(|e| panic!("{recipe}: {e}"));
    Cpu::encoder(&*config.value).build(&Cpu::default(), input, BuildOptions::seed(0)).unwrap()
}

/// Returns channels-last images from a formula over (batch, channels, height, width) in row-major order.
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

/// Returns the noise of `golden/encoders.py`.
fn noise(n: usize, l: usize) -> f64 {
    let v = (12.9898 * n as f64 + 78.233 * l as f64).sin() * 43758.5453;
    v - v.floor() - 0.5
}

/// Asserts that the norm, the product with cos(n) and the first values agree to six times `deviation`,
/// relative to the norm, or to a value's own size if that is larger. Values that are differences of numbers
/// of size `least` are not more accurate than those.
fn compare(name: &str, got: &[f32], want: &Value, deviation: f64, least: f64) {
    let tolerance = SIGMAS * deviation;
    let l2 = want["l2"].as_f64().unwrap();
    let whole = l2.max(least * (got.len() as f64).sqrt());
    let norm = got.iter().map(|v| (*v as f64).powi(2)).sum::<f64>().sqrt();
    assert_within!(norm, l2, tolerance * whole, "norm of {name}");
    let cos: f64 = got.iter().enumerate().map(|(n, v)| *v as f64 * (n as f64).cos()).sum();
    let want_cos = want["cos"].as_f64().unwrap();
    assert_within!(cos, want_cos, tolerance * whole, "product of {name} of norm {l2}");
    let size = whole / (got.len() as f64).sqrt();
    for (i, (g, w)) in got.iter().zip(numbers(&want["first"])).enumerate() {
        assert_within!(*g, w, tolerance * size.max(w.abs()), "{name}[{i}]");
    }
}

/// Whether a value may be so near zero that its ReLU opens in `f32` but not in `f64`.
#[derive(Clone, Copy, PartialEq)]
enum Kinks {
    /// No value.
    Far,
    /// Some values, in proportion to rounding.
    Crossed,
}

/// Returns the number of operations from a pixel to a feature: the inner products of all convolutions, and
/// normalization. Winograd's transforms make rounding five times as large (measured: 4.1 to 5.3 times for 16
/// to 256 channels), like 25 times as many operations.
fn operations(encoder: &dyn Encoder<Cpu>) -> usize {
    let of = |layer: &Layer| {
        let terms = layer.multiply_adds as usize / layer.output.iter().product::<usize>();
        5 + if layer.algorithm.starts_with("Winograd") { 25 * terms } else { terms }
    };
    convolutions(encoder).iter().map(of).sum()
}

fn convolutions(encoder: &dyn Encoder<Cpu>) -> Vec<Layer> {
    encoder.layers().into_iter().filter(|l| !l.algorithm.is_empty()).collect()
}

/// Returns the features of a training pass, and then the gradients of their weighted sum.
fn training_pass(encoder: &mut dyn Encoder<Cpu>, x: &Images) -> Vec<Vec<f32>> {
    clear_gradients(&Cpu::default(), &encoder.parameters()).unwrap();
    let train = encoder.forward(x.clone(), Pass::Train).unwrap();
    let (values, shape) = (train.as_vec(), *train.shape());
    let factors: Vec<f32> = (0..shape.0 * shape.1).map(|n| noise(n, 2000) as f32).collect();
    (train * Cpu::default().tensor_from_vec(factors, shape)).sum::<Rank0, _>().backward();
    let gradients = encoder.parameters();
    [values].into_iter().chain(gradients.iter().map(|p| p.grad().clone())).collect()
}

/// Returns the standard deviations that rounding causes in the features and in each gradient of a network,
/// relative to their norms.
///
/// Features are off by at least the random walk through all products. The amplification by a deep network is
/// measured: all convolution weights are changed by a relative ±2⁻¹⁴, which changes the output of each
/// convolution by 2⁻¹⁴ in norm. Rounding changes them by a random walk through their inner products, which is
/// less, and features by less in the same ratio.
///
/// Gradients also pass through the backward pass. They change mostly because ReLUs of values near zero open
/// or close; the number of these is in proportion to the change. A fraction s of gradients that appear or
/// disappear is √s of their norm, so gradients change by less in the root of the ratio. (A single value of 12
/// 288, in the last layers of a small ResNet-18, makes 0.009. PyTorch's own gradients in `f32` are off by
/// 0.001 for ResNet-18 and 0.008 for ResNet-50.)
fn deviations(encoder: &mut dyn Encoder<Cpu>, x: &Images, before: &[Vec<f32>], kinks: Kinks) -> Vec<f64> {
    const CHANGE: f32 = 1.0 / (1 << 14) as f32;
    // Mean rounding relative to the random walk, which is a bound: 0.37 for products of 144 to 2304 terms
    // (measured).
    const MEAN: f64 = 0.4;
    for (l, p) in encoder.parameters().iter().enumerate().filter(|(_, p)| p.shape.len() == 4) {
        let sign = |n: usize| noise(n, 3000 + l).signum() as f32;
        p.value_mut().iter_mut().enumerate().for_each(|(n, w)| *w *= 1.0 + sign(n) * CHANGE);
    }
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let moved = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
    };
    let after = training_pass(encoder, x);
    let (operations, layers) = (operations(encoder), convolutions(encoder).len() as f64);
    let bound = random_walk(operations) / SIGMAS;
    let ratio = MEAN * bound / layers.sqrt() / f64::from(CHANGE);
    let mut deviations: Vec<f64> = before.iter().zip(&after).map(moved).collect();
    deviations[0] = bound.max(ratio * deviations[0]);
    for gradient in &mut deviations[1..] {
        let crossed = if kinks == Kinks::Far { 0.0 } else { ratio.sqrt() * *gradient };
        *gradient = random_walk(2 * operations) / SIGMAS + crossed;
    }
    deviations
}

/// Runs a case of `golden/encoders.json`, with `convolution`, if any, inserted into the recipe.
fn check(recipe: &str, convolution: &str, kinks: Kinks) {
    let golden: Value = serde_json::from_str(include_str!("golden/encoders.json")).unwrap();
    let case = golden["cases"].as_array().unwrap().iter().find(|c| c["recipe"] == recipe).unwrap();
    let size: Vec<usize> = numbers(&case["images"]).iter().map(|v| *v as usize).collect();
    let size = [size[0], size[1], size[2], size[3]];
    let separator = if recipe.ends_with("()") { "" } else { ", " };
    let full = match convolution {
        "" => recipe.to_string(),
        _ => recipe.replace(')', &format!("{separator}convolution: {convolution})")),
    };
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
                2 | 4 => u * (24.0 / fan_in as f64).sqrt(),
                _ if p.name.ends_with("weight") => 1.0 + 0.2 * u,
                _ => 0.2 * u,
            } as f32;
        }
    }
    let x = images(size, |n| 2.0 * noise(n, 1000));
    let eval = encoder.forward(x.clone(), Pass::Eval).unwrap().as_vec();
    let values = |e: &dyn Encoder<Cpu>| e.statistics().iter().map(|s| s.value().clone()).collect::<Vec<_>>();
    let before = values(&*encoder);
    let trained = training_pass(&mut *encoder, &x);
    let statistics = values(&*encoder);
    let deviations = deviations(&mut *encoder, &x, &trained, kinks);
    compare("eval", &eval, &case["eval"], deviations[0], 0.0);
    compare("train", &trained[0], &case["train"], deviations[0], 0.0);
    for ((p, gradient), deviation) in parameters.iter().zip(&trained[1..]).zip(&deviations[1..]) {
        compare(&p.name, gradient, &case["gradients"][&p.name], *deviation, 0.0);
    }
    for (name, want) in case["statistics"].as_object().unwrap() {
        let place = encoder.statistics().iter().position(|p| p.name == *name).unwrap();
        // A tenth of means of values of size one.
        compare(name, &statistics[place], want, deviations[0], 0.1);
    }
    assert!(statistics.iter().zip(&before).all(|(s, b)| s != b), "statistics were updated");
}

#[test]
fn conv_net_equals_pytorch() {
    // In float64, no value of the first and the last layer is within 1e-4 of zero, and none of the second
    // within 2.9e-6, the largest rounding error there.
    check("ConvNet(channels: [20, 40, 64])", "Direct", Kinks::Far);
}

#[test]
fn narrow_resnet18_on_gray_images_equals_pytorch() {
    check("ResNet18(stem: Small, width: 16)", "Direct", Kinks::Crossed);
}

#[test]
fn resnet18_with_small_stem_equals_pytorch() {
    check("ResNet18(stem: Small)", "Direct", Kinks::Crossed);
}

#[test]
fn resnet18_with_imagenet_stem_equals_pytorch() {
    check("ResNet18(width: 32)", "Direct", Kinks::Crossed);
}

#[test]
fn resnet34_equals_pytorch() {
    check("ResNet34(stem: Small, width: 16)", "Direct", Kinks::Crossed);
}

#[test]
fn resnet50_equals_pytorch() {
    check("ResNet50(stem: Small, width: 16)", "Direct", Kinks::Crossed);
    check("ResNet50(width: 16)", "Direct", Kinks::Crossed);
}

#[test]
fn resnet101_equals_pytorch() {
    check("ResNet101(stem: Small, width: 16)", "Direct", Kinks::Crossed);
}

#[test]
fn resnet20_equals_pytorch() {
    check("ResNet20()", "Auto", Kinks::Crossed);
}

#[test]
fn wide_bottlenecks_equal_pytorch() {
    check("WideResNet50(stem: Small, width: 8)", "Direct", Kinks::Crossed);
}

#[test]
fn pre_activation_networks_equal_pytorch() {
    check("WideResNet(depth: 16, widen: 2)", "Direct", Kinks::Crossed);
    check("WideResNet(depth: 10, widen: 1)", "Auto", Kinks::Crossed);
}

#[test]
fn conv_next_equals_pytorch() {
    check("ConvNeXt(size: Custom(depths: [1, 2, 1], widths: [10, 24, 33]), patch: 2)", "", Kinks::Far);
    check("ConvNeXt(size: Custom(depths: [2], widths: [17]), patch: 1)", "", Kinks::Far);
}

#[test]
fn winograd_equals_pytorch_within_its_rounding() {
    check("ResNet18(stem: Small, width: 16)", "Winograd", Kinks::Crossed);
    check("ResNet34(stem: Small, width: 16)", "Auto", Kinks::Crossed);
}

/// torchvision's networks with smooth formula weights. The deeper batch statistics are too ill-conditioned
/// for `f32` (PyTorch's own features differ from its `f64` by 20 per cent), so only values that do not depend
/// on them are compared.
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
    // Without batch statistics, no layer amplifies errors.
    let tolerance = random_walk(operations(&*encoder));
    let want_l2 = features["l2"].as_f64().unwrap();
    assert_within!(l2, want_l2, tolerance * want_l2, "{case}: norm");
    let typical = want_l2 / (eval.len() as f64).sqrt();
    for (g, w) in eval.iter().zip(numbers(&features["first_row_first8"])) {
        assert_within!(*g, w, tolerance * w.abs().max(typical), "{case}");
    }
    encoder.forward(x, Pass::Momentum).unwrap();
    let statistics = encoder.statistics();
    for (name, key) in
        [("bn1.running_mean", "bn1_running_mean_first4"), ("bn1.running_var", "bn1_running_var_first4")]
    {
        let p = statistics.iter().find(|p| p.name == name).unwrap();
        let fan_in = parameters[0].len() / p.len();
        for (c, (g, w)) in p.value().iter().zip(numbers(&want[key])).enumerate() {
            // A tenth of a mean of products, or of their squares, of pixels of size 1, and the sum of the
            // running value.
            let weights: f64 =
                parameters[0].value()[c * fan_in..][..fan_in].iter().map(|w| f64::from(w.abs())).sum();
            let size = if name.ends_with("mean") { weights } else { 2.0 * weights.powi(2) };
            let rounding = 0.1 * size * random_walk(fan_in + 3) + tolerance::f32(3, 1.0 + w.abs());
            assert_within!(*g, w, rounding, "{name}[{c}]");
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

/// Returns features, gradients and statistics after one training pass.
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
        "WideResNet(depth: 16, widen: 2)",
        "ConvNeXt(size: Custom(depths: [1, 1], widths: [20, 24]), patch: 1)",
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
    assert_eq!(snapshot(&*encoder), start, "evaluation does not change statistics");
    let momentum = encoder.forward(x.clone(), Pass::Momentum).unwrap().as_vec();
    let after = snapshot(&*encoder);
    assert_ne!(after, start);
    let train = encoder.forward(x.clone(), Pass::Train).unwrap();
    assert_eq!(train.as_vec(), momentum, "both use batch statistics");
    assert_ne!(momentum, eval);
    // The running mean approaches that of the batch: r ← r + 0.1 (m − r).
    let twice = snapshot(&*encoder);
    for ((a, b), c) in start[0].iter().zip(&after[0]).zip(&twice[0]) {
        let [a, b, c] = [a, b, c].map(|v| f64::from(*v));
        // Two updates, each with a difference, a product with a rounded constant, and a sum.
        assert_within!(c - b, 0.9 * (b - a), tolerance::f32(8, a.abs() + b.abs() + c.abs()));
    }
    // Larger and smaller batches see the same network.
    let mut twin = encoder.duplicate().unwrap();
    let big = images([9, 3, 8, 8], |n| 2.0 * noise(n, 5) + 0.3);
    let first = encoder.forward(big, Pass::Eval).unwrap().as_vec();
    let small = encoder.forward(x, Pass::Eval).unwrap().as_vec();
    assert_eq!(first[..small.len()], small);
    let x = images([4, 3, 8, 8], |n| 2.0 * noise(n, 5) + 0.3);
    assert_eq!(
        twin.forward(x, Pass::Eval).unwrap().as_vec(),
        small,
        "a duplicate has the same parameters and statistics"
    );
    twin.parameters()[0].value_mut().fill(0.0);
    assert!(encoder.parameters()[0].value().iter().any(|v| *v != 0.0), "a duplicate shares nothing");
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
        // Adding the same sum to itself is exact.
        assert_eq!(*twice, 2.0 * once);
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
    assert_eq!(text, "conv1: was built for images of 8×8×1, got 2 of 8×8×3");
    let mut encoder = build_for("ConvNet(channels: [16, 16])", 2, 1);
    let text = encoder.forward(images([1, 1, 2, 2], |_| 0.0), Pass::Train).err().unwrap().to_string();
    assert_eq!(text, "bn2: a single value has no variance: use a batch of at least 2 images");
    assert!(encoder.forward(images([1, 1, 2, 2], |_| 0.0), Pass::Eval).is_ok());
}

#[test]
fn conv_next_for_other_sizes_shares_its_parameters() {
    let recipe = "ConvNeXt(size: Custom(depths: [1, 1], widths: [8, 12]), patch: 2)";
    let mut encoder = build_for(recipe, 12, 3);
    let mut small = encoder.resized(ImageShape { height: 9, width: 8, channels: 3 }).unwrap();
    let mut other = build(recipe, ImageShape { height: 9, width: 8, channels: 3 });
    let x = images([3, 3, 9, 8], |n| 2.0 * noise(n, 5));
    let features = small.forward(x.clone(), Pass::Eval).unwrap().as_vec();
    assert_eq!(features, other.forward(x.clone(), Pass::Eval).unwrap().as_vec());
    // Both passes add to the same gradients.
    let large = images([2, 3, 12, 12], |n| 2.0 * noise(n, 6));
    let passes = [(encoder.forward(large, Pass::Train).unwrap()), small.forward(x, Pass::Train).unwrap()];
    let mut sums: Vec<Vec<f32>> = Vec::new();
    for features in passes {
        features.square().sum::<Rank0, _>().backward();
        sums.push(encoder.parameters().last().unwrap().grad().clone());
    }
    assert_ne!(sums[0], sums[1]);
    assert_eq!(*small.parameters().last().unwrap().grad(), sums[1]);
    for (side, channels, says) in [
        (3, 3, "stages.1.downsample.1: its input has no windows of 2×2 for images of 3×3×3"),
        (1, 3, "stem.0: its input has no patches of 2×2 for images of 1×1×3"),
        (12, 1, "stem.0: images are 12×12×1; expected 3 channels"),
    ] {
        let text =
            encoder.resized(ImageShape { height: side, width: side, channels }).err().unwrap().to_string();
        assert!(text.starts_with(says), "{text}");
    }
}

#[test]
fn dropped_paths_multiply_what_blocks_of_conv_next_add() {
    const SIZE: &str = "size: Custom(depths: [1, 2], widths: [8, 12]), patch: 2, layer_scale: 0.5";
    let mut dropping = build_for(&format!("ConvNeXt({SIZE}, drop_path: 0.8)"), 12, 3);
    let mut plain = build_for(&format!("ConvNeXt({SIZE})"), 12, 3);
    let draws = Draws { seed: 1, step: 9, images: (0..6).map(|i| (i / 2, i % 2)).collect() };
    let factors = drop_path::factors(&draws, 6, &[0.0, 0.4, 0.8]).unwrap();
    assert!(factors.concat().contains(&0.0) && factors.concat().iter().any(|f| *f > 1.0));
    let all = images([6, 3, 12, 12], |n| 2.0 * noise(n, 5));
    let undropped = dropping.forward(all.clone(), Pass::Train).unwrap().as_vec();
    assert_eq!(undropped, plain.forward(all.clone(), Pass::Train).unwrap().as_vec(), "only with draws");
    let got = dropping.forward_drawn(all.clone(), Pass::Train, &draws).unwrap().as_vec();
    let pixels = all.as_vec();
    for (image, got) in got.chunks(12).enumerate() {
        let names = ["stages.0.blocks.0.gamma", "stages.1.blocks.0.gamma", "stages.1.blocks.1.gamma"];
        for (name, factors) in names.iter().zip(&factors) {
            let scale = plain.parameters().into_iter().find(|p| p.name == *name).unwrap();
            scale.value_mut().fill(0.5 * factors[image]);
        }
        let alone = pixels[image * 432..][..432].to_vec();
        let alone = Cpu::default().tensor_from_vec(alone, (1, 12, 12, 3));
        for (g, w) in got.iter().zip(plain.forward(alone, Pass::Eval).unwrap().as_vec()) {
            // Only the rounding of the factor differs; three blocks with a hidden layer of 48 follow.
            assert_within!(*g, f64::from(w), tolerance::f32(3 * 200, 1.0 + f64::from(w.abs())));
        }
    }
    let text =
        dropping.forward_drawn(all, Pass::Train, &Draws { images: vec![(0, 0)], ..draws }).err().unwrap();
    assert!(text.to_string().contains("random draws for 1 images, got 6"), "{text}");
}

#[test]
fn depths_of_conv_next_rise_from_the_stem_to_the_head() {
    let encoder = build_for("ConvNeXt(size: Custom(depths: [1, 2], widths: [8, 12]), patch: 2)", 12, 3);
    let depths = encoder.depths().unwrap();
    let params = encoder.parameters();
    assert_eq!((depths.of.len(), depths.groups), (params.len(), 5));
    for (p, depth) in params.iter().zip(&depths.of) {
        let want = match p.name.split('.').collect::<Vec<_>>()[..] {
            ["stem", ..] => 0,
            ["stages", "0", "blocks", "0", ..] => 1,
            ["stages", "1", "downsample", ..] | ["stages", "1", "blocks", "0", ..] => 2,
            ["stages", "1", "blocks", "1", ..] => 3,
            ["head", "norm", ..] => 4,
            _ => panic!("{}", p.name),
        };
        assert_eq!(*depth, want, "{}", p.name);
    }
}

/// Checks that `depth` gives the depth of every parameter of an encoder by its name.
fn depths_are(encoder: &str, groups: usize, depth: impl Fn(&[&str]) -> usize) {
    let encoder = build_for(encoder, 32, 3);
    let depths = encoder.depths().unwrap();
    let params = encoder.parameters();
    assert_eq!((depths.of.len(), depths.groups), (params.len(), groups));
    for (p, got) in params.iter().zip(&depths.of) {
        assert_eq!(*got, depth(&p.name.split('.').collect::<Vec<_>>()), "{}", p.name);
    }
}

#[test]
fn depths_of_convolutional_networks_count_blocks() {
    let number = |text: &str| text.parse::<usize>().unwrap();
    depths_are("ResNet34(stem: Small, width: 16)", 18, |name| match name {
        ["conv1" | "bn1", _] => 0,
        [stage, block, ..] => {
            let before = [0, 3, 7, 13][number(stage.strip_prefix("layer").unwrap()) - 1];
            1 + before + number(block)
        }
        _ => panic!("{name:?}"),
    });
    // Two blocks per stage.
    depths_are("WideResNet(depth: 16, widen: 1)", 8, |name| match name {
        ["conv1", _] => 0,
        ["bn1", _] => 7,
        [stage, "layer", block, ..] => 2 * number(stage.strip_prefix("block").unwrap()) - 1 + number(block),
        _ => panic!("{name:?}"),
    });
    depths_are("ConvNet(channels: [16, 32, 32])", 4, |name| {
        number(name[0].trim_start_matches(char::is_alphabetic)) - 1
    });
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

/// The size that is counted before a network is built is that of the network, for every encoder here.
#[test]
fn counted_sizes_are_those_of_built_networks() {
    let input = ImageShape { height: 32, width: 32, channels: 3 };
    let narrow: &[&str] = &[
        "ConvNet(channels: [8, 12, 16], grid: 2)",
        "ResNet18(stem: Small, width: 8)",
        "ResNet18(width: 8)",
        "ResNet34(stem: Small, width: 4)",
        "ResNet50(stem: Small, width: 4)",
        "ResNet101(stem: Small, width: 4)",
        "ConvNeXt(size: Atto)",
        "ConvNeXt(size: Custom(depths: [1, 3], widths: [20, 12]), patch: 2)",
        "WideResNet(depth: 16, widen: 1)",
        "WideResNet(depth: 10, widen: 2)",
        "WideResNet50(stem: Small, width: 4)",
        "WideResNet101(stem: Small, width: 4)",
        "ResNet20(width: 4)",
        "ResNet32(width: 4)",
        "ResNet56(width: 4)",
        "MlpEncoder(dims: [24, 16])",
        "VisionTransformer(size: Custom(width: 12, heads: 3), depth: 3, patch: 8)",
        "VisionTransformer(size: Custom(width: 12, heads: 3), depth: 2, patch: 4, mlp_ratio: 2, pool: Mean)",
        "VisionTransformer(size: Custom(width: 12, heads: 3), depth: 2, patch: 4, layer_scale: 0.1, registers: 3)",
        "VisionTransformer(size: Custom(width: 12, heads: 3), depth: 1, mlp: SwiGlu, registers: 2, prefix_positions: false)",
    ];
    for recipe in narrow {
        let config = Configured::<kind::Encoder>::parse(recipe).unwrap();
        let size = Cpu::encoder(&*config.value).size(input).unwrap().unwrap();
        let built = build(recipe, input);
        let parameters: usize = built.parameters().iter().map(Param::len).sum();
        assert_eq!(size.parameters, parameters as u64, "{recipe}");
        assert_eq!(size.output, built.feature_dim(), "{recipe}");
        assert!(size.activations > 0, "{recipe}");
    }
    let built_in: std::collections::BTreeSet<_> = Configured::<kind::Encoder>::names().into_iter().collect();
    let tested: std::collections::BTreeSet<_> = narrow.iter().map(|r| r.split('(').next().unwrap()).collect();
    assert_eq!(built_in, tested, "an encoder is not counted here");
}

#[test]
fn counted_sizes_of_heads_are_those_of_built_heads() {
    use pauc_models::NetworkDevice;
    use pauc_models::heads::HeadConfig;
    for text in [
        "Mlp(dims: [16, 8])",
        "Mlp(dims: [16, 12, 8], batch_norm: true)",
        "Mlp(dims: [16, 8], batch_norm: true, bias: false, last_batch_norm: true)",
        "Identity",
    ] {
        let config: HeadConfig = pauc_traits::component_ron::options().from_str(text).unwrap();
        let head = Cpu::default().head(&config, 20, 1, BuildOptions::seed(0)).unwrap();
        let size = config.size(20).unwrap();
        let parameters: usize = head.parameters().iter().map(Param::len).sum();
        assert_eq!((size.parameters, size.output), (parameters as u64, head.output_dim()), "{text}");
    }
}
