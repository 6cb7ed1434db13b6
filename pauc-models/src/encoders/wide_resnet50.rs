//! Wide ResNet-50-2.

use super::Convolutions;
use super::blueprint::Blueprint;
use super::resnet::{self, Block, Stem, blueprint};
use crate::device::NetworkDevice;
use pauc_traits::encoder::TimmModel;
use pauc_traits::graph::{self, Graph};
use pauc_traits::{BuildOptions, Count, Encoder, EncoderConfig, ImageShape, NetworkSize, Result, component};

component! {
    /// Wide ResNet-50-2: ResNet-50 with twice the channels in the 3×3 convolutions, features of 32 · width.
    ///
    /// Zagoruyko and Komodakis, Wide Residual Networks (BMVC 2016). Names, shapes and initial distribution of the
    /// parameters are torchvision's. Width 64 with `stem: ImageNet` is its `wide_resnet50_2` without the
    /// classifier.
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, 32 · width)
    pub struct WideResNet50: Encoder {
        /// The first layers: `ImageNet` for images of about 224 pixels, `Small` for about 32.
        pub stem: Stem = Stem::ImageNet,
        /// The number of channels of the first stage.
        pub width: Count = Count::lit(64),
        /// The convolution algorithm on the CPU.
        pub convolution: Convolutions = Convolutions::Auto,
    }
}

impl WideResNet50 {
    fn blueprint(&self, input: ImageShape) -> Result<Blueprint> {
        blueprint(input, self.stem, self.width.get(), Block::WideBottleneck, &[3, 4, 6, 3])
    }
}

impl<D: NetworkDevice> EncoderConfig<D> for WideResNet50 {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        device.convolutional(self.blueprint(input)?, self.convolution, options)
    }

    fn size(&self, input: ImageShape) -> Result<Option<NetworkSize>> {
        Ok(Some(self.blueprint(input)?.size()))
    }

    fn graph(
        &self,
        input: ImageShape,
        graph: &mut Graph,
        images: &graph::Value,
    ) -> Result<Option<graph::Value>> {
        Ok(Some(self.blueprint(input)?.add_to(graph, images)))
    }

    fn timm(&self, _: ImageShape) -> Result<TimmModel> {
        resnet::timm("wide_resnet50_2", self.stem, self.width.get())
    }
}
