//! Encoders: convolutional networks from images to features.
//!
//! Each encoder has a file of its own. The other modules are:
//!
//! | module | what lives there |
//! |---|---|
//! | [`resnet`] | what all residual networks share |
//! | [`blueprint`] | layers, steps, shapes and names of a network, for any device |
//! | `network`, `workspace` | a blueprint at work on the CPU |

pub mod blueprint;
mod conv_net;
pub(crate) mod network;
pub mod resnet;
mod resnet101;
mod resnet18;
mod resnet20;
mod resnet32;
mod resnet34;
mod resnet50;
mod resnet56;
pub(crate) mod workspace;

pub use conv_net::ConvNet;
pub use resnet::Stem;
pub use resnet18::ResNet18;
pub use resnet20::ResNet20;
pub use resnet32::ResNet32;
pub use resnet34::ResNet34;
pub use resnet50::ResNet50;
pub use resnet56::ResNet56;
pub use resnet101::ResNet101;

use pauc_kernels::conv::{Algorithm, Geometry};
use serde::{Deserialize, Serialize};

/// How an encoder's convolutions are computed on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Convolutions {
    /// Whatever is fastest for each layer.
    Auto,
    /// By their definition: slower, with the smallest rounding errors.
    Direct,
    /// Winograd's F(4×4, 3×3) wherever it applies.
    Winograd,
}

impl Convolutions {
    /// For a layer that reads maps of `pitch` channels.
    fn algorithm(self, g: Geometry, pitch: usize) -> Algorithm {
        match self {
            Convolutions::Auto => Algorithm::fastest(g, pitch),
            Convolutions::Direct => Algorithm::Direct,
            Convolutions::Winograd => Algorithm::winograd(g, pitch),
        }
    }
}
