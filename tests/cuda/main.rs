//! What pauc does on CUDA beside the CPU. These tests need a GPU, or an emulated one.
#![allow(clippy::unwrap_used)] // helpers of tests

mod clusters;
#[path = "../common/mod.rs"]
mod common;
mod layers;
mod memory;
mod networks;
mod probes;
mod runs;
mod softmax;

use pauc::dfdx::prelude::*;
use pauc_testing::inputs::Perturbation;
use pauc_testing::tolerance;

fn device() -> Cuda {
    pauc::cuda::open(0).unwrap_or_else(|e| panic!("these tests need a GPU, or an emulated one: {e}"))
}

/// A smooth pattern without symmetries.
fn pattern(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| ((phase + 1.7 * i as f64).sin() + 0.3 * (0.37 * i as f64).cos()) as f32).collect()
}

/// Numbers that are all off by `size`, relative, each up or down by chance.
fn shaken(values: Vec<f32>, size: f64, draw: u64) -> Vec<f32> {
    let mut perturbation = Perturbation::new(size, draw);
    values.into_iter().map(|v| perturbation.apply(f64::from(v)) as f32).collect()
}

/// Six standard deviations of an error that lies evenly within ±1.
const EVENLY: f64 = tolerance::SIGMAS / 1.732_050_8;

/// How far a sum of `n` terms in `f32` may be off: six standard deviations, given the sum and that of the
/// terms' squares.
///
/// Each addition is off by at most u times the sum so far, evenly. In any order, the sums so far have a mean
/// square of about S²/3 + Q/6, so that all additions together deviate by u·√(n/3·(S²/3 + Q/6)). Tensor cores
/// round towards zero, but eight products at once: that shift, n/8 times half a unit of half of S, is less
/// than six deviations for a thousand terms.
fn long_sum(n: usize, sum: f64, squares: f64) -> f64 {
    EVENLY * tolerance::UNIT_F32 * (n as f64 * (sum * sum / 3.0 + squares / 6.0)).sqrt()
}
