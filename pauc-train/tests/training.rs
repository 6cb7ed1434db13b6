//! Small runs in memory: micro-batches, predictors, and what terms learn and remember.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::plan;

use dfdx::prelude::Cpu;
use pauc_models::NetworkDevice;
use pauc_models::encoders_plain::MlpEncoder;
use pauc_models::weights::TensorFile;
use pauc_report::events::{Event, Gradients, Step};
use pauc_testing::{assert_within, tolerance};
use pauc_train::observer::Observer;
use pauc_train::plan::Plan;
use pauc_train::recipe::Recipe;
use pauc_train::run_dir::RunDir;
use pauc_train::trainer::{Ending, Trainer};
use pauc_traits::dataset::Place;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{BuildOptions, Count, Encoder, EncoderConfig, ImageShape, Param, Result, component};
use rand::Rng;
use std::cell::Cell;
use std::collections::BTreeMap;

/// A run without batch normalization, so that micro-batches are independent.
const PLAIN: &str = r#"Recipe(
    name: "small",
    data: Shapes(count: 96, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: MlpEncoder(dims: [24, 16]),
    projector: Mlp(dims: [16, 8]),
    objective: [OBJECTIVE],
    optimizer: Sgd(lr: 0.1),
    train: (epochs: 2, batch: 24, log_every: 3),
)"#;

#[derive(Default)]
struct Log {
    steps: Vec<Step>,
    gradients: Vec<Gradients>,
}

impl Observer for Log {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(e) => self.steps.push(e.clone()),
            Event::Gradients(e) => self.gradients.push(e.clone()),
            _ => {}
        }
        Ok(())
    }
}

/// The log of a run, and the tensors of its checkpoint.
type Trained = (Log, BTreeMap<String, Vec<f32>>);

fn train(objective: &str, set: &[&str]) -> Trained {
    let plan = plan(&PLAIN.replace("OBJECTIVE", objective), set);
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::of(folder.path(), "small", "0", 0);
    dir.create().unwrap();
    let mut trainer = Trainer::new(&Cpu::default(), &plan).unwrap();
    let mut log = Log::default();
    trainer.train(&dir, None, &mut log).unwrap();
    (log, saved(&dir))
}

/// Returns the tensors of the last checkpoint.
fn saved(dir: &RunDir) -> BTreeMap<String, Vec<f32>> {
    let file = TensorFile::load(dir.last_checkpoint().unwrap()).unwrap();
    file.names().filter_map(|n| Some((n.to_string(), file.f32(n).ok()?.to_vec()))).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let off = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    off / sum(&mut b.iter().map(|b| f64::from(*b))).max(1e-6)
}

/// Multiplies each value by 1 + `by` or 1 − `by`, at random.
fn shake(params: &[Param<Cpu>], by: f64, seed: u64) {
    for (i, p) in params.iter().enumerate() {
        let mut rng = stream(seed, Purpose::Init, 0, i as u64, 0);
        for v in p.value_mut().iter_mut() {
            let factor = if rng.gen_bool(0.5) { 1.0 + by } else { 1.0 - by };
            *v = (f64::from(*v) * factor) as f32;
        }
    }
}

/// Bounds the backward error of an inner product of n terms in `f32`, relative to its factors: at most γₙ
/// (Higham, section 3.1), and √n·u if errors have random signs (Higham and Mary 2019).
fn rounding(terms: usize) -> f64 {
    tolerance::f32(1, (terms as f64).sqrt())
}

/// The largest difference between two runs that differ only in the order of their sums.
///
/// The effect of a rounding error depends on the run, so it is measured: in four runs, all weights are
/// perturbed by [`rounding`] with random signs in every step. Each of the two compared runs may be as far
/// from the exact one as the farthest of these.
struct Noise {
    loss: f64,
    grad_norm: f64,
    weights: BTreeMap<String, f64>,
}

impl Noise {
    fn of(objective: &str, set: &[&str], (log, weights): &Trained) -> Self {
        // The longest inner products are those of the first layer with the pixels.
        let by = rounding(12 * 12 * 3);
        let plan = plan(&PLAIN.replace("OBJECTIVE", objective), set);
        let mut noise = Noise { loss: 0.0, grad_norm: 0.0, weights: BTreeMap::new() };
        for seed in 0..4 {
            let folder = tempfile::tempdir().unwrap();
            let dir = RunDir::of(folder.path(), "small", "0", 0);
            dir.create().unwrap();
            let mut trainer = Trainer::new(&Cpu::default(), &plan).unwrap();
            let mut shaken = Log::default();
            for step in 1..=plan.horizon.total_steps {
                shake(&trainer.network_mut().parameters(), by, seed << 32 | step);
                trainer.train(&dir, Some(step), &mut shaken).unwrap();
            }
            assert_eq!(shaken.steps.len(), log.steps.len());
            for (a, b) in shaken.steps.iter().zip(&log.steps) {
                noise.loss = noise.loss.max(2.0 * (a.loss - b.loss).abs());
                noise.grad_norm = noise.grad_norm.max(2.0 * (a.grad_norm - b.grad_norm).abs());
            }
            for (name, values) in saved(&dir) {
                let off = 2.0 * (distance(&values, &weights[&name]) + by);
                let most = noise.weights.entry(name).or_default();
                *most = most.max(off);
            }
        }
        noise
    }

    /// Asserts that two runs agree within the noise.
    fn allows(&self, what: &str, one: &Trained, other: &Trained) {
        assert_eq!(one.0.steps.len(), other.0.steps.len());
        for (a, b) in one.0.steps.iter().zip(&other.0.steps) {
            assert_within!(a.loss, b.loss, self.loss, "{what}: loss of step {}", a.step);
            assert_within!(a.grad_norm, b.grad_norm, self.grad_norm, "{what}: gradient of step {}", a.step);
        }
        assert_eq!(one.1.len(), other.1.len());
        for (name, values) in &other.1 {
            let (off, within) = (distance(&one.1[name], values), self.weights[name]);
            assert!(off <= within, "{what}: {name} is off by {off:e}, allowed {within:e}");
        }
    }
}

#[test]
fn a_batch_in_parts_is_the_whole_batch() {
    let forms: [(&str, &[&str]); 3] = [
        // At a temperature of 0.07, a learning rate of 0.1 multiplies each rounding error by a thousand.
        ("(term: InfoNce())", &["optimizer=Sgd(lr: 0.01)"]),
        (
            "(term: InfoNce(negatives: QueueAndBatch, two_sided: true)), (term: VicReg(), weight: 0.1)",
            &["momentum_encoder=Ema(momentum: 0.9)", "queue=48"],
        ),
        ("(term: CosinePrediction(two_sided: true)), (term: Dcl())", &["predictor=Mlp(dims: [6, 8])"]),
    ];
    for (objective, set) in forms {
        let whole = train(objective, set);
        let noise = Noise::of(objective, set, &whole);
        let parts: [&[&str]; 5] = [
            &["train.micro_batch=8"],
            &["train.micro_batch=7"],
            &["train.micro_batch=24"],
            &["train.shards=8"],
            &["train.shards=2", "train.micro_batch=5"],
        ];
        for part in parts {
            let set = [set, part].concat();
            noise.allows(&format!("{objective} with {part:?}"), &train(objective, &set), &whole);
        }
    }
}

#[test]
fn statistics_are_updated_once_for_each_part() {
    // With a momentum of 0.1 per part, running statistics of k equal parts are 1 − 0.9^k times the batch's.
    let norm = [
        "projector=Mlp(dims: [16, 8], batch_norm: true)",
        "train.epochs=1",
        "train.batch=96",
        "optimizer=Sgd(lr: 1e-9)",
    ];
    let mut set = norm.to_vec();
    let mean = |set: &[&str]| train("(term: InfoNce())", set).1["projector.1.running_mean"].clone();
    let whole = mean(&set);
    set.push("train.micro_batch=48");
    let halves = mean(&set);
    // The means a, b of the two halves average to the batch's: 0.1·(0.9·a + b) against 0.1·(a + b)/2. The
    // difference is 0.9·(a + b)/2 + 0.1·(b − a)/2 of a tenth, where ‖b − a‖ is less than ‖a + b‖, since the
    // halves of a batch are similar.
    let ratio = distance(&halves, &whole);
    assert_within!(ratio, 0.9, 0.1, "two updates weigh 1.9 times one");
}

#[test]
fn a_predictor_is_trained_with_and_without_a_momentum_encoder() {
    for set in [
        &["predictor=Mlp(dims: [6, 8])"][..],
        &["predictor=Mlp(dims: [6, 8])", "momentum_encoder=Ema(momentum: 0.9)"],
    ] {
        let (log, weights) = train("(term: CosinePrediction(two_sided: true))", set);
        let start = plan(&PLAIN.replace("OBJECTIVE", "(term: CosinePrediction(two_sided: true))"), set);
        let first = start.network(&Cpu::default()).unwrap();
        let names: Vec<_> = first.parameters().into_iter().filter(|p| p.name.ends_with("weight")).collect();
        assert!(names.iter().any(|p| p.name == "predictor.2.weight"), "{names:?}");
        for p in &names {
            // Far above the rounding of a weight, far below the change in eight steps.
            assert!(distance(&weights[&p.name], &p.value()) > 1e-4, "{} did not move", p.name);
        }
        assert!(!weights.contains_key("momentum.predictor.0.weight"));
        let (first, last) = (&log.steps[0], log.steps.last().unwrap());
        assert!(last.loss < first.loss, "{} after {}", last.loss, first.loss);
    }
}

#[test]
fn a_temperature_is_learned_and_bounded() {
    let of = |fields: &str, set: &[&str]| {
        let (_, weights) = train(&format!("(term: InfoNce(temperature: Learnable({fields})))"), set);
        f64::from(weights["term.InfoNce.ln_temperature"][0]).exp()
    };
    // Rounding changes it by less than 1e-7.
    assert!((of("init: 0.5", &[]) - 0.5).abs() > 1e-4, "it moved");
    // No weight decay: at a tiny learning rate, even the largest decay does not change it.
    let still = of("init: 0.5", &["optimizer=Sgd(lr: 1e-9, weight_decay: 1e6)"]);
    // |∂L/∂ln T| is at most 2/T = 4, as cosines are at most 1. Momentum multiplies it by at most ten, for
    // eight steps; and ln T is stored in `f32`.
    let moved = 0.5 * 8.0 * 10.0 * 4.0 * 1e-9;
    assert_within!(still, 0.5, moved + tolerance::f32(1 + 8, 0.5 * 0.5f64.ln().abs()));
    // A trained pair is easy to identify, so the temperature falls to its bound.
    let low = of("init: 0.21, min: 0.2", &["optimizer=Sgd(lr: 1.0)", "train.epochs=10"]);
    // The bound is stored as a logarithm in `f32`.
    assert!(low >= 0.2 - tolerance::f32(1, 0.2 * 0.2f64.ln().abs()), "{low}");
}

#[test]
fn a_running_center_is_remembered_and_saved() {
    let set = ["momentum_encoder=Ema(momentum: 0.9)"];
    let (_, weights) = train("(term: SelfDistillation(prototypes: 6))", &set);
    let center = &weights["term.SelfDistillation.centre"];
    assert!(center.len() == 6 && center.iter().all(|c| *c != 0.0 && c.abs() < 1.0), "{center:?}");
    assert!(!weights.contains_key("optimizer.momentum.SelfDistillation.centre"), "nothing optimizes it");
}

#[test]
fn gradients_of_terms_are_logged_with_the_steps() {
    let objective = "(term: Alignment(level: Instances)), (term: Uniformity(level: Instances)), (term: VicReg(), weight: 0.01, from: Epochs(1))";
    let (log, _) = train(objective, &["train.term_gradients=true"]);
    let at = |log: &Log| log.gradients.iter().map(|g| g.step).collect::<Vec<_>>();
    assert_eq!(at(&log), log.steps.iter().map(|s| s.step).collect::<Vec<_>>());
    assert_eq!(log.gradients[0].terms.len(), 2);
    let last = log.gradients.last().unwrap();
    assert_eq!(last.terms.iter().map(|t| t.cosines.len()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(last.terms.iter().all(|t| t.norm > 0.0 && t.cosines.iter().all(|c| c.abs() <= 1.0)));
    // No longer than all of them together, and not shorter than the longest without the others.
    let norms: Vec<f64> = last.terms.iter().map(|t| t.norm).collect();
    let (sum, longest) = (norms.iter().sum::<f64>(), norms.iter().fold(0.0f64, |a, b| a.max(*b)));
    assert!((2.0 * longest - sum..=sum).contains(&last.total), "{norms:?} {}", last.total);
}

/// Terms with everything that a step may change besides the network: a learned temperature, a remembered center, a queue
/// and prototypes.
#[test]
fn logging_gradients_of_terms_does_not_change_the_run() {
    let objective = "(term: InfoNce(temperature: Learnable(init: 0.5), negatives: Queue)), \
                     (term: SelfDistillation(prototypes: 6)), (term: ProtoNce()), \
                     (term: Uniformity(level: Prototypes), weight: Linear(from: 0.0, to: 0.5, over: Epochs(1)))";
    let set = [
        "momentum_encoder=Ema(momentum: 0.9)",
        "queue=48",
        "clusterer=KMeans(k: [6], start: Epochs(1))",
        "train.log_every=1",
    ];
    for more in [&[][..], &["train.accumulate=2", "train.micro_batch=5"]] {
        let quiet = [&set[..], more].concat();
        let (log, weights) = train(objective, &[&quiet[..], &["train.term_gradients=true"]].concat());
        // Four batches are an epoch. Terms on prototypes start with the second one.
        let steps = if more.is_empty() { 4 } else { 2 };
        for gradients in &log.gradients {
            let (warm_up, all) = (["InfoNce", "SelfDistillation"], ["ProtoNce", "Uniformity"]);
            let want = if gradients.step <= steps { warm_up.to_vec() } else { [warm_up, all].concat() };
            assert_eq!(gradients.terms.iter().map(|t| &*t.name).collect::<Vec<_>>(), want);
            assert!(gradients.total > 0.0 && gradients.terms[0].norm > 0.0);
        }
        assert_eq!(log.gradients.len() as u64, 2 * steps);
        let (without, same) = train(objective, &quiet);
        assert!(without.gradients.is_empty() && without.steps.len() == log.steps.len());
        let bits = |weights: &BTreeMap<String, Vec<f32>>| -> Vec<(String, Vec<u32>)> {
            weights.iter().map(|(name, v)| (name.clone(), v.iter().map(|v| v.to_bits()).collect())).collect()
        };
        assert!(weights.contains_key("term.InfoNce.ln_temperature") && weights.contains_key("queue.keys"));
        assert!(bits(&same) == bits(&weights), "{more:?}");
    }
}

#[test]
fn a_term_behind_the_predictor_has_no_cosine_with_one_at_the_embeddings() {
    let objective = "(term: CosinePrediction()), (term: Uniformity(level: Instances)), (term: Alignment(level: Instances))";
    let set = ["predictor=Mlp(dims: [16, 8])", "train.term_gradients=true"];
    let (log, _) = train(objective, &set);
    let [behind, first, second] = &log.gradients[0].terms[..] else { panic!("{:?}", log.gradients) };
    assert!(behind.norm > 0.0 && first.cosines[0].is_nan() && second.cosines[0].is_nan());
    assert!(second.cosines[1].is_finite() && log.gradients[0].total.is_nan());
}

/// Small crops beside large ones, as in SwAV: trained on as a whole and in micro-batches.
#[test]
fn views_of_two_sizes_train_together() {
    let text = PLAIN
        .replace("(count: 2, ops: [RandomResizedCrop(size: 12)])", "CROPS")
        .replace(
            "CROPS",
            "(count: 2, ops: [MultiCrop(size: 12, crop: Global)]), (count: 4, ops: [MultiCrop(size: 8, crop: Local)])",
        )
        .replace("MlpEncoder(dims: [24, 16])", "ConvNet(channels: [8, 16])")
        .replace("OBJECTIVE", "(term: SwappedAssignment(prototypes: 8, local_views: 4))");
    let small = plan(&text, &[]);
    assert_eq!(
        (small.shape.height, small.views.shape(5).height, small.evaluation.shape(0).height),
        (12, 8, 12)
    );
    let long = ["train.epochs=30", "optimizer=Sgd(lr: 0.5)", "train.log_every=1"];
    let steps = steps_of(&plan(&text, &long));
    let mean = |s: &[Step]| s.iter().map(|s| s.loss).sum::<f64>() / s.len() as f64;
    let (start, end) = (mean(&steps[..8]), mean(&steps[steps.len() - 8..]));
    // It falls by two, from 4.5.
    assert!(start.is_finite() && end < start - 0.1, "from {start} to {end}");
    // The small crops are used: without them, the loss differs by 0.05 from the first step on.
    let without = steps_of(&plan(&text.replace("local_views: 4", "local_views: 0"), &long));
    assert!((without[0].loss - steps[0].loss).abs() > 1e-4);
    // Encoders whose parameters depend on the image size report it before training.
    let fixed = text.replace("ConvNet(channels: [8, 16])", "MlpEncoder(dims: [24])");
    let (recipe, source) = Recipe::parse("test", &fixed, &[]).unwrap();
    let Err(e) = Plan::new(&Cpu::default(), recipe, source, &Place::at(".")) else {
        panic!("an MLP accepts one size")
    };
    let pauc_train::plan::PlanError::Recipe(found) = e else { panic!("{e}") };
    let text = found.render(false);
    assert!(text.contains("E0208") && text.contains("8×8×3"), "{text}");
}

/// Trains and returns what was logged.
fn steps_of(plan: &Plan) -> Vec<Step> {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::of(folder.path(), "small", "0", 0);
    dir.create().unwrap();
    let mut trainer = Trainer::new(&Cpu::default(), plan).unwrap();
    let mut log = Log::default();
    trainer.train(&dir, None, &mut log).unwrap();
    log.steps
}

/// Small crops beside large ones through one vision transformer, with what DINO and DINOv2 add to it.
#[test]
fn a_vision_transformer_takes_crops_of_two_sizes() {
    const CROPS: &str = "views=[(count: 2, ops: [MultiCrop(size: 12, crop: Global)]), \
                         (count: 4, ops: [MultiCrop(size: 8, crop: Local)])]";
    const OBJECTIVE: &str = "(term: SwappedAssignment(prototypes: 8, local_views: 4))";
    let encoder = "encoder=VisionTransformer(size: Custom(width: 16, heads: 2), depth: 2, patch: 4, drop_path: 0.1, \
                   layer_scale: 0.1, registers: 2, prefix_positions: false)";
    let set = [CROPS, encoder, "train.epochs=20", "optimizer=AdamW(lr: 0.005)", "train.log_every=1"];
    let text = PLAIN.replace("OBJECTIVE", OBJECTIVE);
    let steps = steps_of(&plan(&text, &set));
    let mean = |s: &[Step]| s.iter().map(|s| s.loss).sum::<f64>() / s.len() as f64;
    let (start, end) = (mean(&steps[..8]), mean(&steps[steps.len() - 8..]));
    assert!(start.is_finite() && end < start - 0.1, "from {start} to {end}");
    let text = text.replace("local_views: 4", "local_views: 0");
    assert!(
        (steps_of(&plan(&text, &set))[0].loss - steps[0].loss).abs() > 1e-4,
        "the small crops are unused"
    );
    // Both sizes have to be tiled.
    let crops = CROPS.replace("size: 8", "size: 10");
    let (recipe, source) = Recipe::parse("test", &text, &[crops, encoder.to_string()]).unwrap();
    let Err(pauc_train::plan::PlanError::Recipe(found)) =
        Plan::new(&Cpu::default(), recipe, source, &Place::at("."))
    else {
        panic!("10 is not a multiple of 4")
    };
    let text = found.render(false);
    assert!(text.contains("E0208") && text.contains("do not tile images of 10×10×3"), "{text}");
}

/// A network resized for other images computes the same as one built for that size.
#[test]
fn resized_encoders_share_their_parameters() {
    use pauc_traits::component_ron::options;
    use pauc_traits::{ImageShape, Pass, ops, registry::kind};
    let device = Cpu::default();
    for text in [
        "ConvNet(channels: [8, 16])",
        "ResNet18(stem: Small, width: 8)",
        "ResNet18(stem: ImageNet, width: 8)",
    ] {
        let config: pauc_traits::Configured<kind::Encoder> = options().from_str(text).unwrap();
        let config = <Cpu as pauc_traits::Compute>::encoder(&*config.value);
        let shape = |side| ImageShape { height: side, width: side, channels: 3 };
        let images = || {
            let pixels: Vec<f32> = (0..8 * 24 * 24 * 3).map(|i| (i as f32 * 0.37).sin()).collect();
            ops::constant(&device, pixels, (8, 24, 24, 3))
        };
        let large = config.build(&device, shape(40), BuildOptions::seed(3)).unwrap();
        let mut resized = large.resized(shape(24)).unwrap();
        let mut built = config.build(&device, shape(24), BuildOptions::seed(3)).unwrap();
        // Layers may use other algorithms than in a network built for the size, with other rounding: see
        // `Noise`. The longest sums are those of the normalization, over all pixels.
        let mut shaken = config.build(&device, shape(24), BuildOptions::seed(3)).unwrap();
        let by = rounding(8 * 24 * 24);
        shake(&shaken.parameters(), by, 1);
        for pass in [Pass::Train, Pass::Eval] {
            let [a, b, c] =
                [&mut resized, &mut built, &mut shaken].map(|e| e.forward(images(), pass).unwrap().as_vec());
            let (off, within) = (distance(&a, &b), 2.0 * (distance(&c, &b) + by));
            assert!(off <= within, "{text} {pass:?}: off by {off:e}, allowed {within:e}");
        }
        // The resized network and the original share their statistics.
        let of = |all: Vec<Param<Cpu>>| -> Vec<Vec<f32>> {
            use pauc_traits::Compute;
            all.iter().map(|p| device.download(&p.value()).unwrap()).collect()
        };
        let (a, b, c) = (of(large.statistics()), of(built.statistics()), of(shaken.statistics()));
        for ((a, b), c) in a.iter().zip(&b).zip(&c) {
            let (off, within) = (distance(a, b), 2.0 * (distance(c, b) + by));
            assert!(off <= within, "{text}: statistics are off by {off:e}, allowed {within:e}");
        }
        assert!(large.resized(ImageShape { channels: 1, ..shape(24) }).is_err());
        assert!(config.build(&device, shape(40), BuildOptions::seed(3)).unwrap().resized(shape(0)).is_err());
    }
}

/// A learnable temperature, a running center, learnable prototypes, clusters and their concentration's schedule.
const STATEFUL: &str = "(term: InfoNce(temperature: Learnable(init: 0.3))), (term: SelfDistillation(prototypes: 6)), \
                        (term: SwappedAssignment(prototypes: 5, freeze: Steps(2)), weight: 0.5), \
                        (term: ProtoNce(), weight: 0.5, from: Epochs(1))";
const STATEFUL_SET: &[&str] = &[
    "momentum_encoder=Ema(momentum: 0.9)",
    "queue=48",
    "clusterer=KMeans(k: [4, 6], start: Epochs(1))",
    "concentration.temperature=Linear(from: 0.3, to: 0.1, over: Epochs(3))",
    "optimizer=Sgd(lr: 0.1, momentum: 0.9)",
    "train.epochs=3",
];

#[test]
fn what_terms_learn_and_remember_survives_an_interruption() {
    let (_, whole) = train(STATEFUL, STATEFUL_SET);
    for name in [
        "term.InfoNce.ln_temperature",
        "term.SelfDistillation.centre",
        "term.SelfDistillation.prototypes",
        "term.SwappedAssignment.prototypes",
        "clusters.1.concentration",
    ] {
        assert!(whole.contains_key(name), "{name} is not among {:?}", whole.keys());
    }
    // Before the first clustering, in the middle of an epoch after it, and at the end of one.
    assert_survives_interruptions(STATEFUL, STATEFUL_SET, &[2, 6, 8], &whole);
}

/// Asserts that a run that is interrupted after some number of steps has the weights of the `whole` one, bit by bit.
fn assert_survives_interruptions(
    objective: &str,
    set: &[&str],
    after: &[u64],
    whole: &BTreeMap<String, Vec<f32>>,
) {
    let plan = plan(&PLAIN.replace("OBJECTIVE", objective), set);
    let device = Cpu::default();
    for steps in after.iter().copied() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::of(folder.path(), "small", "0", 0);
        dir.create().unwrap();
        let mut first = Trainer::new(&device, &plan).unwrap();
        let ending = first.train(&dir, Some(steps), &mut Log::default()).unwrap();
        assert!(matches!(ending, Ending::Paused), "{steps}");
        drop(first);
        assert_ne!(saved(&dir), *whole);
        let mut second = Trainer::new(&device, &plan).unwrap();
        second.load(&dir.last_checkpoint().unwrap()).unwrap();
        assert_eq!(second.step(), steps);
        second.train(&dir, None, &mut Log::default()).unwrap();
        let found = saved(&dir);
        assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        for (name, values) in whole {
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found[name]), bits(values), "{name}, interrupted after {steps} steps");
        }
    }
}

/// Half of the images skip each branch of the second block.
const DROPPING: &str = "encoder=VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, patch: 4, mlp_ratio: 2, drop_path: 0.5)";

#[test]
fn dropped_paths_are_the_same_after_an_interruption_and_in_parts() {
    let objective = "(term: InfoNce(negatives: Keys, two_sided: true))";
    let set = [DROPPING, "momentum_encoder=Ema(momentum: 0.9)"];
    let (log, whole) = train(objective, &set);
    assert_survives_interruptions(objective, &set, &[1, 4, 7], &whole);
    let none = DROPPING.replace("0.5", "0.0");
    let (other, _) = train(objective, &[&none, set[1]]);
    assert_ne!(log.steps[0].loss, other.steps[0].loss, "nothing was dropped");
    let in_parts = train(objective, &[set[0], set[1], "train.micro_batch=7"]);
    let whole = (log, whole);
    Noise::of(objective, &set, &whole).allows("parts of seven", &in_parts, &whole);
}

#[test]
fn a_batch_in_parts_is_the_whole_batch_for_terms_with_state_too() {
    let whole = train(STATEFUL, STATEFUL_SET);
    let noise = Noise::of(STATEFUL, STATEFUL_SET, &whole);
    for part in ["train.micro_batch=5", "train.shards=4"] {
        let set = [STATEFUL_SET, &[part]].concat();
        noise.allows(part, &train(STATEFUL, &set), &whole);
    }
}

#[test]
fn the_temperature_of_prototypes_follows_its_schedule_step_by_step() {
    // One clustering at the start of epoch 1; from step 6 on the temperature is ten times as large.
    let objective = "(term: InfoNce(), weight: 0), (term: ProtoNce())";
    let run = |temperature: &str| {
        let temperature = format!("concentration=Concentration(kind: Constant, temperature: {temperature})");
        let set = [
            "clusterer=KMeans(k: [6], start: Epochs(1), every: Epochs(9))",
            // So small that no weight changes, and biases of zero do not affect a sum.
            "optimizer=Sgd(lr: 1e-30)",
            "train.epochs=2",
            "train.log_every=1",
            &temperature,
        ];
        let (log, weights) = train(objective, &set);
        let value = |step: &Step| step.terms.iter().find(|t| t.name == "ProtoNce").and_then(|t| t.value);
        (log.steps.iter().filter_map(value).collect::<Vec<_>>(), weights["clusters.0.concentration"].clone())
    };
    let ((low, _), (high, _)) = (run("0.1"), run("1"));
    let (stepped, saved) = run("Step(from: 0.1, to: 1, at: Steps(6))");
    assert_eq!((low.len(), high.len(), stepped.len()), (4, 4, 4));
    for (i, v) in stepped.iter().enumerate() {
        let want = if i < 2 { low[i] } else { high[i] };
        assert_eq!(*v, want, "step {}", i + 4);
    }
    assert!((low[2] - high[2]).abs() > 0.1, "the two temperatures differ, and the losses by 0.2");
    assert!(saved.iter().all(|phi| *phi == 0.1), "a checkpoint stores the values of the fit: {saved:?}");
}

#[test]
fn accumulated_batches_are_averaged_and_do_not_make_a_larger_batch() {
    // A loss that is a mean over images, without batch statistics: its gradient on a batch of 24 is the mean
    // of those on two batches of 12, for which the loader makes the same 24 images.
    let mean = "(term: Alignment(level: Instances))";
    let split = ["train.batch=12", "train.accumulate=2"];
    let (whole, halves) = (train(mean, &[]), train(mean, &split));
    Noise::of(mean, &[], &whole).allows("two halves", &halves, &whole);
    let rates = |run: &Trained| run.0.steps.iter().map(|s| s.lr).collect::<Vec<_>>();
    assert_eq!(rates(&halves), rates(&whole), "one rate per step");
    // Negatives differ: with 23 of them the loss is not the one with 11, whose chance level is lower.
    let (whole, _) = train("(term: InfoNce())", &[]);
    let (halves, _) = train("(term: InfoNce())", &split);
    let (whole, halves) = (&whole.steps[0].terms[0], &halves.steps[0].terms[0]);
    let chance = |t: &pauc_report::events::Term| t.chance.unwrap();
    assert!(chance(halves) < chance(whole) - 0.5 && halves.value.unwrap() < whole.value.unwrap() - 0.3);
    // The mean gradient of a term's own parameters also includes both batches.
    let learnt = "(term: InfoNce(temperature: Learnable(init: 0.2)))";
    let (_, found) = train(learnt, &split);
    assert!(found.keys().any(|n| n.contains("temperature")), "{:?}", found.keys());
    // The learning rate for 24 images is that of two batches of 12.
    let scaled = "optimizer=Sgd(lr: Scaled(base: 0.1, per: 24))";
    let (log, _) = train(mean, &[split[0], split[1], scaled]);
    assert_eq!(log.steps.last().unwrap().lr, train(mean, &[scaled]).0.steps.last().unwrap().lr);
}

#[test]
fn batches_of_a_step_feed_the_queue_one_after_the_other() {
    let set = ["momentum_encoder=Ema(momentum: 0.9)", "queue=24", "train.batch=12", "train.accumulate=2"];
    let plan = plan(&PLAIN.replace("OBJECTIVE", "(term: InfoNce(negatives: Queue))"), &set);
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::of(folder.path(), "small", "0", 0);
    dir.create().unwrap();
    let mut trainer = Trainer::new(&Cpu::default(), &plan).unwrap();
    assert_eq!(plan.horizon.steps_per_epoch, 4);
    trainer.train(&dir, Some(1), &mut Log::default()).unwrap();
    let file = TensorFile::load(dir.last_checkpoint().unwrap()).unwrap();
    let mut ids = file.i64("queue.ids").unwrap().to_vec();
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() == 24 && ids[0] >= 0, "the queue holds the 24 images of the step: {ids:?}");
}

#[test]
fn parts_of_a_network_move_at_their_own_rates() {
    // One step of plain gradient descent from the same weights: the change of a parameter is its factor times
    // the change without.
    let plain = [
        "optimizer=Sgd(lr: 0.01, momentum: 0.0, weight_decay: 1e-3)",
        "schedule=Constant",
        "train.epochs=1",
        "train.batch=96",
    ];
    let objective = "(term: InfoNce(temperature: Learnable(init: 0.2)))";
    let start: BTreeMap<String, Vec<f32>> = {
        let plan = plan(&PLAIN.replace("OBJECTIVE", objective), &plain);
        let network = plan.network(&Cpu::default()).unwrap();
        network.parameters().into_iter().map(|p| (p.name.clone(), p.value().clone())).collect()
    };
    let (_, usual) = train(objective, &plain);
    let mut set = plain.to_vec();
    set.push("lr_scale=[(part: \"encoder\", factor: 0.5), (part: \"encoder.2\", factor: 3.0), (part: \"InfoNce\", factor: 2.0)]");
    let (_, scaled) = train(objective, &set);
    let names: Vec<_> = start.keys().filter(|n| n.ends_with("weight")).collect();
    assert!(
        names.iter().any(|n| n.starts_with("encoder.2")) && names.iter().any(|n| n.starts_with("projector")),
        "{names:?}"
    );
    for name in names {
        let factor = match name {
            n if n.starts_with("encoder.2") => 3.0,
            n if n.starts_with("encoder") => 0.5,
            _ => 1.0,
        };
        for i in 0..start[name].len() {
            let [before, usual, scaled] = [&start, &usual, &scaled].map(|all| f64::from(all[name][i]));
            assert_moved_more([before, usual, scaled], factor, name);
        }
    }
    let name = usual.keys().find(|n| n.starts_with("term.InfoNce")).unwrap();
    let [usual, scaled] = [&usual, &scaled].map(|all| f64::from(all[name][0]));
    assert_moved_more([f64::from(0.2f64.ln() as f32), usual, scaled], 2.0, name);
}

#[test]
fn layers_of_a_transformer_move_at_decaying_rates() {
    let encoder = "encoder=VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, patch: 4)";
    let plain = [
        encoder,
        "optimizer=Sgd(lr: 0.01, momentum: 0.0, weight_decay: 1e-3)",
        "schedule=Constant",
        "train.epochs=1",
        "train.batch=96",
        "lr_scale=[(part: \"encoder.blocks.1\", factor: 2.0)]",
    ];
    let objective = "(term: InfoNce())";
    let text = PLAIN.replace("OBJECTIVE", objective);
    let network = plan(&text, &plain).network(&Cpu::default()).unwrap();
    let decayed: Vec<&str> = plain.iter().copied().chain(["layer_decay=0.5"]).collect();
    let rates = plan(&text, &decayed).network(&Cpu::default()).unwrap().parameters();
    let (_, usual) = train(objective, &plain);
    let (_, scaled) = train(objective, &decayed);
    for (p, decayed) in network.parameters().iter().zip(rates) {
        let factor = match p.name.split('.').collect::<Vec<_>>()[..] {
            ["encoder", "blocks", "0", ..] => 0.25,
            ["encoder", "blocks", "1", ..] => 0.5,
            ["encoder", "norm", ..] | ["projector", ..] => 1.0,
            _ => 0.125,
        };
        let own = if p.name.starts_with("encoder.blocks.1.") { 2.0 } else { 1.0 };
        assert_eq!((p.lr_scale(), decayed.lr_scale()), (own, own * factor), "{}", p.name);
        for (i, before) in p.value().iter().enumerate() {
            let [usual, scaled] = [&usual, &scaled].map(|all| f64::from(all[&p.name][i]));
            assert_moved_more([f64::from(*before), usual, scaled], factor, &p.name);
        }
    }
}

/// Asserts that one step of plain gradient descent with `factor` times the rate moved a number `factor` times
/// as far. The gradient has the same bits in both. The rate, its product with the gradient, and the new value
/// are each rounded once.
fn assert_moved_more([before, usual, scaled]: [f64; 3], factor: f64, name: &str) {
    let want = factor * (usual - before);
    let within = tolerance::f32(1, scaled.abs() + factor * usual.abs()) + tolerance::f32(4, want.abs());
    assert_within!(scaled - before, want, within, "{name}, times {factor}");
}

thread_local! {
    /// The number of encoders that [`Counted`] has built.
    static BUILT: Cell<usize> = const { Cell::new(0) };
}

component! {
    /// An MLP that counts how often it is built.
    ///
    /// # Shapes
    /// (B, H, W, C) → (B, 16)
    pub struct Counted: Encoder {}
}

impl<D: NetworkDevice> EncoderConfig<D> for Counted {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        BUILT.set(BUILT.get() + 1);
        MlpEncoder { dims: vec![Count::lit(16)] }.build(device, input, options)
    }
}

/// The network is built once to check the recipe and once to train, and not a third time for the names of its
/// parts.
#[test]
fn a_recipe_is_checked_on_one_network_and_trained_on_another() {
    let parts = r#"frozen: ["0"], lr_scale: [(part: "projector", factor: 2.0)], objective"#;
    let text = PLAIN.replace("MlpEncoder(dims: [24, 16])", "Counted()").replace("objective", parts);
    let plan = plan(&text.replace("OBJECTIVE", "(term: InfoNce())"), &[]);
    assert_eq!(BUILT.get(), 1);
    let network = plan.network(&Cpu::default()).unwrap();
    assert_eq!(BUILT.get(), 2);
    assert!(network.encoder_parameters().iter().all(Param::is_frozen));
}
