//! Encoders: convolutional networks from images to features.
//!
//! Each encoder has its own file. The other modules are:
//!
//! | module | contents |
//! |---|---|
//! | [`resnet`] | shared code of all residual networks |
//! | [`blueprint`] | layers, steps, shapes and names of a network, for any device |
//! | `network`, `workspace`, `shards` | a blueprint executed on the CPU |
//! | [`conv_next`] | ConvNeXt, which is no blueprint |
//! | `passes` | what the passes of all networks on the CPU share |
//! | `transformer` | the vision transformer on the CPU |
//! | `windows` | convolutions whose windows do not overlap |

/// Implements [`EncoderConfig`](pauc_traits::EncoderConfig) for a convolutional network: a struct with the field
/// `convolution` and the function `blueprint(input)`. Other methods of the trait may follow.
macro_rules! blueprint_encoder {
    ($name:ty $(, $($method:tt)+)?) => {
        impl<D: $crate::device::NetworkDevice> pauc_traits::EncoderConfig<D> for $name {
            fn build(
                &self,
                device: &D,
                input: pauc_traits::ImageShape,
                options: pauc_traits::BuildOptions,
            ) -> pauc_traits::Result<Box<dyn pauc_traits::Encoder<D>>> {
                device.convolutional(self.blueprint(input)?, self.convolution, options)
            }

            fn size(
                &self,
                input: pauc_traits::ImageShape,
            ) -> pauc_traits::Result<Option<pauc_traits::NetworkSize>> {
                Ok(Some(self.blueprint(input)?.size()))
            }

            fn graph(
                &self,
                input: pauc_traits::ImageShape,
                graph: &mut pauc_traits::graph::Graph,
                images: &pauc_traits::graph::Value,
            ) -> pauc_traits::Result<Option<pauc_traits::graph::Value>> {
                Ok(Some(self.blueprint(input)?.add_to(graph, images)))
            }

            $($($method)+)?
        }
    };
}

pub mod blueprint;
mod conv_net;
pub mod conv_next;
pub(crate) mod network;
pub(crate) mod passes;
pub mod resnet;
mod resnet101;
mod resnet18;
mod resnet20;
mod resnet32;
mod resnet34;
mod resnet50;
mod resnet56;
mod shards;
pub(crate) mod transformer;
mod wide_resnet;
mod wide_resnet101;
mod wide_resnet50;
mod windows;
pub(crate) mod workspace;

pub use conv_net::ConvNet;
pub use conv_next::ConvNeXt;
pub use resnet::Stem;
pub use resnet18::ResNet18;
pub use resnet20::ResNet20;
pub use resnet32::ResNet32;
pub use resnet34::ResNet34;
pub use resnet50::ResNet50;
pub use resnet56::ResNet56;
pub use resnet101::ResNet101;
pub use wide_resnet::WideResNet;
pub use wide_resnet50::WideResNet50;
pub use wide_resnet101::WideResNet101;

use pauc_kernels::conv::{Algorithm, Geometry};
use serde::{Deserialize, Serialize};

/// The algorithm of an encoder's convolutions on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Convolutions {
    /// The fastest for each layer.
    Auto,
    /// Direct convolution: slower, with the smallest rounding errors.
    Direct,
    /// Winograd's F(4×4, 3×3) for every layer that it applies to.
    Winograd,
}

impl Convolutions {
    /// Returns the algorithm for a layer that reads maps of `pitch` channels.
    fn algorithm(self, g: Geometry, pitch: usize) -> Algorithm {
        match self {
            Convolutions::Auto => Algorithm::fastest(g, pitch),
            Convolutions::Direct => Algorithm::Direct,
            Convolutions::Winograd => Algorithm::winograd(g, pitch),
        }
    }
}
