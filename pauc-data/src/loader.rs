//! Batches of views, prepared in the background.
//!
//! Everything random is a function of (seed, epoch, sample, view), and batches are handed out in order, so that
//! neither the number of threads nor where a run started shows in the numbers.

use crate::ViewPipeline;
use pauc_traits::dataset::ImageSource;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Count, Error, Pixels, Result};
use rand::Rng;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A batch of B images as an encoder reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The step within the epoch, counted from 0.
    pub step: u64,
    /// The B samples: indices into the source.
    pub ids: Vec<u64>,
    /// Each view's pixels, B×H×W×C.
    pub views: Vec<Pixels>,
    /// The samples' labels, if the source has any.
    pub labels: Option<Vec<u32>>,
    /// The samples' labels of another granularity, if the source has any.
    pub fine_labels: Option<Vec<u32>>,
}

impl ImageBatch {
    /// Some of the images, with everything that belongs to them.
    pub fn rows(&self, rows: &Range<usize>) -> ImageBatch {
        let labels = |all: &Option<Vec<u32>>| all.as_ref().map(|l| l[rows.clone()].to_vec());
        let pixels = |view: &Pixels| {
            let image = view.len() / self.ids.len().max(1);
            view.part(rows.start * image..rows.end * image)
        };
        ImageBatch {
            epoch: self.epoch,
            step: self.step,
            ids: self.ids[rows.clone()].to_vec(),
            views: self.views.iter().map(pixels).collect(),
            labels: labels(&self.labels),
            fine_labels: labels(&self.fine_labels),
        }
    }
}

/// In what order the samples of an epoch come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In another order every epoch; a last batch that would not be full is left out. For training.
    Shuffled,
    /// In the order of the source; the last batch holds the rest. For evaluation.
    Sequential,
}

/// How a [`Loader`] works.
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Samples of a batch.
    pub batch: Count,
    /// The run's seed.
    pub seed: u64,
    /// The order of the samples.
    pub order: Order,
    /// Threads in the background; 0 prepares every batch when it is asked for, on the thread that asks.
    pub threads: usize,
    /// How many batches may be prepared ahead of the one that is asked for, at least 1.
    pub prefetch: usize,
    /// Whether batches hold 8-bit values, which whoever reads them normalizes.
    pub bytes: bool,
}

impl LoaderOptions {
    /// Shuffled batches for training, prepared by one thread, two ahead.
    pub fn training(batch: Count, seed: u64) -> Self {
        LoaderOptions { batch, seed, order: Order::Shuffled, threads: 1, prefetch: 2, bytes: false }
    }

    /// All images in order, prepared by one thread, two batches ahead.
    pub fn evaluation(batch: Count) -> Self {
        LoaderOptions { batch, seed: 0, order: Order::Sequential, threads: 1, prefetch: 2, bytes: false }
    }

    /// For a device that normalizes images itself and leaves the processor's cores to the loader: 8-bit values, prepared by
    /// all of the process's threads but one.
    pub fn for_accelerator(self) -> Self {
        let threads = rayon::current_num_threads().saturating_sub(1).max(1);
        LoaderOptions { bytes: true, threads, prefetch: threads + 1, ..self }
    }
}

/// Makes batches of views from a source.
#[derive(Clone)]
pub struct Loader {
    work: Arc<Work>,
}

struct Work {
    source: Arc<dyn ImageSource>,
    pipeline: ViewPipeline,
    options: LoaderOptions,
    stages: Stages,
    /// The orders of the last two epochs that were asked for: threads may be on both sides of a border.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

/// Where a loader's time went, added up over all of its threads since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throughput {
    /// Images in prepared batches.
    pub images: u64,
    /// Time for reading: files, decoding, or nothing from memory.
    pub read: Duration,
    /// Time for augmentations, all views.
    pub augment: Duration,
    /// Time for normalization, all views.
    pub normalize: Duration,
    /// Time that whoever asked for batches had to wait for them.
    pub waited: Duration,
}

impl Throughput {
    /// What was added since an earlier look at the same loader.
    pub fn since(&self, earlier: &Throughput) -> Throughput {
        Throughput {
            images: self.images - earlier.images,
            read: self.read - earlier.read,
            augment: self.augment - earlier.augment,
            normalize: self.normalize - earlier.normalize,
            waited: self.waited - earlier.waited,
        }
    }
}

#[derive(Default)]
struct Stages {
    images: AtomicU64,
    read: Timer,
    augment: Timer,
    normalize: Timer,
    waited: Timer,
}

/// Nanoseconds.
#[derive(Default)]
struct Timer(AtomicU64);

impl Timer {
    /// Adds the time since `began`; the present.
    fn add(&self, began: Instant) -> Instant {
        let now = Instant::now();
        self.0.fetch_add((now - began).as_nanos() as u64, Ordering::Relaxed);
        now
    }

    fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl Loader {
    /// A loader of `source` through `pipeline`.
    ///
    /// # Errors
    /// If the source is empty, too large, or has fewer images than a training batch.
    pub fn new(source: Arc<dyn ImageSource>, pipeline: ViewPipeline, options: LoaderOptions) -> Result<Self> {
        let (count, batch) = (source.len(), options.batch.get());
        if count == 0 {
            return Err(Error::config("data: there are no images"));
        }
        if u32::try_from(count).is_err() {
            return Err(Error::config(format!("data: {count} images are more than {}", u32::MAX)));
        }
        if options.order == Order::Shuffled && batch > count {
            return Err(Error::config(format!(
                "batch: {batch} is more than the {count} training images; give a smaller batch"
            )));
        }
        Ok(Loader {
            work: Arc::new(Work {
                source,
                pipeline,
                options,
                stages: Stages::default(),
                orders: Mutex::default(),
            }),
        })
    }

    /// The number of batches of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        let (count, batch) = (self.work.source.len(), self.work.options.batch.get());
        let steps = match self.work.options.order {
            Order::Shuffled => count / batch,
            Order::Sequential => count.div_ceil(batch),
        };
        steps as u64
    }

    /// The views that the batches hold.
    pub fn pipeline(&self) -> &ViewPipeline {
        &self.work.pipeline
    }

    /// Where the time went so far.
    pub fn throughput(&self) -> Throughput {
        let s = &self.work.stages;
        let images = s.images.load(Ordering::Relaxed);
        let [read, augment, normalize, waited] =
            [&s.read, &s.augment, &s.normalize, &s.waited].map(Timer::total);
        Throughput { images, read, augment, normalize, waited }
    }

    /// The source that the batches come from.
    pub fn source(&self) -> &Arc<dyn ImageSource> {
        &self.work.source
    }

    /// The order of the samples in an epoch, those that drop-last leaves out at the end.
    pub fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        self.work.order(epoch)
    }

    /// The batches of the steps `steps`, counted from the start of training: step s is step s mod
    /// [`Loader::steps_per_epoch`] of epoch s div that. Preparation runs on over the borders of epochs.
    pub fn batches(&self, steps: Range<u64>) -> Batches {
        Batches::start(self.work.clone(), steps, self.steps_per_epoch())
    }

    /// The batches of one epoch from step `from` on: 0, or where an interrupted run goes on.
    pub fn epoch(&self, epoch: u64, from: u64) -> Batches {
        let steps = self.steps_per_epoch();
        self.batches(epoch * steps + from.min(steps)..(epoch + 1) * steps)
    }

    /// The batch of the samples `ids` with the random numbers of `epoch`; its `step` is 0.
    ///
    /// # Errors
    /// If an image cannot be read; the error names it.
    pub fn batch(&self, epoch: u64, ids: &[u32]) -> Result<ImageBatch> {
        self.work.batch(epoch, 0, ids)
    }
}

impl Work {
    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = lock(&self.orders);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return order.clone();
        }
        let mut order: Vec<u32> = (0..self.source.len() as u32).collect();
        if self.options.order == Order::Shuffled {
            // Fisher and Yates, from the end.
            let mut rng = stream(self.options.seed, Purpose::Shuffle, epoch, 0, 0);
            for i in (1..order.len()).rev() {
                order.swap(i, rng.gen_range(0..=i as u32) as usize);
            }
        }
        let order = Arc::new(order);
        if orders.len() == 2 {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }

    fn step(&self, epoch: u64, step: u64) -> Result<ImageBatch> {
        let order = self.order(epoch);
        let batch = self.options.batch.get();
        let start = step as usize * batch;
        self.batch(epoch, step, &order[start..(start + batch).min(order.len())])
    }

    fn batch(&self, epoch: u64, step: u64, ids: &[u32]) -> Result<ImageBatch> {
        let pipeline = &self.pipeline;
        let sizes: Vec<usize> = (0..pipeline.len()).map(|v| pipeline.shape(v).len()).collect();
        let start = |(v, n): (usize, &usize)| match self.options.bytes {
            false => Pixels::Normalized(vec![0.0; n * ids.len()]),
            true => Pixels::Bytes { values: vec![0; n * ids.len()], normal: pipeline.normal(v).clone() },
        };
        let mut views: Vec<Pixels> = sizes.iter().enumerate().map(start).collect();
        for (i, &id) in ids.iter().enumerate() {
            let began = Instant::now();
            let image = self.source.image(id as usize)?;
            let mut now = self.stages.read.add(began);
            for (v, (view, n)) in views.iter_mut().zip(&sizes).enumerate() {
                let mut rng = stream(self.options.seed, Purpose::View, epoch, u64::from(id), v as u64);
                let borrowed = pauc_traits::Image { shape: image.shape, pixels: (&*image.pixels).into() };
                let augmented = pipeline.augment(borrowed, v, &mut rng);
                now = self.stages.augment.add(now);
                let written = match view {
                    Pixels::Normalized(view) => {
                        pipeline.normalize(&augmented, v, &mut view[i * n..(i + 1) * n])
                    }
                    Pixels::Bytes { values, .. } => pipeline
                        .checked(&augmented, v, *n)
                        .map(|bytes| values[i * n..(i + 1) * n].copy_from_slice(bytes)),
                };
                now = self.stages.normalize.add(now);
                written.map_err(|e| match e {
                    Error::Shape { operation, message } => {
                        Error::shape(format!("image {id}, {operation}"), message)
                    }
                    other => other,
                })?;
            }
        }
        self.stages.images.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let pick = |labels: Option<&[u32]>| labels.map(|l| ids.iter().map(|id| l[*id as usize]).collect());
        Ok(ImageBatch {
            epoch,
            step,
            ids: ids.iter().map(|id| u64::from(*id)).collect(),
            views,
            labels: pick(self.source.labels()),
            fine_labels: pick(self.source.fine_labels()),
        })
    }
}

/// The batches of a range of steps, in order.
///
/// Dropping it stops the threads after the batches that they are at.
pub struct Batches {
    work: Arc<Work>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    steps_per_epoch: u64,
    end: u64,
}

/// What the threads and the consumer share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The next step that nobody prepares yet.
    next: u64,
    /// The next step to hand out.
    wanted: u64,
    ready: BTreeMap<u64, Result<ImageBatch>>,
    closed: bool,
}

/// A lock whose holder panicked is as good as another: the state changes in single assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a>(shared: &Shared, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    shared.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

impl Batches {
    fn start(work: Arc<Work>, steps: Range<u64>, steps_per_epoch: u64) -> Self {
        let state = State { next: steps.start, wanted: steps.start, ready: BTreeMap::new(), closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let ahead = work.options.prefetch.max(1) as u64;
        let mut threads = Vec::new();
        for i in 0..work.options.threads {
            let (work, shared) = (work.clone(), shared.clone());
            let body = move || prepare(&work, &shared, steps_per_epoch, steps.end, ahead);
            // A thread that the system refuses is done without: with none at all, the consumer does the work.
            threads.extend(std::thread::Builder::new().name(format!("loader {i}")).spawn(body));
        }
        Batches { work, shared, threads, steps_per_epoch, end: steps.end }
    }
}

/// What a thread does: prepares one step after the other, never more than `ahead` beyond the one that is wanted.
fn prepare(work: &Work, shared: &Shared, steps_per_epoch: u64, end: u64, ahead: u64) {
    loop {
        let mut state = lock(&shared.state);
        while !state.closed && state.next < end && state.next >= state.wanted + ahead {
            state = wait(shared, state);
        }
        if state.closed || state.next >= end {
            return;
        }
        let step = state.next;
        state.next += 1;
        drop(state);
        let batch = make(work, step, steps_per_epoch);
        lock(&shared.state).ready.insert(step, batch);
        shared.changed.notify_all();
    }
}

/// The batch of a step. A panic, which only a bug in a plugin can cause, becomes an error: the consumer would wait
/// for ever for a thread that is gone.
fn make(work: &Work, step: u64, steps_per_epoch: u64) -> Result<ImageBatch> {
    let (epoch, within) = (step / steps_per_epoch, step % steps_per_epoch);
    catch_unwind(AssertUnwindSafe(|| work.step(epoch, within))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Error::Other(
            format!("a view or dataset panicked in step {within} of epoch {epoch}: {text}").into(),
        ))
    })
}

impl Iterator for Batches {
    type Item = Result<ImageBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut state = lock(&self.shared.state);
        let step = state.wanted;
        if step >= self.end {
            return None;
        }
        let began = Instant::now();
        let batch = if self.threads.is_empty() {
            drop(state);
            let batch = make(&self.work, step, self.steps_per_epoch);
            state = lock(&self.shared.state);
            batch
        } else {
            loop {
                if let Some(batch) = state.ready.remove(&step) {
                    break batch;
                }
                state = wait(&self.shared, state);
            }
        };
        state.wanted += 1;
        self.work.stages.waited.add(began);
        drop(state);
        self.shared.changed.notify_all();
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.saturating_sub(lock(&self.shared.state).wanted) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches {}

impl Drop for Batches {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Its panics became errors already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
