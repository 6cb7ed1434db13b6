//! The CUDA side of pauc. Empty unless the feature `cuda` is on.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! | module | contents |
//! |---|---|
//! | `library`, `shims` | NVIDIA's libraries, loaded on first use, and the functions through which cudarc calls them |
//! | `probe` | the GPUs, driver and libraries of this machine; opens a device by number |
//! | `context` | the compiled kernels and library handles of one device |
//! | `kernels`, `kernel_args` | CUDA C++, compiled at run time; launch arguments, checked against it |
//! | `element` | element types of feature maps |
//! | `memory`, `tensor` | device buffers; dfdx's tensors as buffers |
//! | `dfdx_compat` | access to dfdx beyond its public interface, and a check that it works |
//! | `staging`, `upload` | pinned host memory for copies; 8-bit uploads of images |
//! | `elementwise`, `multi_tensor` | vectors; all vectors of a network in one launch: moving averages, norms, optimizer steps |
//! | `matmul`, `rows` | matrix products; operations on the rows of a matrix |
//! | `feature_map` | feature maps: shape, memory, conversions |
//! | `cudnn`, `conv`, `norm`, `pooling` | convolutions, batch normalization with residual and ReLU, pooling |
//! | `transformer` | layer normalization, attention heads and their softmax, GELU, tokens |
//! | `softmax`, `split_f16` | cross-entropy against large banks, one tile at a time; its products on tensor cores |
//! | `distance`, `neighbors`, `regression` | nearest centroids; nearest neighbors and softmax regression for probes |
//! | `nccl` | transfers between the GPUs of several processes |
//! | `events` | timing of the device's work |
//!
//! Like `pauc-kernels` for the CPU, this crate knows neither recipes nor components, and keeps `unsafe` to
//! itself. Everything runs on the single stream of dfdx's device, in launch order. The host may drop a buffer
//! that is still in use: the driver frees it in stream order.

#![deny(clippy::print_stdout, clippy::print_stderr)]
#![cfg(feature = "cuda")]

pub mod context;
pub mod conv;
mod cudnn;
mod dfdx_compat;
pub mod distance;
mod element;
pub mod elementwise;
pub mod error;
pub mod events;
pub mod feature_map;
mod kernel_args;
mod kernels;
pub mod library;
pub mod matmul;
pub mod memory;
pub mod multi_tensor;
pub mod nccl;
pub mod neighbors;
pub mod norm;
pub mod pooling;
pub mod probe;
pub mod regression;
pub mod rows;
mod shims;
pub mod softmax;
mod split_f16;
mod staging;
pub mod tensor;
pub mod transformer;
pub mod upload;

pub use context::Context;
pub use element::Element;
pub(crate) use error::same_length;
pub use error::{Error, Result};
pub use memory::{Buffer, View, ViewMut};
pub use pauc_kernels::precision::Precision;
pub use probe::{Gpu, Unavailable, gpus, open, unique_number};
