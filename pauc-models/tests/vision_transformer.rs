//! The vision transformer, compared with PyTorch, timm and finite differences.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::set_by_formula;
use dfdx::prelude::*;
use pauc_models::drop_path;
use pauc_models::network::backward_with;
use pauc_testing::assert_within;
use pauc_testing::tolerance::{self, random_walk};
use pauc_traits::encoder::{Draws, TimmArgument};
use pauc_traits::registry::kind;
use pauc_traits::{BuildOptions, Compute, Configured, Encoder, ImageShape, Pass};
use serde_json::Value;

type Images = Tensor<(usize, usize, usize, usize), f32, Cpu>;

/// The images that networks are built for.
const IMAGE: ImageShape = ImageShape { height: 8, width: 12, channels: 3 };

fn build(text: &str, input: ImageShape) -> Box<dyn Encoder<Cpu>> {
    let config = Configured::<kind::Encoder>::parse(text).unwrap();
    config.build(&Cpu::default(), input, BuildOptions::seed(4)).unwrap()
}

fn images(n: usize, shape: ImageShape) -> Images {
    let values = (0..n * shape.len()).map(|i| (0.21 * i as f64).sin() as f32).collect();
    Cpu::default().tensor_from_vec(values, (n, shape.height, shape.width, shape.channels))
}

/// The sizes of a network that rounding depends on.
#[derive(Clone, Copy)]
struct Sizes {
    tokens: usize,
    depth: usize,
    width: usize,
    heads: usize,
    hidden: usize,
}

impl Sizes {
    /// Returns the number of f32 operations from a pixel to a feature of a transformer with patches of 4×4: the
    /// lengths of all products, the sums of normalization and softmax, and a few for each of those, for GELU or the
    /// gate, LayerScale and dropped paths.
    ///
    /// Normalization keeps values at size one, so to first order their rounding errors add up, layer by layer.
    fn operations(self) -> usize {
        let Sizes { tokens, depth, width, heads, hidden } = self;
        let norm = width + 5;
        let attention = norm + width + width / heads + (tokens + 5) + tokens + width + 1;
        let perceptron = norm + width + 10 + hidden + 1;
        4 * 4 * 3 + 2 + depth * (attention + perceptron + 4) + tokens + norm
    }
}

/// Compares features and gradients with a stored case. `forward` is the number of operations of a forward pass.
fn assert_equals(case: &Value, encoder: &mut dyn Encoder<Cpu>, images: &Images, forward: usize, what: &str) {
    let params = encoder.parameters();
    set_by_formula(&params);
    let features = encoder.forward(images.clone(), Pass::Train).unwrap();
    let want: Vec<f64> = serde_json::from_value(case["features"].clone()).unwrap();
    let got = features.as_vec();
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert_within!(*g, *w, tolerance::f32(forward, 1.0 + w.abs()), "{what} feature {i}");
    }
    assert_eq!(encoder.forward(images.clone(), Pass::Eval).unwrap().as_vec(), got);
    let gradient = (0..got.len()).map(|i| (0.9 * i as f64).cos() as f32).collect();
    backward_with(features, gradient, None).unwrap();
    let references = case["gradients"].as_array().unwrap();
    assert_eq!(references.len(), params.len());
    let (batch, ..) = *images.shape();
    for (p, reference) in params.iter().zip(references) {
        assert_eq!(p.name, reference["name"].as_str().unwrap());
        assert_eq!(p.shape, serde_json::from_value::<Vec<usize>>(reference["shape"].clone()).unwrap());
        let g: Vec<f64> = p.grad().iter().map(|g| f64::from(*g)).collect();
        let weighted: f64 = g.iter().enumerate().map(|(i, g)| g * (0.11 * i as f64).cos()).sum();
        let got = [g.iter().sum(), weighted, g[0], g[1], g[2]];
        let want: Vec<f64> = serde_json::from_value(reference["sums"].clone()).unwrap();
        // Forward, twice as many backward, and a sum over three images and their tokens. Errors of entries
        // are practically independent, so they add up like the squares of the entries. Single ones are
        // relative to the largest. If sums cancel, their terms have the size of the gradients at the
        // features, one.
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        let largest = g.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            let size = if i < 2 { norm } else { largest };
            let operations = 3 * forward + 14 * batch;
            assert_within!(*g, *w, random_walk(operations) * (1.0 + size), "{what} {}", p.name);
        }
    }
}

fn golden(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file["cases"].as_array().unwrap().clone()
}

#[test]
fn the_vision_transformer_equals_pytorch() {
    for case in golden("vit") {
        let pool = case["pool"].as_str().unwrap();
        let text = format!(
            "VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, mlp_ratio: 2, patch: 4, pool: {pool})"
        );
        let forward = Sizes { tokens: 7, depth: 2, width: 8, heads: 2, hidden: 16 }.operations();
        assert_equals(&case, &mut *build(&text, IMAGE), &images(3, IMAGE), forward, pool);
    }
}

#[test]
fn options_and_other_sizes_equal_timm() {
    let cases = golden("vit_options");
    assert_eq!(cases.len(), 9);
    for case in cases {
        let fields = case["fields"].as_str().unwrap();
        let text = format!(
            "VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, mlp_ratio: 2, patch: 4, {fields})"
        );
        let [height, width] = [0, 1].map(|i| case["size"][i].as_u64().unwrap() as usize);
        let shape = ImageShape { height, width, channels: 3 };
        let built = build(&text, IMAGE);
        let mut encoder = if shape == IMAGE { built } else { built.resized(shape).unwrap() };
        // At most a grid of 3×4, a class token and two registers. Positions are sums over the grid of 2×3, there
        // with rounded weights.
        let tokens = 15;
        let resampling = 4 * 6;
        let forward = Sizes { tokens, depth: 2, width: 8, heads: 2, hidden: 16 }.operations() + resampling;
        assert_equals(&case, &mut *encoder, &images(3, shape), forward, &format!("{fields}, {shape}"));
    }
}

/// Compares the gradients of a small network, built for [`IMAGE`] and run on images of `shape`, with finite differences.
fn assert_slopes(fields: &str, heads: usize, shape: ImageShape, draws: Option<&Draws>) {
    let depth = if draws.is_some() { 2 } else { 1 };
    let text = format!(
        "VisionTransformer(size: Custom(width: 4, heads: {heads}), depth: {depth}, patch: 4, mlp_ratio: 1, {fields})"
    );
    let step = 1e-2;
    let built = build(&text, IMAGE);
    let mut encoder = if shape == IMAGE { built } else { built.resized(shape).unwrap() };
    let params = encoder.parameters();
    set_by_formula(&params);
    let mut forward = |pass| match draws {
        None => encoder.forward(images(2, shape), pass).unwrap(),
        Some(draws) => encoder.forward_drawn(images(2, shape), pass, draws).unwrap(),
    };
    let g: Vec<f32> = (0..2 * 4).map(|i| (0.9 * i as f32).cos()).collect();
    let features = forward(Pass::Train);
    let operations = Sizes { tokens: 15, depth, width: 4, heads, hidden: 8 }.operations();
    // Errors of features are practically independent.
    let terms = features.as_vec().into_iter().zip(&g).map(|(y, g)| f64::from((1.0 + y.abs()) * g).powi(2));
    let size = terms.sum::<f64>().sqrt();
    backward_with(features, g.clone(), None).unwrap();
    for p in &params {
        // Checks every parameter; of large ones, a few evenly spread elements.
        for i in (0..p.len()).step_by(p.len().div_ceil(12)) {
            // The objective, and the parameter as rounded to f32.
            let mut shifted = |by: f32| {
                let old = p.value()[i];
                let new = old + by;
                p.value_mut()[i] = new;
                let y = forward(Pass::Momentum).as_vec();
                p.value_mut()[i] = old;
                (y.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum::<f64>(), f64::from(new))
            };
            // Richardson extrapolation: f32 requires wide steps, and wide steps require the next order.
            let mut slope = |h: f32| {
                let (up, down) = (shifted(h), shifted(-h));
                (up.0 - down.0) / (up.1 - down.1)
            };
            let (near, far) = (slope(step), slope(2.0 * step));
            let numeric = (4.0 * near - far) / 3.0;
            // The change by the extrapolation bounds the remaining error. Each slope is off by the
            // rounding of two objectives: ⁴⁄₃ and ⅓ of them sum to 1.5 objectives over the step.
            let truncation = (near - far).abs() / 3.0;
            let rounding = 1.5 * random_walk(operations) * size / f64::from(step);
            let got = f64::from(p.grad()[i]);
            let backward = random_walk(3 * operations) * (1.0 + got.abs());
            assert_within!(got, numeric, truncation + rounding + backward, "{text} {}[{i}]", p.name);
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (fields, heads) in [
        ("", 2),
        ("pool: Mean", 1),
        ("layer_scale: 1e-5", 2),
        ("mlp: SwiGlu", 2),
        ("registers: 2", 1),
        ("registers: 2, prefix_positions: false, pool: Mean", 2),
    ] {
        assert_slopes(fields, heads, IMAGE, None);
    }
}

#[test]
fn gradients_pass_through_interpolated_positions() {
    let larger = ImageShape { height: 12, width: 16, channels: 3 };
    let smaller = ImageShape { height: 4, width: 8, channels: 3 };
    for shape in [larger, smaller] {
        assert_slopes("", 2, shape, None);
        assert_slopes("registers: 1, prefix_positions: false", 1, shape, None);
    }
}

#[test]
fn dropped_paths_multiply_what_a_branch_adds() {
    const BLOCKS: usize = 3;
    let fields = "size: Custom(width: 8, heads: 2), depth: 3, mlp_ratio: 2, patch: 4, layer_scale: 0.5";
    let mut dropping = build(&format!("VisionTransformer({fields}, drop_path: 0.8)"), IMAGE);
    let mut plain = build(&format!("VisionTransformer({fields})"), IMAGE);
    set_by_formula(&dropping.parameters());
    let draws = Draws { seed: 1, step: 9, images: (0..6).map(|i| (i / 2, i % 2)).collect() };
    let got = dropping.forward_drawn(images(6, IMAGE), Pass::Train, &draws).unwrap().as_vec();
    let rates: Vec<f64> = drop_path::rates(0.8, BLOCKS).into_iter().flat_map(|rate| [rate, rate]).collect();
    assert_eq!(rates, [0.0, 0.0, 0.4, 0.4, 0.8, 0.8]);
    let factors = drop_path::factors(&draws, 6, &rates).unwrap();
    assert!(factors.concat().contains(&0.0), "nothing is dropped");
    let all = images(6, IMAGE).as_vec();
    let forward = Sizes { tokens: 7, depth: BLOCKS, width: 8, heads: 2, hidden: 16 }.operations();
    for (image, got) in got.chunks(8).enumerate() {
        // LayerScale times the factor of a branch is the branch times the factor.
        set_by_formula(&plain.parameters());
        for p in plain.parameters().iter().filter(|p| p.name.ends_with(".gamma")) {
            let block: usize = p.name.split('.').nth(1).unwrap().parse().unwrap();
            let factor = factors[2 * block + usize::from(p.name.contains("ls2"))][image];
            p.value_mut().iter_mut().for_each(|v| *v *= factor);
        }
        let alone = all[image * IMAGE.len()..][..IMAGE.len()].to_vec();
        let alone = Cpu::default().tensor_from_vec(alone, (1, IMAGE.height, IMAGE.width, IMAGE.channels));
        let want = plain.forward(alone, Pass::Eval).unwrap().as_vec();
        for (g, w) in got.iter().zip(want) {
            assert_within!(*g, f64::from(w), 2.0 * tolerance::f32(forward, 1.0 + f64::from(w.abs())));
        }
    }
}

#[test]
fn gradients_pass_through_kept_paths_only() {
    // The first of two blocks drops nothing, and the second half of its branches.
    let rates = [0.0, 0.0, 0.5, 0.5];
    let with_seed = |seed| Draws { seed, step: 3, images: vec![(5, 0), (5, 1)] };
    // Draws by which one of the two images skips the attention of the second block, and one its perceptron.
    let drops_one = |draws: &Draws| {
        let factors = drop_path::factors(draws, 2, &rates).unwrap();
        factors[2..].iter().all(|images| images.iter().filter(|f| **f == 0.0).count() == 1)
    };
    let draws = (0..).map(with_seed).find(drops_one).unwrap();
    assert_slopes("layer_scale: 1e-5, drop_path: 0.5", 2, IMAGE, Some(&draws));
}

#[test]
fn paths_are_dropped_only_with_draws() {
    let text = "VisionTransformer(size: Custom(width: 8, heads: 2), depth: 3, patch: 4, drop_path: 0.9)";
    let mut net = build(text, IMAGE);
    set_by_formula(&net.parameters());
    let without = build(&text.replace(", drop_path: 0.9", ""), IMAGE).parameters().len();
    assert_eq!(net.parameters().len(), without);
    let draws = |step| Draws { seed: 1, step, images: vec![(0, 0), (1, 0)] };
    let [whole, momentum, eval] = [Pass::Train, Pass::Momentum, Pass::Eval]
        .map(|pass| net.forward(images(2, IMAGE), pass).unwrap().as_vec());
    assert!(whole == momentum && whole == eval);
    let mut drawn = |step, pass| net.forward_drawn(images(2, IMAGE), pass, &draws(step)).unwrap().as_vec();
    let first = drawn(1, Pass::Train);
    assert_eq!(first, drawn(1, Pass::Momentum), "a pass without a tape drops the same paths");
    assert!(first != whole && first != drawn(2, Pass::Train));
    let three = net.forward_drawn(images(3, IMAGE), Pass::Train, &draws(1)).unwrap_err().to_string();
    assert!(three.contains("draws for 2 images, got 3"), "{three}");
}

#[test]
fn depths_are_those_of_mae() {
    let net = build("VisionTransformer(depth: 2, registers: 1, layer_scale: 0.1)", IMAGE);
    let depths = net.depths().unwrap();
    let params = net.parameters();
    assert_eq!((depths.of.len(), depths.groups), (params.len(), 4));
    for (p, factor) in params.iter().zip(depths.factors(0.75)) {
        // MAE's lrd.get_layer_id_for_vit: the power is the number of layers above.
        let above = match p.name.split('.').collect::<Vec<_>>()[..] {
            ["cls_token" | "reg_token" | "pos_embed" | "patch_embed", ..] => 3,
            ["blocks", "0", ..] => 2,
            ["blocks", "1", ..] => 1,
            ["norm", ..] => 0,
            _ => panic!("{}", p.name),
        };
        assert_eq!(factor, 0.75f64.powi(above), "{}", p.name);
    }
    assert!(depths.factors(1.0).iter().all(|f| *f == 1.0));
}

#[test]
fn other_sizes_share_parameters_and_must_be_tiled() {
    let net = build("VisionTransformer(size: Custom(width: 8, heads: 2), depth: 1, patch: 4)", IMAGE);
    let square = ImageShape { height: 16, width: 16, channels: 3 };
    let resized = net.resized(square).unwrap();
    for (a, b) in net.parameters().iter().zip(resized.parameters()) {
        b.value_mut()[0] = 7.0;
        assert_eq!((&a.name, a.value()[0]), (&b.name, 7.0), "shared");
    }
    // The same number of patches in another grid is another size too.
    let tall = ImageShape { height: 12, width: 8, channels: 3 };
    let [mut wide, mut tall_net] = [IMAGE, tall].map(|shape| net.resized(shape).unwrap());
    set_by_formula(&net.parameters());
    let features =
        |net: &mut dyn Encoder<Cpu>, shape| net.forward(images(1, shape), Pass::Eval).unwrap().as_vec();
    let mut original = net;
    assert_eq!(features(&mut *wide, IMAGE), features(&mut *original, IMAGE));
    assert_ne!(features(&mut *tall_net, tall), features(&mut *wide, IMAGE));
    let refused = |height, channels| {
        original.resized(ImageShape { height, width: 8, channels }).err().unwrap().to_string()
    };
    assert!(refused(10, 3).contains("patches of 4×4 do not tile images of 10×8×3"), "{}", refused(10, 3));
    assert!(refused(8, 1).contains("was built for 3 channels, got images of 8×8×1"), "{}", refused(8, 1));
    assert!(refused(0, 3).contains("do not tile"), "{}", refused(0, 3));
}

/// Parameters of timm's models without their classifier.
#[test]
fn networks_have_as_many_parameters_as_timms() {
    for (text, side, parameters) in [
        ("VisionTransformer(patch: 16)", 224, 5_524_416),
        ("VisionTransformer(size: Small, patch: 14, layer_scale: 1e-5)", 518, 22_056_192),
        (
            "VisionTransformer(size: Small, patch: 14, layer_scale: 1e-5, registers: 4, prefix_positions: false)",
            518,
            22_057_344,
        ),
        (
            "VisionTransformer(size: Giant, depth: 40, patch: 14, layer_scale: 1e-5, mlp: SwiGlu)",
            518,
            1_136_479_232,
        ),
    ] {
        let config = Configured::<kind::Encoder>::parse(text).unwrap();
        let input = ImageShape { height: side, width: side, channels: 3 };
        let size = Cpu::encoder(&*config.value).size(input).unwrap().unwrap();
        assert_eq!(size.parameters, parameters, "{text}");
    }
}

#[test]
fn models_of_timm_have_the_arguments_that_differ() {
    use TimmArgument::{Bool, Float, Int, Pair};
    let of = |fields: &str| {
        let config =
            Configured::<kind::Encoder>::parse(&format!("VisionTransformer(patch: 14, {fields})")).unwrap();
        let input = ImageShape { height: 28, width: 42, channels: 3 };
        let model = Cpu::encoder(&*config.value).timm(input).unwrap();
        assert_eq!(model.arguments[..2], [("img_size", Pair([28, 42])), ("patch_size", Int(14))]);
        (model.architecture, model.arguments[2..].to_vec())
    };
    let is = |fields: &str, name: &str, arguments: &[(&'static str, TimmArgument)]| {
        assert_eq!(of(fields), (name.to_string(), arguments.to_vec()), "{fields}");
    };
    is("", "vit_tiny_patch16_224", &[]);
    is("size: Large, depth: 24", "vit_large_patch16_224", &[]);
    is("size: Small, layer_scale: 1e-5", "vit_small_patch14_dinov2", &[]);
    is(
        "size: Base, layer_scale: 1e-5, registers: 4, prefix_positions: false",
        "vit_base_patch14_reg4_dinov2",
        &[],
    );
    is("size: Giant, depth: 40, layer_scale: 1e-5, mlp: SwiGlu", "vit_giant_patch14_dinov2", &[]);
    is(
        "layer_scale: 0.1, registers: 2",
        "vit_small_patch14_dinov2",
        &[
            ("embed_dim", Int(192)),
            ("num_heads", Int(3)),
            ("init_values", Float(0.1)),
            ("reg_tokens", Int(2)),
        ],
    );
    is(
        "size: Giant, depth: 40, mlp: SwiGlu, mlp_ratio: 2",
        "vit_giant_patch14_dinov2",
        // Two thirds of 3072, twice, as a multiple of 1536.
        &[("mlp_ratio", Float(4096.5 / 1536.0)), ("init_values", Float(0.0))],
    );
    is("prefix_positions: false", "vit_tiny_patch16_224", &[("no_embed_class", Bool(true))]);
}
