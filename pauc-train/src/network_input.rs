//! What a network expects: the shape and the normalization of its images.

use crate::plan::Plan;
use pauc_traits::{Error, ImageShape, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

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

    /// Returns the shape of the images.
    pub fn shape(&self) -> ImageShape {
        ImageShape { height: self.height, width: self.width, channels: self.channels }
    }

    /// Reads the text in the metadata of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not such a text, or lacks a mean or a positive deviation for a channel.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let damaged = |why: &dyn std::fmt::Display| {
            Error::damaged(path, format!("`input` in its metadata is invalid: {why}"))
        };
        let input: Self = serde_json::from_str(text).map_err(|e| damaged(&e))?;
        let finite = input.mean.iter().all(|v| v.is_finite());
        let positive = input.deviation.iter().all(|v| v.is_finite() && *v > 0.0);
        if !(finite && positive) || [input.mean.len(), input.deviation.len()] != [input.channels; 2] {
            return Err(damaged(&"each channel needs a mean and a positive deviation"));
        }
        Ok(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_in_a_file_is_read_back_and_nonsense_is_refused() {
        let (mean, deviation) = (vec![0.1 + 0.2], vec![f32::MIN_POSITIVE]);
        let input = NetworkInput { height: 28, width: 32, channels: 1, mean, deviation };
        let parse = |input: &NetworkInput| {
            NetworkInput::parse(&serde_json::to_string(input).unwrap(), Path::new("last.safetensors"))
        };
        assert_eq!(parse(&input).unwrap(), input);
        let no_deviation = NetworkInput { deviation: vec![0.0], ..input.clone() };
        let too_few = NetworkInput { channels: 3, ..input };
        for wrong in [no_deviation, too_few] {
            let error = parse(&wrong).unwrap_err().to_string();
            assert!(error.starts_with("last.safetensors: `input`"), "{error}");
        }
    }
}
