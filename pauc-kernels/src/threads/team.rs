//! A team of threads that share the steps of one of them.
//!
//! `tests/team.rs` compiles this file over loom, which knows no sequentially consistent atomics. So the leader
//! and its helpers agree through operations on a single word, `Team::state`.

use super::sync::{AtomicU64, UnsafeCell, spin_loop, thread_local, yield_now};
use std::cell::Cell;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Work of one step: called for each portion, by several threads at a time.
type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// Threads that share the steps of one of them, their leader. Nobody waits for a thread that has taken no
/// portion: a thread that comes late finds fewer portions or none.
pub(super) struct Team {
    /// The thread whose steps are shared.
    leader: usize,
    /// The current step; written while it is closed and no helper is inside.
    step: UnsafeCell<Option<*const Work<'static>>>,
    /// [`OVER`] and [`OPEN`]; the number of helpers that are inside, or about to find that the step is closed,
    /// times [`HELPER`]; and the number of steps so far, times [`STEP`].
    state: AtomicU64,
    /// The remaining portions of each thread. A thread first takes its own from the front, always the same
    /// share of a step, since the data of its share in the previous step is in its cache. Then it takes
    /// others' from the back.
    left: Vec<Left>,
}

/// Whether there are no more steps.
const OVER: u64 = 1;
/// Whether helpers may enter the step.
const OPEN: u64 = 1 << 1;
/// A pool of rayon's has fewer than 2¹⁶ threads.
const HELPER: u64 = 1 << 2;
const STEP: u64 = 1 << 18;
/// The bits that count helpers.
const HELPERS: u64 = STEP - HELPER;

// SAFETY: only one thread writes `step`, while no helper is inside (see `Team::share`). Several threads may
// call the function that it points to.
unsafe impl Sync for Team {}
// SAFETY: as for `Sync`. A team that is moved has no step: `Team::share` borrows it.
unsafe impl Send for Team {}

thread_local! {
    /// The team whose steps this thread may call.
    static TEAM: Cell<Option<NonNull<Team>>> = const { Cell::new(None) };
}

/// Sets this thread's [`TEAM`] during its own lifetime.
struct Led(Option<NonNull<Team>>);

impl Led {
    fn by(team: Option<&Team>) -> Self {
        Led(TEAM.with(|led| led.replace(team.map(NonNull::from))))
    }
}

impl Drop for Led {
    fn drop(&mut self) {
        TEAM.with(|led| led.set(self.0));
    }
}

/// Whether this thread leads a team and is not within one of its steps.
pub(super) fn leads() -> bool {
    TEAM.with(Cell::get).is_some()
}

/// Calls `work` for each portion 0..n with the team that this thread leads. Returns whether there is one.
pub(super) fn share(portions: usize, work: &Work<'_>) -> bool {
    let Some(team) = TEAM.with(Cell::get) else { return false };
    // SAFETY: `Team::lead` set the team on this thread, and resets it while it still borrows the team.
    unsafe { team.as_ref() }.share(portions, work);
    true
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

impl Team {
    pub(super) fn new(threads: usize, leader: usize) -> Self {
        Team {
            leader,
            step: UnsafeCell::new(None),
            state: AtomicU64::new(0),
            left: (0..threads).map(|_| Left(AtomicU64::new(0))).collect(),
        }
    }

    /// Runs `work` on the leader's thread. The helpers take part in the steps that it passes to [`share`].
    pub(super) fn lead<T>(&self, work: impl FnOnce() -> T) -> T {
        // Also on unwinding: the helpers must leave.
        let _dismissed = OnDrop(|| _ = self.state.fetch_or(OVER, Relaxed));
        let _led = Led::by(Some(self));
        work()
    }

    /// Calls `work` for each portion, together with the helpers. Only the leader may call this.
    fn share(&self, portions: usize, work: &Work<'_>) {
        // SAFETY: only the lifetime changes. Nobody calls `work` after this function: `_closed` closes the
        // step and waits until the last helper has left.
        let work: &'static Work<'static> = unsafe { std::mem::transmute(work) };
        // SAFETY: helpers read `step` only while it is open and they are counted. At the end of the previous
        // step, `_closed` closed it and waited until no helper was counted.
        self.step.with_mut(|step| unsafe { *step = Some(work) });
        for (i, left) in self.left.iter().enumerate() {
            left.set(portion(portions, self.left.len(), i));
        }
        // The helpers that this lets in see the step and its portions.
        self.state.fetch_add(STEP + OPEN, Release);
        // Also on unwinding. A helper that is counted after this finds the step closed; one that was counted
        // before is waited for, and what it wrote is seen.
        let _closed = OnDrop(|| {
            self.state.fetch_sub(OPEN, Relaxed);
            wait_until(|| self.state.load(Acquire) & HELPERS == 0);
        });
        // Nested calls from a portion are not shared.
        let _led = Led::by(None);
        self.take(self.leader, work);
    }

    fn take(&self, thread: usize, work: &Work<'_>) {
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

    /// Takes portions of steps until there are no more steps. Calls `rest` again and again during a long
    /// pause.
    pub(super) fn help(&self, thread: usize, rest: impl Fn()) {
        // The first step has the number 1.
        let (mut idle, mut last) = (0u32, 0);
        loop {
            let state = self.state.load(Relaxed);
            if state & OVER != 0 {
                return;
            }
            if state & OPEN == 0 {
                idle = idle.saturating_add(1);
                if idle > 1 << 12 {
                    rest();
                }
            } else {
                idle = 0;
                if state / STEP != last {
                    last = self.enter(thread);
                }
            }
            spin_loop();
        }
    }

    /// Takes portions of the current step if it is open. Returns the step's number.
    fn enter(&self, thread: usize) -> u64 {
        let state = self.state.fetch_add(HELPER, Acquire);
        let _outside = OnDrop(|| _ = self.state.fetch_sub(HELPER, Release));
        // SAFETY: this thread was counted while the step was open, so `share` waits for it before writing
        // the next step.
        let step = || self.step.with(|step| unsafe { *step });
        if let Some(work) = (state & OPEN != 0).then(step).flatten() {
            // SAFETY: `share` does not return while this thread is counted.
            self.take(thread, unsafe { &*work });
        }
        state / STEP
    }
}

/// A range of portions, alone in its cache line. Its owner takes the first one, other threads the last.
#[repr(align(64))]
struct Left(AtomicU64);

impl Left {
    fn set(&self, range: Range<usize>) {
        self.0.store((range.start as u64) << 32 | range.end as u64, Relaxed);
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
        self.0.fetch_update(Relaxed, Relaxed, less).ok().map(bounds)
    }
}

fn wait_until(done: impl Fn() -> bool) {
    let mut waited = 0u32;
    while !done() {
        waited = waited.saturating_add(1);
        if waited < 1 << 12 { spin_loop() } else { yield_now() }
    }
}

/// Returns the range of portion `i` when `total` is divided into `parts` portions of nearly equal size.
pub fn portion(total: usize, parts: usize, i: usize) -> Range<usize> {
    let (size, more) = (total / parts, total % parts);
    let start = i * size + i.min(more);
    start..start + size + usize::from(i < more)
}
