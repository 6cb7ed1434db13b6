//! What a device adds to [`Compute`] for whole networks to be trained on it.

use crate::heads::{Head, HeadConfig, MlpHead};
use dfdx::prelude::Cpu;
use pauc_traits::{Compute, Error, Result};

/// A device that networks can be trained on.
pub trait NetworkDevice: Compute {
    /// Builds a head for features of width `input`. Initial weights come from the streams of `seed`; heads that are
    /// to differ have different `network` numbers.
    ///
    /// # Errors
    /// If the configuration makes no sense, or the device fails.
    fn head(&self, config: &HeadConfig, input: usize, seed: u64, network: u64)
    -> Result<Box<dyn Head<Self>>>;

    /// `to ← momentum·to + (1 − momentum)·from`.
    ///
    /// # Errors
    /// If the lengths differ, or the device fails.
    fn moving_average(&self, to: &mut Self::Buffer, from: &Self::Buffer, momentum: f64) -> Result<()>;

    /// The sum of the squares of a buffer.
    fn squared_norm(&self, buffer: &Self::Buffer) -> Result<f64>;

    /// Multiplies a buffer by a factor.
    fn scale(&self, buffer: &mut Self::Buffer, factor: f64) -> Result<()>;
}

impl NetworkDevice for Cpu {
    fn head(
        &self,
        config: &HeadConfig,
        input: usize,
        seed: u64,
        network: u64,
    ) -> Result<Box<dyn Head<Self>>> {
        Ok(match config {
            HeadConfig::Identity => Box::new(crate::heads::Identity::new(input)),
            HeadConfig::Mlp(mlp) => Box::new(MlpHead::new(self, mlp, input, seed, network)?),
        })
    }

    fn moving_average(&self, to: &mut Vec<f32>, from: &Vec<f32>, momentum: f64) -> Result<()> {
        if to.len() != from.len() {
            let message = format!("{} values cannot follow {}", to.len(), from.len());
            return Err(Error::shape("moving average", message));
        }
        pauc_kernels::optim::average(to, from, momentum);
        Ok(())
    }

    fn squared_norm(&self, buffer: &Vec<f32>) -> Result<f64> {
        Ok(pauc_kernels::optim::squared_norm(buffer))
    }

    fn scale(&self, buffer: &mut Vec<f32>, factor: f64) -> Result<()> {
        pauc_kernels::optim::scale(buffer, factor);
        Ok(())
    }
}
