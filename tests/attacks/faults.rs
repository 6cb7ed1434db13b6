//! Every file operation of a run fails once: the disk is full or broken, a signal comes, a write is short, the
//! process is killed. The program must end with an error that names the file and the remedy, and afterwards
//! `resume` must give the bits of the undisturbed run.
//!
//! `faults.c` counts the operations and makes one fail. `PAUC_ATTACKS=all` tries every one.

use crate::common::{Output, pauc_with};
use crate::scenes::{self, Files, Stage, Verb, difference};
use crate::{mini, share, wrong_cases};
use pauc_testing::{property, random::Random};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// No space is left, from this operation on.
    Full,
    /// The disk reports an error once.
    Broken,
    /// A signal interrupts the operation.
    Interrupted,
    /// A write takes half of the bytes, which is no error.
    Short,
    /// The process is killed before the operation.
    Killed,
}

impl Fault {
    const ALL: [Fault; 5] = [Fault::Full, Fault::Broken, Fault::Interrupted, Fault::Short, Fault::Killed];

    /// The variables that `faults.c` reads, with Linux's error numbers.
    fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Fault::Full => &[("PAUC_FAULTS_ERRNO", "28"), ("PAUC_FAULTS_STAY", "1")],
            Fault::Broken => &[("PAUC_FAULTS_ERRNO", "5")],
            Fault::Interrupted => &[("PAUC_FAULTS_ERRNO", "4")],
            Fault::Short => &[("PAUC_FAULTS_ERRNO", "0")],
            Fault::Killed => &[("PAUC_FAULTS_SIGNAL", "9")],
        }
    }

    /// Whether the fault can happen to an operation of this name.
    fn hits(self, operation: &str) -> bool {
        match self {
            Fault::Full => ["create", "write", "rename", "link", "mkdir"].contains(&operation),
            Fault::Short => operation == "write",
            _ => true,
        }
    }

    /// Whether the program must not notice it: the standard library repeats these calls.
    fn is_harmless(self, operation: &str) -> bool {
        self == Fault::Short
            || self == Fault::Interrupted && ["open", "create", "write", "sync"].contains(&operation)
    }
}

/// A file operation of the undisturbed command.
#[derive(Clone, Debug)]
pub struct Operation {
    pub name: String,
    pub path: PathBuf,
}

impl Operation {
    /// The name of the file that a user knows: a temporary file becomes another file.
    fn file(&self) -> String {
        let name = self.path.file_name().unwrap().to_str().unwrap();
        match name.strip_prefix('.').filter(|n| n.ends_with(".tmp")) {
            Some(name) => name.rsplitn(4, '.').nth(3).unwrap().to_string(),
            None => name.to_string(),
        }
    }
}

/// Compiles `faults.c` once, with the compiler that Rust links with.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/attacks/faults.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source);
        let out =
            compiler.output().unwrap_or_else(|e| panic!("these tests need a C compiler called cc: {e}"));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        library
    })
}

/// Runs a command while the operations on files below `out` are counted. Returns them too.
pub fn counted(arguments: &[String], out: &Path, faults: &[(&str, &str)]) -> (Output, Vec<Operation>) {
    let log = out.with_extension("operations");
    let _ = std::fs::remove_file(&log); // there is none after the first command
    let fixed = [
        ("LD_PRELOAD", library().to_str().unwrap()),
        ("PAUC_FAULTS_UNDER", out.to_str().unwrap()),
        ("PAUC_FAULTS_LOG", log.to_str().unwrap()),
    ];
    let output = pauc_with(&[&fixed[..], faults].concat(), arguments);
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let operation = |line: &str| {
        let mut words = line.splitn(3, ' ').skip(1);
        Operation { name: words.next().unwrap().into(), path: words.next().unwrap().into() }
    };
    (output, text.lines().map(operation).collect())
}

/// Says what is wrong with how a command ended whose operation failed.
fn wrong_end(fault: Fault, operation: &Operation, output: &Output) -> Option<String> {
    let Output { code, stderr, .. } = output;
    if stderr.contains("panicked") {
        return Some("it panicked".into());
    }
    match (code, fault) {
        (-1, Fault::Killed) | (0, Fault::Full | Fault::Broken | Fault::Interrupted | Fault::Short) => {
            return None;
        }
        _ if fault.is_harmless(&operation.name) => return Some("it must succeed".into()),
        // What cannot be read is data; what cannot be written is the run's failure.
        (1, _) => {}
        (4, _) if ["open", "mmap"].contains(&&*operation.name) => {}
        _ => return Some(format!("exit code {code}")),
    }
    let Some((_, message)) = stderr.split_once("error: ") else { return Some("no error".into()) };
    let folder = operation.path.parent().unwrap().file_name().unwrap().to_str().unwrap();
    if !message.contains(&operation.file()) && !message.contains(folder) {
        return Some(format!("the message does not name {}", operation.file()));
    }
    // What a disk does not give, only its owner can mend.
    let needs_remedy = !["open", "mmap"].contains(&&*operation.name) && !message.contains("free some space");
    needs_remedy.then(|| "the message has no remedy".into())
}

/// Lets operation `n` of a scene fail. Returns what went wrong.
fn attack(stage: &Stage, n: usize, fault: Fault, wanted: &Files) -> Result<(), String> {
    let (scene, (_folder, out)) = (stage.scene, stage.set());
    let at = (n + 1).to_string();
    let faults = [&[("PAUC_FAULTS_AT", &*at)], fault.variables()].concat();
    let (output, operations) = counted(&scene.attacked.arguments(&out), &out, &faults);
    let operation = operations.get(n).ok_or("it ended before the operation")?;
    let what = |wrong: String| {
        format!("{} {}: {wrong}\n{}", operation.name, operation.path.display(), output.stderr)
    };
    if let Some(wrong) = wrong_end(fault, operation, &output) {
        return Err(what(wrong));
    }
    if output.code != 0 {
        let again = pauc_with(&[], scene.attacked.again(&out));
        if again.code != 0 {
            return Err(what(format!("and then code {}: {}", again.code, again.stderr)));
        }
    }
    difference(wanted, &mini::files(&out)).map_or(Ok(()), |d| Err(what(d)))
}

/// Runs a scene without faults. Returns its operations and the files that it leaves.
pub fn whole(stage: &Stage) -> (Vec<Operation>, Files) {
    let (_folder, out) = stage.set();
    let (output, operations) = counted(&stage.scene.attacked.arguments(&out), &out, &[]);
    assert_eq!(output.code, 0, "{}: {}", stage.scene.name, output.stderr);
    (operations, mini::files(&out))
}

/// Returns `n` of the items, drawn at random, or all of them.
pub fn draw<T>(mut all: Vec<T>, n: usize) -> Vec<T> {
    let mut random = Random::new(property::seed(), 0);
    for i in 0..n.min(all.len()) {
        let j = i + random.below(all.len() - i);
        all.swap(i, j);
    }
    all.truncate(n);
    all
}

#[test]
fn a_failed_file_operation_costs_nothing_but_time() {
    // The processes of a sweep would count their operations each on its own.
    let scenes = scenes::ALL.iter().filter(|scene| scene.attacked != Verb::Sweep);
    let stages: Vec<Stage> = scenes.map(Stage::new).collect();
    let wholes: Vec<_> = stages.iter().map(whole).collect();
    let mut cases = Vec::new();
    for (s, (operations, _)) in wholes.iter().enumerate() {
        for (n, operation) in operations.iter().enumerate() {
            let faults = Fault::ALL.into_iter().filter(|f| f.hits(&operation.name));
            cases.extend(faults.map(|fault| (s, n, fault)));
        }
    }
    assert!(wholes[0].0.len() > 100, "the counter misses operations: {:?}", wholes[0].0);
    let total = cases.len();
    let cases = draw(cases, share(40, total));
    println!("{} of {total} cases", cases.len());
    let failed = wrong_cases(&cases, |&(s, n, fault)| {
        let wrong = attack(&stages[s], n, fault, &wholes[s].1).err()?;
        Some(format!("{}, operation {n}, {fault:?}: {wrong}", stages[s].scene.name))
    });
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn temporary_names_become_the_names_that_users_know() {
    let file = |path: &str| Operation { name: "write".into(), path: path.into() }.file();
    assert_eq!(file("/r/.last.safetensors.3.77.tmp"), "last.safetensors");
    assert_eq!(file("/r/run.json"), "run.json");
}
