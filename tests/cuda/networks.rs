//! Training steps of encoders, heads and optimisers.

use crate::{device, distance_above, norm, pattern};
use pauc::dfdx::prelude::*;
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
