//! The progress of long computations, which a terminal may show.
//!
//! A computation that may take seconds announces a [`task`] with its number of parts, and calls [`Task::advance`] as
//! they are done. The caller chooses a [`Display`] with [`within`]. Without one, a task costs nothing.
//!
//! The display belongs to a thread. Create the task on the thread that was asked to compute; threads that share the
//! work may share the task.
//!
//! ```
//! use pauc_traits::progress::{self, Bar, Display};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! /// Counts what is done.
//! #[derive(Default)]
//! struct Counter(Arc<AtomicU64>);
//!
//! impl Display for Counter {
//!     fn begin(&self, _what: &str, _total: u64) -> Box<dyn Bar> {
//!         Box::new(Counter(self.0.clone()))
//!     }
//! }
//! impl Bar for Counter {
//!     fn advance(&self, parts: u64) {
//!         self.0.fetch_add(parts, Ordering::Relaxed);
//!     }
//! }
//!
//! let counter = Counter::default();
//! let done = counter.0.clone();
//! progress::within(Some(Arc::new(counter)), || {
//!     let task = progress::task("squares", 10);
//!     (0..10).for_each(|_| task.advance(1));
//! });
//! assert_eq!(done.load(Ordering::Relaxed), 10);
//! ```

use std::cell::RefCell;
use std::sync::Arc;

/// Shows tasks.
pub trait Display: Send + Sync {
    /// Begins to show a task of `total` parts; 0 if their number is unknown.
    fn begin(&self, what: &str, total: u64) -> Box<dyn Bar>;
}

/// Shows one task, until it is dropped.
pub trait Bar: Send + Sync {
    /// Counts parts that are done. Threads may call it at once, and many times per second.
    fn advance(&self, parts: u64);
}

thread_local! {
    static DISPLAY: RefCell<Option<Arc<dyn Display>>> = const { RefCell::new(None) };
}

/// Runs `work` such that its tasks are shown on `display`.
pub fn within<T>(display: Option<Arc<dyn Display>>, work: impl FnOnce() -> T) -> T {
    /// Restores the outer display, also if `work` panics.
    struct Restore(Option<Arc<dyn Display>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            DISPLAY.set(self.0.take());
        }
    }
    let _restore = Restore(DISPLAY.replace(display));
    work()
}

/// Begins a task of `total` parts; 0 if their number is unknown. `what` is being done, such as "embedding images".
pub fn task(what: &str, total: u64) -> Task {
    let display = DISPLAY.with_borrow(Clone::clone);
    Task(display.map(|display| display.begin(what, total)))
}

/// A task that may be shown, until it is dropped.
#[derive(Default)]
pub struct Task(Option<Box<dyn Bar>>);

impl Task {
    /// Counts parts that are done.
    pub fn advance(&self, parts: u64) {
        if let Some(bar) = &self.0 {
            bar.advance(parts);
        }
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("is_shown", &self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Writes down what it is asked to show.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<String>>>);

    impl Display for Notes {
        fn begin(&self, what: &str, total: u64) -> Box<dyn Bar> {
            self.0.lock().unwrap().push(format!("{what} of {total}"));
            Box::new(self.clone())
        }
    }

    impl Bar for Notes {
        fn advance(&self, parts: u64) {
            self.0.lock().unwrap().push(format!("+{parts}"));
        }
    }

    #[test]
    fn tasks_are_shown_on_the_display_of_their_thread() {
        let (outer, inner) = (Notes::default(), Notes::default());
        within(Some(Arc::new(outer.clone())), || {
            let task = task("outer", 3);
            within(Some(Arc::new(inner.clone())), || super::task("inner", 0).advance(5));
            within(None, || super::task("hidden", 1).advance(1));
            // A task may be shared; another thread has no display of its own.
            std::thread::scope(|s| {
                s.spawn(|| {
                    task.advance(2);
                    super::task("hidden", 1).advance(1);
                });
            });
            super::task("next", 7).advance(7);
        });
        task("hidden", 1).advance(1);
        assert_eq!(*outer.0.lock().unwrap(), ["outer of 3", "+2", "next of 7", "+7"]);
        assert_eq!(*inner.0.lock().unwrap(), ["inner of 0", "+5"]);
    }

    #[test]
    fn the_display_is_restored_after_a_panic() {
        let notes = Notes::default();
        within(Some(Arc::new(notes.clone())), || {
            let broken = std::panic::catch_unwind(|| within(None, || panic!("expected")));
            assert!(broken.is_err());
            drop(task("after", 1));
        });
        assert_eq!(*notes.0.lock().unwrap(), ["after of 1"]);
    }
}
