//! A [`TrainState`] on disk: one safetensors file.
//!
//! | tensors | what |
//! |---|---|
//! | `encoder.*`, `projector.*` | the online network, torchvision's names after the prefix |
//! | `momentum.encoder.*`, `momentum.projector.*` | the momentum network |
//! | `term.<term>.<matrix>` | matrices that terms learn |
//! | `optimizer.<slot>.<parameter>` | the optimizer's buffers |
//! | `queue.keys`, `queue.ids` | past keys and their samples (−1: unknown) |
//! | `clusters.<m>.centroids`, `.assignments` (−1: noise), `.concentration` | level m |
//!
//! The counters, [`crate::progress`], the resolved recipe, the recipes before it, [`NetworkInput`] and the device are
//! in the file's metadata, with a BLAKE3 hash of everything else.
//! Random numbers need no state: they are functions of the step.

use crate::history;
use crate::network_input::NetworkInput;
use crate::plan::Plan;
use crate::prototypes::Prototypes;
use crate::queue::KeyQueue;
use crate::ranks;
pub use crate::retention::checksum;
use crate::retention::set_aside;
use crate::run_dir::RunDir;
use crate::state::TrainState;
use pauc_models::Network;
use pauc_models::device::NetworkDevice;
use pauc_models::weights::{NonFiniteElement, TensorFile, Values};
use pauc_traits::clusterer::FitReport;
use pauc_traits::{Clustering, Error, Param, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const FORMAT: &str = "pauc-checkpoint-2";

/// Returns all parameters and statistics under their names in the file.
fn named<D: NetworkDevice>(state: &TrainState<D>) -> Vec<Param<D>> {
    let parameters_and_statistics = |network: &Network<D>| {
        let mut all = network.parameters();
        all.extend(network.statistics());
        all
    };
    let mut all = parameters_and_statistics(&state.network);
    let momentum = state.momentum.iter().flat_map(parameters_and_statistics);
    all.extend(momentum.map(|p| p.prefixed("momentum.")));
    all.extend(state.term_matrices.iter().map(|m| m.param.prefixed("term.")));
    all
}

/// Returns the first NaN or infinite element of the parameters and running statistics in a checkpoint. A
/// ReLU turns NaN into 0, so that neither loss nor gradient has to show it.
fn first_non_finite_weight(file: &TensorFile) -> Option<NonFiniteElement> {
    let is_other = |name: &str| ["optimizer.", "queue.", "clusters."].iter().any(|p| name.starts_with(p));
    file.first_non_finite(|name| !is_other(name))
}

/// Returns the names of the optimizer's buffers, in order.
fn slots<D: NetworkDevice>(plan: &Plan) -> &'static [&'static str] {
    D::optimizer(&*plan.recipe.optimizer.value).slots()
}

/// Writes a checkpoint as `checkpoints/last.safetensors` and, if `best`, as `best.safetensors`. The previous
/// files stay until the new file is complete.
///
/// # Errors
/// [`Error::NonFinite`] if a parameter or a running statistic is NaN or infinite; or if the run has no folder,
/// or the device or the disk fails.
pub fn save<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &TrainState<D>,
    dir: &RunDir,
    best: bool,
) -> Result<()> {
    if dir.last_checkpoint().is_none() {
        return Err(Error::config("a run in memory cannot save a checkpoint"));
    }
    let file = complete(device, plan, state)?;
    dir.add_checkpoint(state.step, &file, plan.recipe.train.keep.last.get(), best)
}

/// Writes a checkpoint as `checkpoints/last.safetensors`, even if there are checkpoints of later steps: the run
/// continues from it.
///
/// # Errors
/// As [`save`].
pub(crate) fn save_branch<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &TrainState<D>,
    dir: &RunDir,
) -> Result<()> {
    dir.begin_branch(state.step, &complete(device, plan, state)?)
}

/// Returns the finite state as tensors and metadata, with their hash.
fn complete<D: NetworkDevice>(device: &D, plan: &Plan, state: &TrainState<D>) -> Result<TensorFile> {
    let mut file = snapshot(device, plan, state)?;
    if let Some(element) = first_non_finite_weight(&file) {
        let place = format!("{element} after step {}; no checkpoint was written", state.step);
        return Err(Error::NonFinite { what: "the network".into(), place: Some(place) });
    }
    let sum = checksum(&file);
    file.metadata.insert("blake3".into(), sum);
    Ok(file)
}

/// Returns the state as tensors and metadata.
fn snapshot<D: NetworkDevice>(device: &D, plan: &Plan, state: &TrainState<D>) -> Result<TensorFile> {
    let mut file = TensorFile::new();
    file.insert_params(device, "", &named(state))?;
    for (p, buffers) in state.parameters().iter().zip(&state.optimizer.slots) {
        for (slot, buffer) in slots::<D>(plan).iter().zip(buffers) {
            let name = format!("optimizer.{slot}.{}", p.name);
            file.insert(name, &p.shape, Values::F32(device.download(buffer)?))?;
        }
    }
    let mut note = |key: &str, value: String| drop(file.metadata.insert(key.to_string(), value));
    note("format", FORMAT.into());
    note("recipe", plan.hash.clone());
    note("resolved_recipe", plan.resolved.clone());
    note("device", device.name());
    note("seed", plan.recipe.train.seed.to_string());
    note("step", state.step.to_string());
    note("optimizer_steps", state.optimizer.steps.to_string());
    note("marks", json(&state.progress)?);
    note("input", json(&NetworkInput::of(plan))?);
    if !plan.history.is_empty() {
        note(history::KEY, json(&plan.history)?);
    }
    if let Some(queue) = &state.queue {
        insert_queue(&mut file, queue)?;
    }
    if let (Some(prototypes), Some(step)) = (&state.prototypes, state.last_clustering) {
        file.metadata.insert("last_clustering".into(), step.to_string());
        insert_prototypes(&mut file, prototypes)?;
    }
    Ok(file)
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::Other(e.into()))
}

fn insert_queue(file: &mut TensorFile, queue: &KeyQueue) -> Result<()> {
    file.metadata.insert("queue_cursor".into(), queue.cursor().to_string());
    let shape = [queue.len(), queue.keys().len() / queue.len().max(1)];
    file.insert("queue.keys", &shape, Values::F32(queue.keys().to_vec()))?;
    let ids = queue.ids().iter().map(|id| id.map_or(-1, |id| id as i64)).collect();
    file.insert("queue.ids", &[queue.len()], Values::I64(ids))
}

fn insert_prototypes<D: NetworkDevice>(file: &mut TensorFile, prototypes: &Prototypes<D>) -> Result<()> {
    for (m, (c, phi)) in prototypes.clusterings.iter().zip(&prototypes.concentrations).enumerate() {
        let name = |part| format!("clusters.{m}.{part}");
        file.insert(name("centroids"), &[c.k, c.dim], Values::F32(c.centroids.clone()))?;
        let assignments = c.assignments.iter().map(|s| s.map_or(-1, i64::from)).collect();
        file.insert(name("assignments"), &[c.assignments.len()], Values::I64(assignments))?;
        file.insert(name("concentration"), &[phi.len()], Values::F32(phi.clone()))?;
        file.metadata.insert(name("report"), json(&c.report)?);
    }
    Ok(())
}

/// Loads the newest usable checkpoint of a run into a state built from the same plan. Unusable files are
/// renamed. Returns the file that was used, if there is any checkpoint, and the errors of the others.
///
/// # Errors
/// The error of the newest checkpoint, if none can be used; no file is then renamed.
pub fn load_newest<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &mut TrainState<D>,
    dir: &RunDir,
) -> Result<(Option<PathBuf>, Vec<String>)> {
    let mut unusable: Vec<(PathBuf, Error)> = Vec::new();
    for path in dir.checkpoints() {
        match load(device, plan, state, &path) {
            Ok(()) => {
                let notes = unusable.into_iter().map(|(path, error)| match error {
                    // The disk may give it the next time.
                    Error::Io { .. } => Ok(format!("{error}; the checkpoint is not used")),
                    error => {
                        let name = set_aside(&path)?;
                        Ok(format!("{error}; renamed to {}", name.display()))
                    }
                });
                return Ok((Some(path), notes.collect::<Result<_>>()?));
            }
            Err(error) => unusable.push((path, error)),
        }
    }
    match unusable.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok((None, Vec::new())),
    }
}

/// Checks a file against the hash in its metadata.
///
/// # Errors
/// [`Error::Damaged`] if the file is not a checkpoint of this version, or its content has changed.
pub fn verify(file: &TensorFile, path: &Path) -> Result<()> {
    let text = |key: &str| file.metadata.get(key).map_or("", String::as_str);
    match text("format") {
        FORMAT => {}
        "" => return Err(Error::damaged(path, "is not a checkpoint: its metadata has no `format`")),
        other => {
            let message = format!("has the format {other:?}, but this version reads {FORMAT:?}");
            return Err(Error::damaged(path, message));
        }
    }
    if text("blake3") == checksum(file) {
        return Ok(());
    }
    Err(Error::damaged(path, "its BLAKE3 hash does not match; restore it from a copy"))
}

/// Loads a checkpoint into a state built from the same plan.
///
/// # Errors
/// [`Error::Damaged`] if the file is not a checkpoint, belongs to another recipe or seed, is incomplete, or
/// has a parameter or statistic that is NaN or infinite.
/// The state may then be partly overwritten.
pub fn load<D: NetworkDevice>(device: &D, plan: &Plan, state: &mut TrainState<D>, path: &Path) -> Result<()> {
    load_of(device, plan, state, path, &plan.hash)
}

/// Loads a checkpoint of a run with another hash, whose state has the same parts; else as [`load`].
///
/// # Errors
/// As [`load`].
pub(crate) fn load_of<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &mut TrainState<D>,
    path: &Path,
    hash: &str,
) -> Result<()> {
    let file = TensorFile::load(path)?;
    verify(&file, path)?;
    let checkpoint = Reader { file: &file, path };
    checkpoint.belongs_to(hash, plan.recipe.train.seed)?;
    if let Some(element) = first_non_finite_weight(&file) {
        let remedy = "use an earlier checkpoint, or train again with a lower learning rate";
        return Err(Error::damaged(path, format!("{element}; {remedy}")));
    }
    restore(device, plan, state, checkpoint)
}

/// Makes the state of rank 0 that of all ranks.
///
/// # Errors
/// If the device or another rank fails.
pub(crate) fn share<D: NetworkDevice>(device: &D, plan: &Plan, state: &mut TrainState<D>) -> Result<()> {
    let ranks = &*plan.communicator;
    if ranks.size() == 1 {
        return Ok(());
    }
    let bytes = ranks::from_first(ranks, || snapshot(device, plan, state)?.to_bytes())?;
    if ranks.rank() == 0 {
        return Ok(());
    }
    let path = Path::new("the state of rank 0");
    let file = TensorFile::of_bytes(path, &bytes)?;
    restore(device, plan, state, Reader { file: &file, path })
}

/// Overwrites a state with a checkpoint.
fn restore<D: NetworkDevice>(
    device: &D,
    plan: &Plan,
    state: &mut TrainState<D>,
    checkpoint: Reader<'_>,
) -> Result<()> {
    for p in named(state) {
        device.overwrite(&mut p.value_mut(), checkpoint.tensor(&p.name, &p.shape)?)?;
    }
    for (p, buffers) in state.parameters().iter().zip(&mut state.optimizer.slots) {
        for (slot, buffer) in slots::<D>(plan).iter().zip(buffers) {
            let values = checkpoint.tensor(&format!("optimizer.{slot}.{}", p.name), &p.shape)?;
            device.overwrite(buffer, values)?;
        }
    }
    state.optimizer.steps = checkpoint.number("optimizer_steps")?;
    if let Some(queue) = &mut state.queue {
        *queue = checkpoint.queue(queue.len(), queue.keys().len() / queue.len().max(1))?;
    }
    if checkpoint.file.metadata.contains_key("last_clustering") {
        state.last_clustering = Some(checkpoint.number("last_clustering")?);
        state.prototypes = Some(checkpoint.prototypes(device)?);
    }
    let marks = serde_json::from_str(checkpoint.text("marks")?);
    state.progress = marks.map_err(|e| checkpoint.damaged(format!("metadata `marks`: {e}")))?;
    state.step = checkpoint.number("step")?;
    Ok(())
}

/// Reads parts of a checkpoint; a missing part or one of the wrong shape is an error that names the file.
struct Reader<'a> {
    file: &'a TensorFile,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn damaged(&self, message: String) -> Error {
        Error::damaged(self.path, message)
    }

    fn text(&self, key: &str) -> Result<&'a String> {
        let missing = || self.damaged(format!("the metadata has no `{key}`"));
        self.file.metadata.get(key).ok_or_else(missing)
    }

    fn number(&self, key: &str) -> Result<u64> {
        let value = self.text(key)?;
        u64::from_str(value)
            .map_err(|_| self.damaged(format!("metadata `{key}`: expected a number, got {value:?}")))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<&'a [f32]> {
        let values = self.file.f32(name)?;
        match self.file.get(name).map(|t| t.shape.as_slice()) {
            Some(got) if got == shape => Ok(values),
            got => Err(self.damaged(format!("tensor `{name}`: expected {shape:?}, got {got:?}"))),
        }
    }

    fn belongs_to(&self, own_hash: &str, own_seed: u64) -> Result<()> {
        let own_seed = own_seed.to_string();
        let (hash, seed) = (self.text("recipe")?.as_str(), self.text("seed")?);
        if (hash, seed) == (own_hash, &own_seed) {
            return Ok(());
        }
        Err(self.damaged(format!(
            "belongs to recipe {hash} seed {seed}, but this run is {own_hash} seed {own_seed}"
        )))
    }

    fn queue(&self, len: usize, dim: usize) -> Result<KeyQueue> {
        let keys = self.tensor("queue.keys", &[len, dim])?.to_vec();
        let ids = self.file.i64("queue.ids")?.iter().map(|id| u64::try_from(*id).ok()).collect();
        let cursor = self.number("queue_cursor")? as usize;
        KeyQueue::restore(dim, keys, ids, cursor)
            .ok_or_else(|| self.damaged("the parts of the queue do not fit together".into()))
    }

    fn prototypes<D: NetworkDevice>(&self, device: &D) -> Result<Prototypes<D>> {
        let (mut clusterings, mut concentrations) = (Vec::new(), Vec::new());
        while let Some(stored) = self.file.get(&format!("clusters.{}.centroids", clusterings.len())) {
            let name = |part| format!("clusters.{}.{part}", clusterings.len());
            let [k, dim] = stored.shape[..] else {
                return Err(self.damaged(format!("{} is not a matrix", name("centroids"))));
            };
            let assignments = self.file.i64(&name("assignments"))?;
            let assignments = assignments.iter().map(|s| u32::try_from(*s).ok()).collect();
            let report: FitReport = serde_json::from_str(self.text(&name("report"))?)
                .map_err(|e| self.damaged(format!("{}: {e}", name("report"))))?;
            concentrations.push(self.file.f32(&name("concentration"))?.to_vec());
            let centroids = self.file.f32(&name("centroids"))?.to_vec();
            clusterings.push(Clustering { k, dim, centroids, assignments, report });
        }
        Ok(Prototypes::restore(device, clusterings, concentrations))
    }
}
