//! The training loop.

use crate::evaluate::Embedded;
use crate::observer::{Observer, Progress};
use crate::phase::Phase;
use crate::plan::Plan;
use crate::postmortem::Failure;
use crate::prefetch::loader_options;
use crate::probing::{self, EmbeddedSplits, Probed};
use crate::run_dir::RunDir;
use crate::selection::{record_best, record_patience, value_of};
use crate::state::TrainState;
use crate::step::{StepOutcome, StepRunner};
use crate::step_batch::{StepCache, share_of_rank, syncs_statistics};
use crate::timings::EpochTimings;
use crate::{checkpoint, e_step, health, ranks, step_log};
use pauc_data::{Batches, ImageBatch, Loader, LoaderOptions, Throughput};
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_report::events::{self, Event, Status};
use pauc_report::postmortem::Postmortem;
use pauc_traits::probe::Metric;
use pauc_traits::trace::{self, span};
use pauc_traits::{Count, Error, Param, Result, stop};
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps were taken.
    Finished,
    /// The observer asked to stop; a checkpoint was saved.
    Interrupted,
    /// The last requested step was taken, and it is not the run's last; a checkpoint was saved.
    Paused,
}

/// Checks that ranks can share the shards of a batch, the same number each.
///
/// # Errors
/// [`Error::Config`] with numbers of ranks that can.
pub fn check_ranks(ranks: usize, shards: usize) -> Result<()> {
    if shards.is_multiple_of(ranks) {
        return Ok(());
    }
    if shards == 1 {
        return Err(Error::config(format!(
            "{ranks} ranks need a batch in shards: start 1 rank, or set `train.shards` to {} or a larger power of two, which \
             changes the experiment",
            ranks.next_power_of_two()
        )));
    }
    let fitting =
        (0..=shards.ilog2()).map(|i| 1usize << i).filter(|n| *n < ranks && shards.is_multiple_of(*n));
    let fitting: Vec<String> = fitting.map(|n| n.to_string()).collect();
    let more =
        if ranks.is_power_of_two() { format!(", or set `train.shards` to {ranks}") } else { String::new() };
    Err(Error::config(format!(
        "{ranks} ranks cannot share the {shards} shards of a batch: start {} ranks{more}",
        fitting.join(" or ")
    )))
}

/// A run in memory: its plan, its state and the training loop.
pub struct Trainer<'p, D: NetworkDevice> {
    device: D,
    plan: &'p Plan,
    state: TrainState<D>,
    cache: StepCache<D>,
    timings: EpochTimings,
    /// The step of the last checkpoint that this process wrote.
    saved_step: Option<u64>,
    /// The number of events recorded before a phase that was stopped; later ones are recorded again after `resume`.
    kept_events: Option<u64>,
    /// What is known about the NaN or infinity that ended training.
    postmortem: Option<Postmortem>,
    /// The splits as the probes at the end of the run read them, for its figures.
    final_splits: Option<EmbeddedSplits>,
}

impl<'p, D: NetworkDevice> Trainer<'p, D> {
    /// Creates a run before its first step. On several ranks, each creates one of the same plan, and calls the same
    /// methods; see [`Plan::with_communicator`].
    ///
    /// # Errors
    /// As [`TrainState::new`], or if the ranks do not divide the shards of a batch.
    pub fn new(device: &D, plan: &'p Plan) -> Result<Self> {
        check_ranks(plan.communicator.size(), plan.recipe.train.shards.get())?;
        let state = TrainState::new(device, plan)?;
        if syncs_statistics(plan, &state.network) && !state.network.normalizes_shards() {
            return Err(Error::config(format!(
                "on {} this network cannot take the batch statistics of all shards: use `--device cpu` and pauc's own \
                 networks, or leave `batch_norm: Synced` out",
                device.name()
            )));
        }
        Ok(Trainer {
            device: device.clone(),
            plan,
            state,
            cache: StepCache::default(),
            timings: EpochTimings::default(),
            saved_step: None,
            kept_events: None,
            postmortem: None,
            final_splits: None,
        })
    }

    /// Resumes from a checkpoint.
    ///
    /// # Errors
    /// As [`checkpoint::load`].
    pub fn load(&mut self, path: &Path) -> Result<()> {
        self.cache = StepCache::default();
        checkpoint::load(&self.device, self.plan, &mut self.state, path)
    }

    /// Resumes from a checkpoint of a run with another recipe, which this plan changes.
    ///
    /// # Errors
    /// As [`checkpoint::load`].
    pub(crate) fn load_of(&mut self, path: &Path, hash: &str) -> Result<()> {
        self.cache = StepCache::default();
        checkpoint::load_of(&self.device, self.plan, &mut self.state, path, hash)
    }

    /// Saves the state as the checkpoint that the run continues from, without counting the events.
    pub(crate) fn save_branch(&self, dir: &RunDir) -> Result<()> {
        checkpoint::save_branch(&self.device, self.plan, &self.state, dir)
    }

    /// Resumes from the newest usable checkpoint of a run. Returns it, if there is any, and the errors of the
    /// others.
    ///
    /// # Errors
    /// As [`checkpoint::load_newest`].
    pub fn load_newest(&mut self, dir: &RunDir) -> Result<(Option<PathBuf>, Vec<String>)> {
        self.cache = StepCache::default();
        checkpoint::load_newest(&self.device, self.plan, &mut self.state, dir)
    }

    /// Returns the number of steps taken.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Returns the content of a checkpoint.
    pub fn state(&self) -> &TrainState<D> {
        &self.state
    }

    /// Returns the content of a checkpoint.
    pub fn state_mut(&mut self) -> &mut TrainState<D> {
        &mut self.state
    }

    /// Returns the online network.
    pub fn network_mut(&mut self) -> &mut Network<D> {
        &mut self.state.network
    }

    /// Returns everything that is learned, in a fixed order.
    pub fn parameters(&self) -> Vec<Param<D>> {
        self.state.parameters()
    }

    /// Returns what is known about the NaN or infinity that ended training, if that happened.
    pub fn postmortem(&self) -> Option<&Postmortem> {
        self.postmortem.as_ref()
    }

    /// Makes the state of rank 0 that of all ranks.
    ///
    /// # Errors
    /// If the device or another rank fails.
    pub(crate) fn share_state(&mut self) -> Result<()> {
        checkpoint::share(&self.device, self.plan, &mut self.state)
    }

    pub(crate) fn device_name(&self) -> String {
        self.device.name()
    }

    /// Embeds both splits with the online network in evaluation mode, on this rank alone.
    ///
    /// # Errors
    /// As [`crate::evaluate::embed`].
    pub fn embed_splits(&mut self) -> Result<(Embedded, Option<Embedded>)> {
        let EmbeddedSplits { train, test } = EmbeddedSplits::online(self.plan, &mut self.state)?;
        Ok((train, test))
    }

    /// Returns the splits as the probes at the end of the run read them; `None` if this rank ran none.
    pub(crate) fn take_final_splits(&mut self) -> Option<EmbeddedSplits> {
        self.final_splits.take()
    }

    /// Takes one step on a batch, outside any schedule of epochs, and returns the loss; for measurements.
    ///
    /// # Errors
    /// As [`Trainer::train`].
    pub fn step_on(&mut self, data: &ImageBatch) -> Result<f64> {
        let outcome = self.steps().train_step(data, false, || Some(data))?;
        self.state.step += 1;
        Ok(outcome.loss)
    }

    fn steps(&mut self) -> StepRunner<'_, D> {
        StepRunner { device: &self.device, plan: self.plan, state: &mut self.state, cache: &mut self.cache }
    }

    /// Trains to the end, to `max_steps`, or until the observer asks to stop. Checkpoints are written to
    /// `dir`; [`RunDir::in_memory`] trains without writing anything.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming step, term and last checkpoint if a value is NaN or infinite; errors of
    /// the data, the terms, the clusterer or the disk.
    pub fn train(
        &mut self,
        dir: &RunDir,
        max_steps: Option<u64>,
        watch: &mut dyn Observer,
    ) -> Result<Ending> {
        let trained = self.train_steps(dir, max_steps, watch);
        // A step has explained its own failure.
        trained
            .map_err(|error| if self.postmortem.is_some() { error } else { self.explain(error, None, dir) })
    }

    fn train_steps(
        &mut self,
        dir: &RunDir,
        max_steps: Option<u64>,
        watch: &mut dyn Observer,
    ) -> Result<Ending> {
        let horizon = self.plan.horizon;
        let last_step = max_steps.map_or(horizon.total_steps, |m| m.min(horizon.total_steps));
        let began = Instant::now();
        let loader = self.loader()?;
        let steps = self.state.step..last_step;
        // Several ranks must stop after the same step, so they look at requests only between steps.
        let flag = watch.stop_flag().filter(|_| self.plan.communicator.size() == 1);
        let mut batches = stop::within(flag, || loader.batches(steps)).peekable();
        let mut loaded = Throughput::default();
        let ending = loop {
            if let Some(ending) = self.between_steps(last_step, dir, watch)? {
                break ending;
            }
            let (taken, stages) = trace::outer(|| self.take_steps(last_step, &mut batches, dir, watch));
            self.timings.add_stages(stages);
            match taken {
                // Between two steps, while the run waited for images.
                Err(Error::Stopped) => break Ending::Interrupted,
                Err(error) => {
                    // If that fails as well, the first error says why the run ends.
                    let _ = self.save_without_data(&error, dir, watch);
                    return Err(error);
                }
                Ok(()) => {}
            }
            if self.state.ends_epoch(&horizon) && !self.timings.is_empty() {
                let all = loader.throughput();
                self.report_timings(all.since(&loaded), watch)?;
                loaded = all;
            }
        };
        if ending == Ending::Interrupted && self.plan.communicator.size() > 1 {
            // Another rank may have been asked to stop. This one then has to cut figures and the report short, too.
            stop::within(watch.stop_flag(), || stop::flag().set());
        }
        if self.saved_step != Some(self.state.step) {
            self.save(dir, watch, false)?;
        }
        let status = if ending == Ending::Finished { Status::Finished } else { Status::Interrupted };
        let seconds = began.elapsed().as_secs_f64();
        watch.event(&Event::End(events::End { step: self.state.step, seconds, status }))?;
        Ok(ending)
    }

    /// Returns the loader of the training split; one of its batches has the images of a whole step.
    fn loader(&self) -> Result<Loader> {
        let train = &self.plan.recipe.train;
        let images = Count::try_from(train.images_per_step()).map_err(Error::config)?;
        let options = loader_options::<D>(LoaderOptions::training(images, train.seed));
        let share = (self.plan.communicator.size() > 1).then(|| share_of_rank(self.plan, &self.state));
        Loader::of_share(self.plan.splits.train.clone(), self.plan.views.clone(), options, share)
    }

    /// Returns whether any rank is asked to stop.
    fn should_stop(&self, watch: &dyn Observer) -> Result<bool> {
        let ranks = &*self.plan.communicator;
        if ranks.size() == 1 { Ok(watch.should_stop()) } else { ranks::any(ranks, watch.should_stop()) }
    }

    /// Does everything due before the next step: baselines, probes, a checkpoint, the clustering. Each is
    /// recorded in [`crate::progress::RunProgress`], so that a resumed run continues exactly here. Returns
    /// how training ends, if it does.
    fn between_steps(
        &mut self,
        last_step: u64,
        dir: &RunDir,
        watch: &mut dyn Observer,
    ) -> Result<Option<Ending>> {
        if !self.state.progress.baselines {
            let measured = self.stoppable(watch, |run, phase, watch| {
                probing::baselines(&run.device, run.plan, &mut run.state, phase, watch)
            });
            if measured?.is_none() {
                return Ok(Some(Ending::Interrupted));
            }
            self.state.progress.baselines = true;
        }
        if self.should_stop(watch)? {
            return Ok(Some(Ending::Interrupted));
        }
        let Some(better) = self.probe_and_select(watch)? else { return Ok(Some(Ending::Interrupted)) };
        let done = self.state.is_done(&self.plan.horizon);
        if self.saved_step != Some(self.state.step) && (done || better || self.checkpoint_is_due()) {
            self.save(dir, watch, better)?;
        }
        if done {
            return Ok(Some(Ending::Finished));
        }
        if self.should_stop(watch)? {
            return Ok(Some(Ending::Interrupted));
        }
        if self.state.step >= last_step {
            return Ok(Some(Ending::Paused));
        }
        if e_step::is_due(self.plan, &self.state) {
            let clustered = self.stoppable(watch, |run, phase, watch| {
                e_step::cluster(&run.device, run.plan, &mut run.state, phase, watch)
            });
            if clustered?.is_none() {
                return Ok(Some(Ending::Interrupted));
            }
        }
        self.announce_phase(watch)?;
        Ok(None)
    }

    /// Runs a phase between steps that the observer's flag stops. Returns `None` if it did: the phase is then as if it
    /// had not begun, and is due again after `resume`. A phase must change nothing but the progress before it is done.
    fn stoppable<T>(
        &mut self,
        watch: &mut dyn Observer,
        work: impl FnOnce(&mut Self, &Phase, &mut dyn Observer) -> Result<T>,
    ) -> Result<Option<T>> {
        let before = (watch.recorded()?, self.state.progress.clone());
        let phase = Phase::new(self.plan.communicator.clone());
        match stop::within(watch.stop_flag(), || phase.settle(work(self, &phase, watch))) {
            Err(Error::Stopped) => {
                let (events, progress) = before;
                self.state.progress = progress;
                self.kept_events = Some(events);
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Takes steps until the end of the epoch, the next checkpoint or `last_step`, or until the observer asks
    /// to stop.
    fn take_steps(
        &mut self,
        last_step: u64,
        batches: &mut Peekable<Batches>,
        dir: &RunDir,
        watch: &mut dyn Observer,
    ) -> Result<()> {
        let (plan, images_per_step) = (self.plan, self.plan.recipe.train.images_per_step());
        let (began, first_step) = (Instant::now(), self.state.step);
        // The steps since the last logged one.
        let (mut logged_at, mut logged_step) = (began, first_step);
        loop {
            let logged = self.is_logged(self.state.step + 1);
            self.cache.stop = watch.should_stop();
            let outcome = self.take_step(batches, logged, dir)?;
            let seconds = logged_at.elapsed().as_secs_f64().max(1e-9);
            let images = (self.state.step - logged_step) as f64 * images_per_step as f64;
            let images_per_second = images / seconds;
            watch.progress(&Progress {
                step: self.state.step,
                total: last_step,
                epoch: self.state.epoch(&plan.horizon),
                loss: outcome.loss,
                terms: &outcome.terms,
                images_per_second,
            });
            if logged {
                step_log::log_step(plan, &mut self.state, &outcome, images_per_second, watch)?;
                (logged_at, logged_step) = (Instant::now(), self.state.step);
            }
            let ends_epoch = self.state.ends_epoch(&plan.horizon);
            if ends_epoch {
                let embeddings = self.cache.trace.embeddings.iter().flatten().next();
                health::check_epoch(plan, &mut self.state, &outcome.terms, embeddings, watch)?;
            }
            // Of several ranks, a request during the step waits for the next one, whose ranks learn of it together.
            let stops =
                if self.plan.communicator.size() == 1 { watch.should_stop() } else { self.cache.stop };
            if ends_epoch || self.checkpoint_is_due() || self.state.step >= last_step || stops {
                let images = (self.state.step - first_step) * images_per_step as u64;
                self.timings.add_steps(began.elapsed().as_secs_f64(), images);
                return Ok(());
            }
        }
    }

    /// Takes one step on the next batch.
    fn take_step(
        &mut self,
        batches: &mut Peekable<Batches>,
        logged: bool,
        dir: &RunDir,
    ) -> Result<StepOutcome> {
        let batch = {
            let _stage = span("data");
            batches.next().transpose()?
        };
        let Some(batch) = batch else {
            return Err(Error::config(format!("the loader ended before step {}", self.state.step + 1)));
        };
        let outcome = match self.steps().train_step(&batch, logged, || batches.peek()?.as_ref().ok()) {
            Ok(outcome) => outcome,
            Err(error) => {
                let whole = self.whole(batch);
                return Err(self.explain(error, whole.as_ref(), dir));
            }
        };
        self.state.step += 1;
        health::count_terms(&mut self.state.progress, &outcome.terms);
        Ok(outcome)
    }

    /// Returns a batch with the pixels of all samples, for rank 0; other ranks write no postmortem.
    fn whole(&self, batch: ImageBatch) -> Option<ImageBatch> {
        if self.plan.communicator.size() == 1 {
            return Some(batch);
        }
        let ids: Vec<u32> = batch.ids.iter().map(|id| *id as u32).collect();
        let is_first = self.plan.communicator.rank() == 0;
        is_first.then(|| self.loader().and_then(|loader| loader.batch(batch.epoch, &ids)).ok()).flatten()
    }

    /// Completes an error about NaN or infinity, and writes a postmortem. Returns other errors unchanged. `data`: the
    /// images of the step that failed, if it was one.
    fn explain(&mut self, error: Error, data: Option<&ImageBatch>, dir: &RunDir) -> Error {
        let Error::NonFinite { what, place } = error else { return error };
        let Trainer { device, plan, state, cache, .. } = self;
        let failure = Failure { device, plan, state, cache, data };
        let (error, postmortem) = failure.explain(what, place, dir);
        self.postmortem = Some(postmortem);
        error
    }

    fn checkpoint_is_due(&self) -> bool {
        let every = self.plan.recipe.train.checkpoint_every.steps(&self.plan.horizon).max(1);
        self.state.step > 0 && self.state.step.is_multiple_of(every)
    }

    /// Saves a checkpoint, which is the best so far if `best`; in memory, only counts the events. Rank 0 does; if it
    /// fails, all ranks do.
    pub(crate) fn save(&mut self, dir: &RunDir, watch: &mut dyn Observer, best: bool) -> Result<()> {
        ranks::on_first(&*self.plan.communicator, || {
            let recorded = watch.recorded()?;
            self.state.progress.events = self.kept_events.unwrap_or(recorded);
            if dir.is_in_memory() {
                return Ok(());
            }
            if let Some(health) = health::of_step(&self.state, &self.cache.trace)? {
                self.state.progress.health = Some(health);
            }
            checkpoint::save(&self.device, self.plan, &self.state, dir, best)
        })?;
        self.saved_step = Some(self.state.step);
        Ok(())
    }

    /// Saves the steps before an image that cannot be read: its disk or network may be back later. Does nothing
    /// on several ranks: only one of them knows of the error, and a checkpoint needs all.
    fn save_without_data(&mut self, error: &Error, dir: &RunDir, watch: &mut dyn Observer) -> Result<()> {
        let step = self.state.step;
        let alone = self.plan.communicator.size() == 1;
        let is_own = matches!(error, Error::Io { path, .. } if path.starts_with(dir.path()));
        if !error.is_about_data() || is_own || !alone || step == 0 || self.saved_step == Some(step) {
            return Ok(());
        }
        self.save(dir, watch, false)?;
        watch.warn(step, format!("an image cannot be read: the run is saved at step {step}, for `resume`"))
    }

    /// Runs the probes of the end of an epoch or of the run, unless they already ran, and ends the run if
    /// `train.stop_early` says so. Returns whether the encoder is the best so far by the metric of
    /// `train.keep`; `None` if the run was asked to stop meanwhile.
    fn probe_and_select(&mut self, watch: &mut dyn Observer) -> Result<Option<bool>> {
        let (horizon, step) = (self.plan.horizon, self.state.step);
        let done = self.state.is_done(&horizon);
        if self.state.progress.probed == Some(step) || !(self.state.ends_epoch(&horizon) || done) {
            return Ok(Some(false));
        }
        self.stoppable(watch, |run, phase, watch| run.probe_epoch(done, phase, watch))
    }

    fn probe_epoch(&mut self, done: bool, phase: &Phase, watch: &mut dyn Observer) -> Result<bool> {
        let step = self.state.step;
        let train = &self.plan.recipe.train;
        let Probed { mut metrics, splits } =
            probing::probe(&self.device, self.plan, &mut self.state, done, phase, watch)?;
        self.final_splits = splits.filter(|_| done);
        let progress = &mut self.state.progress;
        let better = match &train.keep.best {
            Some(best) => record_best(progress, best, &metrics, step),
            None => false,
        };
        let stop = train.stop_early.as_ref().and_then(|s| record_patience(progress, s, &metrics, step));
        if let Some(reason) = stop.filter(|_| !done) {
            progress.stopped = true;
            watch.warn(step, reason)?;
            // The probes of the end of the run; those due after this epoch run again.
            let last = probing::probe(&self.device, self.plan, &mut self.state, true, phase, watch)?;
            metrics.extend(last.metrics);
            self.final_splits = last.splits;
        }
        self.warn_of_unmeasured(&metrics, watch)?;
        self.state.progress.probed = Some(step);
        Ok(better)
    }

    /// Warns once for each metric that `train` names and no probe of this epoch measures.
    fn warn_of_unmeasured(&mut self, metrics: &[Metric], watch: &mut dyn Observer) -> Result<()> {
        let train = &self.plan.recipe.train;
        let best = train.keep.best.iter().map(|b| &b.metric);
        let stop = train.stop_early.iter().map(|s| &s.metric);
        for named in best.chain(stop).filter(|_| !metrics.is_empty()) {
            if value_of(metrics, named).is_none() && self.state.progress.first(&format!("metric {named}")) {
                let measured: Vec<_> = metrics.iter().map(|m| m.name.as_str()).collect();
                let text = format!(
                    "no probe at the end of this epoch measures {named}, which `train` names; they measure {}",
                    measured.join(", ")
                );
                watch.warn(self.state.step, text)?;
            }
        }
        Ok(())
    }

    fn is_logged(&self, step: u64) -> bool {
        let (every, last) = (self.plan.recipe.train.log_every.get() as u64, self.plan.horizon.total_steps);
        step.is_multiple_of(every) || step == 1 || step == last
    }

    fn report_timings(&mut self, loaded: Throughput, watch: &mut dyn Observer) -> Result<()> {
        let (step, epoch) = (self.state.step, self.state.epoch(&self.plan.horizon));
        watch.event(&Event::Stages(std::mem::take(&mut self.timings).event(step, epoch, loaded)))
    }

    fn announce_phase(&mut self, watch: &mut dyn Observer) -> Result<()> {
        let phase = if self.plan.recipe.clusterer.is_none() {
            "training"
        } else if self.state.prototypes.is_none() {
            "warm-up"
        } else {
            "prototypes"
        };
        if phase != self.state.progress.phase {
            self.state.progress.phase = phase.into();
            let clock = self.state.clock(self.plan.horizon);
            let names: Vec<_> = self.plan.objective.active(&clock).map(|t| t.name.as_str()).collect();
            let text = format!("terms: {}", names.join(", "));
            watch.event(&Event::Phase(events::Phase { step: clock.step, name: phase.into(), text }))?;
        }
        Ok(())
    }
}
