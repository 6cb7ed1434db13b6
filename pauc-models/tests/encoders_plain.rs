//! Encoders of plain dfdx operations against PyTorch and finite differences.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use dfdx::prelude::*;
use pauc_models::network::backward_with;
use pauc_traits::open_set::options;
use pauc_traits::registry::kind;
use pauc_traits::{Configured, Encoder, ImageShape, Param, Pass};
use serde_json::Value;

fn build(text: &str, input: ImageShape) -> pauc_traits::Result<Box<dyn Encoder<Cpu>>> {
    Configured::<kind::Encoder>::parse(text).unwrap().build(&Cpu::default(), input, 4)
}

const IMAGE: ImageShape = ImageShape { height: 8, width: 12, channels: 3 };

fn images(n: usize) -> Tensor<(usize, usize, usize, usize), f32, Cpu> {
    let values = (0..n * IMAGE.len()).map(|i| (0.21 * i as f64).sin() as f32).collect();
    Cpu::default().tensor_from_vec(values, (n, IMAGE.height, IMAGE.width, IMAGE.channels))
}

fn near(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() < tolerance * (1.0 + want.abs()), "{what}: {got} for {want}");
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
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            near(&format!("{pool} feature {i}"), f64::from(*g), *w, 2e-5);
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
            for (g, w) in got.iter().zip(&want) {
                near(&format!("{pool} {}", p.name), *g, *w, 1e-4);
            }
        }
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (text, step) in [
        // Short steps seldom cross a kink of ReLU; GELU has none.
        ("MlpEncoder(dims: [7, 5])", 5e-4),
        ("VisionTransformer(size: Custom(width: 4, heads: 2), depth: 1, patch: 4, mlp_ratio: 1)", 1e-2),
        (
            "VisionTransformer(size: Custom(width: 4, heads: 1), depth: 1, patch: 4, mlp_ratio: 1, pool: Mean)",
            1e-2,
        ),
    ] {
        let mut encoder = build(text, IMAGE).unwrap();
        let params = encoder.parameters();
        set_by_formula(&params);
        let width = encoder.feature_dim();
        let g: Vec<f32> = (0..2 * width).map(|i| (0.9 * i as f32).cos()).collect();
        backward_with(encoder.forward(images(2), Pass::Train).unwrap(), g.clone(), None).unwrap();
        for p in &params {
            // Every parameter, and of large ones a few elements spread over all of it.
            for i in (0..p.len()).step_by(p.len().div_ceil(12)) {
                let mut shifted = |by: f32| {
                    let old = p.value()[i];
                    p.value_mut()[i] = old + by;
                    let y = encoder.forward(images(2), Pass::Momentum).unwrap().as_vec();
                    p.value_mut()[i] = old;
                    y.iter().zip(&g).map(|(y, g)| f64::from(*y) * f64::from(*g)).sum::<f64>()
                };
                // Richardson's extrapolation: f32 asks for wide steps, and these for the next order.
                let slope = |h: f32, shifted: &mut dyn FnMut(f32) -> f64| {
                    (shifted(h) - shifted(-h)) / (2.0 * f64::from(h))
                };
                let numeric = (4.0 * slope(step, &mut shifted) - slope(2.0 * step, &mut shifted)) / 3.0;
                near(&format!("{text} {}[{i}]", p.name), f64::from(p.grad()[i]), numeric, 2e-3);
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
