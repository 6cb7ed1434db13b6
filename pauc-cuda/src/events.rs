//! Timing of the device's work, with CUDA events.

use crate::{Context, Result};
use cudarc::driver::{result, sys};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// CUDA events, numbered in the order in which they were recorded.
#[derive(Debug)]
pub struct Events {
    on: Rc<Context>,
    all: RefCell<Vec<sys::CUevent>>,
}

impl Events {
    /// Creates an empty list of events.
    pub fn new(on: &Rc<Context>) -> Self {
        Events { on: on.clone(), all: RefCell::default() }
    }

    /// Records an event after all work launched so far, and returns its number.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn mark(&self) -> Result<u64> {
        let new = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?;
        let mut all = self.all.borrow_mut();
        all.push(new);
        // SAFETY: the event was just created, and the stream belongs to the same device.
        unsafe { result::event::record(new, *self.on.device().cu_stream()) }?;
        Ok(all.len() as u64 - 1)
    }

    /// Returns the time between two events. Waits for the device.
    ///
    /// # Errors
    /// If there are no such events, or the device fails.
    pub fn between(&self, from: u64, to: u64) -> Result<Duration> {
        let all = self.all.borrow();
        let (Some(from), Some(to)) = (all.get(from as usize), all.get(to as usize)) else {
            let message = format!("no such events: {from} to {to}, of {} recorded", all.len());
            return Err(crate::Error::Length { operation: "time between events", message });
        };
        self.on.device().synchronize()?;
        // SAFETY: `mark` recorded both events, and `synchronize` has waited until the device has reached
        // them.
        let milliseconds = unsafe { result::event::elapsed(*from, *to) }?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for event in self.all.take() {
            // SAFETY: `mark` created the event, and it belongs to `self` alone. `drop` cannot report a
            // failure.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}
