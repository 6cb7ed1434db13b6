//! The training loop.

use crate::check::Reads;
use crate::evaluate::{self, Embedded, Subject};
use crate::objective::{Evaluated, TermValue};
use crate::plan::Plan;
use crate::prototypes::Prototypes;
use crate::queue::KeyQueue;
use crate::recipe::Baseline;
use crate::run_dir::RunDir;
use pauc_data::{ImageBatch, Loader, LoaderOptions};
use pauc_models::device::NetworkDevice;
use pauc_models::network::{Network, backward_with};
use pauc_report::events::{self, Event, Status, Subject as Who};
use pauc_traits::batch::Inputs;
use pauc_traits::clusterer::FitContext;
use pauc_traits::optimizer::State;
use pauc_traits::param::{Role, clear_gradients};
use pauc_traits::probe::{Metric, When};
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::schedule::Clock;
use pauc_traits::term::Init;
use pauc_traits::{Batch, Error, Param, Pass, Result, ops};
use rand::Rng;
use rand_distr::StandardNormal;
use std::collections::BTreeMap;
use std::time::Instant;

/// Who watches a run: writes its log, draws its progress, and may ask it to stop.
pub trait Observer {
    /// Something happened.
    ///
    /// # Errors
    /// If it cannot be recorded; the run stops.
    fn event(&mut self, event: &Event) -> Result<()>;

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
    pub(crate) prototypes: Option<Prototypes<D>>,
    pub(crate) last_clustering: Option<u64>,
    pub(crate) step: u64,
    phase: &'static str,
    skipped_reported: Vec<String>,
}

/// A matrix that a term learns.
pub(crate) struct TermMatrix<D: NetworkDevice> {
    pub(crate) param: Param<D>,
    unit_rows: bool,
    thaw_at: u64,
}

/// What one step gave.
struct Step {
    loss: f64,
    terms: Vec<TermValue>,
    gradient_norm: f64,
    learning_rate: f64,
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
                if p.unit_rows {
                    pauc_cluster::unit_rows(&mut values, p.cols);
                }
                let name = format!("{}.{}", t.name, p.name);
                let param = Param::new(device, name, &[p.rows, p.cols], Role::Weight, &values)?;
                let thaw_at = p.frozen.map_or(0, |span| span.steps(&plan.horizon));
                terms.push(TermMatrix { param, unit_rows: p.unit_rows, thaw_at });
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
            prototypes: None,
            last_clustering: None,
            step: 0,
            phase: "",
            skipped_reported: Vec::new(),
        };
        engine.optimizer = D::optimizer(&*recipe.optimizer.value).start(device, &engine.parameters())?;
        Ok(engine)
    }

    /// Everything that is learnt, in a fixed order.
    pub(crate) fn parameters(&self) -> Vec<Param<D>> {
        let mut all = self.network.parameters();
        all.extend(self.terms.iter().map(|t| t.param.clone()));
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

    fn clock(&self) -> Clock {
        Clock { step: self.step, horizon: self.plan.horizon }
    }

    fn epoch(&self) -> f64 {
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
        let per_epoch = horizon.steps_per_epoch;
        let began = Instant::now();
        if self.step == 0 {
            self.baselines(watch)?;
        }
        let train = &self.plan.recipe.train;
        let options = LoaderOptions::training(train.batch, train.seed);
        let loader = Loader::new(self.plan.splits.train.clone(), self.plan.views.clone(), options)?;
        let mut batches = loader.batches(self.step..total);
        let mut window = (Instant::now(), self.step);
        while self.step < total {
            if self.clustering_is_due() {
                self.cluster(watch)?;
            }
            self.announce_phase(watch)?;
            let end = total.min((self.step / per_epoch + 1) * per_epoch);
            while self.step < end {
                let Some(batch) = batches.next().transpose()? else {
                    return Err(Error::config(format!("the loader ended before step {}", self.step + 1)));
                };
                let done = self.train_step(batch).map_err(|e| self.postmortem(e, dir))?;
                self.step += 1;
                let seconds = window.0.elapsed().as_secs_f64().max(1e-9);
                let images_per_second =
                    (self.step - window.1) as f64 * self.plan.facts.batch as f64 / seconds;
                watch.progress(&Progress {
                    step: self.step,
                    total,
                    epoch: self.epoch(),
                    loss: done.loss,
                    terms: &done.terms,
                    images_per_second,
                });
                let log_every = self.plan.recipe.train.log_every.get() as u64;
                if self.step.is_multiple_of(log_every) || self.step == 1 || self.step == total {
                    self.log_step(&done, images_per_second, watch)?;
                    window = (Instant::now(), self.step);
                }
                if watch.should_stop() {
                    self.save(dir)?;
                    self.end(Status::Interrupted, began, watch)?;
                    return Ok(Ending::Interrupted);
                }
            }
            if self.step.is_multiple_of(per_epoch) && self.step < total {
                self.probe(false, watch)?;
                let every =
                    self.plan.recipe.train.checkpoint_every.steps(&horizon).div_ceil(per_epoch).max(1);
                if (self.step / per_epoch).is_multiple_of(every) {
                    self.save(dir)?;
                }
                window = (Instant::now(), self.step);
            }
        }
        if self.step < horizon.total_steps {
            self.save(dir)?;
            self.end(Status::Interrupted, began, watch)?;
            return Ok(Ending::Paused);
        }
        self.probe(true, watch)?;
        self.save(dir)?;
        self.end(Status::Finished, began, watch)?;
        Ok(Ending::Finished)
    }

    fn end(&self, status: Status, began: Instant, watch: &mut dyn Observer) -> Result<()> {
        let seconds = began.elapsed().as_secs_f64();
        watch.event(&Event::End(events::End { step: self.step, seconds, status }))
    }

    /// One optimiser step on one batch.
    fn train_step(&mut self, data: ImageBatch) -> Result<Step> {
        let clock = self.clock();
        let plan = self.plan;
        let recipe = &plan.recipe;
        let b = data.ids.len();
        let shape = plan.shape;
        let reads = Reads::at(&plan.objective, &clock, self.momentum.is_some(), self.queue.is_some());
        let images = |views: &[usize]| {
            let mut pixels = Vec::with_capacity(views.len() * b * shape.len());
            views.iter().for_each(|v| pixels.extend_from_slice(&data.views[*v]));
            ops::constant(&self.device, pixels, (views.len() * b, shape.height, shape.width, shape.channels))
        };
        let split = |rows: Vec<f32>, views: &[usize], dim: usize| {
            let mut by_view: Vec<Option<ops::Matrix<f32, D>>> = vec![None; data.views.len()];
            for (part, v) in rows.chunks_exact(b * dim).zip(views) {
                by_view[*v] = Some(ops::constant(&self.device, part.to_vec(), (b, dim)));
            }
            by_view
        };

        // Online branch: all views that a term reads with gradient, as one batch.
        let params = self.parameters();
        clear_gradients(&self.device, &params)?;
        let embeddings = self.network.forward(images(&reads.online), Pass::Train)?.embeddings;
        let dim = self.network.embedding_dim();
        let views = split(embeddings.as_vec(), &reads.online, dim);

        // Momentum branch: keys, constants.
        let mut keys = Vec::new();
        let mut newest = Vec::new();
        if let Some(momentum) = &mut self.momentum
            && !reads.momentum.is_empty()
        {
            let rows = momentum.forward(images(&reads.momentum), Pass::Momentum)?.embeddings.as_vec();
            newest = rows[rows.len() - b * dim..].to_vec();
            keys = split(rows, &reads.momentum, dim);
        }

        let queue = self.queue.as_ref().filter(|_| reads.queue);
        let levels = self.prototypes.as_ref().map(|p| p.levels(&data.ids, queue.map(|q| q.ids())));
        let mut matrices = BTreeMap::new();
        for t in &self.terms {
            let (rows, cols) = (t.param.shape[0], t.param.shape[1]);
            matrices.insert(t.param.name.clone(), self.device.buffer_tensor(&t.param.value(), (rows, cols))?);
        }
        let batch = Batch::new(
            &self.device,
            Inputs {
                views,
                keys,
                queue: queue.map(|q| ops::constant(&self.device, q.keys().to_vec(), (q.len(), dim))),
                labels: data.labels.clone().filter(|_| reads.labels),
                levels: levels.unwrap_or_default(),
                parameters: matrices,
                clock,
                seed: recipe.train.seed,
            },
        )?;
        let Evaluated { loss, terms, gradients } = plan.objective.evaluate(batch)?;

        // Back through the network, in the order of the online views.
        let mut gradient = Vec::with_capacity(reads.online.len() * b * dim);
        for v in &reads.online {
            match &gradients.views[*v] {
                Some(g) => gradient.extend_from_slice(g),
                None => gradient.resize(gradient.len() + b * dim, 0.0),
            }
        }
        backward_with(embeddings, gradient)?;
        for t in &self.terms {
            t.param.set_frozen(clock.step < t.thaw_at);
            if let Some(g) = gradients.parameters.get(&t.param.name) {
                self.device.overwrite(&mut t.param.grad_mut(), g)?;
            }
        }
        let limit = recipe.train.clip_gradient.map_or(f64::INFINITY, |c| c.get());
        let gradient_norm = pauc_models::optimizers::clip_gradients(&self.device, &params, limit)?;
        if !gradient_norm.is_finite() {
            let what = "the gradient of the network".to_string();
            return Err(Error::NonFinite { what, place: Some(format!("its norm is {gradient_norm}")) });
        }

        let scale = recipe.schedule.factor_at(&clock);
        let optimizer = D::optimizer(&*recipe.optimizer.value);
        optimizer.step(&self.device, &params, &mut self.optimizer, scale)?;
        for t in self.terms.iter().filter(|t| t.unit_rows) {
            let mut rows = self.device.download(&t.param.value())?;
            pauc_cluster::unit_rows(&mut rows, t.param.shape[1]);
            self.device.overwrite(&mut t.param.value_mut(), &rows)?;
        }
        if let (Some(momentum), Some(config)) = (&self.momentum, &recipe.momentum_encoder) {
            config.update(&self.device, &self.network, momentum, &clock)?;
        }
        if let Some(queue) = &mut self.queue
            && !newest.is_empty()
        {
            queue.push(&newest, &data.ids);
        }
        Ok(Step { loss, terms, gradient_norm, learning_rate: optimizer.learning_rate() * scale })
    }

    fn log_step(&mut self, done: &Step, images_per_second: f64, watch: &mut dyn Observer) -> Result<()> {
        for t in &done.terms {
            if let Some(why) = &t.skipped
                && !self.skipped_reported.contains(&t.name)
            {
                let text = format!("{} has no value on some batches: {why}", t.name);
                watch.event(&Event::Warning(events::Warning { step: self.step, text }))?;
                self.skipped_reported.push(t.name.clone());
            }
        }
        let term = |t: &TermValue| events::Term {
            name: t.name.clone(),
            value: Some(t.value),
            weight: t.weight,
            chance: t.chance,
            skipped: t.skipped.is_some(),
        };
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

    /// Names the step and the last good checkpoint in an error about a number that is none.
    fn postmortem(&self, error: Error, dir: &RunDir) -> Error {
        match error {
            Error::NonFinite { what, place } => {
                let saved = dir.last_checkpoint().filter(|p| p.exists());
                let saved = saved.map_or("no checkpoint had been written yet".to_string(), |p| {
                    format!("the last good checkpoint is {}", p.display())
                });
                let place = place.map(|p| format!("{p}; ")).unwrap_or_default();
                let advice = "lower the learning rate, raise the temperature or clip the gradient";
                Error::NonFinite {
                    what,
                    place: Some(format!("{place}step {}; {saved}; {advice}", self.step + 1)),
                }
            }
            other => other,
        }
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
        if phase != self.phase {
            self.phase = phase;
            let names: Vec<_> = self.plan.objective.active(&clock).map(|t| t.name.as_str()).collect();
            let text = format!("terms: {}", names.join(", "));
            watch.event(&Event::Phase(events::Phase { step: self.step, name: phase.into(), text }))?;
        }
        Ok(())
    }

    fn clustering_is_due(&self) -> bool {
        let Some(clusterer) = &self.plan.recipe.clusterer else { return false };
        let horizon = &self.plan.horizon;
        if !self.step.is_multiple_of(horizon.steps_per_epoch) || self.step < self.plan.first_clustering {
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
            &self.plan.recipe.concentration,
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
        let event = Event::Clustering(events::Clustering {
            step: self.step,
            epoch: self.epoch(),
            seconds: began.elapsed().as_secs_f64(),
            levels: prototypes
                .clusterings
                .iter()
                .zip(&prototypes.concentrations)
                .zip(churn)
                .map(level)
                .collect(),
        });
        self.prototypes = Some(prototypes);
        self.last_clustering = Some(self.step);
        watch.event(&event)
    }

    /// The probes due at the end of this epoch, or all of them at the end of the run.
    fn probe(&mut self, at_end: bool, watch: &mut dyn Observer) -> Result<()> {
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
            return Ok(());
        }
        let began = Instant::now();
        let (train, test) = self.embed_splits()?;
        let metrics = evaluate::measure(probes, &train, test.as_ref(), self.subject())?;
        watch.event(&self.measured(Who::Trained, began, metrics))
    }

    fn measured(&self, subject: Who, began: Instant, metrics: Vec<Metric>) -> Event {
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
                    (train, test, Who::RandomInit)
                }
                Baseline::RawPixels => {
                    let statistics = &plan.splits.statistics;
                    let of = |source| evaluate::raw_pixels(&plan.evaluation, statistics, source);
                    let test = plan.splits.test.as_ref().map(of).transpose()?;
                    (of(&plan.splits.train)?, test, Who::RawPixels)
                }
            };
            let probes = plan.recipe.probes.iter().filter(|p| p.needs_labels());
            let metrics = evaluate::measure(probes, &train, test.as_ref(), self.subject())?;
            watch.event(&self.measured(subject, began, metrics))?;
        }
        Ok(())
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            splits: &self.plan.splits,
            levels: self.prototypes.as_ref().map_or(&[], |p| &p.clusterings),
            concentrations: self.prototypes.as_ref().map_or(&[], |p| &p.concentrations),
            seed: self.plan.recipe.train.seed,
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
