//! ResNet-32 for images of about 32 pixels.

use super::Convolutions;
use super::blueprint::Blueprint;
use super::resnet::{Block, Stem, blueprint};
use crate::device::NetworkDevice;
use pauc_traits::graph::{self, Graph};
use pauc_traits::{BuildOptions, Count, Encoder, EncoderConfig, ImageShape, NetworkSize, Result, component};

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

impl<D: NetworkDevice> EncoderConfig<D> for ResNet32 {
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
}
