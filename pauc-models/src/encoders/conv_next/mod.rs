//! ConvNeXt.
//!
//! | module | contents |
//! |---|---|
//! | `plan` | shapes and counts |
//! | `parameters` | the parameters in their layers |
//! | `network`, `workspace` | the network on the CPU |
//! | `graph` | the network as a graph, for export |

mod graph;
mod network;
mod parameters;
mod plan;
mod workspace;

pub(crate) use network::Network;
pub use plan::Plan;

use crate::device::NetworkDevice;
use pauc_traits::encoder::{TimmArgument, TimmModel};
use pauc_traits::graph::{Graph, Value};
use pauc_traits::{
    BuildOptions, Count, DropRate, Encoder, EncoderConfig, Error, ImageShape, NetworkSize, Positive, Result,
    component,
};
use serde::{Deserialize, Serialize};

component! {
    /// ConvNeXt: stages of depthwise 7×7 convolutions and perceptrons on each pixel.
    ///
    /// The stem is a patch convolution and a LayerNorm. Each stage repeats x + γ·W₂·GELU(W₁·LN(depthwise(x))), with
    /// hidden layers of four times the width. Stages after the first begin with LayerNorm and a 2×2 convolution of
    /// stride 2. The feature is the mean over all pixels, followed by LayerNorm. Parameters have the names and shapes
    /// of timm's `convnext_atto` to `convnext_base` without the classifier. As in timm, weights are initialized from a
    /// normal distribution with σ = 0.02, and biases with zeros.
    ///
    /// It runs on the CPU only.
    ///
    /// # Shapes
    /// (B, H, W, 1 or 3) → (B, width of the last stage)
    ///
    /// Source: Liu et al., A ConvNet for the 2020s (CVPR 2022); Atto to Nano are timm's.
    pub struct ConvNeXt: Encoder {
        /// Blocks and widths of the stages: Atto, Femto, Pico, Nano, Tiny, Small, Base, or Custom(depths: [3, 3,
        /// 9, 3], widths: [96, 192, 384, 768]).
        pub size: Size = Size::Tiny,
        /// The side of the patches of the first convolution: 4 for images of about 224 pixels, 1 or 2 for about 32.
        pub patch: Count = Count::lit(4),
        /// The initial γ of each block.
        pub layer_scale: Positive = Positive::lit(1e-6),
        /// Stochastic depth: in training, the probability with which an image skips the residual branch of the last
        /// block. It rises linearly over the blocks, from 0 in the first (Huang et al. 2016).
        pub drop_path: DropRate = DropRate::lit(0.0),
    }
}

/// Blocks and widths of the stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Size {
    /// 2, 2, 6 and 2 blocks of 40 to 320 channels; 3.4 million parameters.
    Atto,
    /// 2, 2, 6 and 2 blocks of 48 to 384 channels; 4.8 million parameters.
    Femto,
    /// 2, 2, 6 and 2 blocks of 64 to 512 channels; 8.5 million parameters.
    Pico,
    /// 2, 2, 8 and 2 blocks of 80 to 640 channels; 15.0 million parameters.
    Nano,
    /// 3, 3, 9 and 3 blocks of 96 to 768 channels; 27.8 million parameters.
    Tiny,
    /// 3, 3, 27 and 3 blocks of 96 to 768 channels; 49.5 million parameters.
    Small,
    /// 3, 3, 27 and 3 blocks of 128 to 1024 channels; 87.6 million parameters.
    Base,
    /// Any other stages.
    Custom {
        /// The number of blocks of each stage.
        depths: Vec<Count>,
        /// The number of channels of each stage.
        widths: Vec<Count>,
    },
}

impl Size {
    /// Returns the blocks and the width of each stage.
    fn stages(&self) -> Result<Vec<(usize, usize)>> {
        let doubling = |depths: [usize; 4], width: usize| (0..4).map(|i| (depths[i], width << i)).collect();
        Ok(match self {
            Size::Atto => doubling([2, 2, 6, 2], 40),
            Size::Femto => doubling([2, 2, 6, 2], 48),
            Size::Pico => doubling([2, 2, 6, 2], 64),
            Size::Nano => doubling([2, 2, 8, 2], 80),
            Size::Tiny => doubling([3, 3, 9, 3], 96),
            Size::Small => doubling([3, 3, 27, 3], 96),
            Size::Base => doubling([3, 3, 27, 3], 128),
            Size::Custom { depths, widths } => {
                if depths.is_empty() || depths.len() != widths.len() {
                    return Err(Error::config(format!(
                        "`ConvNeXt` has {} `depths` and {} `widths`: give one of each for every stage",
                        depths.len(),
                        widths.len()
                    )));
                }
                depths.iter().zip(widths).map(|(depth, width)| (depth.get(), width.get())).collect()
            }
        })
    }

    /// Returns timm's model with these stages.
    fn architecture(&self) -> &'static str {
        match self {
            Size::Atto => "convnext_atto",
            Size::Femto => "convnext_femto",
            Size::Pico => "convnext_pico",
            Size::Nano => "convnext_nano",
            // Depths and widths replace those of the model.
            Size::Tiny | Size::Custom { .. } => "convnext_tiny",
            Size::Small => "convnext_small",
            Size::Base => "convnext_base",
        }
    }

    /// Returns whether timm's model has 1×1 convolutions instead of linear layers, whose weights have two more
    /// axes.
    fn has_convolutions(&self) -> bool {
        matches!(self, Size::Atto | Size::Femto | Size::Pico | Size::Nano)
    }
}

impl ConvNeXt {
    fn plan(&self, input: ImageShape) -> Result<Plan> {
        let plan = Plan::new(input, self.patch.get(), &self.size.stages()?, self.size.has_convolutions())?;
        Ok(Plan { drop_path: self.drop_path.get(), ..plan })
    }
}

impl<D: NetworkDevice> EncoderConfig<D> for ConvNeXt {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        device.conv_next(self.plan(input)?, self.layer_scale.get(), options)
    }

    fn size(&self, input: ImageShape) -> Result<Option<NetworkSize>> {
        Ok(Some(self.plan(input)?.size()))
    }

    fn graph(&self, input: ImageShape, graph: &mut Graph, images: &Value) -> Result<Option<Value>> {
        Ok(Some(self.plan(input)?.add_to(graph, images)))
    }

    fn timm(&self, _: ImageShape) -> Result<TimmModel> {
        let (patch, stages) = (self.patch.get(), self.size.stages()?);
        if stages.len() != 4 {
            return Err(Error::config(format!(
                "timm has ConvNeXt only with four stages, got {}",
                stages.len()
            )));
        }
        // Elsewhere, timm changes the strides of stages so that the whole stride is 32.
        if !(patch == 1 || (3..=7).contains(&patch)) {
            return Err(Error::config(format!(
                "timm has other strides in ConvNeXt with `patch: {patch}`; it has these only with 1 and 3 to 7"
            )));
        }
        let mut arguments = Vec::new();
        if patch != 4 {
            arguments.push(("patch_size", TimmArgument::Int(patch)));
        }
        if matches!(self.size, Size::Custom { .. }) {
            arguments.push(("depths", TimmArgument::Ints(stages.iter().map(|s| s.0).collect())));
            arguments.push(("dims", TimmArgument::Ints(stages.iter().map(|s| s.1).collect())));
        }
        Ok(TimmModel {
            architecture: self.size.architecture().into(),
            arguments,
            global_pool: "avg",
            first_conv: "stem.0",
            classifier: "head.fc",
        })
    }
}
