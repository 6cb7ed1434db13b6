//! Signals in every phase of a run: it saves a checkpoint and ends with exit code 130, and `resume` gives the bits and
//! the events of the undisturbed run.

use crate::common::{self, Running, events, only_run, pauc};
use crate::faults::{counted, draw, library, whole};
use crate::scenes::{self, Files, Stage, difference};
use crate::{mini, share, wrong_cases};
use pauc_testing::{property, random::Random};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A signal: its name without `SIG`, and its number on Linux.
#[derive(Clone, Copy, Debug)]
struct Signal {
    name: &'static str,
    number: &'static str,
}

/// What asks a run to save and stop.
const SIGNALS: [Signal; 5] = [
    Signal { name: "INT", number: "2" },
    Signal { name: "TERM", number: "15" },
    Signal { name: "HUP", number: "1" },
    Signal { name: "USR1", number: "10" },
    Signal { name: "XCPU", number: "24" },
];

fn status(run: &Path) -> String {
    let info = std::fs::read(run.join("run.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&info).unwrap()["status"].as_str().unwrap().into()
}

/// Sends a signal before file operation `n` of a scene. Returns the exit code, or what went wrong.
fn interrupt(stage: &Stage, n: usize, signal: Signal, wanted: &Files) -> Result<i32, String> {
    let (_folder, out) = stage.set();
    let status_before = mini::folder(&out).map(|run| status(&run)).unwrap_or_default();
    let at = (n + 1).to_string();
    let (output, _) = counted(
        &stage.scene.attacked.arguments(&out),
        &out,
        &[("PAUC_FAULTS_AT", &at), ("PAUC_FAULTS_SIGNAL", signal.number)],
    );
    let run = mini::folder(&out).ok_or("there is no run")?;
    let want = match output.code {
        0 => "finished", // the signal came too late
        130 => "interrupted",
        // `resume` has not begun to train.
        -1 if stage.scene.name.starts_with("resume") => status_before.as_str(),
        code => return Err(format!("exit code {code}: {}", output.stderr)),
    };
    if status(&run) != want {
        return Err(format!("code {} and status {}: {}", output.code, status(&run), output.stderr));
    }
    if let Some(damage) = mini::damage(&out) {
        return Err(damage);
    }
    let again = pauc(stage.scene.attacked.again(&out));
    if again.code != 0 {
        return Err(format!("and then code {}: {}", again.code, again.stderr));
    }
    // The interrupted process has saved one more checkpoint than the undisturbed one.
    let others = mini::without_steps;
    difference(&others(wanted), &others(&mini::files(&out))).map_or(Ok(output.code), Err)
}

#[test]
fn a_signal_at_any_file_operation_saves_the_run() {
    let trains = |scene: &&scenes::Scene| {
        ["run", "resume", "resume --from --set", "run --force"].contains(&scene.name)
    };
    let stages: Vec<Stage> = scenes::ALL.iter().filter(trains).map(Stage::new).collect();
    let wholes: Vec<_> = stages.iter().map(whole).collect();
    let operations = |s: usize| (0..wholes[s].0.len()).map(move |n| (s, n));
    let every: Vec<_> = (0..stages.len()).flat_map(operations).collect();
    let total = every.len();
    let cases: Vec<_> = draw(every, share(16, total)).into_iter().enumerate().collect();
    let saved = std::sync::atomic::AtomicUsize::new(0);
    let wrong = wrong_cases(&cases, |&(case, (s, n))| {
        let signal = Random::new(property::seed(), case as u64).pick(&SIGNALS);
        match interrupt(&stages[s], n, signal, &wholes[s].1) {
            Ok(code) => {
                saved.fetch_add(usize::from(code == 130), std::sync::atomic::Ordering::Relaxed);
                None
            }
            Err(wrong) => {
                let operation = &wholes[s].0[n];
                Some(format!("SIG{} before {n}, {operation:?}: {wrong}", signal.name))
            }
        }
    });
    let saved = saved.into_inner();
    println!(
        "{} of {total} signals; {saved} interrupted the run, the others came after its end",
        cases.len()
    );
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(saved > 0);
}

/// A run that is still in one phase when a signal comes.
pub struct Phase {
    name: &'static str,
    /// Its changes to the short run.
    set: &'static [&'static str],
    /// The last event before the phase, and how often it has occurred then.
    after: (&'static str, usize),
}

/// Steps without end.
pub const TRAINING: Phase =
    Phase { name: "training", set: &["train.epochs=100000", "probes=[]", KEEP], after: ("step", 1) };

/// As [`TRAINING`], and hardly ever is a checkpoint being written.
pub const RARELY_SAVED: Phase = Phase {
    name: "training",
    set: &["train.epochs=100000", "probes=[]", KEEP, "train.checkpoint_every=Steps(200)"],
    after: ("step", 1),
};

/// The phases between steps would take hours.
const PHASES: &[Phase] = &[
    TRAINING,
    Phase { name: "a clustering", set: &[LONG_CLUSTERING, "probes=[]", KEEP], after: ("stages", 1) },
    Phase {
        name: "a probe",
        set: &["probes=[LinearSgd(epochs: 100000000, every: Epochs(1))]", KEEP],
        after: ("step", 3),
    },
    Phase {
        name: "baselines",
        set: &["probes=[LinearSgd(epochs: 100000000)]", "baselines=[RandomInit]", KEEP],
        after: ("", 0),
    },
];

const KEEP: &str = "train.keep=(last: 2)";
const LONG_CLUSTERING: &str =
    "clusterer=KMeans(k: [3], redos: 100000000, start: Epochs(1), every: Epochs(1))";

impl Phase {
    pub fn arguments(&self, out: &Path, more: &[&str]) -> Vec<String> {
        let set = self.set.iter().flat_map(|set| ["--set", set]);
        mini::run(out).into_iter().chain(set.chain(more.iter().copied()).map(String::from)).collect()
    }

    /// Waits until the run below `out` is in this phase. Returns its folder.
    pub fn wait(&self, process: &mut Running, out: &Path) -> PathBuf {
        let (event, times) = (format!("\"event\":\"{}\"", self.after.0), self.after.1);
        let folder = || mini::folder(out).filter(|run| run.join("metrics.jsonl").exists());
        let text = || folder().and_then(|run| std::fs::read_to_string(run.join("metrics.jsonl")).ok());
        process.wait_until(self.name, || text().is_some_and(|text| text.matches(&event).count() >= times));
        folder().unwrap()
    }

    /// Returns the last step that the run has logged, even if its process was killed then.
    pub fn last_step(&self, run: &Path) -> u64 {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let step = |line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
        text.lines().filter_map(step).max().unwrap()
    }

    /// Says what differs between an interrupted run and one that paused at the same step. Both take two more steps
    /// first, unless the phase has no end.
    pub fn differs_from_a_pause(&self, run: &Path) -> Option<String> {
        let step = match self.name {
            "training" => self.last_step(run) + 2,
            "a clustering" => self.last_step(run),
            // These phases come before the pause.
            _ => return None,
        };
        let step = step.to_string();
        if self.name == "training" {
            let resumed = pauc(["--threads", "1", "resume", run.to_str().unwrap(), "--max-steps", &step]);
            if resumed.code != 0 {
                return Some(format!("it cannot be resumed: {}", resumed.stderr));
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let pause = pauc(self.arguments(folder.path(), &["--max-steps", &step]));
        if pause.code != 0 {
            return Some(format!("no pause at step {step}: {}", pause.stderr));
        }
        let paused = only_run(folder.path());
        let last = |run: &Path| std::fs::read(run.join("checkpoints/last.safetensors")).unwrap();
        if last(run) != last(&paused) {
            return Some(format!("the checkpoint differs from that of a pause at step {step}"));
        }
        // A clustering may have logged something, which `resume` sets aside.
        let (found, wanted) = (events(run), events(&paused));
        let place = wanted[..wanted.len() - 1].iter().zip(&found).position(|(wanted, found)| wanted != found);
        place.map(|i| format!("event {i} is {}, and {} after a pause at step {step}", found[i], wanted[i]))
    }
}

#[test]
fn each_signal_ends_each_phase() {
    let cases: Vec<_> = PHASES.iter().flat_map(|phase| SIGNALS.map(|signal| (phase, signal))).collect();
    let cases = draw(cases, share(8, PHASES.len() * SIGNALS.len()));
    let wrong = wrong_cases(&cases, |(phase, signal)| {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Running::start(phase.arguments(folder.path(), &[]));
        let run = phase.wait(&mut process, folder.path());
        process.signal(signal.name);
        let (code, said) = process.end();
        let told = match signal.name {
            "INT" | "TERM" => {
                "\nstopping after this step; a checkpoint will be saved (interrupt again".into()
            }
            name => format!("\nSIG{name}: stopping after this step; a checkpoint will be saved"),
        };
        let is_right = code == 130 && said.contains(&told) && status(&run) == "interrupted";
        let damage = mini::damage(folder.path());
        let wrong = (!is_right || damage.is_some())
            .then(|| format!("code {code}, {}, {damage:?}: {said}", status(&run)));
        let wrong = wrong.or_else(|| phase.differs_from_a_pause(&run));
        wrong.map(|wrong| format!("SIG{} in {}: {wrong}", signal.name, phase.name))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_second_interrupt_ends_at_once_and_other_signals_may_come_twice() {
    let training = TRAINING;
    for signals in [["INT", "INT"], ["TERM", "INT"], ["USR1", "USR1"], ["HUP", "HUP"], ["XCPU", "XCPU"]] {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Running::start(training.arguments(folder.path(), &[]));
        let run = training.wait(&mut process, folder.path());
        // So both are there before the run can act on the first.
        process.signal("STOP");
        signals.iter().for_each(|signal| process.signal(signal));
        process.signal("CONT");
        let (code, said) = process.end();
        assert_eq!(code, 130, "{signals:?}: {said}");
        let may_be_cut_off = ["INT", "TERM"].contains(&signals[0]);
        let status = status(&run);
        assert!(status == "interrupted" || may_be_cut_off && status == "running", "{signals:?}: {status}");
        assert_eq!(mini::damage(folder.path()), None, "{signals:?}");
        assert_eq!(training.differs_from_a_pause(&run), None, "{signals:?}");
    }
}

/// Starts a run whose data cannot be opened, because its disk does not answer.
fn hanging(folder: &Path, arguments: &[&str], stdin: Stdio) -> Running {
    let data = folder.join("data");
    std::fs::create_dir_all(&data).unwrap();
    let images = data.join("x.npy");
    std::fs::write(&images, pauc_testing::npy::file("|u1", false, "(60, 12, 12)", &[7; 60 * 144])).unwrap();
    let log = folder.join("operations");
    let mut program = common::program();
    program.args(mini::run(&folder.join("runs")));
    program.args(["--set", &format!("data=Npy(images: {images:?})"), "--set", "probes=[]", "--set", KEEP]);
    program.args(arguments).stdin(stdin);
    program.env("LD_PRELOAD", library()).env("PAUC_FAULTS_UNDER", &data).env("PAUC_FAULTS_LOG", &log);
    program.env("PAUC_FAULTS_AT", "1").env("PAUC_FAULTS_HANG", "1");
    let mut process = Running::of(program);
    process.wait_until("the data is opened", || log.metadata().is_ok_and(|log| log.len() > 0));
    process
}

#[test]
fn before_training_a_signal_or_the_end_of_the_sweep_ends_the_process() {
    for signal in SIGNALS {
        let folder = tempfile::tempdir().unwrap();
        let process = hanging(folder.path(), &[], Stdio::null());
        process.signal(signal.name);
        assert_eq!(process.end(), (-1, String::new()), "SIG{}", signal.name);
        assert!(!folder.path().join("runs").exists());
    }
    let folder = tempfile::tempdir().unwrap();
    let mut process = hanging(folder.path(), &["--stop-at-end-of-stdin"], Stdio::piped());
    drop(process.0.stdin.take());
    assert_eq!(process.end(), (130, String::new()));
}

#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let training = TRAINING;
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_pauc-cli")]);
    shell.args(training.arguments(folder.path(), &[]));
    let mut process = Running::of(shell);
    let run = training.wait(&mut process, folder.path());
    process.signal("HUP");
    let before = training.last_step(&run);
    process.wait_until("two more steps", || training.last_step(&run) > before + 1);
    process.signal("TERM");
    assert_eq!(process.end().0, 130);
}
