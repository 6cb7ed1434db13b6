//! The shapes of a ConvNeXt, and what it counts.

use crate::{bounds, drop_path};
use pauc_kernels::depthwise::{Maps, TAPS};
use pauc_kernels::patches::Patches;
use pauc_traits::encoder::Layer;
use pauc_traits::{Error, ImageShape, NetworkSize, Result};

/// The hidden width of a block's perceptron, as a multiple of its width.
const EXPANSION: usize = 4;

/// The shapes of a network.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) input: ImageShape,
    pub(super) patch: usize,
    pub(super) stages: Vec<Stage>,
    /// Whether the weights of the perceptrons have the shapes of 1×1 convolutions.
    pub(super) has_convolutions: bool,
    /// The rate of the last block at which an image skips what it adds.
    pub(super) drop_path: f64,
}

/// A stage: its blocks, and the shape of its maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub depth: usize,
    pub width: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Stage {
    /// Returns the hidden width of the perceptrons.
    pub fn hidden(&self) -> usize {
        EXPANSION * self.width
    }

    pub fn pixels(&self) -> usize {
        self.rows * self.columns
    }

    pub fn maps(&self, batch: usize) -> Maps {
        Maps { batch, height: self.rows, width: self.columns, channels: self.width }
    }
}

impl Plan {
    /// Plans a network for images of `input`; `stages` are the blocks and the width of each.
    pub(super) fn new(
        input: ImageShape,
        patch: usize,
        stages: &[(usize, usize)],
        has_convolutions: bool,
    ) -> Result<Self> {
        if ![1, 3].contains(&input.channels) || input.is_empty() {
            let message = format!("images are {input}: encoders take 1 channel (gray) or 3 (RGB)");
            return Err(Error::shape("stem.0", message));
        }
        bounds::at_most("depths", stages.iter().map(|s| s.0).max().unwrap_or(0), bounds::MAX_DEPTH)?;
        bounds::at_most("widths", stages.len(), bounds::MAX_DEPTH)?;
        let stages = stages.iter().map(|&(depth, width)| {
            Ok(Stage { depth, width: bounds::width("widths", width)?, rows: 0, columns: 0 })
        });
        let stages = stages.collect::<Result<_>>()?;
        Plan { input, patch, stages, has_convolutions, drop_path: 0.0 }.resized(input)
    }

    /// Returns the same network for images of another size.
    pub(super) fn resized(&self, input: ImageShape) -> Result<Self> {
        if input.channels != self.input.channels {
            let message =
                format!("images are {input}; expected {} channels, as for the others", self.input.channels);
            return Err(Error::shape("stem.0", message));
        }
        let mut plan = Plan { input, ..self.clone() };
        let (mut rows, mut columns) = (input.height / self.patch, input.width / self.patch);
        for (i, stage) in plan.stages.iter_mut().enumerate() {
            if i > 0 {
                (rows, columns) = (rows / 2, columns / 2);
            }
            if rows == 0 || columns == 0 {
                let (name, what) = match i {
                    0 => ("stem.0".into(), format!("patches of {0}×{0}", self.patch)),
                    _ => (format!("stages.{i}.downsample.1"), "windows of 2×2".into()),
                };
                let message = format!(
                    "its input has no {what} for images of {input}; use larger images, a smaller `patch` or fewer \
                     stages"
                );
                return Err(Error::shape(name, message));
            }
            (stage.rows, stage.columns) = (rows, columns);
        }
        Ok(plan)
    }

    /// Returns the number of the first block of stage `i` among all blocks.
    pub(super) fn first_block(&self, i: usize) -> usize {
        self.stages[..i].iter().map(|s| s.depth).sum()
    }

    /// Returns the rate of each block at which an image skips what it adds.
    pub(super) fn rates(&self) -> Vec<f64> {
        drop_path::rates(self.drop_path, self.first_block(self.stages.len()))
    }

    /// Returns the patches of the images.
    pub(super) fn stem(&self, batch: usize) -> Patches {
        let ImageShape { height, width, channels } = self.input;
        Patches { batch, height, width, channels, side: self.patch }
    }

    /// Returns the windows of the last maps of stage `i`, from which those of the next stage are made.
    pub(super) fn windows(&self, i: usize, batch: usize) -> Patches {
        let stage = self.stages[i];
        Patches { batch, height: stage.rows, width: stage.columns, channels: stage.width, side: 2 }
    }

    pub(super) fn last(&self) -> Stage {
        self.stages[self.stages.len() - 1]
    }

    /// Returns the number of images in a batch (B, H, W, C).
    pub(super) fn batch_of(&self, shape: (usize, usize, usize, usize)) -> Result<usize> {
        let ((batch, height, width, channels), input) = (shape, self.input);
        if (height, width, channels) != (input.height, input.width, input.channels) || batch == 0 {
            let got = format!("{batch} of {height}×{width}×{channels}");
            return Err(Error::shape("stem.0", format!("was built for images of {input}, got {got}")));
        }
        Ok(batch)
    }

    /// Counts the parameters, and the values that a backward pass reads.
    pub(super) fn size(&self) -> NetworkSize {
        let [patch, channels] = [self.patch, self.input.channels].map(|n| n as u64);
        let first = self.stages[0].width as u64;
        let mut inputs = patch.saturating_mul(patch).saturating_mul(channels);
        let (mut parameters, mut activations) = (0u64, 0u64);
        for (i, stage) in self.stages.iter().enumerate() {
            let [width, hidden, pixels, depth] =
                [stage.width, stage.hidden(), stage.pixels(), stage.depth].map(|n| n as u64);
            // The convolution before the stage and its normalization, which follows the patches and precedes the
            // windows.
            let normed = if i == 0 { first } else { inputs / 4 };
            parameters += inputs.saturating_mul(width) + width + 2 * normed;
            let block = TAPS as u64 * width + 2 * width * hidden + hidden + 5 * width;
            parameters += depth * block;
            activations += pixels * (width + depth * (2 * width + hidden));
            inputs = 4 * width;
        }
        let output = self.last().width;
        NetworkSize { output, parameters: parameters + 2 * output as u64, activations }
    }

    /// Returns the layers in forward order.
    pub(super) fn layers(&self) -> Vec<Layer> {
        let mut all = Vec::new();
        let mut inputs = self.stem(1).row();
        for (i, s) in self.stages.iter().enumerate() {
            let (width, hidden) = (s.width, s.hidden());
            let layer = |name: String, parameters, multiply_adds: usize, algorithm: &str| Layer {
                name,
                output: vec![s.rows, s.columns, width],
                parameters,
                multiply_adds: multiply_adds as u64,
                algorithm: algorithm.into(),
            };
            let name = if i == 0 { "stem".into() } else { format!("stages.{i}.downsample") };
            let normed = if i == 0 { width } else { inputs / 4 };
            let parameters = inputs * width + width + 2 * normed;
            all.push(layer(name, parameters, s.pixels() * inputs * width, "patches, linear, layer norm"));
            for j in 0..s.depth {
                let parameters = TAPS * width + 2 * width * hidden + hidden + 5 * width;
                let work = s.pixels() * (TAPS * width + 2 * width * hidden);
                let name = format!("stages.{i}.blocks.{j}");
                all.push(layer(name, parameters, work, "depthwise, layer norm, perceptron"));
            }
            inputs = 4 * width;
        }
        let output = vec![self.last().width];
        let (parameters, algorithm) = (2 * output[0], "pool, layer norm".into());
        all.push(Layer { name: "head.norm".into(), output, parameters, multiply_adds: 0, algorithm });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::super::Size;
    use super::*;

    #[test]
    fn parameter_counts_are_timms() {
        // timm 1.0.31, `num_classes=0`.
        for (size, want) in [
            (Size::Atto, 3_374_520),
            (Size::Femto, 4_832_784),
            (Size::Pico, 8_532_672),
            (Size::Nano, 14_952_560),
            (Size::Tiny, 27_820_128),
            (Size::Small, 49_454_688),
            (Size::Base, 87_566_464),
        ] {
            let input = ImageShape { height: 224, width: 224, channels: 3 };
            let plan = Plan::new(input, 4, &size.stages().unwrap(), size.has_convolutions()).unwrap();
            assert_eq!(plan.size().parameters, want, "{size:?}");
            let layers: usize = plan.layers().iter().map(|l| l.parameters).sum();
            assert_eq!(layers as u64, want, "{size:?}");
        }
    }

    #[test]
    fn multiply_adds_are_the_published_4_5_billion() {
        let input = ImageShape { height: 224, width: 224, channels: 3 };
        let plan = Plan::new(input, 4, &Size::Tiny.stages().unwrap(), false).unwrap();
        let total: u64 = plan.layers().iter().map(|l| l.multiply_adds).sum();
        assert_eq!(total / 100_000_000, 44);
    }
}
