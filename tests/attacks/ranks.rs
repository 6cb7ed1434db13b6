//! Ranks that are killed or asked to stop at random moments: all ranks end, no file is damaged, and the run that is
//! resumed on another number of ranks has the files of an undisturbed one.

use crate::common::jobs::{on, output, ranks};
use crate::common::{PATIENCE, pauc, processes};
use crate::scenes::{Files, difference};
use crate::{count, mini};
use pauc_testing::mpi::Launcher;
use pauc_testing::{property, random::Random};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What happens to a rank.
const SIGNALS: [&str; 4] = ["KILL", "KILL", "USR1", "TERM"];

/// Returns the arguments of the short run in four shards.
fn run(out: &Path) -> Vec<String> {
    let shards = ["--set", "train.shards=4", "--set", "train.epochs=4"].map(String::from);
    [mini::run(out), shards.to_vec()].concat()
}

fn again(out: &Path) -> Vec<String> {
    match mini::folder(out).filter(|folder| folder.join("run.json").exists()) {
        Some(_) => mini::again(out),
        None => run(out),
    }
}

/// Starts ranks, sends a signal to one of them, and waits until all have ended.
fn disturb(
    launcher: &Launcher,
    size: usize,
    out: &Path,
    delay: Duration,
    random: &mut Random,
) -> Result<(), String> {
    let mut command = on(launcher, size, again(out));
    let mut job = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    let all = ranks(out);
    if !all.is_empty() {
        let (signal, rank) = (SIGNALS[random.below(SIGNALS.len())], all[random.below(all.len())]);
        // It may have ended in the meantime.
        let _ = Command::new("kill").args(["-s", signal, &rank.to_string()]).output().unwrap();
    }
    let began = Instant::now();
    job.wait().unwrap();
    while !processes(out).is_empty() {
        if began.elapsed() > PATIENCE {
            return Err(format!("these processes are left: {:?}", processes(out)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    mini::damage(out).map_or(Ok(()), Err)
}

/// Disturbs a run once or several times, and lets another number of ranks finish it.
fn attack(launcher: &Launcher, case: usize, time: Duration, wanted: &Files) -> Result<(), String> {
    let mut random = Random::new(property::seed(), case as u64);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    std::fs::create_dir(&out).unwrap();
    loop {
        let delay = time.mul_f64(random.below(1_100) as f64 / 1_000.0);
        disturb(launcher, [2, 4][random.below(2)], &out, delay, &mut random)?;
        if !random.one_in(3) {
            break;
        }
    }
    let size = [1, 2, 4][random.below(3)];
    let finished = output(&mut on(launcher, size, again(&out)));
    if finished.code != 0 {
        return Err(format!("code {} on {size} ranks: {}", finished.code, finished.stderr));
    }
    // A run that is asked to stop saves one checkpoint more.
    let found = mini::without_steps(&mini::files(&out));
    difference(&mini::without_steps(wanted), &found).map_or(Ok(()), Err)
}

#[test]
fn a_disturbed_rank_costs_nothing_but_time() {
    let Some(launcher) = Launcher::all("a_disturbed_rank_costs_nothing_but_time").into_iter().next() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    assert_eq!(pauc(run(&out)).code, 0);
    let wanted = mini::files(&out);
    let ranks = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let done = output(&mut on(&launcher, 2, run(&ranks.path().join("runs"))));
    assert_eq!(done.code, 0, "{}", done.stderr);
    let time = began.elapsed();
    let cases = count(4);
    let attack =
        |case| attack(&launcher, case, time, &wanted).err().map(|wrong| format!("case {case}: {wrong}"));
    let wrong: Vec<String> = (0..cases).filter_map(attack).collect();
    let seed = property::seed();
    assert!(
        wrong.is_empty(),
        "{} of {cases}, with PAUC_TEST_SEED={seed}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
