//! Optimizers and schedules compared with reference trajectories, and a network through whole steps.

#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{Perceptron, assert_differences, close, exact, from_kinks, zeros};
use dfdx::prelude::*;
use pauc_models::ema::{self, MomentumConfig};
use pauc_models::network::{Network, backward_with};
use pauc_models::optimizers::clip_gradients;
use pauc_models::{HeadConfig, LrSchedule};
use pauc_testing::{Rounded, assert_within, tolerance};
use pauc_traits::component_ron::options;
use pauc_traits::optimizer::StepContext;
use pauc_traits::param::{Role, clear_gradients};
use pauc_traits::registry::kind;
use pauc_traits::{
    BuildOptions, Clock, Configured, Horizon, ImageShape, Param, Pass, Pixels, Scheduled, UnitInterval,
};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Returns all numbers of a nested array, in order.
fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn narrow(v: &Value) -> Vec<f32> {
    numbers(v).iter().map(|v| *v as f32).collect()
}

/// Returns the context of a step whose schedule has this factor.
fn now(optimizer: &Configured<kind::Optimizer>, factor: f64) -> StepContext {
    StepContext { lr: optimizer.learning_rate(1) * factor, clock: Clock::still() }
}

#[test]
fn rates_and_decay_follow_the_recipe() {
    let dev = Cpu::default();
    let optimizer = Configured::<kind::Optimizer>::parse(
        "Sgd(lr: Scaled(base: 0.5, per: 4), momentum: 0.0, weight_decay: Linear(from: 0.0, to: 0.5, over: Steps(4)))",
    )
    .unwrap();
    assert_eq!((optimizer.learning_rate(4), optimizer.learning_rate(8)), (0.5, 1.0));
    let horizon = Horizon { steps_per_epoch: 1, total_steps: 8 };
    let params = [Param::new(&dev, "w", &[1], Role::Weight, &[2.0]).unwrap()];
    let mut state = optimizer.start(&dev, &params).unwrap();
    // The gradient is zero, so only w ← w − lr·λ·w changes it, with λ = 0, 0.25 and 0.5.
    for (step, want) in [(0, 2.0), (2, 1.75), (6, 1.3125)] {
        let lr = optimizer.learning_rate(4);
        optimizer
            .step(&dev, &params, &mut state, &StepContext { lr, clock: Clock { step, horizon } })
            .unwrap();
        assert_eq!(params[0].value()[0], want);
    }
}

#[test]
fn optimizers_follow_the_reference_trajectories() {
    let dev = Cpu::default();
    let all = golden("optimizers");
    for (name, text) in [
        ("sgd_momentum_wd", "Sgd(lr: 0.05, momentum: 0.9, weight_decay: 1e-2)"),
        ("sgd_nesterov", "Sgd(lr: 0.05, momentum: 0.9, weight_decay: 0.0, nesterov: true)"),
        ("adamw", "AdamW(lr: 1e-2, beta1: 0.9, beta2: 0.95, weight_decay: 5e-2, epsilon: 1e-8)"),
        ("lars", "Lars(lr: 0.5, momentum: 0.9, trust: 1e-3, weight_decay: 1e-2)"),
    ] {
        let case = &all[name];
        let optimizer = Configured::<kind::Optimizer>::parse(text).unwrap();
        let params = [
            Param::new(&dev, "w", &[3, 4], Role::Weight, &narrow(&case["w0"])).unwrap(),
            Param::new(&dev, "b", &[4], Role::Bias, &narrow(&case["b0"])).unwrap(),
        ];
        let mut state = optimizer.start(&dev, &params).unwrap();
        // A parameter is rounded at the start and at every step. A step has at most the size of the largest
        // one, takes at most 20 operations, and has the errors of the steps before in its momentum.
        let mut paths = [0.0; 2];
        let mut before = [numbers(&case["w0"]), numbers(&case["b0"])];
        for (n, reference) in case["steps"].as_array().unwrap().iter().enumerate() {
            params[0].grad_mut().copy_from_slice(&narrow(&reference["grad_w"]));
            params[1].grad_mut().copy_from_slice(&narrow(&reference["grad_b"]));
            optimizer.step(&dev, &params, &mut state, &now(&optimizer, 1.0)).unwrap();
            for (i, (param, key)) in params.iter().zip(["w", "b"]).enumerate() {
                let want = numbers(&reference[key]);
                let moved = want.iter().zip(&before[i]).map(|(w, b)| (w - b).abs()).fold(0.0, f64::max);
                paths[i] += moved;
                let rounded = |w: &f64| {
                    let places = tolerance::f32(n + 2, w.abs() + paths[i]);
                    Rounded::within(*w, places + tolerance::f32(20 * (n + 1), paths[i]))
                };
                let rounded: Vec<Rounded> = want.iter().map(rounded).collect();
                close(&format!("{name} step {n} {key}"), &param.value(), &rounded);
                before[i] = want;
            }
        }
        assert_eq!(state.steps, 5);
        assert_eq!(optimizer.slots().len(), state.slots[0].len());
    }
}

#[test]
fn an_optimizer_resumes_from_its_exported_state_bit_by_bit() {
    let dev = Cpu::default();
    for text in ["Sgd(lr: 0.1)", "AdamW(lr: 0.1)", "Lars(lr: 0.1)"] {
        let optimizer = Configured::<kind::Optimizer>::parse(text).unwrap();
        let param = |values: &[f32]| [Param::new(&dev, "w", &[3], Role::Weight, values).unwrap()];
        let gradient = |p: &[Param<Cpu>; 1], n: usize| {
            p[0].grad_mut().iter_mut().enumerate().for_each(|(i, g)| *g = ((n * 3 + i) as f32).sin());
        };
        let whole = param(&[1.0, -2.0, 3.0]);
        let mut state = optimizer.start(&dev, &whole).unwrap();
        let mut saved = None;
        for n in 0..6 {
            if n == 3 {
                saved = Some((whole[0].value().clone(), state.steps, state.slots.clone()));
            }
            gradient(&whole, n);
            optimizer.step(&dev, &whole, &mut state, &now(&optimizer, 0.5)).unwrap();
        }
        let (values, steps, slots) = saved.unwrap();
        let resumed = param(&values);
        let mut state = optimizer.start(&dev, &resumed).unwrap();
        (state.steps, state.slots) = (steps, slots);
        for n in 3..6 {
            gradient(&resumed, n);
            optimizer.step(&dev, &resumed, &mut state, &now(&optimizer, 0.5)).unwrap();
        }
        assert_eq!(*whole[0].value(), *resumed[0].value(), "{text}");
    }
}

#[test]
fn decay_skips_excluded_parameters_and_frozen_ones_stay() {
    let dev = Cpu::default();
    let params = || {
        [Role::Weight, Role::Bias, Role::Norm]
            .map(|role| Param::new(&dev, format!("{role:?}"), &[1], role, &[2.0]).unwrap())
    };
    let after = |text: &str, freeze: usize| {
        let params = params();
        params.iter().enumerate().for_each(|(i, p)| p.set_frozen(i == freeze));
        let optimizer = Configured::<kind::Optimizer>::parse(text).unwrap();
        let mut state = optimizer.start(&dev, &params).unwrap();
        optimizer.step(&dev, &params, &mut state, &now(&optimizer, 1.0)).unwrap();
        params.map(|p| p.value()[0])
    };
    // The gradients are zero, so only decay changes parameters.
    assert_eq!(after("Sgd(lr: 0.5, weight_decay: 0.5)", 9), [1.5; 3]);
    assert_eq!(after("Sgd(lr: 0.5, weight_decay: 0.5, decay_norm_and_bias: false)", 9), [1.5, 2.0, 2.0]);
    assert_eq!(after("AdamW(lr: 0.5, weight_decay: 0.5, decay_norm_and_bias: false)", 9), [1.5, 2.0, 2.0]);
    assert_eq!(after("Sgd(lr: 0.5, weight_decay: 0.5)", 0), [2.0, 1.5, 1.5]);
    let optimizer = Configured::<kind::Optimizer>::parse("Sgd(lr: 0.5)").unwrap();
    let mut state = optimizer.start(&dev, &params()[..2]).unwrap();
    let error = optimizer.step(&dev, &params(), &mut state, &now(&optimizer, 1.0)).unwrap_err().to_string();
    assert!(error.contains("for 2 parameters, got 3"), "{error}");
}

fn factors(text: &str, horizon: Horizon) -> Vec<f64> {
    let schedule: LrSchedule = options().from_str(text).unwrap();
    (0..horizon.total_steps).map(|step| schedule.factor_at(&Clock { step, horizon })).collect()
}

#[test]
fn schedules_follow_the_references() {
    let all = golden("schedules");
    let want = numbers(&all["cosine_warmup"]["lr"]);
    let close = |got: &[f64], want: &[f64]| {
        assert_eq!(got.len(), want.len());
        // A fraction of the steps, an angle, its cosine, and the factor computed from it.
        got.iter().zip(want).for_each(|(g, w)| assert_within!(*g, *w, tolerance::f64(10, 1.0)));
    };
    let single = Horizon { steps_per_epoch: 1, total_steps: 20 };
    close(&factors("WarmupCosine(warmup: Epochs(5), floor: 0.001)", single), &want);
    let long = Horizon { steps_per_epoch: 7, total_steps: 140 };
    let held: Vec<f64> = want.iter().flat_map(|w| [*w; 7]).collect();
    close(&factors("WarmupCosine(warmup: Epochs(5), floor: 0.001, per: Epoch)", long), &held);
    let stepped = factors("WarmupCosine(warmup: Epochs(5), floor: 0.001)", long);
    assert_eq!((stepped[0], stepped[34], stepped[35]), (1.0 / 35.0, 1.0, 1.0));
    assert_within!(stepped[139], 0.001, tolerance::f64(10, 1.0));
    assert!(stepped[35..].windows(2).all(|w| w[1] <= w[0]));
    let cosine = factors("Cosine()", long);
    assert_eq!(cosine[0], 1.0);
    assert_within!(cosine[139], 0.0, tolerance::f64(10, 1.0));
    assert_eq!(factors("Constant", single), [1.0; 20]);
    let step = factors("Step(milestones: [Epochs(2), Fraction(0.5)], factor: 0.5)", single);
    assert_eq!((step[1], step[2], step[9], step[10]), (1.0, 0.5, 0.5, 0.25));
    assert_eq!(
        factors("WarmupCosine(warmup: Steps(0))", Horizon { steps_per_epoch: 1, total_steps: 1 }).len(),
        1
    );

    let momentum: Scheduled<UnitInterval> =
        options().from_str("Cosine(from: 0.99, to: 1.0, over: Steps(19))").unwrap();
    let got: Vec<f64> = (0..20).map(|step| momentum.at(&Clock { step, horizon: single })).collect();
    close(&got, &numbers(&all["ema_cosine"]["m"]));
}

#[test]
fn schedules_and_momentum_round_trip_through_recipes() {
    let show = |text: &str| options().to_string(&options().from_str::<LrSchedule>(text).unwrap()).unwrap();
    assert_eq!(show("Constant"), "Constant");
    let written = "WarmupCosine(warmup:Epochs(1.0),floor:0.0,per:Step)";
    assert_eq!(show("WarmupCosine(warmup: Epochs(1))"), written);
    assert_eq!(show(written), written);
    let ema: MomentumConfig = options().from_str("Ema(momentum: 0.996)").unwrap();
    assert_eq!(options().to_string(&ema).unwrap(), "Ema(momentum:0.996,statistics:Average)");
}

const IMAGE: ImageShape = ImageShape { height: 2, width: 3, channels: 1 };

fn network(dev: &Cpu) -> Network<Cpu> {
    with_head(dev, "Mlp(dims: [6, 4], batch_norm: true)")
}

fn with_head(dev: &Cpu, head: &str) -> Network<Cpu> {
    let encoder = Configured::<kind::Encoder>::parse("MlpEncoder(dims: [8, 5])").unwrap();
    let head: HeadConfig = options().from_str(head).unwrap();
    Network::build(dev, &*encoder.value, &head, IMAGE, BuildOptions::seed(1)).unwrap()
}

fn pixels(n: usize) -> Vec<f32> {
    (0..n * IMAGE.len()).map(|i| (0.7 * i as f32).sin()).collect()
}

fn images(dev: &Cpu, n: usize) -> Tensor<(usize, usize, usize, usize), f32, Cpu> {
    dev.tensor_from_vec(pixels(n), (n, IMAGE.height, IMAGE.width, IMAGE.channels))
}

/// Asserts that the gradients of a network with `MlpEncoder(dims: [8, 5])`, a head of one normalized layer of
/// 4, and optionally a predictor of one layer equal those of an oracle in double precision, and that those
/// equal differences. The objective is Σ embeddings·g, plus Σ predictions·h with a predictor.
fn assert_gradients(net: &Network<Cpu>, g: &[f32], h: Option<&[f32]>) {
    let linear = Perceptron { width: 4, dims: &[4], norms: [false; 2], bias: true, rectified: false };
    let encoder = Perceptron { width: IMAGE.len(), dims: &[8, 5], rectified: true, ..linear };
    let (head, predictor) = (Perceptron { width: 5, norms: [false, true], ..linear }, linear);
    let images = exact(&pixels(5));
    let parameters = net.parameters();
    let all: Vec<Vec<Rounded>> = parameters.iter().map(|p| exact(&p.value())).collect();
    let objective = |all: &[Vec<Rounded>]| {
        let sum =
            |v: &[Rounded], g: &[f32]| v.iter().zip(g).map(|(v, g)| v.value * f64::from(*g)).sum::<f64>();
        let features = encoder.forward(&images, &all[..4]).0;
        let embeddings = head.forward(&features, &all[4..8]).0;
        let predictions = h.map(|h| sum(&predictor.forward(&embeddings, &all[8..]).0, h));
        sum(&embeddings, g) + predictions.unwrap_or(0.0)
    };
    let (features, of_encoder) = encoder.forward(&images, &all[..4]);
    assert!(from_kinks(&of_encoder) > 1e-5);
    let (embeddings, of_head) = head.forward(&features, &all[4..8]);
    let mut gradients = zeros(&all);
    let mut dy = exact(g);
    if let Some(h) = h {
        let (_, layers) = predictor.forward(&embeddings, &all[8..]);
        let through = predictor.backward(&layers, &exact(h), &mut gradients[8..]);
        dy.iter_mut().zip(through).for_each(|(d, t)| *d = *d + t);
    }
    let dy = head.backward(&of_head, &dy, &mut gradients[4..8]);
    encoder.backward(&of_encoder, &dy, &mut gradients[..4]);
    for (n, p) in parameters.iter().enumerate() {
        // A bias before normalization has no gradient but rounding.
        let none = p.name == "projector.0.bias";
        assert!(none || p.grad().iter().any(|g| *g != 0.0), "{} has no gradient", p.name);
        close(&p.name, &p.grad(), &gradients[n]);
        assert_differences(&p.name, &all[n], &gradients[n], |values| {
            let mut all = all.clone();
            all[n] = values.to_vec();
            objective(&all)
        });
    }
}

#[test]
fn the_gradient_of_a_network_agrees_with_finite_differences() {
    let dev = Cpu::default();
    let mut net = with_head(&dev, "Mlp(dims: [4], last_batch_norm: true)");
    let g: Vec<f32> = (0..5 * 4).map(|i| (1.0 + 0.9 * i as f32).cos()).collect();
    let output = net.forward(images(&dev, 5), Pass::Train).unwrap();
    assert_eq!((*output.features.shape(), *output.embeddings.shape()), ((5, 5), (5, 4)));
    backward_with(output.embeddings, g.clone(), None).unwrap();
    assert_gradients(&net, &g, None);
}

#[test]
fn the_gradient_through_a_predictor_joins_that_of_the_embeddings() {
    let dev = Cpu::default();
    let mut net = with_head(&dev, "Mlp(dims: [4], last_batch_norm: true)");
    let head: HeadConfig = options().from_str("Mlp(dims: [4])").unwrap();
    net.add_predictor(&head).unwrap();
    let weights = |phase: f32| (0..5 * 4).map(|i| (phase + 0.9 * i as f32).cos()).collect::<Vec<f32>>();
    let (g, h) = (weights(1.0), weights(2.0));
    let embeddings = net.forward(images(&dev, 5), Pass::Train).unwrap().embeddings;
    let predictions = net.predict(&embeddings.retaped(), Pass::Train).unwrap().unwrap();
    backward_with(embeddings, g.clone(), Some((predictions, h.clone()))).unwrap();
    assert_gradients(&net, &g, Some(&h));
    // The branch that computes keys has no predictor, and follows without one.
    let branch = net.duplicate().unwrap();
    assert!(!branch.parameters().iter().any(|p| p.name.starts_with("predictor.")));
    assert!(net.parameters().iter().any(|p| p.name == "predictor.0.weight"));
    let momentum: MomentumConfig = options().from_str("Ema(momentum: 0.5)").unwrap();
    momentum.update(&dev, &net, &branch, &Clock::still()).unwrap();
    let wide: HeadConfig = options().from_str("Mlp(dims: [5])").unwrap();
    let result = with_head(&dev, "Identity").add_predictor(&wide);
    assert!(result.is_ok(), "features of this encoder have width 5");
    let error = net.add_predictor(&wide).unwrap_err().to_string();
    assert!(error.contains("width 5; expected 4"), "{error}");
}

#[test]
fn a_network_learns_and_its_momentum_branch_follows() {
    let dev = Cpu::default();
    let mut net = network(&dev);
    let branch = net.duplicate().unwrap();
    let (params, follower) = (net.parameters(), branch.parameters());
    let optimizer = Configured::<kind::Optimizer>::parse("Sgd(lr: 0.05)").unwrap();
    let mut state = optimizer.start(&dev, &params).unwrap();
    let momentum: MomentumConfig = options().from_str("Ema(momentum: 0.5)").unwrap();
    let mut losses = Vec::new();
    for _ in 0..40 {
        clear_gradients(&dev, &params).unwrap();
        let x = net.forward(images(&dev, 6), Pass::Train).unwrap().embeddings;
        let gap = |v: &[f32]| v.iter().map(|v| v - 1.0).collect::<Vec<f32>>();
        let difference = gap(&x.as_vec());
        losses.push(difference.iter().map(|d| d * d).sum::<f32>() / 2.0);
        backward_with(x, difference, None).unwrap();
        optimizer.step(&dev, &params, &mut state, &now(&optimizer, 1.0)).unwrap();
        let before = follower[0].value()[0];
        momentum.update(&dev, &net, &branch, &Clock::still()).unwrap();
        let half = Rounded::exact(0.5);
        let want = half * before.into() + half * params[0].value()[0].into();
        close("average", &follower[0].value()[..1], &[want]);
    }
    // Measured: a fifth of the bound. Rounding over 40 steps does not change that by a factor of five.
    assert!(losses[39] < 0.01 * losses[0], "{losses:?}");
    let statistic = |n: &Network<Cpu>| n.statistics()[0].value().clone();
    assert_ne!(statistic(&branch), vec![0.0; 6], "statistics also follow");
    let copy: MomentumConfig = options().from_str("Ema(statistics: Copy)").unwrap();
    copy.update(&dev, &net, &branch, &Clock::still()).unwrap();
    assert_eq!(statistic(&branch), statistic(&net));
    assert!(ema::update(&dev, &params, &follower[1..], 0.5).is_err());
}

#[test]
fn embedding_in_chunks_equals_embedding_at_once() {
    let dev = Cpu::default();
    let mut net = network(&dev);
    net.forward(images(&dev, 7), Pass::Momentum).unwrap();
    let outstanding = net.forward(images(&dev, 7), Pass::Train).unwrap();
    let whole = net.embed(&Pixels::Normalized(pixels(7)), 100).unwrap();
    assert_eq!(whole, net.embed(&Pixels::Normalized(pixels(7)), 3).unwrap());
    assert_eq!((whole.features.len(), whole.embeddings.len()), (7 * 5, 7 * 4));
    assert!(
        net.embed(&Pixels::Normalized(pixels(2)[1..].to_vec()), 3).unwrap_err().to_string().contains("2×3×1")
    );
    // An evaluation between forward and backward does not disturb the outstanding pass.
    let of = |net: &Network<Cpu>| net.parameters().iter().map(|p| p.grad().clone()).collect::<Vec<_>>();
    backward_with(outstanding.embeddings, vec![1.0; 28], None).unwrap();
    let disturbed = of(&net);
    clear_gradients(&dev, &net.parameters()).unwrap();
    backward_with(net.forward(images(&dev, 7), Pass::Train).unwrap().embeddings, vec![1.0; 28], None)
        .unwrap();
    assert_eq!(disturbed, of(&net));
    let short = net.forward(images(&dev, 7), Pass::Train).unwrap().embeddings;
    assert!(backward_with(short, vec![1.0; 27], None).is_err());
}

#[test]
fn names_carry_their_part() {
    let dev = Cpu::default();
    let net = network(&dev);
    let names: Vec<String> = net.parameters().into_iter().map(|p| p.name).collect();
    assert_eq!(names[0], "encoder.0.weight");
    assert_eq!(names[3], "encoder.2.bias");
    assert_eq!(names[4], "projector.0.weight");
    assert_eq!(net.statistics()[1].name, "projector.1.running_var");
    let parameters: usize = net.layers().iter().map(|l| l.parameters).sum();
    assert_eq!(parameters, net.parameters().iter().map(Param::len).sum::<usize>());
    assert_eq!(net.layers()[2].name, "projector.0");
}

#[test]
fn training_gives_the_same_bits_for_every_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let dev = Cpu::default();
            // Wide enough that the head's work is split into several parts.
            let mut net = with_head(&dev, "Mlp(dims: [300, 70], batch_norm: true, last_batch_norm: true)");
            let params = net.parameters();
            let optimizer = Configured::<kind::Optimizer>::parse("Lars(lr: 0.5)").unwrap();
            let mut state = optimizer.start(&dev, &params).unwrap();
            for _ in 0..3 {
                clear_gradients(&dev, &params).unwrap();
                let x = net.forward(images(&dev, 150), Pass::Train).unwrap().embeddings;
                let gradient = x.as_vec().iter().map(|v| v.sin()).collect();
                backward_with(x, gradient, None).unwrap();
                clip_gradients(&dev, &params, 0.1).unwrap();
                optimizer.step(&dev, &params, &mut state, &now(&optimizer, 1.0)).unwrap();
            }
            let all = params.iter().chain(&net.statistics()).map(|p| p.value().clone()).collect::<Vec<_>>();
            (all, net.embed(&Pixels::Normalized(pixels(150)), 64).unwrap())
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn parameters_with_scales_move_as_in_their_own_optimizers() {
    let dev = Cpu::default();
    let param = |start: f32| Param::new(&dev, "w", &[2], Role::Weight, &[start, -start]).unwrap();
    for (text, other) in [
        ("Sgd(lr: 0.1, weight_decay: 0.1)", "Sgd(lr: 0.025, weight_decay: 0.1)"),
        ("AdamW(lr: 0.1, weight_decay: 0.1)", "AdamW(lr: 0.025, weight_decay: 0.1)"),
        ("Lars(lr: 0.1)", "Lars(lr: 0.025)"),
    ] {
        let run = |optimizers: &[&str], scales: [f64; 2]| {
            let params = [param(1.0), param(2.0)];
            params.iter().zip(scales).for_each(|(p, s)| p.set_lr_scale(s));
            let groups: Vec<&[Param<Cpu>]> =
                if optimizers.len() == 1 { vec![&params] } else { params.chunks(1).collect() };
            for (text, group) in optimizers.iter().zip(groups) {
                let optimizer = Configured::<kind::Optimizer>::parse(text).unwrap();
                let mut state = optimizer.start(&dev, group).unwrap();
                for n in 0..4 {
                    for p in group {
                        let g = |(i, w): (usize, &f32)| (w + n as f32 + i as f32).sin();
                        let gradient: Vec<f32> = p.value().iter().enumerate().map(g).collect();
                        p.grad_mut().copy_from_slice(&gradient);
                    }
                    optimizer.step(&dev, group, &mut state, &now(&optimizer, 1.0)).unwrap();
                }
            }
            params.map(|p| p.value().clone())
        };
        assert_eq!(run(&[text], [1.0, 0.25]), run(&[text, other], [1.0, 1.0]), "{text}");
    }
}
