//! Training steps of encoders, heads and optimizers.

use crate::{device, pattern, shaken};
use pauc::dfdx::prelude::*;
use pauc::models::ema::MomentumConfig;
use pauc::models::network::{Network, backward_with};
use pauc::models::optimizers::clip_gradients;
use pauc::models::{BuildOptions, DeviceOptions, HeadConfig, NetworkDevice, Precision};
use pauc::traits::component_ron::options as ron_options;
use pauc::traits::optimizer::StepContext;
use pauc::traits::param::clear_gradients;
use pauc::traits::registry::kind;
use pauc::traits::{Clock, Compute, Configured, ImageShape, Param, Pass};
use pauc_testing::assert_within;
use pauc_testing::tolerance::{SIGMAS, UNIT_F32};
use pauc_testing::vectors::{distance, norm};

type Named = Vec<(String, Vec<f32>)>;

/// How inputs and parameters are [`shaken`]: the relative size, and the number of the draw. Size 0 does not
/// change them.
#[derive(Clone, Copy, Debug, Default)]
struct Shake {
    size: f64,
    draw: u64,
}

impl Shake {
    /// Shakes values, with different errors for each `number`.
    fn apply(self, values: Vec<f32>, number: usize) -> Vec<f32> {
        shaken(values, self.size, self.draw * 10_000 + number as u64)
    }

    fn parameters<D: NetworkDevice>(self, dev: &D, network: &Network<D>) {
        for (i, p) in network.parameters().iter().enumerate().filter(|_| self.size > 0.0) {
            let values = dev.download(&p.value()).unwrap();
            *p.value_mut() = dev.upload(&self.apply(values, i)).unwrap();
        }
    }

    fn images(self, values: Vec<f32>, round: usize) -> Vec<f32> {
        self.apply(values, 5_000 + round)
    }
}

/// Draws for estimating the effect of rounding.
const DRAWS: u64 = 8;

/// The relative standard deviation that rounding causes in a layer.
///
/// Each addition of an inner product has a uniform error of at most u times the partial sum. Partial sums of
/// terms of either sign grow like the square root of their number, so the total deviates by √(n/6)·u of the
/// result. Variances are sums of squares, which deviate by √n/3·u; they enter with a factor of one half, like
/// inner products of a sixth of their length. Split factors with 11 bits each add about 2⁻²³.
fn of_layer(products: usize, pixels: usize) -> f64 {
    (products.max(pixels / 6) as f64 / 6.0).sqrt() * UNIT_F32 + 2f64.powi(-23)
}

/// Asserts that the GPU's results equal the CPU's up to rounding. `shaken` computes the CPU's results from
/// perturbed numbers, and `unit` is [`of_layer`].
///
/// The rounded output of a layer is the exact output for slightly different weights and inputs (backward
/// error). How far such an error propagates depends on the network: normalizations divide by small
/// deviations, and ReLUs open and close. The test measures it on the CPU, with weights and images perturbed
/// by six deviations of such a rounding, up or down at random. It allows the largest distance of [`DRAWS`]
/// draws. It also allows the rounding of a sum whose terms cancel. For gradients, such as that of a bias
/// before a normalization, this is relative to the largest gradient; for means, to the deviation.
///
/// A ReLU that opens or closes changes gradients much more than rounding does. The residual networks use
/// seeds for which this hardly happens in any draw, so little is allowed. Where it happens, more is allowed.
fn agree(what: &str, cuda: &Named, cpu: &Named, unit: f64, shaken: impl Fn(Shake) -> Named) {
    let draws: Vec<Named> = (0..DRAWS).map(|draw| shaken(Shake { size: SIGMAS * unit, draw })).collect();
    let size = |v: &[f32]| norm(v.iter().map(|v| f64::from(*v)));
    let gradients = cpu.iter().filter(|(name, _)| name.starts_with("gradient"));
    let largest = gradients.map(|(_, g)| size(g)).fold(0.0, f64::max);
    assert_eq!(cuda.len(), cpu.len());
    let mut wrong = Vec::new();
    let (mut full, mut widest) = (0f64, 0f64);
    for (i, ((name, got), (same, want))) in cuda.iter().zip(cpu).enumerate() {
        assert_eq!(name, same);
        let least = match name.strip_suffix("running_mean") {
            Some(layer) => {
                let variance = format!("{layer}running_var");
                let of = |(_, v): &(String, Vec<f32>)| v.iter().map(|v| f64::from(*v)).sum::<f64>().sqrt();
                cpu.iter().find(|(name, _)| *name == variance).map_or(0.0, of)
            }
            None if name.starts_with("gradient") => largest,
            None => 0.0,
        };
        let response = draws.iter().map(|d| distance(&d[i].1, want)).fold(0.0, f64::max);
        let (off, allowed) = (distance(got, want), response + unit * size(want).max(least));
        full = full.max(off / allowed);
        widest = widest.max(allowed / size(want).max(0.01 * least));
        if off.is_nan() || off > allowed {
            wrong.push(format!("{name} is off by {off:.1e}, allowed {allowed:.1e}"));
        }
    }
    println!("{what}: {full:.2} of the allowed error, which is at most {widest:.1e}");
    let shown = wrong[..wrong.len().min(8)].join(", ");
    assert!(wrong.is_empty(), "{what}: {} are off; {shown}", wrong.len());
}

fn network<D: NetworkDevice>(
    dev: &D,
    (encoder, head): (&str, &str),
    input: ImageShape,
    options: BuildOptions,
) -> Network<D> {
    let config = Configured::<kind::Encoder>::parse(encoder).unwrap();
    let head: HeadConfig = ron_options().from_str(head).unwrap();
    Network::build(dev, D::encoder(&*config.value), &head, input, options).unwrap()
}

/// Returns the longest inner product of a pass through weights (out, in, …), forward or backward.
fn longest<D: NetworkDevice>(network: &Network<D>) -> usize {
    let of = |p: &Param<D>| p.len() / p.shape.iter().take(2).min().map_or(1, |least| *least);
    network.parameters().iter().filter(|p| p.shape.len() > 1).map(of).max().unwrap_or(1)
}

/// Returns the results of training steps: features and embeddings, gradients, then parameters and statistics
/// of both networks.
fn step<D: NetworkDevice>(
    dev: &D,
    (encoder, head, optimizer): (&str, &str, &str),
    (input, batch, options): (ImageShape, usize, BuildOptions),
    rounds: usize,
    shake: Shake,
) -> Named {
    let mut network = network(dev, (encoder, head), input, options);
    shake.parameters(dev, &network);
    let mut branch = network.duplicate().unwrap();
    let optimizer = Configured::<kind::Optimizer>::parse(optimizer).unwrap();
    let optimizer = D::optimizer(&*optimizer.value);
    let params = network.parameters();
    let mut state = optimizer.start(dev, &params).unwrap();
    let ema: MomentumConfig = ron_options().from_str("Ema(momentum: 0.9)").unwrap();
    let mut found = Named::new();
    for round in 0..rounds {
        let shape = (batch, input.height, input.width, input.channels);
        let images =
            dev.tensor_from_vec(shake.images(pattern(batch * input.len(), round as f64), round), shape);
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
        let now = StepContext { lr: optimizer.learning_rate(batch), clock: Clock::still() };
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
        shake.images(pattern(batch * input.len(), 5.0), rounds),
        (batch, input.height, input.width, input.channels),
    );
    found.push(("evaluation".into(), network.forward(images, Pass::Eval).unwrap().embeddings.as_vec()));
    found
}

/// Asserts that outputs, gradients, parameters and statistics agree after steps from the same start.
fn compare(what: (&str, &str, &str), (input, batch, seed): (ImageShape, usize, u64), rounds: usize) {
    let (cpu, still) = (Cpu::default(), Shake::default());
    let options = BuildOptions::seed(seed);
    let size = (input, batch, options);
    let on_gpu = step(&device(), what, size, rounds, still);
    let on_cpu = step(&cpu, what, size, rounds, still);
    let products = longest(&network(&cpu, (what.0, what.1), input, options));
    let unit = of_layer(products, batch * input.height * input.width);
    agree(what.0, &on_gpu, &on_cpu, unit, |shake| step(&cpu, what, size, rounds, shake));
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
        (image(8, 3), 6, 3),
        2,
    );
    let oblong = ImageShape { height: 9, width: 13, channels: 1 };
    let head = "Mlp(dims: [8], bias: false, last_batch_norm: true)";
    compare(("ConvNet(channels: [8, 8], convolution: Direct)", head, "AdamW(lr: 1e-2)"), (oblong, 5, 3), 2);
}

#[test]
fn a_step_of_a_residual_network_equals_that_of_the_cpu() {
    let lars = "Lars(lr: 0.5, weight_decay: 1e-2)";
    compare(("ResNet18(stem: Small, width: 4, convolution: Direct)", HEAD, lars), (image(16, 3), 6, 2392), 2);
    let nesterov = "Sgd(lr: 0.05, nesterov: true)";
    compare(("ResNet20(width: 4, convolution: Direct)", "Identity", nesterov), (image(16, 1), 4, 395), 2);
}

#[test]
fn the_stem_and_bottlenecks_of_large_networks_equal_those_of_the_cpu() {
    let (head, sgd) = ("Mlp(dims: [8, 8], bias: false)", "Sgd(lr: 0.01)");
    compare(("ResNet18(width: 4, convolution: Direct)", head, sgd), (image(40, 3), 5, 3883), 2);
    // In the small network, hardly any ReLU is about to open or close; in the large one, some always are.
    compare(("ResNet50(stem: Small, width: 2, convolution: Direct)", head, sgd), (image(8, 3), 16, 494), 1);
    compare(("ResNet50(stem: Small, width: 4, convolution: Direct)", head, sgd), (image(16, 3), 8, 2621), 1);
}

/// Factors have fewer bits. The error of each is uniform, up to h of a number that begins with 1, which
/// deviates by 0.42·h on average. As in [`agree`], weights and images that are perturbed by six deviations of
/// a layer's roundings, up or down at random, show how far this propagates.
#[test]
fn a_low_precision_step_equals_that_of_the_cpu_up_to_rounding() {
    let sgd = "Sgd(lr: 0.1)";
    // With bf16, both factors, the product and its gradient are rounded. TF32's factors are truncated, with
    // errors that are uniform around 2⁻¹¹ less.
    let roundings = |bits: i32, count: f64| SIGMAS * count.sqrt() * 0.42 * 2f64.powi(-bits);
    let bf16 = (Precision::Bf16, roundings(8, 4.0), 1e-4);
    let tf32 = (Precision::Tf32, roundings(11, 2.0), 0.0);
    for (encoder, side, last) in [
        ("ConvNet(channels: [8, 16, 12], grid: 2, convolution: Direct)", 8, "conv3"),
        ("ResNet18(width: 8, convolution: Direct)", 40, "layer4.1.conv2"),
    ] {
        let what = (encoder, "Mlp(dims: [8])", sgd);
        let size = |device| (image(side, 3), 6, BuildOptions { seed: 3, device });
        let on_cpu = |shake: Shake| step(&Cpu::default(), what, size(DeviceOptions::default()), 1, shake);
        let cpu = on_cpu(Shake::default());
        for (precision, rounding, least) in [bf16, tf32] {
            let options = DeviceOptions { precision, ..DeviceOptions::default() };
            let cuda = step(&device(), what, size(options), 1, Shake::default());
            let draw = |draw| on_cpu(Shake { size: rounding, draw });
            let draws: Vec<Named> = (0..DRAWS).map(draw).collect();
            let off = |name: &str| {
                let of = |all: &Named| all.iter().find(|(n, _)| n == name).unwrap().1.clone();
                let size = norm(of(&cpu).iter().map(|v| f64::from(*v)));
                let allowed = draws.iter().map(|d| distance(&of(d), &of(&cpu))).fold(0.0, f64::max);
                (distance(&of(&cuda), &of(&cpu)) / size, allowed / size)
            };
            let (features, allowed) = off("features 0");
            // Features are means over pixels, whose roundings of up to 2⁻⁸ partly cancel.
            assert!(features >= least, "{encoder}: {features} is not the rounding of {precision:?}");
            assert_within!(features, 0.0, allowed, "{encoder}, {precision:?}: features");
            let (gradient, allowed) = off(&format!("gradient of encoder.{last}.weight"));
            assert_within!(gradient, 0.0, allowed, "{encoder}, {precision:?}: the gradient of {last}");
            // More than the error of `f32`, and less than a tenth of that of 11 bits.
            assert!(gradient > 1e-5, "{encoder}, {precision:?}: {gradient} is not rounded to this precision");
        }
    }
}

#[test]
fn a_step_of_a_perceptron_equals_that_of_the_cpu() {
    compare(("MlpEncoder(dims: [24, 16])", HEAD, "Sgd(lr: 0.1)"), (image(6, 3), 7, 3), 2);
}

#[test]
fn a_step_of_a_vision_transformer_equals_that_of_the_cpu() {
    let of = |pool: &str| {
        format!(
            "VisionTransformer(size: Custom(width: 12, heads: 3), patch: 4, depth: 2, mlp_ratio: 2, pool: {pool})"
        )
    };
    // The options do not have the fused operation.
    for pool in ["Class", "Mean", "Class, layer_scale: 0.5, registers: 2", "Mean, mlp: SwiGlu, registers: 1"]
    {
        // Features of all images are similar before training, so a normalization would divide by almost zero.
        compare((&of(pool), "Mlp(dims: [12, 8])", "Sgd(lr: 0.1)"), (image(8, 3), 4, 3), 2);
    }
}

#[test]
fn images_of_other_sizes_share_parameters() {
    type Parts = (&'static str, &'static str);
    fn sizes<D: NetworkDevice>(dev: &D, parts: Parts, seed: u64, shake: Shake) -> Named {
        let mut network = network(dev, parts, image(16, 3), BuildOptions::seed(seed));
        shake.parameters(dev, &network);
        let batch = |side: usize, n: usize| {
            let images = shake.images(pattern(n * side * side * 3, side as f64), side);
            dev.tensor_from_vec(images, (n, side, side, 3))
        };
        let output = network.forward_sizes(vec![batch(16, 3), batch(8, 4)], Pass::Train).unwrap();
        let mut all = vec![("embeddings".to_string(), output.embeddings.as_vec())];
        backward_with(output.embeddings, pattern(7 * 6, 1.0), None).unwrap();
        let gradient = |p: &Param<D>| (format!("gradient of {}", p.name), dev.download(&p.grad()).unwrap());
        all.extend(network.parameters().iter().map(gradient));
        all
    }
    let (cpu, still) = (Cpu::default(), Shake::default());
    let seed = 54;
    for encoder in [
        "ResNet18(stem: Small, width: 2, convolution: Direct)",
        // Positions are learned for 4×4 patches and interpolated for 2×2.
        "VisionTransformer(size: Custom(width: 12, heads: 3), patch: 4, depth: 2, mlp_ratio: 2)",
    ] {
        let parts = (encoder, "Mlp(dims: [6])");
        let built = network(&cpu, parts, image(16, 3), BuildOptions::seed(seed));
        let unit = of_layer(longest(&built), 3 * 16 * 16);
        let (on_gpu, on_cpu) = (sizes(&device(), parts, seed, still), sizes(&cpu, parts, seed, still));
        agree(encoder, &on_gpu, &on_cpu, unit, |shake| sizes(&cpu, parts, seed, shake));
    }
}

#[test]
fn a_second_outstanding_pass_is_refused_and_a_batch_of_one_has_no_statistics() {
    let dev = device();
    let config = Configured::<kind::Encoder>::parse("ConvNet(channels: [4])").unwrap();
    let mut encoder = Cuda::encoder(&*config.value).build(&dev, image(4, 1), BuildOptions::seed(0)).unwrap();
    let images = |n: usize| dev.tensor_from_vec(pattern(n * 16, 0.0), (n, 4, 4, 1));
    let first = encoder.forward(images(2), Pass::Train).unwrap();
    let e = encoder.forward(images(2), Pass::Train).unwrap_err();
    assert!(e.to_string().contains("still waiting"), "{e}");
    drop(first);
    encoder.forward(images(2), Pass::Train).unwrap();
    let e = encoder.forward(dev.tensor_from_vec(pattern(25, 0.0), (1, 5, 5, 1)), Pass::Eval).unwrap_err();
    assert!(e.to_string().contains("5×5×1"), "{e}");
    let head: HeadConfig = ron_options().from_str("Mlp(dims: [4], last_batch_norm: true)").unwrap();
    let mut head = dev.head(&head, 3, 1, BuildOptions::seed(0)).unwrap();
    let x = dev.tensor_from_vec(pattern(3, 0.0), (1usize, 3usize));
    let e = head.forward(x.leaky_trace(), Pass::Train).unwrap_err();
    assert!(e.to_string().contains("at least 2 samples"), "{e}");
}

/// Recomputed activations equal kept ones, and a step gives the same bits every time.
#[test]
fn steps_repeat_bit_by_bit_and_with_less_memory() {
    let what = ("ResNet18(width: 4)", HEAD, "Sgd(lr: 0.1)");
    let dev = device();
    let bits = |found: Named| -> Vec<Vec<u32>> {
        found.into_iter().map(|(_, v)| v.into_iter().map(f32::to_bits).collect()).collect()
    };
    let run = |options: DeviceOptions| {
        let options = BuildOptions { seed: 3, device: options };
        let config = Configured::<kind::Encoder>::parse(what.0).unwrap();
        let encoder = Cuda::encoder(&*config.value).build(&dev, image(40, 3), options).unwrap();
        let left = step(&dev, what, (image(40, 3), 5, options), 2, Shake::default());
        (bits(left), encoder.memory(5).unwrap())
    };
    let kept = run(DeviceOptions::default());
    assert!(run(DeviceOptions::default()).0 == kept.0);
    let again = run(DeviceOptions { recompute: true, ..DeviceOptions::default() });
    assert!(again.0 == kept.0);
    assert!(again.1 < kept.1, "{} bytes, expected fewer than {}", again.1, kept.1);
}

/// A network keeps its precision regardless of networks built later, and passes it to its duplicates.
#[test]
fn networks_of_different_precision_do_not_change_each_other() {
    let dev = device();
    let build = |precision| {
        let device = DeviceOptions { precision, ..DeviceOptions::default() };
        network(&dev, ("ResNet18(width: 4)", HEAD), image(40, 3), BuildOptions { seed: 3, device })
    };
    let embed = |network: &mut Network<Cuda>| {
        let images = dev.tensor_from_vec(pattern(5 * 40 * 40 * 3, 0.0), (5, 40, 40, 3));
        network.forward(images, Pass::Momentum).unwrap().embeddings.as_vec()
    };
    let alone = embed(&mut build(Precision::F32));
    let mut exact = build(Precision::F32);
    let mut rounded = build(Precision::Bf16);
    let mut copy = exact.duplicate().unwrap();
    let of_rounded = embed(&mut rounded);
    assert!(embed(&mut exact) == alone);
    assert!(embed(&mut copy) == alone);
    assert!(of_rounded != alone);
}
