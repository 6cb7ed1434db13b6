//! A sweep: runs of one recipe that differ in some of its values.

mod table;

pub use table::{Row, Standing, order, table};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::progress::Best;
use crate::recipe::{LoadError, Source, Version, belongs};
use crate::recipe_text;
use pauc_traits::component_ron::{Spanned, options};
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::term::Severity;
use pauc_traits::{Count, component};
use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The largest number of runs of a sweep.
const MAX_RUNS: usize = 100_000;

component! {
    /// Runs of one recipe that differ in some of its values.
    pub struct Sweep {
        /// The version of the language; this is version 1.
        pub version: Version = Version,
        /// The recipe file; a relative path starts at the sweep's own folder.
        pub recipe: PathBuf,
        /// Changes to all runs, each in the form of `--set`: `"train.epochs=5"`.
        pub set: Vec<String> = Vec::new(),
        /// The differences between the runs.
        pub over: Vec<Axis>,
        /// How the values of several paths are combined.
        pub combine: Combine = Combine::Grid,
        /// The seeds of every combination; empty: the recipe's own.
        pub seeds: Vec<u64> = Vec::new(),
        /// The metric to sort the table by, best first; none: the order of the runs.
        pub best: Option<Best> = None,
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

/// One combination of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The value of each path, in the order of [`Sweep::over`].
    pub values: Vec<String>,
    /// The index of each listed value; `None` for a value drawn from a distribution.
    places: Vec<Option<usize>>,
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

    fn check(&self, text: &str) -> Vec<Diagnostic> {
        let root = recipe_text::parse(text);
        let error = |code, path: &str, message: String, help: &str| {
            Diagnostic::at(Severity::Error, code, root.as_ref(), path, message, help)
        };
        let mut found = Vec::new();
        if self.over.is_empty() {
            let help = "add a path with its values, such as (path: \"optimizer.lr\", values: [0.05, 0.1])";
            found.push(error("E0401", "over", "nothing differs between the runs".into(), help));
        }
        for (i, axis) in self.over.iter().enumerate() {
            let place = |part: &str| format!("over[{i}].{part}");
            match &axis.values {
                Values::Listed(all) if all.is_empty() => {
                    found.push(error("E0401", &place("values"), "there are no values".into(), "add some"));
                }
                Values::Drawn(_) if !matches!(self.combine, Combine::Random(_)) => {
                    let message = "random values without `combine: Random`".to_string();
                    let help = "write `combine: Random(runs: 20)`, or list the values";
                    found.push(error("E0402", &place("values"), message, help));
                }
                Values::Drawn(d) => found.extend(d.wrong().map(|m| error("E0106", &place("values"), m, ""))),
                Values::Listed(_) => {}
            }
            if axis.path.trim() == "train.seed" {
                let message = "seeds cannot be values of a sweep: runs that differ only in them form one row";
                let help = "write `seeds: [0, 1, 2]`";
                found.push(error("E0403", &place("path"), message.into(), help));
            }
            for other in &self.over[..i] {
                if overlap(&axis.path, &other.path) {
                    let message = format!("`{}` and `{}` set the same value", other.path, axis.path);
                    let help = "remove one of them; a component and a field of it cannot both vary";
                    found.push(error("E0403", &place("path"), message, help));
                }
            }
        }
        if let Some(seed) = duplicate(&self.seeds) {
            let message = format!("the seed {seed} is given twice; list each seed once");
            found.push(error("E0403", "seeds", message, "remove one of them"));
        }
        let runs = self.combinations() as f64 * self.seeds.len().max(1) as f64;
        if runs > MAX_RUNS as f64 {
            let message = format!("{runs:.3e} runs are more than {MAX_RUNS}");
            let help = "list fewer values, or draw some combinations with `combine: Random(runs: 20)`";
            found.push(error("E0404", "over", message, help));
        }
        let count = |a: &Axis| a.values.listed().map(<[String]>::len);
        if matches!(self.combine, Combine::Zip)
            && let Some(first) = self.over.first()
            && let Some(i) = self.over.iter().position(|a| count(a) != count(first))
            && let (Some(n), Some(want)) = (count(&self.over[i]), count(first))
        {
            let message = format!("{n} values, but `{}` has {want}", first.path);
            let help = "zipped lists must have the same length; `combine: Grid` combines all values";
            found.push(error("E0401", &format!("over[{i}].values"), message, help));
        }
        found
    }

    /// Returns the number of combinations, equal ones included; `usize::MAX` if it is larger.
    fn combinations(&self) -> usize {
        let mut lengths = self.over.iter().map(|a| a.values.listed().map_or(1, <[String]>::len));
        match &self.combine {
            Combine::Zip => lengths.next().unwrap_or(0),
            Combine::Grid => lengths.fold(1, usize::saturating_mul),
            Combine::Random(draws) => draws.runs.get(),
        }
    }

    /// Returns the distinct combinations, in a fixed order.
    pub fn points(&self) -> Vec<Point> {
        let lists: Vec<&[String]> = self.over.iter().map(|a| a.values.listed().unwrap_or_default()).collect();
        let lengths: Vec<usize> = lists.iter().map(|l| l.len()).collect();
        let at = |places: Vec<usize>| Point {
            values: lists.iter().zip(&places).map(|(l, p)| l[*p].clone()).collect(),
            places: places.into_iter().map(Some).collect(),
        };
        let mut all: Vec<Point> = match &self.combine {
            Combine::Zip => {
                let n = lengths.first().copied().unwrap_or(0);
                (0..n).map(|i| at(vec![i; lengths.len()])).collect()
            }
            Combine::Grid => {
                let n: usize = lengths.iter().product();
                let places = |mut i: usize| {
                    let mut places = vec![0; lengths.len()];
                    for (place, length) in places.iter_mut().zip(&lengths).rev() {
                        (*place, i) = (i % length, i / length);
                    }
                    places
                };
                (0..n).map(|i| at(places(i))).collect()
            }
            Combine::Random(draws) => {
                let draw = |n: usize| {
                    let one = |(i, axis): (usize, &Axis)| {
                        let mut rng = stream(draws.seed, Purpose::Sweep, n as u64, i as u64, 0);
                        match &axis.values {
                            Values::Listed(all) => {
                                let place = rng.gen_range(0..all.len());
                                (all[place].clone(), Some(place))
                            }
                            Values::Drawn(d) => (d.draw(&mut rng), None),
                        }
                    };
                    let (values, places) = self.over.iter().enumerate().map(one).unzip();
                    Point { values, places }
                };
                (0..draws.runs.get()).map(draw).collect()
            }
        };
        let mut seen = BTreeSet::new();
        all.retain(|p| seen.insert(p.values.clone()));
        all
    }

    /// Returns the `--set` assignments of a combination.
    pub fn set(&self, point: &Point) -> Vec<String> {
        let own = self.over.iter().zip(&point.values).map(|(a, v)| format!("{}={v}", a.path.trim()));
        self.set.iter().cloned().chain(own).collect()
    }

    /// Describes a combination: `optimizer.lr=0.1 train.batch=64`.
    pub fn name(&self, point: &Point) -> String {
        let one = |(a, v): (&Axis, &String)| format!("{}={}", a.path.trim(), one_line(v));
        self.over.iter().zip(&point.values).map(one).collect::<Vec<_>>().join(" ")
    }

    /// Returns the positions of a combination's values in the sweep's text, one per line, for errors.
    pub fn whence(&self, point: &Point, source: &Source) -> String {
        let root = recipe_text::parse(&source.text);
        let mut lines = Vec::new();
        for (i, axis) in self.over.iter().enumerate() {
            let path = match point.places[i] {
                Some(place) => format!("over[{i}].values[{place}]"),
                None => format!("over[{i}].values"),
            };
            let at = root.as_ref().map(|root| recipe_text::nearest(root, &path).start).unwrap_or(0);
            let before = &source.text[..at];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            let value = one_line(&point.values[i]);
            lines.push(format!("  {}:{line}:{column}: {}={value}", source.path, axis.path.trim()));
        }
        lines.join("\n")
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

/// Returns whether two paths are the same, or one is within the other.
fn overlap(a: &str, b: &str) -> bool {
    // `list.0` and `list[0]` mean the same.
    let plain = |p: &str| p.trim().replace('[', ".").replace(']', "");
    let (a, b) = (plain(a), plain(b));
    belongs(&a, &b) || belongs(&b, &a)
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
}
