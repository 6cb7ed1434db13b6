//! Traces of the last steps, for health checks and for a step that fails.
//!
//! A trace only keeps what a step has computed anyway. What a postmortem tells of it, such as the spread of the
//! embeddings, is computed when a step fails.

use crate::objective::TermValue;
use dfdx::prelude::HasShape;
use pauc_models::device::NetworkDevice;
use pauc_report::postmortem::STEPS;
use pauc_traits::ops::Matrix;
use std::collections::VecDeque;
use std::ops::Range;

/// The bytes of embeddings that earlier steps may keep; the last step always keeps its own.
const KEPT_BYTES: usize = 16 << 20;

/// Traces of the current step and of those before it.
pub(crate) struct StepTrace<D: NetworkDevice> {
    /// The rows of the step's images in the current batch, one of several if batches are accumulated.
    pub rows: Range<usize>,
    /// Embeddings of that batch by view: raw outputs of the online network's projector, (B, D) each.
    pub embeddings: Vec<Option<Matrix<f32, D>>>,
    /// What the current step has computed so far.
    pub current: CurrentStep,
    /// The last steps that were completed, oldest first, at most [`STEPS`].
    pub steps: VecDeque<TracedStep<D>>,
}

/// The results of a step that is not complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct CurrentStep {
    /// The loss and the terms, once all batches of the step are evaluated.
    pub values: Option<(f64, Vec<TermValue>)>,
    /// The squared gradient norm of each parameter, once it is computed.
    pub squares: Option<Vec<f64>>,
}

/// A completed step.
pub(crate) struct TracedStep<D: NetworkDevice> {
    /// The step, counted from 1.
    pub step: u64,
    /// The weighted sum of the terms.
    pub loss: f64,
    /// The terms.
    pub terms: Vec<TermValue>,
    /// The learning rate.
    pub learning_rate: f64,
    /// The squared norm of the gradient of each parameter, before clipping.
    pub squares: Vec<f64>,
    /// Embeddings of the first view of the step's last batch, (B, D), if they are still kept.
    pub embeddings: Option<Matrix<f32, D>>,
}

impl<D: NetworkDevice> TracedStep<D> {
    /// Returns the norm of the gradient before clipping.
    pub fn gradient_norm(&self) -> f64 {
        self.squares.iter().sum::<f64>().sqrt()
    }
}

impl<D: NetworkDevice> Default for StepTrace<D> {
    fn default() -> Self {
        let (embeddings, steps) = (Vec::new(), VecDeque::new());
        StepTrace { rows: 0..0, embeddings, current: CurrentStep::default(), steps }
    }
}

impl<D: NetworkDevice> StepTrace<D> {
    /// Adds the current step to the completed ones.
    pub fn complete(&mut self, step: u64, learning_rate: f64) {
        let CurrentStep { values, squares } = std::mem::take(&mut self.current);
        let (Some((loss, terms)), Some(squares)) = (values, squares) else { return };
        let embeddings = self.embeddings.iter().flatten().next().cloned();
        let bytes = embeddings.as_ref().map_or(0, |rows| 4 * rows.shape().0 * rows.shape().1);
        self.steps.push_back(TracedStep { step, loss, terms, learning_rate, squares, embeddings });
        if self.steps.len() > STEPS {
            self.steps.pop_front();
        }
        let kept = (KEPT_BYTES / bytes.max(1)).max(1);
        if let Some(oldest) = self.steps.len().checked_sub(kept + 1) {
            self.steps[oldest].embeddings = None;
        }
    }
}
