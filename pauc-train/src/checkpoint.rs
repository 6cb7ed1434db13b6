//! A run on disk: one safetensors file that holds everything the next step depends on.
//!
//! | tensors | what |
//! |---|---|
//! | `encoder.*`, `projector.*` | the online network, torchvision's names behind the prefix |
//! | `momentum.encoder.*`, `momentum.projector.*` | the momentum network |
//! | `term.<term>.<matrix>` | matrices that terms learn |
//! | `optimizer.<slot>.<parameter>` | the optimiser's buffers |
//! | `queue.keys`, `queue.ids` | past keys and their samples (−1: unknown) |
//! | `clusters.<m>.centroids`, `.assignments` (−1: noise), `.concentration` | level m |
//!
//! The counters and [`crate::progress`] are in the file's metadata, with a BLAKE3 hash of all the rest. Random numbers need no
//! state: they are functions of the step.

use crate::engine::{Engine, Observer};
use crate::prototypes::Prototypes;
use crate::queue::KeyQueue;
use crate::retention::{checksum, set_aside};
use crate::run_dir::RunDir;
use pauc_models::device::NetworkDevice;
use pauc_models::weights::{TensorFile, Values};
use pauc_traits::clusterer::FitReport;
use pauc_traits::{Clustering, Error, Param, Result};
use std::path::{Path, PathBuf};

const FORMAT: &str = "pauc-checkpoint-2";

impl<D: NetworkDevice> Engine<'_, D> {
    /// All parameters and statistics under their names in the file.
    fn named(&self) -> Vec<Param<D>> {
        let of = |network: &pauc_models::Network<D>| {
            let mut all = network.parameters();
            all.extend(network.statistics());
            all
        };
        let mut all = of(&self.network);
        all.extend(self.momentum.iter().flat_map(of).map(|p| p.prefixed("momentum.")));
        all.extend(self.terms.iter().map(|t| t.param.prefixed("term.")));
        all
    }

    fn slots(&self) -> &'static [&'static str] {
        D::optimizer(&*self.plan.recipe.optimizer.value).slots()
    }

    /// Writes a checkpoint, which becomes `checkpoints/last.safetensors` and, if asked, `best.safetensors`; what was there
    /// before stays until the new file is whole.
    ///
    /// # Errors
    /// If the device or the disk fails.
    pub(crate) fn save(&mut self, dir: &RunDir, watch: &mut dyn Observer, best: bool) -> Result<()> {
        if dir.last_checkpoint().is_none() {
            return Err(Error::config("the run has no folder to save a checkpoint in"));
        }
        self.marks.events = watch.recorded()?;
        let mut file = self.snapshot()?;
        let sum = checksum(&file);
        file.metadata.insert("blake3".into(), sum);
        dir.add_checkpoint(self.step, &file, self.plan.recipe.train.keep.last.get(), best)?;
        self.saved = Some(self.step);
        Ok(())
    }

    /// Everything that the next step depends on.
    fn snapshot(&self) -> Result<TensorFile> {
        let mut file = TensorFile::new();
        file.insert_params(&self.device, "", &self.named())?;
        for (p, buffers) in self.parameters().iter().zip(&self.optimizer.slots) {
            for (slot, buffer) in self.slots().iter().zip(buffers) {
                let name = format!("optimizer.{slot}.{}", p.name);
                file.insert(name, &p.shape, Values::F32(self.device.download(buffer)?))?;
            }
        }
        let mut note = |key: &str, value: String| drop(file.metadata.insert(key.to_string(), value));
        note("format", FORMAT.into());
        note("recipe", self.plan.hash.clone());
        note("seed", self.plan.recipe.train.seed.to_string());
        note("step", self.step.to_string());
        note("optimizer_steps", self.optimizer.steps.to_string());
        if let Some(q) = &self.queue {
            note("queue_cursor", q.cursor().to_string());
            let shape = [q.len(), q.keys().len() / q.len().max(1)];
            file.insert("queue.keys", &shape, Values::F32(q.keys().to_vec()))?;
            let ids = q.ids().iter().map(|id| id.map_or(-1, |id| id as i64)).collect();
            file.insert("queue.ids", &[q.len()], Values::I64(ids))?;
        }
        if let (Some(p), Some(at)) = (&self.prototypes, self.last_clustering) {
            file.metadata.insert("last_clustering".into(), at.to_string());
            for (m, (c, phi)) in p.clusterings.iter().zip(&p.concentrations).enumerate() {
                let name = |part| format!("clusters.{m}.{part}");
                file.insert(name("centroids"), &[c.k, c.dim], Values::F32(c.centroids.clone()))?;
                let of = c.assignments.iter().map(|s| s.map_or(-1, i64::from)).collect();
                file.insert(name("assignments"), &[c.assignments.len()], Values::I64(of))?;
                file.insert(name("concentration"), &[phi.len()], Values::F32(phi.clone()))?;
                let report = serde_json::to_string(&c.report).map_err(|e| Error::Other(e.into()))?;
                file.metadata.insert(name("report"), report);
            }
        }
        let marks = serde_json::to_string(&self.marks).map_err(|e| Error::Other(e.into()))?;
        file.metadata.insert("marks".into(), marks);
        Ok(file)
    }
}

/// Puts the newest usable checkpoint of a run into an engine that was built from the same recipe. Files that cannot be used
/// get another name. Returns the file that was used, if there is any checkpoint, and what was wrong with others.
///
/// # Errors
/// What is wrong with the newest checkpoint, if none can be used; nothing is then changed.
pub fn load_newest<D: NetworkDevice>(
    engine: &mut Engine<'_, D>,
    dir: &RunDir,
) -> Result<(Option<PathBuf>, Vec<String>)> {
    let mut wrong: Vec<(PathBuf, Error)> = Vec::new();
    for path in dir.checkpoints() {
        match load(engine, &path) {
            Ok(()) => {
                let notes = wrong.into_iter().map(|(bad, error)| {
                    let name = set_aside(&bad)?;
                    Ok(format!("{error}; it is now {}", name.display()))
                });
                return Ok((Some(path), notes.collect::<Result<_>>()?));
            }
            Err(error) => wrong.push((path, error)),
        }
    }
    match wrong.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok((None, Vec::new())),
    }
}

/// Whether a file holds what was written to it: a hash over all of it is in its metadata.
///
/// # Errors
/// [`Error::Damaged`] if the file is no checkpoint of this version, or its content has changed.
pub fn verify(file: &TensorFile, path: &Path) -> Result<()> {
    let text = |key: &str| file.metadata.get(key).map_or("", String::as_str);
    match text("format") {
        FORMAT => {}
        "" => return Err(Error::damaged(path, "is no checkpoint: its metadata has no `format`")),
        other => {
            let message = format!("has the format {other:?}, this version reads {FORMAT:?}");
            return Err(Error::damaged(path, message));
        }
    }
    if text("blake3") == checksum(file) {
        return Ok(());
    }
    Err(Error::damaged(path, "its content is not what was written (BLAKE3): restore it from a copy"))
}

/// Puts a checkpoint into an engine that was built from the same recipe.
///
/// # Errors
/// [`Error::Damaged`] if the file is no checkpoint, is of another recipe or seed, or lacks something.
pub fn load<D: NetworkDevice>(engine: &mut Engine<'_, D>, path: &Path) -> Result<()> {
    let file = TensorFile::load(path)?;
    let wrong = |message: String| Error::damaged(path, message);
    let text = |key: &str| file.metadata.get(key).ok_or_else(|| wrong(format!("the metadata lacks `{key}`")));
    let number = |key: &str| {
        let value = text(key)?;
        value.parse::<u64>().map_err(|_| wrong(format!("metadata `{key}` is {value:?}, no number")))
    };
    verify(&file, path)?;
    let (hash, seed) = (&engine.plan.hash, engine.plan.recipe.train.seed.to_string());
    if text("recipe")? != hash || *text("seed")? != seed {
        let (r, s) = (text("recipe")?, text("seed")?);
        return Err(wrong(format!("belongs to recipe {r} seed {s}, this run is {hash} seed {seed}")));
    }
    let shaped = |name: &str, shape: &[usize]| {
        let values = file.f32(name)?;
        match file.get(name).map(|t| t.shape.as_slice()) {
            Some(got) if got == shape => Ok(values),
            got => Err(wrong(format!("tensor `{name}` is {got:?}, this run needs {shape:?}"))),
        }
    };
    for p in engine.named() {
        engine.device.overwrite(&mut p.value_mut(), shaped(&p.name, &p.shape)?)?;
    }
    let slots = engine.slots();
    for (p, buffers) in engine.parameters().iter().zip(&mut engine.optimizer.slots) {
        for (slot, buffer) in slots.iter().zip(buffers) {
            engine.device.overwrite(buffer, shaped(&format!("optimizer.{slot}.{}", p.name), &p.shape)?)?;
        }
    }
    engine.optimizer.steps = number("optimizer_steps")?;
    if let Some(queue) = &mut engine.queue {
        let dim = queue.keys().len() / queue.len().max(1);
        let keys = shaped("queue.keys", &[queue.len(), dim])?.to_vec();
        let ids = file.i64("queue.ids")?.iter().map(|id| u64::try_from(*id).ok()).collect();
        let cursor = number("queue_cursor")? as usize;
        *queue = KeyQueue::restore(dim, keys, ids, cursor)
            .ok_or_else(|| wrong("the queue does not fit".into()))?;
    }
    if file.metadata.contains_key("last_clustering") {
        engine.last_clustering = Some(number("last_clustering")?);
        let (mut clusterings, mut concentrations) = (Vec::new(), Vec::new());
        while let Some(stored) = file.get(&format!("clusters.{}.centroids", clusterings.len())) {
            let name = |part| format!("clusters.{}.{part}", clusterings.len());
            let [k, dim] = stored.shape[..] else {
                return Err(wrong(format!("{} is no matrix", name("centroids"))));
            };
            let assignments =
                file.i64(&name("assignments"))?.iter().map(|s| u32::try_from(*s).ok()).collect();
            let report: FitReport = serde_json::from_str(text(&name("report"))?)
                .map_err(|e| wrong(format!("{}: {e}", name("report"))))?;
            concentrations.push(file.f32(&name("concentration"))?.to_vec());
            let centroids = file.f32(&name("centroids"))?.to_vec();
            clusterings.push(Clustering { k, dim, centroids, assignments, report });
        }
        engine.prototypes = Some(Prototypes::restore(&engine.device, clusterings, concentrations));
    }
    engine.marks =
        serde_json::from_str(text("marks")?).map_err(|e| wrong(format!("metadata `marks`: {e}")))?;
    engine.step = number("step")?;
    Ok(())
}
