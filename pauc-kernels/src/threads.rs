//! Work in fixed portions.
//!
//! How work is cut never depends on the number of threads, and sums over portions are taken in the order of the
//! portions. So the bits of a result do not depend on how many threads there are; rayon decides only who does what.

use rayon::iter::plumbing::{Producer, ProducerCallback};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Starts the threads of this process, of which the calling one is one: it works on its own steps instead of waking
/// another. 0 takes what rayon's own variable or the machine says.
///
/// # Errors
/// If the threads of this process were started before, or the system has none to give.
pub fn start(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    // Alone it would leave nobody to work for the loader's threads while it waits for them.
    let pool = if threads > 1 { pool.use_current_thread() } else { pool };
    pool.build_global()
}

/// Calls `work` for each portion 0..n, on as many threads as the current rayon pool has.
pub fn for_each(n: usize, work: impl Fn(usize) + Sync + Send) {
    (0..n).into_par_iter().with_max_len(1).each(work);
}

/// Copies as many values as `to` has room for, `piece` of them at a time.
pub fn copy<T: Copy + Send + Sync>(from: &[T], to: &mut [T], piece: usize) {
    let pieces = from.par_chunks(piece).zip(to.par_chunks_mut(piece));
    pieces.each(|(from, to)| to.copy_from_slice(&from[..to.len()]));
}

/// Parallel iterators over blocks of slices.
pub(crate) trait Each: IndexedParallelIterator {
    /// Calls `work` for each block: here, if there is only one or only one thread, since handing over takes longer
    /// than a small block; else on the current rayon pool.
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

/// Does work of several parallel steps on a thread of the current rayon pool: a thread from outside hands over and is
/// woken once, not at each step. To a pool of one thread, handing over only costs time.
pub(crate) fn inside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let here = rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1;
    if here { work() } else { rayon::scope(|_| work()) }
}

/// One of several parallel steps: `work` for each portion 0..`portions`.
pub(crate) struct Step<'a> {
    pub(crate) portions: usize,
    pub(crate) work: &'a (dyn Fn(usize) + Sync),
}

/// Steps of a few hundred microseconds, one after another, each when the one before is done.
///
/// Waking a thread takes as long as such a step. So threads are called once, for all steps, and stay awake between
/// them; a thread takes the next portion that nobody has taken, and one that comes late finds fewer left. Nobody waits
/// for a thread that has taken nothing.
pub(crate) fn steps(steps: &[Step<'_>]) {
    let progress: Vec<_> = steps.iter().map(|_| (AtomicUsize::new(0), AtomicUsize::new(0))).collect();
    let take_part = || {
        for (step, (taken, done)) in steps.iter().zip(&progress) {
            loop {
                let portion = taken.fetch_add(1, Ordering::Relaxed);
                if portion >= step.portions {
                    break;
                }
                // Counted when it unwinds, too: the others must not wait for it.
                let _done = CountOnDrop(done);
                (step.work)(portion);
            }
            let mut waited = 0u32;
            while done.load(Ordering::Acquire) < step.portions {
                waited += 1;
                if waited < 1 << 12 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        }
    };
    if rayon::current_num_threads() == 1 {
        return take_part();
    }
    inside(|| {
        rayon::scope(|scope| {
            (1..rayon::current_num_threads()).for_each(|_| scope.spawn(|_| take_part()));
            take_part();
        });
    });
}

struct CountOnDrop<'a>(&'a AtomicUsize);

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// The range of portion `i` when `total` is cut into `parts` of nearly equal size.
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

// SAFETY: a `Shared` only hands out pointers; whoever writes through them answers for disjointness.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// A pointer to element `i`, which may be the end.
    #[inline(always)]
    pub(crate) fn at(self, i: usize) -> *mut T {
        debug_assert!(i <= self.len, "{i} of {}", self.len);
        // SAFETY: `i` is within the slice or at its end.
        unsafe { self.start.add(i) }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No other thread may use the part meanwhile.
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
    fn a_step_begins_when_the_one_before_is_done() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let sum = AtomicUsize::new(0);
            let seen = std::sync::Mutex::new(Vec::new());
            let add = |i: usize| _ = sum.fetch_add(i + 1, Ordering::Relaxed);
            let look = |_: usize| seen.lock().unwrap().push(sum.load(Ordering::Relaxed));
            let plan = [
                Step { portions: 40, work: &add },
                Step { portions: 1, work: &look },
                Step { portions: 0, work: &add },
                Step { portions: 7, work: &add },
                Step { portions: 2, work: &look },
            ];
            pool.install(|| steps(&plan));
            assert_eq!(seen.into_inner().unwrap(), [820, 848, 848], "{threads} threads");
        }
    }

    #[test]
    fn a_panic_in_a_step_ends_all() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let fail = |i: usize| assert!(i != 3, "portion three");
        let plan = [Step { portions: 9, work: &fail }, Step { portions: 9, work: &|_| () }];
        let run = std::panic::AssertUnwindSafe(|| pool.install(|| steps(&plan)));
        assert!(std::panic::catch_unwind(run).is_err());
    }

    #[test]
    fn portions_cover_everything_once() {
        for total in 0..40 {
            for parts in 1..9 {
                let all: Vec<usize> = (0..parts).flat_map(|i| portion(total, parts, i)).collect();
                assert_eq!(all, (0..total).collect::<Vec<_>>());
            }
        }
    }
}
