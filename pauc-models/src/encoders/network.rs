//! A [`Blueprint`] executed on the CPU: an [`Encoder`] whose pass is one operation on dfdx's tape.

use super::Convolutions;
use super::blueprint::{Blueprint, ConvNorm, State};
use super::shards::{self, Shard};
use super::workspace::{Statistics, Workspace};
use dfdx::prelude::{Cpu, HasShape, PutTape, Tape as _, TensorFromVec};
use pauc_kernels::conv::Algorithm;
use pauc_kernels::simd::{CHANNELS, Simd};
use pauc_kernels::threads::awake;
use pauc_traits::encoder::{Images, Layer, LayerDepths};
use pauc_traits::shards::ShardGroup;
use pauc_traits::{Encoder, Error, Param, Pass, Result, Taped};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A convolutional network on the CPU.
pub(crate) struct Network {
    device: Cpu,
    plan: Rc<Blueprint>,
    simd: Simd,
    algorithms: Vec<Algorithm>,
    state: State<Cpu>,
    /// For passes with a backward pass, shared with their tape.
    training: Rc<RefCell<Workspace>>,
    /// For all other passes, so that they do not disturb an outstanding training pass.
    inference: Workspace,
    /// As `training` and `inference`, for each shard if several pass together.
    shards: [Rc<RefCell<Vec<Workspace>>>; 2],
    outstanding: Rc<Cell<bool>>,
    images: Vec<f32>,
}

/// Marks a training pass as outstanding until its backward pass has run or its tape is dropped.
pub(crate) struct Outstanding(Rc<Cell<bool>>);

impl Outstanding {
    /// Marks a pass as outstanding.
    ///
    /// # Errors
    /// If another pass is outstanding.
    pub(crate) fn begin(flag: &Rc<Cell<bool>>) -> Result<Self> {
        if flag.replace(true) {
            return Err(Error::config(
                "a training pass of this encoder is still waiting for its backward pass: run that first, or drop its tape",
            ));
        }
        Ok(Outstanding(flag.clone()))
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Network {
    /// Creates a network with initial weights from the random streams of `seed`.
    pub(crate) fn new(device: &Cpu, plan: Blueprint, choice: Convolutions, seed: u64) -> Result<Self> {
        let simd = Simd::detect().map_err(|e| Error::config(e.to_string()))?;
        let algorithm = |(i, l): (usize, &ConvNorm)| {
            let inputs = l.geometry.inputs;
            // Images keep their number of channels; those of maps are rounded up.
            choice.algorithm(l.geometry, if i == 0 { inputs } else { inputs.next_multiple_of(CHANNELS) })
        };
        let algorithms = plan.layers.iter().enumerate().map(algorithm).collect();
        let state = State::new(device, &plan, seed)?;
        Ok(Self::with_state(device, Rc::new(plan), simd, algorithms, state))
    }

    fn with_state(
        device: &Cpu,
        plan: Rc<Blueprint>,
        simd: Simd,
        algorithms: Vec<Algorithm>,
        state: State<Cpu>,
    ) -> Self {
        let workspace = |keep| Workspace::new(&plan, simd, &algorithms, keep);
        Network {
            device: device.clone(),
            training: Rc::new(RefCell::new(workspace(true))),
            inference: workspace(false),
            plan,
            simd,
            algorithms,
            state,
            shards: Default::default(),
            outstanding: Rc::default(),
            images: Vec::new(),
        }
    }

    /// Returns the workspaces of `count` shards.
    fn workspaces(&self, count: usize, keep: bool) -> Rc<RefCell<Vec<Workspace>>> {
        let all = self.shards[usize::from(!keep)].clone();
        let missing = count.saturating_sub(all.borrow().len());
        let new = (0..missing).map(|_| Workspace::new(&self.plan, self.simd, &self.algorithms, keep));
        all.borrow_mut().extend(new);
        all
    }
}

/// Calls `work` with the shards of a pass.
fn with_shards<T>(
    workspaces: &RefCell<Vec<Workspace>>,
    states: &[State<Cpu>],
    work: impl FnOnce(&mut [Shard<'_>]) -> T,
) -> T {
    let mut workspaces = workspaces.borrow_mut();
    let shards = workspaces.iter_mut().zip(states).map(|(work, state)| Shard { work, state });
    let mut shards: Vec<_> = shards.collect();
    awake(|| work(&mut shards))
}

impl Encoder<Cpu> for Network {
    fn feature_dim(&self) -> usize {
        self.plan.feature_dim()
    }

    fn forward(&mut self, images: Images<Cpu>, pass: Pass) -> Result<Taped<(usize, usize), f32, Cpu>> {
        let (batch, input) = (self.plan.batch_of(*images.shape())?, self.plan.input);
        self.images.resize(batch * input.len(), 0.0);
        images.copy_into(&mut self.images);
        let (plan, state) = (&self.plan, &self.state);
        let shape = (batch, plan.feature_dim());
        let tensor = |features| self.device.try_tensor_from_vec(features, shape).map_err(Error::device);
        let source = (&self.images[..], batch);
        if pass != Pass::Train {
            let statistics = if pass == Pass::Eval { Statistics::Running } else { Statistics::Batch };
            let features = awake(|| self.inference.forward(plan, state, source, statistics))?;
            return Ok(tensor(features)?.put_tape(Default::default()));
        }
        let guard = Outstanding::begin(&self.outstanding)?;
        let features = awake(|| self.training.borrow_mut().forward(plan, state, source, Statistics::Batch))?;
        let features = tensor(features)?;
        let (ghost, workspace) = (features.clone(), self.training.clone());
        let (plan, state) = (self.plan.clone(), self.state.clone());
        let mut tape = pauc_traits::Tape::default();
        tape.add_backward_op(move |gradients| {
            let _guard = guard;
            let d_features = gradients.get_or_alloc_mut(&ghost)?;
            awake(|| workspace.borrow_mut().backward(&plan, &state, d_features));
            Ok(())
        });
        Ok(features.put_tape(tape))
    }

    fn normalizes_shards(&self) -> bool {
        true
    }

    fn forward_shards(
        &mut self,
        images: Images<Cpu>,
        pass: Pass,
        shards: &ShardGroup,
        parameters: &[Vec<Param<Cpu>>],
    ) -> Result<Taped<(usize, usize), f32, Cpu>> {
        let (batch, width) = (self.plan.batch_of(*images.shape())?, self.plan.feature_dim());
        self.images.resize(batch * self.plan.input.len(), 0.0);
        images.copy_into(&mut self.images);
        let take = |shard| shards.take(shard, &self.images, self.plan.input.len());
        let images: Vec<_> = (0..shards.count).map(take).collect();
        let statistics = &self.state.statistics;
        let state = |p: &Vec<_>| State { parameters: p.clone(), statistics: statistics.clone() };
        let states: Vec<_> = parameters.iter().map(state).collect();
        let keeps = pass == Pass::Train;
        let guard = keeps.then(|| Outstanding::begin(&self.outstanding)).transpose()?;
        let (plan, works) = (self.plan.clone(), self.workspaces(shards.count, keeps));
        let of_shards =
            with_shards(&works, &states, |all| shards::forward(&plan, all, &images, &*shards.exchange))?;
        let mut features = vec![0.0; batch * width];
        for (shard, own) in of_shards.iter().enumerate() {
            shards.put(shard, own, width, &mut features);
        }
        let features = self.device.try_tensor_from_vec(features, (batch, width)).map_err(Error::device)?;
        let mut tape = pauc_traits::Tape::default();
        if let Some(guard) = guard {
            let (ghost, shards) = (features.clone(), shards.clone());
            tape.add_backward_op(move |gradients| {
                let _guard = guard;
                let all = gradients.get_or_alloc_mut(&ghost)?;
                let own: Vec<_> = (0..shards.count).map(|shard| shards.take(shard, all, width)).collect();
                with_shards(&works, &states, |all| shards::backward(&plan, all, &own, &*shards.exchange));
                Ok(())
            });
        }
        Ok(features.put_tape(tape))
    }

    fn parameters(&self) -> Vec<Param<Cpu>> {
        self.state.parameters.clone()
    }

    fn depths(&self) -> Option<LayerDepths> {
        Some(self.plan.depths())
    }

    fn statistics(&self) -> Vec<Param<Cpu>> {
        self.state.statistics.clone()
    }

    fn duplicate(&self) -> Result<Box<dyn Encoder<Cpu>>> {
        let state = self.state.duplicate(&self.device)?;
        let (plan, algorithms) = (self.plan.clone(), self.algorithms.clone());
        Ok(Box::new(Self::with_state(&self.device, plan, self.simd, algorithms, state)))
    }

    fn resized(&self, input: pauc_traits::ImageShape) -> Result<Box<dyn Encoder<Cpu>>> {
        let (plan, algorithms) = (Rc::new(self.plan.resized(input)?), self.algorithms.clone());
        Ok(Box::new(Self::with_state(&self.device, plan, self.simd, algorithms, self.state.clone())))
    }

    fn layers(&self) -> Vec<Layer> {
        self.plan.describe(|layer| self.algorithms[layer].to_string())
    }
}
