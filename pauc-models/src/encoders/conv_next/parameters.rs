//! The parameters of a ConvNeXt, by layer.

use super::plan::{Plan, Stage};
use crate::init::normal;
use pauc_kernels::depthwise::KERNEL;
use pauc_traits::encoder::LayerDepths;
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Compute, Param, Result};

/// The standard deviation of initial weights.
const DEVIATION: f32 = 0.02;

/// Weight and bias, or scale and shift.
pub(super) type Pair<D> = [Param<D>; 2];

/// A block.
pub(super) struct Block<D: Compute> {
    pub scale: Param<D>,
    pub depthwise: Pair<D>,
    pub norm: Pair<D>,
    pub fc1: Pair<D>,
    pub fc2: Pair<D>,
}

/// The normalization and the 2×2 convolution before a stage.
pub(super) struct Downsample<D: Compute> {
    pub norm: Pair<D>,
    pub conv: Pair<D>,
}

/// All parameters.
pub(super) struct Parameters<D: Compute> {
    pub stem: Pair<D>,
    pub stem_norm: Pair<D>,
    /// One for each stage but the first.
    pub downsamples: Vec<Downsample<D>>,
    /// The blocks of each stage.
    pub blocks: Vec<Vec<Block<D>>>,
    pub head: Pair<D>,
}

/// Creates parameters, each weight from its own random stream.
struct Maker<'a, D: Compute> {
    device: &'a D,
    seed: u64,
    /// The initial γ of a block.
    scale: f32,
    /// The number of streams used so far.
    streams: u64,
}

impl<D: Compute> Maker<'_, D> {
    fn linear(&mut self, name: &str, shape: &[usize]) -> Result<Pair<D>> {
        let values = normal(&mut stream(self.seed, Purpose::Init, 0, self.streams, 0), DEVIATION, shape);
        self.streams += 1;
        let weight = Param::new(self.device, format!("{name}.weight"), shape, Role::Weight, &values)?;
        Ok([weight, self.constant(&format!("{name}.bias"), shape[0], Role::Bias, 0.0)?])
    }

    fn norm(&self, name: &str, width: usize) -> Result<Pair<D>> {
        let part = |part: &str, value| self.constant(&format!("{name}.{part}"), width, Role::Norm, value);
        Ok([part("weight", 1.0)?, part("bias", 0.0)?])
    }

    fn constant(&self, name: &str, width: usize, role: Role, value: f32) -> Result<Param<D>> {
        Param::new(self.device, name, &[width], role, &vec![value; width])
    }

    fn block(&mut self, name: &str, stage: Stage, has_convolutions: bool) -> Result<Block<D>> {
        let (width, hidden) = (stage.width, stage.hidden());
        let axes = if has_convolutions { &[1, 1][..] } else { &[] };
        let shape = |outputs: usize, inputs: usize| [&[outputs, inputs], axes].concat();
        Ok(Block {
            scale: self.constant(&format!("{name}.gamma"), width, Role::Norm, self.scale)?,
            depthwise: self.linear(&format!("{name}.conv_dw"), &[width, 1, KERNEL, KERNEL])?,
            norm: self.norm(&format!("{name}.norm"), width)?,
            fc1: self.linear(&format!("{name}.mlp.fc1"), &shape(hidden, width))?,
            fc2: self.linear(&format!("{name}.mlp.fc2"), &shape(width, hidden))?,
        })
    }
}

impl<D: Compute> Parameters<D> {
    /// Creates them with initial weights from the random streams of `seed`, and with `scale` as the γ of blocks.
    pub fn new(device: &D, plan: &Plan, scale: f64, seed: u64) -> Result<Self> {
        let mut make = Maker { device, seed, scale: scale as f32, streams: 0 };
        let first = plan.stages[0].width;
        let stem = make.linear("stem.0", &[first, plan.input.channels, plan.patch, plan.patch])?;
        let stem_norm = make.norm("stem.1", first)?;
        let (mut downsamples, mut blocks, mut inputs) = (Vec::new(), Vec::new(), first);
        for (i, stage) in plan.stages.iter().enumerate() {
            if i > 0 {
                let name = format!("stages.{i}.downsample");
                let norm = make.norm(&format!("{name}.0"), inputs)?;
                let conv = make.linear(&format!("{name}.1"), &[stage.width, inputs, 2, 2])?;
                downsamples.push(Downsample { norm, conv });
            }
            let block = |j| make.block(&format!("stages.{i}.blocks.{j}"), *stage, plan.has_convolutions);
            blocks.push((0..stage.depth).map(block).collect::<Result<_>>()?);
            inputs = stage.width;
        }
        let head = make.norm("head.norm", inputs)?;
        Ok(Parameters { stem, stem_norm, downsamples, blocks, head })
    }

    /// Returns the same parameters, as `f` maps each.
    fn map(&self, f: &impl Fn(&Param<D>) -> Result<Param<D>>) -> Result<Self> {
        let pair = |[a, b]: &Pair<D>| Ok([f(a)?, f(b)?]);
        let block = |b: &Block<D>| {
            Ok(Block {
                scale: f(&b.scale)?,
                depthwise: pair(&b.depthwise)?,
                norm: pair(&b.norm)?,
                fc1: pair(&b.fc1)?,
                fc2: pair(&b.fc2)?,
            })
        };
        let stage = |blocks: &Vec<Block<D>>| blocks.iter().map(block).collect::<Result<_>>();
        let downsample = |d: &Downsample<D>| Ok(Downsample { norm: pair(&d.norm)?, conv: pair(&d.conv)? });
        Ok(Parameters {
            stem: pair(&self.stem)?,
            stem_norm: pair(&self.stem_norm)?,
            downsamples: self.downsamples.iter().map(downsample).collect::<Result<_>>()?,
            blocks: self.blocks.iter().map(stage).collect::<Result<_>>()?,
            head: pair(&self.head)?,
        })
    }

    /// Copies the values into new parameters.
    pub fn duplicate(&self, device: &D) -> Result<Self> {
        self.map(&|p| p.deep_clone(device))
    }

    /// Returns the depth of each of [`Parameters::all`]. What comes before a stage is as deep as its first block.
    pub fn depths(&self) -> LayerDepths {
        let (mut of, mut depth) = (vec![0; 4], 0);
        for (i, blocks) in self.blocks.iter().enumerate() {
            of.extend(vec![depth + 1; if i > 0 { 4 } else { 0 }]);
            for _ in blocks {
                depth += 1;
                of.extend([depth; 9]);
            }
        }
        of.extend([depth + 1; 2]);
        LayerDepths { of, groups: depth + 2 }
    }

    /// Returns them in timm's order.
    pub fn all(&self) -> Vec<Param<D>> {
        let mut all: Vec<&Param<D>> = self.stem.iter().chain(&self.stem_norm).collect();
        for (i, blocks) in self.blocks.iter().enumerate() {
            if let Some(Downsample { norm, conv }) = i.checked_sub(1).map(|i| &self.downsamples[i]) {
                all.extend(norm.iter().chain(conv));
            }
            for b in blocks {
                all.push(&b.scale);
                all.extend(b.depthwise.iter().chain(&b.norm).chain(&b.fc1).chain(&b.fc2));
            }
        }
        all.into_iter().chain(&self.head).cloned().collect()
    }
}
