//! A request to stop, which long computations look at.
//!
//! Probes, clusterings and figures take from seconds to hours. They call [`check`] once per iteration, and pass its
//! error on. A run that is asked to stop meanwhile discards the unfinished computation, saves its state from before
//! it, and repeats the computation after `resume`. A training step is never discarded: [`check`] finds nothing there.
//!
//! The request belongs to a thread, so that several runs of one process stop separately. Tasks on other threads carry it
//! along as a [`Flag`]. Work that cannot look at it, such as that of another library, runs in [`detached`].
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
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The interval at which a waiting thread looks at a request.
const PAUSE: Duration = Duration::from_millis(50);
/// The stack of a thread for detached work: that of a main thread.
const STACK: usize = 8 << 20;

thread_local! {
    static FLAG: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
    static LOOK: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
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

/// Runs `work` such that [`check`], on this thread, first calls `look`. `look` may learn of a request that was made
/// elsewhere, and then [set](Flag::set) the flag.
pub fn looking<T>(look: impl Fn() + 'static, work: impl FnOnce() -> T) -> T {
    /// Restores what was called before, also if `work` panics.
    struct Restore(Option<Rc<dyn Fn()>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LOOK.set(self.0.take());
        }
    }
    let _restore = Restore(LOOK.replace(Some(Rc::new(look))));
    work()
}

/// Returns an error if the computation around this call should end. Call it on the thread that was asked to
/// compute; for use on other threads, see [`flag`].
///
/// # Errors
/// [`Error::Stopped`] if the run was asked to stop.
pub fn check() -> Result<()> {
    if let Some(look) = LOOK.with_borrow(Clone::clone) {
        look();
    }
    flag().check()
}

/// Returns what [`check`] looks at, for other threads.
pub fn flag() -> Flag {
    Flag(FLAG.with_borrow(Clone::clone))
}

/// Runs work that cannot look at a request. If the run is asked to stop meanwhile, the work is abandoned: its thread
/// continues until it is done or the process ends. Without anybody to ask, the work runs on this thread.
///
/// ```
/// use pauc_traits::{Error, stop};
/// use std::sync::Arc;
/// use std::sync::atomic::AtomicBool;
///
/// let asked = Some(Arc::new(AtomicBool::new(true)));
/// let forever = || stop::detached(|| std::thread::sleep(std::time::Duration::MAX));
/// assert!(matches!(stop::within(asked, forever), Err(Error::Stopped)));
/// assert_eq!(stop::detached(|| 6 * 7)?, 42);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// [`Error::Stopped`] if the run was asked to stop.
///
/// # Panics
/// If the work panics.
pub fn detached<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let flag = flag();
    if flag.0.is_none() {
        return Ok(work());
    }
    let (send, receive) = mpsc::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let theirs = work.clone();
    let body = move || {
        if let Some(work) = take(&theirs) {
            // Nobody receives the result of abandoned work.
            let _ = send.send(work());
        }
    };
    let Ok(thread) = thread::Builder::new().name("detached".into()).stack_size(STACK).spawn(body) else {
        // Then this thread does it.
        return take(&work).map(|work| work()).ok_or(Error::Stopped);
    };
    loop {
        match receive.recv_timeout(PAUSE) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => check()?,
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => return Err(Error::Stopped),
            },
        }
    }
}

/// Whether a computation should end; can be sent to other threads.
#[derive(Clone, Debug, Default)]
pub struct Flag(Option<Arc<AtomicBool>>);

impl Flag {
    /// Runs `work` such that [`check`] looks at this flag, on a thread that does not have it.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        within(self.0.clone(), work)
    }

    /// Asks the run to stop. Does nothing if there is no flag.
    pub fn set(&self) {
        if let Some(flag) = &self.0 {
            flag.store(true, Ordering::Relaxed);
        }
    }

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
