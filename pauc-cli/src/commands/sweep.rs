//! `sweep`.

use super::{device, here, load};
use crate::Failure;
use crate::args::SweepArgs;
use crate::console::{self, catch_signals};
use pauc::dfdx::prelude::Cpu;
use pauc::train::plan::{Plan, PlanError};
use pauc::train::recipe::{LoadError, Source};
use pauc::train::run_dir::RunDir;
use pauc::train::sweep::{self, Point, Row, Standing, Sweep};
use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A combination of values with what it sets in the recipe, the hash of that, and its seeds.
struct Combination {
    point: Point,
    name: String,
    set: Vec<String>,
    hash: String,
    seeds: Vec<u64>,
}

/// One run that is not finished.
struct Job {
    what: String,
    seed: u64,
    dir: RunDir,
    set: Vec<String>,
}

/// Trains every combination that is not trained yet, and prints what came of all of them.
pub fn sweep(args: SweepArgs) -> Result<ExitCode, Failure> {
    device::check(&args.training.device)?;
    // What can be wrong with a recipe is the same on every device.
    let device = Cpu::default();
    let (mut sweep, source) = Sweep::load(&args.sweep).map_err(|e| match e {
        LoadError::File { path, source } => {
            Failure::new(2, format!("error: cannot read the sweep {path}: {source}"))
        }
        LoadError::Recipe(found) => Failure::new(2, found.render(console::color()).trim_end()),
    })?;
    if !args.seeds.is_empty() {
        sweep.seeds.clone_from(&args.seeds);
    }
    let recipe = sweep.recipe_beside(&args.sweep);
    // All recipes are checked before the first is trained: an error in the last must not wait for hours.
    let mut all: Vec<Combination> = Vec::new();
    let mut recipe_name = String::new();
    for point in sweep.points() {
        let mut set = sweep.set(&point);
        set.extend(args.training.change.set.iter().cloned());
        let plan = checked(&device, &sweep, &source, &point, &recipe, &set, all.is_empty())?;
        recipe_name = plan.recipe.name.to_string();
        let seeds = if sweep.seeds.is_empty() { vec![plan.recipe.train.seed] } else { sweep.seeds.clone() };
        let name = sweep.name(&point);
        if let Some(same) = all.iter().find(|c| c.hash == plan.hash) {
            eprintln!("{name} is the same recipe as {}: it is trained once", same.name);
            continue;
        }
        all.push(Combination { point, name, set, hash: plan.hash, seeds });
    }
    let dir = |c: &Combination, seed: u64| RunDir::of(&args.training.out, &recipe_name, &c.hash, seed);
    let mut jobs = Vec::new();
    for c in &all {
        for seed in &c.seeds {
            let dir = dir(c, *seed);
            if args.force || !standing(&dir, *seed, &args.training.out)?.is_finished() {
                jobs.push(Job {
                    what: format!("{} seed {seed}", c.name),
                    seed: *seed,
                    dir,
                    set: c.set.clone(),
                });
            }
        }
    }
    let runs: usize = all.iter().map(|c| c.seeds.len()).sum();
    eprintln!("{runs} runs, {} already done", runs - jobs.len());
    let mut failed = Vec::new();
    if !args.dry_run && !jobs.is_empty() {
        catch_signals();
        failed = work(&jobs, &args, &recipe)?;
    }
    let mut rows = Vec::new();
    for c in &all {
        let of = |seed: &u64| standing(&dir(c, *seed), *seed, &args.training.out);
        let standing = c.seeds.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        rows.push(Row::new(&sweep, &c.point, &c.hash, standing));
    }
    sweep::order(&mut rows, sweep.best.as_ref());
    if args.json {
        let failed: Vec<_> = failed
            .iter()
            .map(|(job, why)| serde_json::json!({ "run": job.dir.path(), "error": why }))
            .collect();
        let json = serde_json::json!({
            "sweep": args.sweep, "recipe": recipe, "name": recipe_name, "rows": rows, "failed": failed,
        });
        println!("{json}");
    } else {
        print!("{}", sweep::table(&sweep, &rows));
    }
    if !failed.is_empty() {
        let one =
            |(job, why): &(&Job, String)| format!("\n{}: {}\n{why}", job.what, job.dir.path().display());
        let all: Vec<String> = failed.iter().map(one).collect();
        return Err(Failure::new(
            1,
            format!("error: {} of {} runs failed{}", failed.len(), runs, all.concat()),
        ));
    }
    Ok(if console::stop_asked() { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// The plan of a combination. Mistakes are drawn over the recipe as it would be, with the places of the values below.
fn checked(
    device: &Cpu,
    sweep: &Sweep,
    source: &Source,
    point: &Point,
    recipe: &Path,
    set: &[String],
    first: bool,
) -> Result<Plan, Failure> {
    let whence = |f: Failure| {
        let message = format!(
            "{}\nthe recipe has these values from the sweep:\n{}",
            f.message,
            sweep.whence(point, source)
        );
        Failure { message, ..f }
    };
    let (recipe, text) = load(recipe, set).map_err(|f| {
        // A recipe that is not there has no values.
        if recipe.is_file() { whence(f) } else { f }
    })?;
    let plan = Plan::new(device, recipe, text, &here()?).map_err(|e| match e {
        PlanError::Recipe(found) => whence(Failure::new(2, found.render(console::color()).trim_end())),
        PlanError::Data { error, .. } => Failure::new(4, format!("error: {error}")),
    })?;
    if first {
        eprint!("{}", plan.warnings.render(console::color()));
    }
    Ok(plan)
}

/// What a run's folder says after its process has ended.
fn status(job: &Job) -> String {
    Standing::of(&job.dir, job.seed).map_or_else(|e| e.to_string(), |s| s.status)
}

/// Runs all jobs in processes of their own, as many at a time as asked for. Returns those that failed, and what they said.
fn work<'a>(jobs: &'a [Job], args: &SweepArgs, recipe: &Path) -> Result<Vec<(&'a Job, String)>, Failure> {
    let program = std::env::current_exe()
        .map_err(|e| Failure::new(1, format!("error: this program cannot find itself: {e}")))?;
    let at_once = args.jobs.get().min(jobs.len());
    let threads = (rayon::current_num_threads() / at_once).max(1);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let worker = || {
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst) + 1;
            let Some(job) = jobs.get(number - 1).filter(|_| !console::stop_asked()) else { return };
            eprintln!("[{number}/{}] {}", jobs.len(), job.what);
            let mut command = Command::new(&program);
            command.args(arguments(job, args, recipe, threads)).stdin(Stdio::null()).stdout(Stdio::null());
            // Several runs would talk at once; each has its own log.txt.
            command.stderr(if at_once == 1 { Stdio::inherit() } else { Stdio::piped() });
            let why = match start(&mut command) {
                Ok(child) => outcome(child),
                Err(e) => Some(format!("error: {} cannot be started: {e}", program.display())),
            };
            match why {
                None => eprintln!("[{number}/{}] {}: {}", jobs.len(), job.what, status(job)),
                Some(why) => {
                    eprintln!("[{number}/{}] {}: failed", jobs.len(), job.what);
                    failed.lock().unwrap_or_else(|e| e.into_inner()).push((job, why));
                }
            }
        }
    };
    std::thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(worker))));
    Ok(failed.into_inner().unwrap_or_else(|e| e.into_inner()))
}

fn arguments(job: &Job, args: &SweepArgs, recipe: &Path, threads: usize) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["--threads".into(), threads.to_string().into()];
    if !args.force && job.dir.path().join("run.json").exists() {
        return all.into_iter().chain(["resume".into(), job.dir.path().into()]).collect();
    }
    all.extend(["run".into(), recipe.into(), "--seeds".into(), job.seed.to_string().into()]);
    all.extend([
        "--out".into(),
        args.training.out.clone().into(),
        "--device".into(),
        args.training.device.clone().into(),
    ]);
    all.extend(job.set.iter().flat_map(|s| ["--set".into(), OsString::from(s)]));
    all.extend(args.force.then(|| "--force".into()));
    all
}

/// What a run's folder says.
fn standing(dir: &RunDir, seed: u64, out: &Path) -> Result<Standing, Failure> {
    Standing::of(dir, seed).map_err(|e| super::run::failure(e.into(), out))
}

/// Starts a process that a terminal's interrupt does not reach: it is passed on by [`outcome`], once.
fn start(command: &mut Command) -> std::io::Result<Child> {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.spawn()
}

/// Waits for a run, and asks it to save and stop when this process is asked to. `None`: it ended well, or was
/// interrupted; otherwise what it said last.
fn outcome(mut child: Child) -> Option<String> {
    let talk = child.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // What cannot be read is not shown.
            let _ = std::io::Read::read_to_end(&mut pipe, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let mut asked = false;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(Duration::from_millis(50)),
            Err(e) => return Some(format!("error: it cannot be waited for: {e}")),
        }
        if console::stop_asked() && !asked {
            asked = true;
            ask_to_stop(&mut child);
        }
    };
    let said = talk.and_then(|t| t.join().ok()).unwrap_or_default();
    if status.success() || status.code() == Some(130) {
        return None;
    }
    let error =
        said.lines().skip_while(|l| !l.starts_with("error")).map(|l| format!("  {l}\n")).collect::<String>();
    Some(if error.is_empty() { format!("  {status}") } else { error.trim_end().to_string() })
}

#[cfg(unix)]
fn ask_to_stop(child: &mut Child) {
    use nix::sys::signal::{Signal, kill};
    let id = i32::try_from(child.id()).map(nix::unistd::Pid::from_raw);
    // A process that has ended in the meantime needs no signal.
    let _ = id.map(|id| kill(id, Signal::SIGTERM));
}

#[cfg(not(unix))]
fn ask_to_stop(child: &mut Child) {
    let _ = child.kill();
}
