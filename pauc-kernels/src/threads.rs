//! Work in fixed portions.
//!
//! The portions of work never depend on the number of threads, and sums over portions are taken in order. So
//! the bits of a result do not depend on the number of threads; rayon only decides which thread computes
//! which portion.

mod sync;
mod team;

use rayon::iter::plumbing::{Producer, ProducerCallback};
use rayon::prelude::*;
use team::Team;
pub use team::portion;

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
    if n <= 1 || !team::share(n, &work) {
        (0..n).into_par_iter().with_max_len(1).each(work);
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
    if rayon::current_num_threads() == 1 || team::leads() {
        return work();
    }
    let team = Team::new(rayon::current_num_threads(), leader);
    // Rayon's other work, or time for other processes.
    let rest = || {
        if rayon::yield_now() != Some(rayon::Yield::Executed) {
            std::thread::yield_now();
        }
    };
    rayon::in_place_scope(|scope| {
        let team = &team;
        scope.spawn_broadcast(move |_, thread| {
            // The leader gets this call too, while it waits for the end of the scope.
            if thread.index() != leader {
                team.help(thread.index(), rest);
            }
        });
        team.lead(work)
    })
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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
