//! The operations beyond [`Compute`] that a device needs to train whole networks.

use crate::encoders::blueprint::Blueprint;
use crate::encoders::{self, Convolutions, conv_next};
use crate::encoders_plain::Transformer;
use crate::heads::{Head, HeadConfig, MlpHead};
use dfdx::prelude::Cpu;
use pauc_kernels::gemm::{Strides, gemm};
use pauc_kernels::optim;
use pauc_kernels::precision::Precision;
use pauc_traits::encoder::{BuildOptions, DeviceOptions, Images};
use pauc_traits::ops::Matrix;
use pauc_traits::trace::TraceClock;
use pauc_traits::{Compute, Encoder, Error, ImageShape, Param, Pixels, Result, ops};
use std::convert::Infallible;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

/// A parameter in an optimizer step: its values, its gradient, and the optimizer's buffers.
pub type Moving<'a, B, const N: usize> = (&'a mut B, &'a B, [&'a mut B; N]);

/// A function that gathers the messages of all ranks.
pub type GatherMessages<'a> = dyn Fn(&[u8]) -> Result<Vec<Vec<u8>>> + 'a;

/// As [`NetworkDevice::images`], with normalization on the host.
pub(crate) fn normalised<D: Compute>(
    device: &D,
    views: &[&Pixels],
    range: Range<usize>,
    shape: (usize, usize, usize, usize),
) -> Images<D> {
    let mut all = Vec::with_capacity(views.len() * range.len());
    views.iter().for_each(|v| all.extend_from_slice(&v.numbers(range.clone())));
    ops::constant(device, all, shape)
}

/// A device that networks can be trained on.
pub trait NetworkDevice: Compute {
    /// Whether dfdx's reductions have a fixed order on this device, so that terms are bitwise reproducible.
    const DETERMINISTIC_REDUCTIONS: bool;

    /// Returns a clock of the device's own work, if the device is asynchronous.
    fn clock(&self) -> Option<Rc<dyn TraceClock>> {
        None
    }

    /// Direct connections to the devices of the other ranks.
    type Peers: std::fmt::Debug;

    /// Connects the devices of all ranks directly, or returns `None` on all ranks, as by default. Without connections,
    /// numbers pass through the memory of the host. `gather` returns the messages of all ranks, in their order, given
    /// that of this `rank`.
    ///
    /// # Errors
    /// Those of `gather`, or if the device fails.
    fn connect(&self, _rank: usize, _gather: &GatherMessages<'_>) -> Result<Option<Self::Peers>> {
        Ok(None)
    }

    /// Sums buffers over all ranks in a binary tree over the ranks, with the bits of a sum on the host.
    ///
    /// # Errors
    /// If the device or another rank fails.
    fn sum_over_peers(&self, peers: &Self::Peers, buffers: &mut [Self::Buffer]) -> Result<()>;

    /// Whether the device has its own memory, where matrices that change little between steps are kept.
    const HAS_OWN_MEMORY: bool;

    /// Replaces rows of a matrix without gradient in place, if the device [has its own
    /// memory](NetworkDevice::HAS_OWN_MEMORY). All holders of the matrix see the new rows.
    ///
    /// # Shapes
    /// matrix (M, D), rows: any number of rows of D that end within M
    ///
    /// # Errors
    /// If the rows exceed the matrix, the device has no memory of its own, or it fails.
    fn replace_rows(&self, _matrix: &Matrix<f32, Self>, _from: usize, _rows: &[f32]) -> Result<()> {
        Err(Error::Device(format!("{} cannot replace rows in place", self.name())))
    }

    /// Returns some rows of a matrix in device memory, if the device [has its
    /// own](NetworkDevice::HAS_OWN_MEMORY).
    ///
    /// # Errors
    /// If the range exceeds the rows, the device has no memory of its own, or it fails.
    fn rows(&self, _matrix: &Matrix<f32, Self>, _range: Range<usize>) -> Result<Matrix<f32, Self>> {
        Err(Error::Device(format!("{} has no memory of its own for rows", self.name())))
    }

    /// Stacks matrices of one shape, with zeros for absent ones, if the device [has its own
    /// memory](NetworkDevice::HAS_OWN_MEMORY).
    ///
    /// # Errors
    /// If a shape differs, the device has no memory of its own, or it fails.
    fn stacked(
        &self,
        _parts: &[Option<&Matrix<f32, Self>>],
        _shape: (usize, usize),
    ) -> Result<Matrix<f32, Self>> {
        Err(Error::Device(format!("{} has no memory of its own for rows", self.name())))
    }

    /// Whether the device normalizes images itself. They are then uploaded as 8-bit values, which also saves
    /// CPU time.
    const NORMALIZES_IMAGES: bool;

    /// Returns the same range of images from several views, in the layout of an encoder's input.
    ///
    /// # Shapes
    /// V views of N·H·W·C values each from `range` on → `shape` (V·N, H, W, C)
    ///
    /// # Errors
    /// If the device fails.
    fn images(
        &self,
        views: &[&Pixels],
        range: Range<usize>,
        shape: (usize, usize, usize, usize),
    ) -> Result<Images<Self>> {
        Ok(normalised(self, views, range, shape))
    }

    /// Measures the floating-point operations per second of a large matrix product, the best of several, with
    /// operands in the given precision. On the CPU, this is the rate of one thread.
    ///
    /// # Errors
    /// If the device fails.
    fn product_rate(&self, precision: Precision) -> Result<f64>;

    /// Waits for all launched work, for timing.
    ///
    /// # Errors
    /// If that work failed.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    /// Builds a head for features of width `input`. Initial weights come from the random streams of
    /// `options.seed` for `network`, which differs between projector and predictor.
    ///
    /// # Errors
    /// If the configuration is invalid, or the device fails.
    fn head(
        &self,
        config: &HeadConfig,
        input: usize,
        network: u64,
        options: BuildOptions,
    ) -> Result<Box<dyn Head<Self>>>;

    /// Builds a convolutional network with initial weights from the random streams of `options.seed`.
    /// `choice` selects the convolution algorithm on the CPU.
    ///
    /// # Errors
    /// If the device fails.
    fn convolutional(
        &self,
        plan: Blueprint,
        choice: Convolutions,
        options: BuildOptions,
    ) -> Result<Box<dyn Encoder<Self>>>;

    /// Builds a ConvNeXt with initial weights from the random streams of `options.seed`, and with `scale` as the γ
    /// of its blocks.
    ///
    /// # Errors
    /// If the device has none (the default), or fails.
    fn conv_next(
        &self,
        _plan: conv_next::Plan,
        _scale: f64,
        _options: BuildOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        Err(Error::config("ConvNeXt runs on the CPU only: use `--device cpu`, or take another encoder"))
    }

    /// Builds a perceptron on pixels from the weights and biases of its layers. A ReLU follows each layer.
    ///
    /// # Errors
    /// If the device fails.
    fn perceptron(
        &self,
        input: ImageShape,
        layers: Vec<[Param<Self>; 2]>,
        _options: DeviceOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(crate::encoders_plain::Perceptron::new(self, input, layers)))
    }

    /// Turns a vision transformer in plain operations into this device's encoder.
    ///
    /// # Errors
    /// If the device fails.
    fn transformer(
        &self,
        network: Transformer<Self>,
        _options: DeviceOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(network))
    }

    /// Computes `to ← momentum·to + (1 − momentum)·from` for each pair.
    ///
    /// # Errors
    /// If the lengths of a pair differ, or the device fails.
    fn moving_averages(&self, pairs: &mut [(&mut Self::Buffer, &Self::Buffer)], momentum: f64) -> Result<()>;

    /// Returns the sum of squares of each buffer.
    ///
    /// # Errors
    /// If the device fails.
    fn squared_norms(&self, buffers: &[&Self::Buffer]) -> Result<Vec<f64>>;

    /// Applies a step of [`crate::optimizers::Sgd`] or [`crate::optimizers::Lars`] to each parameter, with
    /// its velocity.
    ///
    /// # Errors
    /// If lengths differ, or the device fails.
    fn sgd(&self, all: &mut [Moving<'_, Self::Buffer, 1>], constants: &[optim::Sgd]) -> Result<()>;

    /// Applies a step of [`crate::optimizers::AdamW`] to each parameter, with its first and second moment
    /// estimates.
    ///
    /// # Errors
    /// If lengths differ, or the device fails.
    fn adamw(&self, all: &mut [Moving<'_, Self::Buffer, 2>], constants: &[optim::AdamW]) -> Result<()>;

    /// Multiplies a buffer by a factor.
    fn scale(&self, buffer: &mut Self::Buffer, factor: f64) -> Result<()>;
}

impl NetworkDevice for Cpu {
    const DETERMINISTIC_REDUCTIONS: bool = true;
    const HAS_OWN_MEMORY: bool = false;
    const NORMALIZES_IMAGES: bool = false;
    type Peers = Infallible;

    fn sum_over_peers(&self, peers: &Infallible, _: &mut [Vec<f32>]) -> Result<()> {
        match *peers {}
    }

    fn product_rate(&self, _: Precision) -> Result<f64> {
        let n = 1024;
        let (a, b) = (vec![1.0f32; n * n], vec![0.5f32; n * n]);
        let mut c = vec![0.0f32; n * n];
        let layout = Strides::row_major(n);
        let least = (0..5)
            .map(|_| {
                let start = Instant::now();
                gemm((n, n, n), 1.0, (&a, layout), (&b, layout), 0.0, (&mut c, layout));
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        Ok(2.0 * (n as f64).powi(3) / least)
    }

    fn head(
        &self,
        config: &HeadConfig,
        input: usize,
        network: u64,
        options: BuildOptions,
    ) -> Result<Box<dyn Head<Self>>> {
        Ok(match config {
            HeadConfig::Identity => Box::new(crate::heads::Identity::new(input)),
            HeadConfig::Mlp(mlp) => Box::new(MlpHead::new(self, mlp, input, options.seed, network)?),
        })
    }

    fn convolutional(
        &self,
        plan: Blueprint,
        choice: Convolutions,
        options: BuildOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(encoders::network::Network::new(self, plan, choice, options.seed)?))
    }

    fn conv_next(
        &self,
        plan: conv_next::Plan,
        scale: f64,
        options: BuildOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(conv_next::Network::new(self, plan, scale, options.seed)?))
    }

    fn transformer(&self, network: Transformer<Self>, _: DeviceOptions) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(encoders::transformer::Network::new(network)?))
    }

    fn moving_averages(&self, pairs: &mut [(&mut Vec<f32>, &Vec<f32>)], momentum: f64) -> Result<()> {
        for (to, from) in pairs {
            if to.len() != from.len() {
                let message = format!("{} values; expected {}", to.len(), from.len());
                return Err(Error::shape("moving average", message));
            }
            optim::average(to, from, momentum);
        }
        Ok(())
    }

    fn squared_norms(&self, buffers: &[&Vec<f32>]) -> Result<Vec<f64>> {
        Ok(buffers.iter().map(|b| optim::squared_norm(b)).collect())
    }

    fn sgd(&self, all: &mut [Moving<'_, Vec<f32>, 1>], constants: &[optim::Sgd]) -> Result<()> {
        for ((w, g, [v]), step) in all.iter_mut().zip(constants) {
            optim::sgd(w, g, v, *step);
        }
        Ok(())
    }

    fn adamw(&self, all: &mut [Moving<'_, Vec<f32>, 2>], constants: &[optim::AdamW]) -> Result<()> {
        for ((w, g, [m, s]), step) in all.iter_mut().zip(constants) {
            optim::adamw(w, g, m, s, *step);
        }
        Ok(())
    }

    fn scale(&self, buffer: &mut Vec<f32>, factor: f64) -> Result<()> {
        optim::scale(buffer, factor);
        Ok(())
    }
}
