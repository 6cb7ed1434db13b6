//! Components from outside pauc: one file each, with the same powers as pauc's own.
//!
//! `main.rs` is the whole binary: it links this crate and calls pauc's command line. Then
//! `pauc-plugin-example list` shows the three components below, `explain` explains them, and recipes use them.

pub mod grid_mean;
pub mod random_partition;
pub mod triplet;
