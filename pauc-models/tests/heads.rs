//! Heads against loops in f64, finite differences and plain dfdx operations.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

use dfdx::prelude::*;
use pauc_models::device::NetworkDevice;
use pauc_models::heads::HeadConfig;
use pauc_traits::open_set::{Problem, options};
use pauc_traits::param::{Role, clear_gradients};
use pauc_traits::{Param, Pass, ops};

fn wave(n: usize, phase: f32) -> Vec<f32> {
    (0..n).map(|i| (phase + 1.3 * i as f32).sin()).collect()
}

fn config(text: &str) -> HeadConfig {
    options().from_str(text).unwrap()
}

fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() < tolerance * (1.0 + w.abs()), "{what}[{i}]: {g} for {w}");
    }
}

/// The head's definition with loops in f64; `parameters` in the order of `parameters`.
fn oracle(
    x: &[f64],
    width: usize,
    dims: &[usize],
    norms: [bool; 2],
    bias: bool,
    parameters: &[Vec<f64>],
) -> Vec<f64> {
    let (mut x, mut width, mut parameters) = (x.to_vec(), width, parameters.iter());
    for (l, out) in dims.iter().copied().enumerate() {
        let last = l + 1 == dims.len();
        let rows = x.len() / width;
        let w = parameters.next().unwrap();
        let b = if bias { parameters.next().unwrap().clone() } else { vec![0.0; out] };
        let mut y: Vec<f64> = (0..rows * out)
            .map(|n| {
                b[n % out] + (0..width).map(|k| x[n / out * width + k] * w[n % out * width + k]).sum::<f64>()
            })
            .collect();
        if norms[usize::from(last)] {
            let (gamma, beta) = (parameters.next().unwrap(), parameters.next().unwrap());
            for j in 0..out {
                let mean = (0..rows).map(|i| y[i * out + j]).sum::<f64>() / rows as f64;
                let var = (0..rows).map(|i| (y[i * out + j] - mean).powi(2)).sum::<f64>() / rows as f64;
                for i in 0..rows {
                    y[i * out + j] = gamma[j] * (y[i * out + j] - mean) / (var + 1e-5).sqrt() + beta[j];
                }
            }
        }
        if !last {
            y.iter_mut().for_each(|v| *v = v.max(0.0));
        }
        (x, width) = (y, out);
    }
    x
}

/// Moves normalisation parameters away from ones and zeros.
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
        let mut head = dev.head(&config(text), width, 3, 1).unwrap();
        let parameters = head.parameters();
        stir(&parameters);
        let (x, g) = (wave(rows * width, 0.2), wave(rows * 5, 1.0));
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let all: Vec<Vec<f64>> = parameters.iter().map(|p| wide(&p.value())).collect();
        let y = |x: &[f64], all: &[Vec<f64>]| oracle(x, width, &dims, norms, bias, all);
        let objective = |x: &[f64], all: &[Vec<f64>]| {
            y(x, all).iter().zip(&g).map(|(y, g)| y * f64::from(*g)).sum::<f64>()
        };
        // Twice, so that a reused workspace and a second contribution to the gradients are seen.
        for pass in 1..=2 {
            let leaf = dev.tensor_from_vec(x.clone(), (rows, width));
            let out = head.forward(leaf.retaped(), Pass::Train).unwrap();
            close(text, &out.as_vec(), &y(&wide(&x), &all), 1e-5);
            let mut gradients = ops::total(out * dev.tensor_from_vec(g.clone(), (rows, 5))).backward();
            let dx = ops::gradient(&mut gradients, &leaf).unwrap();
            let numeric = |at: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
                let shifted = |i: usize, by: f64| {
                    let mut at = at.to_vec();
                    at[i] += by;
                    f(&at)
                };
                (0..at.len()).map(|i| (shifted(i, 1e-6) - shifted(i, -1e-6)) / 2e-6).collect()
            };
            close("input", &dx, &numeric(&wide(&x), &|x| objective(x, &all)), 2e-4);
            for (n, p) in parameters.iter().enumerate() {
                let with = |values: &[f64]| {
                    let mut all = all.clone();
                    all[n] = values.to_vec();
                    objective(&wide(&x), &all)
                };
                let want: Vec<f64> = numeric(&all[n], &with).iter().map(|v| v * f64::from(pass)).collect();
                close(&p.name, &p.grad(), &want, 2e-4);
            }
        }
    }
}

#[test]
fn the_fused_head_equals_plain_dfdx_operations() {
    let dev = Cpu::default();
    let (rows, width) = (70, 33);
    let mut head = dev.head(&config("Mlp(dims: [65, 9])"), width, 0, 1).unwrap();
    let (x, g) = (wave(rows * width, 0.2), wave(rows * 9, 1.0));
    let parameters = head.parameters();
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
    close("values", &values, &plain.as_vec().iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), 1e-5);
    let plain = ops::gradient(&mut ops::total(plain * g).backward(), &leaf).unwrap();
    close("input", &fused, &plain.iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), 1e-4);
    for (p, fused) in parameters.iter().zip(&fused_parameters) {
        close(&p.name, fused, &p.grad().iter().map(|v| f64::from(*v)).collect::<Vec<_>>(), 1e-4);
    }
}

#[test]
fn the_input_gradient_flows_through_a_permuted_input() {
    let dev = Cpu::default();
    let mut head = dev.head(&config("Mlp(dims: [3])"), 2, 0, 1).unwrap();
    let leaf = dev.tensor_from_vec(wave(8, 0.0), (2usize, 4usize));
    let x = leaf.retaped::<OwnedTape<f32, Cpu>>().permute::<_, Axes2<1, 0>>();
    let y = head.forward(x, Pass::Train).unwrap();
    let w = head.parameters()[0].value().clone();
    let dx = ops::gradient(&mut ops::total(y).backward(), &leaf).unwrap();
    let column = |k: usize| f64::from(w[k] + w[2 + k] + w[4 + k]);
    close("input", &dx, &[[column(0); 4], [column(1); 4]].concat(), 1e-5);
}

#[test]
fn running_statistics_follow_the_batches_and_evaluation_uses_them() {
    let dev = Cpu::default();
    let mut head = dev.head(&config("Mlp(dims: [2], last_batch_norm: true, bias: false)"), 1, 0, 1).unwrap();
    head.parameters()[0].value_mut().copy_from_slice(&[1.0, 2.0]);
    let x = [1.0f32, 2.0, 6.0];
    let input = || dev.tensor_from_vec(x.to_vec(), (3usize, 1usize)).retaped();
    head.forward(input(), Pass::Momentum).unwrap();
    let (mean, variance) = (head.statistics()[0].clone(), head.statistics()[1].clone());
    // Mean 3 and unbiased variance 7 of the batch, weighted 0.1.
    close("running_mean", &mean.value(), &[0.3, 0.6], 1e-6);
    close("running_var", &variance.value(), &[0.9 + 0.7, 0.9 + 2.8], 1e-6);
    let y = head.forward(input(), Pass::Eval).unwrap().as_vec();
    let want =
        |x: f32, w: f64, i: usize| (f64::from(x) * w - [0.3, 0.6][i]) / ([1.6, 3.7][i] + 1e-5f64).sqrt();
    close(
        "evaluation",
        &y,
        &x.iter().flat_map(|x| [want(*x, 1.0, 0), want(*x, 2.0, 1)]).collect::<Vec<_>>(),
        1e-5,
    );
    close("evaluation changes nothing", &mean.value(), &[0.3, 0.6], 1e-6);
    let one = head.forward(dev.tensor_from_vec(vec![1.0], (1usize, 1usize)).retaped(), Pass::Train);
    assert!(one.err().unwrap().to_string().contains("at least 2 samples"));
}

#[test]
fn names_follow_sequential_and_duplicates_are_apart() {
    let dev = Cpu::default();
    let head = dev.head(&config("Mlp(dims: [4, 3], batch_norm: true)"), 2, 7, 1).unwrap();
    let names = |all: Vec<Param<Cpu>>| all.into_iter().map(|p| p.name).collect::<Vec<_>>();
    assert_eq!(names(head.parameters()), ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]);
    assert_eq!(names(head.statistics()), ["1.running_mean", "1.running_var"]);
    let plain = dev.head(&config("Mlp(dims: [4, 3])"), 2, 7, 1).unwrap();
    assert_eq!(names(plain.parameters()), ["0.weight", "0.bias", "2.weight", "2.bias"]);
    assert_eq!(plain.layers().iter().map(|l| l.parameters).sum::<usize>(), 4 * 2 + 4 + 3 * 4 + 3);

    let copy = head.duplicate().unwrap();
    for (a, b) in head.parameters().iter().zip(copy.parameters()) {
        assert_eq!(*a.value(), *b.value());
    }
    copy.parameters()[0].value_mut()[0] += 1.0;
    assert_ne!(*head.parameters()[0].value(), *copy.parameters()[0].value());
    let values = |seed, network| {
        dev.head(&config("Mlp(dims: [4])"), 2, seed, network).unwrap().parameters()[0].value().clone()
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
    assert!(dev.head(&config("Mlp(dims: [])"), 2, 0, 1).err().unwrap().to_string().contains("`dims`"));
    let mut head = dev.head(&config("Mlp(dims: [3])"), 2, 0, 1).unwrap();
    let wrong = head.forward(dev.tensor_from_vec(vec![0.0; 6], (2usize, 3usize)).retaped(), Pass::Eval);
    assert!(wrong.err().unwrap().to_string().contains("width 2, got 3"));
}
