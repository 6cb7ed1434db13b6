//! The initial weights of a vision transformer.

use super::block::Block;
use super::{Plan, Pool, Transformer};
use crate::init::{normal, uniform};
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, Stream, stream};
use pauc_traits::{Compute, Param, Result};

/// Creates the parameters in a fixed order, each from its own random stream.
pub(super) struct Maker<'a, D: Compute> {
    device: &'a D,
    seed: u64,
    /// The number of streams used so far.
    streams: u64,
}

impl<'a, D: Compute> Maker<'a, D> {
    pub(super) fn new(device: &'a D, seed: u64) -> Self {
        Maker { device, seed, streams: 0 }
    }

    /// Creates a network with initial weights.
    pub(super) fn network(mut self, plan: Plan) -> Result<Transformer<D>> {
        let width = plan.width;
        let is_classed = plan.pool == Pool::Class;
        let class_token = is_classed.then(|| self.normal("cls_token", &[1, 1, width])).transpose()?;
        let registers = match plan.registers {
            0 => None,
            count => Some(self.normal("reg_token", &[1, count, width])?),
        };
        let positions = self.normal("pos_embed", &[1, plan.positions(), width])?;
        let embedding = self.embedding(&plan)?;
        let blocks = (0..plan.depth).map(|i| self.block(i, &plan)).collect::<Result<_>>()?;
        let norm = self.norm(if is_classed { "norm" } else { "fc_norm" }, width)?;
        let device = self.device.clone();
        Ok(Transformer {
            device,
            plan,
            class_token,
            registers,
            positions,
            resampling: None,
            embedding,
            blocks,
            norm,
        })
    }

    /// Creates the projection of patches, a convolution.
    fn embedding(&mut self, plan: &Plan) -> Result<[Param<D>; 2]> {
        let bound = 1.0 / (plan.pixels() as f32).sqrt();
        let mut projection = |name: &str, shape: &[usize], role| {
            let values = uniform(&mut self.stream(), bound, shape);
            Param::new(self.device, format!("patch_embed.proj.{name}"), shape, role, &values)
        };
        let kernel = [plan.width, plan.input.channels, plan.patch, plan.patch];
        Ok([projection("weight", &kernel, Role::Weight)?, projection("bias", &[plan.width], Role::Bias)?])
    }

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

    /// Creates LayerScale.
    fn scale(&self, name: &str, plan: &Plan) -> Result<Option<Param<D>>> {
        let make = |initial| {
            let values = vec![initial; plan.width];
            Param::new(self.device, format!("{name}.gamma"), &[plan.width], Role::Norm, &values)
        };
        plan.layer_scale.map(make).transpose()
    }

    fn block(&mut self, i: usize, plan: &Plan) -> Result<Block<D>> {
        let (width, hidden) = (plan.width, plan.hidden);
        Ok(Block {
            norm1: self.norm(&format!("blocks.{i}.norm1"), width)?,
            qkv: self.linear(&format!("blocks.{i}.attn.qkv"), width, 3 * width)?,
            projection: self.linear(&format!("blocks.{i}.attn.proj"), width, width)?,
            scale1: self.scale(&format!("blocks.{i}.ls1"), plan)?,
            norm2: self.norm(&format!("blocks.{i}.norm2"), width)?,
            fc1: self.linear(&format!("blocks.{i}.mlp.fc1"), width, plan.fc1_outputs())?,
            fc2: self.linear(&format!("blocks.{i}.mlp.fc2"), hidden, width)?,
            scale2: self.scale(&format!("blocks.{i}.ls2"), plan)?,
        })
    }
}
