//! The CUDA side of pauc. Empty unless the feature `cuda` is on.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! | module | contents |
//! |---|---|
//! | `library`, `shims` | NVIDIA's libraries, loaded when they are first needed, and the functions through which cudarc calls them |
//! | `probe` | what this machine has: GPUs, driver, libraries; opens a device by number |
//! | `context` | what belongs to one device: compiled kernels, handles of libraries |
//! | `kernels`, `kernel_args` | CUDA C++, compiled at run time; the arguments of launches, checked against it |
//! | `element` | element types of feature maps |
//! | `memory`, `tensor` | buffers of the device; dfdx's tensors as such |
//! | `dfdx_compat` | what takes more than dfdx's public interface, and a check that it works |
//! | `staging`, `upload` | pinned host memory for copies; images, uploaded in 8 bits |
//! | `elementwise`, `multi_tensor` | vectors; all vectors of a network in one launch: moving averages, norms, optimizer steps |
//! | `matmul`, `rows` | matrix products; operations on the rows of a matrix |
//! | `feature_map` | feature maps: shape, memory, conversions |
//! | `cudnn`, `conv`, `norm`, `pooling` | convolutions, batch normalization with residual and ReLU, pooling |
//! | `transformer` | layer normalization, attention heads and their softmax, GELU, tokens |
//! | `softmax`, `split_f16` | cross-entropy against large banks, tile by tile; its products on tensor cores |
//! | `distance`, `neighbors`, `regression` | nearest centroids; nearest neighbors and softmax regression for probes |
//! | `events` | timing of the device's own work |
//!
//! Like `pauc-kernels` for the CPU, this crate knows neither recipes nor components, and keeps `unsafe` to
//! itself. Everything runs on the one stream of dfdx's device, in the order in which it is launched. That a
//! buffer is freed on the host does not end its use: the driver frees it in the order of the stream.

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
pub use probe::{Gpu, Unavailable, gpus, open};
