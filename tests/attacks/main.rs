//! Attacks: whatever a recipe, an argument, a file or a checkpoint contains, the program answers with a result
//! or with an error that has a code and a place. It never panics, aborts or takes memory that it did not
//! announce.
//!
//! One module per kind of attack. Each draws its cases from a fixed seed. `PAUC_TEST_SEED` changes the seed,
//! and `PAUC_ATTACKS` the number of cases.
#![allow(clippy::unwrap_used)] // the whole file is a test

#[path = "../common/mod.rs"]
mod common;
mod consoles;
mod data;
mod mutate;
mod recipes;
mod targets;

/// Returns the number of cases for an attack that usually makes `usual`.
fn count(usual: usize) -> usize {
    match std::env::var("PAUC_ATTACKS") {
        Err(_) => usual,
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("PAUC_ATTACKS={text:?} is not a number of cases")),
    }
}
