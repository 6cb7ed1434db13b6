//! CPU kernels over slices.
//!
//! This crate and `pauc-cuda` are the only ones with `unsafe` code; all other library crates forbid it.
//! Neither knows about recipes.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! Every kernel has a scalar reference in its tests, gives the same bits for every number of threads, and
//! runs on any x86-64 or aarch64 machine. Faster instructions are chosen at run time.
//!
//! | module | contents |
//! |---|---|
//! | [`simd`] | detection of the machine's instructions, and vectors of each kind |
//! | [`buffer`], [`layout`] | aligned buffers; feature maps, channels last, with a halo of zeros |
//! | [`threads`] | work in fixed portions, shared by any number of threads |
//! | `microkernel` | the register-tiled product underlying convolutions |
//! | [`conv`] | convolutions, direct and Winograd's, with both gradients |
//! | [`depthwise`] | depthwise 7×7 convolutions, with both gradients |
//! | [`layer_norm`], `gelu`, `swiglu` | layer normalization of rows; GELU and SwiGLU |
//! | `product` | products of many portions of rows with one packed matrix |
//! | [`residual`] | the last layer of a residual branch |
//! | [`inverted_bottleneck`], [`attention`] | residual branches of ConvNeXt and transformers, fused over rows |
//! | [`norm`] | batch normalization fused with residual and ReLU |
//! | [`patches`] | convolutions whose windows do not overlap, as products of matrices |
//! | [`pool`] | maximum and average pooling |
//! | [`gemm`] | products of whole matrices |
//! | [`linear`] | fully connected layers |
//! | [`mmap`] | memory-mapped files |
//! | [`malloc`] | settings of the allocator |
//! | [`distance`] | nearest centroids, with candidates from 8-bit products |
//! | [`neighbor_forces`] | the forces between the points of a t-SNE |
//! | [`softmax`] | softmax cross-entropy against large banks, streamed |
//! | [`optim`] | moving averages, norms, optimizer passes |
//! | [`precision`] | the precision of products on a GPU |

// A lane number indexes several arrays at once, which an iterator over one of them would hide.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![allow(clippy::needless_range_loop)]

pub mod attention;
pub mod buffer;
pub mod conv;
pub mod depthwise;
pub mod distance;
mod gelu;
pub mod gemm;
pub mod inverted_bottleneck;
pub mod layer_norm;
pub mod layout;
pub mod linear;
pub mod malloc;
mod microkernel;
pub mod mmap;
pub mod neighbor_forces;
pub mod norm;
pub mod optim;
pub mod patches;
pub mod pool;
pub mod precision;
mod product;
pub mod residual;
pub mod simd;
pub mod softmax;
mod swiglu;
pub mod threads;
