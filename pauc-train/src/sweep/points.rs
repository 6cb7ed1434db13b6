//! The combinations of a sweep.

use super::{Axis, Combine, Draws, Sweep, Values, one_line};
use crate::recipe::Source;
use crate::recipe_text;
use pauc_traits::rng::{Purpose, stream};
use rand::Rng;
use std::collections::BTreeSet;

/// One combination: an arm, values of the paths of `over`, and in a trial those of the tuned paths.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The index of the arm; `None` in a sweep without arms.
    pub arm: Option<usize>,
    /// The value of each path, in the order of [`Sweep::over`].
    pub values: Vec<String>,
    /// The value of each tuned path, in the order of [`Sweep::tuned`]; empty unless it is a trial.
    pub tuned: Vec<String>,
    /// The index of each listed value, tuned ones last; `None` for a value drawn from a distribution.
    places: Vec<Option<usize>>,
}

/// Draws number `n` of several axes: a value of each, with its index if it is listed.
fn draw(axes: &[&Axis], seed: u64, n: usize, view: u64) -> Vec<(String, Option<usize>)> {
    let one = |(i, axis): (usize, &&Axis)| {
        let mut rng = stream(seed, Purpose::Sweep, n as u64, i as u64, view);
        match &axis.values {
            Values::Listed(all) => {
                let place = rng.gen_range(0..all.len());
                (all[place].clone(), Some(place))
            }
            Values::Drawn(d) => (d.draw(&mut rng), None),
        }
    };
    axes.iter().enumerate().map(one).collect()
}

impl Sweep {
    /// Returns the number of combinations of `over`, equal ones included; `usize::MAX` if it is larger.
    pub(super) fn combinations(&self) -> usize {
        let mut lengths = self.over.iter().map(|a| a.values.listed().map_or(1, <[String]>::len));
        match &self.combine {
            Combine::Zip => lengths.next().unwrap_or(1),
            Combine::Grid => lengths.fold(1, usize::saturating_mul),
            Combine::Random(draws) => draws.runs.get(),
        }
    }

    /// Returns the distinct combinations of arms and values, in a fixed order: arm by arm.
    pub fn points(&self) -> Vec<Point> {
        let mut values = self.values();
        let mut seen = BTreeSet::new();
        values.retain(|v| seen.insert(v.iter().map(|(value, _)| value.clone()).collect::<Vec<_>>()));
        let arms: Vec<Option<usize>> =
            if self.arms.is_empty() { vec![None] } else { (0..self.arms.len()).map(Some).collect() };
        let point = |arm, all: &[(String, Option<usize>)]| {
            let (values, places) = all.iter().cloned().unzip();
            Point { arm, values, tuned: Vec::new(), places }
        };
        arms.into_iter().flat_map(|arm| values.iter().map(move |all| point(arm, all))).collect()
    }

    /// Returns the combinations of `over`: a value of each path, with its index in the list.
    fn values(&self) -> Vec<Vec<(String, Option<usize>)>> {
        let lists: Vec<&[String]> = self.over.iter().map(|a| a.values.listed().unwrap_or_default()).collect();
        let lengths: Vec<usize> = lists.iter().map(|l| l.len()).collect();
        let at = |places: Vec<usize>| {
            lists.iter().zip(places).map(|(l, p)| (l[p].clone(), Some(p))).collect::<Vec<_>>()
        };
        match &self.combine {
            Combine::Zip => (0..self.combinations()).map(|i| at(vec![i; lengths.len()])).collect(),
            Combine::Grid => {
                let places = |mut i: usize| {
                    let mut places = vec![0; lengths.len()];
                    for (place, length) in places.iter_mut().zip(&lengths).rev() {
                        (*place, i) = (i % length, i / length);
                    }
                    places
                };
                (0..self.combinations()).map(|i| at(places(i))).collect()
            }
            Combine::Random(Draws { runs, seed }) => {
                let axes: Vec<&Axis> = self.over.iter().collect();
                (0..runs.get()).map(|n| draw(&axes, *seed, n, 0)).collect()
            }
        }
    }

    /// Returns the tuned paths of an arm: those of the sweep, then its own.
    pub fn tuned(&self, arm: Option<usize>) -> Vec<&Axis> {
        let shared = self.tune.iter().flat_map(|tune| &tune.over);
        shared.chain(arm.iter().flat_map(|arm| &self.arms[*arm].tune)).collect()
    }

    /// Returns the trials of a combination, all of them different; none without tuning.
    pub fn trials(&self, point: &Point) -> Vec<Point> {
        let Some(tune) = &self.tune else { return Vec::new() };
        let axes = self.tuned(point.arm);
        let trials = tune.trials.get();
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        // With at least as many combinations as trials, this many draws find too few with a probability below e⁻¹⁰⁰.
        for n in 0..100 * trials + 1000 {
            let (tuned, places): (Vec<_>, Vec<_>) = draw(&axes, tune.draws, n, 1).into_iter().unzip();
            if seen.insert(tuned.clone()) {
                let places = point.places.iter().copied().chain(places).collect();
                found.push(Point { tuned, places, ..point.clone() });
            }
            if found.len() == trials {
                break;
            }
        }
        found
    }

    /// Returns the `--set` assignments of a combination.
    pub fn set(&self, point: &Point) -> Vec<String> {
        let mut all = self.set.clone();
        if let Some(arm) = point.arm.map(|i| &self.arms[i]) {
            all.push(format!("name={:?}", &*arm.name));
            all.extend(arm.set.iter().cloned());
        }
        all.extend(self.over.iter().zip(&point.values).map(|(a, v)| format!("{}={v}", a.path.trim())));
        let tuned = self.tuned(point.arm).into_iter().zip(&point.tuned);
        all.extend(tuned.map(|(a, v)| format!("{}={v}", a.path.trim())));
        all
    }

    /// Describes a combination: `pcl optimizer.lr=0.1 train.batch=64`.
    pub fn name(&self, point: &Point) -> String {
        let one = |(a, v): (&Axis, &String)| format!("{}={}", a.path.trim(), one_line(v));
        let arm = point.arm.map(|i| self.arms[i].name.to_string());
        let values = self.over.iter().zip(&point.values).map(one);
        let tuned = self.tuned(point.arm).into_iter().zip(&point.tuned).map(one);
        let all: Vec<String> = arm.into_iter().chain(values).chain(tuned).collect();
        if all.is_empty() { "the recipe".to_string() } else { all.join(" ") }
    }

    /// Returns the positions of a combination's values in the sweep's text, one per line, for errors.
    pub fn whence(&self, point: &Point, source: &Source) -> String {
        let root = recipe_text::parse(&source.text);
        let line = |path: String, what: String| {
            let at = root.as_ref().map(|root| recipe_text::nearest(root, &path).start).unwrap_or(0);
            let before = &source.text[..at];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            format!("  {}:{line}:{column}: {what}", source.path)
        };
        let mut lines = Vec::new();
        if let Some(i) = point.arm {
            for (j, assignment) in self.arms[i].set.iter().enumerate() {
                lines.push(line(format!("arms[{i}].set[{j}]"), one_line(assignment)));
            }
        }
        let shared = self.tune.as_ref().map_or(0, |tune| tune.over.len());
        let axis = |i: usize| match (i.checked_sub(self.over.len()), point.arm) {
            (None, _) => format!("over[{i}]"),
            (Some(i), Some(arm)) if i >= shared => format!("arms[{arm}].tune[{}]", i - shared),
            (Some(i), _) => format!("tune.over[{i}]"),
        };
        let axes = self.over.iter().chain(self.tuned(point.arm));
        for (i, (path, value)) in axes.zip(point.values.iter().chain(&point.tuned)).enumerate() {
            let place = point.places[i].map(|place| format!("[{place}]")).unwrap_or_default();
            let what = format!("{}={}", path.path.trim(), one_line(value));
            lines.push(line(format!("{}.values{place}", axis(i)), what));
        }
        lines.join("\n")
    }
}
