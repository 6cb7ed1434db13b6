//! Convolutional networks on CUDA: a [`Blueprint`] as an encoder.

use super::schedule::Keep;
use super::workspace::Workspace;
use crate::encoders::blueprint::{Blueprint, State};
use crate::encoders::passes::Outstanding;
use crate::encoders::workspace::Statistics;
use dfdx::prelude::{Cuda, HasShape, PutTape, Tape as _};
use pauc_cuda::Context;
use pauc_cuda::tensor::{self, Contiguous};
use pauc_traits::cuda::OnDevice;
use pauc_traits::encoder::{BuildOptions, DeviceOptions, Images, Layer, LayerDepths};
use pauc_traits::{Encoder, ImageShape, Param, Pass, Result, Taped};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A convolutional network on CUDA.
pub(super) struct Network {
    device: Cuda,
    plan: Rc<Blueprint>,
    options: DeviceOptions,
    state: State<Cuda>,
    /// For passes with a backward pass, shared with their tape.
    training: Rc<RefCell<Workspace>>,
    /// For all other passes, so that they do not disturb an outstanding training pass.
    inference: Workspace,
    outstanding: Rc<Cell<bool>>,
}

impl Network {
    /// Creates a network with initial weights from the random streams of the seed.
    pub(super) fn new(device: &Cuda, plan: Blueprint, options: BuildOptions) -> Result<Self> {
        let state = State::new(device, &plan, options.seed)?;
        Self::with_state(device, Rc::new(plan), options.device, state)
    }

    fn with_state(
        device: &Cuda,
        plan: Rc<Blueprint>,
        options: DeviceOptions,
        state: State<Cuda>,
    ) -> Result<Self> {
        let on = Context::of(device).on_device()?;
        let workspace = |keep| Workspace::new(&on, &plan, keep, options.precision).on_device();
        let training = workspace(if options.recompute { Keep::Sources } else { Keep::All })?;
        Ok(Network {
            device: device.clone(),
            training: Rc::new(RefCell::new(training)),
            inference: workspace(Keep::Nothing)?,
            plan,
            options,
            state,
            outstanding: Rc::default(),
        })
    }
}

impl Encoder<Cuda> for Network {
    fn feature_dim(&self) -> usize {
        self.plan.feature_dim()
    }

    fn forward(&mut self, images: Images<Cuda>, pass: Pass) -> Result<Taped<(usize, usize), f32, Cuda>> {
        let batch = self.plan.batch_of(*images.shape())?;
        let images = Contiguous::new(images).on_device()?;
        let (plan, state, source) = (&self.plan, &self.state, (images.view(), batch));
        let shape = (batch, plan.feature_dim());
        if pass != Pass::Train {
            let statistics = if pass == Pass::Eval { Statistics::Running } else { Statistics::Batch };
            let features = self.inference.forward(plan, state, source, statistics).on_device()?;
            let features = tensor::to_tensor(&self.device, features, shape).on_device()?;
            return Ok(features.put_tape(Default::default()));
        }
        let guard = Outstanding::begin(&self.outstanding)?;
        let mut training = self.training.borrow_mut();
        let features = training.forward(plan, state, source, Statistics::Batch).on_device()?;
        let features = tensor::to_tensor(&self.device, features, shape).on_device()?;
        let (ghost, workspace) = (features.clone(), self.training.clone());
        let (plan, state) = (self.plan.clone(), self.state.clone());
        let mut tape = pauc_traits::Tape::default();
        tape.add_backward_op(move |gradients| {
            let _guard = guard;
            let gradient = tensor::gradient(gradients.get_or_alloc_mut(&ghost)?);
            Ok(workspace.borrow_mut().backward(&plan, &state, (gradient, batch))?)
        });
        Ok(features.put_tape(tape))
    }

    fn parameters(&self) -> Vec<Param<Cuda>> {
        self.state.parameters.clone()
    }

    fn depths(&self) -> Option<LayerDepths> {
        Some(self.plan.depths())
    }

    fn statistics(&self) -> Vec<Param<Cuda>> {
        self.state.statistics.clone()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<Cuda>>> {
        let state = self.state.duplicate(&self.device)?;
        Ok(Box::new(Self::with_state(&self.device, self.plan.clone(), self.options, state)?))
    }

    fn resized(&self, input: ImageShape) -> Result<Box<dyn Encoder<Cuda>>> {
        let plan = Rc::new(self.plan.resized(input)?);
        Ok(Box::new(Self::with_state(&self.device, plan, self.options, self.state.clone())?))
    }

    fn has_fixed_order(&self) -> bool {
        true
    }

    fn memory(&self, batch: usize) -> Option<usize> {
        Some(self.training.borrow().bytes(&self.plan, batch))
    }

    fn layers(&self) -> Vec<Layer> {
        self.plan.describe(|_| "cuDNN".to_string())
    }
}
