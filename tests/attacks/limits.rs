//! Limits that the system sets: on open files, the size of files, memory, threads, the stack and processor time. The
//! program ends with a documented exit code and a message, not by a signal, and `resume` gives the bits of the
//! undisturbed run.

use crate::common::{Output, Running, pauc, root};
use crate::scenes::{self, Files, Scene, Stage, difference};
use crate::signals::TRAINING;
use crate::{count, mini, wrong_cases};
use pauc_testing::{property, random::Random};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pauc-cli");

/// Returns the program with a limit, in the form of `prlimit --NAME=VALUE`.
fn under(limit: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--{limit}")).arg(PROGRAM).args(arguments).current_dir(root()).env("NO_COLOR", "1");
    command
}

fn output(mut command: Command) -> Output {
    let out = command.output().unwrap_or_else(|e| panic!("these tests need `prlimit` of util-linux: {e}"));
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Output { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}

/// Says what is wrong with the end of a limited command, whose message has one of these texts if it failed.
fn wrong_end(output: &Output, says: &[&str]) -> Option<String> {
    let Output { code, stderr, .. } = output;
    let is_right = match code {
        0 => true,
        1 | 2 | 4 => stderr.contains("error") && says.iter().any(|text| stderr.contains(text)),
        _ => false,
    };
    (!is_right || stderr.contains("panicked")).then(|| format!("code {code}: {stderr}"))
}

/// A scene that is ready, and the files that it leaves without limits.
struct Played {
    stage: Stage,
    wanted: Files,
}

impl Played {
    fn new(scene: &'static Scene) -> Self {
        let stage = Stage::new(scene);
        let (_folder, out) = stage.set();
        let output = pauc(scene.attacked.arguments(&out));
        assert_eq!(output.code, 0, "{}: {}", scene.name, output.stderr);
        Played { stage, wanted: mini::files(&out) }
    }

    /// Plays the scene under a limit, and then once more without it. Returns what went wrong.
    fn play(&self, limit: &str, says: &[&str]) -> Option<String> {
        let (_folder, out) = self.stage.set();
        let verb = self.stage.scene.attacked;
        let output = output(under(limit, &verb.arguments(&out)));
        let wrong = wrong_end(&output, says).or_else(|| mini::damage(&out)).or_else(|| {
            let again = pauc(verb.again(&out));
            let failed = (again.code != 0).then(|| format!("and then code {}: {}", again.code, again.stderr));
            failed.or_else(|| difference(&self.wanted, &mini::files(&out)))
        });
        wrong.map(|wrong| format!("{} with {limit}: {wrong}\n{}", self.stage.scene.name, output.stderr))
    }
}

/// Plays drawn scenes under limits that `draw` draws.
fn play(draw: impl Fn(&mut Random) -> String + Sync, says: &[&str]) {
    let played: Vec<Played> = scenes::ALL.iter().map(Played::new).collect();
    let cases: Vec<usize> = (0..count(14)).collect();
    let wrong = wrong_cases(&cases, |&case| {
        let mut random = Random::new(property::seed(), case as u64);
        played[case % played.len()].play(&draw(&mut random), says)
    });
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Returns the smallest number of steps of `step` with which the program can start at all.
fn least(limit: &str, step: usize) -> usize {
    let starts = |n: &usize| {
        let version = ["--threads", "1", "list"].map(String::from);
        output(under(&format!("{limit}={}", n * step), &version)).code == 0
    };
    (1..1000).find(starts).unwrap()
}

#[test]
fn too_few_open_files() {
    let least = least("nofile", 1);
    play(|random| format!("nofile={}", least + random.below(12)), &["Too many open files"]);
}

#[test]
fn files_that_may_not_grow() {
    play(|random| format!("fsize={}", 1 << random.below(18)), &["File too large"]);
}

#[test]
fn little_memory() {
    let least = least("as", 4 << 20);
    let draw = |random: &mut Random| format!("as={}", (4 * least + random.below(64)) << 20);
    play(draw, &["no memory is left", "cannot start", "of memory", "Cannot allocate memory"]);
}

#[test]
fn a_small_stack() {
    for arguments in [&["check", "tests/attacks/mini.ron"][..], &["list"], &["explain", "InfoNce"]] {
        let arguments: Vec<String> = arguments.iter().map(|a| a.to_string()).collect();
        let output = output(under("stack=524288", &arguments));
        assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
    }
    assert_eq!(Played::new(&scenes::ALL[0]).play("stack=524288", &[]), None);
}

#[test]
fn the_end_of_the_processor_time_saves_the_run() {
    let folder = tempfile::tempdir().unwrap();
    // A second from the system's signal on, and an hour until it ends the process.
    let run = Running::of(under("cpu=1:3600", &TRAINING.arguments(folder.path(), &[])));
    let (code, said) = run.end();
    assert!(code == 130 && said.contains("SIGXCPU: stopping after this step"), "code {code}: {said}");
    assert_eq!(mini::damage(folder.path()), None);
    let run = mini::folder(folder.path()).unwrap();
    assert_eq!(TRAINING.differs_from_a_pause(&run), None);
}

/// Returns how root becomes a user that has no other process: limits on threads do not hold for root.
fn as_another_user() -> Vec<&'static str> {
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let other = ["setpriv", "--reuid=64999", "--regid=64999", "--clear-groups"];
    if is_root { other.to_vec() } else { vec!["env"] }
}

/// Returns the program with at most `limit` threads of its user.
fn with_threads(limit: usize, folder: &Path, arguments: &[&str]) -> Command {
    let program = folder.join("pauc-cli");
    if !program.exists() {
        // Other users may not be allowed to enter the project's folder.
        std::fs::copy(PROGRAM, &program).unwrap();
    }
    let words = as_another_user();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("prlimit").arg(format!("--nproc={limit}")).arg(program).args(arguments);
    command.current_dir(folder).env("NO_COLOR", "1");
    command
}

#[test]
fn too_few_threads() {
    let user = as_another_user();
    if !Command::new(user[0]).args(&user[1..]).arg("true").status().is_ok_and(|s| s.success()) {
        println!("SKIPPED: root cannot become another user here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).unwrap();
    for name in ["mini.ron", "sweep.ron"] {
        std::fs::copy(root().join("tests/attacks").join(name), folder.path().join(name)).unwrap();
    }
    for limit in 1..=8 {
        let out = |name: &str| format!("{name}-{limit}");
        for arguments in [
            ["--threads", "1", "run", "mini.ron", "--out", &out("one")].as_slice(),
            &["--threads", "4", "run", "mini.ron", "--out", &out("four")],
            &["--threads", "2", "sweep", "sweep.ron", "--jobs", "2", "--out", &out("sweep")],
        ] {
            let output = output(with_threads(limit, folder.path(), arguments));
            let wrong = wrong_end(&output, &["cannot start", "cannot be started"]);
            assert_eq!(wrong, None, "{arguments:?}, at most {limit} threads");
        }
    }
}
