//! Encoders, heads, optimisers and whole training steps on CUDA beside the CPU. They need a GPU, or an emulated one.
#![allow(clippy::unwrap_used)] // helpers of tests

#[path = "../common/mod.rs"]
mod common;
mod softmax;

use pauc::cuda::conv::{Convolution, Math, Work};
use pauc::cuda::field::{Element, Field, Maps};
use pauc::cuda::norm::{Halved, Norm, Relu};
use pauc::cuda::{Buffer, Context, maps};
use pauc::dfdx::prelude::*;
use pauc::kernels::conv::Geometry;
use pauc::models::device::{DeviceOptions, Precision};
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
const CLOSE: (f64, f64) = (1e-4, 1e-4);
/// Of networks with many normalisations over few values, each of which divides by a small deviation: PyTorch in `f32` is further
/// from itself in `f64`.
const DEEP: (f64, f64) = (1e-3, 2e-3);
/// As deep as it gets here: fifty normalisations.
const DEEPEST: (f64, f64) = (2e-3, 2e-2);

/// The emulated device adds in nearly the CPU's order, and shows more.
fn limits(emulated: (f64, f64), on_gpu: (f64, f64)) -> (f64, f64) {
    let gpu = &pauc::cuda::gpus().unwrap()[0];
    if gpu.name == "emulated" { emulated } else { on_gpu }
}

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
    rounds: usize,
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
    for round in 0..rounds {
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
    // Where a rounding opens a ReLU that is shut on the other device, a second step starts from another place.
    let rounds = if tolerance > CLOSE.0 { 1 } else { 2 };
    let (cuda, cpu) =
        (step(&device(), what, input, batch, rounds), step(&Cpu::default(), what, input, batch, rounds));
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
        CLOSE,
    );
    let oblong = ImageShape { height: 9, width: 13, channels: 1 };
    let head = "Mlp(dims: [8], bias: false, last_batch_norm: true)";
    compare(("ConvNet(channels: [8, 8], convolution: Direct)", head, "AdamW(lr: 1e-2)"), oblong, 5, CLOSE);
}

#[test]
fn a_step_of_a_residual_network_equals_that_of_the_cpu() {
    let lars = "Lars(lr: 0.5, weight_decay: 1e-2)";
    compare(
        ("ResNet18(stem: Small, width: 4, convolution: Direct)", HEAD, lars),
        image(16, 3),
        6,
        limits(CLOSE, DEEP),
    );
    let nesterov = "Sgd(lr: 0.05, nesterov: true)";
    compare(
        ("ResNet20(width: 4, convolution: Direct)", "Identity", nesterov),
        image(16, 1),
        4,
        limits(CLOSE, DEEP),
    );
}

#[test]
fn the_stem_and_bottlenecks_of_large_networks_equal_those_of_the_cpu() {
    let (head, sgd) = ("Mlp(dims: [8, 8], bias: false)", "Sgd(lr: 0.01)");
    compare(("ResNet18(width: 4, convolution: Direct)", head, sgd), image(40, 3), 5, limits(CLOSE, DEEP));
    compare(
        ("ResNet50(stem: Small, width: 4, convolution: Direct)", head, sgd),
        image(16, 3),
        8,
        limits(DEEP, DEEPEST),
    );
}

/// Every rounding to eight bits is off by at most 2⁻⁹, to eleven by 2⁻¹²; some of them follow one another, and open or shut a ReLU
/// on their way. The emulated device rounds factors to eleven bits where these are halves.
#[test]
fn a_step_in_fewer_bits_is_that_of_the_cpu_but_for_its_rounding() {
    let sgd = "Sgd(lr: 0.1)";
    let (bf16, tf32) = ((Precision::Bf16, (1e-4, 0.06), 0.5), (Precision::Tf32, (0.0, 0.02), 0.1));
    for ((precision, (least, most), of_gradients), (encoder, side, last)) in
        [bf16, tf32].into_iter().flat_map(|p| {
            [
                ("ConvNet(channels: [8, 16, 12], grid: 2, convolution: Direct)", 8, "conv3"),
                ("ResNet18(width: 8, convolution: Direct)", 40, "layer4.1.conv2"),
            ]
            .map(|e| (p, e))
        })
    {
        let what = (encoder, "Mlp(dims: [8])", sgd);
        let dev = device();
        dev.configure(DeviceOptions { precision, ..DeviceOptions::default() }).unwrap();
        let cuda = step(&dev, what, image(side, 3), 6, 1);
        dev.configure(DeviceOptions::default()).unwrap();
        let cpu = step(&Cpu::default(), what, image(side, 3), 6, 1);
        let off = |name: &str| {
            let of = |all: &Named| all.iter().find(|(n, _)| n == name).unwrap().1.clone();
            distance_above(0.0, &of(&cuda), &of(&cpu))
        };
        let features = off("features 0");
        assert!(features >= least, "{encoder}: {features} is not the rounding of {precision:?}");
        assert!(features < most, "{encoder}, {precision:?}: features are off by {features}");
        let gradient = off(&format!("gradient of encoder.{last}.weight"));
        assert!(
            gradient < of_gradients,
            "{encoder}, {precision:?}: the gradient of {last} is off by {gradient}"
        );
        assert!(gradient > 1e-5, "{encoder}, {precision:?}: {gradient} is no rounding");
    }
}

/// Maps on the device, and their values as they are there.
fn maps_of(on: &Context, shape: Maps, element: Element, phase: f64) -> (Field, Vec<f64>) {
    let values = pattern(shape.len(), phase);
    let images = Buffer::from_host(on, &values).unwrap();
    let mut field = Field::any(on, shape.len(), element).unwrap();
    maps::pixels(on, images.view().into(), shape.channels, (field.elements_mut(), shape)).unwrap();
    let there = field.to_host().unwrap();
    let off = |a: &f32, b: &f32| f64::from((a - b).abs()) > rounding(element) * f64::from(b.abs());
    assert!(!there.iter().zip(&values).any(|(a, b)| off(a, b)), "{element:?}");
    (field, there.iter().map(|v| f64::from(*v)).collect())
}

/// Of one element, relative.
fn rounding(element: Element) -> f64 {
    match element {
        Element::F32 => 0.0,
        Element::Bf16 => 1.0 / 256.0,
        Element::F16 => 1.0 / 2048.0,
    }
}

/// That each value is a plain one's, within its own rounding and `more` of the largest.
fn near(what: &str, got: &[f32], want: &[f64], (element, more): (Element, f64)) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*g) - w).abs();
        assert!(off <= rounding(element) * w.abs() + more * largest, "{what}, {element:?}, {i}: {g} for {w}");
    }
}

#[test]
fn normalisations_of_either_element_equal_plain_loops() {
    let dev = device();
    let on = Context::of(&dev).unwrap();
    let buffer = |n: usize, phase: f64| {
        let values = pattern(n, phase);
        (Buffer::from_host(&on, &values).unwrap(), values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
    };
    for (element, c) in [Element::F32, Element::Bf16].into_iter().flat_map(|e| [3, 8, 72].map(|c| (e, c))) {
        let shape = Maps { batch: 5, height: 3, width: 7, channels: c };
        let (n, close) = (shape.pixels(), (element, 2e-5));
        let [(y, ys), (r, rs), (mut g, gs), (more, ms)] =
            [0.0, 1.0, 2.0, 3.0].map(|phase| maps_of(&on, shape, element, phase));
        let ((gamma, gammas), (beta, betas)) = (buffer(c, 4.0), buffer(c, 5.0));
        let (mut mean, mut variance) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let mut norm = Norm::new(&on, c).unwrap();
        let running = (&mut mean, &mut variance, 1.0);
        norm.measure(&on, (y.elements(), shape), running, (&gamma, &beta, 1e-5)).unwrap();
        let column = |of: &dyn Fn(usize) -> f64, k: usize| (0..n).map(|i| of(i * c + k)).sum::<f64>();
        let means: Vec<f64> = (0..c).map(|k| column(&|i| ys[i], k) / n as f64).collect();
        let spread = |k: usize| column(&|i| (ys[i] - means[k]).powi(2), k);
        near("mean", &mean.to_host().unwrap(), &means, (Element::F32, 1e-5));
        let unbiased: Vec<f64> = (0..c).map(|k| spread(k) / (n - 1) as f64).collect();
        near("variance", &variance.to_host().unwrap(), &unbiased, (Element::F32, 1e-5));
        let inverse: Vec<f64> = (0..c).map(|k| 1.0 / (spread(k) / n as f64 + 1e-5).sqrt()).collect();
        let hat = |i: usize| (ys[i] - means[i % c]) * inverse[i % c];
        // Behind a residual that its own normalisation is still to be applied to: here the same one.
        let value =
            |x: &[f64], i: usize| (x[i] - means[i % c]) * inverse[i % c] * gammas[i % c] + betas[i % c];
        let outputs: Vec<f64> = (0..shape.len()).map(|i| (value(&ys, i) + value(&rs, i)).max(0.0)).collect();
        let mut out = Field::any(&on, shape.len(), element).unwrap();
        let residual = Some((r.elements(), Some(&norm)));
        let as_halves = element == Element::F32;
        let mut halves = Field::any(&on, shape.len(), Element::F16).unwrap();
        let halved = as_halves.then(|| halves.elements_mut());
        norm.apply(&on, (y.elements(), shape), residual, true, out.elements_mut(), halved).unwrap();
        near("output", &out.to_host().unwrap(), &outputs, close);
        if as_halves {
            near("halves of the output", &halves.to_host().unwrap(), &outputs, (Element::F16, 1e-5));
        }
        // Its gradient, of which a part lies apart.
        let open: Vec<f64> = out.to_host().unwrap().iter().map(|o| f64::from(u8::from(*o > 0.0))).collect();
        let masked: Vec<f64> = (0..shape.len()).map(|i| (gs[i] + ms[i]) * open[i]).collect();
        let gradients = |masked: &[f64]| {
            let b: Vec<f64> = (0..c).map(|k| column(&|i| masked[i], k)).collect();
            let a: Vec<f64> = (0..c).map(|k| column(&|i| masked[i] * hat(i), k)).collect();
            let of_y = |i: usize| {
                let k = i % c;
                gammas[k] * inverse[k] * (masked[i] - b[k] / n as f64 - hat(i) * a[k] / n as f64)
            };
            ((0..shape.len()).map(of_y).collect::<Vec<_>>(), a, b)
        };
        let (mut d_gamma, mut d_beta) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let to = (&mut d_gamma, &mut d_beta);
        let relu = Relu::Output(out.elements());
        let g_and_more = (&mut g.elements_mut(), Some(more.elements()));
        norm.own_gradient(&on, g_and_more, relu, (y.elements(), shape), to, as_halves).unwrap();
        near("masked", &g.to_host().unwrap(), &masked, close);
        let (_, a, b) = gradients(&masked);
        near("gradient of gamma", &d_gamma.to_host().unwrap(), &a, (Element::F32, 1e-4));
        near("gradient of beta", &d_beta.to_host().unwrap(), &b, (Element::F32, 1e-4));
        // What was masked has been rounded once before it is read again.
        let there: Vec<f64> = g.to_host().unwrap().iter().map(|v| f64::from(*v)).collect();
        let mut dy = Field::any(&on, shape.len(), element).unwrap();
        let to = Some(dy.elements_mut());
        let halved = as_halves.then(|| halves.elements_mut());
        norm.input_gradient(&on, &mut g.elements_mut(), relu, (y.elements(), shape), to, halved).unwrap();
        let (mut of_y, ..) = gradients(&there);
        if as_halves {
            let unit = norm.halved(halves.elements()).unit.to_host().unwrap()[0];
            let found = halves.to_host().unwrap();
            assert!(found.iter().any(|v| v.abs() > 2.0) && found.iter().all(|v| v.abs() < 64.0), "{found:?}");
            let times: Vec<f32> = found.iter().map(|v| v * unit).collect();
            near("halves of the gradient", &times, &of_y, (Element::F16, 2e-5));
        }
        let within = (element, 4e-3 * rounding(element) * 256.0 + 2e-5);
        near("gradient", &dy.to_host().unwrap(), &of_y, within);
        // Without a residual: the values tell where ReLU was shut, and the gradient takes its own place.
        let (mut g, gs) = maps_of(&on, shape, element, 6.0);
        let masked: Vec<f64> =
            (0..shape.len()).map(|i| if value(&ys, i) > 0.0 { gs[i] + ms[i] } else { 0.0 }).collect();
        (d_gamma, d_beta) = (Buffer::zeros(&on, c).unwrap(), Buffer::zeros(&on, c).unwrap());
        let (to, y) = ((&mut d_gamma, &mut d_beta), (y.elements(), shape));
        let g_and_more = (&mut g.elements_mut(), Some(more.elements()));
        norm.own_gradient(&on, g_and_more, Relu::Own, y, to, false).unwrap();
        near("masked", &g.to_host().unwrap(), &masked, close);
        let there: Vec<f64> = g.to_host().unwrap().iter().map(|v| f64::from(*v)).collect();
        norm.input_gradient(&on, &mut g.elements_mut(), Relu::Own, y, None, None).unwrap();
        (of_y, ..) = gradients(&there);
        let (_, a, b) = gradients(&masked);
        near("gradient of gamma", &d_gamma.to_host().unwrap(), &a, (Element::F32, 1e-4));
        near("gradient of beta", &d_beta.to_host().unwrap(), &b, (Element::F32, 1e-4));
        near("gradient in place", &g.to_host().unwrap(), &of_y, within);
    }
}

#[test]
fn convolutions_of_either_element_equal_plain_loops() {
    let dev = device();
    let on = Context::of(&dev).unwrap();
    // Kernel, stride, channels of images and outputs.
    for (math, (k, s, c, outputs)) in [Math::F32, Math::Tf32, Math::Bf16]
        .into_iter()
        .flat_map(|m| [(3, 2, 3, 8), (1, 1, 8, 5), (1, 2, 5, 8), (7, 2, 1, 4)].map(|g| (m, g)))
    {
        let (height, width, batch) = (5, 7, 2);
        let g = Geometry { height, width, inputs: c, outputs, kernel: k, stride: s, padding: k / 2 };
        let input = Maps { batch, height, width, channels: math.channels(c) };
        let (oh, ow) = g.output();
        let output = Maps { batch, height: oh, width: ow, channels: outputs };
        let (element, padded) = (math.element(), input.channels);
        // Tensor cores round factors of f32 to 11 bits.
        let close = (element, if math == Math::Tf32 { 1e-3 } else { 1e-5 });
        let values = pattern(input.pixels() * c, 0.5);
        let images = Buffer::from_host(&on, &values).unwrap();
        let mut x = Field::any(&on, input.len(), element).unwrap();
        maps::pixels(&on, images.view().into(), c, (x.elements_mut(), input)).unwrap();
        let xs = x.to_host().unwrap();
        let weights = pattern(g.weights(), 1.5);
        // Weights as the device rounds them.
        let (_, ws) = maps_of(&on, Maps::rows(1, weights.len()), element, 1.5);
        let w = Buffer::from_host(&on, &weights).unwrap();
        let each = |visit: &mut dyn FnMut(usize, usize, usize)| {
            for (b, y, x) in
                (0..batch).flat_map(|b| (0..oh).flat_map(move |y| (0..ow).map(move |x| (b, y, x))))
            {
                for (o, i, r, q) in (0..outputs).flat_map(|o| {
                    (0..c).flat_map(move |i| (0..k).flat_map(move |r| (0..k).map(move |q| (o, i, r, q))))
                }) {
                    let (top, left) = (y * s + r, x * s + q);
                    let inside =
                        (k / 2..height + k / 2).contains(&top) && (k / 2..width + k / 2).contains(&left);
                    if inside {
                        let pixel = (b * height + top - k / 2) * width + left - k / 2;
                        let weight = ((o * c + i) * k + r) * k + q;
                        visit(pixel * padded + i, weight, ((b * oh + y) * ow + x) * outputs + o);
                    }
                }
            }
        };
        let (mut conv, mut work) = (Convolution::new(&on, g, input, math).unwrap(), Work::default());
        let mut y = Field::any(&on, output.len(), element).unwrap();
        conv.forward(&on, &mut work, x.elements(), &w, y.elements_mut()).unwrap();
        let mut want = vec![0.0; output.len()];
        each(&mut |x, w, y| want[y] += f64::from(xs[x]) * ws[w]);
        near("convolution", &y.to_host().unwrap(), &want, close);
        let (dy, dys) = maps_of(&on, output, element, 2.5);
        let mut dw = Buffer::zeros(&on, g.weights()).unwrap();
        conv.weight_gradient(&on, &mut work, x.elements(), dy.elements(), &mut dw).unwrap();
        let mut want = vec![0.0; g.weights()];
        each(&mut |x, w, y| want[w] += f64::from(xs[x]) * dys[y]);
        near("gradient of weights", &dw.to_host().unwrap(), &want, close);
        assert_eq!(conv.halves().is_some(), math == Math::Tf32 && !Convolution::is_product(g));
        if let Some(as_halves) = conv.halves() {
            let mut x16 = Field::any(&on, as_halves.len(), Element::F16).unwrap();
            maps::pixels(&on, x.elements(), padded, (x16.elements_mut(), as_halves)).unwrap();
            let (dy16, _) = maps_of(&on, output, Element::F16, 2.5);
            // As if it had been multiplied with 4.
            let unit = Buffer::from_host(&on, &[0.25]).unwrap();
            let halved = Halved { values: dy16.elements(), unit: &unit };
            conv.weight_gradient_of_halves(&on, &mut work, x16.elements(), halved, &mut dw).unwrap();
            want.iter_mut().for_each(|v| *v *= 1.25);
            near("gradient of weights from halves", &dw.to_host().unwrap(), &want, (Element::F16, 1e-3));
        }
        for beta in [0.0, 1.0] {
            let (mut dx, mut want) = maps_of(&on, input, element, 3.5);
            want.iter_mut().for_each(|v| *v *= beta);
            let to = (dx.elements_mut(), beta as f32);
            conv.input_gradient(&on, &mut work, dy.elements(), &w, to).unwrap();
            each(&mut |x, w, y| want[x] += ws[w] * dys[y]);
            // Added to what is there, it may have been rounded before.
            let more = if beta > 0.0 { rounding(element) } else { 0.0 };
            near("gradient of the input", &dx.to_host().unwrap(), &want, (element, close.1 + more));
        }
    }
}

#[test]
fn a_step_of_a_perceptron_equals_that_of_the_cpu() {
    compare(("MlpEncoder(dims: [24, 16])", HEAD, "Sgd(lr: 0.1)"), image(6, 3), 7, CLOSE);
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
        compare((&of(pool), "Mlp(dims: [12, 8])", "Sgd(lr: 0.1)"), image(8, 3), 4, CLOSE);
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

/// Rows around `k` far centres.
fn clustered(rows: usize, dim: usize, k: usize) -> Vec<f32> {
    let noise = pattern(rows * dim, 0.7);
    let centre = |c: usize, d: usize| 8.0 * ((1 + c) as f32 * 1.3 + d as f32 * 2.1).sin();
    (0..rows * dim).map(|i| centre(i / dim % k, i % dim) + 0.5 * noise[i]).collect()
}

#[test]
fn k_means_equals_that_of_the_cpu() {
    use pauc::traits::clusterer::{Clustering, Features, FitContext};
    fn fit<D: Compute>(dev: &D, text: &str, data: &[f32], cols: usize) -> Vec<Clustering> {
        let config = Configured::<kind::Clusterer>::parse(text).unwrap();
        let buffer = dev.upload(data).unwrap();
        let rows = data.len() / cols;
        let features = Features { device: dev, data: dev.view(&buffer), rows, cols };
        let context = FitContext { seed: 4, epoch: 1, previous: &[], labels: None };
        D::clusterer(&*config.value).fit(features, context).unwrap()
    }
    let data = clustered(180, 17, 9);
    for text in [
        "KMeans(k: [9, 20], iterations: 6)",
        "KMeans(k: [12], spherical: true, init: Random, redos: 2, iterations: 4)",
        "KMeans(k: [5], max_points_per_centroid: 20, iterations: 4)",
        "KMeans(k: [180])",
        "MiniBatchKMeans(k: [6])",
    ] {
        let (cuda, cpu) = (fit(&device(), text, &data, 17), fit(&Cpu::default(), text, &data, 17));
        assert_eq!(cuda.len(), cpu.len());
        for (got, want) in cuda.iter().zip(&cpu) {
            assert_eq!(got.assignments, want.assignments, "{text}, k {}", got.k);
            let off = distance_above(0.0, &got.centroids, &want.centroids);
            assert!(off < 1e-4, "{text}, k {}: centroids are off by {off:e}", got.k);
            let last = |c: &Clustering| *c.report.objective.last().unwrap();
            assert!(
                (last(got) - last(want)).abs() <= 1e-4 * last(want),
                "{text}: {} for {}",
                last(got),
                last(want)
            );
        }
    }
}

/// The same rows are drawn where the device computes the distances, and those are what they say.
#[test]
fn k_means_starts_from_the_rows_that_it_starts_from_on_the_cpu() {
    use pauc::cluster::seeding::Init;
    use pauc::traits::probe::Rows;
    use pauc::traits::rng::{Purpose, stream};
    let (dim, data) = (11, clustered(100, 11, 20));
    let rows = Rows::new(&data, dim);
    let mut on = device().rows_on_device(&data, dim).unwrap().unwrap();
    let mut square = vec![f32::INFINITY; 100];
    square[20] = 0.25;
    on.lower(&data[..5 * dim], &mut square).unwrap();
    on.lower(&data[40 * dim..70 * dim], &mut square).unwrap();
    for (i, (x, got)) in rows.iter().zip(&square).enumerate() {
        let to =
            |c: usize| x.iter().zip(rows.row(c)).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let want = (0..5).chain(40..70).map(to).fold(f64::INFINITY, f64::min);
        let want = if i == 20 { want.min(0.25) } else { want };
        assert!((f64::from(*got) - want).abs() <= 1e-5 * want, "row {i}: {got} for {want}");
    }
    assert!(on.lower(&data[..dim], &mut square[..9]).unwrap_err().to_string().contains("9 distances of 100"));
    for seed in 0..2 {
        let rng = || stream(seed, Purpose::Cluster, 0, 0, 0);
        let got = Init::KMeansPlusPlus.choose_on(&mut *on, rows, 80, &mut rng()).unwrap();
        assert_eq!(got, Init::KMeansPlusPlus.choose(rows, 80, &mut rng()));
    }
}

/// The rows of a bank by descending score, equal ones by number, from a full sort. Small whole numbers make products exact.
#[test]
fn the_highest_scores_are_those_of_a_full_sort() {
    use pauc::traits::probe::Rows;
    let whole = |n: usize, step: usize| (0..n).map(move |i| (i * i * step / 7 % 5) as f32 - 2.0);
    let (n, dim) = (33_000, 3);
    let mut bank: Vec<f32> = whole(n * dim, 13).collect();
    // Along the last axis each row is better than all before.
    bank.iter_mut().skip(2).step_by(dim).enumerate().for_each(|(i, v)| *v = i as f32 / 16.0);
    let queries = [1.0, 0.0, 0.0, 2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 2.0, -0.5];
    let mut shift: Vec<f32> = whole(n, 5).map(|v| v / 2.0).collect();
    shift[7] = f32::NEG_INFINITY;
    let dev = device();
    let on = dev.probes_on_device().unwrap();
    for (n, k, shift) in [(n, 300, None), (n, 1024, Some(&shift)), (2, 1, None), (40, 60, Some(&shift))] {
        let (bank, shift) = (&bank[..n * dim], shift.map(|s| &s[..n]));
        let (queries, bank) = (Rows::new(&queries, dim), Rows::new(bank, dim));
        let got = on.highest(queries, bank, shift, k).unwrap().unwrap();
        assert_eq!(got.len(), queries.rows);
        for (q, got) in queries.iter().zip(got) {
            let score = |i: usize| {
                bank.row(i).iter().zip(q).map(|(a, b)| a * b).sum::<f32>() + shift.map_or(0.0, |s| s[i])
            };
            let mut want: Vec<(f32, u32)> = (0..n).map(|i| (score(i), i as u32)).collect();
            want.retain(|w| w.0.is_finite());
            want.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            want.truncate(k);
            assert!(got == want, "{k} of {n} for {q:?}");
        }
    }
    let (queries, bank) = (Rows::new(&queries, dim), Rows::new(&bank, dim));
    assert!(on.highest(queries, bank, None, 1025).unwrap().is_none());
}

/// What probes measure of overlapping classes, with the device and without.
fn measured(probe: &str, device: Option<&dyn pauc::traits::probe::ProbesOnDevice>) -> Vec<(String, f64)> {
    use pauc::traits::probe::{ProbeContext, Rows, SplitView};
    let (dim, classes) = (9, 4);
    let split = |n: usize, phase: f64| {
        let labels: Vec<u32> = (0..n).map(|i| (i * 7 % 11 % classes) as u32).collect();
        let noise = pattern(n * dim, phase);
        let value = |i: usize| noise[i] + if i % dim == labels[i / dim] as usize { 0.8 } else { 0.0 };
        let rows: Vec<f32> = (0..n * dim).map(value).collect();
        (rows, labels)
    };
    let ((train, labels), (test, tests)) = (split(170, 0.3), split(60, 1.9));
    fn view<'a>(rows: &'a [f32], dim: usize, labels: &'a [u32]) -> SplitView<'a> {
        let rows = Rows::new(rows, dim);
        SplitView { features: rows, embeddings: rows, labels: Some(labels), images: None }
    }
    let context = ProbeContext {
        train: view(&train, dim, &labels),
        test: Some(view(&test, dim, &tests)),
        classes,
        levels: &[],
        concentrations: &[],
        seed: 1,
        network: None,
        device,
    };
    let metrics = Configured::<kind::Probe>::parse(probe).unwrap().measure(&context).unwrap();
    metrics.into_iter().map(|m| (m.name, m.value)).collect()
}

/// A device that counts what it is asked for.
struct Counted<'a> {
    dev: &'a dyn pauc::traits::probe::ProbesOnDevice,
    asked: std::cell::Cell<usize>,
}

impl pauc::traits::probe::ProbesOnDevice for Counted<'_> {
    fn highest(
        &self,
        queries: pauc::traits::probe::Rows<'_>,
        bank: pauc::traits::probe::Rows<'_>,
        shift: Option<&[f32]>,
        k: usize,
    ) -> pauc::traits::Result<Option<Vec<pauc::traits::probe::Neighbours>>> {
        self.asked.set(self.asked.get() + 1);
        self.dev.highest(queries, bank, shift, k)
    }
    fn regression(
        &self,
        rows: pauc::traits::probe::Rows<'_>,
        labels: &[u32],
        classes: usize,
    ) -> pauc::traits::Result<Option<Box<dyn pauc::traits::probe::RegressionOnDevice>>> {
        self.asked.set(self.asked.get() + 1);
        self.dev.regression(rows, labels, classes)
    }
}

/// Metrics agree but for one sample in sixty, whose vote may hang on a rounding.
fn same_metrics(probes: &[(&str, usize)]) {
    let dev = device();
    for (probe, asked) in probes {
        let counted = Counted { dev: dev.probes_on_device().unwrap(), asked: Default::default() };
        let (got, want) = (measured(probe, Some(&counted)), measured(probe, None));
        assert_eq!(counted.asked.get(), *asked, "{probe}");
        assert!(!want.is_empty() && got.len() == want.len());
        for ((name, got), (same, want)) in got.iter().zip(&want) {
            assert_eq!(name, same);
            assert!((got - want).abs() <= 1.0 / 60.0 + 1e-9, "{name}: {got} for {want}");
        }
    }
}

#[test]
fn neighbours_vote_as_on_the_cpu() {
    same_metrics(&[
        ("Knn(k: 7)", 1),
        ("KnnGrid(k: [1, 30, 500])", 2),
        ("Retrieval()", 1),
        ("LowShot(probe: Knn(k: 3), labels: PerClass(20))", 1),
    ]);
}

/// Across a border between tiles, which many classes bring near.
#[test]
fn losses_of_a_regression_and_their_gradients_equal_plain_sums() {
    use pauc::traits::probe::Rows;
    let dev = device();
    for (n, dim, classes, from) in [(70, 5, 3, 11), (60, 2, 300_000, 1)] {
        let labels: Vec<u32> = (0..n).map(|i| (i * 7 % classes.min(50)) as u32).collect();
        let (x, weights) = (pattern(n * dim, 0.4), pattern(classes * (dim + 1), 1.1));
        let on = dev.probes_on_device().unwrap().regression(Rows::new(&x, dim), &labels, classes);
        let on = on.unwrap().unwrap();
        let mut got = vec![1.0; weights.len()];
        let loss = on.loss(from..n, &weights, &mut got).unwrap();
        let (mut total, mut right, mut want) = (0.0, 0, vec![0.0; weights.len()]);
        for (x, label) in x.chunks(dim).zip(&labels).skip(from) {
            let product = |c: usize| -> f64 {
                x.iter().zip(&weights[c * dim..]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
            };
            let logits: Vec<f64> =
                (0..classes).map(|c| product(c) + f64::from(weights[classes * dim + c])).collect();
            let own = logits[*label as usize];
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            total += sum.ln() - own;
            right += usize::from(logits.iter().all(|l| *l <= own));
            for (c, logit) in logits.iter().enumerate() {
                let residual = logit.exp() / sum - f64::from(u8::from(c == *label as usize));
                (0..dim).for_each(|d| want[c * dim + d] += residual * f64::from(x[d]));
                want[classes * dim + c] += residual;
            }
        }
        assert!((loss - total).abs() < 1e-5 * total, "{loss} for {total}");
        let off = norm(got.iter().zip(&want).map(|(g, w)| g - w)) / norm(want.iter().copied());
        assert!(off < 1e-5, "gradients are off by {off:e}");
        assert_eq!(on.right(from..n, &weights).unwrap(), right);
        let got = on.scatter().unwrap();
        for (at, got) in got.iter().enumerate() {
            let (a, b) = (at / dim, at % dim);
            let want: f64 = x.chunks(dim).map(|x| f64::from(x[a]) * f64::from(x[b])).sum();
            assert!((got - want).abs() < 1e-4, "{a}, {b}: {got} for {want}");
        }
        assert!(on.loss(0..n + 1, &weights, &mut vec![0.0; weights.len()]).is_err());
    }
}

#[test]
fn a_linear_probe_measures_what_it_measures_on_the_cpu() {
    same_metrics(&[("Linear(l2: [0.1, 1e-3])", 1)]);
}

/// What is made again is what was kept, and a step gives the same bits every time.
#[test]
fn steps_repeat_bit_by_bit_and_with_less_memory() {
    use pauc::models::DeviceOptions;
    let what = ("ResNet18(width: 4)", HEAD, "Sgd(lr: 0.1)");
    let dev = device();
    let bits = |found: Named| -> Vec<Vec<u32>> {
        found.into_iter().map(|(_, v)| v.into_iter().map(f32::to_bits).collect()).collect()
    };
    let memory = |dev: &Cuda| {
        let config = Configured::<kind::Encoder>::parse(what.0).unwrap();
        Cuda::encoder(&*config.value).build(dev, image(40, 3), 0).unwrap().memory(5).unwrap()
    };
    let kept = (bits(step(&dev, what, image(40, 3), 5, 2)), memory(&dev));
    assert!(bits(step(&dev, what, image(40, 3), 5, 2)) == kept.0);
    dev.configure(DeviceOptions { recompute: true, ..DeviceOptions::default() }).unwrap();
    let again = (bits(step(&dev, what, image(40, 3), 5, 2)), memory(&dev));
    dev.configure(DeviceOptions::default()).unwrap();
    assert!(again.0 == kept.0);
    assert!(again.1 < kept.1, "{} for {} bytes", again.1, kept.1);
}

/// Runs the binary on a short form of a recipe, shorter still; returns the run's folder and the losses of its steps.
fn run(recipe: &std::path::Path, device: &str, more: &[&str]) -> (tempfile::TempDir, Vec<f64>) {
    let out = tempfile::tempdir().unwrap();
    let mut args = vec!["run".to_string(), recipe.display().to_string()];
    args.extend(common::short_form(recipe));
    let shorter = [
        "data=Shapes(count: 48, size: 28, classes: 4)",
        "train=(epochs: 2, batch: 16, log_every: 1)",
        "probes=[]",
    ];
    let more = more.iter().copied().map(String::from);
    args.extend(shorter.into_iter().flat_map(|s| ["--set".to_string(), s.to_string()]).chain(more));
    args.extend(["--device", device, "--out", out.path().to_str().unwrap()].map(String::from));
    let output = common::pauc(args);
    assert_eq!(output.code, 0, "{}: {}", recipe.display(), output.stderr);
    let losses = losses(&common::only_run(out.path()));
    (out, losses)
}

fn losses(run: &std::path::Path) -> Vec<f64> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let events = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    events.filter_map(|e| e["loss"].as_f64().or_else(|| e["step"]["loss"].as_f64())).collect()
}

fn recipe(name: &str) -> std::path::PathBuf {
    common::recipes().into_iter().find(|r| r.file_stem().is_some_and(|s| s == name)).unwrap()
}

#[test]
fn shipped_recipes_run_as_on_the_cpu() {
    for name in ["pauc"] {
        let ((dir, cuda), (_, cpu)) = (run(&recipe(name), "cuda:0", &[]), run(&recipe(name), "cpu", &[]));
        let info = std::fs::read_to_string(common::only_run(dir.path()).join("run.json")).unwrap();
        assert!(info.contains("cuda:0"), "{info}");
        assert!(cuda.len() == cpu.len() && cuda.len() == 6, "{cuda:?} {cpu:?}");
        // Rounding grows from step to step; the first ones are alike to its size.
        for (n, (got, want)) in cuda.iter().zip(&cpu).enumerate() {
            let limit = if n < 2 { 1e-4 } else { 0.05 };
            assert!((got - want).abs() <= limit * want.abs().max(1.0), "{name}, step {n}: {got} for {want}");
        }
    }
}

#[test]
fn a_deterministic_run_repeats_and_goes_on_bit_by_bit() {
    let set = ["--set", "train.cuda=(deterministic: true)"];
    let (whole, losses_of_whole) = run(&recipe("pauc"), "cuda:0", &set);
    let (parts, first) = run(&recipe("pauc"), "cuda:0", &[&set[..], &["--max-steps", "4"]].concat());
    assert_eq!(first, losses_of_whole[..4]);
    let folder = common::only_run(parts.path());
    let output = common::pauc(["resume", folder.to_str().unwrap()]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(losses(&folder), losses_of_whole);
    let last = |dir: &std::path::Path| std::fs::read(dir.join("checkpoints/last.safetensors")).unwrap();
    assert!(last(&folder) == last(&common::only_run(whole.path())), "checkpoints differ");
}

#[test]
fn rows_are_replaced_in_place() {
    let dev = device();
    let matrix: Tensor<(usize, usize), f32, Cuda> = dev.tensor_from_vec(pattern(12, 0.0), (4, 3));
    let shared = matrix.clone();
    dev.replace_rows(&matrix, 1, &[1., 2., 3., 4., 5., 6.]).unwrap();
    let mut want = pattern(12, 0.0);
    want[3..9].copy_from_slice(&[1., 2., 3., 4., 5., 6.]);
    assert_eq!(shared.as_vec(), want);
    assert!(dev.replace_rows(&matrix, 3, &[0.0; 6]).is_err(), "beyond the end");
    assert!(dev.replace_rows(&matrix, 0, &[0.0; 4]).is_err(), "no whole rows");
    let turned = matrix.permute::<(usize, usize), Axes2<1, 0>>();
    assert!(dev.replace_rows(&turned, 0, &[0.0; 4]).is_err(), "permuted");
}

#[test]
fn stages_are_timed_by_the_device() {
    let encoder = "ConvNet(channels: [4])";
    let args = ["bench", "--device", "cuda:0", "--encoder", encoder, "--batch", "4", "--size", "8"];
    let output = common::pauc(args.into_iter().chain(["--seconds", "0.1", "--json"]));
    assert_eq!(output.code, 0, "{}", output.stderr);
    let found: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    for stage in ["forward", "forward/conv1", "terms", "backward", "optimizer"] {
        assert!(found["stage_ms"][stage].as_f64().unwrap() > 0.0, "{stage}: {found}");
    }
}

#[test]
fn a_number_without_a_device_is_one_line_and_exit_code_1() {
    let output = common::pauc(["run", "recipes/quickstart.ron", "--device", "cuda:63"]);
    assert_eq!(output.code, 1);
    assert!(
        output.stderr.starts_with("error: there is no GPU 63") && output.stderr.lines().count() == 1,
        "{}",
        output.stderr
    );
    let without = [("LD_LIBRARY_PATH", ""), ("CUDA_VISIBLE_DEVICES", "")];
    let output = common::pauc_with(&without, ["run", "recipes/quickstart.ron", "--device", "cuda"]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.starts_with("error: ") && output.stderr.lines().count() == 1, "{}", output.stderr);
    let output = common::pauc_with(&without, ["devices"]);
    assert!(output.code == 1 && output.stdout.contains("\nno CUDA: "), "{}", output.stdout);
    let output = common::pauc(["devices"]);
    assert!(output.code == 0 && output.stdout.contains("cuda:0"), "{}", output.stdout);
}
