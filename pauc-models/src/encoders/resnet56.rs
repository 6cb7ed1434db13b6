//! ResNet-56 for images of about 32 pixels.

use super::Convolutions;
use super::blueprint::Blueprint;
use super::resnet::{Block, Stem, blueprint};
use pauc_traits::{Count, ImageShape, Result, component};

component! {
    /// ResNet-56: three stages of 9 basic blocks, features of 4 · width.
    ///
    /// The CIFAR networks of He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition (CVPR 2016,
    /// §4.2), with 1×1 convolutions as shortcuts if the shape changes (their option B).
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, 4 · width)
    pub struct ResNet56: Encoder {
        /// The number of channels of the first stage.
        pub width: Count = Count::lit(16),
        /// The convolution algorithm on the CPU.
        pub convolution: Convolutions = Convolutions::Auto,
    }
}

impl ResNet56 {
    fn blueprint(&self, input: ImageShape) -> Result<Blueprint> {
        blueprint(input, Stem::Small, self.width.get(), Block::Basic, &[9; 3])
    }
}

blueprint_encoder!(ResNet56);
