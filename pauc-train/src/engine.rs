//! The training loop.

use crate::evaluate::{self, Embedded, ProbeInputs};
use crate::objective::{TermGradient, TermValue};
use crate::plan::Plan;
use crate::postmortem::Trace;
use crate::prefetch::DevicePrefetch;
use crate::probed_network::LentNetwork;
use crate::progress::{Peak, RunProgress};
use crate::prototypes::Prototypes;
use crate::queue::KeyQueue;
use crate::recipe::Baseline;
use crate::run_dir::RunDir;
use crate::step::Step;
use pauc_data::{ImageBatch, Loader, LoaderOptions, Throughput};
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_report::events::{self, Event, Status, Subject};
use pauc_traits::clusterer::FitContext;
use pauc_traits::optimizer::State;
use pauc_traits::param::Role;
use pauc_traits::probe::{Metric, ProbedNetwork, When};
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::schedule::Clock;
use pauc_traits::term::{After, Init};
use pauc_traits::trace::{self, Stage, span};
use pauc_traits::{Count, Error, Param, Result};
use rand::Rng;
use rand_distr::StandardNormal;
use std::iter::Peekable;
use std::time::Instant;

/// Who watches a run: writes its log, draws its progress, and may ask it to stop.
pub trait Observer {
    /// Something happened.
    ///
    /// # Errors
    /// If it cannot be recorded; the run stops.
    fn event(&mut self, event: &Event) -> Result<()>;

    /// How many events are recorded, all of them safe from a power failure; 0 if none are.
    ///
    /// # Errors
    /// If they cannot be made safe.
    fn recorded(&mut self) -> Result<u64> {
        Ok(0)
    }

    /// A step was taken.
    fn progress(&mut self, _progress: &Progress<'_>) {}

    /// Whether the run shall save a checkpoint and stop after this step.
    fn should_stop(&self) -> bool {
        false
    }
}

/// Where a run stands, after each step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Steps taken.
    pub step: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// Epochs passed.
    pub epoch: f64,
    /// The weighted sum of the terms.
    pub loss: f64,
    /// The terms of this step.
    pub terms: &'a [TermValue],
    /// Images a second, over the last steps.
    pub images_per_second: f64,
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps were taken.
    Finished,
    /// The observer asked to stop; a checkpoint was saved.
    Interrupted,
    /// The last step that was asked for was taken, and it is not the run's last; a checkpoint was saved.
    Paused,
}

/// A run in memory: networks, optimiser, queue, prototypes and the step.
pub struct Engine<'p, D: NetworkDevice> {
    pub(crate) device: D,
    pub(crate) plan: &'p Plan,
    pub(crate) network: Network<D>,
    pub(crate) momentum: Option<Network<D>>,
    pub(crate) terms: Vec<TermMatrix<D>>,
    pub(crate) optimizer: State<D>,
    pub(crate) queue: Option<KeyQueue>,
    /// The queue's keys on a device that replaces rows in place.
    pub(crate) queued: Option<pauc_traits::ops::Matrix<f32, D>>,
    pub(crate) prototypes: Option<Prototypes<D>>,
    pub(crate) last_clustering: Option<u64>,
    pub(crate) step: u64,
    pub(crate) marks: RunProgress,
    pub(crate) trace: Trace<D>,
    /// Images of the next step that are on the device already.
    pub(crate) ahead: Option<DevicePrefetch<D>>,
    pub(crate) stages: Vec<Stage>,
    /// The step of the last checkpoint of this process.
    pub(crate) saved: Option<u64>,
    /// The time in steps of this epoch, in this process, in seconds, and the images seen.
    spent: (f64, u64),
}

/// A matrix that a term learns or remembers.
pub(crate) struct TermMatrix<D: NetworkDevice> {
    pub(crate) param: Param<D>,
    pub(crate) after: After,
    pub(crate) thaw_at: u64,
}

impl<D: NetworkDevice> TermMatrix<D> {
    /// Carries out what happens to the matrix once the optimiser has moved it.
    pub(crate) fn settle(&self, device: &D) -> Result<()> {
        if matches!(self.after, After::Free | After::Remembered) {
            return Ok(());
        }
        let mut values = device.download(&self.param.value())?;
        self.after.apply(&mut values, self.param.shape[1]);
        device.overwrite(&mut self.param.value_mut(), &values)
    }
}

/// How a loader works for a device.
pub(crate) fn loading<D: NetworkDevice>(options: LoaderOptions) -> LoaderOptions {
    if D::NORMALIZES_IMAGES { options.for_accelerator() } else { options }
}

fn value_of(metrics: &[Metric], name: &str) -> Option<f64> {
    metrics.iter().find(|m| m.name == name).map(|m| m.value)
}

impl<'p, D: NetworkDevice> Engine<'p, D> {
    /// A run before its first step.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(device: &D, plan: &'p Plan) -> Result<Self> {
        let network = plan.network(device)?;
        let recipe = &plan.recipe;
        let momentum = recipe.momentum_encoder.is_some().then(|| network.duplicate()).transpose()?;
        let mut terms = Vec::new();
        for t in &plan.objective.terms {
            for p in t.term.info().parameters(&plan.facts) {
                let index = terms.len() as u64;
                let mut rng = stream(recipe.train.seed, Purpose::Init, 1, index, 0);
                let draw = |_| match p.init {
                    Init::Normal(std) => (rng.sample::<f64, _>(StandardNormal) * std) as f32,
                    Init::Constant(v) => v as f32,
                };
                let mut values: Vec<f32> = (0..p.rows * p.cols).map(draw).collect();
                p.after.apply(&mut values, p.cols);
                let role = match p.after {
                    After::Free | After::UnitRows => Role::Weight,
                    After::AtLeast(_) => Role::Scalar,
                    After::Remembered => Role::Statistic,
                };
                let name = format!("{}.{}", t.name, p.name);
                let param = Param::new(device, name, &[p.rows, p.cols], role, &values)?;
                param.set_lr_scale(recipe.lr_scale_of(&param.name));
                let thaw_at = p.frozen.map_or(0, |span| span.steps(&plan.horizon));
                terms.push(TermMatrix { param, after: p.after, thaw_at });
            }
        }
        let dim = network.embedding_dim();
        let mut engine = Engine {
            device: device.clone(),
            plan,
            network,
            momentum,
            terms,
            optimizer: State { steps: 0, slots: Vec::new() },
            queue: recipe.queue.map(|q| KeyQueue::new(q.get(), dim, recipe.train.seed)),
            queued: None,
            prototypes: None,
            last_clustering: None,
            step: 0,
            marks: RunProgress::default(),
            trace: Trace::default(),
            ahead: None,
            stages: Vec::new(),
            saved: None,
            spent: (0.0, 0),
        };
        engine.optimizer = D::optimizer(&*recipe.optimizer.value).start(device, &engine.parameters())?;
        Ok(engine)
    }

    /// Everything that is learnt, in a fixed order.
    pub(crate) fn parameters(&self) -> Vec<Param<D>> {
        let mut all = self.network.parameters();
        let learnt = self.terms.iter().filter(|t| t.after != After::Remembered);
        all.extend(learnt.map(|t| t.param.clone()));
        all
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The online network.
    pub fn network_mut(&mut self) -> &mut Network<D> {
        &mut self.network
    }

    pub(crate) fn device_name(&self) -> String {
        self.device.name()
    }

    pub(crate) fn clock(&self) -> Clock {
        Clock { step: self.step, horizon: self.plan.horizon }
    }

    pub(crate) fn epoch(&self) -> f64 {
        self.step as f64 / self.plan.horizon.steps_per_epoch.max(1) as f64
    }

    /// Trains to the end, or to `max_steps`, or until the observer asks to stop.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming step, term and last checkpoint when a number stops being one; whatever the data,
    /// the terms, the clusterer or the disk report.
    pub fn train(
        &mut self,
        dir: &RunDir,
        max_steps: Option<u64>,
        watch: &mut dyn Observer,
    ) -> Result<Ending> {
        let horizon = self.plan.horizon;
        let total = max_steps.map_or(horizon.total_steps, |m| m.min(horizon.total_steps));
        let began = Instant::now();
        let train = &self.plan.recipe.train;
        let images = Count::try_from(train.images_per_step()).map_err(Error::config)?;
        let options = loading::<D>(LoaderOptions::training(images, train.seed));
        let loader = Loader::new(self.plan.splits.train.clone(), self.plan.views.clone(), options)?;
        let mut batches = loader.batches(self.step..total).peekable();
        let mut loaded = Throughput::default();
        // Whatever stands between two steps leaves its mark, so that a run that is continued goes on where it stopped.
        let ending = loop {
            if !self.marks.baselines {
                self.baselines(watch)?;
                self.marks.baselines = true;
            }
            if watch.should_stop() {
                break Ending::Interrupted;
            }
            let better = self.look(watch)?;
            let done = self.is_done();
            if self.saved != Some(self.step) && (done || better || self.checkpoint_is_due()) {
                self.save(dir, watch, better)?;
            }
            if done {
                break Ending::Finished;
            }
            if watch.should_stop() {
                break Ending::Interrupted;
            }
            if self.step >= total {
                break Ending::Paused;
            }
            if self.clustering_is_due() {
                self.cluster(watch)?;
            }
            self.announce_phase(watch)?;
            let (taken, stages) = trace::outer(|| self.stretch(total, &mut batches, dir, watch));
            self.add_stages(stages);
            taken?;
            if self.ends_epoch() && self.spent.1 > 0 {
                let spent = std::mem::take(&mut self.spent);
                let all = loader.throughput();
                self.stages(spent, all.since(&loaded), watch)?;
                loaded = all;
            }
        };
        let status = if ending == Ending::Finished { Status::Finished } else { Status::Interrupted };
        if self.saved != Some(self.step) {
            self.save(dir, watch, false)?;
        }
        self.end(status, began, watch)?;
        Ok(ending)
    }

    /// Steps up to the end of the epoch, the next checkpoint, `total`, or until the observer asks to stop.
    fn stretch(
        &mut self,
        total: u64,
        batches: &mut Peekable<impl Iterator<Item = Result<ImageBatch>>>,
        dir: &RunDir,
        watch: &mut dyn Observer,
    ) -> Result<()> {
        let began = Instant::now();
        let first = self.step;
        let mut window = (Instant::now(), self.step);
        loop {
            let batch = {
                let _stage = span("data");
                batches.next().transpose()?
            };
            let Some(batch) = batch else {
                return Err(Error::config(format!("the loader ended before step {}", self.step + 1)));
            };
            let logged = self.is_logged(self.step + 1);
            let upcoming = &mut *batches;
            let done = match self.train_step(&batch, logged, || upcoming.peek()?.as_ref().ok()) {
                Ok(done) => done,
                Err(e) => return Err(self.postmortem(e, dir, &batch)),
            };
            self.step += 1;
            self.trace.norm(self.step, done.gradient_norm);
            self.count_terms(&done.terms);
            let seconds = window.0.elapsed().as_secs_f64().max(1e-9);
            let images = (self.step - window.1) as f64 * self.plan.recipe.train.images_per_step() as f64;
            let images_per_second = images / seconds;
            watch.progress(&Progress {
                step: self.step,
                total,
                epoch: self.epoch(),
                loss: done.loss,
                terms: &done.terms,
                images_per_second,
            });
            if logged {
                self.log_step(&done, images_per_second, watch)?;
                window = (Instant::now(), self.step);
            }
            if self.ends_epoch() {
                self.health(&done.terms, watch)?;
            }
            if self.ends_epoch() || self.checkpoint_is_due() || self.step >= total || watch.should_stop() {
                self.spent.0 += began.elapsed().as_secs_f64();
                self.spent.1 += (self.step - first) * self.plan.recipe.train.images_per_step() as u64;
                return Ok(());
            }
        }
    }

    fn ends_epoch(&self) -> bool {
        self.step > 0 && self.step.is_multiple_of(self.plan.horizon.steps_per_epoch.max(1))
    }

    fn checkpoint_is_due(&self) -> bool {
        let every = self.plan.recipe.train.checkpoint_every.steps(&self.plan.horizon).max(1);
        self.step > 0 && self.step.is_multiple_of(every)
    }

    fn is_done(&self) -> bool {
        self.step >= self.plan.horizon.total_steps || self.marks.stopped
    }

    /// The probes of the end of an epoch or of the run, unless they were made before. Returns whether the encoder is the
    /// best so far by the metric of `train.keep`.
    fn look(&mut self, watch: &mut dyn Observer) -> Result<bool> {
        if self.marks.probed == Some(self.step) || !(self.ends_epoch() || self.is_done()) {
            return Ok(false);
        }
        let train = &self.plan.recipe.train;
        let (keep, stop) = (train.keep.best.as_ref(), train.stop_early.as_ref());
        let mut metrics = self.probe(self.is_done(), watch)?;
        let mut better = false;
        let peak = |value| Peak { step: self.step, value };
        if let Some((best, value)) = keep.and_then(|b| Some((b, value_of(&metrics, &b.metric)?)))
            && best.goal.improves(value, self.marks.best)
        {
            (self.marks.best, better) = (Some(peak(value)), true);
        }
        if let Some((stop, value)) = stop.and_then(|s| Some((s, value_of(&metrics, &s.metric)?))) {
            let before = self.marks.patience;
            if stop.goal.improves(value, before.map(|b| b.0)) {
                self.marks.patience = Some((peak(value), 0));
            } else if let Some((best, since)) = before.map(|(best, since)| (best, since + 1)) {
                self.marks.patience = Some((best, since));
                if since >= stop.patience.get() as u64 && !self.is_done() {
                    let text = format!(
                        "{} has not improved for {since} probes; its best was {} after step {}: the run ends here",
                        stop.metric, best.value, best.step
                    );
                    self.marks.stopped = true;
                    watch.event(&Event::Warning(events::Warning { step: self.step, text }))?;
                    // The run's last probes, those that were not due anyway.
                    let more = self.probe(true, watch)?;
                    metrics.extend(more);
                }
            }
        }
        let named = [keep.map(|b| &b.metric), stop.map(|s| &s.metric)];
        for metric in named.into_iter().flatten().filter(|_| !metrics.is_empty()) {
            if value_of(&metrics, metric).is_none() && self.marks.first(&format!("metric {metric}")) {
                let known: Vec<_> = metrics.iter().map(|m| m.name.as_str()).collect();
                let text = format!(
                    "no probe at the end of this epoch measures {metric}, which `train` names; they measure {}",
                    known.join(", ")
                );
                watch.event(&Event::Warning(events::Warning { step: self.step, text }))?;
            }
        }
        self.marks.probed = Some(self.step);
        Ok(better)
    }

    fn end(&self, status: Status, began: Instant, watch: &mut dyn Observer) -> Result<()> {
        let seconds = began.elapsed().as_secs_f64();
        watch.event(&Event::End(events::End { step: self.step, seconds, status }))
    }

    fn is_logged(&self, step: u64) -> bool {
        let (every, last) = (self.plan.recipe.train.log_every.get() as u64, self.plan.horizon.total_steps);
        step.is_multiple_of(every) || step == 1 || step == last
    }

    fn log_step(&mut self, done: &Step, images_per_second: f64, watch: &mut dyn Observer) -> Result<()> {
        for t in &done.terms {
            if let Some(why) = &t.skipped
                && self.marks.first(&format!("skipped {}", t.name))
            {
                let text = format!("{} has no value on some batches: {why}", t.name);
                watch.event(&Event::Warning(events::Warning { step: self.step, text }))?;
            }
        }
        let term = |t: &TermValue| events::Term {
            name: t.name.clone(),
            value: Some(t.value),
            weight: t.weight,
            chance: t.chance,
            skipped: t.skipped.is_some(),
        };
        if !done.gradients_by_term.is_empty() {
            let of = |t: &TermGradient| events::TermGradient {
                name: t.name.clone(),
                norm: t.norm,
                cosines: t.cosines.clone(),
            };
            let terms = done.gradients_by_term.iter().map(of).collect();
            let (step, epoch) = (self.step, self.epoch());
            watch.event(&Event::Gradients(events::Gradients { step, epoch, terms }))?;
        }
        watch.event(&Event::Step(events::Step {
            step: self.step,
            epoch: self.epoch(),
            lr: done.learning_rate,
            loss: done.loss,
            terms: done.terms.iter().map(term).collect(),
            grad_norm: done.gradient_norm,
            images_per_second,
        }))
    }

    fn announce_phase(&mut self, watch: &mut dyn Observer) -> Result<()> {
        let clock = self.clock();
        let phase = if self.plan.recipe.clusterer.is_none() {
            "training"
        } else if self.prototypes.is_none() {
            "warm-up"
        } else {
            "prototypes"
        };
        if phase != self.marks.phase {
            self.marks.phase = phase.into();
            let names: Vec<_> = self.plan.objective.active(&clock).map(|t| t.name.as_str()).collect();
            let text = format!("terms: {}", names.join(", "));
            watch.event(&Event::Phase(events::Phase { step: self.step, name: phase.into(), text }))?;
        }
        Ok(())
    }

    fn clustering_is_due(&self) -> bool {
        let Some(clusterer) = &self.plan.recipe.clusterer else { return false };
        let horizon = &self.plan.horizon;
        if self.last_clustering == Some(self.step)
            || !self.step.is_multiple_of(horizon.steps_per_epoch)
            || self.step < self.plan.first_clustering
        {
            return false;
        }
        self.last_clustering.is_none_or(|last| self.step >= last + clusterer.every().steps(horizon).max(1))
    }

    /// The E-step: embeddings of the training set through the momentum network, clustered anew.
    fn cluster(&mut self, watch: &mut dyn Observer) -> Result<()> {
        let Some(clusterer) = &self.plan.recipe.clusterer else { return Ok(()) };
        let began = Instant::now();
        let network = self.momentum.as_mut().unwrap_or(&mut self.network);
        let train = &self.plan.splits.train;
        let embedded = evaluate::embed(network, &self.plan.evaluation, train)?;
        let context = FitContext {
            seed: self.plan.recipe.train.seed,
            epoch: self.step / self.plan.horizon.steps_per_epoch.max(1),
            previous: self.prototypes.as_ref().map_or(&[], |p| &p.clusterings),
            labels: train.labels(),
        };
        let prototypes = Prototypes::fit(
            &self.device,
            D::clusterer(&*clusterer.value),
            &embedded.embeddings,
            embedded.dim,
            (&self.plan.recipe.concentration, &self.clock()),
            context,
        )?;
        let churn = prototypes.churn(context.previous);
        let level =
            |((c, phi), churn): ((&pauc_traits::Clustering, &Vec<f32>), Option<f64>)| events::ClusterLevel {
                churn,
                k: c.k as u64,
                objective: c.report.objective.last().copied().unwrap_or(f64::NAN),
                imbalance: c.report.imbalance,
                empty: c.report.empty as u64,
                splits: c.report.splits as u64,
                concentration_mean: phi.iter().map(|v| *v as f64).sum::<f64>() / phi.len() as f64,
                concentration_min: phi.iter().copied().fold(f32::NAN, f32::min).into(),
                concentration_max: phi.iter().copied().fold(f32::NAN, f32::max).into(),
            };
        let all = prototypes.clusterings.iter().zip(&prototypes.concentrations);
        let levels: Vec<_> = all.zip(churn).map(level).collect();
        self.prototypes = Some(prototypes);
        self.last_clustering = Some(self.step);
        let (step, epoch, seconds) = (self.step, self.epoch(), began.elapsed().as_secs_f64());
        watch.event(&Event::Clustering(events::Clustering {
            step,
            epoch,
            seconds,
            levels: levels.clone(),
        }))?;
        self.dead_prototypes(&levels, watch)
    }

    /// The probes due at the end of this epoch, or all of them at the end of the run.
    fn probe(&mut self, at_end: bool, watch: &mut dyn Observer) -> Result<Vec<Metric>> {
        let horizon = self.plan.horizon;
        let due = |when: When| match when {
            When::End => at_end,
            When::Every(span) => {
                let epochs = span.steps(&horizon).div_ceil(horizon.steps_per_epoch.max(1)).max(1);
                at_end || (self.step / horizon.steps_per_epoch.max(1)).is_multiple_of(epochs)
            }
        };
        let probes: Vec<_> = self.plan.recipe.probes.iter().filter(|p| due(p.when())).collect();
        if probes.is_empty() {
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let (train, test) = self.embed_splits()?;
        let metrics = evaluate::measure(probes, &train, test.as_ref(), self.subject(Some(&self.lent())))?;
        watch.event(&self.measured(Subject::Trained, began, metrics.clone()))?;
        Ok(metrics)
    }

    fn measured(&self, subject: Subject, began: Instant, metrics: Vec<Metric>) -> Event {
        Event::Probe(events::Probe {
            step: self.step,
            epoch: self.epoch(),
            seconds: began.elapsed().as_secs_f64(),
            subject,
            metrics: metrics.into_iter().map(events::Metric::from).collect(),
        })
    }

    /// The accuracy probes on what the trained encoder has to beat.
    fn baselines(&mut self, watch: &mut dyn Observer) -> Result<()> {
        let plan = self.plan;
        for baseline in &plan.recipe.baselines {
            let began = Instant::now();
            let (train, test, subject) = match baseline {
                Baseline::RandomInit => {
                    let (train, test) = self.embed_splits()?;
                    (train, test, Subject::RandomInit)
                }
                Baseline::RawPixels => {
                    let statistics = plan.evaluation.statistics(0);
                    let of = |source| evaluate::raw_pixels(&plan.evaluation, statistics, source);
                    let test = plan.splits.test.as_ref().map(of).transpose()?;
                    (of(&plan.splits.train)?, test, Subject::RawPixels)
                }
            };
            let probes = plan.recipe.probes.iter().filter(|p| p.needs_labels());
            let lent = self.lent();
            let network: Option<&dyn ProbedNetwork> =
                if *baseline == Baseline::RandomInit { Some(&lent) } else { None };
            let metrics = evaluate::measure(probes, &train, test.as_ref(), self.subject(network))?;
            watch.event(&self.measured(subject, began, metrics))?;
        }
        Ok(())
    }

    fn lent(&self) -> LentNetwork<'_, D> {
        LentNetwork::new(&self.device, &self.network, self.plan)
    }

    fn subject<'a>(&'a self, network: Option<&'a dyn ProbedNetwork>) -> ProbeInputs<'a> {
        ProbeInputs {
            splits: &self.plan.splits,
            levels: self.prototypes.as_ref().map_or(&[], |p| &p.clusterings),
            concentrations: self.prototypes.as_ref().map_or(&[], |p| &p.concentrations),
            seed: self.plan.recipe.train.seed,
            network,
            device: self.device.probes_on_device(),
        }
    }

    /// Both splits through the online network in evaluation mode.
    ///
    /// # Errors
    /// As [`evaluate::embed`].
    pub fn embed_splits(&mut self) -> Result<(Embedded, Option<Embedded>)> {
        let plan = self.plan;
        let mut of = |source| evaluate::embed(&mut self.network, &plan.evaluation, source);
        Ok((of(&plan.splits.train)?, plan.splits.test.as_ref().map(of).transpose()?))
    }
}
