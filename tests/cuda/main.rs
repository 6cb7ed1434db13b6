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

fn device() -> Cuda {
    pauc::cuda::open(0).unwrap_or_else(|e| panic!("these tests need a GPU, or an emulated one: {e}"))
}

/// A smooth pattern without symmetries.
fn pattern(n: usize, phase: f64) -> Vec<f32> {
    (0..n).map(|i| ((phase + 1.7 * i as f64).sin() + 0.3 * (0.37 * i as f64).cos()) as f32).collect()
}

fn norm(v: impl Iterator<Item = f64>) -> f64 {
    v.map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖a − b‖/‖b‖, with a floor for a b that vanishes but for rounding.
fn distance_above(floor: f64, a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let off = norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    off / norm(b.iter().map(|b| f64::from(*b))).max(floor)
}
