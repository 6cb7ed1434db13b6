//! Who watches a run, and what it is told.

use crate::objective::TermValue;
use pauc_report::events::{self, Event};
use pauc_traits::Result;

/// Who watches a run: writes its log, draws its progress, and may ask it to stop.
pub trait Observer {
    /// Something happened.
    ///
    /// # Errors
    /// If it cannot be recorded; the run stops.
    fn event(&mut self, event: &Event) -> Result<()>;

    /// How many events are recorded, all of them safe from a power failure; 0 if none are.
    ///
    /// # Errors
    /// If they cannot be made safe.
    fn recorded(&mut self) -> Result<u64> {
        Ok(0)
    }

    /// A step was taken.
    fn progress(&mut self, _progress: &Progress<'_>) {}

    /// Whether the run shall save a checkpoint and stop after this step.
    fn should_stop(&self) -> bool {
        false
    }
}

impl dyn Observer + '_ {
    /// Reports a warning.
    pub(crate) fn warn(&mut self, step: u64, text: String) -> Result<()> {
        self.event(&Event::Warning(events::Warning { step, text }))
    }
}

/// Where a run stands, after each step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Steps taken.
    pub step: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// Epochs passed.
    pub epoch: f64,
    /// The weighted sum of the terms.
    pub loss: f64,
    /// The terms of this step.
    pub terms: &'a [TermValue],
    /// Images per second, over the last steps.
    pub images_per_second: f64,
}
