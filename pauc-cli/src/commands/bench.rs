//! `bench`.

use super::data;
use super::device::{self, Job};
use crate::args::{BenchArgs, BenchCommand, Form};
use crate::{Failure, console};
use pauc::models::NetworkDevice;
use pauc::train::bench::{self, Bench, BenchError, BenchOptions};
use pauc::traits::trace::Stage;
use std::process::ExitCode;
use std::time::Duration;

/// Times a training step, or what the subcommand names.
pub fn bench(args: BenchArgs) -> Result<ExitCode, Failure> {
    if let Some(BenchCommand::Data(args)) = &args.what {
        return data::bench(args);
    }
    device::on(&args.device.clone(), args)
}

impl Job for BenchArgs {
    fn on<D: NetworkDevice>(self, device: &D) -> Result<ExitCode, Failure> {
        time(self, device)
    }
}

fn time<D: NetworkDevice>(args: BenchArgs, device: &D) -> Result<ExitCode, Failure> {
    let form = match args.form {
        Form::Simclr => bench::Form::Simclr,
        Form::Moco => bench::Form::Moco,
        Form::Inference => bench::Form::Inference,
    };
    let BenchArgs { encoder, batch, size, seconds, change, .. } = args;
    let options = BenchOptions { encoder, batch, size, form, seconds, set: change.set };
    let done = bench::bench(device, &options).map_err(|e| match e {
        BenchError::Recipe(found) => Failure::new(2, found.render(console::color()).trim_end()),
        BenchError::Failed(e) => e.into(),
    })?;
    if args.json {
        println!("{}", json(&device.name(), &options, &done));
    } else {
        print!("{}", table(&device.name(), &options, &done, args.layers));
    }
    Ok(ExitCode::SUCCESS)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Thousands of millions of operations a second in words.
fn speed(gflops: f64) -> String {
    if gflops < 1e4 { format!("{gflops:.0} GFLOP/s") } else { format!("{:.1} TFLOP/s", gflops / 1e3) }
}

/// Operations a second, in thousands of millions.
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

fn table(device: &str, options: &BenchOptions, done: &Bench, layers: bool) -> String {
    let (b, s, threads) = (options.batch, options.size, rayon::current_num_threads());
    let (at_work, whose) = match (device, threads) {
        ("cpu", 1) => ("1 thread".into(), "one thread's"),
        ("cpu", _) => (format!("{threads} threads"), "one thread's"),
        _ => (device.to_string(), "a"),
    };
    let mut out =
        format!("{} · {} · {b} rows of {s}×{s}×3 · {at_work}\n", options.encoder, options.form.name());
    let images = b.get() as f64 / done.median.as_secs_f64();
    out += &format!(
        "step {:.2} ms (median of {}, least {:.2}), {images:.0} rows/s\n",
        ms(done.median),
        done.steps,
        ms(done.least)
    );
    out += &format!(
        "{} counted as direct convolution; {whose} matrix product reaches {}\n",
        speed(rate(done)),
        speed(done.product_rate / 1e9)
    );
    if let (Some(all), Some(before)) = (done.memory, done.memory_before) {
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        out += &format!("memory {:.0} MiB at most, {:.0} MiB before the network\n", mib(all), mib(before));
    }
    let whole: Duration = done.stages.iter().filter(|s| !s.path.contains('/')).map(|s| s.time).sum();
    let line = |s: &Stage| {
        let depth = s.path.matches('/').count();
        let name = s.path.rsplit('/').next().unwrap_or_default();
        let share = s.time.as_secs_f64() / whole.as_secs_f64() * 100.0;
        let indent = 2 * depth + 2;
        format!(
            "{:indent$}{name:<width$}{:>9.3} ms {share:>5.1} %\n",
            "",
            ms(s.time) / done.steps as f64,
            width = 36 - 2 * depth
        )
    };
    let shown = done.stages.iter().filter(|s| layers || !s.path.contains('/'));
    shown.for_each(|s| out += &line(s));
    if layers {
        out += "layers\n";
        for l in done.layers.iter().filter(|l| !l.algorithm.is_empty()) {
            let shape: Vec<String> = l.output.iter().map(|n| n.to_string()).collect();
            out += &format!("  {:<36}{:>14}  {}\n", l.name, shape.join("×"), l.algorithm);
        }
    }
    out
}
