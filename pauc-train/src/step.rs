//! One optimiser step: batches forward, terms, batches backward, optimiser, momentum encoder, queue.

use crate::check::Reads;
use crate::engine::Engine;
use crate::objective::{Evaluated, Launched, Pending, TermGradient, TermValue};
use crate::prefetch::{self, DevicePrefetch};
use crate::queue::KeyQueue;
use crate::recipe::Terms;
use dfdx::prelude::{Cpu, HasShape};
use pauc_data::ImageBatch;
use pauc_models::device::NetworkDevice;
use pauc_models::network::{TapedRows, backward_with_rows};
use pauc_traits::batch::{BatchGradients, Constant, Inputs};
use pauc_traits::optimizer::StepContext;
use pauc_traits::param::clear_gradients;
use pauc_traits::schedule::Clock;
use pauc_traits::term::After;
use pauc_traits::trace::span;
use pauc_traits::{Batch, Error, Pass, Result, ops};
use std::collections::BTreeMap;
use std::ops::Range;

/// What the online network made of a part of a batch, with its tape.
struct Branch<D: NetworkDevice> {
    embeddings: TapedRows<D>,
    predictions: Option<TapedRows<D>>,
}

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

/// What one batch of a step gave: of several that are accumulated, the means.
struct Found {
    loss: f64,
    terms: Vec<TermValue>,
    gradients_by_term: Vec<TermGradient>,
}

impl Found {
    /// Takes one more batch into the sums. Gradients by term stay those of the first one.
    fn add(&mut self, other: Found) {
        self.loss += other.loss;
        for (sum, t) in self.terms.iter_mut().zip(other.terms) {
            sum.value += t.value;
            sum.skipped = sum.skipped.take().or(t.skipped);
        }
    }

    fn mean(mut self, batches: usize) -> Self {
        self.loss /= batches as f64;
        self.terms.iter_mut().for_each(|t| t.value /= batches as f64);
        self
    }
}

/// What one step gave.
pub(crate) struct Step {
    pub(crate) loss: f64,
    pub(crate) terms: Vec<TermValue>,
    pub(crate) gradients_by_term: Vec<TermGradient>,
    pub(crate) gradient_norm: f64,
    pub(crate) learning_rate: f64,
}

impl<D: NetworkDevice> Engine<'_, D> {
    /// Takes one step on a batch, outside any schedule of epochs, and returns the loss: for measuring.
    ///
    /// # Errors
    /// As [`Engine::train`].
    pub fn step_on(&mut self, data: &ImageBatch) -> Result<f64> {
        let done = self.train_step(data, false, || Some(data))?;
        self.step += 1;
        Ok(done.loss)
    }

    /// One optimiser step on the images of one batch, or of several that are accumulated. `logged`: whether its outcome is
    /// written down. `upcoming`: the batch of the next step, asked for while the device is at work.
    pub(crate) fn train_step<'b>(
        &mut self,
        data: &ImageBatch,
        logged: bool,
        upcoming: impl FnOnce() -> Option<&'b ImageBatch>,
    ) -> Result<Step> {
        let (clock, recipe) = (self.clock(), &self.plan.recipe);
        let params = self.parameters();
        clear_gradients(&self.device, &params)?;
        let batches = parts(data.ids.len(), recipe.train.batch.get());
        let share = 1.0 / batches.len() as f32;
        let mut found: Option<Found> = None;
        for (i, rows) in batches.iter().enumerate() {
            self.trace.rows = rows.clone();
            if batches.len() == 1 {
                found = Some(self.gather(data, 0, share, logged, upcoming)?);
                break;
            }
            let one = self.gather(&data.rows(rows), i as u64, share, logged && i == 0, || None)?;
            match &mut found {
                None => found = Some(one),
                Some(sum) => sum.add(one),
            }
        }
        let found = found.ok_or_else(|| Error::config("the loader gave a batch without images"))?;
        let Found { loss, terms, gradients_by_term } = found.mean(batches.len());
        let stage = span("optimizer");
        self.terms.iter().for_each(|t| t.param.set_frozen(clock.step < t.thaw_at));
        let limit = recipe.train.clip_gradient.map_or(f64::INFINITY, |c| c.get());
        let gradient_norm = pauc_models::optimizers::clip_gradients(&self.device, &params, limit)?;
        if !gradient_norm.is_finite() {
            let what = "the gradient of the network".to_string();
            return Err(Error::NonFinite { what, place: Some(format!("its norm is {gradient_norm}")) });
        }
        let scale = recipe.schedule.factor_at(&clock);
        let optimizer = D::optimizer(&*recipe.optimizer.value);
        let lr = optimizer.learning_rate(recipe.train.images_per_step()) * scale;
        optimizer.step(&self.device, &params, &mut self.optimizer, &StepContext { lr, clock })?;
        self.terms.iter().try_for_each(|t| t.settle(&self.device))?;
        drop(stage);
        if let (Some(momentum), Some(config)) = (&self.momentum, &recipe.momentum_encoder) {
            let _stage = span("momentum encoder");
            config.update(&self.device, &self.network, momentum, &clock)?;
        }
        Ok(Step { loss, terms, gradients_by_term, gradient_norm, learning_rate: lr })
    }

    /// Adds the gradients of one batch, times `share`, to those of the parameters. `number` counts the batches of a step.
    fn gather<'b>(
        &mut self,
        data: &ImageBatch,
        number: u64,
        share: f32,
        logged: bool,
        upcoming: impl FnOnce() -> Option<&'b ImageBatch>,
    ) -> Result<Found> {
        let clock = self.clock();
        let plan = self.plan;
        let recipe = &plan.recipe;
        let b = data.ids.len();
        let reads = self.reads();
        let device = self.device.clone();
        let mut ahead = self.ahead.take();
        let mut images = |views: &[usize], part: &Range<usize>| {
            let sent = ahead.as_mut().filter(|_| part.len() == b).and_then(|a| a.take(data, views));
            sent.map_or_else(|| prefetch::images(&device, &plan.views, data, views, part), Ok)
        };
        let parts = parts(b, recipe.train.micro_batch.map_or(b, |m| m.get()));
        let dim = self.network.embedding_dim();
        let matrices = |rows: ByView| -> Vec<Option<ops::Matrix<f32, D>>> {
            rows.0.into_iter().map(|m| m.map(|m| ops::constant(&device, m, (b, dim)))).collect()
        };

        // Online branch: all views that a term reads with gradient. A batch in one part keeps its tape; of several parts
        // only the embeddings are kept, and each is run once more for its backward pass.
        let stage = span("forward");
        let mut whole = None;
        let stays = D::HAS_OWN_MEMORY && parts.len() == 1;
        let predict = reads.predictions && recipe.predictor.is_some();
        let by_view = |wanted: bool| match wanted && !stays {
            true => ByView::new(data, &reads.online, b * dim),
            false => ByView::default(),
        };
        let (mut views, mut predictions) = (by_view(true), by_view(predict));
        let statistics = self.statistics_if(parts.len() > 1)?;
        for part in &parts {
            let pass = if parts.len() == 1 { Pass::Train } else { Pass::Momentum };
            let branch = self.online(images(&reads.online, part)?, predict, pass)?;
            if !stays {
                views.put(&reads.online, &ops::to_host(&branch.embeddings)?, part, dim);
                if let Some(p) = &branch.predictions {
                    predictions.put(&reads.online, &ops::to_host(p)?, part, dim);
                }
            }
            if parts.len() == 1 {
                whole = Some(branch);
            }
        }
        let (views, predictions) = match &whole {
            Some(branch) if stays => {
                let of = |rows| rows_by_view(&device, rows, data.views.len(), &reads.online);
                let predictions = branch.predictions.as_ref().map(of).transpose()?;
                (of(&branch.embeddings)?, predictions.unwrap_or_default())
            }
            _ => (matrices(views), matrices(predictions)),
        };
        self.trace.views.clone_from(&views);
        drop(stage);

        // Momentum branch: keys, constants.
        let mut keys = Vec::new();
        let mut newest = Vec::new();
        if let Some(momentum) = &mut self.momentum
            && let Some(last) = reads.newest
        {
            let _stage = span("keys");
            let mut found = ByView::new(data, &reads.momentum, b * dim);
            for part in &parts {
                let output = momentum.forward_sizes(images(&reads.momentum, part)?, Pass::Momentum)?;
                found.put(&reads.momentum, &ops::to_host(&output.embeddings)?, part, dim);
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
        let keys_of_queue = queue.map(|q| {
            let keys = Constant::new(&self.device, q.shared(), (q.len(), dim));
            match &self.queued {
                Some(tensor) => keys.with_tensor(tensor.clone()),
                None => keys,
            }
        });
        let on_host = !D::DETERMINISTIC_REDUCTIONS
            && (recipe.train.cuda.deterministic || recipe.train.cuda.terms == Terms::Host);
        if D::HAS_OWN_MEMORY && !on_host {
            self.queued = keys_of_queue.as_ref().map(Constant::tensor);
        }
        let inputs = Inputs {
            views,
            predictions,
            keys,
            queue: keys_of_queue,
            labels: data.labels.clone().filter(|_| reads.labels),
            levels: levels.unwrap_or_default(),
            parameters,
            clock,
            // Batches of one step draw numbers of their own.
            seed: recipe.train.seed ^ number.rotate_right(16),
        };
        let gradients_by_term = if logged && recipe.train.term_gradients {
            plan.objective.gradients_by_term(&self.device, &inputs)?
        } else {
            Vec::new()
        };
        let launched = stays && !on_host;
        let (values, mut gradients) = if launched {
            let Launched { values, gradients } = plan.objective.launch(Batch::new(&self.device, inputs)?)?;
            (Values::Pending(values), gradients.with_rows(Gradient::Device))
        } else {
            let cpu = Cpu::default();
            let Evaluated { loss, terms, gradients } = match on_host {
                true => plan.objective.evaluate(Batch::new(&cpu, inputs.on(&cpu)?)?)?,
                false => plan.objective.evaluate(Batch::new(&self.device, inputs)?)?,
            };
            (Values::Read(loss, terms), gradients.with_rows(Gradient::Host))
        };
        if share != 1.0 {
            scale_all(&mut gradients, share);
        }
        drop(stage);

        // Back through the network, part by part, in the order of the online views.
        let stage = span("backward");
        let gradient_of = |by_view: &[Option<Gradient<D>>], part: &Range<usize>| {
            let read = reads.online.iter().map(|v| by_view.get(*v).and_then(Option::as_ref));
            if launched {
                let rows = read.map(|g| if let Some(Gradient::Device(rows)) = g { Some(rows) } else { None });
                return device.stacked(&rows.collect::<Vec<_>>(), (b, dim));
            }
            let mut gradient = Vec::with_capacity(reads.online.len() * part.len() * dim);
            for g in read {
                match g {
                    Some(Gradient::Host(g)) => {
                        gradient.extend_from_slice(&g[part.start * dim..part.end * dim])
                    }
                    _ => gradient.resize(gradient.len() + part.len() * dim, 0.0),
                }
            }
            let shape = (reads.online.len() * part.len(), dim);
            device.try_tensor_from_vec(gradient, shape).map_err(Error::device)
        };
        self.restore_statistics(statistics)?;
        for part in &parts {
            let branch = match whole.take() {
                Some(branch) => branch,
                None => self.online(images(&reads.online, part)?, predict, Pass::Train)?,
            };
            let of = |p| Ok::<_, Error>((p, gradient_of(&gradients.predictions, part)?));
            let predictions = branch.predictions.map(of).transpose()?;
            backward_with_rows(branch.embeddings, gradient_of(&gradients.views, part)?, predictions)?;
        }
        drop(stage);
        // Before anything waits for the device, which is at work on the backward pass.
        if stays {
            let _stage = span("data");
            let branches = [&reads.online, &reads.momentum].map(Vec::as_slice);
            let send = |next| DevicePrefetch::send(&device, &plan.views, next, &branches);
            self.ahead = upcoming().map(send).transpose()?;
        }
        let (loss, terms) = match values {
            Values::Read(loss, terms) => (loss, terms),
            Values::Pending(pending) => pending.read()?,
        };
        for t in &self.terms {
            let name = &t.param.name;
            if let Some(new) = gradients.remembered.get(name) {
                self.device.overwrite(&mut t.param.value_mut(), new)?;
            } else if let Some(g) = gradients.parameters.get(name).filter(|_| t.after != After::Remembered) {
                let mut sum = self.device.download(&t.param.grad())?;
                sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
                self.device.overwrite(&mut t.param.grad_mut(), &sum)?;
            }
        }
        if let Some(queue) = &mut self.queue
            && !newest.is_empty()
        {
            let (from, rows) = (queue.cursor(), data.ids.len().min(queue.len()));
            queue.push(&newest, &data.ids);
            if let Some(matrix) = &self.queued {
                replace(&self.device, matrix, queue, (from, rows), dim)?;
            }
        }
        Ok(Found { loss, terms, gradients_by_term })
    }

    /// What the terms of this step read, in the order in which it passes through the networks: views of one size together.
    fn reads(&self) -> Reads {
        let mut reads =
            Reads::at(&self.plan.objective, &self.clock(), self.momentum.is_some(), self.queue.is_some());
        let size = |v: usize| self.plan.views.shape(v);
        let first_of_size = |v: &usize| (0..*v).find(|o| size(*o) == size(*v)).unwrap_or(*v);
        reads.online.sort_by_key(first_of_size);
        reads.momentum.sort_by_key(first_of_size);
        reads
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
}

/// The rows of each view that a branch read, in the device's memory: its outputs are view after view.
fn rows_by_view<D: NetworkDevice>(
    device: &D,
    rows: &TapedRows<D>,
    views: usize,
    read: &[usize],
) -> Result<Vec<Option<ops::Matrix<f32, D>>>> {
    let (all, b) = (rows.retaped(), rows.shape().0 / read.len().max(1));
    let place = |v: usize| read.iter().position(|r| *r == v);
    let one = |v: usize| place(v).map(|i| device.rows(&all, i * b..(i + 1) * b)).transpose();
    (0..views).map(one).collect()
}

/// Carries the rows of a queue that are new from `from` on over to its matrix on the device.
fn replace<D: NetworkDevice>(
    device: &D,
    matrix: &ops::Matrix<f32, D>,
    queue: &KeyQueue,
    (from, rows): (usize, usize),
    dim: usize,
) -> Result<()> {
    let end = (from + rows).min(queue.len());
    device.replace_rows(matrix, from, &queue.keys()[from * dim..end * dim])?;
    device.replace_rows(matrix, 0, &queue.keys()[..(from + rows - end) * dim])
}

/// What the terms gave: numbers, or what becomes numbers once the device has come to it.
enum Values<D: NetworkDevice> {
    Read(f64, Vec<TermValue>),
    Pending(Pending<f32, D>),
}

/// The gradient of a view's rows, where the terms left it.
enum Gradient<D: NetworkDevice> {
    Host(Vec<f32>),
    Device(ops::Matrix<f32, D>),
}

/// The gradients of a batch's share in a mean over several.
fn scale_all<D: NetworkDevice>(gradients: &mut BatchGradients<f32, Gradient<D>>, share: f32) {
    let BatchGradients { views, predictions, parameters, .. } = gradients;
    for rows in views.iter_mut().chain(predictions).flatten() {
        match rows {
            Gradient::Host(rows) => rows.iter_mut().for_each(|g| *g *= share),
            Gradient::Device(rows) => *rows = rows.clone() * share,
        }
    }
    parameters.values_mut().flatten().for_each(|g| *g *= share);
}
