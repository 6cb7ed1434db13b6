//! Times a training step of a residual network: forward, backward from a given gradient, and an update of SGD
//! with momentum.
//!
//! ```text
//! cargo bench -p pauc-models --bench step -- [--encoder 'ResNet18(stem: Small)'] [--batch 64] [--size 32] [--channels 3]
//!     [--threads 2] [--seconds 5]
//! ```
#![allow(clippy::unwrap_used)] // a tool for developers

use dfdx::prelude::*;
use pauc_models as _;
use pauc_traits::param::clear_gradients;
use pauc_traits::registry::kind;
use pauc_traits::{BuildOptions, Compute, Configured, ImageShape, Pass};
use std::time::Instant;

fn option<T: std::str::FromStr>(name: &str, default: T) -> T {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|a| a == &format!("--{name}"));
    at.and_then(|i| arguments.get(i + 1)).and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Returns the processor time of all threads so far in seconds, on Linux. It is less sensitive to other
/// programs than wall-clock time.
fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        text.rsplit(')').next().unwrap_or("").split_whitespace().map(|v| v.parse().unwrap_or(0.0)).collect();
    fields.get(11..13).map_or(0.0, |t| (t[0] + t[1]) / 100.0)
}

fn main() {
    let threads = option("threads", 2);
    // Like the command line.
    pauc_kernels::malloc::keep_freed();
    pauc_kernels::threads::start(threads).unwrap();
    let recipe = option("encoder", "ResNet18(stem: Small)".to_string());
    let (batch, side, channels) = (option("batch", 64), option("size", 32), option("channels", 3));
    let device = Cpu::default();
    let config = Configured::<kind::Encoder>::parse(&recipe).unwrap();
    let input = ImageShape { height: side, width: side, channels };
    let mut encoder = Cpu::encoder(&*config.value).build(&device, input, BuildOptions::seed(0)).unwrap();
    let parameters = encoder.parameters();
    let mut momenta: Vec<Vec<f32>> = parameters.iter().map(|p| vec![0.0; p.len()]).collect();
    let pixels: Vec<f32> =
        (0..batch * input.len()).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 300.0).collect();
    let images = device.tensor_from_vec(pixels, (batch, side, side, channels));
    let mut step = || {
        let start = Instant::now();
        clear_gradients(&device, &parameters).unwrap();
        let features = encoder.forward(images.clone(), Pass::Train).unwrap();
        let forward = start.elapsed();
        features.square().mean::<Rank0, _>().backward();
        let backward = start.elapsed() - forward;
        for (p, m) in parameters.iter().zip(&mut momenta) {
            for ((v, g), m) in p.value_mut().iter_mut().zip(p.grad().iter()).zip(m) {
                *m = 0.9 * *m + g + 5e-4 * *v;
                *v -= 0.01 * *m;
            }
        }
        [start.elapsed(), forward, backward].map(|d| d.as_secs_f64() * 1e3)
    };
    for _ in 0..2 {
        step();
    }
    let (seconds, start) = (option("seconds", 5.0), Instant::now());
    let mut times = Vec::new();
    let processor = processor_time();
    while times.len() < 5 || start.elapsed().as_secs_f64() < seconds {
        times.push(step());
    }
    let processor = (processor_time() - processor) / times.len() as f64 * 1e3;
    let median = |i: usize| {
        let mut t: Vec<f64> = times.iter().map(|t| t[i]).collect();
        t.sort_by(f64::total_cmp);
        (t[t.len() / 2], t[0])
    };
    let [step, forward, backward] = [0, 1, 2].map(median);
    println!(
        "{recipe} b{batch} {side}px×{channels} {threads} threads: step {:.2} ms (least {:.2}), forward {:.2}, backward {:.2}; processor {processor:.1}",
        step.0, step.1, forward.0, backward.0
    );
}
