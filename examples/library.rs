//! Trains a small encoder from Rust, without a recipe file or a run folder, and with a term defined here.
//!
//! `cargo run --release --example library`

use pauc::dfdx::prelude::{Axis, Cpu, MeanTo, SumTo};
use pauc::probes::{LinearOptions, linear_probe};
use pauc::train::{Embedded, Ending, Event, Observer, Plan, Progress, RunDir, Trainer};
use pauc::traits::batch::Inputs;
use pauc::traits::component_ron::Term;
use pauc::traits::term::Facts;
use pauc::traits::{Backend, Batch, Needs, Regularizer, Result, Scalar, TermInfo, Value, component, ops};
use std::error::Error;

component! {
    /// Pulls the mean embedding to the origin: ‖mean_i z_i‖².
    ///
    /// # Shapes
    /// z: (B, D) unit rows → scalar
    ///
    /// The value is 1/B for unrelated embeddings, and 1 if all embeddings are equal.
    pub struct Centering: Regularizer {}
}

impl TermInfo for Centering {
    fn needs(&self) -> Needs {
        Needs { queries: &[0], ..Needs::default() }
    }
    fn chance_level(&self, facts: &Facts) -> Option<f64> {
        Some(1.0 / facts.batch as f64)
    }
}

impl<E: Scalar, D: Backend<E>> Regularizer<E, D> for Centering {
    fn penalty(&self, batch: &Batch<E, D>) -> Result<Value<E, D>> {
        let mean = batch.z(0)?.mean::<(usize,), Axis<0>>();
        Ok(mean.square().sum())
    }
}

/// The embedded images of Fashion-MNIST, a small network, and two terms.
const RECIPE: &str = r#"Recipe(
    name: "library",
    data: FashionMini(),
    views: [(count: 2, ops: [RandomResizedCrop(size: 28, scale: (0.3, 1.0)), HorizontalFlip(p: 0.5)])],
    encoder: ConvNet(channels: [8, 16], grid: 2),
    projector: Mlp(dims: [64, 16]),
    objective: [(term: InfoNce(temperature: 0.2)), (term: Centering(), weight: 0.1)],
    optimizer: Sgd(lr: 0.1),
    train: (epochs: 1, batch: 100, log_every: 10),
)"#;

/// Keeps the loss of every step, and prints logged events.
#[derive(Default)]
struct Watch {
    losses: Vec<f64>,
}

impl Observer for Watch {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Step(step) => println!("step {:>3}: loss {:.3}", step.step, step.loss),
            Event::Warning(warning) => println!("warning: {}", warning.text),
            _ => {}
        }
        Ok(())
    }

    fn progress(&mut self, progress: &Progress<'_>) {
        self.losses.push(progress.loss);
    }
}

/// The result of [`train`].
pub struct Trained {
    /// The loss of every step.
    pub losses: Vec<f64>,
    /// The fraction of test images that a linear classifier on the features classifies correctly.
    pub accuracy: f64,
    /// The value of `Centering` on the embeddings of all test images.
    pub centering: f64,
}

/// Trains a network, and measures its features.
pub fn train() -> Result<Trained, Box<dyn Error>> {
    let device = Cpu::default();
    let plan = Plan::parse(&device, RECIPE)?;
    let mut watch = Watch::default();
    let mut trainer = Trainer::new(&device, &plan)?;
    let ending = trainer.train(&RunDir::in_memory(), None, &mut watch)?;
    assert_eq!(ending, Ending::Finished);

    let (train, test) = trainer.embed_splits()?;
    let (test, test_images) = test.zip(plan.splits.test.as_ref()).ok_or("there is no test split")?;
    let labels = plan.splits.train.labels().ok_or("there are no labels")?;
    let test_labels = test_images.labels().ok_or("there are no labels")?;
    let (classes, options) = (plan.splits.classes.len(), LinearOptions::default());
    let probe =
        linear_probe(train.feature_rows(), labels, test.feature_rows(), test_labels, classes, &options)?;
    Ok(Trained { losses: watch.losses, accuracy: probe.accuracy, centering: centering(&device, &test)? })
}

/// Evaluates a term outside of a run, on a batch of given embeddings.
fn centering(device: &Cpu, embedded: &Embedded) -> Result<f64, Box<dyn Error>> {
    let rows = embedded.embedding_rows();
    let z = ops::constant(device, rows.data.to_vec(), (rows.rows, rows.cols));
    let batch = Batch::new(device, Inputs { views: vec![Some(z)], ..Inputs::default() })?;
    Ok(ops::item(&Term::parse("Centering()")?.evaluate(&batch)?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let trained = train()?;
    println!("linear probe {:.1} %, centering {:.4}", trained.accuracy * 100.0, trained.centering);
    Ok(())
}
