//! Networks on CUDA. Each is one operation on dfdx's tape, with its own memory for parameters, activations
//! and workspace on dfdx's device and stream.
//!
//! | module | contents |
//! |---|---|
//! | `convolutional` | convolutional networks: a [`Blueprint`] as an encoder |
//! | `schedule` | their passes as operations on slots of memory |
//! | `workspace` | the memory, and the kernels of the operations |
//! | `transformer` | the vision transformer |
//! | `peers` | transfers between the GPUs of several ranks |
//! | `perceptron` | linear layers with batch normalization and ReLU: heads, and the perceptron on pixels |

mod convolutional;
mod peers;
mod perceptron;
mod schedule;
mod transformer;
mod workspace;

use crate::device::{GatherMessages, Moving, NetworkDevice, normalised};
use crate::encoders::Convolutions;
use crate::encoders::blueprint::Blueprint;
use crate::encoders_plain::Transformer;
use crate::heads::{Head, HeadConfig, Identity, blocks};
use dfdx::prelude::{Cuda, Synchronize};
use pauc_cuda::events::Events;
use pauc_cuda::matmul::MatrixRef;
use pauc_cuda::nccl::Peers;
use pauc_cuda::{Buffer, Context, Precision, ViewMut, elementwise, matmul, multi_tensor, tensor, upload};
use pauc_kernels::optim::{AdamW, Sgd};
use pauc_traits::cuda::OnDevice;
use pauc_traits::encoder::{BuildOptions, DeviceOptions, Images};
use pauc_traits::ops::Matrix;
use pauc_traits::trace::TraceClock;
use pauc_traits::{Encoder, Error, ImageShape, Param, Pixels, Result};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// CUDA events as a clock. If the driver fails to record an event, times are zero.
struct EventClock(Events);

impl TraceClock for EventClock {
    fn mark(&self) -> u64 {
        self.0.mark().unwrap_or(u64::MAX)
    }

    fn between(&self, from: u64, to: u64) -> Duration {
        self.0.between(from, to).unwrap_or_default()
    }
}

/// The CUDA context of a network and the precision of its products.
#[derive(Clone, Debug)]
struct NetworkContext {
    on: Rc<Context>,
    precision: Precision,
}

impl NetworkContext {
    fn new(device: &Cuda, precision: Precision) -> Result<Self> {
        Ok(NetworkContext { on: Context::of(device).on_device()?, precision })
    }

    /// See [`matmul::rounded_product`].
    fn product(
        &self,
        a: MatrixRef<'_>,
        b: MatrixRef<'_>,
        beta: f32,
        c: ViewMut<'_>,
    ) -> pauc_cuda::Result<()> {
        matmul::rounded_product(&self.on, self.precision, a, b, beta, c)
    }

    /// See [`matmul::batched_product`].
    fn batched_product(
        &self,
        count: usize,
        a: MatrixRef<'_>,
        b: MatrixRef<'_>,
        beta: f32,
        c: ViewMut<'_>,
    ) -> pauc_cuda::Result<()> {
        matmul::batched_product(&self.on, self.precision, count, (a, b), beta, c)
    }
}

impl NetworkDevice for Cuda {
    const DETERMINISTIC_REDUCTIONS: bool = false;
    const HAS_OWN_MEMORY: bool = true;
    const NORMALIZES_IMAGES: bool = true;
    type Peers = Peers;

    fn connect(&self, rank: usize, gather: &GatherMessages<'_>) -> Result<Option<Peers>> {
        peers::connect(self, rank, gather)
    }

    fn sum_over_peers(&self, peers: &Peers, buffers: &mut [Buffer]) -> Result<()> {
        peers.sum(buffers).on_device()
    }

    fn images(
        &self,
        views: &[&Pixels],
        range: Range<usize>,
        shape: (usize, usize, usize, usize),
    ) -> Result<Images<Self>> {
        let mut bytes = Vec::with_capacity(views.len());
        for view in views {
            let Pixels::Bytes { values, normal } = view else {
                return Ok(normalised(self, views, range, shape));
            };
            bytes.push((&values[range.clone()], &**normal));
        }
        upload::images(self, &bytes, shape).on_device()
    }

    fn clock(&self) -> Option<Rc<dyn TraceClock>> {
        let context = Context::of(self).ok()?;
        Some(Rc::new(EventClock(Events::new(&context))))
    }

    fn product_rate(&self, precision: Precision) -> Result<f64> {
        Context::of(self).and_then(|on| matmul::product_rate(&on, precision)).on_device()
    }

    fn replace_rows(&self, matrix: &Matrix<f32, Self>, from: usize, rows: &[f32]) -> Result<()> {
        tensor::replace_rows(self, matrix, from, rows).on_device()
    }

    fn rows(&self, matrix: &Matrix<f32, Self>, range: Range<usize>) -> Result<Matrix<f32, Self>> {
        tensor::rows(self, matrix, range).on_device()
    }

    fn stacked(
        &self,
        parts: &[Option<&Matrix<f32, Self>>],
        shape: (usize, usize),
    ) -> Result<Matrix<f32, Self>> {
        tensor::stacked(self, parts, shape).on_device()
    }

    fn finish(&self) -> Result<()> {
        self.try_synchronize().map_err(Error::device)
    }

    fn head(
        &self,
        config: &HeadConfig,
        input: usize,
        network: u64,
        options: BuildOptions,
    ) -> Result<Box<dyn Head<Self>>> {
        Ok(match config {
            HeadConfig::Identity => Box::new(Identity::new(input)),
            HeadConfig::Mlp(mlp) => {
                let blocks = blocks(self, mlp, input, options.seed, network)?;
                Box::new(perceptron::MlpHead::new(self, blocks, options.device.precision)?)
            }
        })
    }

    fn convolutional(
        &self,
        plan: Blueprint,
        _: Convolutions,
        options: BuildOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        if plan.is_pre_activated() {
            return Err(Error::config(
                "pre-activation networks (WideResNet) run on the CPU only: use `--device cpu`, or take another encoder",
            ));
        }
        Ok(Box::new(convolutional::Network::new(self, plan, options)?))
    }

    fn perceptron(
        &self,
        input: ImageShape,
        layers: Vec<[Param<Self>; 2]>,
        options: DeviceOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(perceptron::Perceptron::new(self, input, layers, options.precision)?))
    }

    fn transformer(
        &self,
        network: Transformer<Self>,
        options: DeviceOptions,
    ) -> Result<Box<dyn Encoder<Self>>> {
        if !transformer::is_fused(&network.plan) {
            return Ok(Box::new(network));
        }
        Ok(Box::new(transformer::VisionTransformer::new(network, options.precision)?))
    }

    fn moving_averages(&self, pairs: &mut [(&mut Buffer, &Buffer)], momentum: f64) -> Result<()> {
        // Subtract in f64 and then round: 1 − 0.9999 in f32 has a relative error of 6e-4.
        multi_tensor::moving_averages(&*Context::of(self).on_device()?, pairs, (1.0 - momentum) as f32)
            .on_device()
    }

    fn squared_norms(&self, buffers: &[&Buffer]) -> Result<Vec<f64>> {
        multi_tensor::squared_norms(&*Context::of(self).on_device()?, buffers).on_device()
    }

    fn sgd(&self, all: &mut [Moving<'_, Buffer, 1>], constants: &[Sgd]) -> Result<()> {
        multi_tensor::sgd(&*Context::of(self).on_device()?, all, constants).on_device()
    }

    fn adamw(&self, all: &mut [Moving<'_, Buffer, 2>], constants: &[AdamW]) -> Result<()> {
        multi_tensor::adamw(&*Context::of(self).on_device()?, all, constants).on_device()
    }

    fn scale(&self, buffer: &mut Buffer, factor: f64) -> Result<()> {
        elementwise::scale(buffer, factor as f32).on_device()
    }
}
