//! Batches of views, prepared in the background.
//!
//! All randomness is a function of (seed, epoch, sample, view), and batches are returned in order. The
//! results therefore do not depend on the number of threads or on the step at which a run was resumed.

use crate::ViewPipeline;
use pauc_traits::dataset::ImageSource;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Count, Error, Pixels, Result, stop};
use rand::Rng;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A batch of B images in the encoder's input format.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageBatch {
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The step within the epoch, counted from 0.
    pub step: u64,
    /// The indices of the B samples in the source.
    pub ids: Vec<u64>,
    /// Each view's pixels, B×H×W×C; fewer images if `held` says so.
    pub views: Vec<Pixels>,
    /// For each view, the samples whose pixels the batch has, in ascending order; `None`: all of them.
    pub held: Option<Vec<Vec<usize>>>,
    /// The samples' labels, if the source has any.
    pub labels: Option<Vec<u32>>,
    /// The samples' labels of a second granularity, if the source has any.
    pub fine_labels: Option<Vec<u32>>,
}

impl ImageBatch {
    /// Returns a range of the images with their ids, views and labels.
    pub fn rows(&self, rows: &Range<usize>) -> ImageBatch {
        let labels = |all: &Option<Vec<u32>>| all.as_ref().map(|l| l[rows.clone()].to_vec());
        let held = |view: usize| match &self.held {
            None => (rows.clone(), self.ids.len()),
            Some(held) => {
                let position = |row: usize| held[view].partition_point(|held| *held < row);
                (position(rows.start)..position(rows.end), held[view].len())
            }
        };
        let pixels = |(view, pixels): (usize, &Pixels)| {
            let (part, images) = held(view);
            let image = pixels.len() / images.max(1);
            pixels.part(part.start * image..part.end * image)
        };
        let of_part = |(view, held_rows): (usize, &Vec<usize>)| {
            held_rows[held(view).0].iter().map(|row| row - rows.start).collect()
        };
        ImageBatch {
            epoch: self.epoch,
            step: self.step,
            ids: self.ids[rows.clone()].to_vec(),
            views: self.views.iter().enumerate().map(pixels).collect(),
            held: self.held.as_ref().map(|all| all.iter().enumerate().map(of_part).collect()),
            labels: labels(&self.labels),
            fine_labels: labels(&self.fine_labels),
        }
    }

    /// Returns the positions of samples among those whose pixels the batch has of a view; `None` if it lacks one of
    /// them.
    pub fn positions(&self, view: usize, samples: &[usize]) -> Option<Vec<usize>> {
        match &self.held {
            None => Some(samples.to_vec()),
            Some(held) => samples.iter().map(|row| held.get(view)?.binary_search(row).ok()).collect(),
        }
    }
}

/// Returns the samples of a training step whose views are needed: for each view, positions in the batch in ascending
/// order. Steps are counted from the start of training.
pub type Share = Arc<dyn Fn(u64) -> Vec<Vec<usize>> + Send + Sync>;

/// The order of the samples in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A new random order in every epoch, without the incomplete last batch. For training.
    Shuffled,
    /// The order of the source; the last batch may be smaller. For evaluation.
    Sequential,
}

/// Options of a [`Loader`].
#[derive(Clone, Copy, Debug)]
pub struct LoaderOptions {
    /// Samples per batch.
    pub batch: Count,
    /// The run's seed.
    pub seed: u64,
    /// The order of the samples.
    pub order: Order,
    /// Background threads; 0 prepares every batch on the calling thread.
    pub threads: usize,
    /// The number of batches to prepare in advance, at least 1.
    pub prefetch: usize,
    /// Whether batches hold 8-bit values, which the consumer normalizes.
    pub bytes: bool,
}

impl LoaderOptions {
    /// Options for training: shuffled batches, prepared by one thread, two in advance.
    pub fn training(batch: Count, seed: u64) -> Self {
        LoaderOptions { batch, seed, order: Order::Shuffled, threads: 1, prefetch: 2, bytes: false }
    }

    /// Options for evaluation: all images in order, prepared by one thread, two batches in advance.
    pub fn evaluation(batch: Count) -> Self {
        LoaderOptions { batch, seed: 0, order: Order::Sequential, threads: 1, prefetch: 2, bytes: false }
    }

    /// Options for a device that normalizes images itself and leaves the CPU to the loader: 8-bit values,
    /// prepared by all threads of the process but one.
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
    /// The samples whose views are made; `None`: all of them.
    share: Option<Share>,
    /// The orders of the last two epochs that were used: threads may work on both sides of an epoch boundary.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

/// The time that a loader has spent, summed over all its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throughput {
    /// Images in prepared batches.
    pub images: u64,
    /// Time for reading and decoding; none for images in memory.
    pub read: Duration,
    /// Time for the augmentations of all views.
    pub augment: Duration,
    /// Time for the normalization of all views.
    pub normalize: Duration,
    /// Time that the consumer waited for batches.
    pub waited: Duration,
}

impl Throughput {
    /// Returns the difference from an earlier measurement of the same loader.
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
    /// Adds the time since `began` and returns the current time.
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
    /// Makes a loader that applies `pipeline` to `source`.
    ///
    /// # Errors
    /// If the source is empty, too large, or has fewer images than a training batch.
    pub fn new(source: Arc<dyn ImageSource>, pipeline: ViewPipeline, options: LoaderOptions) -> Result<Self> {
        Self::of_share(source, pipeline, options, None)
    }

    /// Makes a loader whose batches have the pixels of some samples only; see [`ImageBatch::held`].
    ///
    /// # Errors
    /// As [`Loader::new`].
    pub fn of_share(
        source: Arc<dyn ImageSource>,
        pipeline: ViewPipeline,
        options: LoaderOptions,
        share: Option<Share>,
    ) -> Result<Self> {
        let (count, batch) = (source.len(), options.batch.get());
        if count == 0 {
            return Err(Error::config("data: the dataset is empty"));
        }
        if u32::try_from(count).is_err() {
            return Err(Error::config(format!(
                "data: {count} images are more than the maximum of {}",
                u32::MAX
            )));
        }
        if options.order == Order::Shuffled && batch > count {
            return Err(Error::config(format!(
                "batch: {batch} is more than the {count} training images; use a smaller batch"
            )));
        }
        Ok(Loader {
            work: Arc::new(Work {
                source,
                pipeline,
                options,
                stages: Stages::default(),
                share,
                orders: Mutex::default(),
            }),
        })
    }

    /// Returns the number of batches per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.work.steps_per_epoch()
    }

    /// Returns the views of the batches.
    pub fn pipeline(&self) -> &ViewPipeline {
        &self.work.pipeline
    }

    /// Returns the time spent so far.
    pub fn throughput(&self) -> Throughput {
        let s = &self.work.stages;
        let images = s.images.load(Ordering::Relaxed);
        let [read, augment, normalize, waited] =
            [&s.read, &s.augment, &s.normalize, &s.waited].map(Timer::total);
        Throughput { images, read, augment, normalize, waited }
    }

    /// Returns the source of the images.
    pub fn source(&self) -> &Arc<dyn ImageSource> {
        &self.work.source
    }

    /// Returns the order of the samples in an epoch; the samples of a dropped incomplete batch come last.
    pub fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        self.work.order(epoch)
    }

    /// Returns the batches of the steps `steps`, counted from the start of training: with n =
    /// [`Loader::steps_per_epoch`], step s is step s mod n of epoch ⌊s/n⌋. Batches are prepared in advance
    /// across epoch boundaries.
    pub fn batches(&self, steps: Range<u64>) -> Batches {
        Batches::start(self.work.clone(), steps, self.steps_per_epoch())
    }

    /// Returns the batches of one epoch, starting at step `from`: 0, or the step at which a run is resumed.
    pub fn epoch(&self, epoch: u64, from: u64) -> Batches {
        let steps = self.steps_per_epoch();
        self.batches(epoch * steps + from.min(steps)..(epoch + 1) * steps)
    }

    /// Returns the batch of the samples `ids` with the random numbers of `epoch`; its `step` is 0.
    ///
    /// # Errors
    /// If an image cannot be read; the error names it.
    pub fn batch(&self, epoch: u64, ids: &[u32]) -> Result<ImageBatch> {
        self.work.batch(epoch, 0, ids, None)
    }
}

impl Work {
    fn steps_per_epoch(&self) -> u64 {
        let (count, batch) = (self.source.len(), self.options.batch.get());
        let steps = match self.options.order {
            Order::Shuffled => count / batch,
            Order::Sequential => count.div_ceil(batch),
        };
        steps as u64
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = lock(&self.orders);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return order.clone();
        }
        let mut order: Vec<u32> = (0..self.source.len() as u32).collect();
        if self.options.order == Order::Shuffled {
            // Fisher–Yates shuffle, from the end.
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
        let held = self.share.as_ref().map(|share| share(epoch * self.steps_per_epoch() + step));
        self.batch(epoch, step, &order[start..(start + batch).min(order.len())], held)
    }

    fn batch(&self, epoch: u64, step: u64, ids: &[u32], held: Option<Vec<Vec<usize>>>) -> Result<ImageBatch> {
        let pipeline = &self.pipeline;
        // The position of a sample among those held of a view.
        let place = |view: usize, sample: usize| match &held {
            None => Some(sample),
            Some(held) => held[view].binary_search(&sample).ok(),
        };
        let images = |view: usize| held.as_ref().map_or(ids.len(), |held| held[view].len());
        let sizes: Vec<usize> = (0..pipeline.len()).map(|v| pipeline.shape(v).len()).collect();
        let start = |(v, n): (usize, &usize)| match self.options.bytes {
            false => Pixels::Normalized(vec![0.0; n * images(v)]),
            true => Pixels::Bytes { values: vec![0; n * images(v)], normal: pipeline.normal(v).clone() },
        };
        let mut views: Vec<Pixels> = sizes.iter().enumerate().map(start).collect();
        let mut read = 0;
        for (sample, &id) in ids.iter().enumerate() {
            if (0..sizes.len()).all(|view| place(view, sample).is_none()) {
                continue;
            }
            read += 1;
            let began = Instant::now();
            let image = self.source.image(id as usize)?;
            let mut now = self.stages.read.add(began);
            for (v, (view, n)) in views.iter_mut().zip(&sizes).enumerate() {
                let Some(i) = place(v, sample) else { continue };
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
        self.stages.images.fetch_add(read, Ordering::Relaxed);
        let pick = |labels: Option<&[u32]>| labels.map(|l| ids.iter().map(|id| l[*id as usize]).collect());
        Ok(ImageBatch {
            epoch,
            step,
            ids: ids.iter().map(|id| u64::from(*id)).collect(),
            views,
            held,
            labels: pick(self.source.labels()),
            fine_labels: pick(self.source.fine_labels()),
        })
    }
}

/// The interval at which a waiting consumer looks at a request to stop.
const PAUSE: Duration = Duration::from_millis(50);

/// An iterator over the batches of a range of steps, in order. Waiting ends with [`Error::Stopped`] if the run is asked
/// to stop; the same batch can then be asked for again.
///
/// Dropping it stops the threads after their current batches. After a request to stop, it does not wait for them.
pub struct Batches {
    work: Arc<Work>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    steps_per_epoch: u64,
    end: u64,
    stop: stop::Flag,
}

/// The state shared by the threads and the consumer.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The next step to prepare.
    next: u64,
    /// The next step to return.
    wanted: u64,
    ready: BTreeMap<u64, Result<ImageBatch>>,
    closed: bool,
}

/// Locks a mutex and ignores poisoning: the state changes only in single assignments, so it stays valid.
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
            // If spawning fails, continue with fewer threads; with none, the consumer prepares the batches.
            threads.extend(std::thread::Builder::new().name(format!("loader {i}")).spawn(body));
        }
        Batches { work, shared, threads, steps_per_epoch, end: steps.end, stop: stop::flag() }
    }
}

/// The body of a thread: prepares one step after the other, at most `ahead` steps in advance.
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

/// Prepares the batch of a step. A panic, which only a bug in a plugin can cause, becomes an error. Otherwise
/// the consumer would wait forever for the dead thread.
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
                if let Err(stopped) = self.stop.check() {
                    return Some(Err(stopped));
                }
                let waited = self.shared.changed.wait_timeout(state, PAUSE);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
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
        if self.stop.is_set() {
            return;
        }
        for thread in self.threads.drain(..) {
            // Its panics have become errors.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
