//! The CUDA side of pauc. Empty unless the feature `cuda` is on.
//!
//! | module | what lives there |
//! |---|---|
//! | `library`, `link` | NVIDIA's libraries, loaded when they are first needed, and cudarc's way to them |
//! | `probe` | what is there: GPUs, drivers, libraries; and the device of a number |
//! | `context` | what belongs to one device: compiled kernels and handles of libraries |
//! | `memory` | buffers of the device, and the addresses of dfdx's tensors |
//! | `kernels` | CUDA C++, compiled at run time; one source for GPUs and for the emulated device of tests |
//! | `elementwise`, `many` | sums and copies; moving averages, norms and optimiser steps of all parameters in one pass |
//! | `field` | feature maps: shapes, memory, elements |
//! | `conv`, `norm`, `maps` | convolutions, batch normalisation with residual and ReLU, pooling |
//! | `distance` | nearest centroids, means of rows |
//! | `neighbours`, `regression` | the search and the regression behind probes |
//! | `tokens` | layer normalisation, heads, attention's softmax, GELU |
//! | `softmax` | cross-entropy against large banks, tile by tile |
//! | `upload` | images, in 8 bits, without waiting |
//! | `events` | times of the device's own work |
//! | `rows` | products of matrices, biases, sums of columns |
//!
//! Like `pauc-kernels` for the CPU, this crate knows neither recipes nor components, and keeps `unsafe` to itself.
//! Everything runs on the one stream of dfdx's device, in the order in which it is asked for.

#![cfg(feature = "cuda")]

pub mod context;
pub mod conv;
pub mod distance;
pub mod elementwise;
pub mod error;
pub mod events;
pub mod field;
mod halves;
mod kernels;
pub mod library;
mod link;
pub mod many;
pub mod maps;
pub mod memory;
pub mod neighbours;
pub mod norm;
pub mod probe;
pub mod regression;
pub mod rows;
pub mod softmax;
pub mod tokens;
pub mod upload;

pub use context::Context;
pub use error::{Error, Result};
pub use memory::{Buffer, View};
pub use probe::{Gpu, Unavailable, gpus, open};
