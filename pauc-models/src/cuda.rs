//! Networks on CUDA: each is one operation on dfdx's tape, with parameters, activations and workspace in memory of its
//! own on dfdx's device and stream.
//!
//! | module | what lives there |
//! |---|---|
//! | `convolutional` | a [`Blueprint`] at work |
//! | `layout` | which of its maps and gradients are kept, and how much memory that takes |
//! | `workspace` | its maps and gradients, and the passes over them |
//! | `transformer` | the vision transformer |
//! | `perceptron` | linear layers with batch normalisation and ReLU: heads, and the perceptron on pixels |

mod convolutional;
mod layout;
mod perceptron;
mod transformer;
mod workspace;

use crate::device::{DeviceOptions, Moving, NetworkDevice, Precision, normalised};
use crate::encoders::Convolutions;
use crate::encoders::blueprint::Blueprint;
use crate::encoders_plain::Transformer;
use crate::heads::{Head, HeadConfig, Identity, blocks};
use dfdx::prelude::{Cuda, Synchronize};
use pauc_cuda::conv::Math;
use pauc_cuda::events::Events;
use pauc_cuda::{Buffer, Context, elementwise, many, memory, rows, upload};
use pauc_kernels::optim::{AdamW, Sgd};
use pauc_traits::cuda::OnDevice;
use pauc_traits::encoder::Images;
use pauc_traits::ops::Matrix;
use pauc_traits::profile::Clock;
use pauc_traits::{Encoder, Error, ImageShape, Param, Pixels, Result};
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Events as a clock. A driver that gives no event gives no times: they are shown as zero.
struct EventClock(Events);

impl Clock for EventClock {
    fn mark(&self) -> u64 {
        self.0.mark().unwrap_or(u64::MAX)
    }

    fn between(&self, from: u64, to: u64) -> Duration {
        self.0.between(from, to).unwrap_or_default()
    }
}

thread_local! {
    /// What [`NetworkDevice::configure`] said last.
    static RECOMPUTE: Cell<bool> = const { Cell::new(false) };
}

impl NetworkDevice for Cuda {
    const TERMS_REPEAT: bool = false;
    const KEEPS_ROWS: bool = true;
    const NORMALISES: bool = true;

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

    fn configure(&self, options: DeviceOptions) -> Result<()> {
        RECOMPUTE.set(options.recompute);
        let math = match options.precision {
            Precision::F32 => Math::F32,
            Precision::Tf32 => Math::Tf32,
            Precision::Bf16 => Math::Bf16,
        };
        Context::of(self).and_then(|c| c.set_math(math)).on_device()
    }

    fn clock(&self) -> Option<Rc<dyn Clock>> {
        let context = Context::of(self).ok()?;
        Some(Rc::new(EventClock(Events::new(&context))))
    }

    fn product_rate(&self) -> Result<f64> {
        Context::of(self).and_then(|on| rows::product_rate(&on)).on_device()
    }

    fn replace_rows(&self, of: &Matrix<f32, Self>, from: usize, rows: &[f32]) -> Result<()> {
        memory::replace_rows(self, of, from, rows).on_device()
    }

    fn rows(&self, of: &Matrix<f32, Self>, range: Range<usize>) -> Result<Matrix<f32, Self>> {
        memory::rows(self, of, range).on_device()
    }

    fn stacked(
        &self,
        parts: &[Option<&Matrix<f32, Self>>],
        shape: (usize, usize),
    ) -> Result<Matrix<f32, Self>> {
        memory::stacked(self, parts, shape).on_device()
    }

    fn finish(&self) -> Result<()> {
        self.try_synchronize().map_err(Error::device)
    }

    fn head(
        &self,
        config: &HeadConfig,
        input: usize,
        seed: u64,
        network: u64,
    ) -> Result<Box<dyn Head<Self>>> {
        Ok(match config {
            HeadConfig::Identity => Box::new(Identity::new(input)),
            HeadConfig::Mlp(mlp) => {
                Box::new(perceptron::MlpHead::new(self, blocks(self, mlp, input, seed, network)?)?)
            }
        })
    }

    fn convolutional(&self, plan: Blueprint, _: Convolutions, seed: u64) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(convolutional::Network::new(self, plan, RECOMPUTE.get(), seed)?))
    }

    fn perceptron(&self, input: ImageShape, layers: Vec<[Param<Self>; 2]>) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(perceptron::Perceptron::new(self, input, layers)?))
    }

    fn transformer(&self, network: Transformer<Self>) -> Result<Box<dyn Encoder<Self>>> {
        Ok(Box::new(transformer::VisionTransformer::new(network)?))
    }

    fn moving_averages(&self, pairs: &mut [(&mut Buffer, &Buffer)], momentum: f64) -> Result<()> {
        // The rate is rounded from the difference in f64: 1 − 0.9999 in f32 is off by 6e-4 of itself.
        many::averages(&*Context::of(self).on_device()?, pairs, (1.0 - momentum) as f32).on_device()
    }

    fn squared_norms(&self, buffers: &[&Buffer]) -> Result<Vec<f64>> {
        many::squared_norms(&*Context::of(self).on_device()?, buffers).on_device()
    }

    fn sgd(&self, all: &mut [Moving<'_, Buffer, 1>], constants: &[Sgd]) -> Result<()> {
        many::sgd(&*Context::of(self).on_device()?, all, constants).on_device()
    }

    fn adamw(&self, all: &mut [Moving<'_, Buffer, 2>], constants: &[AdamW]) -> Result<()> {
        many::adamw(&*Context::of(self).on_device()?, all, constants).on_device()
    }

    fn scale(&self, buffer: &mut Buffer, factor: f64) -> Result<()> {
        elementwise::scale(buffer, factor as f32).on_device()
    }
}
