//! Contrastive losses and regularizers, one file each.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! | folder | terms |
//! |---|---|
//! | [`contrastive`] | losses that compare queries with candidates, or predict targets |
//! | [`regularizers`] | penalties on how embeddings or prototypes are distributed |
//! | [`rows`] | the row operations that several terms share |
//! | [`sphere`] | expectations over random unit vectors, for chance levels |
//! | [`findings`] | the problems that the rules of terms report about a recipe, by code |
//!
//! Every term is written in dfdx operations, for every element type and device. A plugin crate writes its
//! terms in the same way. [`InfoNce`] and [`ProtoNce`] have a second implementation, `fused`. It computes the
//! same values through [`pauc_traits::softmax::SoftmaxKernels`] if the device has them. It is also generic
//! over devices, and tests compare it with the first.
//!
//! # Sources of the prototype terms
//! *Rethinking Prototypical Contrastive Learning through Alignment, Uniformity and Correlation* (Mo, Sun and
//! Li, BMVC 2022, arXiv 2210.10194) names three prototype-level terms in its abstract. [`Alignment`],
//! [`Uniformity`] and [`Correlation`] at `level: Prototypes` are this project's reading of that abstract.
//! They are built from Wang and Isola, Barlow Twins, PCL and ProPos. Where several readings are possible, a
//! setting selects between them.
//!
//! [`InfoNce`]: contrastive::InfoNce
//! [`ProtoNce`]: contrastive::ProtoNce
//! [`Alignment`]: regularizers::Alignment
//! [`Uniformity`]: regularizers::Uniformity
//! [`Correlation`]: regularizers::Correlation
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub mod contrastive;
pub mod findings;
#[cfg(all(test, feature = "cuda"))]
mod on_cuda;
pub mod regularizers;
pub mod rows;
pub mod sphere;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;
