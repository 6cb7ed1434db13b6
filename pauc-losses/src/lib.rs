//! Contrastive losses and regularizers, one file each.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! | folder | terms |
//! |---|---|
//! | [`contrastive`] | losses that compare queries with candidates, or predict targets |
//! | [`regularizers`] | penalties on how embeddings or prototypes are distributed |
//! | [`rows`] | the row operations that several terms share |
//! | [`sphere`] | expectations over random unit vectors: where a term starts |
//! | [`findings`] | what a term's rules can find wrong with a recipe, by code |
//!
//! Every term is written in dfdx operations, for every element type and device. A plugin crate writes its terms in
//! the same way. [`InfoNce`] and [`ProtoNce`] have a second function, `fused`, which computes the same through
//! [`pauc_traits::softmax::SoftmaxKernels`] where the device has them: it is generic over devices too, and tests
//! compare it with the first.
//!
//! # What the prototype terms are
//! *Rethinking Prototypical Contrastive Learning through Alignment, Uniformity and Correlation* (Mo, Sun and Li,
//! BMVC 2022, arXiv 2210.10194) names three prototype-level terms in its abstract. [`Alignment`], [`Uniformity`]
//! and [`Correlation`] at `level: Prototypes` are this project's reading of that abstract, built from Wang and
//! Isola, Barlow Twins, PCL and ProPos; where several readings are possible, each is one setting away.
//!
//! [`InfoNce`]: contrastive::InfoNce
//! [`ProtoNce`]: contrastive::ProtoNce
//! [`Alignment`]: regularizers::Alignment
//! [`Uniformity`]: regularizers::Uniformity
//! [`Correlation`]: regularizers::Correlation
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
