//! Resumes a run from a checkpoint.

use crate::branch::Branch;
use crate::history::{Written, write_recipes};
use crate::lock::Lock;
use crate::observer::Observer;
use crate::plan::Plan;
use crate::progress::Change;
use crate::ranks;
use crate::run::{Outcome, RunError, RunOptions, drive};
use crate::run_dir::{RunDir, RunInfo};
use crate::state::TrainState;
use crate::trainer::Trainer;
use pauc_models::device::NetworkDevice;
use pauc_traits::{Error, Result};
use std::path::Path;

/// What a resumed run may do differently on request.
#[derive(Clone, Debug, Default)]
pub struct Continuation {
    /// Whether to continue with data that differs from the run's.
    pub accept_data: bool,
    /// The checkpoint to continue from, and how the recipe changes there; none: the newest one, unchanged.
    pub branch: Option<Branch>,
}

/// Resumes a run from its last checkpoint, or from the one of a [`Branch`].
///
/// A change is in force when `last.safetensors` has it. What a process that is killed then leaves undone, the next one
/// does.
///
/// # Errors
/// If the checkpoint is damaged or of another recipe, the data has changed and that is not accepted, or
/// anything fails during the run.
pub fn resume<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    dir: RunDir,
    how: &Continuation,
    options: &RunOptions,
    watch: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    let mut trainer = Trainer::new(device, plan)?;
    let ranks = &*plan.communicator;
    let lock = ranks::on_first(ranks, || load_changed(&mut trainer, plan, &dir, how, watch))?;
    trainer.share_state()?;
    let outcome = drive(trainer, dir, plan, options, watch);
    drop(lock);
    outcome
}

/// Loads the state that a run continues from, and makes its folder that of this state. Returns the folder's lock.
fn load_changed<D: NetworkDevice>(
    trainer: &mut Trainer<'_, D>,
    plan: &Plan,
    dir: &RunDir,
    how: &Continuation,
    watch: &mut dyn Observer,
) -> Result<Lock> {
    let lock = dir.lock()?;
    let mut changes = match &how.branch {
        None => load(trainer, dir, watch).map(|()| Vec::new())?,
        Some(branch) => load_branch(trainer, branch, dir)?,
    };
    changes.extend(accept_data(trainer.state_mut(), plan, dir, how.accept_data)?);
    if !changes.is_empty() {
        let progress = &mut trainer.state_mut().progress;
        progress.changes.extend(changes.clone());
        progress.unlogged.extend(changes);
        reopen(dir)?;
        trainer.save_branch(dir)?;
    }
    if !trainer.state().progress.unlogged.is_empty() {
        dir.finish_branch(trainer.step())?;
        write_recipes(dir, &plan.resolved, &plan.history)?;
    }
    rewind(trainer.state(), dir, watch)?;
    Ok(lock)
}

/// Loads the checkpoint that a run continues from. Returns what changes.
fn load_branch<D: NetworkDevice>(
    trainer: &mut Trainer<'_, D>,
    branch: &Branch,
    dir: &RunDir,
) -> Result<Vec<Change>> {
    let origin = &branch.origin;
    trainer.load_of(origin.path(), origin.hash())?;
    let step = trainer.step();
    let newest = dir.checkpoints().iter().filter_map(|path| Written::of_file(path)).map(|w| w.step).max();
    let goes_back = newest.filter(|newest| *newest > step).map(|newest| {
        format!("the run continues from the checkpoint of this step; those up to step {newest} are set aside")
    });
    let changes: Vec<Change> =
        goes_back.into_iter().chain(branch.recipe_change.clone()).map(|what| Change { step, what }).collect();
    if !changes.is_empty() {
        let keeps_best = dir.has_best_until(step)?;
        let progress = &mut trainer.state_mut().progress;
        if std::mem::take(&mut progress.stopped) {
            progress.patience = None;
        }
        // The next probe then writes another best checkpoint.
        progress.best = progress.best.filter(|_| keeps_best);
    }
    Ok(changes)
}

/// Describes a run as interrupted, even if it was finished.
fn reopen(dir: &RunDir) -> Result<()> {
    let Some(info) = dir.info()? else { return Ok(()) };
    dir.set_info(&RunInfo { status: "interrupted".into(), ..info })
}

/// Loads the newest usable checkpoint. What is said of it is shown but not recorded: the log of a resumed run
/// equals that of an uninterrupted one.
fn load<D: NetworkDevice>(
    trainer: &mut Trainer<'_, D>,
    dir: &RunDir,
    watch: &mut dyn Observer,
) -> Result<()> {
    let (from, unusable) = trainer.load_newest(dir)?;
    let step = trainer.step();
    for text in unusable {
        watch.warn(step, text)?;
    }
    match from {
        None => {
            let text = format!("{} has no checkpoint; the run begins at step 0", dir.path().display());
            watch.warn(step, text)
        }
        Some(from) if dir.last_checkpoint().is_none_or(|last| from != last) => {
            watch.warn(step, format!("resuming from {}, step {step}", from.display()))
        }
        Some(_) => Ok(()),
    }
}

/// Compares the data with that of the run. Returns the change, if there is one and it is accepted.
fn accept_data<D: NetworkDevice>(
    state: &mut TrainState<D>,
    plan: &Plan,
    dir: &RunDir,
    accept: bool,
) -> Result<Vec<Change>> {
    let now = plan.data_identity();
    let of_run = match state.progress.data.take() {
        Some(identity) => Some(identity),
        None => dir.info()?.and_then(|info| info.data_identity),
    };
    state.progress.data = Some(now.clone());
    let Some(difference) = of_run.and_then(|run| now.difference(&run)) else { return Ok(Vec::new()) };
    if !accept {
        return Err(changed_data(dir.path(), &difference));
    }
    state.forget_samples(plan.splits.train.len());
    Ok(vec![Change { step: state.step, what: format!("the data changed: {difference}") }])
}

/// Returns the error about data that is no longer that of the run in a folder.
pub(crate) fn changed_data(run: &Path, difference: &str) -> Error {
    let remedy = "restore the data, or accept the change with `--data-changed accept`";
    Error::damaged(run, format!("the data has changed: {difference}; {remedy}"))
}

/// Moves the events after the checkpoint aside.
fn rewind<D: NetworkDevice>(state: &TrainState<D>, dir: &RunDir, watch: &mut dyn Observer) -> Result<()> {
    let want = state.progress.events;
    let kept = dir.rewind_events(want)?;
    if kept < want {
        let path = dir.path().join("metrics.jsonl");
        let text = format!("{} has {kept} events, but the checkpoint recorded {want}", path.display());
        watch.warn(state.step, text)?;
    }
    Ok(())
}
