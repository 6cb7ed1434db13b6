//! From a recipe to a trained encoder.
//!
//! Internal to pauc, except the items listed under *Re-exports*, which `pauc::train` exports: any release may
//! change the rest. Programs depend on `pauc`.
//!
//! [`recipe`] defines the language; [`recipe_text`] and [`diagnostic`] point into its text; [`check`] has the
//! rules across fields. [`plan`] adds the opened data. [`state`] is what a run learns and a checkpoint
//! stores; [`trainer`] is the training loop on a plan and a state; [`run`] adds a folder, a log and a report, [`mod@resume`]
//! continues it, [`branch`] from any of its checkpoints and with a changed recipe, of which [`history`] has all.
//! [`export`] writes the encoder of a run, [`mod@bench`] times its step. [`objective`], [`prototypes`],
//! [`queue`], [`term_gradients`] and [`evaluate`] are parts of the loop. [`term`] and [`mod@cluster`] run one component on the
//! tensors in a file. [`mod@compare`] compares runs, [`side_by_side`] reads them for one page,
//! [`reproduce`] compares a run with stored metrics,
//! [`suggest`] writes a recipe for a dataset, [`sweep`] plans many runs of one recipe. [`saved_run`] opens an existing run, [`rebuild`] repairs what describes it, [`data_issues`] looks for
//! leaked images and wrong labels, [`data_identity`] tells
//! whether its data changed, and [`mod@embed`] writes its
//! embeddings of images. [`atlas`] draws a map of them.
//!
//! Internally, `step` is one optimizer step and `batch_pass` takes one batch through the networks, the terms
//! and back: state ← batch_pass ← step ← trainer ← run.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub mod atlas;
mod batch_pass;
pub mod bench;
pub mod branch;
pub mod check;
pub mod checkpoint;
pub mod cluster;
pub mod codes;
pub mod compare;
pub mod data_identity;
pub mod data_issues;
pub mod diagnostic;
mod e_step;
pub mod embed;
pub mod evaluate;
mod evidence;
pub mod explain;
pub mod export;
mod gradient_tree;
mod health;
pub mod history;
mod inspection;
mod lock;
pub mod log_sinks;
pub mod memory;
pub mod neighbors;
pub mod network_input;
pub mod objective;
pub mod observer;
mod phase;
mod picture;
pub mod plan;
mod postmortem;
mod prefetch;
mod probed_network;
mod probing;
pub mod progress;
pub mod prototypes;
pub mod queue;
mod ranks;
pub mod rebuild;
pub mod recipe;
pub mod recipe_text;
pub mod reproduce;
pub mod resume;
mod retention;
mod rows_by_view;
pub mod run;
pub mod run_dir;
pub mod saved_run;
mod selection;
pub mod side_by_side;
pub mod start;
pub mod state;
pub mod statistics;
mod step;
mod step_batch;
mod step_log;
mod step_trace;
pub mod suggest;
mod suspects;
pub mod sweep;
pub mod term;
pub mod term_gradients;
mod timings;
pub mod trainer;

// The items that a training program uses most; everything else is under its module.
pub use evaluate::Embedded;
pub use observer::{Observer, Progress};
pub use pauc_report::events::Event;
pub use plan::{Plan, PlanError};
pub use recipe::Recipe;
pub use run::{Outcome, RunError, RunOptions};
pub use run_dir::RunDir;
pub use trainer::{Ending, Trainer};
