//! ResNet-32 for images of about 32 pixels.

use super::Convolutions;
use super::blueprint::Blueprint;
use super::resnet::{Block, Stem, blueprint};
use pauc_traits::{Count, ImageShape, Result, component};

component! {
    /// ResNet-32: three stages of 5 basic blocks, features of 4 · width.
    ///
    /// The CIFAR networks of He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition (CVPR 2016,
    /// §4.2), with 1×1 convolutions as shortcuts if the shape changes (their option B).
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, 4 · width)
    pub struct ResNet32: Encoder {
        /// The number of channels of the first stage.
        pub width: Count = Count::lit(16),
        /// The convolution algorithm on the CPU.
        pub convolution: Convolutions = Convolutions::Auto,
    }
}

impl ResNet32 {
    fn blueprint(&self, input: ImageShape) -> Result<Blueprint> {
        blueprint(input, Stem::Small, self.width.get(), Block::Basic, &[5; 3])
    }
}

blueprint_encoder!(ResNet32);
