//! The training loop.

use crate::check::Reads;
use crate::evaluate::{self, Embedded, Subject};
use crate::marks::{Marks, Peak};
use crate::objective::{Evaluated, TermGradient, TermValue};
use crate::plan::Plan;
use crate::postmortem::Trace;
use crate::prototypes::Prototypes;
use crate::queue::KeyQueue;
use crate::recipe::Baseline;
use crate::run_dir::RunDir;
use pauc_data::{ImageBatch, Loader, LoaderOptions};
use pauc_models::device::NetworkDevice;
use pauc_models::network::{Network, backward_with};
use pauc_report::events::{self, Event, Status, Subject as Who};
use pauc_traits::batch::{Constant, Inputs};
use pauc_traits::clusterer::FitContext;
use pauc_traits::optimizer::{Moment, State};
use pauc_traits::param::{Role, clear_gradients};
use pauc_traits::probe::{Metric, When};
use pauc_traits::profile::{self, Stage, span};
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::schedule::Clock;
use pauc_traits::term::{After, Init};
use pauc_traits::{Batch, Error, Param, Pass, Result, ops};
use rand::Rng;
use rand_distr::StandardNormal;
use std::collections::BTreeMap;
use std::ops::Range;
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
    pub(crate) prototypes: Option<Prototypes<D>>,
    pub(crate) last_clustering: Option<u64>,
    pub(crate) step: u64,
    pub(crate) marks: Marks,
    pub(crate) trace: Trace,
    pub(crate) stages: Vec<Stage>,
    /// The step of the last checkpoint of this process.
    pub(crate) saved: Option<u64>,
    /// The time in steps of this epoch, in this process, in seconds, and the images seen.
    spent: (f64, u64),
}

/// A matrix that a term learns or remembers.
pub(crate) struct TermMatrix<D: NetworkDevice> {
    pub(crate) param: Param<D>,
    after: After,
    thaw_at: u64,
}

impl<D: NetworkDevice> TermMatrix<D> {
    /// Carries out what happens to the matrix once the optimiser has moved it.
    fn settle(&self, device: &D) -> Result<()> {
        if matches!(self.after, After::Free | After::Remembered) {
            return Ok(());
        }
        let mut values = device.download(&self.param.value())?;
        self.after.apply(&mut values, self.param.shape[1]);
        device.overwrite(&mut self.param.value_mut(), &values)
    }
}

/// What the online network made of a part of a batch, with its tape.
struct Branch<D: NetworkDevice> {
    embeddings: Rows<D>,
    predictions: Option<Rows<D>>,
}

type Rows<D> = pauc_traits::Taped<(usize, usize), f32, D>;

/// Rows of all samples of a batch, by view; views that are not read have none.
#[derive(Default)]
struct ByView(Vec<Option<Vec<f32>>>);

impl ByView {
    fn new(data: &ImageBatch, read: &[usize], len: usize) -> Self {
        ByView((0..data.views.len()).map(|v| read.contains(&v).then(|| vec![0.0; len])).collect())
    }

    /// Puts the outputs of a part, view after view, where they belong.
    fn put(&mut self, views: &[usize], outputs: &[f32], part: &Range<usize>, dim: usize) {
        for (v, rows) in views.iter().zip(outputs.chunks_exact(part.len() * dim)) {
            if let Some(all) = &mut self.0[*v] {
                all[part.start * dim..part.end * dim].copy_from_slice(rows);
            }
        }
    }
}

/// 0..n in parts of at most `size`.
fn parts(n: usize, size: usize) -> Vec<Range<usize>> {
    (0..n).step_by(size.max(1)).map(|from| from..(from + size).min(n)).collect()
}

fn value_of(metrics: &[Metric], name: &str) -> Option<f64> {
    metrics.iter().find(|m| m.name == name).map(|m| m.value)
}

/// What one step gave.
struct Step {
    loss: f64,
    terms: Vec<TermValue>,
    gradients_by_term: Vec<TermGradient>,
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
                p.after.apply(&mut values, p.cols);
                let role = match p.after {
                    After::Free | After::UnitRows => Role::Weight,
                    After::AtLeast(_) => Role::Scalar,
                    After::Remembered => Role::Statistic,
                };
                let name = format!("{}.{}", t.name, p.name);
                let param = Param::new(device, name, &[p.rows, p.cols], role, &values)?;
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
            prototypes: None,
            last_clustering: None,
            step: 0,
            marks: Marks::default(),
            trace: Trace::default(),
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

    fn clock(&self) -> Clock {
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
        let options = LoaderOptions::training(train.batch, train.seed);
        let loader = Loader::new(self.plan.splits.train.clone(), self.plan.views.clone(), options)?;
        let mut batches = loader.batches(self.step..total);
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
            let (taken, stages) = profile::outer(|| self.stretch(total, &mut batches, dir, watch));
            self.add_stages(stages);
            taken?;
            if self.ends_epoch() && self.spent.1 > 0 {
                let (seconds, images) = std::mem::take(&mut self.spent);
                self.stages(seconds, images, watch)?;
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
        batches: &mut dyn Iterator<Item = Result<ImageBatch>>,
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
            let done = match self.train_step(&batch, logged) {
                Ok(done) => done,
                Err(e) => return Err(self.postmortem(e, dir, &batch)),
            };
            self.step += 1;
            self.trace.norm(self.step, done.gradient_norm);
            self.count_terms(&done.terms);
            let seconds = window.0.elapsed().as_secs_f64().max(1e-9);
            let images_per_second = (self.step - window.1) as f64 * self.plan.facts.batch as f64 / seconds;
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
                self.spent.1 += (self.step - first) * self.plan.facts.batch as u64;
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

    /// Takes one step on a batch, outside any schedule of epochs, and returns the loss: for measuring.
    ///
    /// # Errors
    /// As [`Engine::train`].
    pub fn step_on(&mut self, data: ImageBatch) -> Result<f64> {
        let done = self.train_step(&data, false)?;
        self.step += 1;
        Ok(done.loss)
    }

    fn is_logged(&self, step: u64) -> bool {
        let (every, last) = (self.plan.recipe.train.log_every.get() as u64, self.plan.horizon.total_steps);
        step.is_multiple_of(every) || step == 1 || step == last
    }

    /// One optimiser step on one batch. `logged`: whether its outcome is written down.
    fn train_step(&mut self, data: &ImageBatch, logged: bool) -> Result<Step> {
        let clock = self.clock();
        let plan = self.plan;
        let recipe = &plan.recipe;
        let b = data.ids.len();
        let mut reads = Reads::at(&plan.objective, &clock, self.momentum.is_some(), self.queue.is_some());
        let device = self.device.clone();
        let newest_view = reads.momentum.last().copied();
        // Views of one size pass through the encoder together.
        let size = |v: usize| plan.views.shape(v);
        let first_of_size = |v: &usize| (0..*v).find(|o| size(*o) == size(*v)).unwrap_or(*v);
        reads.online.sort_by_key(first_of_size);
        reads.momentum.sort_by_key(first_of_size);
        // The samples of a part, in all views that a branch reads, as one batch a size.
        let images = |views: &[usize], part: &Range<usize>| -> Vec<_> {
            let batch = |views: &[usize]| {
                let shape = size(views[0]);
                let mut pixels = Vec::with_capacity(views.len() * part.len() * shape.len());
                let span = part.start * shape.len()..part.end * shape.len();
                views.iter().for_each(|v| pixels.extend_from_slice(&data.views[*v][span.clone()]));
                let count = views.len() * part.len();
                ops::constant(&device, pixels, (count, shape.height, shape.width, shape.channels))
            };
            views.chunk_by(|a, b| size(*a) == size(*b)).map(batch).collect()
        };
        let parts = parts(b, recipe.train.micro_batch.map_or(b, |m| m.get()));
        let dim = self.network.embedding_dim();
        let matrices = |rows: ByView| -> Vec<Option<ops::Matrix<f32, D>>> {
            rows.0.into_iter().map(|m| m.map(|m| ops::constant(&device, m, (b, dim)))).collect()
        };

        // Online branch: all views that a term reads with gradient. A batch in one part keeps its tape; of several parts
        // only the embeddings are kept, and each is run once more for its backward pass.
        let params = self.parameters();
        let stage = span("forward");
        clear_gradients(&self.device, &params)?;
        let mut whole = None;
        let (mut views, mut predictions) = (ByView::new(data, &reads.online, b * dim), ByView::default());
        if reads.predictions && recipe.predictor.is_some() {
            predictions = ByView::new(data, &reads.online, b * dim);
        }
        let statistics = self.statistics_if(parts.len() > 1)?;
        for part in &parts {
            let pass = if parts.len() == 1 { Pass::Train } else { Pass::Momentum };
            let branch = self.online(images(&reads.online, part), !predictions.0.is_empty(), pass)?;
            views.put(&reads.online, &branch.embeddings.as_vec(), part, dim);
            if let Some(p) = &branch.predictions {
                predictions.put(&reads.online, &p.as_vec(), part, dim);
            }
            if parts.len() == 1 {
                whole = Some(branch);
            }
        }
        self.trace.views.clone_from(&views.0);
        let (views, predictions) = (matrices(views), matrices(predictions));
        drop(stage);

        // Momentum branch: keys, constants.
        let mut keys = Vec::new();
        let mut newest = Vec::new();
        if let Some(momentum) = &mut self.momentum
            && let Some(last) = newest_view
        {
            let _stage = span("keys");
            let mut found = ByView::new(data, &reads.momentum, b * dim);
            for part in &parts {
                let output = momentum.forward_sizes(images(&reads.momentum, part), Pass::Momentum)?;
                found.put(&reads.momentum, &output.embeddings.as_vec(), part, dim);
            }
            newest = found.0[last].clone().unwrap_or_default();
            keys = matrices(found);
        }

        let stage = span("terms");
        let queue = self.queue.as_ref().filter(|_| reads.queue);
        let scale = &recipe.concentration;
        let levels = self.prototypes.as_ref().map(|p| {
            let since =
                scale.now(&clock) / scale.now(&Clock { step: self.last_clustering.unwrap_or(0), ..clock });
            p.levels(&data.ids, queue.map(|q| q.ids()), since)
        });
        let mut parameters = BTreeMap::new();
        for t in &self.terms {
            let (rows, cols) = (t.param.shape[0], t.param.shape[1]);
            parameters
                .insert(t.param.name.clone(), self.device.buffer_tensor(&t.param.value(), (rows, cols))?);
        }
        let inputs = Inputs {
            views,
            predictions,
            keys,
            queue: queue.map(|q| Constant::new(&self.device, q.shared(), (q.len(), dim))),
            labels: data.labels.clone().filter(|_| reads.labels),
            levels: levels.unwrap_or_default(),
            parameters,
            clock,
            seed: recipe.train.seed,
        };
        let gradients_by_term = if logged && recipe.train.term_gradients {
            plan.objective.gradients_by_term(&self.device, &inputs)?
        } else {
            Vec::new()
        };
        let batch = Batch::new(&self.device, inputs)?;
        let Evaluated { loss, terms, gradients } = plan.objective.evaluate(batch)?;

        drop(stage);

        // Back through the network, part by part, in the order of the online views.
        let stage = span("backward");
        let gradient_of = |by_view: &[Option<Vec<f32>>], part: &Range<usize>| {
            let mut gradient = Vec::with_capacity(reads.online.len() * part.len() * dim);
            for v in &reads.online {
                match by_view.get(*v).and_then(Option::as_ref) {
                    Some(g) => gradient.extend_from_slice(&g[part.start * dim..part.end * dim]),
                    None => gradient.resize(gradient.len() + part.len() * dim, 0.0),
                }
            }
            gradient
        };
        self.restore_statistics(statistics)?;
        for part in &parts {
            let branch = match whole.take() {
                Some(branch) => branch,
                None => {
                    let predict = !gradients.predictions.is_empty();
                    self.online(images(&reads.online, part), predict, Pass::Train)?
                }
            };
            let predictions = branch.predictions.map(|p| (p, gradient_of(&gradients.predictions, part)));
            backward_with(branch.embeddings, gradient_of(&gradients.views, part), predictions)?;
        }
        drop(stage);
        let stage = span("optimizer");
        for t in &self.terms {
            t.param.set_frozen(clock.step < t.thaw_at);
            if let Some(new) = gradients.remembered.get(&t.param.name) {
                self.device.overwrite(&mut t.param.value_mut(), new)?;
            } else if t.after == After::Remembered {
                // The term was not active, or had nothing to remember.
            } else if let Some(g) = gradients.parameters.get(&t.param.name) {
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
        let lr = optimizer.learning_rate(recipe.train.batch.get()) * scale;
        optimizer.step(&self.device, &params, &mut self.optimizer, &Moment { lr, clock })?;
        self.terms.iter().try_for_each(|t| t.settle(&self.device))?;
        drop(stage);
        if let (Some(momentum), Some(config)) = (&self.momentum, &recipe.momentum_encoder) {
            let _stage = span("momentum encoder");
            config.update(&self.device, &self.network, momentum, &clock)?;
        }
        if let Some(queue) = &mut self.queue
            && !newest.is_empty()
        {
            queue.push(&newest, &data.ids);
        }
        Ok(Step { loss, terms, gradients_by_term, gradient_norm, learning_rate: lr })
    }

    /// A pass of the online network with the statistics of the batch; [`Pass::Momentum`] records no tape.
    fn online(
        &mut self,
        images: Vec<pauc_traits::encoder::Images<D>>,
        predict: bool,
        pass: Pass,
    ) -> Result<Branch<D>> {
        let embeddings = self.network.forward_sizes(images, pass)?.embeddings;
        let plain = embeddings.retaped::<dfdx::prelude::NoneTape>();
        let predictions = if predict { self.network.predict(&plain, pass)? } else { None };
        Ok(Branch { embeddings, predictions })
    }

    /// The online network's running statistics if asked for, to undo what a first pass over the parts adds to them.
    fn statistics_if(&self, asked: bool) -> Result<Vec<Vec<f32>>> {
        let all = if asked { self.network.statistics() } else { Vec::new() };
        all.iter().map(|p| self.device.download(&p.value())).collect()
    }

    fn restore_statistics(&self, saved: Vec<Vec<f32>>) -> Result<()> {
        let all = self.network.statistics();
        all.iter().zip(&saved).try_for_each(|(p, v)| self.device.overwrite(&mut p.value_mut(), v))
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
        let metrics = evaluate::measure(probes, &train, test.as_ref(), self.subject())?;
        watch.event(&self.measured(Who::Trained, began, metrics.clone()))?;
        Ok(metrics)
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
                    let statistics = plan.evaluation.statistics(0);
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
