//! What a run saves when it meets NaN or infinity: the evidence, its story, and pictures of samples.

use crate::batch_pass::BatchPass;
use crate::evidence::Evidence;
use crate::inspection::Inspection;
use crate::plan::Plan;
use crate::run_dir::RunDir;
use crate::state::TrainState;
use crate::step_batch::{BatchPlace, StepBatch, StepCache};
use crate::suspects;
use pauc_data::ImageBatch;
use pauc_distributed::{Alone, Communicator};
use pauc_models::device::NetworkDevice;
use pauc_models::schedule::LrSchedule;
use pauc_models::weights::{TensorFile, Values};
use pauc_report::postmortem::causes::causes;
use pauc_report::postmortem::{FILE, GoodCheckpoint, GradientNorm, Number, Postmortem, Settings, story};
use pauc_traits::{Error, Result, ops};
use std::sync::Arc;

/// The file with the tensors of the failed batch.
const TENSORS: &str = "postmortem.safetensors";

/// A failure of a run, and the state in which it happened.
pub(crate) struct Failure<'a, D: NetworkDevice> {
    pub device: &'a D,
    pub plan: &'a Plan,
    pub state: &'a mut TrainState<D>,
    pub cache: &'a mut StepCache<D>,
    /// The images of the failed step; `None` if the failure was found between steps.
    pub data: Option<&'a ImageBatch>,
}

impl<D: NetworkDevice> Failure<'_, D> {
    /// Completes an error about NaN or infinity with the step, the last good checkpoint and the likely cause, and
    /// writes the postmortem.
    pub fn explain(mut self, what: String, place: Option<String>, dir: &RunDir) -> (Error, Postmortem) {
        let batch = self.data.map(|data| data.rows(&self.cache.trace.rows));
        // First of all: the second look changes running statistics.
        let tensors = batch.as_ref().map(|batch| self.tensors(batch));
        let inspection = batch.as_ref().and_then(|batch| self.inspect(batch));
        let p = self.postmortem(&what, place.as_deref(), batch.as_ref(), inspection.as_ref(), dir);
        let files = match self.write(&p, batch.as_ref(), tensors, dir) {
            Ok(()) if dir.is_in_memory() => {
                "a run with a folder would also save the failed batch".to_string()
            }
            Ok(()) => format!("see {}", dir.path().join(FILE).display()),
            // The NaN is the main error; a failure to write the postmortem is reported with it.
            Err(e) => format!("the postmortem could not be written: {e}"),
        };
        let place = place.map(|place| format!("{place}; ")).unwrap_or_default();
        let when = if p.between_steps { "after step" } else { "step" };
        let step = self.state.step + u64::from(!p.between_steps);
        let good = if dir.is_in_memory() {
            "a run in memory has no checkpoints".to_string()
        } else {
            story::last_good(&p)
        };
        let place = format!("{place}{when} {step}; {good}; {files}; {}", advice(&p));
        (Error::NonFinite { what, place: Some(place) }, p)
    }

    /// Passes the batch through the networks and terms again; `None` if even that fails.
    fn inspect(&mut self, data: &ImageBatch) -> Option<Inspection> {
        let number = self.cache.trace.rows.start / self.plan.recipe.train.batch.get().max(1);
        let place = BatchPlace { number: number as u64, share: 1.0, logged: false };
        let alone: Arc<dyn Communicator> = Arc::new(Alone);
        let batch = StepBatch::new(self.plan, self.state, (data, &alone), place);
        let pass = BatchPass {
            device: self.device,
            plan: self.plan,
            state: self.state,
            cache: self.cache,
            batch: &batch,
        };
        pass.inspect().ok()
    }

    /// Collects everything that is known about the failure.
    fn postmortem(
        &self,
        what: &str,
        place: Option<&str>,
        batch: Option<&ImageBatch>,
        inspection: Option<&Inspection>,
        dir: &RunDir,
    ) -> Postmortem {
        let evidence = Evidence {
            device: self.device,
            plan: self.plan,
            state: self.state,
            trace: &self.cache.trace,
            batch,
            inspection,
        };
        let norm = |s: &crate::step_trace::TracedStep<D>| GradientNorm {
            step: s.step,
            norm: Number(s.gradient_norm()),
        };
        let (affected, suspects) =
            batch.map(|b| suspects::find(self.plan, b, inspection)).unwrap_or_default();
        let mut p = Postmortem {
            step: self.state.step + 1,
            total_steps: self.plan.horizon.total_steps,
            epoch: Some(self.state.epoch(&self.plan.horizon)),
            what: what.strip_prefix("the term ").unwrap_or(what).to_string(),
            place: place.map(str::to_string),
            between_steps: batch.is_none(),
            first: evidence.first_tensor(),
            steps: evidence.steps(),
            terms: evidence.terms(),
            parameters: evidence.parameters(),
            settings: self.settings(),
            suspects,
            affected_samples: affected,
            last_good: last_good(dir),
            newest_checkpoint: dir.checkpoints().into_iter().next().filter(|_| !dir.is_in_memory()),
            samples: batch.map(|b| b.ids.clone()).unwrap_or_default(),
            gradient_norms: self.cache.trace.steps.iter().map(norm).collect(),
            tensors: batch.map(|_| TENSORS.to_string()),
            ..Postmortem::default()
        };
        p.causes = causes(&p);
        p
    }

    fn settings(&self) -> Settings {
        let (recipe, horizon) = (&self.plan.recipe, &self.plan.horizon);
        let warmup_steps = match &recipe.schedule {
            LrSchedule::WarmupCosine(schedule) => schedule.warmup.steps(horizon),
            _ => 0,
        };
        Settings {
            optimizer: recipe.optimizer.name().to_string(),
            learning_rate: Some(recipe.optimizer.learning_rate(recipe.train.images_per_step())),
            clip_gradient: recipe.train.clip_gradient.map(|c| c.get()),
            warmup_steps,
            device: self.device.name(),
            precision: D::HAS_OWN_MEMORY.then(|| format!("{:?}", recipe.train.cuda.precision)),
        }
    }

    /// Writes the files; does nothing for a run in memory.
    fn write(
        &self,
        p: &Postmortem,
        batch: Option<&ImageBatch>,
        tensors: Option<Result<TensorFile>>,
        dir: &RunDir,
    ) -> Result<()> {
        if dir.is_in_memory() {
            return Ok(());
        }
        if let Some(batch) = batch {
            suspects::draw(self.plan, batch, &p.suspects, dir)?;
        }
        let text = serde_json::to_string_pretty(p).map_err(|e| Error::Other(e.into()))?;
        dir.write(FILE, text + "\n")?;
        tensors.map_or(Ok(()), |tensors| tensors?.save(dir.path().join(TENSORS)))
    }

    /// Collects the failed batch, its embeddings if computed, parameters and gradients.
    fn tensors(&self, batch: &ImageBatch) -> Result<TensorFile> {
        let mut file = TensorFile::new();
        let samples = batch.ids.len();
        for (v, pixels) in batch.views.iter().enumerate() {
            let view = self.plan.views.shape(v);
            let shape = [samples, view.height, view.width, view.channels];
            let values = pixels.numbers(0..pixels.len()).into_owned();
            file.insert(format!("view.{v}.pixels"), &shape, Values::F32(values))?;
        }
        for (v, embeddings) in self.cache.trace.embeddings.iter().enumerate() {
            let Some(values) = embeddings.as_ref().map(ops::to_host).transpose()? else { continue };
            let shape = [samples, values.len() / samples.max(1)];
            file.insert(format!("view.{v}.embeddings"), &shape, Values::F32(values))?;
        }
        file.insert("samples", &[samples], Values::U64(batch.ids.clone()))?;
        let parameters = self.state.parameters();
        file.insert_params(self.device, "parameter.", &parameters)?;
        for p in &parameters {
            let gradient = self.device.download(&p.grad())?;
            file.insert(format!("gradient.{}", p.name), &p.shape, Values::F32(gradient))?;
        }
        file.metadata.insert("step".into(), (self.state.step + 1).to_string());
        Ok(file)
    }
}

/// Returns the last checkpoint of a network that still learned.
fn last_good(dir: &RunDir) -> Option<GoodCheckpoint> {
    let path = dir.good_checkpoint().filter(|_| !dir.is_in_memory())?;
    let metadata = TensorFile::metadata_of(&path);
    let step = metadata.and_then(|metadata| metadata.get("step")?.parse().ok());
    Some(GoodCheckpoint { path, step })
}

/// Returns the likely cause and what to change, in one line.
fn advice(p: &Postmortem) -> String {
    let Some(cause) = p.causes.first() else { return String::new() };
    let remedy = cause.remedies.first().map(|remedy| match remedy.set.as_slice() {
        [] => format!("; {}", remedy.text),
        set => format!("; try --set {}", set.join(" --set ")),
    });
    format!("likely cause: {}{}", cause.title, remedy.unwrap_or_default())
}
