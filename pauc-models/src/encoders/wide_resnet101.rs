//! Wide ResNet-101-2.

use super::Convolutions;
use super::blueprint::Blueprint;
use super::resnet::{self, Block, Stem, blueprint};
use pauc_traits::encoder::TimmModel;
use pauc_traits::{Count, ImageShape, Result, component};

component! {
    /// Wide ResNet-101-2: ResNet-101 with twice the channels in the 3×3 convolutions, features of 32 · width.
    ///
    /// Zagoruyko and Komodakis, Wide Residual Networks (BMVC 2016). Names, shapes and initial distribution of the
    /// parameters are torchvision's. Width 64 with `stem: ImageNet` is its `wide_resnet101_2` without the
    /// classifier.
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, 32 · width)
    pub struct WideResNet101: Encoder {
        /// The first layers: `ImageNet` for images of about 224 pixels, `Small` for about 32.
        pub stem: Stem = Stem::ImageNet,
        /// The number of channels of the first stage.
        pub width: Count = Count::lit(64),
        /// The convolution algorithm on the CPU.
        pub convolution: Convolutions = Convolutions::Auto,
    }
}

impl WideResNet101 {
    fn blueprint(&self, input: ImageShape) -> Result<Blueprint> {
        blueprint(input, self.stem, self.width.get(), Block::WideBottleneck, &[3, 4, 23, 3])
    }
}

blueprint_encoder! {
    WideResNet101,
    fn timm(&self, _: ImageShape) -> Result<TimmModel> {
        resnet::timm("wide_resnet101_2", self.stem, self.width.get())
    }
}
