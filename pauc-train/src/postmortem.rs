//! What a run saves when a step produces NaN or infinity.

use crate::plan::Plan;
use crate::recipe_text;
use crate::run_dir::RunDir;
use crate::state::TrainState;
use crate::step_trace::StepTrace;
use pauc_data::ImageBatch;
use pauc_models::device::NetworkDevice;
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::{Error, Result, ops};

/// What to do about NaN or infinity.
const ADVICE: &str = "lower the learning rate, raise the temperature or clip the gradient";

/// Says which checkpoint is the last one of a network that still learned, and what to do.
fn remedy(plan: &Plan, dir: &RunDir) -> String {
    if dir.is_in_memory() {
        return format!("a run in memory has no checkpoints; {ADVICE}");
    }
    match (dir.good_checkpoint(), dir.checkpoints().into_iter().next()) {
        (Some(good), _) => format!(
            "the last good checkpoint is {}; {ADVICE}, such as `pauc-cli resume {} --from good --set optimizer.lr={}`",
            good.display(),
            dir.path().display(),
            lower_rate(plan)
        ),
        (None, Some(newest)) => format!(
            "the network had stopped learning before the checkpoint {} was written; {ADVICE}",
            newest.display()
        ),
        (None, None) => format!("no checkpoint had been written yet; {ADVICE}"),
    }
}

/// Returns a tenth of the recipe's learning rate with four digits, as `--set` takes it.
fn lower_rate(plan: &Plan) -> String {
    let root = recipe_text::parse(&plan.resolved);
    let rate = root.as_ref().and_then(|root| recipe_text::find(root, "optimizer.lr"));
    let rate = rate.and_then(|rate| plan.resolved[rate.span.clone()].parse::<f64>().ok());
    let lower = rate.and_then(|rate| format!("{:.3e}", rate / 10.0).parse::<f64>().ok());
    lower.map_or("…".into(), |rate| format!("{rate:?}"))
}

/// Completes the error of a checkpoint that was not written because the network has NaN or infinity. Returns
/// other errors unchanged.
pub(crate) fn unsaved(error: Error, plan: &Plan, dir: &RunDir) -> Error {
    let Error::NonFinite { what, place } = error else { return error };
    let place = place.map(|p| format!("{p}; ")).unwrap_or_default();
    Error::NonFinite { what, place: Some(format!("{place}{}", remedy(plan, dir))) }
}

/// The failed step: the state before it, and its trace.
pub(crate) struct FailedStep<'a, D: NetworkDevice> {
    pub device: &'a D,
    pub plan: &'a Plan,
    pub state: &'a TrainState<D>,
    pub trace: &'a StepTrace<D>,
    pub data: &'a ImageBatch,
}

impl<D: NetworkDevice> FailedStep<'_, D> {
    /// Completes an error about NaN or infinity: writes `postmortem.json` and `postmortem.safetensors`, and
    /// adds the step, these files and the last good checkpoint. Returns other errors unchanged.
    pub fn explain(&self, error: Error, dir: &RunDir) -> Error {
        let Error::NonFinite { what, place } = error else { return error };
        let files = match self.write(&what, place.as_deref(), dir) {
            Ok(()) if dir.is_in_memory() => {
                "a run with a folder would also save the failed batch".to_string()
            }
            Ok(()) => format!("see {}", dir.path().join("postmortem.json").display()),
            // The NaN is the main error; a failure to write the postmortem is reported with it.
            Err(e) => format!("the postmortem could not be written: {e}"),
        };
        let place = place.map(|p| format!("{p}; ")).unwrap_or_default();
        let place = format!("{place}step {}; {files}; {}", self.step(), remedy(self.plan, dir));
        Error::NonFinite { what, place: Some(place) }
    }

    /// Returns the current step, counted from 1.
    fn step(&self) -> u64 {
        self.state.step + 1
    }

    /// Writes the two files; does nothing for a run in memory.
    fn write(&self, what: &str, place: Option<&str>, dir: &RunDir) -> Result<()> {
        if dir.is_in_memory() {
            return Ok(());
        }
        let batch = self.data.rows(&self.trace.rows);
        let norms = self.trace.gradient_norms.iter();
        let norms: Vec<_> = norms.map(|n| serde_json::json!({"step": n.step, "norm": n.norm})).collect();
        let json = serde_json::json!({
            "step": self.step(),
            "what": what,
            "place": place,
            "samples": batch.ids,
            "gradient_norms": norms,
            "tensors": "postmortem.safetensors",
        });
        let text = serde_json::to_string_pretty(&json).map_err(|e| Error::Other(e.into()))?;
        dir.write("postmortem.json", text + "\n")?;
        self.tensors(&batch)?.save(dir.path().join("postmortem.safetensors"))
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
        for (v, embeddings) in self.trace.embeddings.iter().enumerate() {
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
        file.metadata.insert("step".into(), self.step().to_string());
        Ok(file)
    }
}
