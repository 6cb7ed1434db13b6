//! The runs of a sweep, as separate processes. The sweep holds the other end of their stdin: they save and stop when
//! it closes that, or has ended itself.

use crate::Failure;
use crate::console;
use pauc::train::run_dir::RunDir;
use pauc::train::sweep::Standing;
use pauc::traits::progress::{self, Task};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// An unfinished run.
#[derive(Clone)]
pub struct Job {
    pub description: String,
    pub seed: u64,
    pub dir: RunDir,
    /// Its `--set` changes to the recipe.
    pub set: Vec<String>,
}

/// A failed run and its error message.
pub struct FailedJob {
    pub job: Job,
    pub reason: String,
}

/// The argument by which a run saves and stops when its stdin ends.
const STOP: &str = "--stop-at-end-of-stdin";

/// The arguments that all processes share.
pub struct Launcher<'a> {
    pub recipe: &'a Path,
    pub out: &'a Path,
    /// The devices over which parallel runs are spread, at least one.
    pub devices: &'a [String],
    pub force: bool,
    pub memory: Option<u64>,
}

impl Launcher<'_> {
    /// Runs all jobs, at most `limit` at a time. Returns those that failed.
    pub fn run_all(&self, jobs: &[Job], limit: NonZeroUsize) -> Result<Vec<FailedJob>, Failure> {
        let program = std::env::current_exe()
            .map_err(|e| Failure::new(1, format!("error: cannot find the path of this program: {e}")))?;
        let parallel = limit.get().min(jobs.len());
        let threads = (rayon::current_num_threads() / parallel).max(1);
        let next = AtomicUsize::new(0);
        // A run that is alone shows its own progress.
        let task = if parallel == 1 { Task::default() } else { progress::task("runs", jobs.len() as u64) };
        let failed = Mutex::new(Vec::new());
        let worker = &|index: usize| {
            let device = &self.devices[index % self.devices.len()];
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst) + 1;
                let Some(job) = jobs.get(number - 1).filter(|_| !console::stop_asked()) else { return };
                let label = format!("[{number}/{}] {}", jobs.len(), job.description);
                errln!("{label}");
                let mut command = Command::new(&program);
                // Started by a launcher on a single rank, its runs are not ranks.
                pauc::distributed::Launcher::variables().iter().for_each(|name| {
                    command.env_remove(name);
                });
                command
                    .args(self.arguments(job, threads, device))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null());
                // Concurrent runs would mix their output; each writes its own log.txt.
                command.stderr(if parallel == 1 { Stdio::inherit() } else { Stdio::piped() });
                let error = match start(&mut command) {
                    Ok(child) => outcome(child),
                    Err(e) => Some(format!("error: {} cannot be started: {e}", program.display())),
                };
                task.advance(1);
                match error {
                    None => errln!("{label}: {}", status(job)),
                    Some(reason) => {
                        errln!("{label}: failed");
                        failed
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .push(FailedJob { job: job.clone(), reason });
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for index in 1..parallel {
                let work = move || worker(index);
                if let Err(e) = std::thread::Builder::new().spawn_scoped(scope, work) {
                    errln!("warning: cannot start a thread, so fewer runs train in parallel: {e}");
                    break;
                }
            }
            worker(0);
        });
        Ok(failed.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    /// Returns the arguments that start or resume a run.
    fn arguments(&self, job: &Job, threads: usize, device: &str) -> Vec<OsString> {
        let memory =
            self.memory.map(|bytes| ["--memory".into(), bytes.to_string().into()]).into_iter().flatten();
        let mut all: Vec<OsString> = vec!["--threads".into(), threads.to_string().into()];
        if !self.force && job.dir.path().join("run.json").exists() {
            all.extend(["resume".into(), job.dir.path().into(), STOP.into()]);
            // A run continues on its own device, unless runs are spread over several.
            if self.devices.len() > 1 {
                all.extend(["--device".into(), device.into()]);
            }
            all.extend(memory);
            return all;
        }
        all.extend(["run".into(), self.recipe.into(), STOP.into()]);
        all.extend(["--seeds".into(), job.seed.to_string().into()]);
        all.extend(["--out".into(), self.out.into(), "--device".into(), device.into()]);
        all.extend(job.set.iter().flat_map(|s| ["--set".into(), OsString::from(s)]));
        all.extend(memory);
        all.extend(self.force.then(|| "--force".into()));
        all
    }
}

/// Describes the state of a run's folder after its process has ended.
fn status(job: &Job) -> String {
    Standing::of(&job.dir, job.seed).map_or_else(|e| e.to_string(), |s| s.status)
}

/// Starts a process that a terminal's interrupt does not reach; [`outcome`] passes it on.
fn start(command: &mut Command) -> std::io::Result<Child> {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.spawn()
}

/// Waits for a run, and asks it to save and stop when this process is asked to. Returns `None` if the run
/// succeeded or was interrupted, otherwise its last message.
fn outcome(mut child: Child) -> Option<String> {
    let talk = child.stderr.take().map(|mut pipe| {
        let read = move || {
            let mut text = Vec::new();
            // Unreadable output is not shown.
            let _ = std::io::Read::read_to_end(&mut pipe, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        };
        std::thread::Builder::new().spawn(read)
    });
    let mut stdin = child.stdin.take();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(Duration::from_millis(50)),
            Err(e) => return Some(format!("error: cannot wait for the process: {e}")),
        }
        if console::stop_asked() {
            drop(stdin.take());
        }
    };
    let said = match talk {
        Some(Ok(thread)) => thread.join().unwrap_or_default(),
        Some(Err(e)) => {
            format!(
                "error: {status}; cannot start a thread to read its messages: {e}; `ulimit -u` limits them"
            )
        }
        None => String::new(),
    };
    if status.success() || status.code() == Some(130) {
        return None;
    }
    let error =
        said.lines().skip_while(|l| !l.starts_with("error")).map(|l| format!("  {l}\n")).collect::<String>();
    Some(if error.is_empty() { format!("  {status}") } else { error.trim_end().to_string() })
}
