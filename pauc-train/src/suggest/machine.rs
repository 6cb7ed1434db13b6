//! How fast this machine trains the candidates.

use super::rules::Candidate;
use crate::bench::{self, BenchError, BenchOptions, Form};
use crate::memory;
use crate::recipe::Recipe;
use pauc_data::ViewPipeline;
use pauc_models::NetworkDevice;
use pauc_traits::dataset::Splits;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Count, Positive, Result, progress};
use std::time::{Duration, Instant};

/// The speed of a candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// The image size and the encoder.
    pub candidate: Candidate,
    /// Images per second of a training step, without loading and augmentation.
    pub images_per_second: f64,
    /// Seconds of one thread to make a view of an image.
    pub seconds_per_view: f64,
}

/// The machine, as far as a recipe depends on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The device's name.
    pub device: String,
    /// Whether it is a GPU, with memory of its own.
    pub is_gpu: bool,
    /// The threads that load images, and on the CPU also train.
    pub threads: usize,
    /// The memory in bytes, if the system says.
    pub memory: Option<u64>,
    /// The candidates that were measured, from the smallest.
    pub speeds: Vec<Speed>,
}

impl Machine {
    /// Returns the device and the number of threads, such as `cpu with 2 threads`.
    pub fn describe(&self) -> String {
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        format!("{} with {} {threads}", self.device, self.threads)
    }
}

/// Images whose views are timed.
const TIMED: usize = 32;

/// Measures candidates, from the smallest, for about `seconds` in all. The larger ones are left out once `is_enough`
/// says so of those before.
///
/// # Errors
/// If a step fails.
pub fn measure<D: NetworkDevice>(
    device: &D,
    candidates: &[Candidate],
    splits: &Splits,
    seconds: f64,
    is_enough: impl Fn(&Machine) -> bool,
) -> Result<Machine, BenchError> {
    let task = progress::task("measuring this machine", candidates.len() as u64);
    let each = (seconds / candidates.len().max(1) as f64).max(0.01);
    let mut machine = Machine {
        device: device.name(),
        is_gpu: D::HAS_OWN_MEMORY,
        threads: rayon::current_num_threads(),
        memory: memory::of_machine(),
        speeds: Vec::new(),
    };
    for candidate in candidates {
        if !machine.speeds.is_empty() && is_enough(&machine) {
            break;
        }
        let images_per_second = rate(device, candidate, 0.8 * each)?;
        let seconds_per_view = seconds_per_view(candidate, splits, 0.2 * each)?;
        machine.speeds.push(Speed { candidate: candidate.clone(), images_per_second, seconds_per_view });
        task.advance(1);
    }
    Ok(machine)
}

/// Returns the images per second of a training step.
fn rate<D: NetworkDevice>(device: &D, candidate: &Candidate, seconds: f64) -> Result<f64, BenchError> {
    // Few images, so that a step of a large network is short; a GPU needs more to be busy.
    let batch = match (D::HAS_OWN_MEMORY, candidate.size) {
        (true, _) => 128,
        (false, 0..=40) => 32,
        (false, _) => 8,
    };
    let bench = bench::bench(
        device,
        &BenchOptions {
            encoder: candidate.encoder.clone(),
            batch: Count::lit(batch),
            size: Count::try_from(candidate.size).unwrap_or(Count::lit(32)),
            form: Form::Moco,
            seconds: Positive::try_from(seconds).unwrap_or(Positive::lit(1.0)),
            set: Vec::new(),
        },
    )?;
    Ok(batch as f64 / bench.median.as_secs_f64().max(1e-9))
}

/// Returns the seconds of this thread to make a view of an image that is in memory. Images that cannot be read are left out.
fn seconds_per_view(candidate: &Candidate, splits: &Splits, seconds: f64) -> Result<f64> {
    let text = format!("Recipe(name: \"views\", views: {}, objective: [])", candidate.views);
    let Ok((recipe, _)) = Recipe::parse("the views", &text, &[]) else { return Ok(0.0) };
    let (train, statistics) = (&splits.train, &splits.statistics);
    let views = ViewPipeline::training(&recipe.views, train.shape(), statistics)?;
    let mut pixels = vec![0.0; views.shape(0).len()];
    let (mut made, mut spent) = (0u32, Duration::ZERO);
    for id in 0..train.len().min(TIMED) {
        let Ok(image) = train.image(id * (train.len() / TIMED).max(1)) else { continue };
        let began = Instant::now();
        views.apply(image, 0, &mut stream(0, Purpose::Probe, 0, id as u64, 0), &mut pixels)?;
        spent += began.elapsed();
        made += 1;
        if spent.as_secs_f64() > seconds {
            break;
        }
    }
    Ok(spent.as_secs_f64() / f64::from(made.max(1)))
}
