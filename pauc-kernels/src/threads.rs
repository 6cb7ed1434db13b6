//! Work in fixed portions.
//!
//! The portions of work never depend on the number of threads, and sums over portions are taken in order. So
//! the bits of a result do not depend on the number of threads; rayon only decides which thread computes
//! which portion.

use rayon::iter::plumbing::{Producer, ProducerCallback};
use rayon::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Starts the threads of this process. The calling thread is one of them: it works on its own steps instead
/// of waking another. With 0, the number comes from rayon's environment variable or the machine.
///
/// # Errors
/// If the threads of this process are already running, or the system cannot create them.
pub fn start(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    // A single thread would not work for the loader's threads while it waits for them.
    let pool = if threads > 1 { pool.use_current_thread() } else { pool };
    pool.build_global()
}

/// Calls `work` for each portion 0..n, on all threads of the current rayon pool.
pub fn for_each(n: usize, work: impl Fn(usize) + Sync + Send) {
    match TEAM.get() {
        // SAFETY: `awake` set the team on this thread, its leader, and resets it before the team is dropped
        // (`Led`).
        Some(team) if n > 1 => unsafe { team.as_ref() }.share(n, &work),
        _ => (0..n).into_par_iter().with_max_len(1).each(work),
    }
}

/// Fills `to` from the start of `from`, in pieces of `piece` values.
///
/// # Shapes
/// `from` is at least as long as `to`
pub fn copy<T: Copy + Send + Sync>(from: &[T], to: &mut [T], piece: usize) {
    let pieces = from.par_chunks(piece).zip(to.par_chunks_mut(piece));
    pieces.each(|(from, to)| to.copy_from_slice(&from[..to.len()]));
}

/// Parallel iterators over blocks of slices.
pub(crate) trait Each: IndexedParallelIterator {
    /// Calls `work` for each block on the current rayon pool. With one block or one thread, calls it here,
    /// since a handover takes longer than a small block.
    fn each(self, work: impl Fn(Self::Item) + Sync + Send) {
        struct Here<F>(F);
        impl<T, F: Fn(T)> ProducerCallback<T> for Here<F> {
            type Output = ();
            fn callback<P: Producer<Item = T>>(self, blocks: P) {
                blocks.into_iter().for_each(self.0);
            }
        }
        if self.len() <= 1 || rayon::current_num_threads() == 1 {
            self.with_producer(Here(work));
        } else {
            self.for_each(work);
        }
    }
}

impl<I: IndexedParallelIterator> Each for I {}

/// Runs work of several parallel steps on a thread of the current rayon pool. A thread from outside hands
/// over and is woken once, not at each step. With a pool of one thread, a handover only costs time.
pub(crate) fn inside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside_already = rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1;
    if inside_already { work() } else { rayon::scope(|_| work()) }
}

/// Runs `work` while the other threads of the current rayon pool stay awake and share each [`for_each`] that
/// it calls. Waking a thread takes as long as a step of a few hundred microseconds. Outside a pool, or on a
/// thread that is already in such work, this only calls `work`.
pub fn awake<T>(work: impl FnOnce() -> T) -> T {
    let Some(leader) = rayon::current_thread_index() else { return work() };
    if rayon::current_num_threads() == 1 || TEAM.get().is_some() {
        return work();
    }
    let team = Team::new(rayon::current_num_threads(), leader);
    rayon::in_place_scope(|scope| {
        let team = &team;
        scope.spawn_broadcast(move |_, thread| {
            // The leader gets this call too, while it waits for the end of the scope.
            if thread.index() != leader {
                team.help(thread.index());
            }
        });
        // Also on unwinding: the helpers must leave.
        let _dismissed = OnDrop(|| team.over.store(true, Ordering::SeqCst));
        let _led = Led::by(Some(team));
        work()
    })
}

thread_local! {
    /// The team that shares this thread's calls of [`for_each`].
    static TEAM: Cell<Option<NonNull<Team>>> = const { Cell::new(None) };
}

/// Sets this thread's [`TEAM`] during its own lifetime.
struct Led(Option<NonNull<Team>>);

impl Led {
    fn by(team: Option<&Team>) -> Self {
        Led(TEAM.replace(team.map(NonNull::from)))
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        TEAM.set(self.0);
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Threads that share the steps of one of them. Nobody waits for a thread that has taken no portion: a thread
/// that comes late finds fewer portions or none.
struct Team {
    /// The thread whose steps are shared.
    leader: usize,
    /// The current step; written while it is closed and no helper is inside.
    step: UnsafeCell<Option<*const (dyn Fn(usize) + Sync)>>,
    /// Whether helpers may enter the step.
    open: AtomicBool,
    /// Helpers that are inside, or about to find that the step is closed.
    inside: AtomicUsize,
    /// The remaining portions of each thread. A thread first takes its own from the front, always the same
    /// share of a step, since the data of its share in the previous step is in its cache. Then it takes
    /// others' from the back.
    left: Vec<Left>,
    /// Whether there are no more steps.
    over: AtomicBool,
}

// SAFETY: only one thread writes `step`, while no helper is inside (see `Team::share`). Several threads may
// call the function that it points to.
unsafe impl Sync for Team {}

impl Team {
    fn new(threads: usize, leader: usize) -> Self {
        Team {
            leader,
            step: UnsafeCell::new(None),
            open: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
            left: (0..threads).map(|_| Left::default()).collect(),
            over: AtomicBool::new(false),
        }
    }

    /// Calls `work` for each portion, together with the helpers. Only the leader may call this.
    fn share(&self, portions: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. Nobody calls `work` after this function: `_closed` closes the
        // step and waits until the last helper has left.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        // SAFETY: helpers read `step` only while it is open and they are counted. At the end of the previous
        // step, `_closed` closed it and waited until no helper was counted.
        unsafe { *self.step.get() = Some(work) };
        for (i, left) in self.left.iter().enumerate() {
            left.set(portion(portions, self.left.len(), i));
        }
        self.open.store(true, Ordering::SeqCst);
        // Also on unwinding. A helper that is counted after this store finds the step closed; one that was
        // counted before is waited for.
        let _closed = OnDrop(|| {
            self.open.store(false, Ordering::SeqCst);
            wait_until(|| self.inside.load(Ordering::SeqCst) == 0);
        });
        // Nested calls from a portion are not shared.
        let _led = Led::by(None);
        self.take(self.leader, work);
    }

    fn take(&self, thread: usize, work: &(dyn Fn(usize) + Sync)) {
        while let Some(portion) = self.left[thread].first() {
            work(portion);
        }
        let (before, after) = self.left.split_at(thread);
        for others in after.iter().chain(before) {
            while let Some(portion) = others.last() {
                work(portion);
            }
        }
    }

    /// Takes portions of steps until there are no more steps.
    fn help(&self, thread: usize) {
        let mut idle = 0u32;
        while !self.over.load(Ordering::SeqCst) {
            if !self.open.load(Ordering::Relaxed) {
                idle += 1;
                std::hint::spin_loop();
                // A long pause leaves time for other work or other processes.
                if idle > 1 << 12 && rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::yield_now();
                }
                continue;
            }
            idle = 0;
            self.inside.fetch_add(1, Ordering::SeqCst);
            let _outside = OnDrop(|| _ = self.inside.fetch_sub(1, Ordering::SeqCst));
            if self.open.load(Ordering::SeqCst) {
                // SAFETY: this thread was counted before it saw the step open, so `share` waits for it before
                // writing the next step.
                if let Some(work) = unsafe { *self.step.get() } {
                    // SAFETY: `share` does not return while this thread is counted.
                    self.take(thread, unsafe { &*work });
                }
            }
        }
    }
}

/// A range of portions, alone in its cache line. Its owner takes the first one, other threads the last.
#[derive(Default)]
#[repr(align(64))]
struct Left(AtomicU64);

impl Left {
    fn set(&self, range: std::ops::Range<usize>) {
        self.0.store((range.start as u64) << 32 | range.end as u64, Ordering::Relaxed);
    }

    fn first(&self) -> Option<usize> {
        self.shrink(|start, end| [start + 1, end]).map(|(start, _)| start as usize)
    }

    fn last(&self) -> Option<usize> {
        self.shrink(|start, end| [start, end - 1]).map(|(_, end)| end as usize - 1)
    }

    /// Applies `take` to the range if it is not empty, and returns the previous range.
    fn shrink(&self, take: impl Fn(u64, u64) -> [u64; 2]) -> Option<(u64, u64)> {
        let bounds = |range: u64| (range >> 32, range & u64::from(u32::MAX));
        let less = |range| {
            let (start, end) = bounds(range);
            let [start, end] = (start < end).then(|| take(start, end))?;
            Some(start << 32 | end)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok().map(bounds)
    }
}

fn wait_until(done: impl Fn() -> bool) {
    let mut waited = 0u32;
    while !done() {
        waited += 1;
        if waited < 1 << 12 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

/// Returns the range of portion `i` when `total` is divided into `parts` portions of nearly equal size.
pub fn portion(total: usize, parts: usize, i: usize) -> std::ops::Range<usize> {
    let (size, more) = (total / parts, total % parts);
    let start = i * size + i.min(more);
    start..start + size + usize::from(i < more)
}

/// A slice that several threads write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the slice is borrowed mutably as long as any copy lives, so nothing else accesses it. Safe
// functions only return pointers. Callers of `part`, and code that dereferences the pointers, promise that
// threads access different elements.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: a reference only gives a copy, which is `Send`.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// Returns the number of elements.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// Returns a pointer to element `i`, which may be the end.
    #[inline(always)]
    pub(crate) fn at(self, i: usize) -> *mut T {
        debug_assert!(i <= self.len, "{i} of {}", self.len);
        self.start.wrapping_add(i)
    }

    /// Returns a part of the slice.
    ///
    /// # Safety
    /// No other thread may access the part while it is borrowed.
    #[inline(always)]
    pub(crate) unsafe fn part(self, range: std::ops::Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_begins_after_the_previous_one() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sum = AtomicUsize::new(0);
            let sums = std::sync::Mutex::new(Vec::new());
            let add = |i: usize| _ = sum.fetch_add(i + 1, Ordering::Relaxed);
            let look = |_: usize| sums.lock().unwrap().push(sum.load(Ordering::Relaxed));
            pool.install(|| {
                awake(|| {
                    for_each(40, add);
                    for_each(1, look);
                    for_each(0, add);
                    for_each(7, add);
                    for_each(2, look);
                })
            });
            assert_eq!(sums.into_inner().unwrap(), [820, 848, 848], "{threads} threads");
        }
    }

    #[test]
    fn a_panic_in_a_step_ends_all_steps() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let fail = |i: usize| assert!(i != 3, "portion three");
        let steps = || {
            for_each(9, fail);
            for_each(9, |_| ());
        };
        let run = std::panic::AssertUnwindSafe(|| pool.install(|| awake(steps)));
        assert!(std::panic::catch_unwind(run).is_err());
    }

    #[test]
    fn work_of_awake_threads_is_done_once_and_ends() {
        let sum = AtomicUsize::new(0);
        let step = || for_each(20, |i| _ = sum.fetch_add(i, Ordering::Relaxed));
        let work = || (0..50).map(|_| awake(step)).count();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| awake(work)), 50);
            // Several at once, each with the others' threads; and from a thread outside the pool.
            pool.scope(|s| (0..3).for_each(|_| s.spawn(|_| assert_eq!(awake(work), 50))));
        }
        assert_eq!(awake(work), 50);
        assert_eq!(sum.into_inner(), (3 * 4 + 1) * 50 * 190);
    }

    #[test]
    fn portions_cover_everything_once() {
        for total in 0..40 {
            for parts in 1..9 {
                let portions: Vec<usize> = (0..parts).flat_map(|i| portion(total, parts, i)).collect();
                assert_eq!(portions, (0..total).collect::<Vec<_>>());
            }
        }
    }
}
