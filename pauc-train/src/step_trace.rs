//! Traces of the last steps, for health checks and for a step that fails.

use pauc_models::device::NetworkDevice;
use pauc_traits::ops::Matrix;
use std::collections::VecDeque;
use std::ops::Range;

/// The number of steps whose gradient norms are kept.
const REMEMBERED: usize = 16;

/// Traces of the current step and of those before it.
pub(crate) struct StepTrace<D: NetworkDevice> {
    /// The rows of the step's images in the current batch, one of several if batches are accumulated.
    pub rows: Range<usize>,
    /// Embeddings of that batch by view: raw outputs of the online network's projector, (B, D) each.
    pub embeddings: Vec<Option<Matrix<f32, D>>>,
    /// The norms of the last gradients.
    pub gradient_norms: VecDeque<GradientNorm>,
}

/// The norm of a step's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GradientNorm {
    /// The step, counted from 1.
    pub step: u64,
    /// The norm.
    pub norm: f64,
}

impl<D: NetworkDevice> Default for StepTrace<D> {
    fn default() -> Self {
        StepTrace { rows: 0..0, embeddings: Vec::new(), gradient_norms: VecDeque::new() }
    }
}

impl<D: NetworkDevice> StepTrace<D> {
    /// Adds the norm of a step's gradient.
    pub fn add_norm(&mut self, step: u64, norm: f64) {
        self.gradient_norms.push_back(GradientNorm { step, norm });
        if self.gradient_norms.len() > REMEMBERED {
            self.gradient_norms.pop_front();
        }
    }
}
