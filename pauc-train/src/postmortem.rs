//! What is kept of a step that gave a number that is none.

use crate::engine::Engine;
use crate::run_dir::RunDir;
use pauc_data::ImageBatch;
use pauc_models::device::NetworkDevice;
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::ops::Matrix;
use pauc_traits::{Error, Result, ops};
use std::collections::VecDeque;

/// Steps whose gradient norms are remembered.
const REMEMBERED: usize = 16;

/// What is remembered of the step under way and those before it, in case it fails.
pub(crate) struct Trace<D: NetworkDevice> {
    /// The rows of the step's images that were under way: those of one of several accumulated batches.
    pub rows: std::ops::Range<usize>,
    /// Embeddings of the online network by view, as far as they were made; raw outputs of the projector.
    pub views: Vec<Option<Matrix<f32, D>>>,
    /// The norms of the last gradients, with the steps they belong to.
    pub norms: VecDeque<(u64, f64)>,
}

impl<D: NetworkDevice> Default for Trace<D> {
    fn default() -> Self {
        Trace { rows: 0..0, views: Vec::new(), norms: VecDeque::new() }
    }
}

impl<D: NetworkDevice> Trace<D> {
    /// Remembers the norm of a step's gradient.
    pub fn norm(&mut self, step: u64, norm: f64) {
        self.norms.push_back((step, norm));
        if self.norms.len() > REMEMBERED {
            self.norms.pop_front();
        }
    }
}

impl<D: NetworkDevice> Engine<'_, D> {
    /// Completes an error about a number that is none: writes `postmortem.json` and `postmortem.safetensors`, and names
    /// the step, these files and the last good checkpoint. Other errors are passed through.
    pub(crate) fn postmortem(&self, error: Error, dir: &RunDir, batch: &ImageBatch) -> Error {
        let Error::NonFinite { what, place } = error else { return error };
        let saved = dir.last_checkpoint().filter(|p| p.exists());
        let saved = saved.map_or("no checkpoint had been written yet".to_string(), |p| {
            format!("the last good checkpoint is {}", p.display())
        });
        let kept = match self.write_postmortem(&what, place.as_deref(), dir, batch) {
            Ok(()) => format!("see {}", dir.path().join("postmortem.json").display()),
            // The number is what matters; that its traces could not be written is said beside it.
            Err(e) => format!("its postmortem could not be written: {e}"),
        };
        let place = place.map(|p| format!("{p}; ")).unwrap_or_default();
        let advice = "lower the learning rate, raise the temperature or clip the gradient";
        let place = format!("{place}step {}; {saved}; {kept}; {advice}", self.step() + 1);
        Error::NonFinite { what, place: Some(place) }
    }

    fn write_postmortem(
        &self,
        what: &str,
        place: Option<&str>,
        dir: &RunDir,
        batch: &ImageBatch,
    ) -> Result<()> {
        let trace = &self.trace;
        let batch = &batch.rows(&trace.rows);
        let norms: Vec<_> =
            trace.norms.iter().map(|(s, n)| serde_json::json!({"step": s, "norm": n})).collect();
        let json = serde_json::json!({
            "step": self.step() + 1,
            "what": what,
            "place": place,
            "samples": batch.ids,
            "gradient_norms": norms,
            "tensors": "postmortem.safetensors",
        });
        let text = serde_json::to_string_pretty(&json).map_err(|e| Error::Other(e.into()))?;
        dir.write("postmortem.json", text + "\n")?;
        let mut file = TensorFile::new();
        let rows = batch.ids.len();
        for (v, pixels) in batch.views.iter().enumerate() {
            let shape = self.plan.views.shape(v);
            let shape = [rows, shape.height, shape.width, shape.channels];
            file.insert(
                format!("view.{v}.pixels"),
                &shape,
                Values::F32(pixels.numbers(0..pixels.len()).into_owned()),
            )?;
        }
        for (v, embeddings) in trace.views.iter().enumerate() {
            let Some(values) = embeddings.as_ref().map(ops::to_host).transpose()? else { continue };
            let shape = [rows, values.len() / rows.max(1)];
            file.insert(format!("view.{v}.embeddings"), &shape, Values::F32(values))?;
        }
        file.insert("samples", &[rows], Values::U64(batch.ids.clone()))?;
        let parameters = self.parameters();
        file.insert_params(&self.device, "parameter.", &parameters)?;
        for p in &parameters {
            let gradient = self.device.download(&p.grad())?;
            file.insert(format!("gradient.{}", p.name), &p.shape, Values::F32(gradient))?;
        }
        file.metadata.insert("step".into(), (self.step() + 1).to_string());
        file.save(dir.path().join("postmortem.safetensors"))
    }
}
