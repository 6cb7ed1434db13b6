//! Encoders in plain dfdx operations: the perceptron compared with an oracle, and what all have in common. The vision
//! transformer has tests of its own.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{Perceptron, assert_differences, close, exact, from_kinks, set_by_formula, zeros};
use dfdx::prelude::*;
use pauc_models::network::backward_with;
use pauc_testing::Rounded;
use pauc_traits::component_ron::options;
use pauc_traits::registry::kind;
use pauc_traits::{BuildOptions, Configured, Encoder, ImageShape, Param, Pass};

fn build(text: &str, input: ImageShape) -> pauc_traits::Result<Box<dyn Encoder<Cpu>>> {
    Configured::<kind::Encoder>::parse(text).unwrap().build(&Cpu::default(), input, BuildOptions::seed(4))
}

const IMAGE: ImageShape = ImageShape { height: 8, width: 12, channels: 3 };

fn images(n: usize) -> Tensor<(usize, usize, usize, usize), f32, Cpu> {
    let values = (0..n * IMAGE.len()).map(|i| (0.21 * i as f64).sin() as f32).collect();
    Cpu::default().tensor_from_vec(values, (n, IMAGE.height, IMAGE.width, IMAGE.channels))
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
fn duplicates_layers_and_names_fit_the_parameters() {
    for text in [
        "MlpEncoder()",
        "VisionTransformer(depth: 2)",
        "VisionTransformer(depth: 1, size: Small, pool: Mean)",
        "VisionTransformer(depth: 1, layer_scale: 0.1, registers: 3, prefix_positions: false, mlp: SwiGlu)",
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
}

#[test]
fn configurations_that_do_not_fit_are_refused_with_a_remedy() {
    let refused = |text: &str| build(text, IMAGE).err().unwrap().to_string();
    assert!(refused("VisionTransformer(patch: 5)").contains("patches of 5×5 do not tile images of 8×12×3"));
    assert!(refused("VisionTransformer(size: Custom(width: 9, heads: 2))").contains("multiple of `heads`"));
    assert!(refused("VisionTransformer(registers: 4097)").contains("`registers` is at most 4096, got 4097"));
    assert!(refused("MlpEncoder(dims: [])").contains("`dims`"));
    let mut encoder = build("MlpEncoder()", ImageShape { channels: 1, ..IMAGE }).unwrap();
    let error = encoder.forward(images(1), Pass::Eval).err().unwrap().to_string();
    assert_eq!(error, "mlp encoder: was built for images of 8×12×1, got 8×12×3");
    let text = "VisionTransformer(size:Custom(width:8,heads:2),patch:4,depth:1,mlp_ratio:4,pool:Class)";
    let parsed = Configured::<kind::Encoder>::parse(text).unwrap();
    assert_eq!(options().to_string(&parsed).unwrap(), text, "as before there were more options");
}
