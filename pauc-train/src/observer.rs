//! Observers of a run.

use crate::objective::TermValue;
use pauc_report::events::{self, Event};
use pauc_traits::Result;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Observes a run: writes its log, draws its progress, and may ask it to stop.
///
/// ```
/// use dfdx::prelude::Cpu;
/// use pauc_train::{Ending, Event, Observer, Plan, Progress, RunDir, Trainer};
///
/// /// Stops a run whose loss is low enough.
/// struct LowEnough {
///     limit: f64,
///     loss: f64,
///     ended: bool,
/// }
///
/// impl Observer for LowEnough {
///     fn event(&mut self, event: &Event) -> pauc_traits::Result<()> {
///         self.ended |= matches!(event, Event::End(_));
///         Ok(())
///     }
///     fn progress(&mut self, progress: &Progress<'_>) {
///         self.loss = progress.loss;
///     }
///     fn should_stop(&self) -> bool {
///         self.loss < self.limit
///     }
/// }
///
/// let device = Cpu::default();
/// let plan = Plan::parse(
///     &device,
///     r#"Recipe(
///         name: "small",
///         data: Shapes(count: 64, size: 16, classes: 4),
///         views: [(count: 2, ops: [RandomResizedCrop(size: 16)])],
///         encoder: ConvNet(channels: [8]),
///         projector: Mlp(dims: [8]),
///         objective: [(term: InfoNce())],
///         train: (epochs: 10, batch: 16),
///     )"#,
/// )?;
/// // Sixteen candidates each: unrelated embeddings have a loss near ln 16, which is below the limit at once.
/// let mut watch = LowEnough { limit: 10.0, loss: f64::INFINITY, ended: false };
/// let mut trainer = Trainer::new(&device, &plan)?;
/// assert_eq!(trainer.train(&RunDir::in_memory(), None, &mut watch)?, Ending::Interrupted);
/// assert!(trainer.step() == 1 && watch.ended);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Observer {
    /// Handles an event.
    ///
    /// # Errors
    /// If it cannot be recorded; the run then stops.
    fn event(&mut self, event: &Event) -> Result<()>;

    /// Returns the number of recorded events, after making them safe from a power failure; 0 if none are
    /// recorded.
    ///
    /// # Errors
    /// If they cannot be written to disk.
    fn recorded(&mut self) -> Result<u64> {
        Ok(0)
    }

    /// Handles a completed step.
    fn progress(&mut self, _progress: &Progress<'_>) {}

    /// Returns whether the run should save a checkpoint and stop after this step.
    fn should_stop(&self) -> bool {
        false
    }

    /// Returns a flag that is set when the run should stop. Probes, clusterings and figures look at it and end within a
    /// second; without it, they are computed to their end before [`should_stop`](Observer::should_stop) is asked.
    fn stop_flag(&self) -> Option<Arc<AtomicBool>> {
        None
    }
}

impl dyn Observer + '_ {
    /// Reports a warning.
    pub(crate) fn warn(&mut self, step: u64, text: String) -> Result<()> {
        self.event(&Event::Warning(events::Warning { step, text }))
    }
}

/// The progress of a run after a step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Steps taken.
    pub step: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// Epochs completed.
    pub epoch: f64,
    /// The weighted sum of the terms.
    pub loss: f64,
    /// The terms of this step.
    pub terms: &'a [TermValue],
    /// Images per second, over the last steps.
    pub images_per_second: f64,
}
