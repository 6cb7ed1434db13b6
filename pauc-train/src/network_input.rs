//! What a network expects: the shape and the normalization of its images.

use crate::plan::Plan;
use serde::{Deserialize, Serialize};

/// The images that a run's network was trained for. Checkpoints and exported files hold it as JSON, under the
/// key `input` of their metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkInput {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 for gray, 3 for RGB.
    pub channels: usize,
    /// The mean of each channel, for values between 0 and 1.
    pub mean: Vec<f32>,
    /// The standard deviation of each channel, for values between 0 and 1.
    pub deviation: Vec<f32>,
}

impl NetworkInput {
    /// Returns what the network of a plan expects, by its evaluation view.
    pub fn of(plan: &Plan) -> Self {
        let shape = plan.evaluation.shape(0);
        let (mean, deviation) = plan.evaluation.statistics(0).iter().copied().unzip();
        NetworkInput { height: shape.height, width: shape.width, channels: shape.channels, mean, deviation }
    }
}
