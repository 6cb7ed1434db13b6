//! The core of pauc: the definition of components, and the data that they may read.
//!
//! A *component* is anything that a recipe can name: an encoder, a clusterer, a contrastive loss, a
//! regularizer, a dataset, an augmentation, an optimizer, a probe. Each is one struct, declared with
//! [`component!`]. Its fields are its recipe syntax, its doc comment is its help text, and its trait
//! implementation is its behavior. The registry collects components at link time from every crate, in this
//! workspace or outside.
//!
//! | module | contents |
//! |---|---|
//! | [`backend`] | devices: [`Backend`], [`Compute`], [`Scalar`] |
//! | `cpu`, `cuda` | dfdx's devices, and the operations that are faster than in dfdx |
//! | [`softmax`] | kernels for terms with a softmax, on devices that have them |
//! | [`batch`] | the inputs of a term: [`Batch`], its views, keys, queue, cluster levels and batch prototypes |
//! | [`term`] | [`ContrastiveLoss`], [`Regularizer`], their needs and chance levels |
//! | [`encoder`], [`param`] | [`Encoder`], its parameters and gradients |
//! | [`shards`] | passes of several parts of a batch that are normalized together |
//! | [`graph`] | an encoder as a graph of operators, for export |
//! | [`clusterer`] | [`Clusterer`] and the clusterings it returns |
//! | [`dataset`], [`image`] | datasets, image sources, augmentations |
//! | [`optimizer`], [`probe`] | optimizers with complete state, evaluation probes |
//! | [`kinds`], [`registry`], [`component_ron`], [`mod@component`] | the kinds of components, names to components, RON to components |
//! | [`bounded`], [`schedule`], [`temperature`] | validated numbers; durations and values that change during training |
//! | [`rng`] | counter-based random streams |
//! | [`label_fraction`] | fixed subsets of labeled data |
//! | [`atomic`], [`npy`] | files that are written completely or not at all; NumPy's array files |
//! | [`trace`] | timing of the stages of a step |
//! | [`ops`] | the few dfdx idioms that every term needs |
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

// Lets modules of this crate refer to it by name, as other crates do.
extern crate self as pauc_traits;

pub mod atomic;
pub mod backend;
pub mod batch;
pub mod bounded;
pub mod clusterer;
pub mod component;
pub mod component_ron;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dataset;
pub mod encoder;
pub mod error;
pub mod graph;
pub mod image;
pub mod kinds;
pub mod label_fraction;
pub mod learning_rate;
pub mod npy;
pub mod ops;
pub mod optimizer;
pub mod param;
pub mod probe;
pub mod progress;
pub mod registry;
pub mod rng;
pub mod ron_text;
pub mod schedule;
pub mod shards;
pub mod softmax;
pub mod stop;
pub mod temperature;
pub mod term;
pub mod trace;

pub use backend::{Backend, Compute, Scalar, Tape, Taped, Value};
pub use batch::Batch;
pub use bounded::{Count, DecayFactor, DropRate, NonNegative, Positive, UnitInterval};
pub use clusterer::{Clusterer, Clustering};
pub use component_ron::Configured;
pub use dataset::{Augmentation, Dataset};
pub use encoder::{BuildOptions, Encoder, EncoderConfig, NetworkSize, Pass};
pub use error::{Error, Result};
pub use image::{Image, ImageShape, Pixels};
pub use label_fraction::LabelFraction;
pub use learning_rate::LearningRate;
pub use optimizer::Optimizer;
pub use param::Param;
pub use probe::Probe;
pub use schedule::{Clock, Horizon, Scheduled, TrainingSpan};
pub use temperature::Temperature;
pub use term::{ContrastiveLoss, Needs, Regularizer, TermInfo};

/// Items that the [`component!`] macro expands to; not part of the public interface.
#[doc(hidden)]
pub mod private {
    pub use erased_serde;
    pub use inventory;
    pub use ron;
    pub use serde;
}
