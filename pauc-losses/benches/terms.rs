//! Forward and backward time of the softmax terms, from raw outputs to the gradient with respect to them.
//!
//! `cargo bench -p pauc-losses --bench terms -- [threads] [part of a name]` prints one JSON line per
//! measurement. With `--features cuda` and `cuda:0` among the arguments, it measures a GPU.

#![allow(clippy::unwrap_used)] // a bench that cannot run should stop

use dfdx::prelude::*;
use pauc_traits::backend::Backend;
use pauc_traits::batch::{Constant, Inputs, Level};
use pauc_traits::component_ron::Term;
use pauc_traits::{Batch, Compute, ops};
use std::time::Instant;

// Registers the terms.
use pauc_losses as _;

fn matrix<D: Backend<f32>>(dev: &D, rows: usize, cols: usize, phase: f32) -> ops::Matrix<f32, D> {
    // A multiplicative generator: reproducible, and random enough for timing.
    let mut state = 1u64 + phase as u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    ops::constant(dev, (0..rows * cols).map(|_| next()).collect(), (rows, cols))
}

/// Returns unit rows without a gradient.
fn bank<D: Backend<f32>>(dev: &D, rows: usize, phase: f32) -> Constant<f32, D> {
    let unit = ops::to_host(&ops::l2_normalize(matrix(&Cpu::default(), rows, 128, phase))).unwrap();
    Constant::new(dev, unit, (rows, 128))
}

/// Returns a memory size of the process in MiB, where the system reports it: `VmRSS:` is the current,
/// `VmHWM:` the highest resident size.
fn memory(what: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(what))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// Times one term; `prepare` makes the inputs, which are not timed.
fn measure<D: Compute>(
    dev: &D,
    (what, threads): (&str, usize),
    text: &str,
    prepare: impl Fn(&D) -> Inputs<f32, D>,
) {
    let wanted = |a: &String| !a.starts_with('-') && !a.starts_with("cuda") && a.parse::<usize>().is_err();
    if std::env::args().skip(1).filter(wanted).any(|a| !what.contains(&a)) {
        return;
    }
    let term = Term::parse(text).unwrap();
    let made = prepare(dev);
    // Cloning tensors shares their storage.
    let inputs = || Inputs {
        views: made.views.clone(),
        keys: made.keys.clone(),
        queue: made.queue.clone(),
        levels: made.levels.clone(),
        ..Inputs::default()
    };
    let step = |inputs| {
        let batch = Batch::new(dev, inputs).unwrap();
        let value = term.evaluate(&batch).unwrap();
        std::hint::black_box(batch.backward(value).unwrap().views.len());
    };
    // The inputs are ready; any rise in memory from here on belongs to the term. Writing 5 resets the highest
    // size.
    let forgotten = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    let before = memory("VmRSS:").filter(|_| forgotten);
    (0..3).for_each(|_| step(inputs()));
    let own = before.zip(memory("VmHWM:")).map_or("null".into(), |(a, b)| format!("{:.1}", b - a));
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < 4.0 && times.len() < 300) {
        let inputs = inputs();
        let start = Instant::now();
        step(inputs);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{{\"what\": \"{what}\", \"device\": \"{}\", \"threads\": {threads}, \"ms_median\": {:.3}, \"ms_min\": {:.3}, \"runs\": {}, \"peak_mib\": {own}}}",
        dev.name(),
        times[times.len() / 2],
        times[0],
        times.len()
    );
}

fn main() {
    let threads = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(1);
    // The command line does the same.
    pauc_kernels::malloc::keep_freed();
    pauc_kernels::threads::start(threads).unwrap();
    if let Some(device) = std::env::args().find(|a| a.starts_with("cuda")) {
        on_gpu(&device, threads);
    } else {
        cases(&Cpu::default(), threads, 256);
    }
}

#[cfg(feature = "cuda")]
fn on_gpu(device: &str, threads: usize) {
    let number = device.trim_start_matches("cuda").trim_start_matches(':');
    cases(&pauc_cuda::open(number.parse().unwrap_or(0)).unwrap(), threads, 1024);
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(device: &str, _: usize) {
    panic!("{device}: this bench was built without the feature `cuda`");
}

/// All measurements, with `b` queries against banks.
fn cases<D: Compute>(dev: &D, threads: usize, b: usize) {
    measure(dev, ("InfoNCE two-sided 512x128", threads), "InfoNce(temperature: 0.2)", |dev| Inputs {
        views: vec![Some(matrix(dev, 256, 128, 1.0)), Some(matrix(dev, 256, 128, 2.0))],
        ..Inputs::default()
    });
    for m in [4096, 65536] {
        let what = format!("InfoNCE {b}x128, queue {m}");
        measure(dev, (&what, threads), "InfoNce(negatives: Queue)", |dev| Inputs {
            views: vec![Some(matrix(dev, b, 128, 1.0))],
            keys: vec![None, Some(matrix(dev, b, 128, 3.0))],
            queue: Some(bank(dev, m, 4.0)),
            ..Inputs::default()
        });
    }
    let what = format!("ProtoNCE {b}x128, 65536 prototypes");
    measure(dev, (&what, threads), "ProtoNce()", |dev| Inputs {
        views: vec![Some(matrix(dev, b, 128, 1.0))],
        levels: vec![Level {
            centroids: bank(dev, 65536, 5.0),
            concentration: (0..65536).map(|j| 0.15 + 0.1 * (j % 100) as f32 / 100.0).collect(),
            assignments: (0..b as u32).map(|i| Some(i * 251 % 65536)).collect(),
            queue_assignments: Vec::new(),
            negatives: None,
        }],
        ..Inputs::default()
    });
}
