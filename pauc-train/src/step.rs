//! One optimizer step: gradients of its batches, optimizer, momentum encoder.

use crate::batch_pass::BatchPass;
use crate::objective::TermValue;
use crate::plan::Plan;
use crate::state::TrainState;
use crate::step_batch::{BatchOutcome, BatchPlace, StepBatch, StepCache, split};
use crate::step_trace::CurrentStep;
use crate::term_gradients::GradientsByTerm;
use pauc_data::ImageBatch;
use pauc_models::device::NetworkDevice;
use pauc_models::optimizers::{shorten_gradients, squared_gradients};
use pauc_traits::optimizer::StepContext;
use pauc_traits::param::clear_gradients;
use pauc_traits::trace::span;
use pauc_traits::{Error, Param, Result};

/// The result of one step.
pub(crate) struct StepOutcome {
    /// The weighted sum of the terms.
    pub loss: f64,
    /// The value of each term.
    pub terms: Vec<TermValue>,
    /// Gradients by term, if they are logged.
    pub gradients_by_term: Option<GradientsByTerm>,
    /// The update of the parameters.
    pub update: Update,
}

/// How the optimizer moved the parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    /// The norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
}

/// Takes steps. [`StepRunner::train_step`] leaves counting them to its caller.
pub(crate) struct StepRunner<'a, D: NetworkDevice> {
    pub device: &'a D,
    pub plan: &'a Plan,
    pub state: &'a mut TrainState<D>,
    pub cache: &'a mut StepCache<D>,
}

impl<D: NetworkDevice> StepRunner<'_, D> {
    /// Takes one optimizer step on the images of one batch, or of several that are accumulated. `logged`:
    /// whether the outcome is logged. `upcoming`: the batch of the next step, requested while the device is
    /// busy.
    ///
    /// # Errors
    /// If a loss or a gradient is NaN or infinite, or the device fails.
    pub fn train_step<'b>(
        &mut self,
        data: &ImageBatch,
        logged: bool,
        upcoming: impl FnOnce() -> Option<&'b ImageBatch>,
    ) -> Result<StepOutcome> {
        let parameters = self.state.parameters();
        self.cache.trace.current = CurrentStep::default();
        clear_gradients(self.device, &parameters)?;
        let BatchOutcome { loss, terms, gradients_by_term } =
            self.accumulate_batches(data, logged, upcoming)?;
        self.cache.trace.current.values = Some((loss, terms.clone()));
        let update = self.update_parameters(&parameters)?;
        self.update_momentum()?;
        self.cache.trace.complete(self.state.step + 1, update.learning_rate);
        Ok(StepOutcome { loss, terms, gradients_by_term, update })
    }

    /// Computes the mean gradient and the mean outcome of all batches of the step.
    fn accumulate_batches<'b>(
        &mut self,
        data: &ImageBatch,
        logged: bool,
        upcoming: impl FnOnce() -> Option<&'b ImageBatch>,
    ) -> Result<BatchOutcome> {
        let batches = split(0..data.ids.len(), self.plan.recipe.train.batch.get());
        if let [whole] = batches.as_slice() {
            self.cache.trace.rows = whole.clone();
            let place = BatchPlace { number: 0, share: 1.0, logged };
            return self.accumulate_batch(data, place, upcoming);
        }
        let share = 1.0 / batches.len() as f32;
        let mut sum: Option<BatchOutcome> = None;
        for (i, rows) in batches.iter().enumerate() {
            self.cache.trace.rows = rows.clone();
            let place = BatchPlace { number: i as u64, share, logged: logged && i == 0 };
            let outcome = self.accumulate_batch(&data.rows(rows), place, || None)?;
            match &mut sum {
                None => sum = Some(outcome),
                Some(sum) => sum.add(outcome),
            }
        }
        let sum = sum.ok_or_else(|| Error::config("the loader returned a batch without images"))?;
        Ok(sum.mean(batches.len()))
    }

    fn accumulate_batch<'b>(
        &mut self,
        data: &ImageBatch,
        place: BatchPlace,
        upcoming: impl FnOnce() -> Option<&'b ImageBatch>,
    ) -> Result<BatchOutcome> {
        let batch = StepBatch::new(self.plan, self.state, (data, &self.plan.communicator), place);
        let pass = BatchPass {
            device: self.device,
            plan: self.plan,
            state: self.state,
            cache: self.cache,
            batch: &batch,
        };
        pass.accumulate_gradients(upcoming)
    }

    /// Clips the gradient and lets the optimizer update the parameters.
    fn update_parameters(&mut self, parameters: &[Param<D>]) -> Result<Update> {
        let _stage = span("optimizer");
        let (recipe, clock) = (&self.plan.recipe, self.state.clock(self.plan.horizon));
        self.state.term_matrices.iter().for_each(|m| m.param.set_frozen(clock.step < m.thaw_at));
        let limit = recipe.train.clip_gradient.map_or(f64::INFINITY, |c| c.get());
        let squares = squared_gradients(self.device, parameters)?;
        let gradient_norm = squares.iter().sum::<f64>().sqrt();
        self.cache.trace.current.squares = Some(squares);
        if !gradient_norm.is_finite() {
            let what = "the gradient of the network".to_string();
            return Err(Error::NonFinite { what, place: Some(format!("its norm is {gradient_norm}")) });
        }
        shorten_gradients(self.device, parameters, gradient_norm, limit)?;
        let optimizer = D::optimizer(&*recipe.optimizer.value);
        let scale = recipe.schedule.factor_at(&clock);
        let lr = optimizer.learning_rate(recipe.train.images_per_step()) * scale;
        optimizer.step(self.device, parameters, &mut self.state.optimizer, &StepContext { lr, clock })?;
        self.state.term_matrices.iter().try_for_each(|m| m.constrain(self.device))?;
        Ok(Update { gradient_norm, learning_rate: lr })
    }

    /// Moves the momentum network toward the online network.
    fn update_momentum(&mut self) -> Result<()> {
        if let (Some(momentum), Some(config)) = (&self.state.momentum, &self.plan.recipe.momentum_encoder) {
            let _stage = span("momentum encoder");
            let clock = self.state.clock(self.plan.horizon);
            config.update(self.device, &self.state.network, momentum, &clock)?;
        }
        Ok(())
    }
}
