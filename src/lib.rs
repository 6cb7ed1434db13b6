//! pauc: contrastive and prototypical self-supervised learning as components.
//!
//! This crate re-exports the crates of the workspace and links all of their components: a program with `use
//! pauc as _;` can run any recipe. The traits for new components are in [`traits`]. A recipe becomes a run
//! through [`train`]: [`Plan::parse`](train::Plan::parse), [`Trainer::new`](train::Trainer::new) and
//! [`Trainer::train`](train::Trainer::train), with an [`Observer`](train::Observer) that receives the events.
//! `examples/library.rs` is a complete program.
//!
//! ```
//! use pauc::traits::component_ron::Term;
//!
//! let term = Term::parse("InfoNce(temperature: 0.2)")?;
//! assert_eq!(term.name(), "InfoNce");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Stability
//!
//! Releases follow semantic versioning for [`traits`], for the items that [`train`] re-exports at its root
//! ([`Plan`](train::Plan), [`Trainer`](train::Trainer), [`Observer`](train::Observer), …), and for the names
//! of components and their fields in recipes. Other modules are public because the command line uses them.
//! They may change in any release.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub use pauc_cluster as cluster;
#[cfg(feature = "cuda")]
pub use pauc_cuda as cuda;
pub use pauc_data as data;
pub use pauc_distributed as distributed;
pub use pauc_kernels as kernels;
pub use pauc_losses as losses;
pub use pauc_models as models;
pub use pauc_probes as probes;
pub use pauc_report as report;
pub use pauc_train as train;
pub use pauc_traits as traits;

pub use dfdx;
