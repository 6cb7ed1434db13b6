//! pauc on CUDA compared with the CPU. These tests need a GPU or the emulated one.
#![allow(clippy::unwrap_used)] // test helpers

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
    pauc::cuda::open(0).unwrap_or_else(|e| panic!("these tests need a GPU or the emulated one: {e}"))
}

/// A smooth pattern without symmetries.
fn pattern(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| ((phase + 1.7 * i as f64).sin() + 0.3 * (0.37 * i as f64).cos()) as f32).collect()
}

/// Adds a relative error of `size` to every number, up or down at random.
fn shaken(values: Vec<f32>, size: f64, draw: u64) -> Vec<f32> {
    let mut perturbation = Perturbation::new(size, draw);
    values.into_iter().map(|v| perturbation.apply(f64::from(v)) as f32).collect()
}

/// Six standard deviations of an error that is uniform within ±1.
const EVENLY: f64 = tolerance::SIGMAS / 1.732_050_8;

/// Bounds the error of a sum of `n` terms in `f32` by six standard deviations, given the sum and the sum of
/// the terms' squares.
///
/// Each addition has a uniform error of at most u times the partial sum. In any order, partial sums have a
/// mean square of about S²/3 + Q/6, so all additions together deviate by u·√(n/3·(S²/3 + Q/6)). Tensor cores
/// round toward zero, but once per eight products: that bias, n/8 times half a unit of half of S, is less
/// than six deviations for a thousand terms.
fn long_sum(n: usize, sum: f64, squares: f64) -> f64 {
    EVENLY * tolerance::UNIT_F32 * (n as f64 * (sum * sum / 3.0 + squares / 6.0)).sqrt()
}
