//! Work in fixed portions.
//!
//! How work is cut never depends on the number of threads, and sums over portions are taken in the order of the
//! portions. So the bits of a result do not depend on how many threads there are; rayon decides only who does what.

use rayon::iter::plumbing::{Producer, ProducerCallback};
use rayon::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

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
    match TEAM.get() {
        // SAFETY: `awake` set it on this thread, whose team it is, and resets it before the team is dropped (`Led`).
        Some(team) if n > 1 => unsafe { team.as_ref() }.share(n, &work),
        _ => (0..n).into_par_iter().with_max_len(1).each(work),
    }
}

/// Copies as many values as `to` has room for, `piece` of them at a time.
///
/// # Shapes
/// from at least as long as `to`
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
    let inside_already = rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1;
    if inside_already { work() } else { rayon::scope(|_| work()) }
}

/// Does `work` while the other threads of the current rayon pool stay awake and share each [`for_each`] that it calls: to
/// wake a thread takes as long as a step of a few hundred microseconds. Outside a pool, or where a thread is already in
/// such work, this is a call of `work`.
pub fn awake<T>(work: impl FnOnce() -> T) -> T {
    let Some(leader) = rayon::current_thread_index() else { return work() };
    if rayon::current_num_threads() == 1 || TEAM.get().is_some() {
        return work();
    }
    let team = Team::new(rayon::current_num_threads(), leader);
    rayon::in_place_scope(|scope| {
        let team = &team;
        scope.spawn_broadcast(move |_, thread| {
            // The thread whose work it is takes this, too, while it waits for the end of the scope.
            if thread.index() != leader {
                team.help(thread.index());
            }
        });
        // Also when it unwinds: the others must not stay.
        let _dismissed = OnDrop(|| team.over.store(true, Ordering::SeqCst));
        let _led = Led::by(Some(team));
        work()
    })
}

thread_local! {
    /// The team that shares what this thread calls [`for_each`] for.
    static TEAM: Cell<Option<NonNull<Team>>> = const { Cell::new(None) };
}

/// Sets this thread's [`TEAM`] for as long as it lives.
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

/// Threads that share the steps of one of them. Nobody waits for a thread that has taken nothing: whoever comes late, or
/// not at all, finds fewer portions or none.
struct Team {
    /// The thread whose steps they are.
    leader: usize,
    /// The step at hand: written while it is closed and nobody is inside.
    step: UnsafeCell<Option<*const (dyn Fn(usize) + Sync)>>,
    /// Whether helpers may go into the step.
    open: AtomicBool,
    /// Helpers who are inside, or about to find out that it is closed.
    inside: AtomicUsize,
    /// The portions that each thread is to take and that nobody has taken. A thread takes its own from the front, always
    /// the same share of a step, since what it read and wrote in the step before is in its cache; then others' from the
    /// back.
    left: Vec<Left>,
    /// Whether no further step comes.
    over: AtomicBool,
}

// SAFETY: `step` is written by one thread only, while nobody is inside (see `Team::share`), and what it points to may be
// called by several threads.
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

    /// Calls `work` for each portion, together with those who help; for the one thread whose team it is.
    fn share(&self, portions: usize, work: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. Nobody calls `work` after this function: `_closed` closes the step and waits
        // until the last helper has left.
        let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
        // SAFETY: helpers read `step` only while it is open and they are counted; when the step before ended, `_closed` closed
        // it and waited until none was counted.
        unsafe { *self.step.get() = Some(work) };
        for (i, left) in self.left.iter().enumerate() {
            left.set(portion(portions, self.left.len(), i));
        }
        self.open.store(true, Ordering::SeqCst);
        // Also when it unwinds. Whoever counts himself in after this store finds the step closed; whoever did so before
        // is waited for.
        let _closed = OnDrop(|| {
            self.open.store(false, Ordering::SeqCst);
            wait_until(|| self.inside.load(Ordering::SeqCst) == 0);
        });
        // What a portion calls in turn is its own.
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

    /// Takes portions of steps until no further comes.
    fn help(&self, thread: usize) {
        let mut idle = 0u32;
        while !self.over.load(Ordering::SeqCst) {
            if !self.open.load(Ordering::Relaxed) {
                idle += 1;
                std::hint::spin_loop();
                // In a long pause there may be other work, or other processes.
                if idle > 1 << 12 && rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::yield_now();
                }
                continue;
            }
            idle = 0;
            self.inside.fetch_add(1, Ordering::SeqCst);
            let _outside = OnDrop(|| _ = self.inside.fetch_sub(1, Ordering::SeqCst));
            if self.open.load(Ordering::SeqCst) {
                // SAFETY: this thread was counted before it saw the step open, so `share` waits for it before it writes the next.
                if let Some(work) = unsafe { *self.step.get() } {
                    // SAFETY: `share` does not return while this thread is counted.
                    self.take(thread, unsafe { &*work });
                }
            }
        }
    }
}

/// A range of portions, from which one thread takes the first and others the last; alone in its cache line.
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

    /// What the range was, if it was not empty, before `take` left less of it.
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

// SAFETY: the slice is borrowed mutably for as long as any copy lives, so nobody else uses it. Safe functions only hand out
// pointers; `part`, and whoever dereferences these, promises that threads use different elements.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: a reference gives no more than a copy, which may be sent.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// How many elements.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// A pointer to element `i`, which may be the end.
    #[inline(always)]
    pub(crate) fn at(self, i: usize) -> *mut T {
        debug_assert!(i <= self.len, "{i} of {}", self.len);
        self.start.wrapping_add(i)
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
    fn a_panic_in_a_step_ends_all() {
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
            // Several at once, each with the others' threads; and from a thread of no pool.
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
