//! A [`Blueprint`] executed on the CPU: an [`Encoder`] whose pass is one operation on dfdx's tape.

use super::Convolutions;
use super::blueprint::{Blueprint, ConvNorm, State};
use super::passes::Passes;
use super::shards::{self, Shard};
use super::workspace::{Statistics, Workspace};
use dfdx::prelude::{Cpu, HasShape, PutTape, Tape as _, TensorFromVec};
use pauc_kernels::conv::Algorithm;
use pauc_kernels::simd::{CHANNELS, Simd};
use pauc_kernels::threads::awake;
use pauc_traits::encoder::{Images, Layer, LayerDepths};
use pauc_traits::shards::ShardGroup;
use pauc_traits::{Encoder, Error, Param, Pass, Result, Taped};
use std::cell::RefCell;
use std::rc::Rc;

/// A convolutional network on the CPU.
pub(crate) struct Network {
    device: Cpu,
    plan: Rc<Blueprint>,
    simd: Simd,
    algorithms: Vec<Algorithm>,
    state: State<Cpu>,
    passes: Passes<Workspace>,
    /// The workspaces of each shard if several pass together: those that keep values for a backward pass, and others.
    shards: [Rc<RefCell<Vec<Workspace>>>; 2],
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
            passes: Passes::new(device, workspace),
            plan,
            simd,
            algorithms,
            state,
            shards: Default::default(),
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
        self.plan.batch_of(*images.shape())?;
        let statistics = if pass == Pass::Eval { Statistics::Running } else { Statistics::Batch };
        let (plan, state) = (self.plan.clone(), self.state.clone());
        self.passes.run(
            &images,
            pass,
            self.plan.feature_dim(),
            |work, images| work.forward(&self.plan, &self.state, images, statistics),
            move |work, d_features| work.backward(&plan, &state, d_features),
        )
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
        let pixels = self.passes.pixels(&images);
        let take = |shard| shards.take(shard, pixels, self.plan.input.len());
        let images: Vec<_> = (0..shards.count).map(take).collect();
        let statistics = &self.state.statistics;
        let state = |p: &Vec<_>| State { parameters: p.clone(), statistics: statistics.clone() };
        let states: Vec<_> = parameters.iter().map(state).collect();
        let keeps = pass == Pass::Train;
        let guard = keeps.then(|| self.passes.begin()).transpose()?;
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
