//! The dimensions of a vision transformer.

use super::{Mlp, Pool, VisionTransformer};
use crate::bounds;
use crate::drop_path;
use crate::positions::Grid;
use pauc_traits::{Error, ImageShape, NetworkSize, Result};

/// The dimensions of a network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub input: ImageShape,
    /// The grid of patches that has learned positions.
    pub grid: Grid,
    pub patch: usize,
    pub width: usize,
    pub heads: usize,
    pub depth: usize,
    /// The number of values that `fc2` reads for each token.
    pub hidden: usize,
    pub mlp: Mlp,
    pub pool: Pool,
    pub registers: usize,
    pub prefix_positions: bool,
    /// The initial value of LayerScale.
    pub layer_scale: Option<f32>,
    /// The largest rate of dropped paths.
    pub drop_path: f64,
}

impl Plan {
    pub(super) fn new(config: &VisionTransformer, input: ImageShape) -> Result<Self> {
        let (width, heads) = config.size.width_and_heads();
        let patch = config.patch.get();
        let grid = grid(input, patch)?;
        if !width.is_multiple_of(heads) {
            return Err(Error::config(format!(
                "{heads} heads do not divide a width of {width}: choose a `width` that is a multiple of `heads`"
            )));
        }
        bounds::width("width", width)?;
        let depth = bounds::at_most("depth", config.depth.get(), bounds::MAX_DEPTH)?;
        let ratio = bounds::at_most("mlp_ratio", config.mlp_ratio.get(), bounds::MAX_RATIO)?;
        Ok(Plan {
            input,
            grid,
            patch,
            width,
            heads,
            depth,
            hidden: match config.mlp {
                Mlp::Gelu => width * ratio,
                Mlp::SwiGlu => (width * ratio * 2 / 3).next_multiple_of(8),
            },
            mlp: config.mlp,
            pool: config.pool,
            registers: bounds::at_most("registers", config.registers, bounds::MAX_REGISTERS)?,
            prefix_positions: config.prefix_positions,
            layer_scale: config.layer_scale.map(|initial| initial.get() as f32),
            drop_path: config.drop_path.get(),
        })
    }

    /// Returns the dimensions of the same network for images of another size.
    pub(super) fn resized(&self, input: ImageShape) -> Result<Self> {
        if input.channels != self.input.channels {
            let message = format!("was built for {} channels, got images of {input}", self.input.channels);
            return Err(Error::shape("vision transformer", message));
        }
        grid(input, self.patch)?;
        Ok(Plan { input, ..*self })
    }

    /// Counts the parameters, and the values that the backward pass reads.
    pub(super) fn size(&self) -> NetworkSize {
        let [width, hidden, joined, tokens, patches, pixels, depth] = [
            self.width,
            self.hidden,
            self.fc1_outputs(),
            self.tokens(),
            self.patches(),
            self.pixels(),
            self.depth,
        ]
        .map(|n| n as u64);
        let linear = |inputs: u64, outputs: u64| inputs * outputs + outputs;
        let scales = if self.layer_scale.is_some() { 2 * width } else { 0 };
        let block = 4 * width
            + linear(width, 3 * width)
            + linear(width, width)
            + linear(width, joined)
            + linear(hidden, width)
            + scales;
        let prefix = self.prefix() as u64 * width;
        // The inputs of both branches, q, k and v, the outputs of the heads, and the perceptron's values before its
        // activation. Plain operations keep more.
        let kept = tokens * (6 * width + joined);
        NetworkSize {
            output: self.width,
            parameters: prefix
                + self.positions() as u64 * width
                + linear(pixels, width)
                + depth * block
                + 2 * width,
            activations: patches * width + depth * kept,
        }
    }

    /// Returns the grid of patches of the images.
    pub(crate) fn image_grid(&self) -> Grid {
        Grid { rows: self.input.height / self.patch, columns: self.input.width / self.patch }
    }

    pub(crate) fn patches(&self) -> usize {
        self.image_grid().patches()
    }

    /// Returns the number of tokens before the patches: class token and registers.
    pub(crate) fn prefix(&self) -> usize {
        usize::from(self.pool == Pool::Class) + self.registers
    }

    pub(crate) fn tokens(&self) -> usize {
        self.prefix() + self.patches()
    }

    /// Returns the number of tokens before the patches that have positions.
    pub(crate) fn positioned_prefix(&self) -> usize {
        if self.prefix_positions { self.prefix() } else { 0 }
    }

    /// Returns the number of learned positions.
    pub(crate) fn positions(&self) -> usize {
        self.positioned_prefix() + self.grid.patches()
    }

    /// Returns the number of values in a patch.
    pub(crate) fn pixels(&self) -> usize {
        self.patch * self.patch * self.input.channels
    }

    /// Returns the number of outputs of `fc1`.
    pub(crate) fn fc1_outputs(&self) -> usize {
        match self.mlp {
            Mlp::Gelu => self.hidden,
            Mlp::SwiGlu => 2 * self.hidden,
        }
    }

    /// Returns the rate at which each block drops a path.
    pub(super) fn drop_rates(&self) -> Vec<f64> {
        drop_path::rates(self.drop_path, self.depth)
    }
}

/// Returns the grid of the patches that tile images.
fn grid(input: ImageShape, patch: usize) -> Result<Grid> {
    if !input.height.is_multiple_of(patch) || !input.width.is_multiple_of(patch) || input.is_empty() {
        return Err(Error::config(format!(
            "patches of {patch}×{patch} do not tile images of {input}: choose a `patch` that divides both sides"
        )));
    }
    Ok(Grid { rows: input.height / patch, columns: input.width / patch })
}
