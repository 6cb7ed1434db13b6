//! Timing: named spans, measured on their thread during a recording.
//!
//! ```
//! use pauc_traits::trace;
//! let (sum, stages) = trace::record(|| {
//!     let _outer = trace::span("sums");
//!     (0..3).map(|i| {
//!         let _inner = trace::span("one");
//!         i
//!     }).sum::<u32>()
//! });
//! assert_eq!(sum, 3);
//! let paths: Vec<_> = stages.iter().map(|s| (s.path.as_str(), s.calls)).collect();
//! assert_eq!(paths, [("sums", 1), ("sums/one", 3)]);
//! ```

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The total of a span over a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The names of the span and those around it, outermost first, joined by `/`.
    pub path: String,
    /// The number of times it was entered.
    pub calls: u64,
    /// The time inside, including inner spans.
    pub time: Duration,
}

/// A clock for an asynchronous device; durations are known only after synchronization.
pub trait TraceClock {
    /// Marks the current position in the device's work, and returns the number of the mark.
    fn mark(&self) -> u64;
    /// Returns the time between two marks; waits until the device has passed both.
    fn between(&self, from: u64, to: u64) -> Duration;
}

#[derive(Default)]
struct Recording {
    stages: Vec<Stage>,
    /// Spans measured by the device's clock whose durations are not known yet: stage, begin and end.
    marks: Vec<(usize, u64, u64)>,
    /// The indices of the open spans.
    open: Vec<usize>,
}

thread_local! {
    /// The maximum nesting depth of spans; 0 if nothing is recorded.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static OPEN: Cell<usize> = const { Cell::new(0) };
    static RECORDING: RefCell<Recording> = RefCell::default();
    static CLOCK: RefCell<Option<Rc<dyn TraceClock>>> = const { RefCell::new(None) };
}

/// Like [`record`], with times by a device's clock, if there is one.
pub fn record_by<T>(clock: Option<Rc<dyn TraceClock>>, work: impl FnOnce() -> T) -> (T, Vec<Stage>) {
    CLOCK.replace(clock);
    record_to(usize::MAX, work)
}

/// Runs `work` and returns the spans that it entered, in order of their first entry. A recording inside
/// another one replaces it.
pub fn record<T>(work: impl FnOnce() -> T) -> (T, Vec<Stage>) {
    record_to(usize::MAX, work)
}

/// Like [`record`], for outermost spans only: inner spans cost almost nothing.
pub fn outer<T>(work: impl FnOnce() -> T) -> (T, Vec<Stage>) {
    record_to(1, work)
}

fn record_to<T>(depth: usize, work: impl FnOnce() -> T) -> (T, Vec<Stage>) {
    /// Ends the recording, also if `work` panics.
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            DEPTH.set(0);
            CLOCK.take();
        }
    }
    RECORDING.take();
    OPEN.set(0);
    DEPTH.set(depth);
    let off = Off;
    let out = work();
    let clock = CLOCK.take();
    drop(off);
    let Recording { mut stages, marks, .. } = RECORDING.take();
    if let Some(clock) = clock {
        marks.into_iter().for_each(|(stage, from, to)| stages[stage].time += clock.between(from, to));
    }
    (out, stages)
}

#[derive(Debug)]
enum Begin {
    Host(Instant),
    Device(u64),
}

fn mark() -> Option<u64> {
    CLOCK.with_borrow(|clock| clock.as_ref().map(|c| c.mark()))
}

/// A span that ends when this is dropped.
#[must_use = "the span ends when this is dropped"]
#[derive(Debug)]
pub struct TraceSpan {
    begun: Option<(usize, Begin)>,
    // Spans belong to the thread that opened them.
    thread: PhantomData<*const ()>,
}

/// Opens a span; costs a few nanoseconds if nothing is recorded.
pub fn span<'a>(name: impl Into<Cow<'a, str>>) -> TraceSpan {
    named(|| name.into())
}

/// Opens a span whose name is computed only during a recording.
pub fn named<'a>(name: impl FnOnce() -> Cow<'a, str>) -> TraceSpan {
    let begun = (OPEN.get() < DEPTH.get()).then(|| {
        let name = name();
        let index = RECORDING.with_borrow_mut(|r| {
            let path = match r.open.last() {
                Some(outer) => format!("{}/{name}", r.stages[*outer].path),
                None => name.into_owned(),
            };
            let known = r.stages.iter().position(|s| s.path == path);
            let index = known.unwrap_or_else(|| {
                r.stages.push(Stage { path, calls: 0, time: Duration::ZERO });
                r.stages.len() - 1
            });
            r.open.push(index);
            OPEN.set(r.open.len());
            index
        });
        (index, mark().map_or_else(|| Begin::Host(Instant::now()), Begin::Device))
    });
    TraceSpan { begun, thread: PhantomData }
}

impl Drop for TraceSpan {
    fn drop(&mut self) {
        let Some((index, begun)) = &self.begun else { return };
        if DEPTH.get() == 0 {
            return;
        }
        let index = *index;
        let (time, marks) = match begun {
            Begin::Host(begun) => (begun.elapsed(), None),
            Begin::Device(from) => (Duration::ZERO, mark().map(|to| (index, *from, to))),
        };
        RECORDING.with_borrow_mut(|r| {
            // Spans that outlive the enclosing span, or their recording, are left out.
            if r.open.last() == Some(&index) {
                r.open.pop();
                OPEN.set(r.open.len());
                r.stages[index].calls += 1;
                r.stages[index].time += time;
                r.marks.extend(marks);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every mark is ten milliseconds after the previous one.
    #[derive(Default)]
    struct Ticks(Cell<u64>);

    impl TraceClock for Ticks {
        fn mark(&self) -> u64 {
            self.0.replace(self.0.get() + 1)
        }
        fn between(&self, from: u64, to: u64) -> Duration {
            Duration::from_millis(10 * (to - from))
        }
    }

    #[test]
    fn device_times_are_known_afterwards() {
        let ticks = Rc::new(Ticks::default());
        let (_, stages) = record_by(Some(ticks.clone()), || {
            for _ in 0..2 {
                let _outer = span("outer");
                drop(span("inner"));
            }
        });
        let found: Vec<_> = stages.iter().map(|s| (s.path.as_str(), s.calls, s.time.as_millis())).collect();
        assert_eq!(found, [("outer", 2, 60), ("outer/inner", 2, 20)]);
        let marks = ticks.0.get();
        record(|| drop(span("host")));
        assert_eq!(ticks.0.get(), marks, "the clock is gone");
    }

    #[test]
    fn nothing_is_recorded_outside_a_recording() {
        drop(span("before"));
        let ((), stages) = record(|| ());
        assert_eq!(stages, []);
        let (left, stages) = record(|| span("left open"));
        assert_eq!(stages[0].calls, 0);
        drop(left);
        let ((), stages) = record(|| drop(span("later")));
        assert_eq!((stages[0].path.as_str(), stages[0].calls), ("later", 1));
    }

    #[test]
    fn outer_spans_contain_inner_ones() {
        let ((), stages) = record(|| {
            for _ in 0..2 {
                let _a = span("a");
                let _b = named(|| "b".into());
                std::thread::sleep(Duration::from_millis(2));
            }
            let _b = span("b");
        });
        let paths: Vec<_> = stages.iter().map(|s| (s.path.as_str(), s.calls)).collect();
        assert_eq!(paths, [("a", 2), ("a/b", 2), ("b", 1)]);
        assert!(stages[0].time >= stages[1].time && stages[1].time >= Duration::from_millis(4));
    }

    #[test]
    fn inner_spans_can_be_left_out() {
        let ((), stages) = outer(|| {
            for _ in 0..2 {
                let _a = span("a");
                let _b = named(|| panic!("the name of a span that is not recorded is not made"));
            }
            drop(span("b"));
        });
        let paths: Vec<_> = stages.iter().map(|s| (s.path.as_str(), s.calls)).collect();
        assert_eq!(paths, [("a", 2), ("b", 1)]);
    }

    #[test]
    fn a_panic_ends_the_recording() {
        let caught = std::panic::catch_unwind(|| record(|| panic!("on purpose")));
        assert!(caught.is_err() && DEPTH.get() == 0);
    }
}
