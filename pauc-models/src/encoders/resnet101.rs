//! ResNet-101.

use super::Convolutions;
use super::blueprint::Blueprint;
use super::resnet::{self, Block, Stem, blueprint};
use pauc_traits::encoder::TimmModel;
use pauc_traits::{Count, ImageShape, Result, component};

component! {
    /// ResNet-101: four stages of 3, 4, 23 and 3 bottlenecks, features of 32 · width.
    ///
    /// He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition (CVPR 2016). Names, shapes and
    /// initial distribution of the parameters are torchvision's. Width 64 with `stem: ImageNet` is its
    /// `resnet101` without the classifier.
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, 32 · width)
    pub struct ResNet101: Encoder {
        /// The first layers: `ImageNet` for images of about 224 pixels, `Small` for about 32.
        pub stem: Stem = Stem::ImageNet,
        /// The number of channels of the first stage.
        pub width: Count = Count::lit(64),
        /// The convolution algorithm on the CPU.
        pub convolution: Convolutions = Convolutions::Auto,
    }
}

impl ResNet101 {
    fn blueprint(&self, input: ImageShape) -> Result<Blueprint> {
        blueprint(input, self.stem, self.width.get(), Block::Bottleneck, &[3, 4, 23, 3])
    }
}

blueprint_encoder! {
    ResNet101,
    fn timm(&self, _: ImageShape) -> Result<TimmModel> {
        resnet::timm("resnet101", self.stem, self.width.get())
    }
}
