//! Encoders in plain dfdx operations, compared with PyTorch and finite differences.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{Perceptron, assert_differences, close, exact, from_kinks, zeros};
use dfdx::prelude::*;
use pauc_models::network::backward_with;
use pauc_testing::tolerance::{self, random_walk};
use pauc_testing::{Rounded, assert_within};
use pauc_traits::component_ron::options;
use pauc_traits::registry::kind;
use pauc_traits::{BuildOptions, Configured, Encoder, ImageShape, Param, Pass};
use serde_json::Value;

fn build(text: &str, input: ImageShape) -> pauc_traits::Result<Box<dyn Encoder<Cpu>>> {
    Configured::<kind::Encoder>::parse(text).unwrap().build(&Cpu::default(), input, BuildOptions::seed(4))
}

const IMAGE: ImageShape = ImageShape { height: 8, width: 12, channels: 3 };

fn images(n: usize) -> Tensor<(usize, usize, usize, usize), f32, Cpu> {
    let values = (0..n * IMAGE.len()).map(|i| (0.21 * i as f64).sin() as f32).collect();
    Cpu::default().tensor_from_vec(values, (n, IMAGE.height, IMAGE.width, IMAGE.channels))
}

/// Returns the number of f32 operations from a pixel to a feature of a transformer that sees [`IMAGE`] in
/// patches of 4×4: the lengths of all products, the sums of normalization and softmax, and a few for each of
/// those and for GELU.
///
/// Normalization keeps values at size one, so to first order their rounding errors add up, layer by layer.
fn operations(depth: usize, width: usize, heads: usize, hidden: usize) -> usize {
    let (tokens, norm) = (7, width + 5);
    let attention = norm + width + width / heads + (tokens + 5) + tokens + width + 1;
    let perceptron = norm + width + 10 + hidden + 1;
    4 * 4 * 3 + 2 + depth * (attention + perceptron) + tokens + norm
}

fn set_by_formula(params: &[Param<Cpu>]) {
    for (n, p) in params.iter().enumerate() {
        let base = if p.name.contains("norm") && p.name.ends_with("weight") { 1.0 } else { 0.0 };
        for (i, v) in p.value_mut().iter_mut().enumerate() {
            *v = (base + 0.5 * (0.5 * n as f64 + 0.37 * i as f64).sin()) as f32;
        }
    }
}

#[test]
fn the_vision_transformer_equals_pytorch() {
    let path = format!("{}/tests/golden/vit.json", env!("CARGO_MANIFEST_DIR"));
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let pool = case["pool"].as_str().unwrap();
        let text = format!(
            "VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, mlp_ratio: 2, patch: 4, pool: {pool})"
        );
        let mut encoder = build(&text, IMAGE).unwrap();
        let params = encoder.parameters();
        set_by_formula(&params);
        let features = encoder.forward(images(3), Pass::Train).unwrap();
        let want: Vec<f64> = serde_json::from_value(case["features"].clone()).unwrap();
        let got = features.as_vec();
        assert_eq!(got.len(), want.len());
        let forward = operations(2, 8, 2, 16);
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert_within!(*g, *w, tolerance::f32(forward, 1.0 + w.abs()), "{pool} feature {i}");
        }
        assert_eq!(encoder.forward(images(3), Pass::Eval).unwrap().as_vec(), got);
        backward_with(features, (0..24).map(|i| (0.9 * f64::from(i)).cos() as f32).collect(), None).unwrap();
        let references = case["gradients"].as_array().unwrap();
        assert_eq!(references.len(), params.len());
        for (p, reference) in params.iter().zip(references) {
            assert_eq!(p.name, reference["name"].as_str().unwrap());
            assert_eq!(p.shape, serde_json::from_value::<Vec<usize>>(reference["shape"].clone()).unwrap());
            let g: Vec<f64> = p.grad().iter().map(|g| f64::from(*g)).collect();
            let weighted: f64 = g.iter().enumerate().map(|(i, g)| g * (0.11 * i as f64).cos()).sum();
            let got = [g.iter().sum(), weighted, g[0], g[1], g[2]];
            let want: Vec<f64> = serde_json::from_value(reference["sums"].clone()).unwrap();
            // Forward, twice as many backward, and a sum over three images of seven tokens. Errors of entries
            // are practically independent, so they add up like the squares of the entries. Single ones are
            // relative to the largest. If sums cancel, their terms have the size of the gradients at the
            // features, one.
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            let largest = g.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                let size = if i < 2 { norm } else { largest };
                assert_within!(*g, *w, random_walk(3 * forward + 21) * (1.0 + size), "{pool} {}", p.name);
            }
        }
    }
}

#[test]
fn gradients_of_a_perceptron_agree_with_finite_differences() {
    let text = "MlpEncoder(dims: [7, 5])";
    let mut encoder = build(text, IMAGE).unwrap();
    let params = encoder.parameters();
    set_by_formula(&params);
    let g: Vec<f32> = (0..2 * 5).map(|i| (0.9 * i as f32).cos()).collect();
    let features = encoder.forward(images(2), Pass::Train).unwrap();
    let net =
        Perceptron { width: IMAGE.len(), dims: &[7, 5], norms: [false; 2], bias: true, rectified: true };
    let pixels = exact(&images(2).as_vec());
    let all: Vec<Vec<Rounded>> = params.iter().map(|p| exact(&p.value())).collect();
    let (want, layers) = net.forward(&pixels, &all);
    assert!(from_kinks(&layers) > 1e-5);
    close(text, &features.as_vec(), &want);
    backward_with(features, g.clone(), None).unwrap();
    let mut gradients = zeros(&all);
    net.backward(&layers, &exact(&g), &mut gradients);
    for (n, p) in params.iter().enumerate() {
        close(&p.name, &p.grad(), &gradients[n]);
        assert_differences(&p.name, &all[n], &gradients[n], |values| {
            let mut all = all.clone();
            all[n] = values.to_vec();
            let (y, _) = net.forward(&pixels, &all);
            y.iter().zip(&g).map(|(y, g)| y.value * f64::from(*g)).sum()
        });
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (text, heads) in [
        ("VisionTransformer(size: Custom(width: 4, heads: 2), depth: 1, patch: 4, mlp_ratio: 1)", 2),
        (
            "VisionTransformer(size: Custom(width: 4, heads: 1), depth: 1, patch: 4, mlp_ratio: 1, pool: Mean)",
            1,
        ),
    ] {
        let step = 1e-2;
        let mut encoder = build(text, IMAGE).unwrap();
        let params = encoder.parameters();
        set_by_formula(&params);
        let width = encoder.feature_dim();
        let g: Vec<f32> = (0..2 * width).map(|i| (0.9 * i as f32).cos()).collect();
        let features = encoder.forward(images(2), Pass::Train).unwrap();
        let operations = operations(1, 4, heads, 4);
        // Errors of features are practically independent.
        let terms =
            features.as_vec().into_iter().zip(&g).map(|(y, g)| f64::from((1.0 + y.abs()) * g).powi(2));
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
                    let y = encoder.forward(images(2), Pass::Momentum).unwrap().as_vec();
                    p.value_mut()[i] = old;
                    (
                        y.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum::<f64>(),
                        f64::from(new),
                    )
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
}

#[test]
fn duplicates_layers_and_names_fit_the_parameters() {
    for text in [
        "MlpEncoder()",
        "VisionTransformer(depth: 2)",
        "VisionTransformer(depth: 1, size: Small, pool: Mean)",
    ] {
        let encoder = build(text, IMAGE).unwrap();
        let copy = encoder.duplicate().unwrap();
        for (a, b) in encoder.parameters().iter().zip(copy.parameters()) {
            assert_eq!((&a.name, &*a.value()), (&b.name, &*b.value()));
            b.value_mut()[0] += 1.0;
            assert_ne!(a.value()[0], b.value()[0]);
        }
        let counted: usize = encoder.layers().iter().map(|l| l.parameters).sum();
        assert_eq!(counted, encoder.parameters().iter().map(Param::len).sum::<usize>(), "{text}");
        let mut names: Vec<_> = encoder.parameters().into_iter().map(|p| p.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), encoder.parameters().len());
    }
    // timm's vit_tiny_patch16_224 without its classifier.
    let input = ImageShape { height: 224, width: 224, channels: 3 };
    let tiny = build("VisionTransformer(patch: 16)", input).unwrap();
    assert_eq!(tiny.parameters().iter().map(Param::len).sum::<usize>(), 5_717_416 - 192 * 1000 - 1000);
}

#[test]
fn configurations_that_do_not_fit_are_refused_with_a_remedy() {
    let refused = |text: &str| build(text, IMAGE).err().unwrap().to_string();
    assert!(refused("VisionTransformer(patch: 5)").contains("patches of 5×5 do not tile images of 8×12×3"));
    assert!(refused("VisionTransformer(size: Custom(width: 9, heads: 2))").contains("multiple of `heads`"));
    assert!(refused("MlpEncoder(dims: [])").contains("`dims`"));
    let mut encoder = build("MlpEncoder()", ImageShape { channels: 1, ..IMAGE }).unwrap();
    let error = encoder.forward(images(1), Pass::Eval).err().unwrap().to_string();
    assert_eq!(error, "mlp encoder: was built for images of 8×12×1, got 8×12×3");
    let text = "VisionTransformer(size:Custom(width:8,heads:2),patch:4,depth:1,mlp_ratio:4,pool:Class)";
    let parsed = Configured::<kind::Encoder>::parse(text).unwrap();
    assert_eq!(options().to_string(&parsed).unwrap(), text);
}
