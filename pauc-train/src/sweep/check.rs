//! The rules of a sweep.

use super::{Arm, Axis, Combine, Distribution, MAX_RESAMPLES, MAX_RUNS, Sweep, Values, duplicate};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::recipe::{Source, belongs};
use crate::recipe_text::{self, Node};
use pauc_traits::dataset::Splits;
use pauc_traits::probe::may_read_test_split;
use pauc_traits::registry::did_you_mean;
use pauc_traits::term::Severity;

impl Distribution {
    fn wrong(self) -> Option<String> {
        let (from, to) = match self {
            Distribution::Uniform { from, to } | Distribution::LogUniform { from, to } => (from, to),
            Distribution::Integers { from, to } => (from as f64, to as f64),
        };
        if !(from.is_finite() && to.is_finite() && from < to) {
            return Some(format!("`from` must be smaller than `to`, got {from} and {to}"));
        }
        let logarithm = matches!(self, Distribution::LogUniform { .. });
        (logarithm && from <= 0.0).then(|| format!("`from` must be greater than 0, got {from}"))
    }
}

impl Values {
    /// Returns the number of different values, if it is bounded.
    fn count(&self) -> Option<usize> {
        match self {
            Values::Listed(all) => Some(all.len()),
            Values::Drawn(Distribution::Integers { from, to }) => {
                usize::try_from(to.saturating_sub(*from)).ok()?.checked_add(1)
            }
            Values::Drawn(_) => None,
        }
    }
}

/// Collects mistakes, with their positions in the sweep's text.
struct Checks<'a> {
    sweep: &'a Sweep,
    root: Option<Node>,
    found: Vec<Diagnostic>,
}

impl Checks<'_> {
    fn error(&mut self, code: &'static str, path: &str, message: impl Into<String>, help: &str) {
        let root = self.root.as_ref();
        self.found.push(Diagnostic::at(Severity::Error, code, root, path, message, help));
    }

    /// Checks the values of paths, and that no path is set twice. `before` are paths that are set earlier.
    fn axes(&mut self, at: &str, axes: &[Axis], is_random: bool, before: &[&Axis]) {
        for (i, axis) in axes.iter().enumerate() {
            let place = |part: &str| format!("{at}[{i}].{part}");
            match &axis.values {
                Values::Listed(all) if all.is_empty() => {
                    self.error("E0401", &place("values"), "there are no values", "add some");
                }
                Values::Drawn(_) if !is_random => {
                    let message = "random values without `combine: Random`";
                    let help = "write `combine: Random(runs: 20)`, or list the values";
                    self.error("E0402", &place("values"), message, help);
                }
                Values::Drawn(d) => {
                    if let Some(message) = d.wrong() {
                        self.error("E0106", &place("values"), message, "");
                    }
                }
                Values::Listed(_) => {}
            }
            self.seed_is_not_set(&place("path"), &axis.path);
            for other in before.iter().copied().chain(&axes[..i]) {
                if overlap(&axis.path, &other.path) {
                    let message = format!("`{}` and `{}` set the same value", other.path, axis.path);
                    let help = "remove one of them; a component and a field of it cannot both vary";
                    self.error("E0403", &place("path"), message, help);
                }
            }
        }
    }

    fn seed_is_not_set(&mut self, place: &str, path: &str) {
        if path.trim() == "train.seed" {
            let message = "seeds cannot be values of a sweep: runs that differ only in them form one row";
            self.error("E0403", place, message, "write `seeds: [0, 1, 2]`");
        }
    }

    /// Checks that the lists of a zip have the same length.
    fn zip(&mut self) {
        let over = &self.sweep.over;
        let count = |a: &Axis| a.values.listed().map(<[String]>::len);
        let Some(first) = over.first().filter(|_| matches!(self.sweep.combine, Combine::Zip)) else { return };
        if let Some(i) = over.iter().position(|a| count(a) != count(first))
            && let (Some(n), Some(want)) = (count(&over[i]), count(first))
        {
            let message = format!("{n} values, but `{}` has {want}", first.path);
            let help = "zipped lists must have the same length; `combine: Grid` combines all values";
            self.error("E0401", &format!("over[{i}].values"), message, help);
        }
    }

    /// Checks names and changes of the arms.
    fn arms(&mut self) {
        let arms = &self.sweep.arms;
        for (i, arm) in arms.iter().enumerate() {
            if arms[..i].iter().any(|other| other.name == arm.name) {
                let message = format!("two arms have the name {:?}", &*arm.name);
                self.error("E0405", &format!("arms[{i}].name"), message, "give each arm a name of its own");
            }
            for (j, assignment) in arm.set.iter().enumerate() {
                let place = format!("arms[{i}].set[{j}]");
                let path = assignment.split('=').next().unwrap_or_default();
                self.seed_is_not_set(&place, path);
                if path.trim() == "name" {
                    let help = "write it as the arm's `name`";
                    self.error("E0403", &place, "an arm already names its recipe", help);
                }
                let over = self.sweep.over.iter().find(|axis| is_within(path, &axis.path));
                if let Some(axis) = over {
                    let message = format!("`{}` of `over` replaces this value", axis.path);
                    let help = "remove it; values of `over` are set after those of an arm";
                    self.error("E0403", &place, message, help);
                }
            }
        }
    }

    /// Checks that every arm has at least as many different trials as its budget.
    fn tuning(&mut self) {
        let sweep = self.sweep;
        let Some(tune) = &sweep.tune else {
            if let Some(i) = sweep.arms.iter().position(|arm| !arm.tune.is_empty()) {
                let help = "add `tune: (trials: 8)` to the sweep";
                self.error("E0407", &format!("arms[{i}].tune"), "an arm is tuned without a budget", help);
            }
            return;
        };
        if sweep.best.is_none() {
            let help = "add `best: (metric: \"knn/cos/k20/t0.07/heldout\")`";
            self.error("E0407", "tune", "no metric chooses among the trials", help);
        }
        if tune.seeds.is_empty() {
            self.error("E0407", "tune.seeds", "trials need a seed", "write `seeds: [1000]`");
        }
        if let Some(seed) = duplicate(&tune.seeds) {
            let message = format!("the seed {seed} is given twice; list each seed once");
            self.error("E0403", "tune.seeds", message, "remove one of them");
        }
        let over: Vec<&Axis> = sweep.over.iter().collect();
        self.axes("tune.over", &tune.over, true, &over);
        if sweep.arms.is_empty() {
            self.budget("tune.over", tune.trials.get(), &tune.over, &[]);
        }
        let shared: Vec<&Axis> = sweep.over.iter().chain(&tune.over).collect();
        for (i, Arm { tune: own, .. }) in sweep.arms.iter().enumerate() {
            self.axes(&format!("arms[{i}].tune"), own, true, &shared);
            self.budget(&format!("arms[{i}]"), tune.trials.get(), &tune.over, own);
        }
    }

    fn budget(&mut self, place: &str, trials: usize, shared: &[Axis], own: &[Axis]) {
        let mut counts = shared.iter().chain(own).map(|axis| axis.values.count());
        let all = counts.try_fold(1usize, |all, count| all.checked_mul(count?));
        if let Some(all) = all.filter(|all| *all < trials) {
            let message = format!("{trials} trials, but the number of combinations of tuned values is {all}");
            let help = "the budget must be the same for every arm: lower `trials`, or add values";
            self.error("E0407", place, message, help);
        }
    }

    fn comparison(&mut self) {
        let Some(compare) = &self.sweep.compare else { return };
        if compare.resamples.get() > MAX_RESAMPLES {
            let message = format!("{} resamples are more than {MAX_RESAMPLES}", compare.resamples);
            self.error("E0404", "compare.resamples", message, "write `resamples: 10000`");
        }
        let names: Vec<&str> = self.sweep.arms.iter().map(|arm| &*arm.name).collect();
        if names.contains(&compare.to.as_str()) {
            return;
        }
        let near = did_you_mean(&compare.to, names.iter().copied());
        let help = match near {
            Some(near) => format!("did you mean {near:?}?"),
            None if names.is_empty() => "name the variants in `arms`".to_string(),
            None => format!("the arms are {}", names.join(", ")),
        };
        let message = format!("there is no arm {:?} to compare with", compare.to);
        self.error("E0405", "compare.to", message, &help);
    }

    fn sizes(&mut self) {
        let sweep = self.sweep;
        if let Some(seed) = duplicate(&sweep.seeds) {
            let message = format!("the seed {seed} is given twice; list each seed once");
            self.error("E0403", "seeds", message, "remove one of them");
        }
        let trials =
            sweep.tune.as_ref().map_or(0.0, |tune| tune.trials.get() as f64 * tune.seeds.len() as f64);
        let cells = sweep.combinations() as f64 * sweep.arms.len().max(1) as f64;
        let runs = cells * (sweep.seeds.len().max(1) as f64 + trials);
        if runs > MAX_RUNS as f64 {
            let message = format!("{runs:.3e} runs are more than {MAX_RUNS}");
            let help = "list fewer values, or draw some combinations with `combine: Random(runs: 20)`";
            self.error("E0404", "over", message, help);
        }
    }
}

impl Sweep {
    pub(super) fn check(&self, text: &str) -> Vec<Diagnostic> {
        let mut checks = Checks { sweep: self, root: recipe_text::parse(text), found: Vec::new() };
        if self.over.is_empty() && self.arms.is_empty() && self.tune.is_none() {
            let help = "add a path with its values, such as (path: \"optimizer.lr\", values: [0.05, 0.1])";
            checks.error("E0401", "over", "nothing differs between the runs", help);
        }
        checks.axes("over", &self.over, matches!(self.combine, Combine::Random(_)), &[]);
        checks.arms();
        checks.tuning();
        checks.comparison();
        checks.sizes();
        checks.zip();
        checks.found
    }

    /// Checks what depends on the recipe: that nothing is chosen by the test split unless `on_test` says so, and that
    /// the seeds of trials are not trained again. `seeds` are those of the combinations.
    ///
    /// # Errors
    /// The mistakes, with their positions in the sweep's text.
    pub fn check_choice(&self, source: &Source, splits: &Splits, seeds: &[u64]) -> Result<(), Diagnostics> {
        let mut checks = Checks { sweep: self, root: recipe_text::parse(&source.text), found: Vec::new() };
        if let Some(best) = &self.best
            && !best.on_test
            && splits.test.is_some()
            && may_read_test_split(&best.metric)
        {
            let message = format!("`{}` is a metric of the test split", best.metric);
            let help = "add `HeldOut(probe: …)` to the probes and choose by its metric, which ends in `/heldout`; or \
                        write `on_test: true`";
            checks.error("E0406", "best.metric", message, help);
        }
        if let Some(tune) = &self.tune
            && let Some(seed) = tune.seeds.iter().find(|seed| seeds.contains(seed))
        {
            let message = format!("the seed {seed} of the trials is also one of the runs after them");
            checks.error("E0407", "tune.seeds", message, "results need seeds that chose nothing");
        }
        if checks.found.is_empty() {
            return Ok(());
        }
        Err(Diagnostics { text: source.text.clone(), path: source.path.clone(), all: checks.found })
    }
}

/// Writes a path without brackets: `list.0` and `list[0]` mean the same.
fn plain(path: &str) -> String {
    path.trim().replace('[', ".").replace(']', "")
}

/// Returns whether two paths are the same, or one is within the other.
fn overlap(a: &str, b: &str) -> bool {
    is_within(a, b) || is_within(b, a)
}

/// Returns whether `inner` is `outer` or a part of it.
fn is_within(inner: &str, outer: &str) -> bool {
    belongs(&plain(inner), &plain(outer))
}
