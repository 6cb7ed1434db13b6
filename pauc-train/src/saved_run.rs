//! Finished and interrupted runs, opened again for `eval` and `embed`.

use crate::checkpoint;
use crate::evaluate::{self, Embedded, Measured, ProbeInputs};
use crate::history::Written;
use crate::phase::Phase;
use crate::plan::{Plan, PlanError};
use crate::probed_network::LentNetwork;
use crate::probing;
use crate::recipe::{LoadError, Recipe, Source};
use crate::resume::changed_data;
use crate::run_dir::{RunDir, not_a_run};
use crate::state::TrainState;
use pauc_data::ViewPipeline;
use pauc_data::datasets::subset::Picked;
use pauc_models::device::NetworkDevice;
use pauc_models::network::Network;
use pauc_traits::component_ron::Configured;
use pauc_traits::dataset::{ImageSource, Place};
use pauc_traits::probe::Metric;
use pauc_traits::{Clustering, Dataset, Error, Probe, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// In [`Part::Train`], one of this many training images is scored; the others are learned from.
pub const HELD_OUT: usize = 5;

/// The split to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The training split.
    Train,
    /// The test split.
    Test,
}

impl Part {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Test => "test",
        }
    }
}

/// Why a run could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is not a run.
    #[error("{}", not_a_run(.0, "recipe.resolved.ron"))]
    NoRun(PathBuf),
    /// The run's recipe can no longer be parsed.
    #[error(transparent)]
    Recipe(#[from] LoadError),
    /// The run's recipe can no longer be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Another error.
    #[error(transparent)]
    Other(#[from] Error),
}

/// A run's plan, with its own data or another dataset.
pub struct SavedRun {
    /// The plan; its splits are the data to use.
    pub plan: Plan,
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The BLAKE3 hash of the checkpoint file, 64 hexadecimal digits.
    pub weights: String,
    /// Whether the images are those of the run's recipe.
    own_data: bool,
    /// Whether the data may differ from that of the run.
    accept_data: bool,
}

impl SavedRun {
    /// Opens the run in a folder. `data` replaces the recipe's dataset; its images pass through the run's
    /// evaluation view, normalized with the statistics of the data that the run was trained on. `checkpoint`
    /// replaces the last checkpoint.
    ///
    /// # Errors
    /// If the folder is not a run, its recipe or data cannot be read, or the images do not have the encoder's
    /// shape.
    pub fn open<D: NetworkDevice>(
        device: &D,
        run: &Path,
        place: &Place,
        data: Option<&Configured<dyn Dataset>>,
        checkpoint: Option<&Path>,
    ) -> Result<SavedRun, OpenError> {
        let recipe = run.join("recipe.resolved.ron");
        if !recipe.is_file() {
            return Err(OpenError::NoRun(run.to_path_buf()));
        }
        let (recipe, source) = Recipe::load(&recipe, &[])?;
        let last = || RunDir::at(run).last_checkpoint().unwrap_or_default();
        let checkpoint = checkpoint.map_or_else(last, Path::to_path_buf);
        let mut plan = match of_checkpoint(run, &checkpoint, &recipe)? {
            None => Plan::new(device, recipe, source, place)?,
            Some(other) => {
                Plan::new(device, other.recipe, other.source, place)?.with_history(other.written.history)
            }
        };
        if let Some(data) = data {
            let splits = data.open(place)?;
            let input = splits.train.shape();
            plan.evaluation =
                ViewPipeline::evaluation(&plan.recipe.views, input, plan.evaluation.statistics(0))?;
            if plan.evaluation.shape(0) != plan.shape {
                let (got, want) = (plan.evaluation.shape(0), plan.shape);
                let message =
                    format!("images of `{}` have shape {got}, but the encoder expects {want}", data.name());
                return Err(Error::shape("evaluation view", message).into());
            }
            plan.splits = splits;
        }
        let bytes = std::fs::read(&checkpoint).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound {
                path: checkpoint.clone(),
                remedy: "the run has no checkpoint yet; continue it with `pauc-cli resume`".into(),
            },
            _ => Error::io(&checkpoint, e),
        })?;
        let weights = blake3::hash(&bytes).to_hex().to_string();
        Ok(SavedRun { plan, checkpoint, weights, own_data: data.is_none(), accept_data: false })
    }

    /// Sets whether the recipe's data may have changed since the run was trained; by default it may not.
    pub fn accept_changed_data(self, accept: bool) -> Self {
        SavedRun { accept_data: accept, ..self }
    }

    /// Returns the split's images.
    ///
    /// # Errors
    /// If the data has no such split.
    pub fn source(&self, part: Part) -> Result<&Arc<dyn ImageSource>> {
        match part {
            Part::Train => Ok(&self.plan.splits.train),
            Part::Test => self.plan.splits.test.as_ref().ok_or_else(|| {
                Error::config(format!(
                    "{} has no test split; use `--split train`",
                    self.plan.splits.description
                ))
            }),
        }
    }

    /// Loads the state of the checkpoint.
    ///
    /// # Errors
    /// If it does not belong to the run, or the recipe's data has changed and that is not accepted.
    pub(crate) fn state<D: NetworkDevice>(&self, device: &D) -> Result<TrainState<D>> {
        let mut state = TrainState::new(device, &self.plan)?;
        checkpoint::load(device, &self.plan, &mut state, &self.checkpoint)?;
        let of_run = state.progress.data.as_ref().filter(|_| self.own_data);
        if let Some(difference) = of_run.and_then(|run| self.plan.data_identity().difference(run)) {
            if !self.accept_data {
                return Err(changed_data(&self.checkpoint, &difference));
            }
            // Its assignments are of other images.
            state.prototypes = None;
        }
        Ok(state)
    }

    /// Embeds a split, in its own order. Also returns the step of the checkpoint. The ranks of the plan share the
    /// images. Rank 0 gets the result; the others get `None`.
    ///
    /// # Errors
    /// If the checkpoint does not belong to the run, an image cannot be read, or the device or another rank fails.
    pub fn embed<D: NetworkDevice>(
        &self,
        device: &D,
        part: Part,
        momentum: bool,
    ) -> Result<Option<(Embedded, u64)>> {
        let mut state = self.state(device)?;
        let step = state.step;
        let embedded = self.embedded(&mut state, momentum, self.source(part)?)?;
        Ok(embedded.map(|embedded| (embedded, step)))
    }

    fn embedded<D: NetworkDevice>(
        &self,
        state: &mut TrainState<D>,
        momentum: bool,
        source: &Arc<dyn ImageSource>,
    ) -> Result<Option<Embedded>> {
        let phase = Phase::new(self.plan.communicator.clone());
        evaluate::embed_on_first(&phase, branch(state, momentum)?, &self.plan.evaluation, source)
    }

    /// Runs probes on rank 0, after the ranks of the plan have embedded the images together. On [`Part::Test`] they learn
    /// from the training split and are scored on the test split, as during training. [`Part::Train`] does not touch the
    /// test split: every [`HELD_OUT`]th training image is scored, the others are learned from, and the metrics' names
    /// end in `@train/5`.
    ///
    /// # Errors
    /// The errors of the probes, or as [`SavedRun::embed`].
    pub fn eval<D: NetworkDevice>(
        &self,
        device: &D,
        probes: &[Configured<dyn Probe>],
        part: Part,
        momentum: bool,
    ) -> Result<Vec<Metric>> {
        let splits = &self.plan.splits;
        let mut state = self.state(device)?;
        if let Some(probe) = probes.iter().find(|p| p.needs_labels() && splits.train.labels().is_none()) {
            let message = format!("the probe `{}` needs class labels, but the data has none", probe.name());
            return Err(Error::config(message));
        }
        let test = match part {
            Part::Test => Some(self.source(Part::Test)?.clone()),
            Part::Train => None,
        };
        let train = self.embedded(&mut state, momentum, &splits.train)?;
        let test = test.map(|source| self.embedded(&mut state, momentum, &source)).transpose()?;
        let phase = Phase::new(self.plan.communicator.clone());
        let measured = probing::on_first(&phase, || {
            let train = train.unwrap_or_default();
            self.measure(device, probes, &mut state, momentum, (train, test.flatten()))
        })?;
        if let Some(message) = measured.warnings.into_iter().next() {
            return Err(Error::Config { message });
        }
        let mut metrics = measured.metrics;
        if part == Part::Train {
            metrics.iter_mut().for_each(|m| m.name.push_str(&format!("@train/{HELD_OUT}")));
        }
        Ok(metrics)
    }

    /// Runs probes on the embedded training split, and on the test split or, without one, on held-out images.
    fn measure<D: NetworkDevice>(
        &self,
        device: &D,
        probes: &[Configured<dyn Probe>],
        state: &mut TrainState<D>,
        momentum: bool,
        (train, test): (Embedded, Option<Embedded>),
    ) -> Result<Measured> {
        let splits = &self.plan.splits;
        let prototypes = state.prototypes.as_ref().filter(|_| self.own_data);
        let mut levels = prototypes.map_or(Vec::new(), |p| p.clusterings.clone());
        let concentrations = prototypes.map_or(&[][..], |p| &p.concentrations).to_vec();
        let seed = self.plan.recipe.train.seed;
        let (train, test, splits) = match test {
            Some(test) => (train, test, splits.clone()),
            None => {
                let (learnt, scored) = held_out(splits.train.len());
                if learnt.is_empty() || scored.is_empty() {
                    return Err(Error::config(format!(
                        "{} images are too few to hold any out",
                        splits.train.len()
                    )));
                }
                levels.iter_mut().for_each(|c| keep(c, &learnt));
                let (learnt_rows, scored_rows) = (train.rows(&learnt), train.rows(&scored));
                let mut parts = splits.clone();
                parts.train = Arc::new(Picked::new(splits.train.clone(), learnt));
                parts.test = Some(Arc::new(Picked::new(splits.train.clone(), scored)));
                (learnt_rows, scored_rows, parts)
            }
        };
        let lent = LentNetwork::new(device, branch(state, momentum)?, &self.plan);
        let subject = ProbeInputs {
            splits: &splits,
            levels: &levels,
            concentrations: &concentrations,
            seed,
            network: Some(&lent),
            device: device.probes_on_device(),
        };
        evaluate::measure(probes, &train, Some(&test), subject)
    }
}

/// The recipe of a run at the step of a checkpoint.
struct OfCheckpoint {
    recipe: Recipe,
    source: Source,
    written: Written,
}

/// Returns the recipe in a checkpoint of a run whose recipe was changed. `None` if the checkpoint has the recipe that
/// the run began with, or is not of this run.
fn of_checkpoint(run: &Path, path: &Path, newest: &Recipe) -> Result<Option<OfCheckpoint>, LoadError> {
    let Some(written) = Written::of_file(path) else { return Ok(None) };
    let info = RunDir::at(run).info().ok().flatten();
    let is_changed = !written.history.is_empty() || info.as_ref().is_some_and(|i| !i.recipes.is_empty());
    let Some(text) = written.resolved.as_ref().filter(|_| is_changed) else { return Ok(None) };
    let is_of_run = match &info {
        Some(info) => info.first_hash() == written.first_hash() && info.seed.to_string() == written.seed,
        None => newest.resolved().is_ok_and(|newest| newest == *text),
    };
    if !is_of_run {
        return Ok(None);
    }
    let name = format!("the recipe of {}", path.display());
    let (recipe, source) = Recipe::parse(&name, text, &[]).map_err(LoadError::Recipe)?;
    Ok(Some(OfCheckpoint { recipe, source, written }))
}

/// Returns the online network, or the momentum network.
pub(crate) fn branch<D: NetworkDevice>(state: &mut TrainState<D>, momentum: bool) -> Result<&mut Network<D>> {
    if !momentum {
        return Ok(&mut state.network);
    }
    let missing = || Error::config("the run has no momentum encoder; remove `--momentum`");
    state.momentum.as_mut().ok_or_else(missing)
}

/// Returns the indices to learn from, and those to score.
fn held_out(n: usize) -> (Vec<usize>, Vec<usize>) {
    (0..n).partition(|i| i % HELD_OUT != HELD_OUT - 1)
}

/// Keeps only the assignments of these samples.
fn keep(c: &mut Clustering, samples: &[usize]) {
    c.assignments = samples.iter().map(|i| c.assignments[*i]).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fifth_image_is_held_out_and_nothing_is_in_both_parts() {
        let (learnt, scored) = held_out(12);
        assert_eq!(scored, [4, 9]);
        assert_eq!(learnt, [0, 1, 2, 3, 5, 6, 7, 8, 10, 11]);
        let assignments = (0..12).map(Some).collect();
        let mut c = Clustering { k: 12, dim: 0, centroids: vec![], assignments, report: Default::default() };
        keep(&mut c, &scored);
        assert_eq!(c.assignments, [Some(4), Some(9)]);
    }
}
