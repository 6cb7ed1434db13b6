//! A small plain network for first experiments and fast tests.

use super::Convolutions;
use super::blueprint::Blueprint;
use crate::bounds::width;
use pauc_traits::{Count, Error, ImageShape, Result, component};

component! {
    /// Plain 3×3 convolutions with batch normalization and ReLU. Each layer after the first halves the map.
    ///
    /// The first layer has stride 1, all others stride 2. The features are the mean of the last map. With
    /// `grid` above 1, they are the concatenated means of `grid` × `grid` equal parts of the map, which keep
    /// positions: useful for images that are centered and upright.
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, grid² · last of channels)
    pub struct ConvNet: Encoder {
        /// The output channels of each layer.
        pub channels: Vec<Count> = vec![Count::lit(32), Count::lit(64), Count::lit(128)],
        /// The number of parts per side of the last map that are averaged separately.
        pub grid: Count = Count::lit(1),
        /// The convolution algorithm on the CPU.
        pub convolution: Convolutions = Convolutions::Auto,
    }
}

impl ConvNet {
    fn blueprint(&self, input: ImageShape) -> Result<Blueprint> {
        if self.channels.is_empty() {
            return Err(Error::config(
                "ConvNet: `channels` is empty: give at least one layer, such as [32, 64]",
            ));
        }
        let mut b = Blueprint::new(input)?;
        let mut x = 0;
        for (i, outputs) in self.channels.iter().enumerate() {
            let names = (format!("conv{}", i + 1), format!("bn{}", i + 1));
            let layer = b.declare(
                names,
                b.shape(x),
                width("channels", outputs.get())?,
                (3, if i == 0 { 1 } else { 2 }),
            );
            x = b.conv(layer, x, None);
        }
        b.grid = self.grid.get();
        b.check("use larger images, fewer `channels` or a smaller `grid`")
    }
}

blueprint_encoder!(ConvNet);
