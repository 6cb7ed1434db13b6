//! A run that continues from one of its checkpoints, with a changed recipe if that is asked for.

use crate::check::Checker;
use crate::checkpoint::verify;
use crate::compare;
use crate::data_identity::DataIdentity;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::history::{RecipeText, Written};
use crate::objective::Objective;
use crate::plan::Plan;
use crate::progress::RunProgress;
use crate::recipe::{Recipe, Source, belongs};
use crate::recipe_text;
use crate::run_dir::RunDir;
use pauc_models::weights::TensorFile;
use pauc_traits::term::{Severity, TermParameter};
use pauc_traits::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The checkpoint that a run continues from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartingPoint {
    /// The one of this step.
    Step(u64),
    /// The newest one of a network that still learned.
    Good,
    /// The newest one.
    Last,
    /// The one with the best value of the metric of `train.keep`.
    Best,
}

impl FromStr for StartingPoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "good" => StartingPoint::Good,
            "last" => StartingPoint::Last,
            "best" => StartingPoint::Best,
            number => {
                StartingPoint::Step(number.parse().map_err(|_| "write a step, `good`, `last` or `best`")?)
            }
        })
    }
}

/// A checkpoint to continue from, with the recipe that its run had.
#[derive(Clone, Debug)]
pub struct Origin {
    path: PathBuf,
    written: Written,
    resolved: String,
    /// The identity of the data until the checkpoint; `None` in those of older versions.
    data: Option<DataIdentity>,
}

impl Origin {
    /// Finds an intact checkpoint of a run.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no such checkpoint, with those that exist; [`Error::Damaged`] if it is damaged.
    pub fn find(dir: &RunDir, from: StartingPoint) -> Result<Self> {
        let path = path_of(dir, from)?;
        let file = TensorFile::load(&path)?;
        verify(&file, &path)?;
        let incomplete = || Error::damaged(&path, "its metadata is incomplete");
        let written = Written::of(&file.metadata).ok_or_else(incomplete)?;
        let info = dir.info()?;
        if let Some(info) = info.filter(|info| {
            (info.seed.to_string(), info.first_hash()) != (written.seed.clone(), written.first_hash())
        }) {
            let (hash, seed) = (written.first_hash(), &written.seed);
            let run = format!("this run is {} seed {}", info.first_hash(), info.seed);
            return Err(Error::damaged(&path, format!("belongs to recipe {hash} seed {seed}, but {run}")));
        }
        let resolved = match &written.resolved {
            Some(text) => text.clone(),
            None => {
                let path = dir.path().join("recipe.resolved.ron");
                recipe_text::read(&path).map_err(|e| Error::io(&path, e))?
            }
        };
        let progress = RunProgress::of(&file.metadata);
        Ok(Origin { path, written, resolved, data: progress.and_then(|p| p.data) })
    }

    /// Returns the checkpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of steps taken.
    pub fn step(&self) -> u64 {
        self.written.step
    }

    /// Returns the hash of the run that wrote the checkpoint.
    pub(crate) fn hash(&self) -> &str {
        &self.written.hash
    }

    /// Returns the checkpoint's recipe with `--set` assignments.
    ///
    /// # Errors
    /// The mistakes in the assignments, with their positions.
    pub fn recipe(&self, set: &[String]) -> Result<(Recipe, Source), Diagnostics> {
        Recipe::parse(&format!("the recipe of {}", self.path.display()), &self.resolved, set)
    }

    /// Returns what changes in a run that continues from here with this plan. The plan gets the run's history.
    ///
    /// # Errors
    /// The values that differ although the checkpoint depends on them, with their positions.
    pub fn continued_with(self, plan: Plan) -> Result<(Plan, Branch), Diagnostics> {
        let (old, _) = self.recipe(&[])?;
        let refused = Rules { old: &old, origin: &self, plan: &plan }.broken();
        if !refused.is_empty() {
            let Source { text, path, .. } = plan.source.clone();
            return Err(Diagnostics { text, path, all: refused });
        }
        let changes = compare::changes(&self.resolved, &plan.resolved);
        let value = |v: &Option<String>| v.clone().unwrap_or_else(|| "nothing".into());
        let texts: Vec<String> = changes
            .iter()
            .map(|c| format!("{} from {} to {}", c.path, value(&c.first), value(&c.other)))
            .collect();
        let mut history = self.written.history.clone();
        if !changes.is_empty() {
            let before = RecipeText { hash: &self.written.hash, resolved: &self.resolved };
            history = history.changed(
                self.step(),
                before,
                RecipeText { hash: &plan.hash, resolved: &plan.resolved },
            );
        }
        let text = (!texts.is_empty()).then(|| format!("the recipe changed: {}", texts.join("; ")));
        let plan = plan.with_history(history);
        Ok((plan, Branch { origin: self, recipe_change: text }))
    }
}

/// A run that continues from one of its checkpoints.
#[derive(Clone, Debug)]
pub struct Branch {
    /// The checkpoint.
    pub(crate) origin: Origin,
    /// How the recipe changes, if it does.
    pub(crate) recipe_change: Option<String>,
}

/// Returns the path of a checkpoint.
fn path_of(dir: &RunDir, from: StartingPoint) -> Result<PathBuf> {
    let named = |name: &str| Some(dir.checkpoint(name)).filter(|path| path.exists());
    let of_step = |step: u64| {
        let all = dir.checkpoints().into_iter();
        all.into_iter().find(|path| Written::of_file(path).is_some_and(|w| w.step == step))
    };
    let (found, what) = match from {
        StartingPoint::Step(step) => {
            (named(&step_name(step)).or_else(|| of_step(step)), format!("of step {step}"))
        }
        StartingPoint::Good => (dir.good_checkpoint(), "of a network that still learned".into()),
        StartingPoint::Last => {
            (named("last").or_else(|| dir.checkpoints().into_iter().next()), "at all".into())
        }
        StartingPoint::Best => (named("best"), "called best: `train.keep.best` names its metric".into()),
    };
    found.ok_or_else(|| {
        let run = dir.path().display();
        Error::config(format!("{run} has no checkpoint {what}; {}", existing(dir)))
    })
}

/// Returns the name of the checkpoint of a step.
pub(crate) fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Lists the checkpoints of a run by step, with their other names.
fn existing(dir: &RunDir) -> String {
    let mut names: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for path in dir.checkpoints() {
        let Some(written) = Written::of_file(&path) else { continue };
        let of_step = names.entry(written.step).or_default();
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        of_step.extend((!stem.starts_with("step-")).then(|| stem.to_string()));
    }
    let entry = |(step, names): (&u64, &Vec<String>)| match names.join(", ") {
        names if names.is_empty() => step.to_string(),
        names => format!("{step} ({names})"),
    };
    let all: Vec<String> = names.iter().map(entry).collect();
    match &all[..] {
        [] => "there are none".to_string(),
        all => format!("there are checkpoints of the steps {}", all.join(", ")),
    }
}

/// Values that a checkpoint depends on, and why.
const FIXED: &[(&str, &str)] = &[
    ("version", "the checkpoint was written with this version"),
    ("name", "the folder of the run has this name"),
    ("data", "the steps taken and the clusters belong to other images"),
    ("encoder", "the checkpoint holds the weights of this encoder"),
    ("encoder_weights", "they were read before the first step"),
    ("projector", "the checkpoint holds the weights of this projector"),
    ("predictor", "the checkpoint holds the weights of this predictor"),
    ("queue", "the checkpoint holds a queue of this length"),
    ("train.batch", "the steps taken are counted in batches of this size"),
    ("train.accumulate", "the steps taken are counted in this many batches"),
    ("train.seed", "every random number of the run depends on it"),
    ("baselines", "they were measured before the first step"),
];

/// The rules of which values a run may change.
struct Rules<'a> {
    old: &'a Recipe,
    origin: &'a Origin,
    /// The plan with the new values.
    plan: &'a Plan,
}

impl Rules<'_> {
    /// Returns the values that the run may not change.
    fn broken(&self) -> Vec<Diagnostic> {
        let root = recipe_text::parse(&self.plan.source.text);
        let error = |code, path: &str, message: String, help: String| {
            Diagnostic::at(Severity::Error, code, root.as_ref(), path, message, help)
        };
        let run = "start another run with this value";
        let (mut broken, mut named) = (Vec::new(), Vec::new());
        for change in compare::all_changes(&self.origin.resolved, &self.plan.resolved) {
            let fixed = FIXED.iter().find(|(path, _)| below(&change.path, path));
            let Some((path, why)) = fixed.filter(|(path, _)| !named.contains(path)) else { continue };
            if *path == "data" && self.has_same_data() {
                continue;
            }
            named.push(*path);
            let help = match *path {
                "encoder" | "data" | "train.batch" | "train.accumulate" => format!(
                    "{run}; `encoder_weights: (path: {:?}, prefix: \"encoder.\")` starts it from this encoder",
                    self.origin.path.display().to_string()
                ),
                _ => run.to_string(),
            };
            let message = format!("a run cannot change `{}`: {why}", change.path);
            broken.push(error("E0501", &change.path, message, help));
        }
        for (path, why) in self.of_state() {
            let message = format!("a run cannot change `{path}` in this way: {why}");
            broken.push(error("E0501", &path, message, run.to_string()));
        }
        let (step, end) = (self.origin.step(), self.plan.horizon.total_steps);
        if broken.is_empty() && end <= step {
            let message = format!("the run would end at step {end}, but the checkpoint is of step {step}");
            let help = "raise `train.epochs`, or continue from an earlier checkpoint";
            broken.push(error("E0502", "train.epochs", message, help.into()));
        }
        broken
    }

    /// Returns whether the new recipe only names another place of the same images.
    fn has_same_data(&self) -> bool {
        let of_run = self.origin.data.as_ref();
        of_run.is_some_and(|of_run| self.plan.data_identity().difference(of_run).is_none())
    }

    /// Returns the paths whose new values need a state that the checkpoint does not have, and why.
    fn of_state(&self) -> Vec<(String, String)> {
        let (old, new) = (self.old, &self.plan.recipe);
        let mut broken = Vec::new();
        let mut refuse = |path: &str, why: String| broken.push((path.to_string(), why));
        if old.momentum_encoder.is_some() != new.momentum_encoder.is_some() {
            refuse("momentum_encoder", "the checkpoint has one, or it has none".into());
        }
        let image = |recipe| {
            let shapes = Checker::new(recipe, &self.plan.source).view_shapes(&self.plan.splits);
            shapes.and_then(|shapes| shapes.first().copied())
        };
        if image(old) != Some(self.plan.shape) {
            refuse("views", "the encoder was built for images of another shape".into());
        }
        let levels = |recipe: &Recipe| recipe.clusterer.as_ref().map(|c| c.prototypes());
        if levels(old) != levels(new) {
            refuse("clusterer", "the checkpoint holds the prototypes of the last clustering".into());
        }
        let (had, needs) = (old.optimizer.slots(), new.optimizer.slots());
        if had != needs {
            let list = |slots: &[&str]| if slots.is_empty() { "none".to_string() } else { slots.join(", ") };
            let why = format!("it needs the moments {}, the checkpoint has {}", list(needs), list(had));
            refuse("optimizer", why);
        }
        let had = self.matrices(old);
        for (i, matrix) in self.matrices(new) {
            if !had.iter().any(|(_, m)| *m == matrix) {
                let (name, rows, cols) = (&matrix.name, matrix.rows, matrix.cols);
                let why = format!(
                    "it needs the matrix {name} of {rows}×{cols}, which the checkpoint does not have"
                );
                refuse(&format!("objective[{i}].term"), why);
            }
        }
        broken
    }

    /// Returns the matrices of all terms of a recipe, with the index of their term.
    fn matrices(&self, recipe: &Recipe) -> Vec<(usize, Matrix)> {
        let Plan { horizon, first_clustering, facts, .. } = self.plan;
        let objective = Objective::plan(&recipe.objective, horizon, *first_clustering, facts);
        let mut all = Vec::new();
        for (i, term) in objective.terms.iter().enumerate() {
            let name = |p: &TermParameter| format!("{}.{}", term.name, p.name);
            let matrix = |p: &TermParameter| Matrix { name: name(p), rows: p.rows, cols: p.cols };
            all.extend(term.term.info().parameters(facts).iter().map(|p| (i, matrix(p))));
        }
        all
    }
}

/// The name and shape of a matrix that a term learns or remembers.
#[derive(PartialEq, Eq)]
struct Matrix {
    name: String,
    rows: usize,
    cols: usize,
}

/// Returns whether a path names the value at `parent` or a part of it.
fn below(path: &str, parent: &str) -> bool {
    belongs(&path.replace('[', "."), parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_named_by_step_or_word() {
        assert_eq!("120".parse(), Ok(StartingPoint::Step(120)));
        assert_eq!("good".parse(), Ok(StartingPoint::Good));
        assert!("-1".parse::<StartingPoint>().is_err() && "newest".parse::<StartingPoint>().is_err());
    }

    #[test]
    fn parts_of_a_fixed_value_are_fixed() {
        assert!(below("encoder", "encoder") && below("encoder.channels[0]", "encoder"));
        assert!(below("baselines[0]", "baselines") && !below("encoder_weights", "encoder"));
    }
}
