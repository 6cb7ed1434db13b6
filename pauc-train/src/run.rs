//! A whole run: folder, trainer, log, report, summary.

use crate::data_issues;
use crate::lock::{Holder, Lock};
use crate::log_sinks::LogSinks;
use crate::observer::{Observer, Progress};
use crate::picture;
use crate::plan::Plan;
use crate::ranks;
use crate::run_dir::{EventLog, RunDir, RunInfo};
use crate::trainer::{Ending, Trainer};
use pauc_models::device::NetworkDevice;
use pauc_report::events::{self, Event, Log, Metric, Subject};
use pauc_report::postmortem::{Postmortem, story};
use pauc_traits::dataset::Skipped;
use pauc_traits::probe::{MetricKind, may_read_test_split};
use pauc_traits::{Error, Result, stop};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Options of a run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The folder to write runs to.
    pub out: PathBuf,
    /// Whether to replace an existing run.
    pub force: bool,
    /// Stop after this many steps.
    pub max_steps: Option<u64>,
    /// The number of threads in use, for `run.json`.
    pub threads: usize,
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The run's folder.
    pub dir: RunDir,
    /// How it ended.
    pub ending: Ending,
    /// The metrics of each subject: baselines first, then the trained encoder at the end of the run.
    pub summary: Vec<(Subject, Vec<Metric>)>,
    /// The report, if one could be written.
    pub report: Option<PathBuf>,
}

/// Why a run did not start or finish.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The same run is already finished.
    #[error("{} is already finished; `--force` trains it again", .0.display())]
    AlreadyDone(PathBuf),
    /// The same run exists and is unfinished.
    #[error("{path} is an unfinished run; `pauc-cli resume {path}` continues it, `--force` starts over", path = path.display())]
    Unfinished {
        /// Its folder.
        path: PathBuf,
    },
    /// Another process is training the run.
    #[error("{path}: {holder} is training this run; `pauc-cli tail {path}` follows it", path = path.display())]
    Running {
        /// Its folder.
        path: PathBuf,
        /// The process.
        holder: Holder,
    },
    /// The run's folder contains something other than a run.
    #[error("{} is not empty and not a run (no run.json); move it away, or choose another `--out`", .0.display())]
    NoRun(PathBuf),
    /// The folder has this recipe's run, but the run's recipe was changed.
    #[error(
        "{path} began with this recipe, which was changed after step {since}; `--out` trains the unchanged recipe \
         elsewhere, `--force` replaces the run, `pauc-cli resume {path}` continues it",
        path = path.display()
    )]
    Changed {
        /// Its folder.
        path: PathBuf,
        /// The number of steps before the last change.
        since: u64,
    },
    /// The folder has results, but no description of their run.
    #[error(
        "{path} has no run.json, but {content}; `pauc-cli resume {path}` rebuilds it from a checkpoint, \
         `--force` starts over",
        path = path.display()
    )]
    Undescribed {
        /// Its folder.
        path: PathBuf,
        /// The first result in it, by name.
        content: String,
    },
    /// A value became NaN or infinite.
    #[error("{error}")]
    Diverged {
        /// Its folder.
        path: PathBuf,
        /// The error.
        error: Error,
        /// What is known about it.
        postmortem: Box<Postmortem>,
    },
    /// The run failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Runs a plan from the start.
///
/// # Errors
/// If the folder already contains the same run, or anything fails during the run; everything logged and saved
/// before is kept.
pub fn run<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    options: &RunOptions,
    watch: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    let dir = RunDir::of(&options.out, &plan.recipe.name, &plan.hash, plan.recipe.train.seed);
    first_may_refuse(plan, &dir, || {
        refuse_existing(&dir, options.force).map_err(|refusal| match refusal {
            RunError::Unfinished { path } => match dir.holder() {
                Ok(Some(holder)) => RunError::Running { path, holder },
                _ => RunError::Unfinished { path },
            },
            other => other,
        })
    })?;
    // Check everything that can be checked before deleting anything.
    let mut trainer = Trainer::new(device, plan)?;
    trainer.state_mut().progress.data = Some(plan.data_identity().clone());
    let lock = first_may_refuse(plan, &dir, || begin(&dir, plan, options))?;
    let outcome = drive(trainer, dir, plan, options, watch);
    drop(lock);
    outcome
}

/// Does work on rank 0, and returns its result there; see [`ranks::on_first`]. All ranks know a finished run as such.
fn first_may_refuse<T>(
    plan: &Plan,
    dir: &RunDir,
    work: impl FnOnce() -> Result<T, RunError>,
) -> Result<Option<T>, RunError> {
    let (mut done, mut refusal) = (None, None);
    let finished = ranks::from_first(&*plan.communicator, || match work() {
        Ok(value) => {
            done = Some(value);
            Ok(Vec::new())
        }
        Err(RunError::AlreadyDone(_)) => Ok(vec![1]),
        Err(RunError::Failed(error)) => Err(error),
        Err(other) => {
            let text = other.to_string();
            refusal = Some(other);
            Err(Error::config(text))
        }
    });
    match refusal {
        Some(refusal) => Err(refusal),
        None if finished?.is_empty() => Ok(done),
        None => Err(RunError::AlreadyDone(dir.path().into())),
    }
}

/// Makes the folder that of a new run, and returns its lock.
fn begin(dir: &RunDir, plan: &Plan, options: &RunOptions) -> Result<Lock, RunError> {
    let lock = dir.create_locked()?;
    // Another process may have worked on the run in the meantime.
    refuse_existing(dir, options.force)?;
    dir.clear(&lock)?;
    dir.create()?;
    dir.write("recipe.ron", &plan.source.original)?;
    dir.write("recipe.resolved.ron", &plan.resolved)?;
    if !plan.splits.skipped.is_empty() {
        let line = |s: &Skipped| format!("{}\n", serde_json::json!({ "path": s.path, "reason": s.reason }));
        dir.write("data_errors.jsonl", plan.splits.skipped.iter().map(line).collect::<String>())?;
    }
    Ok(lock)
}

/// Refuses a folder with results that only `--force` may replace, or with something other than a run.
fn refuse_existing(dir: &RunDir, force: bool) -> Result<(), RunError> {
    let path = dir.path().to_path_buf();
    if !dir.is_free_or_run()? {
        return Err(RunError::NoRun(path));
    }
    if force {
        return Ok(());
    }
    let info = dir.info()?;
    if let Some(since) = info.as_ref().and_then(|info| info.recipes.since()) {
        return Err(RunError::Changed { path, since });
    }
    match info {
        Some(info) if info.status == "finished" => Err(RunError::AlreadyDone(path)),
        Some(_) => Err(RunError::Unfinished { path }),
        None => match dir.first_result()? {
            Some(content) => Err(RunError::Undescribed { path, content }),
            None => Ok(()),
        },
    }
}

/// Cleans up a finished run's folder: a process killed right after its last step may have left a temporary
/// file and no report. Returns the run's result.
///
/// # Errors
/// If another process is working on the run, or the disk fails.
pub fn tidy(dir: &RunDir) -> Result<Outcome> {
    let _lock = dir.lock()?;
    let report = dir.path().join("report.html");
    if !report.exists() {
        pauc_report::write_report(dir.path())?;
    }
    Ok(Outcome {
        dir: dir.clone(),
        ending: Ending::Finished,
        summary: summary_so_far(dir),
        report: Some(report),
    })
}

/// Trains, with a log and a report, which rank 0 writes. Changes that are not in the log yet are recorded first.
pub(crate) fn drive<D: NetworkDevice>(
    mut trainer: Trainer<'_, D>,
    dir: RunDir,
    plan: &Plan,
    options: &RunOptions,
    watch: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    if plan.communicator.rank() > 0 {
        return follow(trainer, dir, plan, options, watch);
    }
    let mut info = run_info(plan, &trainer, options.threads);
    let unlogged = std::mem::take(&mut trainer.state_mut().progress.unlogged);
    let mut recorder = Recorder::open(&dir, plan, &mut info, watch)?;
    for change in unlogged {
        recorder.event(&Event::Change(events::Change { step: change.step, text: change.what }))?;
    }
    let trained = trainer.train(&dir, options.max_steps, &mut recorder);
    info.status = match &trained {
        Ok(Ending::Finished) => "finished",
        Ok(Ending::Interrupted | Ending::Paused) => "interrupted",
        Err(_) => "failed",
    }
    .into();
    let ending = match trained {
        Ok(ending) => ending,
        Err(e) => {
            // Without its lock, the folder belongs to another process.
            if recorder.log.check_lock().is_ok() {
                // A full disk may have stopped the run and may make this fail too; report the first error.
                let _ = dir.set_info(&info);
            }
            return Err(match trainer.postmortem() {
                Some(postmortem) => diverged(e, postmortem, &dir, &mut recorder),
                None => e.into(),
            });
        }
    };
    let summary = recorder.summary;
    let finished = ranks::on_first(&*plan.communicator, || {
        let (ending, report) = finish(&mut trainer, &dir, (plan, info), ending, watch)?;
        Ok(Outcome { dir, ending, summary, report })
    });
    finished?.ok_or_else(|| Error::config("rank 0 has no result").into())
}

/// Trains as a rank that writes nothing.
fn follow<D: NetworkDevice>(
    mut trainer: Trainer<'_, D>,
    dir: RunDir,
    plan: &Plan,
    options: &RunOptions,
    watch: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    trainer.state_mut().progress.unlogged.clear();
    let trained = trainer.train(&RunDir::in_memory(), options.max_steps, &mut Silent(watch));
    let ending = trained.map_err(|error| match trainer.postmortem() {
        Some(postmortem) => {
            RunError::Diverged { path: dir.path().into(), error, postmortem: Box::new(postmortem.clone()) }
        }
        None => error.into(),
    })?;
    // Rank 0 may still fail to write the report.
    ranks::on_first(&*plan.communicator, || Ok(()))?;
    Ok(Outcome { dir, ending, summary: Vec::new(), report: None })
}

/// Draws the figures and writes the report of a training. Returns how the run ended.
fn finish<D: NetworkDevice>(
    trainer: &mut Trainer<'_, D>,
    dir: &RunDir,
    (plan, mut info): (&Plan, RunInfo),
    ending: Ending,
    watch: &mut dyn Observer,
) -> Result<(Ending, Option<PathBuf>)> {
    let ending = match figures(plan, trainer, dir, watch) {
        Ok(()) => {
            dir.set_info(&info)?;
            ending
        }
        Err(error) => {
            // Then `resume` draws them.
            let stopped = matches!(error, Error::Stopped);
            info.status = if stopped { "interrupted" } else { "failed" }.into();
            let _ = dir.set_info(&info);
            if !stopped {
                return Err(error);
            }
            Ending::Interrupted
        }
    };
    let report = report(dir, watch)?;
    if report.is_none() {
        info.status = "interrupted".into();
        dir.set_info(&info)?;
        return Ok((Ending::Interrupted, None));
    }
    Ok((ending, report))
}

/// Tells of a run that NaN or infinity ended: in its log, in its report, and in the error.
fn diverged(error: Error, postmortem: &Postmortem, dir: &RunDir, recorder: &mut Recorder<'_>) -> RunError {
    let (step, text) = (postmortem.step, story::summary(postmortem));
    // What cannot be written must not hide the error.
    let _ = recorder.record(&Event::Diverged(events::Diverged { step, text }));
    let _ = pauc_report::write_report(dir.path());
    RunError::Diverged { path: dir.path().into(), error, postmortem: Box::new(postmortem.clone()) }
}

/// How long a report may take in a run that was asked to stop.
const REPORT_OF_STOPPED: Duration = Duration::from_secs(1);

/// Writes the report, unless the run is asked to stop meanwhile, or was and the report takes long. Then `resume` writes
/// it.
fn report(dir: &RunDir, watch: &dyn Observer) -> Result<Option<PathBuf>> {
    let path = dir.path().to_path_buf();
    let asked = watch.stop_flag().map(|asked| match asked.load(Ordering::Relaxed) {
        true => set_after(REPORT_OF_STOPPED),
        false => asked,
    });
    match stop::within(asked, || stop::detached(move || pauc_report::write_report(&path))) {
        Err(Error::Stopped) => Ok(None),
        written => written?.map(Some),
    }
}

/// Returns a flag that is set after some time.
fn set_after(time: Duration) -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let theirs = flag.clone();
    // Without a thread, the report is written to its end.
    let _ = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(time);
        theirs.store(true, Ordering::Relaxed);
    });
    flag
}

/// Draws what the report shows of the trained network. What cannot be drawn, such as t-SNE without memory, is left
/// out with a warning.
fn figures<D: NetworkDevice>(
    plan: &Plan,
    trainer: &mut Trainer<'_, D>,
    dir: &RunDir,
    watch: &mut dyn Observer,
) -> Result<()> {
    let step = trainer.step();
    let splits = trainer.take_final_splits();
    let drawn = stop::within(watch.stop_flag(), || {
        let state = trainer.state_mut();
        [
            picture::embedding(plan, state, splits.as_ref(), dir),
            picture::prototypes(plan, state, dir),
            data_issues::write(plan, state, splits, dir),
        ]
    });
    for figure in drawn {
        match figure {
            Err(Error::Config { message }) => watch.warn(step, format!("a figure is missing: {message}"))?,
            other => other?,
        }
    }
    Ok(())
}

/// Returns the content of `run.json` for a run that is about to start or resume.
fn run_info<D: NetworkDevice>(plan: &Plan, trainer: &Trainer<'_, D>, threads: usize) -> RunInfo {
    RunInfo {
        name: plan.recipe.name.to_string(),
        hash: plan.hash.clone(),
        seed: plan.recipe.train.seed,
        status: "running".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: trainer.device_name(),
        threads,
        simd: pauc_kernels::simd::Simd::detect().map_or_else(|e| e.to_string(), |s| s.name().to_string()),
        ranks: Some(plan.communicator.size()).filter(|ranks| *ranks > 1),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        data: plan.splits.description.clone(),
        recipe: plan.source.path.clone(),
        data_identity: Some(plan.data_identity().clone()),
        changes: trainer.state().progress.changes.clone(),
        recipes: plan.history.without_texts(),
    }
}

/// Writes every event to the log before showing it, and remembers the metrics for the closing table.
struct Recorder<'a> {
    log: EventLog,
    sinks: LogSinks,
    watch: &'a mut dyn Observer,
    summary: Vec<(Subject, Vec<Metric>)>,
}

/// The observer of a rank that writes nothing.
struct Silent<'a>(&'a dyn Observer);

impl Observer for Silent<'_> {
    fn event(&mut self, _: &Event) -> Result<()> {
        Ok(())
    }
    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }
    fn stop_flag(&self) -> Option<Arc<AtomicBool>> {
        self.0.stop_flag()
    }
}

impl<'a> Recorder<'a> {
    /// Describes the run as running, and opens its log.
    fn open(dir: &RunDir, plan: &Plan, info: &mut RunInfo, watch: &'a mut dyn Observer) -> Result<Self> {
        if let Some(before) = dir.info()? {
            info.keep_origin_of(before);
        }
        dir.set_info(info)?;
        let (log, sinks) = (dir.events()?, LogSinks::open(dir.path())?);
        let mut recorder = Recorder { log, sinks, watch, summary: summary_so_far(dir) };
        recorder.log_warnings(plan)?;
        Ok(recorder)
    }

    /// Writes an event to the logs without showing it.
    fn record(&mut self, event: &Event) -> Result<()> {
        self.log.append(event)?;
        self.sinks.append(event)
    }

    /// Logs the recipe's warnings at the start of a run. They are not shown, because they were already
    /// printed with the recipe.
    fn log_warnings(&mut self, plan: &Plan) -> Result<()> {
        if self.log.synced()? > 0 {
            return Ok(());
        }
        for d in &plan.warnings.all {
            let text = format!("{}: {}", d.code, d.message);
            self.log.append(&Event::Warning(events::Warning { step: 0, text }))?;
        }
        Ok(())
    }
}

impl Observer for Recorder<'_> {
    fn event(&mut self, event: &Event) -> Result<()> {
        self.record(event)?;
        if let Event::Probe(p) = event {
            note(&mut self.summary, p);
        }
        self.watch.event(event)
    }
    fn recorded(&mut self) -> Result<u64> {
        self.log.synced()
    }
    fn progress(&mut self, progress: &Progress<'_>) {
        self.watch.progress(progress);
    }
    fn should_stop(&self) -> bool {
        self.watch.should_stop()
    }
    fn stop_flag(&self) -> Option<Arc<AtomicBool>> {
        self.watch.stop_flag()
    }
}

fn note(summary: &mut Vec<(Subject, Vec<Metric>)>, probe: &events::Probe) {
    summary.retain(|(s, _)| *s != probe.subject);
    summary.push((probe.subject, probe.metrics.clone()));
}

/// Returns the metrics that a resumed run measured before: its baselines.
fn summary_so_far(dir: &RunDir) -> Vec<(Subject, Vec<Metric>)> {
    let mut summary = Vec::new();
    let log = Log::read(&dir.path().join("metrics.jsonl")).unwrap_or_default();
    for event in &log.events {
        if let Event::Probe(p) = event {
            note(&mut summary, p);
        }
    }
    summary
}

/// Formats the closing table: one row per accuracy, because their names are long, and one column per subject.
pub fn table(summary: &[(Subject, Vec<Metric>)]) -> String {
    let mut rows: Vec<&str> = Vec::new();
    for metric in summary.iter().flat_map(|(_, metrics)| metrics) {
        if metric.kind == MetricKind::Accuracy && !rows.contains(&metric.name.as_str()) {
            rows.push(&metric.name);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let subjects = [
        (Subject::RawPixels, "raw pixels"),
        (Subject::RandomInit, "random init"),
        (Subject::Trained, "trained"),
    ];
    let columns: Vec<_> = subjects
        .iter()
        .filter_map(|(subject, label)| Some((*label, &summary.iter().find(|(s, _)| s == subject)?.1)))
        .collect();
    let is_on_test = rows.iter().all(|row| may_read_test_split(row));
    let title = if is_on_test { "accuracy, test split" } else { "accuracy, test split or heldout" };
    let width = rows.iter().map(|r| r.chars().count()).max().unwrap_or(0).max(title.len());
    let mut out = format!("{title:<width$}");
    columns.iter().for_each(|(label, _)| out.push_str(&format!("  {label:>11}")));
    out.push('\n');
    for row in rows {
        out.push_str(&format!("{row:<width$}"));
        for (_, metrics) in &columns {
            let value = metrics.iter().find(|m| m.name == row);
            let text = value.map_or("–".into(), |m| format!("{:.1} %", m.value * 100.0));
            out.push_str(&format!("  {text:>11}"));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_table_has_a_row_for_each_accuracy_and_no_details() {
        use pauc_traits::probe::Metric;
        let logged =
            |metrics: &[Metric]| metrics.iter().cloned().map(events::Metric::from).collect::<Vec<_>>();
        let trained = [
            Metric::accuracy("knn/cos/k20/t0.07", 0.842),
            Metric::new("rankme/features", 9.0),
            Metric::detail("linear/lbfgs/standardised", "l2", 0.1),
            Metric::accuracy("linear/lbfgs/standardised", 0.5),
        ];
        let summary = vec![
            (Subject::Trained, logged(&trained)),
            (Subject::RawPixels, logged(&[Metric::accuracy("knn/cos/k20/t0.07", 0.791)])),
        ];
        let want = "\
accuracy, test split        raw pixels      trained
knn/cos/k20/t0.07               79.1 %       84.2 %
linear/lbfgs/standardised            –       50.0 %
";
        assert_eq!(table(&summary), want);
        assert_eq!(table(&[(Subject::Trained, logged(&trained[1..3]))]), "");
        let held_out = [Metric::accuracy("knn/cos/k20/t0.07/heldout", 0.9)];
        let text = table(&[(Subject::Trained, logged(&held_out))]);
        assert!(text.starts_with("accuracy, test split or heldout  "), "{text}");
    }
}
