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
#[cfg(target_os = "linux")] // a library in front of libc
mod faults;
#[cfg(target_os = "linux")]
mod mini;
mod mutate;
mod recipes;
mod targets;

/// Returns the program, with an address space of `kibibytes` where that can be set.
fn limited(kibibytes: usize) -> std::process::Command {
    use std::process::Command;
    let program = env!("CARGO_BIN_EXE_pauc-cli");
    let mut command = if cfg!(target_os = "linux") {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -v {kibibytes} && exec \"$@\""), "sh", program]);
        shell
    } else {
        Command::new(program)
    };
    // Threads take address space.
    command.env("RAYON_NUM_THREADS", "2");
    command
}

/// Returns the number of cases of an attack that can make any number of them, and usually makes `usual`.
fn count(usual: usize) -> usize {
    share(usual, usual)
}

/// Returns the number of cases for an attack that usually makes `usual` out of `all`.
fn share(usual: usize, all: usize) -> usize {
    match std::env::var("PAUC_ATTACKS") {
        Err(_) => usual,
        Ok(text) if text == "all" => all,
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("PAUC_ATTACKS={text:?} is neither `all` nor a number"))
        }
    }
}
