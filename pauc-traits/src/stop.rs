//! A request to stop, which long computations look at.
//!
//! Probes, clusterings and figures take from seconds to hours. They call [`check`] once per iteration, and pass its
//! error on. A run that is asked to stop meanwhile discards the unfinished computation, saves its state from before
//! it, and repeats the computation after `resume`. A training step is never discarded: [`check`] finds nothing there.
//!
//! ```
//! use pauc_traits::{Error, stop};
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! let asked = Arc::new(AtomicBool::new(false));
//! let iterations = || {
//!     for i in 0.. {
//!         stop::check()?;
//!         asked.store(i == 9, Ordering::Relaxed);
//!     }
//!     Ok(())
//! };
//! assert!(matches!(stop::within(Some(asked.clone()), iterations), Err(Error::Stopped)));
//! assert!(stop::check().is_ok(), "only what is within can be stopped");
//! ```

use crate::{Error, Result};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static FLAG: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Runs `work` such that [`check`] looks at `flag`.
pub fn within<T>(flag: Option<Arc<AtomicBool>>, work: impl FnOnce() -> T) -> T {
    /// Restores the outer flag, also if `work` panics.
    struct Restore(Option<Arc<AtomicBool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            FLAG.set(self.0.take());
        }
    }
    let _restore = Restore(FLAG.replace(flag));
    work()
}

/// Returns an error if the computation around this call should end. Call it on the thread that was asked to
/// compute; for use on other threads, see [`flag`].
///
/// # Errors
/// [`Error::Stopped`] if the run was asked to stop.
pub fn check() -> Result<()> {
    flag().check()
}

/// Returns what [`check`] looks at, for other threads.
pub fn flag() -> Flag {
    Flag(FLAG.with_borrow(Clone::clone))
}

/// Whether a computation should end; can be sent to other threads.
#[derive(Clone, Debug, Default)]
pub struct Flag(Option<Arc<AtomicBool>>);

impl Flag {
    /// Returns whether the run was asked to stop.
    pub fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// As [`check`].
    ///
    /// # Errors
    /// [`Error::Stopped`] if the run was asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.is_set() { Err(Error::Stopped) } else { Ok(()) }
    }
}
