//! From a recipe to a trained encoder.
//!
//! Internal to pauc, except what this page lists under *Re-exports*, which `pauc::train` hands on: any release may
//! change the rest. Programs depend on `pauc`.
//!
//! [`recipe`] is the language, [`recipe_text`] and [`diagnostic`] point into its text, [`check`] holds the rules across
//! fields. [`plan`] adds the opened data. [`state`] is what a run learns and a checkpoint holds; [`trainer`] is the
//! training loop on a plan and a state; [`run`] puts a folder, a log and a report around it. [`export`] takes the
//! encoder out of a run, [`mod@bench`] times its step. [`objective`], [`prototypes`], [`queue`] and [`evaluate`] are
//! parts of the loop. [`term`] and [`mod@cluster`] run one component on tensors of a file. [`mod@compare`] puts runs
//! beside each other, [`reproduce`] compares one with what is stored for its recipe, [`sweep`] makes many runs of one
//! recipe. [`saved_run`] opens a run again, and [`mod@embed`] writes its network's embeddings of images.
//!
//! Inside, `step` is one optimizer step and `batch_pass` takes one batch through the networks, the terms and back:
//! state ← batch_pass ← step ← trainer ← run.
#![forbid(unsafe_code)]

mod batch_pass;
pub mod bench;
pub mod check;
pub mod checkpoint;
pub mod cluster;
pub mod codes;
pub mod compare;
pub mod diagnostic;
mod e_step;
pub mod embed;
pub mod evaluate;
pub mod explain;
pub mod export;
mod health;
mod lock;
pub mod log_sinks;
pub mod objective;
pub mod observer;
mod picture;
pub mod plan;
mod postmortem;
mod prefetch;
mod probed_network;
mod probing;
pub mod progress;
pub mod prototypes;
pub mod queue;
pub mod recipe;
pub mod recipe_text;
pub mod reproduce;
mod retention;
mod rows_by_view;
pub mod run;
pub mod run_dir;
pub mod saved_run;
mod selection;
pub mod state;
pub mod statistics;
mod step;
mod step_batch;
mod step_log;
mod step_trace;
pub mod sweep;
pub mod term;
mod timings;
pub mod trainer;

// What a program that trains names first; everything else is under the module that makes it.
pub use evaluate::Embedded;
pub use observer::{Observer, Progress};
pub use pauc_report::events::Event;
pub use plan::{Plan, PlanError};
pub use recipe::Recipe;
pub use run::{Outcome, RunError, RunOptions};
pub use run_dir::RunDir;
pub use trainer::{Ending, Trainer};
