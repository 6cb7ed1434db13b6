//! Small runs in memory: batches in parts, predictors, and what terms learn and remember.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::plan;

use dfdx::prelude::Cpu;
use pauc_models::weights::TensorFile;
use pauc_report::events::{Event, Gradients, Step};
use pauc_train::checkpoint;
use pauc_train::engine::{Ending, Engine, Observer};
use pauc_train::plan::Plan;
use pauc_train::recipe::Recipe;
use pauc_train::run_dir::RunDir;
use pauc_traits::dataset::Place;
use std::collections::BTreeMap;

/// A run without batch normalisation, so that a part of a batch does not know the others.
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
    fn event(&mut self, event: &Event) -> pauc_traits::Result<()> {
        match event {
            Event::Step(e) => self.steps.push(e.clone()),
            Event::Gradients(e) => self.gradients.push(e.clone()),
            _ => {}
        }
        Ok(())
    }
}

/// The log of a run, and its checkpoint.
fn train(objective: &str, set: &[&str]) -> (Log, BTreeMap<String, Vec<f32>>) {
    let plan = plan(&PLAIN.replace("OBJECTIVE", objective), set);
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::of(folder.path(), "small", "0", 0);
    dir.create().unwrap();
    let mut engine = Engine::new(&Cpu::default(), &plan).unwrap();
    let mut log = Log::default();
    engine.train(&dir, None, &mut log).unwrap();
    (log, saved(&dir))
}

/// The numbers of the last checkpoint.
fn saved(dir: &RunDir) -> BTreeMap<String, Vec<f32>> {
    let file = TensorFile::load(dir.last_checkpoint().unwrap()).unwrap();
    file.names().filter_map(|n| Some((n.to_string(), file.f32(n).ok()?.to_vec()))).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let off = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    off / sum(&mut b.iter().map(|b| f64::from(*b))).max(1e-6)
}

#[test]
fn a_batch_in_parts_is_the_whole_batch() {
    let forms: [(&str, &[&str]); 3] = [
        ("(term: InfoNce())", &[]),
        (
            "(term: InfoNce(negatives: QueueAndBatch, two_sided: true)), (term: VicReg(), weight: 0.1)",
            &["momentum_encoder=Ema(momentum: 0.9)", "queue=48"],
        ),
        ("(term: CosinePrediction(two_sided: true)), (term: Dcl())", &["predictor=Mlp(dims: [6, 8])"]),
    ];
    for (objective, set) in forms {
        let (whole, weights) = train(objective, set);
        for size in [8, 7, 24] {
            let mut set = set.to_vec();
            let part = format!("train.micro_batch={size}");
            set.push(&part);
            let (parts, found) = train(objective, &set);
            for (a, b) in parts.steps.iter().zip(&whole.steps) {
                assert!(
                    (a.loss - b.loss).abs() < 1e-5 * b.loss.abs().max(1.0),
                    "{objective}: {} for {}",
                    a.loss,
                    b.loss
                );
            }
            assert_eq!(found.len(), weights.len());
            for (name, values) in &weights {
                let off = distance(&found[name], values);
                assert!(off < 1e-4, "{objective} in parts of {size}: {name} is off by {off:e}");
            }
        }
    }
}

#[test]
fn statistics_are_updated_once_for_each_part() {
    // With a momentum of 0.1 for each of k parts, running statistics of equal parts are 1 − 0.9^k of the batch's own.
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
    // The two halves' own means average to the batch's: 0.1·(0.9·a + b) against 0.1·(a + b)/2.
    let ratio = distance(&halves, &whole);
    assert!((0.7..1.1).contains(&ratio), "two updates weigh 1.9 times one: {ratio}");
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
            assert!(distance(&weights[&p.name], &p.value()) > 1e-4, "{} did not move", p.name);
        }
        assert!(!weights.contains_key("momentum.predictor.0.weight"));
        let (first, last) = (&log.steps[0], log.steps.last().unwrap());
        assert!(last.loss < first.loss, "{} after {}", last.loss, first.loss);
    }
}

#[test]
fn a_temperature_is_learnt_and_bounded() {
    let of = |fields: &str, set: &[&str]| {
        let (_, weights) = train(&format!("(term: InfoNce(temperature: Learnable({fields})))"), set);
        f64::from(weights["term.InfoNce.ln_temperature"][0]).exp()
    };
    assert!((of("init: 0.5", &[]) - 0.5).abs() > 1e-4, "it moved");
    // No decay: with a vanishing learning rate, even the largest decay leaves it.
    let still = of("init: 0.5", &["optimizer=Sgd(lr: 1e-9, weight_decay: 1e6)"]);
    assert!((still - 0.5).abs() < 1e-6, "{still}");
    // A trained pair stands out, so the temperature falls to its bound.
    let low = of("init: 0.21, min: 0.2", &["optimizer=Sgd(lr: 1.0)", "train.epochs=10"]);
    assert!(low >= 0.2 - 1e-6, "{low}");
}

#[test]
fn a_running_centre_is_remembered_and_saved() {
    let set = ["momentum_encoder=Ema(momentum: 0.9)"];
    let (_, weights) = train("(term: SelfDistillation(prototypes: 6))", &set);
    let centre = &weights["term.SelfDistillation.centre"];
    assert!(centre.len() == 6 && centre.iter().all(|c| *c != 0.0 && c.abs() < 1.0), "{centre:?}");
    assert!(!weights.contains_key("optimizer.momentum.SelfDistillation.centre"), "nothing optimises it");
}

#[test]
fn gradients_of_terms_are_logged_where_steps_are() {
    let objective = "(term: Alignment(level: Instances)), (term: Uniformity(level: Instances)), (term: VicReg(), weight: 0.01, from: Epochs(1))";
    let (log, weights) = train(objective, &["train.term_gradients=true"]);
    let at = |log: &Log| log.gradients.iter().map(|g| g.step).collect::<Vec<_>>();
    assert_eq!(at(&log), log.steps.iter().map(|s| s.step).collect::<Vec<_>>());
    assert_eq!(log.gradients[0].terms.len(), 2);
    let last = log.gradients.last().unwrap();
    assert_eq!(last.terms.iter().map(|t| t.cosines.len()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(last.terms.iter().all(|t| t.norm > 0.0 && t.cosines.iter().all(|c| c.abs() <= 1.0)));
    // Watching changes nothing.
    let (quiet, same) = train(objective, &[]);
    assert!(quiet.gradients.is_empty() && same == weights);
}

/// Small crops beside large ones, as SwAV makes them: they are learnt from, whole and in parts.
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
    let run = |plan: &Plan| {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::of(folder.path(), "small", "0", 0);
        dir.create().unwrap();
        let mut engine = Engine::new(&Cpu::default(), plan).unwrap();
        let mut log = Log::default();
        engine.train(&dir, None, &mut log).unwrap();
        log.steps
    };
    let long = ["train.epochs=30", "optimizer=Sgd(lr: 0.5)", "train.log_every=1"];
    let steps = run(&plan(&text, &long));
    let mean = |s: &[Step]| s.iter().map(|s| s.loss).sum::<f64>() / s.len() as f64;
    let (start, end) = (mean(&steps[..8]), mean(&steps[steps.len() - 8..]));
    assert!(start.is_finite() && end < start - 0.1, "from {start} to {end}");
    // The small crops are looked at: without them, the loss is another one from the first step on.
    let without = run(&plan(&text.replace("local_views: 4", "local_views: 0"), &long));
    assert!((without[0].loss - steps[0].loss).abs() > 1e-4);
    // Encoders whose parameters depend on the size say so before anything is trained.
    let fixed = text.replace("ConvNet(channels: [8, 16])", "MlpEncoder(dims: [24])");
    let (recipe, source) = Recipe::parse("test", &fixed, &[]).unwrap();
    let Err(e) = Plan::new(&Cpu::default(), recipe, source, &Place { base: ".".into() }) else {
        panic!("an MLP takes one size")
    };
    let pauc_train::plan::PlanError::Recipe(found) = e else { panic!("{e}") };
    let text = found.render(false);
    assert!(text.contains("E0208") && text.contains("8×8×3"), "{text}");
}

/// A network for images of another size is the same network: it makes of them what one built for them makes.
#[test]
fn resized_encoders_share_their_parameters() {
    use pauc_traits::open_set::options;
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
            let pixels: Vec<f32> = (0..2 * 24 * 24 * 3).map(|i| (i as f32 * 0.37).sin()).collect();
            ops::constant(&device, pixels, (2, 24, 24, 3))
        };
        let large = config.build(&device, shape(40), 3).unwrap();
        let mut resized = large.resized(shape(24)).unwrap();
        let mut built = config.build(&device, shape(24), 3).unwrap();
        for pass in [Pass::Train, Pass::Eval] {
            let (a, b) = (resized.forward(images(), pass).unwrap(), built.forward(images(), pass).unwrap());
            // Layers may be computed by other algorithms than in one that was built for the size.
            assert!(distance(&a.as_vec(), &b.as_vec()) < 1e-3, "{text} {pass:?}");
        }
        // Statistics that the resized one gathered are the large one's.
        let of = |all: Vec<pauc_traits::Param<Cpu>>| -> Vec<Vec<f32>> {
            use pauc_traits::Compute;
            all.iter().map(|p| device.download(&p.value()).unwrap()).collect()
        };
        for (a, b) in of(large.statistics()).iter().zip(&of(built.statistics())) {
            assert!(distance(a, b) < 1e-3, "{text}");
        }
        assert!(large.resized(ImageShape { channels: 1, ..shape(24) }).is_err());
        assert!(config.build(&device, shape(40), 3).unwrap().resized(shape(0)).is_err());
    }
}

/// A learnable temperature, a running centre, learnable prototypes, clusters and their concentration's schedule.
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
    let plan = plan(&PLAIN.replace("OBJECTIVE", STATEFUL), STATEFUL_SET);
    let device = Cpu::default();
    // Before the first clustering, in the midst of an epoch after it, and at the end of one.
    for steps in [2, 6, 8] {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::of(folder.path(), "small", "0", 0);
        dir.create().unwrap();
        let mut first = Engine::new(&device, &plan).unwrap();
        let ending = first.train(&dir, Some(steps), &mut Log::default()).unwrap();
        assert!(matches!(ending, Ending::Paused), "{steps}");
        drop(first);
        assert_ne!(saved(&dir), whole);
        let mut second = Engine::new(&device, &plan).unwrap();
        checkpoint::load(&mut second, &dir.last_checkpoint().unwrap()).unwrap();
        assert_eq!(second.step(), steps);
        second.train(&dir, None, &mut Log::default()).unwrap();
        let found = saved(&dir);
        assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        for (name, values) in &whole {
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found[name]), bits(values), "{name}, interrupted after {steps} steps");
        }
    }
}

#[test]
fn a_batch_in_parts_is_the_whole_batch_for_terms_with_state_too() {
    let (whole, weights) = train(STATEFUL, STATEFUL_SET);
    let mut set = STATEFUL_SET.to_vec();
    set.push("train.micro_batch=5");
    let (parts, found) = train(STATEFUL, &set);
    assert_eq!(parts.steps.len(), whole.steps.len());
    for (a, b) in parts.steps.iter().zip(&whole.steps) {
        assert!((a.loss - b.loss).abs() < 1e-4 * b.loss.abs().max(1.0), "{} for {}", a.loss, b.loss);
    }
    for (name, values) in &weights {
        let off = distance(&found[name], values);
        assert!(off < 1e-3, "{name} is off by {off:e}");
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
            "optimizer=Sgd(lr: 1e-12)",
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
        assert!((v - want).abs() < 1e-5 * want.abs(), "step {}: {v} for {want}", i + 4);
    }
    assert!((low[2] - high[2]).abs() > 0.1, "the two temperatures differ");
    assert!(saved.iter().all(|phi| *phi == 0.1), "a checkpoint keeps what the fit found: {saved:?}");
}

#[test]
fn accumulated_batches_are_averaged_and_no_larger_batch() {
    // A loss that is a mean over images, without batch statistics: its gradient on a batch of 24 is the mean of those on
    // two batches of 12, of which the loader makes the same 24 images.
    let mean = "(term: Alignment(level: Instances))";
    let split = ["train.batch=12", "train.accumulate=2"];
    let (whole, weights) = train(mean, &[]);
    let (halves, found) = train(mean, &split);
    assert_eq!(whole.steps.len(), halves.steps.len());
    for (a, b) in halves.steps.iter().zip(&whole.steps) {
        assert!((a.loss - b.loss).abs() < 1e-5 * b.loss.abs(), "step {}: {} for {}", a.step, a.loss, b.loss);
        assert!((a.grad_norm - b.grad_norm).abs() < 1e-4 * b.grad_norm, "step {}", a.step);
        assert_eq!(a.lr, b.lr, "one rate a step");
    }
    for (name, values) in &weights {
        let off = distance(&found[name], values);
        assert!(off < 1e-4, "{name} is off by {off:e}");
    }
    // Negatives are another matter: 23 of them give another loss than 11, whose chance level is lower.
    let (whole, _) = train("(term: InfoNce())", &[]);
    let (halves, _) = train("(term: InfoNce())", &split);
    let (whole, halves) = (&whole.steps[0].terms[0], &halves.steps[0].terms[0]);
    let chance = |t: &pauc_report::events::Term| t.chance.unwrap();
    assert!(chance(halves) < chance(whole) - 0.5 && halves.value.unwrap() < whole.value.unwrap() - 0.3);
    // The mean of what a term learns itself counts both batches, too.
    let learnt = "(term: InfoNce(temperature: Learnable(init: 0.2)))";
    let (_, found) = train(learnt, &split);
    assert!(found.keys().any(|n| n.contains("temperature")), "{:?}", found.keys());
    // A rate for 24 images is that of two batches of 12.
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
    let mut engine = Engine::new(&Cpu::default(), &plan).unwrap();
    assert_eq!(plan.horizon.steps_per_epoch, 4);
    engine.train(&dir, Some(1), &mut Log::default()).unwrap();
    let file = TensorFile::load(dir.last_checkpoint().unwrap()).unwrap();
    let mut ids = file.i64("queue.ids").unwrap().to_vec();
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() == 24 && ids[0] >= 0, "the queue holds the 24 images of the step: {ids:?}");
}

#[test]
fn parts_of_a_network_move_at_their_own_rates() {
    // One step of plain descent from the same weights: the change of a parameter is its factor times what it is without.
    let plain = [
        "optimizer=Sgd(lr: 0.01, momentum: 0.0, weight_decay: 1e-3)",
        "schedule=Constant",
        "train.epochs=1",
        "train.batch=96",
    ];
    let objective = "(term: InfoNce(temperature: Learnable(init: 0.2)))";
    let start: BTreeMap<String, Vec<f32>> = {
        let plan = plan(&PLAIN.replace("OBJECTIVE", objective), &plain);
        let engine = plan.network(&Cpu::default()).unwrap();
        engine.parameters().into_iter().map(|p| (p.name.clone(), p.value().clone())).collect()
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
        let moved = |to: &BTreeMap<String, Vec<f32>>| -> Vec<f32> {
            to[name].iter().zip(&start[name]).map(|(a, b)| a - b).collect()
        };
        let want: Vec<f32> = moved(&usual).iter().map(|d| d * factor).collect();
        let off = distance(&moved(&scaled), &want);
        assert!(off < 1e-3, "{name}, times {factor}: off by {off:e}");
    }
    let own = |to: &BTreeMap<String, Vec<f32>>| {
        let name =
            to.keys().find(|n| n.starts_with("term.InfoNce")).unwrap_or_else(|| panic!("{:?}", to.keys()));
        f64::from(to[name][0])
    };
    let first = 0.2f64.ln();
    let ratio = (own(&scaled) - first) / (own(&usual) - first);
    assert!((ratio - 2.0).abs() < 0.02, "{ratio}");
}
