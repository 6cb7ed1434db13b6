//! Two processes and one run: one of them trains it, the other is refused and told the first one's process id, and
//! nothing is lost. What only reads may run beside a living or a dead process.

use crate::common::{Running, pauc};
use crate::scenes::{self, Stage, Verb, difference};
use crate::signals::{RARELY_SAVED, TRAINING};
use crate::{count, mini, wrong_cases};
use pauc_testing::{property, random::Random};
use std::path::Path;
use std::time::Duration;

/// The second command on a folder in which a scene plays, by the scene's name.
const PAIRS: &[(&str, Verb)] = &[
    ("run", Verb::Run),
    ("run", Verb::Force),
    ("resume", Verb::Resume),
    ("resume", Verb::Force),
    ("run --force", Verb::Run),
    ("sweep", Verb::Sweep),
];

/// Says what is wrong with the end of a process that another one may have got in the way of.
fn wrong_end(other: u32, (code, said): &(i32, String)) -> Option<String> {
    let refused = ["is training this run", "is working on this run", "is an unfinished run", "lies in"];
    let is_named = said.contains(&format!("process {other} "));
    let is_right = match code {
        0 => true,
        1 => !said.contains("panicked") && (is_named || refused.iter().any(|text| said.contains(text))),
        _ => false,
    };
    (!is_right).then(|| format!("code {code}: {said}"))
}

/// Plays a scene and, a moment later, another command on the same folder. Returns what went wrong.
fn both(stage: &Stage, second: Verb, delay: Duration, wanted: &scenes::Files) -> Option<String> {
    let (_folder, out) = stage.set();
    // The arguments of `resume` name a folder that a run may not have made yet.
    let arguments = [stage.scene.attacked.arguments(&out), second.arguments(&out)];
    let first = Running::start(&arguments[0]);
    std::thread::sleep(delay);
    let second = Running::start(&arguments[1]);
    let ids = [first.0.id(), second.0.id()];
    let ends = [first.end(), second.end()];
    let wrong = wrong_end(ids[1], &ends[0]).or_else(|| wrong_end(ids[0], &ends[1]));
    // Of two sweeps, each may train a run that the other one then lacks.
    let refused = ends.iter().all(|end| end.0 == 1) && stage.scene.attacked != Verb::Sweep;
    let wrong = wrong.or_else(|| refused.then(|| format!("both are refused: {ends:?}")));
    wrong.or_else(|| mini::damage(&out)).or_else(|| {
        let again = pauc(stage.scene.attacked.again(&out));
        if again.code != 0 {
            return Some(format!("and then code {}: {}", again.code, again.stderr));
        }
        difference(wanted, &mini::files(&out)).map(|difference| format!("{difference}, after {ends:?}"))
    })
}

#[test]
fn two_processes_share_no_run() {
    let played = |(name, second): &(&str, Verb)| {
        let scene = scenes::ALL.iter().find(|scene| scene.name == *name).unwrap();
        let stage = Stage::new(scene);
        let (_folder, out) = stage.set();
        let output = pauc(scene.attacked.arguments(&out));
        assert_eq!(output.code, 0, "{name}: {}", output.stderr);
        (stage, *second, mini::files(&out))
    };
    let pairs: Vec<_> = PAIRS.iter().map(played).collect();
    let cases: Vec<usize> = (0..count(12)).collect();
    let wrong = wrong_cases(&cases, |&case| {
        let (stage, second, wanted) = &pairs[case % pairs.len()];
        let delay = Duration::from_millis(Random::new(property::seed(), case as u64).below(200) as u64);
        let wrong = both(stage, *second, delay, wanted)?;
        Some(format!("{}, and {second:?} after {delay:?}: {wrong}", stage.scene.name))
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Runs every verb that only reads a run, or writes elsewhere.
fn read(run: &Path, elsewhere: &Path) {
    let (run, file) = (run.to_str().unwrap(), |name: &str| elsewhere.join(name).display().to_string());
    for arguments in [
        vec!["tail", "--no-follow", run],
        vec!["report", run],
        vec!["embed", run, "--split", "train", "--out", &file("vectors.npy")],
        vec!["export", run, "--out", &file("encoder.safetensors")],
        vec!["eval", run, "--probe", "Knn(k: 5)"],
    ] {
        let output = pauc(&arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
    }
}

#[test]
fn readers_do_not_disturb_a_living_run_or_a_dead_one() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut process = Running::start(TRAINING.arguments(folder.path(), &[]));
    let run = TRAINING.wait(&mut process, folder.path());
    let checkpoint = run.join("checkpoints/last.safetensors");
    process.wait_until("a checkpoint", || checkpoint.exists());
    read(&run, elsewhere.path());
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    read(&run, elsewhere.path());
    let told = pauc(["tail", run.to_str().unwrap()]);
    assert!(told.code == 0 && told.stderr.contains("its process is gone"), "{}", told.stderr);
    assert_eq!(mini::damage(folder.path()), None);
    assert_eq!(TRAINING.differs_from_a_pause(&run), None);
}

#[test]
fn a_process_whose_lock_file_was_deleted_leaves_the_run_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Running::start(RARELY_SAVED.arguments(folder.path(), &[]));
    let run = RARELY_SAVED.wait(&mut first, folder.path());
    first.wait_until("a checkpoint", || run.join("checkpoints/last.safetensors").exists());
    first.signal("STOP");
    std::fs::remove_file(run.join("run.lock")).unwrap();
    let mut second = Running::start(mini::again(folder.path()));
    second.wait_until("more steps", || RARELY_SAVED.last_step(&run) > 220);
    first.signal("CONT");
    let (code, said) = first.end();
    assert!(code == 1 && said.contains("run.lock was deleted or replaced"), "code {code}: {said}");
    let step = RARELY_SAVED.last_step(&run);
    second.wait_until("more steps", || RARELY_SAVED.last_step(&run) > step);
    second.signal("TERM");
    assert_eq!(second.end().0, 130);
    assert_eq!(mini::damage(folder.path()), None);
    assert_eq!(RARELY_SAVED.differs_from_a_pause(&run), None);
}
