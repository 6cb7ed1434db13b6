//! Shards: parts of a batch with batch statistics and sums of gradients of their own.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::plan;
use dfdx::prelude::Cpu;
use pauc_data::{ImageBatch, Loader, LoaderOptions};
use pauc_models::{Network, NetworkDevice};
use pauc_report::events::Event;
use pauc_testing::inputs::Perturbation;
use pauc_testing::{assert_within, tolerance};
use pauc_train::observer::Observer;
use pauc_train::plan::Plan;
use pauc_train::recipe::Recipe;
use pauc_train::run_dir::RunDir;
use pauc_train::trainer::Trainer;
use pauc_traits::dataset::Place;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Pass, Result};
use rand::seq::SliceRandom;

/// A run with batch normalization in encoder and projector.
const NORMED: &str = r#"Recipe(
    name: "small",
    data: Shapes(count: 96, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: ConvNet(channels: [8, 16]),
    projector: Mlp(dims: [16, 8], batch_norm: true),
    objective: [(term: Alignment(level: Instances)), (term: Uniformity(level: Instances), weight: 0.5)],
    optimizer: Sgd(lr: 0.1),
    train: (epochs: 2, batch: 24, shards: 4, log_every: 1),
)"#;

#[derive(Default)]
struct Losses(Vec<f64>);

impl Observer for Losses {
    fn event(&mut self, event: &Event) -> Result<()> {
        if let Event::Step(step) = event {
            self.0.push(step.loss);
        }
        Ok(())
    }
}

/// Trains for some steps, and returns the losses and the bytes of the checkpoint.
fn train(plan: &Plan, steps: u64) -> (Vec<f64>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::of(folder.path(), "small", "0", 0);
    dir.create().unwrap();
    let mut losses = Losses::default();
    Trainer::new(&Cpu::default(), plan).unwrap().train(&dir, Some(steps), &mut losses).unwrap();
    (losses.0, std::fs::read(dir.last_checkpoint().unwrap()).unwrap())
}

#[test]
fn activations_that_are_kept_or_computed_twice_give_the_same_bits() {
    let momentum = "momentum_encoder=Ema(momentum: 0.9)";
    let forms: [&[&str]; 6] = [
        &[],
        &[momentum, "queue=48", "objective=[(term: InfoNce(negatives: QueueAndBatch, two_sided: true))]"],
        &["train.accumulate=2", "predictor=Mlp(dims: [6, 8])", "objective=[(term: CosinePrediction())]"],
        &["encoder=MlpEncoder(dims: [24, 16])", "train.clip_gradient=0.1"],
        &[
            "encoder=VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, patch: 4, drop_path: 0.5)",
            "views=[(count: 2, ops: [MultiCrop(size: 12, crop: Global)]), (count: 1, ops: [MultiCrop(size: 8, crop: Local)])]",
            "objective=[(term: SwappedAssignment(prototypes: 8, local_views: 1))]",
        ],
        &["encoder=ConvNeXt(size: Custom(depths: [1, 1], widths: [8, 16]), patch: 2, drop_path: 0.2)"],
    ];
    for set in forms {
        let mut plan = plan(NORMED, set);
        let mut network = plan.network(&Cpu::default()).unwrap();
        assert!(plan.keeps_shards && network.has_passes(4), "{set:?}");
        let (losses, kept) = train(&plan, 3);
        plan.keeps_shards = false;
        let (again, twice) = train(&plan, 3);
        assert_eq!(losses, again, "{set:?}");
        assert!(kept == twice, "checkpoints differ: {set:?}");
    }
}

#[test]
fn activations_are_kept_only_if_memory_allows() {
    let limited = |memory| {
        let (recipe, source) = Recipe::parse("test", NORMED, &[]).unwrap();
        let place = Place { memory: Some(memory), ..Place::at(".") };
        Plan::new(&Cpu::default(), recipe, source, &place).unwrap_or_else(|e| panic!("{e}"))
    };
    let plenty = limited(1 << 40);
    let needed = |plan: &Plan| pauc_train::memory::total(&plan.memory) as u64;
    assert!(plenty.keeps_shards);
    let little = limited(needed(&plenty));
    assert!(!little.keeps_shards);
    assert!(needed(&little) < needed(&plenty));
    // Micro-batches ask for little memory.
    assert!(!plan(NORMED, &["train.micro_batch=3"]).keeps_shards);
}

/// Returns the losses of some steps from perturbed weights.
fn losses_from(plan: &Plan, mut rounding: Perturbation) -> Vec<f64> {
    let mut trainer = Trainer::new(&Cpu::default(), plan).unwrap();
    for p in trainer.network_mut().parameters() {
        p.value_mut().iter_mut().for_each(|v| *v = rounding.apply(f64::from(*v)) as f32);
    }
    let mut losses = Losses::default();
    trainer.train(&RunDir::in_memory(), Some(4), &mut losses).unwrap();
    losses.0
}

#[test]
fn synchronized_statistics_train_like_the_whole_batch() {
    let momentum = "momentum_encoder=Ema(momentum: 0.9)";
    let forms: [&[&str]; 4] = [
        &["train.accumulate=2"],
        &[momentum, "queue=48", "objective=[(term: InfoNce(negatives: QueueAndBatch, two_sided: true))]"],
        &["predictor=Mlp(dims: [6, 8], batch_norm: true)", "objective=[(term: CosinePrediction())]"],
        &[
            "encoder=VisionTransformer(size: Custom(width: 8, heads: 2), depth: 2, patch: 4, drop_path: 0.5)",
            "views=[(count: 2, ops: [MultiCrop(size: 12, crop: Global)]), (count: 1, ops: [MultiCrop(size: 8, crop: Local)])]",
            "objective=[(term: SwappedAssignment(prototypes: 8, local_views: 1))]",
        ],
    ];
    for set in forms {
        let of = |more: &[&str]| plan(NORMED, &[set, more].concat());
        let (exact, whole) = (Perturbation::new(0.0, 0), of(&["train.shards=1"]));
        let expected = losses_from(&whole, exact.clone());
        // Weights perturbed by six deviations of a layer's rounding, whose inner products have up to 144 terms.
        let size = tolerance::SIGMAS * (144f64 / 6.0).sqrt() * tolerance::UNIT_F32;
        let draws: Vec<_> = (0..8).map(|draw| losses_from(&whole, Perturbation::new(size, draw))).collect();
        let of_shards = losses_from(&of(&[]), exact.clone());
        for shards in [2, 4, 8] {
            let shards = format!("train.shards={shards}");
            let synced = losses_from(&of(&["train.batch_norm=Synced", &shards]), exact.clone());
            for step in 0..4 {
                let response = draws.iter().map(|d| (d[step] - expected[step]).abs()).fold(0.0, f64::max);
                let allowed = response + size * expected[step].abs();
                assert_within!(synced[step], expected[step], allowed, "{set:?}, {shards}, step {step}");
                let off = (of_shards[step] - expected[step]).abs();
                assert!(off > 10.0 * allowed, "{set:?}: statistics of shards differ by {off}");
            }
        }
    }
}

/// The first batch of a run.
fn first_batch(plan: &Plan) -> ImageBatch {
    let options = LoaderOptions::training(plan.recipe.train.batch, plan.recipe.train.seed);
    let loader = Loader::new(plan.splits.train.clone(), plan.views.clone(), options).unwrap();
    loader.batches(0..1).next().unwrap().unwrap()
}

/// Passes some samples, in the given order, through a network as one batch of their own. Returns the unit embeddings of
/// the samples of each view.
fn embed(net: &mut Network<Cpu>, data: &ImageBatch, views: &[usize], samples: &[usize]) -> Vec<Vec<f64>> {
    let shape = net.input();
    let pixels: Vec<_> = views.iter().map(|v| data.views[*v].selected(samples, shape.len())).collect();
    let images = Cpu::default()
        .images(
            &pixels.iter().collect::<Vec<_>>(),
            0..samples.len() * shape.len(),
            (views.len() * samples.len(), shape.height, shape.width, shape.channels),
        )
        .unwrap();
    let rows = net.forward(images, Pass::Momentum).unwrap().embeddings.as_vec();
    let unit = |row: &[f32]| {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        row.iter().map(|x| f64::from(*x) / norm).collect()
    };
    rows.chunks_exact(net.embedding_dim()).map(unit).collect()
}

/// Returns the mean squared distance between the two views of each sample, whose batch passes through the network in
/// parts.
fn alignment(net: &mut Network<Cpu>, data: &ImageBatch, parts: &[Vec<usize>]) -> f64 {
    let mut sum = 0.0;
    for part in parts {
        let rows = embed(net, data, &[0, 1], part);
        let (first, second) = rows.split_at(part.len());
        let distance =
            |(a, b): (&Vec<f64>, &Vec<f64>)| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
        sum += first.iter().zip(second).map(distance).sum::<f64>();
    }
    sum / data.ids.len() as f64
}

fn in_parts(rows: Vec<usize>, size: usize) -> Vec<Vec<usize>> {
    rows.chunks(size).map(<[usize]>::to_vec).collect()
}

#[test]
fn each_shard_is_normalized_like_a_batch_of_its_own() {
    let plan = plan(NORMED, &["objective=[(term: Alignment(level: Instances))]"]);
    let data = first_batch(&plan);
    let mut trainer = Trainer::new(&Cpu::default(), &plan).unwrap();
    let [mut apart, mut whole] = [(); 2].map(|_| trainer.network_mut().duplicate().unwrap());
    let mut losses = Losses::default();
    trainer.train(&RunDir::in_memory(), Some(1), &mut losses).unwrap();

    let rows: Vec<usize> = (0..24).collect();
    let expected = alignment(&mut apart, &data, &in_parts(rows.clone(), 6));
    // A mean of 24 sums of 8 squares.
    let close = 4.0 * tolerance::f32(24 * 8, expected);
    assert_within!(losses.0[0], expected, close);
    let together = alignment(&mut whole, &data, &in_parts(rows, 24));
    assert!((together - expected).abs() > 100.0 * close, "{together} and {expected}");

    // Running statistics follow the shards in order.
    for (a, b) in apart.statistics().iter().zip(trainer.network_mut().statistics()) {
        assert_eq!(*a.value(), *b.value(), "{}", b.name);
    }
}

#[test]
fn shards_of_keys_are_of_a_random_order() {
    let set = [
        "momentum_encoder=Ema(momentum: 0.9)",
        "queue=24",
        "objective=[(term: InfoNce(negatives: QueueAndBatch))]",
        "train.seed=5",
    ];
    let plan = plan(NORMED, &set);
    let data = first_batch(&plan);
    let mut trainer = Trainer::new(&Cpu::default(), &plan).unwrap();
    let [mut shuffled, mut in_order] = [(); 2].map(|_| trainer.network_mut().duplicate().unwrap());
    trainer.train(&RunDir::in_memory(), Some(1), &mut Losses::default()).unwrap();
    let queue = trainer.state().queue.as_ref().unwrap();
    assert_eq!(queue.ids(), data.ids.iter().map(|id| Some(*id)).collect::<Vec<_>>());

    let mut order: Vec<usize> = (0..24).collect();
    let rows = in_parts(order.clone(), 6);
    order.shuffle(&mut stream(5, Purpose::KeyOrder, 0, 0, 0));
    let farthest = |net: &mut Network<Cpu>, parts: &[Vec<usize>]| {
        let mut most = 0.0f64;
        for part in parts {
            for (key, row) in embed(net, &data, &[1], part).iter().zip(part) {
                let queued = &queue.keys()[row * 8..(row + 1) * 8];
                let off = key.iter().zip(queued).map(|(a, b)| (a - f64::from(*b)).abs());
                most = off.fold(most, f64::max);
            }
        }
        most
    };
    let close = tolerance::f32(8, 1.0);
    let off = farthest(&mut shuffled, &in_parts(order, 6));
    assert!(off <= close, "off by {off}");
    assert!(farthest(&mut in_order, &rows) > 100.0 * close, "the order of the batch gives the same keys");
}
