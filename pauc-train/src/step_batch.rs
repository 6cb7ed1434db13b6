//! A batch of a step, its path through the networks, and data kept between steps.

use crate::gradient_tree::GradientTree;
use crate::objective::{Reads, TermValue};
use crate::plan::Plan;
use crate::prefetch::{self, DevicePrefetch};
use crate::ranks::{self, ExchangeOfRanks};
use crate::recipe::{BatchNormStatistics, Terms};
use crate::state::TrainState;
use crate::step_trace::StepTrace;
use crate::term_gradients::GradientsByTerm;
use pauc_data::{ImageBatch, Share};
use pauc_distributed::Communicator;
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_traits::Result;
use pauc_traits::encoder::Images;
use pauc_traits::ops::Matrix;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::schedule::Clock;
use pauc_traits::shards::ShardGroup;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Where the terms of a batch are evaluated, and whether the host waits for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// On the CPU, from a copy of the embeddings; gradients go back to the device.
    Host,
    /// On the device; values and row gradients are read before the backward pass.
    DeviceSync,
    /// On the device, asynchronously: gradients stay there, and values are read after the backward pass.
    DeviceAsync,
}

impl Placement {
    /// Chooses the placement for batches in `parts` parts.
    fn choose<D: NetworkDevice>(plan: &Plan, parts: usize, ranks: usize) -> Self {
        let cuda = &plan.recipe.train.cuda;
        // Every rank evaluates the terms, and needs the same bits.
        let needs_host = cuda.deterministic || cuda.terms == Terms::Host || ranks > 1;
        if !D::DETERMINISTIC_REDUCTIONS && needs_host {
            Placement::Host
        } else if D::HAS_OWN_MEMORY && parts == 1 {
            Placement::DeviceAsync
        } else {
            Placement::DeviceSync
        }
    }
}

/// The position of a batch among the batches of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchPlace {
    /// The index within the step.
    pub number: u64,
    /// The batch's weight in the step's mean.
    pub share: f32,
    /// Whether the step's outcome is logged.
    pub logged: bool,
}

/// A fixed run of the rows of a batch: the unit of gradient sums, and of batch statistics unless micro-batches
/// divide it further.
pub(crate) struct Shard {
    /// The samples that pass through the networks together: all of the shard, or those of each micro-batch.
    pub parts: Vec<Range<usize>>,
}

/// A batch, and its path through the networks.
pub(crate) struct StepBatch<'a> {
    pub data: &'a ImageBatch,
    /// The ranks that pass it through the networks together.
    pub ranks: &'a dyn Communicator,
    pub place: BatchPlace,
    pub clock: Clock,
    pub reads: Reads,
    /// The shards of this rank. If they are normalized together, a single shard with all its rows.
    pub shards: Vec<Shard>,
    /// The shards that are normalized together with those of the other ranks, if batch normalization is synchronized.
    pub synced: Option<ShardGroup>,
    /// Whether the recipe divides batches into shards.
    pub is_sharded: bool,
    /// Whether the activations of all shards are kept for the backward pass, instead of being computed twice.
    pub keeps_shards: bool,
    /// The order of the samples in the shards of the momentum network; `None`: that of the batch.
    pub key_order: Option<Vec<usize>>,
    pub placement: Placement,
    /// The width D of embeddings.
    pub dim: usize,
}

impl<'a> StepBatch<'a> {
    /// Plans the pass of a batch at the state's step.
    pub fn new<D: NetworkDevice>(
        plan: &Plan,
        state: &mut TrainState<D>,
        (data, ranks): (&'a ImageBatch, &'a Arc<dyn Communicator>),
        place: BatchPlace,
    ) -> Self {
        let train = &plan.recipe.train;
        let samples = data.ids.len();
        let rows = if train.shards.get() == 1 { samples } else { train.shard() };
        let part = train.micro_batch.map_or(rows, |m| m.get().min(rows));
        let of_shard = |shard: &Range<usize>| Shard { parts: split(shard.clone(), part) };
        let mut shards: Vec<Shard> = split(0..samples, rows).iter().map(of_shard).collect();
        let (is_sharded, parts) = (shards.len() > 1, shards.iter().map(|shard| shard.parts.len()).sum());
        let own = ranks::share(shards.len(), ranks.rank(), ranks.size());
        shards = shards.drain(own).collect();
        let synced = (is_sharded && syncs_statistics(plan, &state.network)).then(|| ShardGroup {
            count: shards.len(),
            samples: rows,
            exchange: Rc::new(ExchangeOfRanks::new(ranks.clone())),
        });
        if synced.is_some() {
            shards = vec![Shard { parts: vec![ranks::share(samples, ranks.rank(), ranks.size())] }];
        }
        let clock = state.clock(plan.horizon);
        let momentum = state.momentum.as_ref().filter(|m| is_sharded && shuffles_keys(plan, m));
        let mut reads = Reads::at(&plan.objective, &clock, state.momentum.is_some(), state.queue.is_some());
        reads.group_views_by(|view| plan.views.shape(view));
        StepBatch {
            data,
            ranks: &**ranks,
            place,
            clock,
            reads,
            placement: Placement::choose::<D>(plan, parts, ranks.size()),
            keeps_shards: is_sharded && plan.keeps_shards && state.network.has_passes(shards.len()),
            key_order: momentum.map(|_| key_order(train.seed, clock.step, place.number, samples)),
            shards,
            synced,
            is_sharded,
            dim: state.network.embedding_dim(),
        }
    }

    /// Returns the number of samples B.
    pub fn samples(&self) -> usize {
        self.data.ids.len()
    }

    /// Returns the samples that pass through the networks together, shard after shard.
    pub fn parts(&self) -> impl Iterator<Item = &Range<usize>> {
        self.shards.iter().flat_map(|shard| &shard.parts)
    }

    /// Returns the samples that a rank passes through the online network.
    pub fn rows_of(&self, rank: usize) -> Range<usize> {
        ranks::share(self.samples(), rank, self.ranks.size())
    }

    /// Returns the samples that pass through the momentum network in place of a part of the batch.
    pub fn key_rows(&self, part: &Range<usize>) -> Vec<usize> {
        self.key_order.as_ref().map_or_else(|| part.clone().collect(), |order| order[part.clone()].to_vec())
    }
}

/// Returns which samples of the batches of each step a rank passes through the networks, by view.
pub(crate) fn share_of_rank<D: NetworkDevice>(plan: &Plan, state: &TrainState<D>) -> Share {
    let (ranks, train) = (&plan.communicator, &plan.recipe.train);
    let (batch, batches, seed) = (train.batch.get(), train.accumulate.get(), train.seed);
    let own = ranks::share(batch, ranks.rank(), ranks.size());
    let reads = Reads::ever(&plan.objective, state.momentum.is_some(), state.queue.is_some());
    let shuffles = state.momentum.as_ref().is_some_and(|m| shuffles_keys(plan, m));
    let views = plan.views.len();
    Arc::new(move |step| {
        let mut held = vec![BTreeSet::new(); views];
        for number in 0..batches {
            let first = number * batch;
            let keys: Vec<usize> = match shuffles {
                true => key_order(seed, step, number as u64, batch)[own.clone()].to_vec(),
                false => own.clone().collect(),
            };
            reads.online.iter().for_each(|view| held[*view].extend(own.clone().map(|row| first + row)));
            reads.momentum.iter().for_each(|view| held[*view].extend(keys.iter().map(|row| first + row)));
        }
        held.into_iter().map(|rows| rows.into_iter().collect()).collect()
    })
}

/// Returns whether batch normalization takes the statistics of all shards of a batch together.
pub(crate) fn syncs_statistics<D: NetworkDevice>(plan: &Plan, network: &Network<D>) -> bool {
    plan.recipe.train.batch_norm == BatchNormStatistics::Synced && !network.statistics().is_empty()
}

/// Returns whether the batch is shuffled before it is divided into the shards of keys. Without statistics of single
/// shards, the order changes nothing.
fn shuffles_keys<D: NetworkDevice>(plan: &Plan, momentum: &Network<D>) -> bool {
    !momentum.statistics().is_empty() && !syncs_statistics(plan, momentum)
}

/// Splits a range into ranges of at most `size`.
pub(crate) fn split(all: Range<usize>, size: usize) -> Vec<Range<usize>> {
    let end = all.end;
    all.step_by(size.max(1)).map(|start| start..(start + size).min(end)).collect()
}

/// Returns the order in which the samples of a batch pass through the momentum network, so that a shard of keys is not
/// normalized together with the same samples as the shard of queries. With the same ones, the statistics of a shard
/// tell which key belongs to which query. MoCo shuffles the samples between its GPUs for that reason (He et al. 2020,
/// section 3.3).
fn key_order(seed: u64, step: u64, batch: u64, samples: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut stream(seed, Purpose::KeyOrder, step, batch, 0));
    order
}

/// The result of a batch; [`BatchOutcome::add`] and [`BatchOutcome::mean`] accumulate several.
pub(crate) struct BatchOutcome {
    /// The weighted sum of the terms.
    pub loss: f64,
    /// The value of each term.
    pub terms: Vec<TermValue>,
    /// Gradients by term, if they are logged.
    pub gradients_by_term: Option<GradientsByTerm>,
}

impl BatchOutcome {
    /// Adds the values of another batch. Gradients by term stay those of the first one.
    pub fn add(&mut self, other: BatchOutcome) {
        self.loss += other.loss;
        for (sum, term) in self.terms.iter_mut().zip(other.terms) {
            sum.value += term.value;
            sum.skipped = sum.skipped.take().or(term.skipped);
        }
    }

    /// Divides the sums by the number of batches.
    pub fn mean(mut self, batches: usize) -> Self {
        self.loss /= batches as f64;
        self.terms.iter_mut().for_each(|t| t.value /= batches as f64);
        self
    }
}

/// Data kept between steps besides the state, mostly on the device. A resumed run starts with an empty cache.
pub(crate) struct StepCache<D: NetworkDevice> {
    /// Traces of the last steps.
    pub trace: StepTrace<D>,
    /// The next batch, if it has been sent to the device.
    pub prefetched: Option<DevicePrefetch<D>>,
    /// The queue's keys on a device that replaces rows in place.
    pub queue_keys: Option<Matrix<f32, D>>,
    /// The sums of the gradients of shards.
    pub gradients: GradientTree<D>,
    /// Whether this rank is asked to stop after the step; once its rows are gathered, whether any rank is.
    pub stop: bool,
}

impl<D: NetworkDevice> Default for StepCache<D> {
    fn default() -> Self {
        StepCache {
            trace: StepTrace::default(),
            prefetched: None,
            queue_keys: None,
            gradients: GradientTree::default(),
            stop: false,
        }
    }
}

impl<D: NetworkDevice> StepCache<D> {
    /// Returns the images of some samples on the device. Only whole batches are prefetched.
    pub fn images(
        &mut self,
        (device, plan): (&D, &Plan),
        batch: &StepBatch<'_>,
        views: &[usize],
        part: &Range<usize>,
    ) -> Result<Vec<Images<D>>> {
        if batch.data.held.is_some() {
            let samples: Vec<usize> = part.clone().collect();
            return prefetch::selected(device, &plan.views, batch.data, views, &samples);
        }
        let prefetched = self.prefetched.as_mut().filter(|_| part.len() == batch.samples());
        match prefetched.and_then(|sent| sent.take(batch.data, views)) {
            Some(images) => Ok(images),
            None => prefetch::images(device, &plan.views, batch.data, views, part),
        }
    }

    /// Returns the images whose keys take the place of a part of the batch.
    pub fn key_images(
        &mut self,
        on: (&D, &Plan),
        batch: &StepBatch<'_>,
        part: &Range<usize>,
    ) -> Result<Vec<Images<D>>> {
        let views = &batch.reads.momentum;
        match &batch.key_order {
            None => self.images(on, batch, views, part),
            Some(order) => prefetch::selected(on.0, &on.1.views, batch.data, views, &order[part.clone()]),
        }
    }
}
