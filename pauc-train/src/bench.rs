//! Timing of training steps of an encoder, whole and by stage, on one batch that is used repeatedly.

use crate::diagnostic::Diagnostics;
use crate::plan::{Plan, PlanError};
use crate::prefetch::loader_options;
use crate::recipe::Recipe;
use crate::timings::peak_memory;
use crate::trainer::Trainer;
use pauc_data::{ImageBatch, Loader, LoaderOptions};
use pauc_models::device::NetworkDevice;
use pauc_traits::dataset::Place;
use pauc_traits::encoder::Layer;
use pauc_traits::trace::{self, Stage};
use pauc_traits::{Count, Error, Pass, Positive};
use std::time::{Duration, Instant};

/// The kind of step to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// InfoNCE inside the batch: `batch` rows, two views of half as many images.
    Simclr,
    /// InfoNCE of `batch` queries against the keys of a momentum encoder and a queue of 4096.
    Moco,
    /// Features of `batch` images in evaluation mode, without gradients.
    Inference,
}

impl Form {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Form::Simclr => "simclr",
            Form::Moco => "moco",
            Form::Inference => "inference",
        }
    }
}

/// What to time, and for how long.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// The encoder as a recipe writes it.
    pub encoder: String,
    /// Images that pass through the encoder with gradient in one step.
    pub batch: Count,
    /// Height and width of the RGB images.
    pub size: Count,
    /// The kind of step.
    pub form: Form,
    /// Seconds to repeat the step; at least five steps are taken.
    pub seconds: Positive,
    /// Changes to the step's recipe, each `path=value`.
    pub set: Vec<String>,
}

/// The results.
#[derive(Debug)]
pub struct Bench {
    /// Steps taken.
    pub steps: usize,
    /// The median time of a step.
    pub median: Duration,
    /// The time of the fastest step.
    pub least: Duration,
    /// The total time of each stage; `/` separates a stage from its parent.
    pub stages: Vec<Stage>,
    /// The encoder's layers.
    pub layers: Vec<Layer>,
    /// Learnable parameters of encoder and projector.
    pub parameters: usize,
    /// Floating-point operations of a step by the layers' definitions, two per multiply-add: forward, input
    /// gradient and weight gradient, and a forward pass of the momentum encoder. Faster algorithms need
    /// fewer.
    pub operations: f64,
    /// Operations per second that the device reaches in a large matrix product, measured before the steps:
    /// see [`NetworkDevice::product_rate`].
    pub product_rate: f64,
    /// The peak memory of the process in bytes, if the system reports it.
    pub memory: Option<u64>,
    /// Memory held before the network was built, in bytes.
    pub memory_before: Option<u64>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The encoder is misspelled, or does not fit the images.
    #[error(transparent)]
    Recipe(#[from] Diagnostics),
    /// A step failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Returns the recipe whose step is timed.
pub fn recipe(options: &BenchOptions) -> String {
    let BenchOptions { encoder, batch, size, form, .. } = options;
    let (images, more, negatives) = match form {
        Form::Simclr => ((batch.get() / 2).max(1), "", "InBatch"),
        Form::Inference => (batch.get(), "", "InBatch"),
        Form::Moco => (batch.get(), "momentum_encoder: Ema(momentum: 0.99), queue: 4096,", "Queue"),
    };
    format!(
        "Recipe(name: \"bench\", data: Shapes(count: {count}, size: {size}), views: [(count: 2, ops: [])],
    encoder: {encoder},
    projector: Mlp(dims: [512, 128]), {more}
    objective: [(term: InfoNce(temperature: 0.2, negatives: {negatives}))],
    optimizer: Sgd(lr: 0.001, momentum: 0.9, weight_decay: 5e-4), train: (epochs: 1, batch: {images}),
)",
        count = images.max(8)
    )
}

/// Times a training step: loss, gradients, optimizer, momentum encoder and queue, without loading and
/// augmentation.
///
/// # Errors
/// If the encoder is unknown or does not fit the images, or a step fails.
pub fn bench<D: NetworkDevice>(device: &D, options: &BenchOptions) -> Result<Bench, BenchError> {
    let (recipe, source) = Recipe::parse("the step's recipe", &recipe(options), &options.set)?;
    let plan = Plan::new(device, recipe, source, &Place::at("")).map_err(|e| match e {
        PlanError::Recipe(found) => BenchError::Recipe(found),
        PlanError::Data { error, .. } => BenchError::Failed(error),
    })?;
    let memory_before = peak_memory();
    let mut trainer = Trainer::new(device, &plan)?;
    let product_rate = device.product_rate(plan.recipe.train.cuda.precision)?;
    let batch = first_batch::<D>(&plan)?;
    let image = plan.shape;
    let shape = (batch.ids.len(), image.height, image.width, image.channels);
    let mut once = |timed: bool| -> Result<Duration, Error> {
        let start = Instant::now();
        if options.form == Form::Inference {
            let pixels = &batch.views[0];
            let images = device.images(&[pixels], 0..pixels.len(), shape)?;
            let _stage = timed.then(|| trace::span("forward"));
            trainer.network_mut().forward(images, Pass::Eval)?;
        } else {
            trainer.step_on(&batch)?;
        }
        device.finish()?;
        Ok(start.elapsed())
    };
    for _ in 0..2 {
        once(false)?;
    }
    let begun = Instant::now();
    let mut times = Vec::new();
    let (taken, stages) = trace::record_by(device.clock(), || -> Result<(), Error> {
        while times.len() < 5 || begun.elapsed().as_secs_f64() < options.seconds.get() {
            times.push(once(true)?);
        }
        Ok(())
    });
    taken?;
    times.sort();
    let layers = trainer.network_mut().layers();
    let forward: f64 = layers.iter().map(|l| 2.0 * l.multiply_adds as f64).sum();
    let rows = options.batch.get() as f64;
    let passes = match options.form {
        Form::Simclr => 3.0,
        Form::Moco => 4.0,
        Form::Inference => 1.0,
    };
    Ok(Bench {
        steps: times.len(),
        median: times[times.len() / 2],
        least: times[0],
        stages,
        parameters: trainer.parameters().iter().map(|p| p.len()).sum(),
        layers,
        operations: passes * rows * forward,
        product_rate,
        memory: peak_memory(),
        memory_before,
    })
}

/// Returns the batch for all steps.
fn first_batch<D: NetworkDevice>(plan: &Plan) -> Result<ImageBatch, Error> {
    let options = loader_options::<D>(LoaderOptions::training(plan.recipe.train.batch, 0));
    let loader = Loader::new(plan.splits.train.clone(), plan.views.clone(), options)?;
    let batch = loader.batches(0..1).next().transpose()?;
    batch.ok_or_else(|| Error::config("the loader returned no batch"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfdx::prelude::Cpu;

    fn options(encoder: &str, form: Form) -> BenchOptions {
        let (batch, size) = (Count::lit(8), Count::lit(16));
        BenchOptions {
            encoder: encoder.into(),
            batch,
            size,
            form,
            seconds: Positive::lit(1e-6),
            set: Vec::new(),
        }
    }

    #[test]
    fn stages_cover_the_step() {
        for form in [Form::Simclr, Form::Moco] {
            let done = bench(&Cpu::default(), &options("ConvNet(channels: [8, 16])", form)).unwrap();
            assert_eq!(done.steps, 5);
            assert!(done.least <= done.median);
            let stage = |path: &str| done.stages.iter().find(|s| s.path == path).map(|s| s.calls);
            assert_eq!((stage("forward"), stage("backward"), stage("terms")), (Some(5), Some(5), Some(5)));
            assert_eq!((stage("forward/conv1"), stage("backward/conv2 weight")), (Some(5), Some(5)));
            assert_eq!(stage("keys"), (form == Form::Moco).then_some(5), "{:?}", done.stages);
            // 16² · 9·3·8 + 8² · 9·8·16 multiply-adds in convolutions, and two per value of each
            // normalization.
            let convolutions = 256.0 * 27.0 * 8.0 + 64.0 * 72.0 * 16.0;
            let passes = if form == Form::Moco { 4.0 } else { 3.0 };
            let counted = done.operations / (2.0 * passes * 8.0);
            assert!(counted >= convolutions, "{counted}");
        }
    }

    #[test]
    fn inference_has_no_backward_pass() {
        let done = bench(&Cpu::default(), &options("ConvNet(channels: [8, 16])", Form::Inference)).unwrap();
        let stages: Vec<_> = done.stages.iter().filter(|s| !s.path.contains('/')).collect();
        assert_eq!((stages.len(), stages[0].path.as_str(), stages[0].calls), (1, "forward", 5));
    }

    #[test]
    fn a_misspelled_encoder_is_reported_with_its_position() {
        let e = bench(&Cpu::default(), &options("ConvNet(channel: [8])", Form::Simclr)).unwrap_err();
        let BenchError::Recipe(found) = e else { panic!("{e:?}") };
        assert!(found.render(false).contains("`channels`"), "{}", found.render(false));
        let e = bench(&Cpu::default(), &options("ConvNet(channels: [8, 8, 8, 8, 8, 8, 8])", Form::Moco));
        assert!(matches!(e, Err(BenchError::Recipe(_))));
    }
}
