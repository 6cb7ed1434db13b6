//! The vision transformer.

mod graph;

use super::{Leaf, gelu, layer_norm, linear};
use crate::bounds;
use crate::device::NetworkDevice;
use crate::init::{normal, uniform};
use dfdx::prelude::*;
use pauc_traits::encoder::{Images, Layer, TimmArgument, TimmModel};
use pauc_traits::graph::{Graph, Value};
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, Stream, stream};
use pauc_traits::{
    BuildOptions, Compute, Count, Encoder, EncoderConfig, Error, ImageShape, NetworkSize, Param, Pass,
    Result, Taped, component,
};
use serde::{Deserialize, Serialize};

component! {
    /// A vision transformer: patches become tokens, followed by pre-norm blocks of attention and perceptron.
    ///
    /// x ← x + Attention(LN(x)); x ← x + W₂·GELU(W₁·LN(x)), `depth` times; LN. The feature is the class
    /// token, or the mean of the tokens. Positions are learned. Parameters are named as in timm's
    /// `VisionTransformer`. Matrices, tokens and positions start normal with σ = 0.02, the patch projection
    /// uniform in ±1/√inputs, and biases at zero.
    ///
    /// It is written in plain dfdx operations, and is one fused operation on CUDA. It is meant for small
    /// images.
    ///
    /// # Shapes
    /// (B, H, W, C) with H and W divisible by `patch` → (B, width)
    ///
    /// Source: Dosovitskiy et al. 2021; sizes as in DeiT (Touvron et al. 2021).
    pub struct VisionTransformer: Encoder {
        /// Width and heads: Tiny (192, 3), Small (384, 6), Base (768, 12), or Custom(width: …, heads: …).
        pub size: Size = Size::Tiny,
        /// The side of a patch in pixels.
        pub patch: Count = Count::lit(4),
        /// The number of blocks.
        pub depth: Count = Count::lit(12),
        /// The hidden width of the perceptrons, as a multiple of the token width.
        pub mlp_ratio: Count = Count::lit(4),
        /// How the tokens become one feature vector.
        pub pool: Pool = Pool::Class,
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
    /// Any other size.
    Custom {
        /// The width of the tokens.
        width: Count,
        /// The number of heads. It must divide the width.
        heads: Count,
    },
}

/// How tokens become one feature vector.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Pool {
    /// The class token after the last LayerNorm.
    Class,
    /// The LayerNorm of the mean over patches; there is no class token.
    Mean,
}

/// The dimensions of a network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub input: ImageShape,
    pub patch: usize,
    pub width: usize,
    pub heads: usize,
    pub hidden: usize,
    pub pool: Pool,
}

impl Plan {
    fn new(config: &VisionTransformer, input: ImageShape) -> Result<Self> {
        let (width, heads) = match config.size {
            Size::Tiny => (192, 3),
            Size::Small => (384, 6),
            Size::Base => (768, 12),
            Size::Custom { width, heads } => (width.get(), heads.get()),
        };
        let patch = config.patch.get();
        if !input.height.is_multiple_of(patch) || !input.width.is_multiple_of(patch) {
            return Err(Error::config(format!(
                "patches of {patch}×{patch} do not tile images of {input}: choose a `patch` that divides both sides"
            )));
        }
        if !width.is_multiple_of(heads) {
            return Err(Error::config(format!(
                "{heads} heads do not divide a width of {width}: choose a `width` that is a multiple of `heads`"
            )));
        }
        bounds::width("width", width)?;
        bounds::at_most("depth", config.depth.get(), bounds::MAX_DEPTH)?;
        let ratio = bounds::at_most("mlp_ratio", config.mlp_ratio.get(), bounds::MAX_RATIO)?;
        Ok(Plan { input, patch, width, heads, hidden: width * ratio, pool: config.pool })
    }

    /// Counts the parameters of a network of `depth` blocks, and the values that its backward pass reads.
    fn size(&self, depth: usize) -> NetworkSize {
        let [width, hidden, tokens, patches, pixels, heads, depth] =
            [self.width, self.hidden, self.tokens(), self.patches(), self.pixels(), self.heads, depth]
                .map(|n| n as u64);
        let linear = |inputs: u64, outputs: u64| inputs * outputs + outputs;
        let block = 4 * width
            + linear(width, 3 * width)
            + linear(width, width)
            + linear(width, hidden)
            + linear(hidden, width);
        let class_token = if self.pool == Pool::Class { width } else { 0 };
        let kept = tokens * (8 * width + hidden) + heads * tokens * tokens;
        NetworkSize {
            output: self.width,
            parameters: class_token + tokens * width + linear(pixels, width) + depth * block + 2 * width,
            activations: patches * width + depth * kept,
        }
    }

    pub(crate) fn patches(&self) -> usize {
        (self.input.height / self.patch) * (self.input.width / self.patch)
    }

    pub(crate) fn tokens(&self) -> usize {
        self.patches() + usize::from(self.pool == Pool::Class)
    }

    /// Returns the number of values in a patch.
    fn pixels(&self) -> usize {
        self.patch * self.patch * self.input.channels
    }
}

pub(crate) struct Block<D: Compute> {
    pub norm1: [Param<D>; 2],
    pub qkv: [Param<D>; 2],
    pub projection: [Param<D>; 2],
    pub norm2: [Param<D>; 2],
    pub fc1: [Param<D>; 2],
    pub fc2: [Param<D>; 2],
}

/// The network of a [`VisionTransformer`], in plain operations.
pub struct Transformer<D: Compute> {
    pub(crate) device: D,
    pub(crate) plan: Plan,
    pub(crate) class_token: Option<Param<D>>,
    pub(crate) positions: Param<D>,
    pub(crate) embedding: [Param<D>; 2],
    pub(crate) blocks: Vec<Block<D>>,
    pub(crate) norm: [Param<D>; 2],
}

/// Creates the parameters in a fixed order, each from its own random stream.
struct Maker<'a, D: Compute> {
    device: &'a D,
    seed: u64,
    /// The number of streams used so far.
    streams: u64,
}

impl<D: Compute> Maker<'_, D> {
    fn stream(&mut self) -> Stream {
        self.streams += 1;
        stream(self.seed, Purpose::Init, 0, self.streams - 1, 0)
    }

    fn normal(&mut self, name: &str, shape: &[usize]) -> Result<Param<D>> {
        let values = normal(&mut self.stream(), 0.02, shape);
        Param::new(self.device, name, shape, Role::Weight, &values)
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<[Param<D>; 2]> {
        let weight = self.normal(&format!("{name}.weight"), &[outputs, inputs])?;
        let zeros = vec![0.0; outputs];
        Ok([weight, Param::new(self.device, format!("{name}.bias"), &[outputs], Role::Bias, &zeros)?])
    }

    fn norm(&self, name: &str, width: usize) -> Result<[Param<D>; 2]> {
        let constant = |part: &str, value| {
            Param::new(self.device, format!("{name}.{part}"), &[width], Role::Norm, &vec![value; width])
        };
        Ok([constant("weight", 1.0)?, constant("bias", 0.0)?])
    }

    fn block(&mut self, i: usize, plan: &Plan) -> Result<Block<D>> {
        let (width, hidden) = (plan.width, plan.hidden);
        Ok(Block {
            norm1: self.norm(&format!("blocks.{i}.norm1"), width)?,
            qkv: self.linear(&format!("blocks.{i}.attn.qkv"), width, 3 * width)?,
            projection: self.linear(&format!("blocks.{i}.attn.proj"), width, width)?,
            norm2: self.norm(&format!("blocks.{i}.norm2"), width)?,
            fc1: self.linear(&format!("blocks.{i}.mlp.fc1"), width, hidden)?,
            fc2: self.linear(&format!("blocks.{i}.mlp.fc2"), hidden, width)?,
        })
    }
}

impl<D: NetworkDevice> EncoderConfig<D> for VisionTransformer {
    fn build(&self, device: &D, input: ImageShape, options: BuildOptions) -> Result<Box<dyn Encoder<D>>> {
        let plan = Plan::new(self, input)?;
        let mut make = Maker { device, seed: options.seed, streams: 0 };
        let class_token = match plan.pool {
            Pool::Class => Some(make.normal("cls_token", &[1, 1, plan.width])?),
            Pool::Mean => None,
        };
        let positions = make.normal("pos_embed", &[1, plan.tokens(), plan.width])?;
        let bound = 1.0 / (plan.pixels() as f32).sqrt();
        let mut projection = |name: &str, shape: &[usize], role| {
            let values = uniform(&mut make.stream(), bound, shape);
            Param::new(device, format!("patch_embed.proj.{name}"), shape, role, &values)
        };
        let kernel = [plan.width, input.channels, plan.patch, plan.patch];
        let embedding =
            [projection("weight", &kernel, Role::Weight)?, projection("bias", &[plan.width], Role::Bias)?];
        let blocks = (0..self.depth.get()).map(|i| make.block(i, &plan)).collect::<Result<_>>()?;
        let norm = make.norm(if plan.pool == Pool::Class { "norm" } else { "fc_norm" }, plan.width)?;
        let network =
            Transformer { device: device.clone(), plan, class_token, positions, embedding, blocks, norm };
        device.transformer(network, options.device)
    }

    fn size(&self, input: ImageShape) -> Result<Option<NetworkSize>> {
        Ok(Some(Plan::new(self, input)?.size(self.depth.get())))
    }

    fn graph(&self, input: ImageShape, graph: &mut Graph, images: &Value) -> Result<Option<Value>> {
        Ok(Some(Plan::new(self, input)?.add_to(self.depth.get(), graph, images)))
    }

    fn timm(&self, input: ImageShape) -> Result<TimmModel> {
        let plan = Plan::new(self, input)?;
        let mut arguments = vec![
            ("img_size", TimmArgument::Pair([input.height, input.width])),
            ("patch_size", TimmArgument::Int(plan.patch)),
        ];
        let size = match self.size {
            Size::Tiny => "tiny",
            Size::Small => "small",
            Size::Base => "base",
            Size::Custom { .. } => {
                // They replace the sizes of the model.
                arguments.push(("embed_dim", TimmArgument::Int(plan.width)));
                arguments.push(("num_heads", TimmArgument::Int(plan.heads)));
                "tiny"
            }
        };
        for (name, value, default) in
            [("depth", self.depth.get(), 12), ("mlp_ratio", self.mlp_ratio.get(), 4)]
        {
            if value != default {
                arguments.push((name, TimmArgument::Int(value)));
            }
        }
        if plan.pool == Pool::Mean {
            arguments.push(("class_token", TimmArgument::Bool(false)));
            arguments.push(("global_pool", TimmArgument::Text("avg")));
        }
        Ok(TimmModel {
            architecture: format!("vit_{size}_patch16_224"),
            arguments,
            global_pool: if plan.pool == Pool::Mean { "avg" } else { "token" },
            first_conv: "patch_embed.proj",
            classifier: "head",
        })
    }
}

/// Token matrices, (B·T, width).
type TokenRows<D, T> = Tensor<(usize, usize), f32, D, T>;

impl<D: Compute> Block<D> {
    fn params(&self) -> impl Iterator<Item = &Param<D>> {
        let Block { norm1, qkv, projection, norm2, fc1, fc2 } = self;
        [norm1, qkv, projection, norm2, fc1, fc2].into_iter().flatten()
    }

    fn map(&self, f: &impl Fn(&[Param<D>; 2]) -> Result<[Param<D>; 2]>) -> Result<Self> {
        Ok(Block {
            norm1: f(&self.norm1)?,
            qkv: f(&self.qkv)?,
            projection: f(&self.projection)?,
            norm2: f(&self.norm2)?,
            fc1: f(&self.fc1)?,
            fc2: f(&self.fc2)?,
        })
    }

    fn forward<T: Leaf<D>>(&self, plan: &Plan, batch: usize, x: TokenRows<D, T>) -> Result<TokenRows<D, T>> {
        let attended = self.attention(plan, batch, layer_norm(x.with_empty_tape(), &self.norm1)?)?;
        let x = x.try_add(attended).map_err(Error::device)?;
        let hidden = linear(layer_norm(x.with_empty_tape(), &self.norm2)?, &self.fc1)?;
        let mixed = linear(gelu(hidden)?, &self.fc2)?;
        x.try_add(mixed).map_err(Error::device)
    }

    /// Computes softmax(q·kᵀ/√d)·v for each image and head, and projects the outputs of the heads.
    fn attention<T: Leaf<D>>(
        &self,
        plan: &Plan,
        batch: usize,
        x: TokenRows<D, T>,
    ) -> Result<TokenRows<D, T>> {
        let (width, heads, tokens) = (plan.width, plan.heads, plan.tokens());
        let mixed = self.heads(linear(x, &self.qkv)?, (batch, tokens, heads, width / heads));
        linear(mixed.map_err(Error::device)?, &self.projection)
    }

    fn heads<T: Leaf<D>>(
        &self,
        qkv: TokenRows<D, T>,
        split: (usize, usize, usize, usize),
    ) -> Result<TokenRows<D, T>, <D as HasErr>::Err> {
        let (batch, tokens, heads, dim) = split;
        let width = heads * dim;
        let part = |x: TokenRows<D, T>, n: usize| {
            x.try_slice((.., n * width..(n + 1) * width))?.try_reshape_like(&split)
        };
        let q = part(qkv.with_empty_tape(), 0)?.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
        let k = part(qkv.with_empty_tape(), 1)?.try_permute::<_, Axes4<0, 2, 3, 1>>()?;
        let v = part(qkv, 2)?.try_permute::<_, Axes4<0, 2, 1, 3>>()?;
        let logits = q.try_mul(1.0 / (dim as f32).sqrt())?.try_matmul(k)?;
        let mixed = logits.try_softmax::<Axis<3>>()?.try_matmul(v)?;
        mixed.try_permute::<_, Axes4<0, 2, 1, 3>>()?.try_reshape_like(&(batch * tokens, width))
    }
}

impl<D: Compute> Transformer<D> {
    /// Copies the values into a new network.
    pub(crate) fn copy(&self) -> Result<Self> {
        let copy = |p: &Param<D>| p.deep_clone(&self.device);
        let pair = |[w, b]: &[Param<D>; 2]| Ok([copy(w)?, copy(b)?]);
        Ok(Transformer {
            device: self.device.clone(),
            plan: self.plan,
            class_token: self.class_token.as_ref().map(copy).transpose()?,
            positions: copy(&self.positions)?,
            embedding: pair(&self.embedding)?,
            blocks: self.blocks.iter().map(|b| b.map(&pair)).collect::<Result<_>>()?,
            norm: pair(&self.norm)?,
        })
    }

    /// Returns one row per patch, with its values in the order (C, patch row, patch column). Shape
    /// (B·patches, C·p²).
    fn patches(&self, images: Images<D>) -> Result<TokenRows<D, NoneTape>, <D as HasErr>::Err> {
        let (batch, height, width, channels) = *images.shape();
        let p = self.plan.patch;
        let split = (batch, height / p, p, width / p, p, channels);
        let rows = (batch * self.plan.patches(), self.plan.pixels());
        images.try_reshape_like(&split)?.try_permute::<_, Axes6<0, 1, 3, 5, 2, 4>>()?.try_reshape_like(&rows)
    }

    fn run<T: Leaf<D>>(&self, batch: usize, patches: TokenRows<D, T>) -> Result<TokenRows<D, T>> {
        let (tokens, width) = (self.plan.tokens(), self.plan.width);
        let embedded = linear(patches, &self.embedding)?;
        let mut x = self.with_positions(batch, embedded)?;
        for block in &self.blocks {
            pauc_traits::stop::check()?;
            x = block.forward(&self.plan, batch, x)?;
        }
        let x = x.try_reshape_like(&(batch, tokens, width)).map_err(Error::device)?;
        let pooled = match self.plan.pool {
            Pool::Class => x.try_slice((.., 0..1, ..)).and_then(|x| x.try_reshape_like(&(batch, width))),
            Pool::Mean => x.try_mean::<_, Axis<1>>(),
        };
        layer_norm(pooled.map_err(Error::device)?, &self.norm)
    }

    /// Returns the tokens: the class token, if any, before the patches of each image, with positions added.
    fn with_positions<T: Leaf<D>>(&self, batch: usize, patches: TokenRows<D, T>) -> Result<TokenRows<D, T>> {
        let (tokens, width) = (self.plan.tokens(), self.plan.width);
        let grid = (batch, self.plan.patches(), width);
        let mut x = patches.try_reshape_like(&grid).map_err(Error::device)?;
        if let Some(token) = &self.class_token {
            let one = (batch, 1, width);
            let token = T::leaf(&self.device, token, (1, width))?;
            // The sum gives the broadcast token its own memory.
            let repeated = token.try_broadcast_like::<_, Axis<0>>(&one).and_then(|t| {
                let zeros: Tensor<(usize, usize, usize), f32, D> = self.device.try_zeros_like(&one)?;
                t.try_add(zeros)
            });
            let repeated = repeated.map_err(Error::device)?;
            x = (repeated, x).try_concat_along(Axis::<1>).map_err(Error::device)?;
        }
        let positions = T::leaf(&self.device, &self.positions, (tokens, width))?;
        let repeated = positions.try_broadcast_like::<_, Axis<0>>(x.shape()).map_err(Error::device)?;
        let x = x.try_add(repeated).map_err(Error::device)?;
        x.try_reshape_like(&(batch * tokens, width)).map_err(Error::device)
    }
}

impl<D: Compute> Encoder<D> for Transformer<D> {
    fn feature_dim(&self) -> usize {
        self.plan.width
    }

    fn forward(&mut self, images: Images<D>, pass: Pass) -> Result<Taped<(usize, usize), f32, D>> {
        let (batch, height, width, channels) = *images.shape();
        let got = ImageShape { height, width, channels };
        if got != self.plan.input {
            let message = format!("was built for images of {}, got {got}", self.plan.input);
            return Err(Error::shape("vision transformer", message));
        }
        let patches = self.patches(images).map_err(Error::device)?;
        match pass {
            Pass::Train => self.run(batch, patches.put_tape(OwnedTape::default())),
            Pass::Momentum | Pass::Eval => Ok(self.run(batch, patches)?.put_tape(OwnedTape::default())),
        }
    }

    fn parameters(&self) -> Vec<Param<D>> {
        let first = self.class_token.iter().chain([&self.positions]).chain(&self.embedding);
        first.chain(self.blocks.iter().flat_map(Block::params)).chain(&self.norm).cloned().collect()
    }

    fn statistics(&self) -> Vec<Param<D>> {
        Vec::new()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<D>>> {
        Ok(Box::new(self.copy()?))
    }

    fn layers(&self) -> Vec<Layer> {
        let (tokens, width) = (self.plan.tokens(), self.plan.width);
        let layer =
            |name: String, output: &[usize], parameters, multiply_adds: usize, algorithm: &str| Layer {
                name,
                output: output.to_vec(),
                parameters,
                multiply_adds: multiply_adds as u64,
                algorithm: algorithm.into(),
            };
        let count = |params: &[Param<D>]| params.iter().map(Param::len).sum::<usize>();
        let embedded =
            count(&self.embedding) + self.positions.len() + self.class_token.as_ref().map_or(0, Param::len);
        let work = self.plan.patches() * self.plan.pixels() * width;
        let mut all = vec![layer("patch_embed".into(), &[tokens, width], embedded, work, "patches, linear")];
        // Four matrices of width², two of width·hidden, q·kᵀ, and its product with v.
        let work = tokens * (4 * width * width + 2 * width * self.plan.hidden) + 2 * tokens * tokens * width;
        for (i, block) in self.blocks.iter().enumerate() {
            let parameters = block.params().map(Param::len).sum();
            all.push(layer(
                format!("blocks.{i}"),
                &[tokens, width],
                parameters,
                work,
                "attention, perceptron",
            ));
        }
        let name = self.norm[0].name.trim_end_matches(".weight").to_string();
        all.push(layer(name, &[width], count(&self.norm), 0, "pool, layer norm"));
        all
    }
}
