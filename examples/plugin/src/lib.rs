//! Components defined outside of pauc: one file each, with the same capabilities as pauc's own.
//!
//! `main.rs` is the whole binary: it links this crate and calls pauc's command line. `pauc-plugin-example
//! list` then shows the three components below, `explain` describes them, and recipes can use them.

pub mod grid_mean;
pub mod random_partition;
pub mod triplet;
