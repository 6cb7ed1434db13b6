//! One batch through the networks, the terms, and back. [`BatchPass::accumulate_gradients`] lists the steps
//! in order.

use crate::objective::{Evaluated, Launched, Pending, TermValue};
use crate::plan::Plan;
use crate::prefetch::{self, DevicePrefetch};
use crate::queue::KeyQueue;
use crate::ranks::{self, Recording};
use crate::rows_by_view::{HostRows, RowsByView, split_views};
use crate::state::TrainState;
use crate::step_batch::{BatchOutcome, Placement, Shard, StepBatch, StepCache};
use crate::term_gradients::GradientsByTerm;
use dfdx::prelude::{Cpu, NoneTape};
use pauc_data::ImageBatch;
use pauc_models::device::NetworkDevice;
use pauc_models::network::{Network, Output, TapedRows, backward_with_rows};
use pauc_traits::batch::{BatchGradients, Constant, Inputs, Level};
use pauc_traits::encoder::Draws;
use pauc_traits::ops::{self, Matrix};
use pauc_traits::schedule::Clock;
use pauc_traits::trace::span;
use pauc_traits::{Batch, Error, Param, Pass, Result};
use std::ops::Range;

/// The first pass over a batch in micro-batches: batch statistics as in training, but no tape. The momentum
/// branch uses the same kind of pass.
pub(crate) const TRAIN_NO_GRAD: Pass = Pass::Momentum;

/// One batch on its way through the networks and back. Gradients are added to those of the state's
/// parameters.
pub(crate) struct BatchPass<'a, D: NetworkDevice> {
    pub device: &'a D,
    pub plan: &'a Plan,
    pub state: &'a mut TrainState<D>,
    pub cache: &'a mut StepCache<D>,
    pub batch: &'a StepBatch<'a>,
}

/// The outputs of the online network for some samples, with their tape.
struct Branch<D: NetworkDevice> {
    embeddings: TapedRows<D>,
    predictions: Option<TapedRows<D>>,
}

/// The online network's outputs for a batch.
struct Online<D: NetworkDevice> {
    rows: OnlineRows<D>,
    tape: Tape<D>,
}

/// Raw outputs by view, (B, D) each; no predictions without a predictor.
pub(crate) struct OnlineRows<D: NetworkDevice> {
    pub embeddings: RowsByView<D>,
    pub predictions: RowsByView<D>,
}

/// How the backward pass of the online network gets its tape.
enum Tape<D: NetworkDevice> {
    /// The tapes of all parts were kept, in order.
    Kept(Vec<Branch<D>>),
    /// Each part passes through the network again. `statistics`: the running statistics before the first
    /// pass, restored so that only the second pass updates them. If there are several ranks, they were already moved
    /// by the moments of all, and are restored after the second pass instead.
    Recompute { statistics: Vec<Vec<f32>> },
}

/// The momentum network's outputs for a batch; empty if nothing reads them.
pub(crate) struct Keys<D: NetworkDevice> {
    /// Raw outputs by view, (B, D) each.
    pub rows: RowsByView<D>,
    /// The rows of the last view, row-major, which enter the queue.
    newest: Vec<f32>,
}

/// The results of the terms.
struct TermOutputs<D: NetworkDevice> {
    values: TermValues<D>,
    /// Scaled by the batch's share of the step's mean.
    gradients: TermGradients<D>,
    gradients_by_term: Option<GradientsByTerm>,
}

/// The loss and the terms' values, which a device may still be computing.
enum TermValues<D: NetworkDevice> {
    Read { loss: f64, terms: Vec<TermValue> },
    Pending(Pending<f32, D>),
}

impl<D: NetworkDevice> TermValues<D> {
    /// Waits for the values. Earlier errors of an asynchronous device surface here.
    fn read(self) -> Result<(f64, Vec<TermValue>)> {
        match self {
            TermValues::Read { loss, terms } => Ok((loss, terms)),
            TermValues::Pending(pending) => pending.read(),
        }
    }
}

/// Gradients of the weighted sum with respect to the inputs of the terms.
type TermGradients<D> = BatchGradients<f32, GradientRows<D>>;

/// The gradient of a view's rows, (B, D), on the host or on the device.
enum GradientRows<D: NetworkDevice> {
    Host(Vec<f32>),
    Device(Matrix<f32, D>),
}

impl<D: NetworkDevice> GradientRows<D> {
    fn on_host(&self) -> Option<&[f32]> {
        if let GradientRows::Host(rows) = self { Some(rows) } else { None }
    }

    fn on_device(&self) -> Option<&Matrix<f32, D>> {
        if let GradientRows::Device(rows) = self { Some(rows) } else { None }
    }
}

impl<D: NetworkDevice> BatchPass<'_, D> {
    /// Adds the batch's gradients, times its share, to those of the parameters, then updates the memories of
    /// the terms and the queue. `upcoming` is the batch of the next step, requested while the device is busy.
    pub fn accumulate_gradients<'b>(
        mut self,
        upcoming: impl FnOnce() -> Option<&'b ImageBatch>,
    ) -> Result<BatchOutcome> {
        let online = self.forward_online()?;
        let keys = self.forward_keys()?;
        let TermOutputs { values, gradients, gradients_by_term } =
            self.evaluate_terms(online.rows, keys.rows)?;
        self.backward(online.tape, &gradients)?;
        self.prefetch(upcoming)?;
        let (loss, terms) = values.read()?;
        self.commit_terms(&gradients)?;
        self.commit_keys(&keys.newest)?;
        Ok(BatchOutcome { loss, terms, gradients_by_term })
    }

    /// Passes all views that a term reads with gradient through the online network.
    fn forward_online(&mut self) -> Result<Online<D>> {
        let _stage = span("forward");
        let parts: Vec<_> = self.batch.parts().collect();
        let online = match parts.as_slice() {
            [whole] if self.batch.ranks.size() == 1 => self.forward_whole(whole)?,
            parts => self.forward_parts(parts)?,
        };
        self.cache.trace.embeddings.clone_from(&online.rows.embeddings);
        Ok(online)
    }

    /// Passes the batch as a whole, with its tape.
    fn forward_whole(&mut self, whole: &Range<usize>) -> Result<Online<D>> {
        let branch = self.forward_branch(whole, Pass::Train, 0)?;
        let (device, views, read) = (self.device, self.batch.data.views.len(), &self.batch.reads.online);
        let by_view = |rows| split_views(device, rows, views, read);
        let embeddings = by_view(&branch.embeddings)?;
        let predictions = branch.predictions.as_ref().map(by_view).transpose()?.unwrap_or_default();
        Ok(Online { rows: OnlineRows { embeddings, predictions }, tape: Tape::Kept(vec![branch]) })
    }

    /// Passes part after part, and keeps either only the outputs or the tapes too.
    fn forward_parts(&mut self, parts: &[&Range<usize>]) -> Result<Online<D>> {
        let (batch, device) = (self.batch, self.device);
        let read = &batch.reads.online;
        let keeps = parts.len() == batch.shards.len() && (batch.keeps_shards || parts.len() == 1);
        let mut statistics = self.download_statistics()?;
        let recording = self.record(|state| Some(&state.network))?;
        let mut kept = Vec::new();
        let mut embeddings = HostRows::new(batch.data.views.len(), read, (batch.samples(), batch.dim));
        let mut predictions = self.predicts().then(|| embeddings.clone());
        for (number, part) in parts.iter().enumerate() {
            let branch = match keeps {
                true => self.forward_branch(part, Pass::Train, number)?,
                false => self.forward_branch(part, TRAIN_NO_GRAD, 0)?,
            };
            embeddings.put(read, part, &ops::to_host(&branch.embeddings)?);
            if let (Some(all), Some(rows)) = (&mut predictions, &branch.predictions) {
                all.put(read, part, &ops::to_host(rows)?);
            }
            kept.extend(keeps.then_some(branch));
        }
        if let Some(recording) = recording {
            let rows = std::iter::once(&mut embeddings).chain(&mut predictions).collect();
            let stop = self.cache.stop;
            self.cache.stop |= complete_rows(device, batch, rows, (read, None), recording, stop)?;
            statistics = self.download_statistics()?;
        }
        let predictions = predictions.map(|rows| rows.upload(device)).unwrap_or_default();
        let rows = OnlineRows { embeddings: embeddings.upload(device), predictions };
        let tape = if keeps { Tape::Kept(kept) } else { Tape::Recompute { statistics } };
        Ok(Online { rows, tape })
    }

    /// Passes some samples through the online network and, if a term reads predictions, the predictor. `number`
    /// counts the passes whose tapes are kept together.
    fn forward_branch(&mut self, part: &Range<usize>, pass: Pass, number: usize) -> Result<Branch<D>> {
        let embeddings = self.forward_images(part, pass, number)?.embeddings;
        let predictions = if self.predicts() { self.predict(&embeddings, pass)? } else { None };
        Ok(Branch { embeddings, predictions })
    }

    /// Passes embeddings through the predictor, on a tape of their own.
    pub(crate) fn predict(&mut self, embeddings: &TapedRows<D>, pass: Pass) -> Result<Option<TapedRows<D>>> {
        let (network, embeddings) = (&mut self.state.network, embeddings.retaped::<NoneTape>());
        match &self.batch.synced {
            None => network.predict(&embeddings, pass),
            Some(group) => network.predict_shards(&embeddings, pass, group),
        }
    }

    /// Passes some samples through the online network, with the random decisions of training.
    pub(crate) fn forward_images(
        &mut self,
        part: &Range<usize>,
        pass: Pass,
        number: usize,
    ) -> Result<Output<D>> {
        let (batch, read) = (self.batch, &self.batch.reads.online);
        let images = self.cache.images((self.device, self.plan), batch, read, part)?;
        let images = images.into_iter().zip(self.draws(part));
        let network = &mut self.state.network;
        match &batch.synced {
            None => network.forward_drawn(images.collect(), pass, number),
            Some(group) => {
                let images = images.map(|(images, draws)| (images, Some(draws)));
                network.forward_shards(images.collect(), pass, group)
            }
        }
    }

    /// Returns the source of random decisions for the online images of some samples, by size. An image has the same ones
    /// in every pass of the step.
    fn draws(&self, part: &Range<usize>) -> Vec<Draws> {
        let (batch, seed, step) = (self.batch, self.plan.recipe.train.seed, self.batch.clock.step);
        let draws = |views: &[usize]| {
            let ids = &batch.data.ids[part.clone()];
            let images = views.iter().flat_map(|view| ids.iter().map(|id| (*id, *view as u64)));
            Draws { seed, step, images: images.collect() }
        };
        prefetch::of_one_size(&self.plan.views, &batch.reads.online).map(draws).collect()
    }

    /// Begins to record the moments of a network's passes, if there are several ranks.
    fn record<'s>(
        &'s self,
        network: impl FnOnce(&'s TrainState<D>) -> Option<&'s Network<D>>,
    ) -> Result<Option<Recording<D>>> {
        if self.batch.ranks.size() == 1 {
            return Ok(None);
        }
        let Some(network) = network(self.state) else { return Ok(None) };
        match self.batch.synced {
            None => Recording::begin(self.device, network).map(Some),
            Some(_) => Ok(Some(Recording::of_synced())),
        }
    }

    pub(crate) fn predicts(&self) -> bool {
        self.batch.reads.predictions && self.plan.recipe.predictor.is_some()
    }

    /// Passes the views that terms or the queue read as keys through the momentum network.
    pub(crate) fn forward_keys(&mut self) -> Result<Keys<D>> {
        let batch = self.batch;
        let recording = self.record(|state| state.momentum.as_ref())?;
        let (Some(momentum), Some(newest)) = (&mut self.state.momentum, batch.reads.newest) else {
            return Ok(Keys { rows: Vec::new(), newest: Vec::new() });
        };
        let _stage = span("keys");
        let read = &batch.reads.momentum;
        let mut rows = HostRows::new(batch.data.views.len(), read, (batch.samples(), batch.dim));
        for part in batch.parts() {
            let images = self.cache.key_images((self.device, self.plan), batch, part)?;
            let output = match &batch.synced {
                None => momentum.forward_sizes(images, Pass::Momentum)?,
                Some(group) => {
                    let images = images.into_iter().map(|images| (images, None)).collect();
                    momentum.forward_shards(images, Pass::Momentum, group)?
                }
            };
            rows.scatter(read, &batch.key_rows(part), &ops::to_host(&output.embeddings)?);
        }
        if let Some(recording) = recording {
            let order = batch.key_order.as_deref();
            complete_rows(self.device, batch, vec![&mut rows], (read, order), recording, false)?;
        }
        let newest = rows.view(newest).to_vec();
        Ok(Keys { rows: rows.upload(self.device), newest })
    }

    /// Evaluates the terms on the whole batch, with gradients with respect to the online rows.
    fn evaluate_terms(&mut self, online: OnlineRows<D>, keys: RowsByView<D>) -> Result<TermOutputs<D>> {
        let _stage = span("terms");
        let (device, plan, place) = (self.device, self.plan, self.batch.place);
        let inputs = self.term_inputs(online, keys)?;
        let gradients_by_term = self.gradients_by_term(&inputs)?;
        let (values, mut gradients) = match self.batch.placement {
            Placement::DeviceAsync => {
                let Launched { values, gradients } = plan.objective.launch(Batch::new(device, inputs)?)?;
                (TermValues::Pending(values), gradients.with_rows(GradientRows::Device))
            }
            Placement::DeviceSync => read_back(plan.objective.evaluate(Batch::new(device, inputs)?)?),
            Placement::Host => {
                let cpu = Cpu::default();
                read_back(plan.objective.evaluate(Batch::new(&cpu, inputs.on(&cpu)?)?)?)
            }
        };
        if place.share != 1.0 {
            scale(&mut gradients, place.share);
        }
        Ok(TermOutputs { values, gradients, gradients_by_term })
    }

    /// Returns the gradients of single terms, if the recipe asks for them and the batch is logged.
    fn gradients_by_term(&self, inputs: &Inputs<f32, D>) -> Result<Option<GradientsByTerm>> {
        if !(self.batch.place.logged && self.plan.recipe.train.term_gradients) {
            return Ok(None);
        }
        GradientsByTerm::new(inputs, self.evaluate_each(inputs)?).map(Some)
    }

    /// Evaluates each active term for itself, on the device that evaluates their sum.
    pub(crate) fn evaluate_each(
        &self,
        inputs: &Inputs<f32, D>,
    ) -> Result<Vec<(TermValue, BatchGradients<f32>)>> {
        let objective = &self.plan.objective;
        match self.batch.placement {
            Placement::Host => {
                let cpu = Cpu::default();
                objective.evaluate_each(&cpu, &inputs.on(&cpu)?)
            }
            Placement::DeviceSync | Placement::DeviceAsync => objective.evaluate_each(self.device, inputs),
        }
    }

    /// Collects all inputs of the terms.
    pub(crate) fn term_inputs(
        &mut self,
        online: OnlineRows<D>,
        keys: RowsByView<D>,
    ) -> Result<Inputs<f32, D>> {
        let batch = self.batch;
        let matrix = |param: &Param<D>| {
            let matrix = self.device.buffer_tensor(&param.value(), (param.shape[0], param.shape[1]))?;
            Ok((param.name.clone(), matrix))
        };
        let parameters = self.state.term_matrices.iter().map(|m| matrix(&m.param)).collect::<Result<_>>()?;
        let seed = self.plan.recipe.train.seed;
        Ok(Inputs {
            views: online.embeddings,
            predictions: online.predictions,
            keys,
            queue: self.queue_keys(),
            labels: batch.data.labels.clone().filter(|_| batch.reads.labels),
            levels: self.prototype_levels(),
            parameters,
            clock: batch.clock,
            // Each batch of a step has its own random numbers.
            seed: seed ^ batch.place.number.rotate_right(16),
        })
    }

    fn queue(&self) -> Option<&KeyQueue> {
        self.state.queue.as_ref().filter(|_| self.batch.reads.queue)
    }

    /// Returns the queue's keys. A device with its own memory keeps them between steps if it evaluates the
    /// terms.
    fn queue_keys(&mut self) -> Option<Constant<f32, D>> {
        let keys = self.queue().map(|queue| {
            let keys = Constant::new(self.device, queue.shared(), (queue.len(), self.batch.dim));
            match &self.cache.queue_keys {
                Some(tensor) => keys.with_tensor(tensor.clone()),
                None => keys,
            }
        });
        if D::HAS_OWN_MEMORY && self.batch.placement != Placement::Host {
            self.cache.queue_keys = keys.as_ref().map(Constant::tensor);
        }
        keys
    }

    /// Returns the current clusterings, restricted to the batch and the queue. Concentrations follow the
    /// temperature, which may have changed since the clustering.
    fn prototype_levels(&self) -> Vec<Level<f32, D>> {
        let Some(prototypes) = &self.state.prototypes else { return Vec::new() };
        let (now, concentration) = (self.batch.clock, &self.plan.recipe.concentration);
        let then = Clock { step: self.state.last_clustering.unwrap_or(0), ..now };
        let scale = concentration.now(&now) / concentration.now(&then);
        prototypes.levels(&self.batch.data.ids, self.queue().map(KeyQueue::ids), scale)
    }

    /// Backpropagates through the online network, shard by shard.
    fn backward(&mut self, tape: Tape<D>, gradients: &TermGradients<D>) -> Result<()> {
        let _stage = span("backward");
        let (kept, statistics) = match tape {
            Tape::Kept(branches) => (branches, None),
            Tape::Recompute { statistics } => (Vec::new(), Some(statistics)),
        };
        let is_alone = self.batch.ranks.size() == 1;
        if let Some(before) = statistics.as_ref().filter(|_| is_alone) {
            self.restore_statistics(before)?;
        }
        self.backward_shards(kept.into_iter(), gradients)?;
        statistics.filter(|_| !is_alone).map_or(Ok(()), |moved| self.restore_statistics(&moved))
    }

    /// Backpropagates the shards of this rank, and sums the gradients of all shards.
    fn backward_shards(
        &mut self,
        mut kept: impl Iterator<Item = Branch<D>>,
        gradients: &TermGradients<D>,
    ) -> Result<()> {
        let batch = self.batch;
        if !batch.is_sharded {
            return batch
                .shards
                .iter()
                .try_for_each(|whole| self.backward_shard(whole, &mut kept, gradients));
        }
        let (device, parameters) = (self.device, self.state.network.parameters());
        self.cache.gradients.begin(device, &parameters, batch.place.number == 0)?;
        for shard in &batch.shards {
            self.backward_shard(shard, &mut kept, gradients)?;
            match &batch.synced {
                None => self.cache.gradients.take(device, &parameters)?,
                Some(group) => {
                    group.exchange.check()?;
                    for shard in 0..group.count {
                        let parameters = self.state.network.parameters_of_shard(shard);
                        self.cache.gradients.take(device, parameters)?;
                    }
                }
            }
        }
        self.cache.gradients.finish(device, &parameters, batch.ranks)
    }

    /// Backpropagates a shard, part by part. Parts whose tapes were not kept pass through the network again.
    fn backward_shard(
        &mut self,
        shard: &Shard,
        kept: &mut impl Iterator<Item = Branch<D>>,
        gradients: &TermGradients<D>,
    ) -> Result<()> {
        for part in &shard.parts {
            let branch = match kept.next() {
                Some(branch) => branch,
                None => self.forward_branch(part, Pass::Train, 0)?,
            };
            self.backward_branch(branch, gradients, part)?;
        }
        Ok(())
    }

    fn backward_branch(
        &self,
        branch: Branch<D>,
        gradients: &TermGradients<D>,
        part: &Range<usize>,
    ) -> Result<()> {
        let with_gradient = |rows| Ok::<_, Error>((rows, self.stack_gradient(&gradients.predictions, part)?));
        let predictions = branch.predictions.map(with_gradient).transpose()?;
        backward_with_rows(branch.embeddings, self.stack_gradient(&gradients.views, part)?, predictions)
    }

    /// Stacks the gradients of a branch's outputs, view after view; zeros for views without one.
    fn stack_gradient(
        &self,
        by_view: &[Option<GradientRows<D>>],
        part: &Range<usize>,
    ) -> Result<Matrix<f32, D>> {
        let dim = self.batch.dim;
        let read = &self.batch.reads.online;
        let views = read.iter().map(|v| by_view.get(*v).and_then(Option::as_ref));
        if self.batch.placement == Placement::DeviceAsync {
            let views: Vec<_> = views.map(|rows| rows.and_then(GradientRows::on_device)).collect();
            return self.device.stacked(&views, (part.len(), dim));
        }
        let mut stacked = Vec::with_capacity(read.len() * part.len() * dim);
        for rows in views {
            match rows.and_then(GradientRows::on_host) {
                Some(rows) => stacked.extend_from_slice(&rows[part.start * dim..part.end * dim]),
                None => stacked.resize(stacked.len() + part.len() * dim, 0.0),
            }
        }
        let shape = (read.len() * part.len(), dim);
        self.device.try_tensor_from_vec(stacked, shape).map_err(Error::device)
    }

    /// Sends the next batch to a device that is still busy with the backward pass, before anything waits for
    /// it.
    fn prefetch<'b>(&mut self, upcoming: impl FnOnce() -> Option<&'b ImageBatch>) -> Result<()> {
        self.cache.prefetched = None;
        if D::HAS_OWN_MEMORY && !self.batch.is_sharded && self.batch.parts().count() == 1 {
            let _stage = span("data");
            let branches = [&self.batch.reads.online, &self.batch.reads.momentum].map(Vec::as_slice);
            let send = |next| DevicePrefetch::send(self.device, &self.plan.views, next, &branches);
            self.cache.prefetched = upcoming().map(send).transpose()?;
        }
        Ok(())
    }

    /// Stores the new memories of the terms, and adds the gradients of their parameters.
    fn commit_terms(&self, gradients: &TermGradients<D>) -> Result<()> {
        for matrix in &self.state.term_matrices {
            let param = &matrix.param;
            if let Some(values) = gradients.remembered.get(&param.name) {
                self.device.overwrite(&mut param.value_mut(), values)?;
            } else if let Some(gradient) =
                gradients.parameters.get(&param.name).filter(|_| matrix.is_learned())
            {
                let mut sum = self.device.download(&param.grad())?;
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
                self.device.overwrite(&mut param.grad_mut(), &sum)?;
            }
        }
        Ok(())
    }

    /// Pushes the newest keys into the queue and into its copy on the device.
    fn commit_keys(&mut self, newest: &[f32]) -> Result<()> {
        let Some(queue) = self.state.queue.as_mut().filter(|_| !newest.is_empty()) else { return Ok(()) };
        let ids = &self.batch.data.ids;
        let (start, rows) = (queue.cursor(), ids.len().min(queue.len()));
        queue.push(newest, ids);
        let Some(on_device) = &self.cache.queue_keys else { return Ok(()) };
        // The queue is a ring: rows beyond its end are at its start.
        let (dim, end) = (self.batch.dim, (start + rows).min(queue.len()));
        self.device.replace_rows(on_device, start, &queue.keys()[start * dim..end * dim])?;
        self.device.replace_rows(on_device, 0, &queue.keys()[..(start + rows - end) * dim])
    }

    fn download_statistics(&self) -> Result<Vec<Vec<f32>>> {
        let statistics = self.state.network.statistics();
        statistics.iter().map(|p| self.device.download(&p.value())).collect()
    }

    fn restore_statistics(&self, saved: &[Vec<f32>]) -> Result<()> {
        let statistics = self.state.network.statistics();
        statistics.iter().zip(saved).try_for_each(|(p, v)| self.device.overwrite(&mut p.value_mut(), v))
    }
}

/// Completes the rows of a pass with those of the other ranks, and moves the running statistics by the moments of all
/// shards in order. `order`: that of the samples in the pass, if it is not that of the batch. Returns whether any rank
/// is asked to stop.
///
/// # Errors
/// If another rank has failed, or the device fails.
fn complete_rows<D: NetworkDevice>(
    device: &D,
    batch: &StepBatch<'_>,
    mut rows: Vec<&mut HostRows>,
    (read, order): (&[usize], Option<&[usize]>),
    recording: Recording<D>,
    stop: bool,
) -> Result<bool> {
    let samples_of = |rank| -> Vec<usize> {
        let range = batch.rows_of(rank);
        order.map_or_else(|| range.clone().collect(), |order| order[range.clone()].to_vec())
    };
    let own = samples_of(batch.ranks.rank());
    let mut message = vec![f32::from(u8::from(stop))];
    rows.iter().for_each(|rows| rows.append_to(&mut message, read, &own));
    let moments = recording.end(device)?;
    message.extend(moments.iter().flatten());
    let all = ranks::gather(batch.ranks, &message)?;
    let (mut stops, mut moments_of) = (false, Vec::new());
    for (rank, message) in all.chunks_exact(message.len()).enumerate() {
        let (stop, mut rest) = message.split_at(1);
        stops |= stop[0] != 0.0;
        let samples = samples_of(rank);
        for rows in &mut rows {
            let (own, after) = rest.split_at(rows.len_of(read, samples.len()));
            rows.scatter(read, &samples, own);
            rest = after;
        }
        moments_of.push(rest);
    }
    recording.move_by(device, &moments, &moments_of)?;
    Ok(stops)
}

/// Wraps values and gradients that are already on the host.
fn read_back<D: NetworkDevice>(evaluated: Evaluated<f32>) -> (TermValues<D>, TermGradients<D>) {
    let Evaluated { loss, terms, gradients } = evaluated;
    (TermValues::Read { loss, terms }, gradients.with_rows(GradientRows::Host))
}

/// Multiplies all gradients by the batch's share of the step's mean.
fn scale<D: NetworkDevice>(gradients: &mut TermGradients<D>, share: f32) {
    let BatchGradients { views, predictions, parameters, .. } = gradients;
    for rows in views.iter_mut().chain(predictions).flatten() {
        match rows {
            GradientRows::Host(rows) => rows.iter_mut().for_each(|g| *g *= share),
            GradientRows::Device(rows) => *rows = rows.clone() * share,
        }
    }
    parameters.values_mut().flatten().for_each(|g| *g *= share);
}
