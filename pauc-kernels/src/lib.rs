//! CPU kernels over slices.
//!
//! This crate and `pauc-cuda` are the only homes of `unsafe` code: the libraries of all other crates forbid it. Neither knows
//! of recipes.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! Every kernel has a scalar reference in its tests, gives the same bits for every number of threads, and runs on
//! any x86-64 or aarch64 machine; faster instructions are chosen at run time.
//!
//! | module | what lives there |
//! |---|---|
//! | [`simd`] | which instructions the machine has, and vectors of each kind |
//! | [`buffer`], [`layout`] | aligned buffers; feature maps, channels last, with a halo of zeros |
//! | [`threads`] | work in fixed portions, shared by any number of threads |
//! | `microkernel` | the register-tiled product that convolutions are made of |
//! | [`conv`] | convolutions, direct and Winograd's, with both gradients |
//! | [`norm`] | batch normalization fused with residual and ReLU |
//! | [`pool`] | maximum and average pooling |
//! | [`gemm`] | products of whole matrices |
//! | [`linear`] | fully connected layers |
//! | [`mmap`] | files as memory |
//! | [`malloc`] | what becomes of freed memory |
//! | [`distance`] | nearest centroids |
//! | [`neighbor_forces`] | what pulls and pushes the points of a t-SNE |
//! | [`softmax`] | softmax cross-entropy against large banks, streamed |
//! | [`optim`] | moving averages, norms, optimizer passes |
//! | [`precision`] | how a GPU rounds products |

// A lane number indexes several arrays at once; an iterator over one of them would hide that.
#![allow(clippy::needless_range_loop)]

pub mod buffer;
pub mod conv;
pub mod distance;
pub mod gemm;
#[cfg(target_arch = "x86_64")]
pub mod layout;
pub mod linear;
pub mod malloc;
mod microkernel;
pub mod mmap;
pub mod neighbor_forces;
pub mod norm;
pub mod optim;
pub mod pool;
pub mod precision;
pub mod simd;
pub mod softmax;
pub mod threads;
