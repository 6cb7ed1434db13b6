//! A team of threads under [loom](https://docs.rs/loom), which runs a model once for each interleaving of its
//! threads and each value that a load may return. Only the number of preemptions is bounded.
//!
//! ```text
//! LOOM_MAX_PREEMPTIONS=5 cargo test -p pauc-kernels --release --test team
//! ```

#![allow(clippy::unwrap_used)] // helpers of tests, which Clippy takes for library code

// The team's own source. Its `super::sync` is the module below.
#[path = "../src/threads/team.rs"]
mod team;

/// Loom's atomics and cells, in place of the standard library's in `src/threads/sync.rs`.
mod sync {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering;

    pub use loom::cell::UnsafeCell;
    pub use loom::thread::yield_now;

    macro_rules! local {
        ($(#[$attribute:meta])* static $name:ident: $type:ty = const { $value:expr };) => {
            loom::thread_local! { $(#[$attribute])* static $name: $type = $value; }
        };
    }
    pub(crate) use local as thread_local;

    /// A method of an atomic, and the ordering that the source gives it.
    pub type Operation = (&'static str, &'static str);

    // Of the thread that explores a model: loom runs all threads of a model on it.
    std::thread_local! {
        /// How often the threads of this execution have waited.
        pub static WAITS: Cell<u32> = const { Cell::new(0) };
        /// Operations that the source orders, among those that have run.
        pub static ORDERED: RefCell<BTreeSet<Operation>> = const { RefCell::new(BTreeSet::new()) };
        /// An operation that is relaxed, whatever the source says.
        pub static RELAXED: Cell<Option<Operation>> = const { Cell::new(None) };
    }

    /// Two helpers can wait in turn for as long as they like before the leader continues. An execution in
    /// which threads have waited this often runs to its end, but is not varied any further.
    const MAX_WAITS: u32 = 6;

    pub fn spin_loop() {
        WAITS.set(WAITS.get() + 1);
        if WAITS.get() == MAX_WAITS {
            loom::skip_branch();
        }
        loom::hint::spin_loop();
    }

    fn ordering(method: &'static str, ordering: Ordering) -> Ordering {
        let operation = match ordering {
            Ordering::Relaxed => return ordering,
            Ordering::Acquire => (method, "Acquire"),
            Ordering::Release => (method, "Release"),
            // Loom knows `SeqCst` only for fences.
            _ => panic!("{method}: {ordering:?} is not modeled"),
        };
        ORDERED.with_borrow_mut(|ordered| ordered.insert(operation));
        if RELAXED.get() == Some(operation) { Ordering::Relaxed } else { ordering }
    }

    pub struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub fn new(value: u64) -> Self {
            AtomicU64(loom::sync::atomic::AtomicU64::new(value))
        }

        pub fn load(&self, order: Ordering) -> u64 {
            self.0.load(ordering("load", order))
        }

        pub fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, ordering("store", order));
        }

        pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_add(value, ordering("fetch_add", order))
        }

        pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_sub(value, ordering("fetch_sub", order))
        }

        pub fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_or(value, ordering("fetch_or", order))
        }

        pub fn fetch_update(
            &self,
            set: Ordering,
            fetch: Ordering,
            new: impl FnMut(u64) -> Option<u64>,
        ) -> Result<u64, u64> {
            self.0.fetch_update(ordering("fetch_update", set), ordering("fetch_update", fetch), new)
        }
    }
}

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use team::{Team, leads, share};

/// Runs a model once for each execution with at most `preemptions` preemptions.
fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(move || {
        sync::WAITS.set(0);
        model();
    });
}

/// Numbers that threads write. Loom fails a model in which two threads use one at a time, or in which a thread
/// need not see what another wrote.
struct Numbers(Vec<UnsafeCell<usize>>);

// SAFETY: loom checks each access.
unsafe impl Sync for Numbers {}

impl Numbers {
    fn zeros(n: usize) -> Self {
        Numbers((0..n).map(|_| UnsafeCell::new(0)).collect())
    }

    fn increase(&self, i: usize) {
        // SAFETY: loom checks the access.
        self.0[i].with_mut(|number| unsafe { *number += 1 });
    }

    fn all(&self) -> Vec<usize> {
        // SAFETY: loom checks the access.
        self.0.iter().map(|number| number.with(|number| unsafe { *number })).collect()
    }
}

/// Runs `work` on this thread, with a team that has `helpers` more threads. They have to end afterwards.
fn with_team(helpers: usize, work: impl FnOnce()) {
    let team = Arc::new(Team::new(helpers + 1, 0));
    let helper = |i| {
        let team = team.clone();
        thread::spawn(move || team.help(i, || ()))
    };
    let threads: Vec<_> = (1..=helpers).map(helper).collect();
    team.lead(work);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Takes steps in which each portion reads and writes what another portion wrote in the previous step.
fn steps(helpers: usize, portions: usize, steps: usize) {
    with_team(helpers, || {
        let numbers = Numbers::zeros(portions);
        for step in 0..steps {
            assert!(share(portions, &|i| numbers.increase((i + step) % portions)));
        }
        assert_eq!(numbers.all(), vec![steps; portions]);
    });
}

#[test]
fn each_portion_is_done_once_and_seen_by_the_leader() {
    explore(4, || steps(1, 3, 1));
    explore(1, || steps(2, 3, 1));
}

#[test]
fn a_step_sees_what_the_previous_one_wrote() {
    explore(3, || steps(1, 2, 2));
    explore(1, || steps(2, 2, 2));
}

#[test]
fn helpers_leave_a_team_without_steps() {
    explore(3, || steps(2, 1, 0));
}

#[test]
fn a_call_from_a_portion_is_not_shared() {
    explore(3, || {
        with_team(1, || {
            let numbers = Numbers::zeros(2);
            let work = |i| {
                assert!(!leads() && !share(2, &|_| unreachable!()));
                numbers.increase(i);
            };
            assert!(share(2, &work) && leads());
            assert_eq!(numbers.all(), [1, 1]);
        });
        assert!(!leads());
    });
}

/// While the leader of one team waits for rayon, it may become a helper of another. Then its own team shares
/// the steps within that team's portions.
#[test]
fn a_leader_may_help_another_team() {
    explore(3, || {
        let teams = Arc::new([Team::new(2, 0), Team::new(1, 0)]);
        let other = thread::spawn({
            let teams = teams.clone();
            move || teams[1].lead(|| teams[0].help(1, || ()))
        });
        let numbers = Numbers::zeros(4);
        let work = |i| {
            let nested = |j| numbers.increase(2 * i + j);
            if !share(2, &nested) {
                (0..2).for_each(nested);
            }
        };
        teams[0].lead(|| assert!(share(2, &work)));
        assert_eq!(numbers.all(), [1; 4]);
        other.join().unwrap();
    });
}

#[test]
fn two_leaders_may_help_each_other() {
    explore(3, || {
        let teams = Arc::new([0, 1].map(|leader| Team::new(2, leader)));
        let lead_and_help = |thread: usize, teams: &[Team]| {
            let numbers = Numbers::zeros(2);
            teams[thread].lead(|| assert!(share(2, &|i| numbers.increase(i))));
            assert_eq!(numbers.all(), [1, 1]);
            teams[1 - thread].help(thread, || ());
        };
        let other = thread::spawn({
            let teams = teams.clone();
            move || lead_and_help(1, &*teams)
        });
        lead_and_help(0, &*teams);
        other.join().unwrap();
    });
}

struct Expected;

/// Whether `work` panics with [`Expected`]. Loom's panics pass.
fn panics(work: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => false,
        Err(panic) if panic.is::<Expected>() => true,
        Err(panic) => resume_unwind(panic),
    }
}

#[test]
fn a_panic_leaves_nobody_in_the_step() {
    explore(3, || {
        let team = Arc::new(Team::new(2, 0));
        let helper = thread::spawn({
            let team = team.clone();
            move || panics(|| team.help(1, || ()))
        });
        let numbers = Numbers::zeros(3);
        let fail = |i| {
            numbers.increase(i);
            if i == 1 {
                resume_unwind(Box::new(Expected)); // a panic without a message
            }
        };
        let mut in_leader = false;
        team.lead(|| {
            in_leader = panics(|| assert!(share(3, &fail)));
            let done = numbers.all();
            assert!(done[1] == 1 && (in_leader || done == [1, 1, 1]), "{done:?}, {in_leader}");
            // The next step is complete, also without the helper.
            assert!(share(3, &|i| numbers.increase(i)));
            let more: Vec<_> = numbers.all().iter().zip(done).map(|(now, then)| now - then).collect();
            assert_eq!(more, [1, 1, 1]);
        });
        assert_ne!(in_leader, helper.join().unwrap(), "one thread panics");
    });
}

/// Explores a step on a thread of its own. Returns the message of a failure.
fn a_step_with(relaxed: Option<sync::Operation>) -> Result<Vec<sync::Operation>, String> {
    let explored = std::thread::spawn(move || {
        sync::RELAXED.set(relaxed);
        explore(2, || steps(1, 2, 1));
        sync::ORDERED.take().into_iter().collect()
    });
    explored.join().map_err(|panic| panic.downcast::<String>().map_or_else(|_| String::new(), |s| *s))
}

/// The model can fail: it notices each ordering of the source that is relaxed.
#[test]
fn no_ordering_is_stronger_than_it_has_to_be() {
    let ordered = a_step_with(None).unwrap();
    let entering = [("fetch_add", "Acquire"), ("fetch_add", "Release")];
    let leaving = [("fetch_sub", "Release"), ("load", "Acquire")];
    assert_eq!(ordered, [entering, leaving].concat());
    for operation in ordered {
        let failure = a_step_with(Some(operation)).expect_err(operation.0);
        assert!(failure.starts_with("Causality violation"), "{operation:?}: {failure}");
    }
}
