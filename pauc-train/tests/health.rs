//! Runs that do not learn warn about it, stop early, and save the data needed to find the cause.
#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

mod common;

use common::plan;

use dfdx::prelude::Cpu;
use pauc_models::weights::TensorFile;
use pauc_report::events::Event;
use pauc_testing::{assert_within, tolerance};
use pauc_train::observer::Observer;
use pauc_train::run_dir::RunDir;
use pauc_train::trainer::{Ending, Trainer};

const RECIPE: &str = r#"Recipe(
    name: "health",
    data: Shapes(count: 96, size: 12, classes: 4, seed: 1),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])],
    encoder: MlpEncoder(dims: [24, 16]),
    projector: Mlp(dims: [16, 8]),
    objective: [(term: InfoNce(temperature: 0.2))],
    optimizer: Sgd(lr: 1e-30, weight_decay: 0.0),
    schedule: Constant,
    train: (epochs: 4, batch: 24),
)"#;

#[derive(Default)]
struct Log(Vec<Event>);

impl Observer for Log {
    fn event(&mut self, event: &Event) -> pauc_traits::Result<()> {
        self.0.push(event.clone());
        Ok(())
    }
}

impl Log {
    fn warnings(&self) -> Vec<(u64, String)> {
        let warning = |e: &'_ Event| match e {
            Event::Warning(w) => Some((w.step, w.text.clone())),
            _ => None,
        };
        self.0.iter().filter_map(warning).collect()
    }
}

struct Run {
    folder: tempfile::TempDir,
    log: Log,
    outcome: pauc_traits::Result<Ending>,
    steps: u64,
}

fn train(set: &[&str]) -> Run {
    let plan = plan(RECIPE, set);
    let folder = tempfile::tempdir().unwrap();
    let dir = RunDir::at(folder.path());
    dir.create().unwrap();
    let (mut trainer, mut log) = (Trainer::new(&Cpu::default(), &plan).unwrap(), Log::default());
    let outcome = trainer.train(&dir, None, &mut log);
    Run { folder, log, outcome, steps: trainer.step() }
}

#[test]
fn a_loss_at_chance_is_reported_once_with_its_level() {
    // All similarities are divided by a temperature so large that every choice is equally likely.
    let temperature = 2000.0;
    let run = train(&["objective[0].term.temperature=2000.0"]);
    let found: Vec<_> =
        run.log.warnings().into_iter().filter(|(_, t)| t.contains("at its chance level")).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    // Two views of 24 images: 46 negatives and the positive; or 24 keys. In both cases the mean equals the
    // level.
    assert!(found[0].0 == 8 && found[0].1.starts_with("InfoNce has been at its chance level for 2 epochs"));
    let health: Vec<_> = run
        .log
        .0
        .iter()
        .filter_map(|e| match e {
            Event::Health(h) => Some(h),
            _ => None,
        })
        .collect();
    assert_eq!(health.iter().map(|h| h.step).collect::<Vec<_>>(), [4, 8, 12, 16]);
    for (n, h) in health.iter().enumerate() {
        let term = &h.terms[0];
        // ln Σ exp(s/T) − s/T for 47 cosines s differs from the logarithm of their number by at most 2/T.
        let within = 2.0 / temperature + tolerance::f32(47 + 48 + 8, term.mean);
        assert_within!(term.mean, term.chance.unwrap(), within);
        assert_eq!(term.epochs_at_chance, n as u64 + 1);
        // The bounds are the values of identical embeddings and of uniformly spread ones; these are in
        // between.
        assert!(h.spread > 0.0 && h.spread <= 1.0 && h.rank >= 1.0 && h.rank <= 8.0, "{h:?}");
    }
    let stages = run.log.0.iter().find_map(|e| match e {
        Event::Stages(s) => Some(s),
        _ => None,
    });
    let names: Vec<_> = stages.unwrap().stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["data", "forward", "terms", "backward", "optimizer", "other"]);
    let loader = stages.unwrap().loader.as_ref().unwrap();
    assert!(loader.images > 0 && loader.augment > 0.0 && loader.images_per_second() > 0.0, "{loader:?}");
}

#[test]
fn a_metric_that_does_not_improve_ends_the_run_with_its_last_probes() {
    let run = train(&[
        "train.stop_early=(metric: \"knn/cos/k5/t0.07\", patience: 1)",
        "probes=[Knn(k: 5, every: Epochs(1)), Linear(at: End)]",
    ]);
    assert_eq!(run.outcome.unwrap(), Ending::Finished);
    assert_eq!(run.steps, 8, "the weights are fixed, so the accuracy does not change");
    let warned = run.log.warnings();
    assert!(
        warned.iter().any(|(step, t)| *step == 8 && t.contains("has not improved for 1 probes")),
        "{warned:?}"
    );
    let linear = run.log.0.iter().any(|e| match e {
        Event::Probe(p) => p.step == 8 && p.metrics.iter().any(|m| m.name.starts_with("linear/")),
        _ => false,
    });
    assert!(linear, "the final probes ran");
    let misspelt = train(&["train.keep=(best: (metric: \"knn\"))", "probes=[Knn(k: 5, every: Epochs(1))]"]);
    let warned = misspelt.log.warnings();
    assert_eq!(
        warned.iter().filter(|(_, t)| t.contains("they measure knn/cos/k5/t0.07")).count(),
        1,
        "{warned:?}"
    );
}

#[test]
fn a_nan_saves_its_batch_and_the_preceding_gradient_norms() {
    let run = train(&["optimizer=Sgd(lr: 1e30)"]);
    let error = run.outcome.unwrap_err().to_string();
    assert!(error.contains("postmortem.json") && error.contains("no checkpoint had been written"), "{error}");
    let at = |name: &str| run.folder.path().join(name);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(at("postmortem.json")).unwrap()).unwrap();
    assert_eq!(json["step"], run.steps + 1);
    assert!(error.contains(&format!("step {}", run.steps + 1)), "{error}");
    assert_eq!(json["samples"].as_array().unwrap().len(), 24);
    let norms = json["gradient_norms"].as_array().unwrap();
    assert!(norms.len() as u64 == run.steps && norms[0]["norm"].as_f64().unwrap() > 0.0, "{json}");
    let file = TensorFile::load(at("postmortem.safetensors")).unwrap();
    assert_eq!(file.get("view.1.pixels").unwrap().shape, [24, 12, 12, 3]);
    assert_eq!(file.get("view.0.embeddings").unwrap().shape, [24, 8]);
    let weights: Vec<_> = file.names().filter(|n| n.starts_with("parameter.")).collect();
    assert!(weights.iter().all(|n| file.get(&n.replace("parameter.", "gradient.")).is_some()));
    assert!(
        weights.iter().any(|n| file.f32(n).unwrap().iter().any(|v| v.abs() > 1e20)),
        "the cause is saved"
    );
}

#[test]
fn the_pixels_of_a_failed_batch_have_the_size_of_their_view() {
    let run = train(&[
        "optimizer=Sgd(lr: 1e30)",
        "encoder=ConvNet(channels: [8, 16])",
        "views=[(count: 2, ops: [MultiCrop(size: 12, crop: Global)]), (count: 1, ops: [MultiCrop(size: 8, crop: Local)])]",
        "objective=[(term: SwappedAssignment(prototypes: 4, local_views: 1))]",
    ]);
    let error = run.outcome.unwrap_err().to_string();
    assert!(error.contains("postmortem.json") && !error.contains("could not be written"), "{error}");
    let file = TensorFile::load(run.folder.path().join("postmortem.safetensors")).unwrap();
    let shape = |view: usize| file.get(&format!("view.{view}.pixels")).unwrap().shape.clone();
    assert_eq!((shape(1), shape(2)), (vec![24, 12, 12, 3], vec![24, 8, 8, 3]));
}
