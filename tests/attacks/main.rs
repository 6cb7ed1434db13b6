//! Attacks: whatever a recipe, an argument, a file or a checkpoint contains, the program answers with a result
//! or with an error that has a code and a place. It never panics, aborts or takes memory that it did not
//! announce.
//!
//! One module per kind of attack. Each draws its cases from a fixed seed. `PAUC_TEST_SEED` changes the seed,
//! and `PAUC_ATTACKS` the number of cases.
#![allow(clippy::unwrap_used)] // the whole file is a test

use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../common/mod.rs"]
mod common;
mod consoles;
mod data;
#[cfg(target_os = "linux")] // a library in front of libc
mod faults;
#[cfg(target_os = "linux")] // a list of processes
mod kills;
#[cfg(target_os = "linux")] // `prlimit`
mod limits;
#[cfg(target_os = "linux")]
mod mini;
mod mutate;
#[cfg(target_os = "linux")] // a list of processes
mod ranks;
mod recipes;
#[cfg(target_os = "linux")]
mod scenes;
#[cfg(target_os = "linux")] // numbers of signals
mod signals;
mod targets;
#[cfg(target_os = "linux")]
mod two_processes;

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

/// Attacks with each case, on all cores. Returns what went wrong, in the order of the cases.
fn wrong_cases<T: Sync>(cases: &[T], attack: impl Fn(&T) -> Option<String> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut wrong = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(number) else { return wrong };
            wrong.extend(attack(case).map(|what| (number, what)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut wrong: Vec<(usize, String)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    wrong.sort();
    wrong.into_iter().map(|(_, what)| what).collect()
}
