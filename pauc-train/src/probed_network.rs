//! Probes' access to a run's network: passing images through it, and fine-tuning a copy.

use crate::evaluate;
use crate::plan::Plan;
use crate::prefetch::loader_options;
use pauc_data::{Batches, Loader, LoaderOptions, ViewPipeline};
use pauc_models::device::NetworkDevice;
use pauc_models::network::{Network, TapedRows, backward_with};
use pauc_models::optimizers::Sgd;
use pauc_traits::dataset::ImageSource;
use pauc_traits::optimizer::{State, StepContext};
use pauc_traits::param::{Param, clear_gradients};
use pauc_traits::probe::{ProbedNetwork, Tuning, Views};
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::schedule::{Clock, Horizon};
use pauc_traits::{Count, Error, LearningRate, NonNegative, Pass, Positive, Result, UnitInterval, ops};
use rand::RngCore;
use std::sync::Arc;

/// A network lent to probes, with the views for its images.
pub(crate) struct LentNetwork<'a, D: NetworkDevice> {
    device: &'a D,
    network: &'a Network<D>,
    evaluation: &'a ViewPipeline,
    /// Crops and flips only, or why they do not fit.
    crops: Result<ViewPipeline>,
}

impl<'a, D: NetworkDevice> LentNetwork<'a, D> {
    /// Lends a network, for images of the plan's data.
    pub fn new(device: &'a D, network: &'a Network<D>, plan: &'a Plan) -> Self {
        let evaluation = &plan.evaluation;
        let (input, statistics) = (plan.splits.train.shape(), evaluation.statistics(0));
        let crops = ViewPipeline::crops_and_flips(&plan.recipe.views, input, statistics);
        LentNetwork { device, network, evaluation, crops }
    }

    fn view(&self, views: Views) -> Result<&ViewPipeline> {
        let want = self.evaluation.shape(0);
        match (views, &self.crops) {
            (Views::Evaluation, _) => Ok(self.evaluation),
            (Views::CropFlip, Ok(view)) if view.shape(0) == want => Ok(view),
            (Views::CropFlip, Ok(view)) => {
                let got = view.shape(0);
                Err(Error::config(format!(
                    "views: CropFlip: crops and flips of the recipe's first view are {got}, the network was trained on {want}; \
                     use `views: Evaluation`"
                )))
            }
            (Views::CropFlip, Err(e)) => Err(Error::config(format!("views: CropFlip: {e}"))),
        }
    }
}

/// Derives a seed whose random streams differ from the run's.
fn apart(seed: u64) -> u64 {
    stream(seed, Purpose::Probe, 0, 0, 3).next_u64()
}

impl<D: NetworkDevice> ProbedNetwork for LentNetwork<'_, D> {
    fn features(
        &self,
        images: &Arc<dyn ImageSource>,
        views: Views,
        seed: u64,
        epoch: u64,
    ) -> Result<Vec<f32>> {
        // A copy, since a forward pass needs mutable access.
        let mut network = self.network.duplicate()?;
        Ok(evaluate::embed_epoch(&mut network, self.view(views)?, images, apart(seed), epoch)?.features)
    }

    fn tune(
        &self,
        images: &Arc<dyn ImageSource>,
        views: Views,
        batch: Count,
        epochs: u64,
        seed: u64,
    ) -> Result<Box<dyn Tuning>> {
        let network = self.network.duplicate()?;
        let params = network.encoder_parameters();
        params.iter().for_each(|p| p.set_frozen(false));
        let batch = Count::try_from(batch.get().min(images.len()))
            .map_err(|_| Error::config("fine-tuning: no images"))?;
        let options = loader_options::<D>(LoaderOptions::training(batch, apart(seed)));
        let loader = Loader::new(images.clone(), self.view(views)?.clone(), options)?;
        let steps_per_epoch = loader.steps_per_epoch();
        let total_steps = epochs * steps_per_epoch;
        let state = D::optimizer(&sgd(0.0)).start(self.device, &params)?;
        Ok(Box::new(FineTuned {
            device: self.device.clone(),
            batches: loader.batches(0..total_steps),
            evaluation: self.evaluation.clone(),
            clock: Clock { step: 0, horizon: Horizon { steps_per_epoch, total_steps } },
            pending: None,
            network,
            params,
            state,
        }))
    }
}

/// Returns PyTorch's SGD with momentum 0.9; the learning rate is given at each step.
fn sgd(weight_decay: f64) -> Sgd {
    Sgd {
        momentum: UnitInterval::lit(0.9),
        weight_decay: NonNegative::try_from(weight_decay).unwrap_or(NonNegative::lit(0.0)).into(),
        ..Sgd::new(LearningRate::Plain(Positive::lit(1.0)))
    }
}

struct FineTuned<D: NetworkDevice> {
    device: D,
    network: Network<D>,
    params: Vec<Param<D>>,
    state: State<D>,
    batches: Batches,
    evaluation: ViewPipeline,
    clock: Clock,
    /// The features of the last batch, with their tape.
    pending: Option<TapedRows<D>>,
}

impl<D: NetworkDevice> Tuning for FineTuned<D> {
    fn steps_per_epoch(&self) -> u64 {
        self.clock.horizon.steps_per_epoch
    }

    fn forward(&mut self) -> Result<(Vec<u64>, Vec<f32>)> {
        let Some(batch) = self.batches.next().transpose()? else {
            return Err(Error::config("fine-tuning: no batches left"));
        };
        clear_gradients(&self.device, &self.params)?;
        let shape = self.evaluation.shape(0);
        let shape = (batch.ids.len(), shape.height, shape.width, shape.channels);
        let Some(pixels) = batch.views.first() else {
            return Err(Error::config("fine-tuning: a batch has no view"));
        };
        let images = self.device.images(&[pixels], 0..pixels.len(), shape)?;
        let rows = self.network.forward_features(images, Pass::Train)?;
        let features = ops::to_host(&rows)?;
        self.pending = Some(rows);
        Ok((batch.ids, features))
    }

    fn backward(&mut self, gradient: Vec<f32>, lr: f64, weight_decay: f64) -> Result<()> {
        let Some(rows) = self.pending.take() else {
            return Err(Error::config("fine-tuning: no batch is waiting for its gradient"));
        };
        backward_with(rows, gradient, None)?;
        let now = StepContext { lr, clock: self.clock };
        D::optimizer(&sgd(weight_decay)).step(&self.device, &self.params, &mut self.state, &now)?;
        self.clock.step += 1;
        Ok(())
    }

    fn features(&mut self, images: &Arc<dyn ImageSource>) -> Result<Vec<f32>> {
        Ok(evaluate::embed(&mut self.network, &self.evaluation, images)?.features)
    }
}
