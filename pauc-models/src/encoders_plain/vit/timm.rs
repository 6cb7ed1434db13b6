//! The model of timm that has the parameters of a vision transformer.

use super::{Mlp, Plan, Pool, Size, VisionTransformer};
use pauc_traits::encoder::{TimmArgument, TimmModel};

/// A model of timm, and the arguments that it is made with.
struct Base {
    name: String,
    width_and_heads: (usize, usize),
    depth: usize,
    /// The outputs of `fc1`.
    hidden: usize,
    layer_scale: Option<f64>,
    registers: usize,
    prefix_positions: bool,
}

impl Base {
    /// Returns the model that differs least.
    fn of(config: &VisionTransformer) -> Self {
        if config.mlp == Mlp::SwiGlu || config.layer_scale.is_some() {
            Self::dino(config)
        } else {
            let (size, like, depth) = match config.size {
                Size::Small => ("small", Size::Small, 12),
                Size::Base => ("base", Size::Base, 12),
                Size::Large => ("large", Size::Large, 24),
                Size::Tiny | Size::Giant | Size::Custom { .. } => ("tiny", Size::Tiny, 12),
            };
            let width_and_heads = like.width_and_heads();
            Base {
                name: format!("vit_{size}_patch16_224"),
                width_and_heads,
                depth,
                hidden: 4 * width_and_heads.0,
                layer_scale: None,
                registers: 0,
                prefix_positions: true,
            }
        }
    }

    /// Returns one of DINOv2's models. The largest is the only one with SwiGLU.
    fn dino(config: &VisionTransformer) -> Self {
        let (size, like, depth) = match config.size {
            _ if config.mlp == Mlp::SwiGlu => ("giant", Size::Giant, 40),
            Size::Base => ("base", Size::Base, 12),
            Size::Large => ("large", Size::Large, 24),
            Size::Tiny | Size::Small | Size::Giant | Size::Custom { .. } => ("small", Size::Small, 12),
        };
        let width_and_heads = like.width_and_heads();
        let has_registers = config.registers > 0 && !config.prefix_positions;
        let registers = if has_registers { "_reg4" } else { "" };
        Base {
            name: format!("vit_{size}_patch14{registers}_dinov2"),
            width_and_heads,
            depth,
            hidden: if config.mlp == Mlp::SwiGlu { 8192 } else { 4 * width_and_heads.0 },
            layer_scale: Some(1e-5),
            registers: if has_registers { 4 } else { 0 },
            prefix_positions: !has_registers,
        }
    }
}

/// Returns the model with its arguments, of which only the sizes of image and patch are given even if the model has them.
pub(super) fn model(config: &VisionTransformer, plan: &Plan) -> TimmModel {
    use TimmArgument::{Bool, Float, Int, Pair, Text};
    let base = Base::of(config);
    let mut arguments =
        vec![("img_size", Pair([plan.input.height, plan.input.width])), ("patch_size", Int(plan.patch))];
    let mut differs = |is_other: bool, name, value| {
        if is_other {
            arguments.push((name, value));
        }
    };
    let is_other_size = (plan.width, plan.heads) != base.width_and_heads;
    differs(is_other_size, "embed_dim", Int(plan.width));
    differs(is_other_size, "num_heads", Int(plan.heads));
    differs(plan.depth != base.depth, "depth", Int(plan.depth));
    let ratio = match config.mlp {
        Mlp::Gelu => Int(config.mlp_ratio.get()),
        // timm rounds the product of width and ratio down.
        Mlp::SwiGlu => Float((plan.fc1_outputs() as f64 + 0.5) / plan.width as f64),
    };
    let is_other_ratio = plan.fc1_outputs() * base.width_and_heads.0 != base.hidden * plan.width;
    differs(is_other_ratio, "mlp_ratio", ratio);
    let scale = config.layer_scale.map(|initial| initial.get());
    // For timm, 0 is none. transformers does not pass `null` on.
    differs(scale != base.layer_scale, "init_values", Float(scale.unwrap_or(0.0)));
    differs(plan.registers != base.registers, "reg_tokens", Int(plan.registers));
    let is_other_prefix = plan.prefix() > 0 && plan.prefix_positions != base.prefix_positions;
    differs(is_other_prefix, "no_embed_class", Bool(!plan.prefix_positions));
    differs(plan.pool == Pool::Mean, "class_token", Bool(false));
    differs(plan.pool == Pool::Mean, "global_pool", Text("avg"));
    TimmModel {
        architecture: base.name,
        arguments,
        global_pool: if plan.pool == Pool::Mean { "avg" } else { "token" },
        first_conv: "patch_embed.proj",
        classifier: "head",
    }
}
