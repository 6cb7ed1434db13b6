//! Heads compared with loops in f64, finite differences and plain dfdx operations.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{Perceptron, assert_differences, close, exact, from_kinks, zeros};
use dfdx::prelude::*;
use pauc_models::device::NetworkDevice;
use pauc_models::heads::HeadConfig;
use pauc_testing::inputs::wave;
use pauc_testing::{Rounded, tolerance};
use pauc_traits::component_ron::{Problem, options};
use pauc_traits::param::{Role, clear_gradients};
use pauc_traits::{BuildOptions, Param, Pass, ops};

fn config(text: &str) -> HeadConfig {
    options().from_str(text).unwrap()
}

/// Moves normalization parameters away from ones and zeros.
fn stir(parameters: &[Param<Cpu>]) {
    for p in parameters.iter().filter(|p| p.role == Role::Norm) {
        p.value_mut().iter_mut().enumerate().for_each(|(i, v)| *v += 0.3 * (i as f32 + 0.5).cos());
    }
}

#[test]
fn values_and_gradients_agree_with_the_definition() {
    let dev = Cpu::default();
    for (text, dims, norms, bias) in [
        ("Mlp(dims: [5])", vec![5], [false, false], true),
        ("Mlp(dims: [7, 5])", vec![7, 5], [false, false], true),
        ("Mlp(dims: [7, 6, 5], batch_norm: true, bias: false)", vec![7, 6, 5], [true, false], false),
        ("Mlp(dims: [7, 5], batch_norm: true, last_batch_norm: true)", vec![7, 5], [true, true], true),
    ] {
        let (rows, width) = (6, 4);
        let mut head = dev.head(&config(text), width, 1, BuildOptions::seed(3)).unwrap();
        let parameters = head.parameters();
        stir(&parameters);
        let (x, g) = (wave(rows * width, 0.2, 1.3), wave(rows * 5, 1.0, 1.3));
        let all: Vec<Vec<Rounded>> = parameters.iter().map(|p| exact(&p.value())).collect();
        let net = Perceptron { width, dims: &dims, norms, bias, rectified: false };
        let objective = |x: &[Rounded], all: &[Vec<Rounded>]| {
            net.forward(x, all).0.iter().zip(&g).map(|(y, g)| y.value * f64::from(*g)).sum::<f64>()
        };
        let (y, layers) = net.forward(&exact(&x), &all);
        assert!(from_kinks(&layers) > 1e-5, "{text}");
        let mut gradients = zeros(&all);
        let dx = net.backward(&layers, &exact(&g), &mut gradients);
        assert_differences("input", &exact(&x), &dx, |x| objective(x, &all));
        for (n, p) in parameters.iter().enumerate() {
            assert_differences(&p.name, &all[n], &gradients[n], |values| {
                let mut all = all.clone();
                all[n] = values.to_vec();
                objective(&exact(&x), &all)
            });
        }
        gradients = zeros(&all);
        // Twice, to cover a reused workspace and accumulated gradients.
        for _ in 0..2 {
            let leaf = dev.tensor_from_vec(x.clone(), (rows, width));
            let out = head.forward(leaf.retaped(), Pass::Train).unwrap();
            close(text, &out.as_vec(), &y);
            let mut tape = ops::total(out * dev.tensor_from_vec(g.clone(), (rows, 5))).backward();
            let want = net.backward(&layers, &exact(&g), &mut gradients);
            close("input", &ops::gradient(&mut tape, &leaf).unwrap(), &want);
            for (p, want) in parameters.iter().zip(&gradients) {
                close(&p.name, &p.grad(), want);
            }
        }
    }
}

#[test]
fn the_fused_head_equals_plain_dfdx_operations() {
    let dev = Cpu::default();
    let (rows, width) = (70, 33);
    let mut head = dev.head(&config("Mlp(dims: [65, 9])"), width, 1, BuildOptions::seed(0)).unwrap();
    let (x, g) = (wave(rows * width, 0.2, 1.3), wave(rows * 9, 1.0, 1.3));
    let parameters = head.parameters();
    // Both are within rounding of the exact values.
    let all: Vec<Vec<Rounded>> = parameters.iter().map(|p| exact(&p.value())).collect();
    let net = Perceptron { width, dims: &[65, 9], norms: [false; 2], bias: true, rectified: false };
    let (y, layers) = net.forward(&exact(&x), &all);
    let mut gradients = zeros(&all);
    let dx = net.backward(&layers, &exact(&g), &mut gradients);
    let g = dev.tensor_from_vec(g, (rows, 9usize));

    let leaf = dev.tensor_from_vec(x, (rows, width));
    let fused = head.forward(leaf.retaped(), Pass::Train).unwrap();
    let values = fused.as_vec();
    let fused = ops::gradient(&mut ops::total(fused * g.clone()).backward(), &leaf).unwrap();
    let fused_parameters: Vec<Vec<f32>> = parameters.iter().map(|p| p.grad().clone()).collect();
    clear_gradients(&dev, &parameters).unwrap();

    let linear = |x: Tensor<(usize, usize), f32, Cpu, OwnedTape<f32, Cpu>>, l: usize, i: usize, o: usize| {
        let w = parameters[2 * l].traced(&dev, (o, i)).unwrap();
        let b = parameters[2 * l + 1].traced(&dev, (o,)).unwrap();
        let y = x.matmul(w.permute::<_, Axes2<1, 0>>());
        let shape = *y.shape();
        y + b.broadcast_like::<_, Axis<0>>(&shape)
    };
    let plain = linear(linear(leaf.retaped(), 0, width, 65).relu(), 1, 65, 9);
    close("values", &values, &y);
    close("plain values", &plain.as_vec(), &y);
    let plain = ops::gradient(&mut ops::total(plain * g).backward(), &leaf).unwrap();
    close("input", &fused, &dx);
    close("plain input", &plain, &dx);
    for ((p, fused), want) in parameters.iter().zip(&fused_parameters).zip(&gradients) {
        close(&p.name, fused, want);
        close(&format!("plain {}", p.name), &p.grad(), want);
    }
}

#[test]
fn the_input_gradient_flows_through_a_permuted_input() {
    let dev = Cpu::default();
    let mut head = dev.head(&config("Mlp(dims: [3])"), 2, 1, BuildOptions::seed(0)).unwrap();
    let leaf = dev.tensor_from_vec(wave(8, 0.0, 1.3), (2usize, 4usize));
    let x = leaf.retaped::<OwnedTape<f32, Cpu>>().permute::<_, Axes2<1, 0>>();
    let y = head.forward(x, Pass::Train).unwrap();
    let w = head.parameters()[0].value().clone();
    let dx = ops::gradient(&mut ops::total(y).backward(), &leaf).unwrap();
    let column = |k: usize| Rounded::sum(exact(&[w[k], w[2 + k], w[4 + k]]));
    close("input", &dx, &[[column(0); 4], [column(1); 4]].concat());
}

#[test]
fn running_statistics_follow_the_batches_and_evaluation_uses_them() {
    let dev = Cpu::default();
    let mut head = dev
        .head(&config("Mlp(dims: [2], last_batch_norm: true, bias: false)"), 1, 1, BuildOptions::seed(0))
        .unwrap();
    head.parameters()[0].value_mut().copy_from_slice(&[1.0, 2.0]);
    let x = [1.0f32, 2.0, 6.0];
    let input = || dev.tensor_from_vec(x.to_vec(), (3usize, 1usize)).retaped();
    head.forward(input(), Pass::Momentum).unwrap();
    let (mean, variance) = (head.statistics()[0].clone(), head.statistics()[1].clone());
    // Mean 3 and unbiased variance 7 of the batch, with weight 0.1: a variance, two products, and a sum with
    // a difference.
    let rounded = |value: f64| Rounded::within(value, tolerance::f32(6, 1.0 + value));
    let [means, variances] = [[0.3, 0.6], [0.9 + 0.7, 0.9 + 2.8]].map(|v| v.map(rounded));
    close("running_mean", &mean.value(), &means);
    close("running_var", &variance.value(), &variances);
    let y = head.forward(input(), Pass::Eval).unwrap().as_vec();
    let want = |x: f32, w: f32, i: usize| {
        let inverse = Rounded::exact(1.0) / (variances[i] + Rounded::exact(1e-5)).sqrt();
        (Rounded::exact(x) * w.into() - means[i]) * inverse
    };
    let want: Vec<Rounded> = x.iter().flat_map(|x| [want(*x, 1.0, 0), want(*x, 2.0, 1)]).collect();
    close("evaluation", &y, &want);
    close("evaluation changes nothing", &mean.value(), &means);
    let one = head.forward(dev.tensor_from_vec(vec![1.0], (1usize, 1usize)).retaped(), Pass::Train);
    assert!(one.err().unwrap().to_string().contains("at least 2 samples"));
}

#[test]
fn names_follow_sequential_and_duplicates_are_apart() {
    let dev = Cpu::default();
    let head = dev.head(&config("Mlp(dims: [4, 3], batch_norm: true)"), 2, 1, BuildOptions::seed(7)).unwrap();
    let names = |all: Vec<Param<Cpu>>| all.into_iter().map(|p| p.name).collect::<Vec<_>>();
    assert_eq!(names(head.parameters()), ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]);
    assert_eq!(names(head.statistics()), ["1.running_mean", "1.running_var"]);
    let plain = dev.head(&config("Mlp(dims: [4, 3])"), 2, 1, BuildOptions::seed(7)).unwrap();
    assert_eq!(names(plain.parameters()), ["0.weight", "0.bias", "2.weight", "2.bias"]);
    assert_eq!(plain.layers().iter().map(|l| l.parameters).sum::<usize>(), 4 * 2 + 4 + 3 * 4 + 3);

    let copy = head.duplicate().unwrap();
    for (a, b) in head.parameters().iter().zip(copy.parameters()) {
        assert_eq!(*a.value(), *b.value());
    }
    copy.parameters()[0].value_mut()[0] += 1.0;
    assert_ne!(*head.parameters()[0].value(), *copy.parameters()[0].value());
    let values = |seed, network| {
        dev.head(&config("Mlp(dims: [4])"), 2, network, BuildOptions::seed(seed)).unwrap().parameters()[0]
            .value()
            .clone()
    };
    assert_eq!(values(7, 1), values(7, 1));
    assert_ne!(values(7, 1), values(7, 2));
    assert_ne!(values(7, 1), values(8, 1));
}

#[test]
fn recipe_text_becomes_a_head_and_back() {
    let text = "Mlp(dims:[256,128],batch_norm:false,bias:true,last_batch_norm:false)";
    assert_eq!(options().to_string(&config("Mlp(dims: [256, 128])")).unwrap(), text);
    assert!(matches!(config("Identity"), HeadConfig::Identity));
    let error = options().from_str::<HeadConfig>("Mlp(dim: [3])").unwrap_err().code.to_string();
    assert_eq!(Problem::parse(&error).unwrap().suggestion.as_deref(), Some("dims"));
    let dev = Cpu::default();
    assert!(
        dev.head(&config("Mlp(dims: [])"), 2, 1, BuildOptions::seed(0))
            .err()
            .unwrap()
            .to_string()
            .contains("`dims`")
    );
    let mut head = dev.head(&config("Mlp(dims: [3])"), 2, 1, BuildOptions::seed(0)).unwrap();
    let wrong = head.forward(dev.tensor_from_vec(vec![0.0; 6], (2usize, 3usize)).retaped(), Pass::Eval);
    assert!(wrong.err().unwrap().to_string().contains("width 2, got 3"));
}
