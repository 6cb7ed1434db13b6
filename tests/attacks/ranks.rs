//! At a random moment, one of several ranks is killed, panics, is asked to stop, cannot read an image, or finds the
//! disk full. All ranks end, the message names the rank, and no file is damaged. Once resumed on another number of
//! ranks, the run has the files of an undisturbed one.

use crate::common::jobs::{on, output, ranks};
use crate::common::{PATIENCE, pauc, processes};
use crate::faults::library;
use crate::scenes::{Files, difference};
use crate::{count, mini};
use pauc_testing::mpi::Launcher;
use pauc_testing::{property, random::Random};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What happens to a rank.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It gets this signal.
    Signal(&'static str),
    /// It panics, as the standard library does when the clock fails.
    Panic,
    /// It cannot read an image.
    Unreadable,
    /// The disk of rank 0 is full.
    Full,
}

const FAULTS: [Fault; 8] = [
    Fault::Signal("KILL"),
    Fault::Signal("KILL"),
    Fault::Signal("USR1"),
    Fault::Signal("TERM"),
    Fault::Signal("INT"),
    Fault::Panic,
    Fault::Unreadable,
    Fault::Full,
];

/// A run with four shards on images in files.
struct Job {
    launcher: Launcher,
    images: PathBuf,
    /// How long an undisturbed run takes on two ranks.
    time: Duration,
}

impl Job {
    /// Returns the arguments of the run.
    fn run(&self, out: &Path) -> Vec<String> {
        let data = format!("data=ImageFolder(root: {:?})", self.images);
        let set = ["--set", "train.shards=4", "--set", "train.epochs=4", "--set", &data].map(String::from);
        [mini::run(out), set.to_vec()].concat()
    }

    /// Returns the arguments that continue the run, or begin it.
    fn again(&self, out: &Path) -> Vec<String> {
        match mini::folder(out).filter(|folder| folder.join("run.json").exists()) {
            Some(_) => mini::again(out),
            None => self.run(out),
        }
    }

    /// Returns a command that starts ranks, of which one has a fault. `moment`: from 0, the start, to 1, the end.
    fn faulty(&self, fault: Fault, (size, rank): (usize, usize), moment: f64, out: &Path) -> Command {
        let arguments = self.again(out);
        let at = |operations: f64| (1.0 + operations * moment).floor().to_string();
        let variables = match fault {
            Fault::Signal(_) => return on(&self.launcher, size, arguments),
            Fault::Panic => format!("PAUC_FAULTS_CLOCK={}", at(4000.0)),
            Fault::Unreadable => {
                let images = self.images.display();
                format!("PAUC_FAULTS_UNDER={images} PAUC_FAULTS_STAY=1 PAUC_FAULTS_AT={}", at(300.0))
            }
            Fault::Full => {
                let out = out.display();
                format!(
                    "PAUC_FAULTS_UNDER={out} PAUC_FAULTS_STAY=1 PAUC_FAULTS_ERRNO=28 PAUC_FAULTS_AT={}",
                    at(150.0)
                )
            }
        };
        let program = env!("CARGO_BIN_EXE_pauc-cli");
        let mut command = self.launcher.command(1, Path::new("env"));
        for this in 0..size {
            if this > 0 {
                command.args([":", "-n", "1", "env"]);
            }
            if this == rank {
                command.arg(format!("LD_PRELOAD={}", library().display())).args(variables.split(' '));
            }
            command.arg(program).args(&arguments);
        }
        command.env_remove("PAUC_SIMD").env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Starts ranks, lets a fault happen to one of them, and waits until all have ended.
    fn disturb(&self, fault: Fault, out: &Path, random: &mut Random) -> Result<(), String> {
        let size = [2, 4][random.below(2)];
        let rank = if fault == Fault::Full { 0 } else { random.below(size) };
        let moment = random.below(1_000) as f64 / 1_000.0;
        let mut command = self.faulty(fault, (size, rank), moment, out);
        let job = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut signaled = None;
        if let Fault::Signal(signal) = fault {
            std::thread::sleep(self.time.mul_f64(1.1 * moment));
            if let Some(rank) = ranks(out).get(rank) {
                // It may have ended in the meantime.
                let _ = Command::new("kill").args(["-s", signal, &rank.to_string()]).output().unwrap();
                signaled = Some(Instant::now());
            }
        }
        let Ended { code, stderr, told } = end(job, out)?;
        if let Some(began) = signaled.or(told) {
            println!(
                "{fault:?} of rank {rank} of {size}: all had ended after {:.1} s",
                began.elapsed().as_secs_f64()
            );
        }
        let what = |wrong: &str| format!("{fault:?} of rank {rank} of {size}: {wrong}\n{stderr}");
        let names_rank = stderr.contains(&format!("error: rank {rank} on "));
        match fault {
            // The fault would have happened after the end.
            _ if code == 0 => {}
            Fault::Panic if !names_rank || !stderr.contains("panicked") => {
                return Err(what("the message does not tell of the panic"));
            }
            Fault::Unreadable if !names_rank || !stderr.contains(".png") => {
                return Err(what("the image is not named"));
            }
            Fault::Full if !stderr.contains("free some space") => {
                return Err(what("the message has no remedy"));
            }
            _ => {}
        }
        mini::damage(out).map_or(Ok(()), |damage| Err(what(&damage)))
    }
}

/// How a job has ended.
struct Ended {
    code: i32,
    stderr: String,
    /// When it printed the first error.
    told: Option<Instant>,
}

/// Waits until a job and all its processes have ended.
fn end(mut job: Child, out: &Path) -> Result<Ended, String> {
    let (mut stderr, mut told) = (String::new(), None);
    for line in BufReader::new(job.stderr.take().unwrap()).split(b'\n') {
        let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
        told = told.or_else(|| line.contains("error:").then(Instant::now));
        stderr = stderr + &line + "\n";
    }
    let code = job.wait().unwrap().code().unwrap_or(-1);
    let began = Instant::now();
    while !processes(out).is_empty() {
        if began.elapsed() > PATIENCE {
            return Err(format!("these processes are left: {:?}", processes(out)));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Ended { code, stderr, told })
}

/// Disturbs a run once or several times, and lets another number of ranks finish it.
fn attack(job: &Job, case: usize, wanted: &Files) -> Result<(), String> {
    let mut random = Random::new(property::seed(), case as u64);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("runs");
    std::fs::create_dir(&out).unwrap();
    let mut fault = FAULTS[case % FAULTS.len()];
    loop {
        job.disturb(fault, &out, &mut random)?;
        if !random.one_in(3) {
            break;
        }
        fault = FAULTS[random.below(FAULTS.len())];
    }
    let size = [1, 2, 4][random.below(3)];
    let finished = output(&mut on(&job.launcher, size, job.again(&out)));
    if finished.code != 0 {
        return Err(format!("after {fault:?}, code {} on {size} ranks: {}", finished.code, finished.stderr));
    }
    // A run that is asked to stop saves one checkpoint more.
    let found = mini::without_steps(&mini::files(&out));
    difference(&mini::without_steps(wanted), &found)
        .map_or(Ok(()), |wrong| Err(format!("{fault:?}: {wrong}")))
}

/// Writes 60 images of three classes.
fn write_images(folder: &Path) {
    for i in 0..60u32 {
        let class = folder.join((i % 3).to_string());
        std::fs::create_dir_all(&class).unwrap();
        let pixel = |x, y| image::Rgb([(x * (i % 3 + 1) * 20) as u8, (y * 20) as u8, (i * 4) as u8]);
        image::RgbImage::from_fn(12, 12, pixel).save(class.join(format!("{i}.png"))).unwrap();
    }
}

#[test]
fn a_disturbed_rank_costs_nothing_but_time() {
    let Some(launcher) = Launcher::all("a_disturbed_rank_costs_nothing_but_time").into_iter().next() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (out, images) = (folder.path().join("runs"), folder.path().join("images"));
    write_images(&images);
    let mut job = Job { launcher, images, time: Duration::ZERO };
    assert_eq!(pauc(job.run(&out)).code, 0);
    let wanted = mini::files(&out);
    let ranks = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let done = output(&mut on(&job.launcher, 2, job.run(&ranks.path().join("runs"))));
    assert_eq!(done.code, 0, "{}", done.stderr);
    job.time = began.elapsed();
    // Each kind of fault once.
    let cases = count(FAULTS.len());
    let attack = |case| attack(&job, case, &wanted).err().map(|wrong| format!("case {case}: {wrong}"));
    let wrong: Vec<String> = (0..cases).filter_map(attack).collect();
    let seed = property::seed();
    assert!(
        wrong.is_empty(),
        "{} of {cases}, with PAUC_TEST_SEED={seed}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
