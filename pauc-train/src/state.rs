//! Everything that the next step depends on; a checkpoint stores exactly this.

use crate::plan::Plan;
use crate::progress::RunProgress;
use crate::prototypes::Prototypes;
use crate::queue::KeyQueue;
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_traits::optimizer::State;
use pauc_traits::param::Role;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::schedule::{Clock, Horizon};
use pauc_traits::term::{After, Init, TermParameter};
use pauc_traits::{Param, Result};
use rand::Rng;
use rand_distr::StandardNormal;

/// The state of a run between two steps.
pub struct TrainState<D: NetworkDevice> {
    /// The online network.
    pub network: Network<D>,
    /// The momentum network, if the recipe has one.
    pub momentum: Option<Network<D>>,
    /// The matrices that terms learn or remember, in the order of the recipe.
    pub term_matrices: Vec<TermMatrix<D>>,
    /// The optimizer's buffers, one set for each of [`TrainState::parameters`].
    pub optimizer: State<D>,
    /// Past keys, if the recipe has a queue.
    pub queue: Option<KeyQueue>,
    /// The current clusterings; `None` before the first one.
    pub prototypes: Option<Prototypes<D>>,
    /// The step of the last clustering.
    pub last_clustering: Option<u64>,
    /// Steps taken.
    pub step: u64,
    /// The progress of the run besides its steps.
    pub progress: RunProgress,
}

/// A matrix that a term learns or remembers.
pub struct TermMatrix<D: NetworkDevice> {
    /// Its values, named `<term>.<matrix>`.
    pub param: Param<D>,
    /// The update after each optimizer step.
    pub after: After,
    /// The first step at which it is trained.
    pub thaw_at: u64,
}

impl<D: NetworkDevice> TermMatrix<D> {
    /// Draws the initial values. `index` counts the matrices of all terms and selects the random stream.
    fn draw(device: &D, plan: &Plan, term: &str, declared: TermParameter, index: u64) -> Result<Self> {
        let mut rng = stream(plan.recipe.train.seed, Purpose::Init, 1, index, 0);
        let draw = |_| match declared.init {
            Init::Normal(std) => (rng.sample::<f64, _>(StandardNormal) * std) as f32,
            Init::Constant(v) => v as f32,
        };
        let (rows, cols) = (declared.rows, declared.cols);
        let mut values: Vec<f32> = (0..rows * cols).map(draw).collect();
        declared.after.apply(&mut values, cols);
        let role = match declared.after {
            After::Free | After::UnitRows => Role::Weight,
            After::AtLeast(_) => Role::Scalar,
            After::Remembered => Role::Statistic,
        };
        let param = Param::new(device, format!("{term}.{}", declared.name), &[rows, cols], role, &values)?;
        param.set_lr_scale(plan.recipe.lr_scale_of(&param.name));
        let thaw_at = declared.frozen.map_or(0, |span| span.steps(&plan.horizon));
        Ok(TermMatrix { param, after: declared.after, thaw_at })
    }

    /// Returns whether the matrix is trained by gradients; the others are memories of a term.
    pub(crate) fn is_learned(&self) -> bool {
        self.after != After::Remembered
    }

    /// Applies the matrix's constraint, such as unit rows, after an optimizer step.
    pub(crate) fn constrain(&self, device: &D) -> Result<()> {
        if matches!(self.after, After::Free | After::Remembered) {
            return Ok(());
        }
        let mut values = device.download(&self.param.value())?;
        self.after.apply(&mut values, self.param.shape[1]);
        device.overwrite(&mut self.param.value_mut(), &values)
    }
}

impl<D: NetworkDevice> TrainState<D> {
    /// Creates the state before the first step.
    ///
    /// # Errors
    /// If the network cannot be built (see [`Plan::network`]), or the device fails.
    pub fn new(device: &D, plan: &Plan) -> Result<Self> {
        let recipe = &plan.recipe;
        let network = plan.network(device)?;
        let momentum = recipe.momentum_encoder.is_some().then(|| network.duplicate()).transpose()?;
        let mut term_matrices = Vec::new();
        for term in &plan.objective.terms {
            for declared in term.term.info().parameters(&plan.facts) {
                let index = term_matrices.len() as u64;
                term_matrices.push(TermMatrix::draw(device, plan, &term.name, declared, index)?);
            }
        }
        let parameters = learned(&network, &term_matrices);
        let optimizer = D::optimizer(&*recipe.optimizer.value).start(device, &parameters)?;
        let dim = network.embedding_dim();
        Ok(TrainState {
            network,
            momentum,
            term_matrices,
            optimizer,
            queue: recipe.queue.map(|len| KeyQueue::new(len.get(), dim, recipe.train.seed)),
            prototypes: None,
            last_clustering: None,
            step: 0,
            progress: RunProgress::default(),
        })
    }

    /// Returns everything that is learned: the network's parameters, then those of the terms, in a fixed
    /// order.
    pub fn parameters(&self) -> Vec<Param<D>> {
        learned(&self.network, &self.term_matrices)
    }

    /// Forgets which samples belong to what, because the training images have changed; `samples` is their
    /// number now. Until the next clustering, new samples belong to no prototype.
    pub(crate) fn forget_samples(&mut self, samples: usize) {
        let clusterings = self.prototypes.iter_mut().flat_map(|p| &mut p.clusterings);
        clusterings.for_each(|c| c.assignments.resize(samples, None));
        self.queue.iter_mut().for_each(KeyQueue::forget_ids);
    }

    /// Returns the network for clusterings: the momentum network, or the online network without one.
    pub(crate) fn clustered_network(&mut self) -> &mut Network<D> {
        self.momentum.as_mut().unwrap_or(&mut self.network)
    }

    /// Returns the clock of the next step.
    pub(crate) fn clock(&self, horizon: Horizon) -> Clock {
        Clock { step: self.step, horizon }
    }

    /// Returns the epochs completed, with fractions.
    pub(crate) fn epoch(&self, horizon: &Horizon) -> f64 {
        self.step as f64 / horizon.steps_per_epoch.max(1) as f64
    }

    /// Returns whether the last step ended an epoch.
    pub(crate) fn ends_epoch(&self, horizon: &Horizon) -> bool {
        self.step > 0 && self.step.is_multiple_of(horizon.steps_per_epoch.max(1))
    }

    /// Returns whether the run is over: all steps were taken, or `train.stop_early` ended it.
    pub(crate) fn is_done(&self, horizon: &Horizon) -> bool {
        self.step >= horizon.total_steps || self.progress.stopped
    }
}

fn learned<D: NetworkDevice>(network: &Network<D>, term_matrices: &[TermMatrix<D>]) -> Vec<Param<D>> {
    let mut all = network.parameters();
    all.extend(term_matrices.iter().filter(|m| m.is_learned()).map(|m| m.param.clone()));
    all
}
