//! `bench`.

pub mod data;

use crate::Failure;
use crate::args::{DeviceArg, JsonArg, RecipeArgs, heading};
use crate::device::{self, DeviceJob};
use crate::training;
use clap::{Args, Subcommand, ValueEnum};
use pauc::models::NetworkDevice;
use pauc::train::bench::{self, Bench, BenchOptions};
use pauc::traits::trace::Stage;
use pauc::traits::{Count, Positive};
use std::process::ExitCode;
use std::time::Duration;

/// Time the training steps of an encoder, or the data loader.
///
/// Prints the time of a whole step and of each stage; `bench data` times the loader.
///
/// Example: pauc-cli bench --encoder 'ResNet18(stem: Small, width: 16)' --batch 64 --size 32 --threads 2
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    /// Times something other than an encoder.
    #[command(subcommand)]
    what: Option<BenchCommand>,
    #[command(flatten)]
    step: StepArgs,
}

/// What to time instead of an encoder.
#[derive(Debug, Subcommand)]
enum BenchCommand {
    Data(data::BenchDataArgs),
}

/// The step to time.
#[derive(Debug, Args)]
struct StepArgs {
    /// The encoder, as a recipe writes it.
    #[arg(long, default_value = "ResNet18(stem: Small, width: 64)", help_heading = heading::INPUT)]
    encoder: String,
    /// Images per step.
    #[arg(long, default_value = "64", value_name = "N", help_heading = heading::INPUT)]
    batch: Count,
    /// Height and width of the images, in pixels.
    #[arg(long, default_value = "32", value_name = "N", help_heading = heading::INPUT)]
    size: Count,
    #[command(flatten)]
    change: RecipeArgs,
    /// What to time: a training step without (`simclr`) or with (`moco`) momentum encoder and queue, or
    /// `inference`.
    #[arg(long, default_value = "simclr", help_heading = heading::MEASUREMENT)]
    form: Form,
    /// Seconds to repeat the step.
    #[arg(long, default_value = "5", value_name = "SECONDS", help_heading = heading::MEASUREMENT)]
    seconds: Positive,
    /// Also print the time of every layer.
    #[arg(long, help_heading = heading::OUTPUT)]
    layers: bool,
    #[command(flatten)]
    output: JsonArg,
    #[command(flatten)]
    device: DeviceArg,
}

/// The form of a timed step.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    /// Two views in one batch.
    Simclr,
    /// Queries against keys and a queue.
    Moco,
    /// Features only, in evaluation mode.
    Inference,
}

impl From<Form> for bench::Form {
    fn from(form: Form) -> Self {
        match form {
            Form::Simclr => Self::Simclr,
            Form::Moco => Self::Moco,
            Form::Inference => Self::Inference,
        }
    }
}

impl BenchArgs {
    /// Times a training step, or runs the subcommand.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        training::prepare();
        match self.what {
            Some(BenchCommand::Data(args)) => args.execute(),
            None => device::run_on(&self.step.device.name.clone(), self.step),
        }
    }
}

impl DeviceJob for StepArgs {
    fn run_on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        let options = BenchOptions {
            encoder: self.encoder,
            batch: self.batch,
            size: self.size,
            form: self.form.into(),
            seconds: self.seconds,
            set: self.change.set,
        };
        let done = bench::bench(device, &options)?;
        if self.output.json {
            outln!("{}", json(&device.name(), &options, &done));
            return Ok(ExitCode::SUCCESS);
        }
        out!("{}{}", summary(&device.name(), &options, &done), stages(&done, self.layers));
        if self.layers {
            out!("{}", layers(&done));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Formats a speed given in GFLOP/s.
fn speed(gflops: f64) -> String {
    if gflops < 1e4 { format!("{gflops:.0} GFLOP/s") } else { format!("{:.1} TFLOP/s", gflops / 1e3) }
}

/// Returns the speed in GFLOP/s.
fn rate(done: &Bench) -> f64 {
    done.operations / done.median.as_secs_f64() / 1e9
}

fn json(device: &str, options: &BenchOptions, done: &Bench) -> serde_json::Value {
    let steps = done.steps as f64;
    let stages: serde_json::Map<_, _> =
        done.stages.iter().map(|s| (s.path.clone(), (ms(s.time) / steps).into())).collect();
    serde_json::json!({
        "device": device, "encoder": options.encoder, "batch": options.batch.get(), "size": options.size.get(),
        "form": options.form.name(), "threads": rayon::current_num_threads(), "steps": done.steps,
        "step_ms_median": ms(done.median), "step_ms_min": ms(done.least), "stage_ms": stages,
        "gflops": rate(done), "product_gflops": done.product_rate / 1e9, "parameters": done.parameters,
        "memory_bytes": done.memory, "memory_bytes_before": done.memory_before,
    })
}

/// Describes what was timed, how long it took, and how much memory it used.
fn summary(device: &str, options: &BenchOptions, done: &Bench) -> String {
    let (b, s, threads) = (options.batch, options.size, rayon::current_num_threads());
    let (workers, whose) = match (device, threads) {
        ("cpu", 1) => ("1 thread".into(), "one thread's"),
        ("cpu", _) => (format!("{threads} threads"), "one thread's"),
        _ => (device.to_string(), "a"),
    };
    let (encoder, form) = (&options.encoder, options.form.name());
    let mut out = format!("{encoder} · {form} · {b} rows of {s}×{s}×3 · {workers}\n");
    let (median, least) = (ms(done.median), ms(done.least));
    let rows_per_second = b.get() as f64 / done.median.as_secs_f64();
    out += &format!(
        "step {median:.2} ms (median of {}, least {least:.2}), {rows_per_second:.0} rows/s\n",
        done.steps
    );
    let (step, product) = (speed(rate(done)), speed(done.product_rate / 1e9));
    out += &format!("{step} counted as direct convolution; {whose} matrix product reaches {product}\n");
    if let (Some(all), Some(before)) = (done.memory, done.memory_before) {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        out += &format!("peak memory {:.0} MiB, {:.0} MiB before the network\n", mib(all), mib(before));
    }
    out
}

/// Formats the time of each stage; sub-stages only if `nested`.
fn stages(done: &Bench, nested: bool) -> String {
    let whole: Duration = done.stages.iter().filter(|s| !s.path.contains('/')).map(|s| s.time).sum();
    let line = |s: &Stage| {
        let depth = s.path.matches('/').count();
        let name = s.path.rsplit('/').next().unwrap_or_default();
        let share = s.time.as_secs_f64() / whole.as_secs_f64() * 100.0;
        let (indent, width) = (2 * depth + 2, 36 - 2 * depth);
        let per_step = ms(s.time) / done.steps as f64;
        format!("{:indent$}{name:<width$}{per_step:>9.3} ms {share:>5.1} %\n", "")
    };
    done.stages.iter().filter(|s| nested || !s.path.contains('/')).map(line).collect()
}

/// Formats the output shape and the algorithm of each layer that has one.
fn layers(done: &Bench) -> String {
    let mut out = String::from("layers\n");
    for l in done.layers.iter().filter(|l| !l.algorithm.is_empty()) {
        let shape: Vec<String> = l.output.iter().map(|n| n.to_string()).collect();
        out += &format!("  {:<36}{:>14}  {}\n", l.name, shape.join("×"), l.algorithm);
    }
    out
}
