//! Probes' access to a run's network: passing images through it, and fine-tuning a copy.

use crate::evaluate;
use crate::plan::Plan;
use crate::prefetch::loader_options;
use pauc_data::{Batches, Loader, LoaderOptions, ViewPipeline};
use pauc_models::device::NetworkDevice;
use pauc_models::network::{Network, TapedRows, backward_with};
use pauc_models::optimizers::Sgd;
use pauc_traits::dataset::ImageSource;
use pauc_traits::encoder::Draws;
use pauc_traits::optimizer::{State, StepContext};
use pauc_traits::param::{Param, clear_gradients};
use pauc_traits::probe::{ProbedNetwork, Tuning, TuningOptions, Views};
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::schedule::{Clock, Horizon};
use pauc_traits::{
    Count, DecayFactor, Error, LearningRate, NonNegative, Positive, Result, UnitInterval, ops,
};
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

    fn tune(&self, images: &Arc<dyn ImageSource>, options: TuningOptions) -> Result<Box<dyn Tuning>> {
        let network = self.network.duplicate()?;
        let params = network.encoder_parameters();
        params.iter().for_each(|p| p.set_frozen(false));
        set_layer_rates(&network, &params, options.layer_decay)?;
        let batch = Count::try_from(options.batch.get().min(images.len()))
            .map_err(|_| Error::config("fine-tuning: no images"))?;
        let seed = apart(options.seed);
        let loading = loader_options::<D>(LoaderOptions::training(batch, seed));
        let loader = Loader::new(images.clone(), self.view(options.views)?.clone(), loading)?;
        let steps_per_epoch = loader.steps_per_epoch();
        let total_steps = options.epochs * steps_per_epoch;
        let state = D::optimizer(&sgd(0.0)).start(self.device, &params)?;
        Ok(Box::new(FineTuned {
            device: self.device.clone(),
            batches: loader.batches(0..total_steps),
            evaluation: self.evaluation.clone(),
            clock: Clock { step: 0, horizon: Horizon { steps_per_epoch, total_steps } },
            pending: None,
            seed,
            network,
            params,
            state,
        }))
    }
}

/// Makes the learning rates of the encoder's parameters fall from the last layer to the first.
fn set_layer_rates<D: NetworkDevice>(
    network: &Network<D>,
    params: &[Param<D>],
    decay: DecayFactor,
) -> Result<()> {
    if decay.get() == 1.0 {
        return Ok(());
    }
    let depths = network.encoder_depths().ok_or_else(|| {
        Error::config("fine-tuning: the encoder does not say how deep its layers are; remove `layer_decay`")
    })?;
    params.iter().zip(depths.factors(decay.get())).for_each(|(p, factor)| p.set_lr_scale(factor));
    Ok(())
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
    seed: u64,
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
        let of_first_view = batch.ids.iter().map(|id| (*id, 0)).collect();
        let draws = Draws { seed: self.seed, step: self.clock.step, images: of_first_view };
        let rows = self.network.forward_features(images, &draws)?;
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
