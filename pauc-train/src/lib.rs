//! From a recipe to a trained encoder.
//!
//! [`recipe`] is the language, [`recipe_text`] and [`diagnostic`] point into its text, [`check`] holds the rules across
//! fields. [`plan`] adds the opened data; [`engine`] is the training loop on a plan; [`run`] puts a folder, a log
//! and a report around it; [`export`] takes the encoder out of it, [`mod@bench`] times its step. [`objective`],
//! [`prototypes`], [`queue`] and [`evaluate`] are the loop's parts. [`term`] and [`mod@cluster`] run one component on
//! tensors of a file. [`mod@compare`] puts runs beside each other, [`reproduce`]
//! puts one beside what is stored of its recipe, [`sweep`] names many runs of one recipe. [`saved_run`] opens a run again, [`mod@embed`] writes what its network makes of images.

pub mod bench;
pub mod check;
pub mod checkpoint;
pub mod cluster;
pub mod codes;
pub mod compare;
pub mod diagnostic;
pub mod embed;
pub mod engine;
pub mod evaluate;
pub mod explain;
pub mod export;
mod health;
mod lock;
pub mod log_sinks;
pub mod objective;
mod picture;
pub mod plan;
mod postmortem;
mod prefetch;
mod probed_network;
pub mod progress;
pub mod prototypes;
pub mod queue;
pub mod recipe;
pub mod recipe_text;
pub mod reproduce;
mod retention;
pub mod run;
pub mod run_dir;
pub mod saved_run;
pub mod statistics;
mod step;
pub mod sweep;
pub mod term;
