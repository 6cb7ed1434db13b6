//! The vision transformer.

mod block;
mod graph;
mod maker;
mod network;
mod plan;
mod timm;
mod tokens;

pub(crate) use block::Block;
pub use network::Transformer;
pub(crate) use plan::Plan;

use crate::device::NetworkDevice;
use maker::Maker;
use pauc_traits::encoder::TimmModel;
use pauc_traits::graph::{Graph, Value};
use pauc_traits::{
    BuildOptions, Count, DropRate, Encoder, EncoderConfig, ImageShape, NetworkSize, Positive, Result,
    component,
};
use serde::{Deserialize, Serialize};

component! {
    /// A vision transformer: patches become tokens, followed by pre-norm blocks of attention and perceptron.
    ///
    /// Each of `depth` blocks computes x ← x + Attention(LN(x)), then x ← x + W₂·GELU(W₁·LN(x)). A LayerNorm follows
    /// the last block. The feature is the class token, or the mean of the patch tokens. Position embeddings are
    /// learned. Parameters are named as in timm's `VisionTransformer`. Weight matrices, tokens and position embeddings
    /// are initialized from a normal distribution with σ = 0.02, the patch projection uniformly in ±1/√inputs, and
    /// biases with zeros.
    ///
    /// With `patch: 14, layer_scale: 1e-5`, it is the network of DINOv2. With `registers: 4, prefix_positions: false`
    /// in addition, it is the variant with registers.
    ///
    /// Views may have several sizes, all divisible by `patch`. The position embeddings are those of the first size. For
    /// other sizes they are interpolated as in timm: bicubic, with antialiasing.
    ///
    /// On the CPU, it is one fused operation. On CUDA, it is fused only if `mlp` and the fields after it have their
    /// defaults; otherwise it runs as separate dfdx operations. The default `patch` is for images of about 32 pixels.
    ///
    /// # Shapes
    /// (B, H, W, C) with H and W divisible by `patch` → (B, width)
    ///
    /// Source: Dosovitskiy et al. 2021; sizes as in DeiT (Touvron et al. 2021) and DINOv2 (Oquab et al. 2024).
    pub struct VisionTransformer: Encoder {
        /// Width and heads: Tiny (192, 3), Small (384, 6), Base (768, 12), Large (1024, 16), Giant (1536, 24), or
        /// Custom(width: …, heads: …).
        pub size: Size = Size::Tiny,
        /// The side of a patch in pixels.
        pub patch: Count = Count::lit(4),
        /// The number of blocks.
        pub depth: Count = Count::lit(12),
        /// The hidden width of the perceptrons, as a multiple of the token width.
        pub mlp_ratio: Count = Count::lit(4),
        /// How the tokens become one feature vector.
        pub pool: Pool = Pool::Class,
        /// The kind of perceptron: Gelu, or SwiGlu, W₃·(SiLU(W₁·x) ⊙ W₂·x), whose hidden width is two thirds of that of
        /// Gelu, rounded up to a multiple of 8 (Shazeer 2020).
        #[added_in("0.3")]
        pub mlp: Mlp = Mlp::Gelu,
        /// LayerScale: the initial value of the learned per-channel factors on the outputs of attention and perceptron.
        /// `None` means no such factors (Touvron et al. 2021).
        #[added_in("0.3")]
        pub layer_scale: Option<Positive> = None,
        /// The number of register tokens, which take part in attention and are not part of the feature (Darcet et al.
        /// 2024).
        #[added_in("0.3")]
        pub registers: usize = 0,
        /// Whether class token and registers have positions too. timm's `no_embed_class` is the opposite.
        #[added_in("0.3")]
        pub prefix_positions: bool = true,
        /// Stochastic depth: in training, the probability with which an image skips a residual branch of the last
        /// block. It rises linearly over the blocks, from 0 in the first (Huang et al. 2016).
        #[added_in("0.3")]
        pub drop_path: DropRate = DropRate::lit(0.0),
    }
}

/// Width and number of attention heads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Size {
    /// 192, 3 heads.
    Tiny,
    /// 384, 6 heads.
    Small,
    /// 768, 12 heads.
    Base,
    /// 1024, 16 heads.
    Large,
    /// 1536, 24 heads.
    Giant,
    /// Any other size.
    Custom {
        /// The width of the tokens.
        width: Count,
        /// The number of heads. It must divide the width.
        heads: Count,
    },
}

impl Size {
    /// Returns the width and the number of heads.
    fn width_and_heads(self) -> (usize, usize) {
        match self {
            Size::Tiny => (192, 3),
            Size::Small => (384, 6),
            Size::Base => (768, 12),
            Size::Large => (1024, 16),
            Size::Giant => (1536, 24),
            Size::Custom { width, heads } => (width.get(), heads.get()),
        }
    }
}

/// How tokens become one feature vector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pool {
    /// The class token after the last LayerNorm.
    Class,
    /// The LayerNorm of the mean over patches; there is no class token.
    Mean,
}

/// The perceptron of a block.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Mlp {
    /// W₂·GELU(W₁·x).
    Gelu,
    /// W₃·(SiLU(W₁·x) ⊙ W₂·x). W₁ and W₂ are one matrix, `fc1`, as in timm's `SwiGLUPacked`.
    SwiGlu,
}

impl VisionTransformer {
    /// Builds the network in plain operations, with initial weights from the random streams of `seed`.
    pub(crate) fn plain<D: NetworkDevice>(
        &self,
        device: &D,
        input: ImageShape,
        seed: u64,
    ) -> Result<Transformer<D>> {
        Maker::new(device, seed).network(Plan::new(self, input)?)
    }
}

impl<D: NetworkDevice> EncoderConfig<D> for VisionTransformer {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        device.transformer(self.plain(device, input, options.seed)?, options.device)
    }

    fn size(&self, input: ImageShape) -> Result<Option<NetworkSize>> {
        Ok(Some(Plan::new(self, input)?.size()))
    }

    fn graph(&self, input: ImageShape, graph: &mut Graph, images: &Value) -> Result<Option<Value>> {
        Ok(Some(Plan::new(self, input)?.add_to(graph, images)))
    }

    fn timm(&self, input: ImageShape) -> Result<TimmModel> {
        Ok(timm::model(self, &Plan::new(self, input)?))
    }
}
