//! A sweep: runs of one recipe that differ in some of its values.

mod check;
mod comparison;
mod points;
mod study;
mod table;
mod tuning;

pub use comparison::{ArmComparison, ArmDifference, compare};
pub use points::Point;
pub use study::study;
pub use table::{Row, Standing, order, order_note, table};
pub use tuning::{Trials, choose, tuning_note};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::progress::{Best, Goal};
use crate::recipe::{LoadError, Name, Source, Version};
use crate::recipe_text;
use pauc_traits::component_ron::{Spanned, options};
use pauc_traits::{Count, component};
use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The largest number of runs of a sweep.
const MAX_RUNS: usize = 100_000;
/// The largest number of resamples of a bootstrap, which keeps one mean for each.
const MAX_RESAMPLES: usize = 1_000_000;

component! {
    /// Runs of one recipe that differ in some of its values.
    pub struct Sweep {
        /// The version of the language; this is version 1.
        pub version: Version = Version,
        /// The recipe file; a relative path starts at the sweep's own folder.
        pub recipe: PathBuf,
        /// Changes to all runs, each in the form of `--set`: `"train.epochs=5"`.
        pub set: Vec<String> = Vec::new(),
        /// Named variants of the recipe; each is combined with everything in `over`.
        pub arms: Vec<Arm> = Vec::new(),
        /// The differences between the runs.
        pub over: Vec<Axis> = Vec::new(),
        /// How the values of several paths are combined.
        pub combine: Combine = Combine::Grid,
        /// The seeds of every combination; empty: the recipe's own.
        pub seeds: Vec<u64> = Vec::new(),
        /// The same number of trials for every arm; the values of the best trial by `best` are then trained with `seeds`.
        pub tune: Option<Tuning> = None,
        /// The metric to sort the table by, best first, and to choose trials by; none: the order of the runs.
        pub best: Option<Choice> = None,
        /// Paired differences between the arms over the seeds.
        pub compare: Option<CompareArms> = None,
    }
}

component! {
    /// A named variant of the recipe.
    pub struct Arm {
        /// Its name in tables and for folders, in place of the recipe's: letters, digits, `-`, `_` and `.`.
        pub name: Name,
        /// Its changes to the recipe, each in the form of `--set`.
        pub set: Vec<String> = Vec::new(),
        /// What is tuned in this arm, in addition to the paths of the sweep's `tune`.
        pub tune: Vec<Axis> = Vec::new(),
    }
}

component! {
    /// Tuning with the same budget for every arm: trials with values drawn at random, of which `best` chooses one.
    pub struct Tuning {
        /// The number of trials of each arm, and of each combination of `over`.
        pub trials: Count,
        /// The paths that are tuned in every arm, with their values or distributions.
        pub over: Vec<Axis> = Vec::new(),
        /// The seeds of each trial; they must not be among the sweep's `seeds`.
        pub seeds: Vec<u64> = vec![1000],
        /// The seed of the draws. Every arm gets the same draws of the shared paths.
        pub draws: u64 = 0,
    }
}

component! {
    /// The metric by which a sweep chooses.
    pub struct Choice {
        /// The metric as in the log, with its protocol: `"knn/cos/k20/t0.07/heldout"`.
        pub metric: String,
        /// Whether larger or smaller values are better.
        pub goal: Goal = Goal::Largest,
        /// Whether it may be a metric of the test split. A setting chosen by it looks better on that split than it is.
        pub on_test: bool = false,
    }
}

impl Choice {
    /// Returns the metric and its direction.
    pub fn best(&self) -> Best {
        Best { metric: self.metric.clone(), goal: self.goal }
    }
}

component! {
    /// Paired differences of arms, over the seeds that both have.
    pub struct CompareArms {
        /// The name of the arm that the others are compared with.
        pub to: String,
        /// The metrics, as in the log; empty: all accuracies.
        pub metrics: Vec<String> = Vec::new(),
        /// The number of resamples of the bootstrap, at most 1 000 000.
        pub resamples: Count = Count::lit(10_000),
        /// The seed of the bootstrap.
        pub seed: u64 = 0,
    }
}

component! {
    /// A path of the recipe and its values.
    pub struct Axis {
        /// The path, in the form of `--set`: `"objective[0].term.temperature"`.
        pub path: String,
        /// The values, such as `[0.1, 0.2]` or `[Sgd(lr: 0.1), AdamW(lr: 1e-3)]`; in random sweeps also
        /// `Uniform(from: 0.0, to: 1.0)`, `LogUniform(from: 1e-3, to: 1.0)` or `Integers(from: 1, to: 8)`.
        pub values: Values,
    }
}

/// The values of a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Values {
    /// Listed values, each as a recipe writes it.
    Listed(Vec<String>),
    /// Numbers drawn at random.
    Drawn(Distribution),
}

impl Values {
    /// Returns the listed values.
    fn listed(&self) -> Option<&[String]> {
        match self {
            Values::Listed(all) => Some(all),
            Values::Drawn(_) => None,
        }
    }
}

/// The distribution of random values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Distribution {
    /// Uniform between the two ends, without `to`.
    Uniform {
        /// The smallest.
        from: f64,
        /// The largest.
        to: f64,
    },
    /// Uniform logarithm: for learning rates and temperatures. Both ends must be greater than 0.
    LogUniform {
        /// The smallest.
        from: f64,
        /// The largest.
        to: f64,
    },
    /// Whole numbers, including both ends.
    Integers {
        /// The smallest.
        from: i64,
        /// The largest.
        to: i64,
    },
}

/// How the values of several paths are combined.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Combine {
    /// Every value with every other; the last path varies fastest.
    Grid,
    /// The first values of all paths, then the second ones, and so on; all lists must have the same length.
    Zip,
    /// Independent random draws for each path.
    Random(Draws),
}

component! {
    /// Random combinations.
    pub struct Draws {
        /// The number of draws. A larger number adds draws and does not change the earlier ones.
        pub runs: Count,
        /// The seed of the draws; training has its own.
        pub seed: u64 = 0,
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Spanned::deserialize(d)?;
        if text.starts_with_identifier() {
            return text.parse().map(Values::Drawn);
        }
        let all: Vec<Spanned> = text.parse()?;
        Ok(Values::Listed(all.iter().map(|v| v.text().to_string()).collect()))
    }
}

impl Distribution {
    /// Draws a number, rounded to four significant digits, as a recipe writes it.
    fn draw(self, rng: &mut impl Rng) -> String {
        let short = |v: f64| {
            let rounded: f64 = format!("{v:.3e}").parse().unwrap_or(v);
            // With a point; otherwise a recipe would read an integer.
            format!("{rounded:?}")
        };
        match self {
            Distribution::Uniform { from, to } => short(from + (to - from) * rng.r#gen::<f64>()),
            Distribution::LogUniform { from, to } => {
                short((from.ln() + (to.ln() - from.ln()) * rng.r#gen::<f64>()).exp())
            }
            Distribution::Integers { from, to } => rng.gen_range(from..=to).to_string(),
        }
    }
}

impl Sweep {
    /// Reads a sweep and checks its own rules. The rules of the recipe are checked when its runs are planned.
    ///
    /// # Errors
    /// [`LoadError::File`] if the file cannot be read, [`LoadError::Recipe`] with all mistakes in it.
    pub fn load(path: &Path) -> Result<(Sweep, Source), LoadError> {
        let shown = path.display().to_string();
        let text =
            recipe_text::read(path).map_err(|source| LoadError::File { path: shown.clone(), source })?;
        Self::parse(&shown, &text).map_err(LoadError::Recipe)
    }

    /// Parses a sweep.
    ///
    /// # Errors
    /// The mistakes, with their positions in the text.
    pub fn parse(path: &str, text: &str) -> Result<(Sweep, Source), Diagnostics> {
        let report = |all| Diagnostics { text: text.into(), path: path.into(), all };
        let sweep = options().from_str::<Sweep>(text);
        let sweep = sweep.map_err(|e| report(vec![Diagnostic::from_ron(text, &e)]))?;
        let wrong = sweep.check(text);
        if !wrong.is_empty() {
            return Err(report(wrong));
        }
        Ok((sweep, Source { path: path.into(), original: text.into(), text: text.into() }))
    }

    /// Returns the recipe's path.
    pub fn recipe_beside(&self, sweep: &Path) -> PathBuf {
        sweep.parent().unwrap_or(Path::new("")).join(&self.recipe)
    }
}

/// Returns a value that occurs more than once.
pub fn duplicate<T: Ord + Copy>(values: &[T]) -> Option<T> {
    let mut seen = BTreeSet::new();
    values.iter().copied().find(|v| !seen.insert(*v))
}

fn one_line(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn sweep(combine: &str, over: &str) -> Sweep {
        let text = format!("Sweep(recipe: \"r.ron\", combine: {combine}, over: [{over}])");
        Sweep::parse("s.ron", &text).unwrap_or_else(|e| panic!("{e}")).0
    }

    fn values(sweep: &Sweep) -> Vec<Vec<String>> {
        sweep.points().into_iter().map(|p| p.values).collect()
    }

    const TWO: &str =
        "(path: \"a.b\", values: [1, 2]), (path: \"c\", values: [X(y: [1, 2]), Z(), \"text, (\"])";

    #[test]
    fn a_grid_takes_every_value_with_every_other() {
        let all = values(&sweep("Grid", TWO));
        let want: Vec<Vec<&str>> = ["1", "2"]
            .iter()
            .flat_map(|a| ["X(y: [1, 2])", "Z()", "\"text, (\""].map(|c| vec![*a, c]))
            .collect();
        assert_eq!(all, want);
        let s = sweep("Grid", TWO);
        assert_eq!(s.set(&s.points()[4]), ["a.b=2", "c=Z()"]);
        assert_eq!(s.name(&s.points()[0]), "a.b=1 c=X(y: [1, 2])");
    }

    #[test]
    fn a_zip_goes_through_all_lists_at_once() {
        let s = sweep("Zip", "(path: \"a\", values: [1, 2]), (path: \"b\", values: [3, 4])");
        assert_eq!(values(&s), [["1", "3"], ["2", "4"]]);
        assert_eq!(values(&sweep("Grid", "(path: \"a\", values: [1, 1, 2])")), [["1"], ["2"]], "each once");
    }

    #[test]
    fn random_draws_stay_when_more_are_asked_for() {
        let over = "(path: \"a\", values: LogUniform(from: 1e-3, to: 1e-1)), (path: \"b\", values: [1, 2, 3]), \
                    (path: \"c\", values: Integers(from: 2, to: 5)), (path: \"d\", values: Uniform(from: -1, to: 1))";
        let few = values(&sweep("Random(runs: 5)", over));
        let many = values(&sweep("Random(runs: 400)", over));
        assert_eq!(few, many[..5]);
        assert_ne!(few, values(&sweep("Random(runs: 5, seed: 1)", over)));
        let column = |c: usize| many.iter().map(|v| v[c].parse::<f64>().unwrap()).collect::<Vec<_>>();
        let within = |c: usize, from: f64, to: f64| column(c).iter().all(|v| (from..=to).contains(v));
        assert!(within(0, 1e-3, 1e-1) && within(1, 1.0, 3.0) && within(2, 2.0, 5.0) && within(3, -1.0, 1.0));
        // Half of log-uniform values are below the geometric mean, half of uniform ones below the middle.
        let below = |c: usize, v: f64| column(c).iter().filter(|x| **x < v).count();
        for share in [below(0, 1e-2), below(3, 0.0)].map(|n| n as f64 / 400.0) {
            assert_within!(share, 0.5, tolerance::frequency(0.5, 400));
        }
        assert!(many.iter().all(|v| v[0].trim_start_matches("0.").trim_start_matches('0').len() <= 4));
        // Written so that a recipe reads a fraction.
        assert!(many.iter().all(|v| v[3].contains(['.', 'e'])));
    }

    #[test]
    fn mistakes_are_pointed_at() {
        let refused = |text: &str, code: &str, says: &str| {
            let found = Sweep::parse("s.ron", text).err().unwrap_or_else(|| panic!("{text} is accepted"));
            assert_eq!(found.all[0].code, code, "{found}");
            assert!(found.to_string().contains(says), "no `{says}` in {found}");
        };
        let one = |over: &str, more: &str| format!("Sweep(recipe: \"r.ron\", over: [{over}]{more})");
        refused("Sweep(over: [])", "E0104", "needs the field `recipe`");
        refused(&one("", ""), "E0401", "nothing differs");
        refused(&one("(path: \"a\", values: [])", ""), "E0401", "no values");
        refused(&one("(path: \"a\", value: [])", ""), "E0103", "did you mean `values`?");
        refused(&one("(path: \"a\", values: 3)", ""), "E0106", "3");
        refused(&one("(path: \"a\", values: Uniform(from: 0, to: 1))", ""), "E0402", "s.ron:1:51");
        refused(
            &one("(path: \"a\", values: Unifrm(from: 0, to: 1))", ""),
            "E0102",
            "did you mean `Uniform`?",
        );
        // Only the name is replaced, not the text after it.
        refused(
            &one("(path: \"a\", values: Unifrm(from: 0, to: 1))", ""),
            "E0102",
            "values: Uniform(from: 0, to: 1)",
        );
        refused(
            &one("(path: \"a\", values: Uniform(frm: 0, to: 1))", ""),
            "E0103",
            "values: Uniform(from: 0, to: 1)",
        );
        let random = ", combine: Random(runs: 3)";
        refused(&one("(path: \"a\", values: Uniform(from: 1, to: 0))", random), "E0106", "smaller than `to`");
        refused(&one("(path: \"a\", values: LogUniform(from: 0, to: 1))", random), "E0106", "greater than 0");
        refused(&one("(path: \"train.seed\", values: [1])", ""), "E0403", "write `seeds: [0, 1, 2]`");
        let nested = "(path: \"a[0].b\", values: [1]), (path: \"a.0\", values: [2])";
        refused(&one(nested, ""), "E0403", "set the same value");
        let odd = "(path: \"a\", values: [1, 2]), (path: \"ab\", values: [3])";
        refused(&one(odd, ", combine: Zip"), "E0401", "1 values, but `a` has 2");
        assert!(Sweep::parse("s.ron", &one(odd, "")).is_ok());
    }

    #[test]
    fn values_are_traced_to_their_place_in_the_text() {
        let text = "Sweep(recipe: \"r.ron\", over: [\n  (path: \"a\", values: [1, X()]),\n  (path: \"b\", values: [3]),\n])";
        let (s, source) = Sweep::parse("dir/s.ron", text).unwrap();
        let points = s.points();
        assert_eq!(s.whence(&points[1], &source), "  dir/s.ron:2:27: a=X()\n  dir/s.ron:3:24: b=3");
        assert_eq!(s.recipe_beside(Path::new("dir/s.ron")), Path::new("dir/r.ron"));
    }

    fn full(text: &str) -> Sweep {
        Sweep::parse("s.ron", text).unwrap_or_else(|e| panic!("{e}")).0
    }

    const ARMS: &str = r#"Sweep(recipe: "r.ron", set: ["x=1"], arms: [(name: "none"),
        (name: "pcl", set: ["objective[1].weight=1", "queue=8"], tune: [(path: "w", values: Uniform(from: 0, to: 1))])],
        over: [(path: "k", values: [1, 2])], seeds: [0, 1],
        tune: (trials: 3, over: [(path: "optimizer.lr", values: [0.1, 0.2, 0.3])]), best: (metric: "knn/heldout"))"#;

    #[test]
    fn arms_combine_with_values_and_name_their_recipes() {
        let s = full(ARMS);
        let points = s.points();
        let names: Vec<String> = points.iter().map(|p| s.name(p)).collect();
        assert_eq!(names, ["none k=1", "none k=2", "pcl k=1", "pcl k=2"]);
        assert_eq!(s.set(&points[0]), ["x=1", "name=\"none\"", "k=1"]);
        let set = ["x=1", "name=\"pcl\"", "objective[1].weight=1", "queue=8", "k=2"];
        assert_eq!(s.set(&points[3]), set);
        let alone = full("Sweep(recipe: \"r.ron\", arms: [(name: \"a\")])");
        assert_eq!(alone.points().len(), 1, "no values are needed");
    }

    #[test]
    fn every_arm_has_the_same_number_of_different_trials() {
        let s = full(ARMS);
        let points = s.points();
        let trials: Vec<Vec<Point>> = points.iter().map(|p| s.trials(p)).collect();
        for (point, trials) in points.iter().zip(&trials) {
            assert_eq!(trials.len(), 3);
            let different: BTreeSet<&Vec<String>> = trials.iter().map(|t| &t.tuned).collect();
            assert_eq!(different.len(), 3);
            assert!(trials.iter().all(|t| t.values == point.values && t.arm == point.arm));
        }
        assert_eq!(trials[0][0].tuned.len(), 1);
        assert_eq!(trials[2][0].tuned.len(), 2);
        // The shared path has the same draws in all arms, until a draw repeats one of the first arm.
        assert_eq!(trials[0][0].tuned[0], trials[2][0].tuned[0]);
        assert_eq!(trials[2], s.trials(&points[2]));
        let set = s.set(&trials[2][0]);
        assert!(set[5].starts_with("optimizer.lr=0.") && set[6].starts_with("w="), "{set:?}");
        let note = tuning_note(&s).unwrap();
        let want = "tuning: 3 trials for each of 2 arms, seed 1000, chosen by knn/heldout (largest, on training images)";
        assert_eq!(note, want);
    }

    #[test]
    fn the_best_trial_is_chosen_when_all_have_ended() {
        let best = full(ARMS).best.unwrap();
        let row = |status: &str, value: f64| {
            let metrics = std::collections::BTreeMap::from([("knn/heldout".to_string(), value)]);
            let run = Standing { seed: 1000, status: status.into(), metrics, ..Standing::default() };
            let spread = crate::statistics::Spread::of(&[value]);
            let metrics = [("knn/heldout".to_string(), spread)].into();
            Row { runs: vec![run], metrics, ..Row::default() }
        };
        let rows = [row("finished", 0.5), row("failed", 0.9), row("finished", 0.7), row("finished", 0.7)];
        assert_eq!(choose(&rows, &best), Some(2));
        let smallest = Choice { goal: Goal::Smallest, ..best.clone() };
        assert_eq!(choose(&rows, &smallest), Some(0));
        assert_eq!(choose(&[row("finished", 0.5), row("interrupted", 0.4)], &best), None);
        assert_eq!(choose(&[row("failed", 0.5)], &best), None);
    }

    #[test]
    fn mistakes_of_arms_and_tuning_are_pointed_at() {
        let refused = |text: String, code: &str, says: &str| {
            let found = Sweep::parse("s.ron", &text).err().unwrap_or_else(|| panic!("{text} is accepted"));
            assert_eq!(found.all[0].code, code, "{found}");
            assert!(found.to_string().contains(says), "no `{says}` in {found}");
        };
        let with = |fields: &str| format!("Sweep(recipe: \"r.ron\", {fields})");
        refused(with("arms: [(name: \"a b\")]"), "E0106", "letters, digits");
        refused(with("arms: [(name: \"a\"), (name: \"a\")]"), "E0405", "two arms have the name \"a\"");
        refused(
            with("arms: [(name: \"a\", set: [\"name=\\\"b\\\"\"])]"),
            "E0403",
            "already names its recipe",
        );
        refused(with("arms: [(name: \"a\", set: [\"train.seed=3\"])]"), "E0403", "write `seeds: [0, 1, 2]`");
        let shadowed = "arms: [(name: \"a\", set: [\"optimizer.lr=3\"])], over: [(path: \"optimizer\", values: [Sgd()])]";
        refused(with(shadowed), "E0403", "`optimizer` of `over` replaces this value");
        // Values within what an arm sets as a whole are set after it.
        let within = "arms: [(name: \"a\", set: [\"optimizer=Sgd()\"])], over: [(path: \"optimizer.lr\", values: [1])]";
        assert!(Sweep::parse("s.ron", &with(within)).is_ok());
        let arms = "arms: [(name: \"pcl\"), (name: \"pauc\")]";
        let many = format!("{arms}, compare: (to: \"pcl\", resamples: 1000001)");
        refused(with(&many), "E0404", "1000001 resamples are more than 1000000");
        refused(with(&format!("{arms}, compare: (to: \"pcll\")")), "E0405", "did you mean \"pcl\"?");
        refused(
            with("over: [(path: \"k\", values: [1])], compare: (to: \"x\")"),
            "E0405",
            "name the variants in `arms`",
        );
        let best = "best: (metric: \"knn/heldout\")";
        let tune = |inside: &str| with(&format!("{arms}, {best}, tune: ({inside})"));
        refused(with(&format!("{arms}, tune: (trials: 1)")), "E0407", "no metric chooses");
        refused(tune("trials: 2"), "E0407", "2 trials, but the number of combinations of tuned values is 1");
        let integers = "trials: 4, over: [(path: \"k\", values: Integers(from: 1, to: 3))]";
        refused(tune(integers), "E0407", "4 trials, but the number of combinations of tuned values is 3");
        refused(tune("trials: 1, seeds: []"), "E0407", "trials need a seed");
        refused(
            with("arms: [(name: \"a\", tune: [(path: \"k\", values: [1])])]"),
            "E0407",
            "without a budget",
        );
        let many = "trials: 60000, over: [(path: \"k\", values: Uniform(from: 0, to: 1))]";
        refused(tune(many), "E0404", "1.200e5 runs");
    }

    #[test]
    fn nothing_is_chosen_by_the_test_split_unawares() {
        let splits = |test: bool| {
            let published = pauc_traits::dataset::Published::new(
                10,
                10,
                pauc_traits::ImageShape { channels: 1, height: 2, width: 2 },
                2,
            );
            let splits = published.splits("data");
            pauc_traits::dataset::Splits { test: splits.test.clone().filter(|_| test), ..splits }
        };
        let check = |best: &str, test: bool, seeds: &[u64]| {
            let text =
                format!("Sweep(recipe: \"r.ron\", over: [(path: \"k\", values: [1])], best: ({best}))");
            let (sweep, source) = Sweep::parse("s.ron", &text).unwrap_or_else(|e| panic!("{e}"));
            sweep.check_choice(&source, &splits(test), seeds).map_err(|e| e.to_string())
        };
        let refused = check("metric: \"knn/cos/k20/t0.07\"", true, &[]).unwrap_err();
        assert!(refused.contains("E0406") && refused.contains("s.ron:1:"), "{refused}");
        assert!(refused.contains("`/heldout`") && refused.contains("`on_test: true`"), "{refused}");
        for (best, test) in [
            ("metric: \"knn/cos/k20/t0.07\", on_test: true", true),
            ("metric: \"knn/cos/k20/t0.07\"", false),
            ("metric: \"knn/cos/k20/t0.07/heldout\"", true),
            ("metric: \"rankme/features\"", true),
        ] {
            assert_eq!(check(best, test, &[]), Ok(()), "{best}");
        }
        let (sweep, source) = Sweep::parse("s.ron", ARMS).unwrap();
        let twice = sweep.check_choice(&source, &splits(true), &[3, 1000]).unwrap_err();
        assert!(twice.to_string().contains("the seed 1000 of the trials"), "{twice}");
    }
}
