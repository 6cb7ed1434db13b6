//! pauc: contrastive and prototypical self-supervised learning as components.
//!
//! This crate is the front door: it re-exports the workspace's crates and links all of their components, so that
//! a program with `use pauc as _;` can run any recipe. The traits to implement are in [`traits`]; a recipe becomes
//! a run through [`train`]: [`Plan::parse`](train::Plan::parse), [`Trainer::new`](train::Trainer::new) and
//! [`Trainer::train`](train::Trainer::train), watched by an [`Observer`](train::Observer). `examples/library.rs` is
//! a whole program.
//!
//! ```
//! use pauc::traits::component_ron::Term;
//!
//! let term = Term::parse("InfoNce(temperature: 0.2)")?;
//! assert_eq!(term.name(), "InfoNce");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is stable
//!
//! Releases follow semantic versioning for [`traits`], for what [`train`] re-exports at its root
//! ([`Plan`](train::Plan), [`Trainer`](train::Trainer), [`Observer`](train::Observer), …) and for the names of
//! components with their fields in recipes. Other modules are public because the command line is built on them, and
//! may change in any release.
#![forbid(unsafe_code)]

pub use pauc_cluster as cluster;
#[cfg(feature = "cuda")]
pub use pauc_cuda as cuda;
pub use pauc_data as data;
pub use pauc_kernels as kernels;
pub use pauc_losses as losses;
pub use pauc_models as models;
pub use pauc_probes as probes;
pub use pauc_report as report;
pub use pauc_train as train;
pub use pauc_traits as traits;

pub use dfdx;
