//! Probes that train on a run's images do not affect the run, and do learn.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::plan;

use dfdx::prelude::Cpu;
use pauc_report::events::{Event, Subject};
use pauc_train::evaluate::Embedded;
use pauc_train::observer::Observer;
use pauc_train::plan::{Plan, PlanError};
use pauc_train::recipe::Recipe;
use pauc_train::run_dir::RunDir;
use pauc_train::trainer::Trainer;
use pauc_traits::dataset::Place;
use std::collections::BTreeMap;

const RECIPE: &str = r#"Recipe(
    name: "tuning",
    data: Subset(of: FashionMini(), train: PerClass(24), test: PerClass(20)),
    views: [(count: 2, ops: [RandomResizedCrop(size: 14, scale: (0.6, 1.0)), HorizontalFlip(p: 0.5), GaussianBlur(p: 1.0)])],
    encoder: MlpEncoder(dims: [48, 24]),
    projector: Mlp(dims: [16, 8]),
    momentum_encoder: Ema(momentum: 0.9),
    frozen: ["0"],
    objective: [(term: InfoNce(temperature: 0.2))],
    optimizer: Sgd(lr: 0.05),
    schedule: Constant,
    train: (epochs: 2, batch: 40),
)"#;

#[derive(Default)]
struct Log(BTreeMap<(Subject, u64, String), f64>);

impl Observer for Log {
    fn event(&mut self, event: &Event) -> pauc_traits::Result<()> {
        if let Event::Probe(p) = event {
            let metrics = p.metrics.iter().map(|m| ((p.subject, p.step, m.name.clone()), m.value));
            self.0.extend(metrics);
        }
        Ok(())
    }
}

/// Returns the metrics of a run, and the final embeddings.
fn train(set: &[&str]) -> (Log, Embedded) {
    let plan = plan(RECIPE, set);
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::at(folder.path());
    dir.create().unwrap();
    let (mut trainer, mut log) = (Trainer::new(&Cpu::default(), &plan).unwrap(), Log::default());
    trainer.train(&dir, None, &mut log).unwrap();
    (log, trainer.embed_splits().unwrap().0)
}

#[test]
fn the_run_is_unaffected_and_the_copy_learns() {
    let probes = "probes=[FineTune(lr: 0.05, head_lr: 0.5, epochs: 15, batch: 40, every: Epochs(1)), \
                  FineTune(lr: 0.05, head_lr: 0.05, epochs: 30, batch: 40, views: Evaluation), \
                  LinearSgd(lr: [0.3, 3.0], epochs: 6, batch: 40, views: CropFlip, every: Epochs(1)), \
                  LowShot(labels: PerClass(5), probe: FineTune(epochs: 1))]";
    let (nothing, plain) = train(&[]);
    let (log, probed) = train(&[probes, "baselines=[RandomInit, RawPixels]"]);
    assert!(nothing.0.is_empty());
    assert!(plain.features == probed.features && plain.embeddings == probed.embeddings);

    let tuned = "finetune/e15/b40/step0.2/crop-flip/lr0.05/head0.5/wd0.0005";
    let linear = "linear/sgd/e6/b40/step0.1/crop-flip";
    let value = |subject, step, name: &str| log.0.get(&(subject, step, name.to_string())).copied();
    for (subject, step) in [(Subject::RandomInit, 0), (Subject::Trained, 6), (Subject::Trained, 12)] {
        // With shuffled labels it would stay at a tenth. It reaches 0.6, and 0.45 for the linear probe; one
        // of the 200 test images counts 0.005.
        let accuracy = value(subject, step, tuned).unwrap();
        assert!(accuracy > 0.4, "{subject:?} at {step}: {accuracy}");
        assert!(value(subject, step, linear).unwrap() > 0.2);
        assert!([0.3, 3.0].contains(&value(subject, step, &format!("{linear}/lr")).unwrap()));
    }
    let still = value(Subject::Trained, 12, "finetune/e30/b40/step0.2/lr0.05/head0.05/wd0.0005").unwrap();
    // It reaches 0.72.
    assert!(still > 0.6, "{still}");
    assert_eq!(value(Subject::RawPixels, 0, tuned), None, "pixels have no network");
    let few = "finetune/e1/b256/step0.2/crop-flip/lr0.01/head0.1/wd0.0005/labels5perclass";
    assert!(value(Subject::Trained, 12, few).is_some(), "{:?}", log.0.keys());

    // A second run gives the same bits.
    let (again, _) = train(&[probes, "baselines=[RandomInit, RawPixels]"]);
    assert_eq!(log.0, again.0);
}

#[test]
fn fine_tuning_lowers_the_rates_of_early_layers_of_encoders_with_an_order() {
    let probe = |decay: &str| {
        format!("FineTune(lr: 0.05, head_lr: 0.5, epochs: 2, batch: 40, views: Evaluation{decay})")
    };
    let probes =
        format!("probes=[{}, {}, {}]", probe(""), probe(", layer_decay: 0.5"), probe(", layer_decay: 1e-9"));
    let convolutions = "encoder=ConvNet(channels: [16, 16])";
    let (log, _) = train(&[&probes, convolutions, "frozen=[]"]);
    let name = "finetune/e2/b40/step0.2/lr0.05/head0.5/wd0.0005";
    let value = |suffix: &str| log.0[&(Subject::Trained, 12, format!("{name}{suffix}"))];
    let (all, half, last) = (value(""), value("/layers0.5"), value("/layers0.000000001"));
    // With equal rates, or none at all, two of them would be equal.
    assert!(all != half && half != last, "{all} {half} {last}");

    // A perceptron's layers have no order: the run continues without this probe.
    let (log, _) = train(&[&format!("probes=[{}]", probe(", layer_decay: 0.5"))]);
    assert!(!log.0.keys().any(|(_, _, name)| name.starts_with("finetune")), "{:?}", log.0.keys());
}

#[test]
fn probes_that_cannot_work_are_refused_before_the_run() {
    for (probe, says) in [
        ("LinearSgd(views: CropFlip, space: Embeddings)", "leave `space` out"),
        ("LowShot(probe: LinearSgd(lr: []))", "`lr` is empty"),
        ("LowShot(probe: Rank())", "`Rank` reads no labels"),
        ("KnnGrid(temperature: [])", "set `distance: [Euclidean]`"),
        ("Linear(l2: [])", "`l2` is empty"),
    ] {
        let (recipe, source) = Recipe::parse("test", RECIPE, &[format!("probes=[{probe}]")]).unwrap();
        let error = match Plan::new(&Cpu::default(), recipe, source, &Place::at(".")) {
            Err(PlanError::Recipe(found)) => found.render(false),
            _ => panic!("{probe} passes"),
        };
        assert!(error.contains("error[E0221]") && error.contains(says), "{error}");
    }
}
