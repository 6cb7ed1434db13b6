//! Processes that are killed at random moments: no file is damaged, nothing stays locked, no process is left, and the
//! command that continues gives the bits and the events of an undisturbed run.
//!
//! The seed draws the command, and the moment as a share of the time that it usually takes. The clock decides what the
//! process is doing at that moment, but no assertion depends on it.

use crate::common::{PATIENCE, Running, pauc, processes};
use crate::scenes::{self, Files, Stage, Verb, difference};
use crate::{count, mini, wrong_cases};
use pauc_testing::{property, random::Random};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A command that can be killed again and again.
struct Victim {
    stage: Stage,
    /// How long it takes if nobody kills it.
    time: Duration,
    /// The files that it leaves.
    wanted: Files,
}

impl Victim {
    fn new(scene: &'static scenes::Scene) -> Self {
        let stage = Stage::new(scene);
        let (_folder, out) = stage.set();
        let began = Instant::now();
        let output = pauc(scene.attacked.arguments(&out));
        let time = began.elapsed();
        assert_eq!(output.code, 0, "{}: {}", scene.name, output.stderr);
        Victim { stage, time, wanted: mini::files(&out) }
    }

    /// Kills the command after this share of its time, and sometimes also the one that continues. Returns what the
    /// run had logged last.
    fn kill(&self, random: &mut Random) -> Result<String, String> {
        let (_folder, out) = self.stage.set();
        let verb = self.stage.scene.attacked;
        let mut arguments = verb.arguments(&out);
        loop {
            let share = random.below(1_100) as f64 / 1_000.0;
            kill_after(&arguments, self.time.mul_f64(share), &out)?;
            if let Some(damage) = mini::damage(&out) {
                return Err(damage);
            }
            arguments = verb.again(&out);
            if !random.one_in(4) {
                break;
            }
        }
        let last = last_event(&out);
        let output = pauc(&arguments);
        if output.code != 0 || output.stderr.contains("unusable") {
            return Err(format!("and then code {}: {}", output.code, output.stderr));
        }
        // The runs of a killed sweep are asked to stop.
        let compared = if verb == Verb::Sweep { mini::without_steps } else { Files::clone };
        match difference(&compared(&self.wanted), &compared(&mini::files(&out))) {
            None => Ok(last),
            Some(difference) => Err(format!("killed after {last}: {difference}")),
        }
    }
}

/// Starts the program, kills it after `delay`, and waits for the processes that it had started.
fn kill_after(arguments: &[String], delay: Duration, out: &Path) -> Result<(), String> {
    let mut process = Running::start(arguments);
    std::thread::sleep(delay);
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    wait_for_the_last(out)
}

/// Waits until no process is left that works below `out`.
fn wait_for_the_last(out: &Path) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let left = processes(out);
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("these processes are left: {left:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the name of the last event below `out`, or where the run was before the first.
fn last_event(out: &Path) -> String {
    let Some(folder) = mini::folder(out) else { return "nothing".into() };
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let event =
        |line| Some(serde_json::from_str::<serde_json::Value>(line).ok()?["event"].as_str()?.to_string());
    text.lines().rev().find_map(event).unwrap_or_else(|| "the folder".into())
}

#[test]
fn a_killed_command_costs_nothing_but_time() {
    let victims: Vec<Victim> = scenes::ALL.iter().map(Victim::new).collect();
    let kills: Vec<usize> = (0..count(35)).collect();
    let phases = Mutex::new(BTreeMap::<String, usize>::new());
    let wrong = wrong_cases(&kills, |&case| {
        let mut random = Random::new(property::seed(), case as u64);
        let victim = &victims[case % victims.len()];
        let name = victim.stage.scene.name;
        match victim.kill(&mut random) {
            Ok(last) => {
                *phases.lock().unwrap().entry(format!("{name} after {last}")).or_default() += 1;
                None
            }
            Err(wrong) => Some(format!("kill {case}, of {name}: {wrong}")),
        }
    });
    println!("{} kills: {:#?}", kills.len(), phases.lock().unwrap());
    assert!(
        wrong.is_empty(),
        "{} of {}, with PAUC_TEST_SEED={}:\n{}",
        wrong.len(),
        kills.len(),
        property::seed(),
        wrong.join("\n")
    );
}

#[test]
fn the_runs_of_a_killed_sweep_end_and_save_a_checkpoint() {
    let (_folder, out) = Stage::new(&scenes::ALL[0]).set();
    let mut arguments = Verb::Sweep.arguments(&out);
    // These runs would take days.
    arguments.extend(["--set", "train.epochs=1000000", "--set", "probes=[]"].map(String::from));
    arguments.extend(["--set", "train.keep=(last: 2)"].map(String::from));
    let mut sweep = Running::start(&arguments);
    let runs = || {
        let groups = std::fs::read_dir(&out).into_iter().flatten().flatten();
        groups.map(|group| group.path().join("seed0")).collect::<Vec<_>>()
    };
    let steps = |run: &Path| std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let is_training = |run: &std::path::PathBuf| steps(run).contains("\"event\":\"step\"");
    sweep.wait_until("steps of two runs", || runs().iter().filter(|run| is_training(run)).count() == 2);
    assert_eq!(processes(&out).len(), 3);
    sweep.0.kill().unwrap();
    sweep.0.wait().unwrap();
    wait_for_the_last(&out).unwrap();
    for run in runs() {
        let info = std::fs::read_to_string(run.join("run.json")).unwrap();
        assert!(info.contains("\"status\": \"interrupted\""), "{info}");
    }
    assert_eq!(mini::damage(&out), None);
}
