//! Comparison of runs: the differences between their recipes and between their metrics.

use crate::history::History;
use crate::recipe_text::{self, Node, Parts};
use crate::run_dir::{RunDir, not_a_run};
use crate::statistics::{Paired, Spread};
use pauc_report::events::{Event, Log, Metric, Subject};
use pauc_traits::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One run of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// The folder.
    pub path: PathBuf,
    /// The seed.
    pub seed: u64,
    /// `finished`, `interrupted`, `running` or `failed`.
    pub status: String,
    /// The newest value of each metric of the trained encoder.
    pub metrics: BTreeMap<String, f64>,
}

/// The runs of one recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// The recipe's name.
    pub name: String,
    /// The first digits of its hash.
    pub hash: String,
    /// Its recipes, if it was changed in the middle of the runs.
    #[serde(skip_serializing_if = "History::is_empty")]
    pub recipes: History,
    /// The runs, by seed.
    pub runs: Vec<Run>,
    #[serde(skip)]
    resolved: String,
}

/// A value that differs between two recipes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its path, in the form of `--set`.
    pub path: String,
    /// The value in the first recipe; `None` if it is absent.
    pub first: Option<String>,
    /// The value in the other recipe.
    pub other: Option<String>,
}

/// A metric in two groups.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delta {
    /// The metric.
    pub metric: String,
    /// In the first group.
    pub first: Spread,
    /// In the other group.
    pub other: Spread,
    /// The other mean minus the first.
    pub difference: f64,
    /// The test over the seeds that both groups have, if there are two or more.
    pub paired: Option<Paired>,
}

/// A group, compared with the first one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Beside {
    /// The group's recipe.
    pub hash: String,
    /// The differences of its recipe from the first.
    pub recipe: Vec<Change>,
    /// Metrics that both groups have.
    pub metrics: Vec<Delta>,
    /// Metrics that only one of them has.
    pub not_compared: Vec<String>,
}

/// The content of `compare`'s output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The groups, in the order of the command line.
    pub groups: Vec<Group>,
    /// Every group but the first, compared with the first.
    pub beside: Vec<Beside>,
}

impl Comparison {
    /// Returns the metrics whose means differ by more than `tolerance`, or that only one side has.
    pub fn beyond(&self, tolerance: f64) -> Vec<String> {
        let mut found = Vec::new();
        for b in &self.beside {
            let far = |d: &&Delta| d.difference.is_nan() || d.difference.abs() > tolerance;
            found.extend(b.metrics.iter().filter(far).map(|d| format!("{}: {:+}", d.metric, d.difference)));
            found.extend(b.not_compared.iter().map(|m| format!("{m}: only one of the recipes has it")));
        }
        found
    }
}

/// Reads the runs in folders, or in the `seed…` folders below them, and compares them.
///
/// # Errors
/// [`Error::Config`] if a folder is not a run, one run is named twice, or all are of one recipe.
pub fn compare(folders: &[PathBuf]) -> Result<Comparison> {
    let groups = groups(folders)?;
    if let [only] = &groups[..] {
        let message = format!("all these runs have recipe {}, so there is nothing to compare", only.hash);
        return Err(Error::config(message));
    }
    let beside = against_first(&groups);
    Ok(Comparison { groups, beside })
}

/// Compares every group but the first with the first.
pub fn against_first(groups: &[Group]) -> Vec<Beside> {
    groups.iter().skip(1).map(|g| beside(&groups[0], g)).collect()
}

/// Reads the runs in folders, or in the `seed…` folders below them, and groups them by recipe, in the order of
/// the folders.
///
/// # Errors
/// [`Error::Config`] if a folder is not a run, or one run is named twice.
pub fn groups(folders: &[PathBuf]) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for folder in folders {
        for path in runs_in(folder)? {
            let dir = RunDir::at(&path);
            let info = dir.info()?.ok_or_else(|| no_run(&path))?;
            let run = Run { metrics: metrics(&path)?, seed: info.seed, status: info.status, path };
            let group = match groups.iter_mut().find(|g| g.hash == info.hash) {
                Some(group) => group,
                None => {
                    let file = run.path.join("recipe.resolved.ron");
                    let resolved = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
                    let (name, hash, recipes) = (info.name, info.hash, info.recipes);
                    groups.push(Group { name, hash, recipes, runs: Vec::new(), resolved });
                    groups.last_mut().ok_or_else(|| no_run(folder))?
                }
            };
            if let Some(twice) = group.runs.iter().find(|r| r.seed == run.seed) {
                let (a, b) = (twice.path.display(), run.path.display());
                return Err(Error::config(format!(
                    "{a} and {b} are the same recipe and seed; remove one of them"
                )));
            }
            group.runs.push(run);
            group.runs.sort_by_key(|r| r.seed);
        }
    }
    Ok(groups)
}

fn no_run(path: &Path) -> Error {
    Error::config(not_a_run(path, "run.json"))
}

/// Returns the folder itself, or the folders of its seeds.
pub(crate) fn runs_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.join("run.json").is_file() {
        return Ok(vec![folder.to_path_buf()]);
    }
    let below = std::fs::read_dir(folder).map_err(|_| no_run(folder))?;
    let below = below.filter_map(|e| Some(e.ok()?.path()));
    let mut found: Vec<PathBuf> = below.filter(|p| p.join("run.json").is_file()).collect();
    found.sort();
    if found.is_empty() { Err(no_run(folder)) } else { Ok(found) }
}

/// Returns the newest record of each metric of the trained encoder, by name.
///
/// # Errors
/// If the log cannot be read.
pub fn newest_metrics(run: &Path) -> Result<BTreeMap<String, Metric>> {
    let mut newest = BTreeMap::new();
    for event in Log::read(&run.join("metrics.jsonl"))?.events {
        if let Event::Probe(p) = event
            && p.subject == Subject::Trained
        {
            newest.extend(p.metrics.into_iter().map(|m| (m.name.clone(), m)));
        }
    }
    Ok(newest)
}

/// Returns the newest value of each metric of the trained encoder.
///
/// # Errors
/// If the log cannot be read.
pub fn metrics(run: &Path) -> Result<BTreeMap<String, f64>> {
    Ok(newest_metrics(run)?.into_iter().map(|(name, metric)| (name, metric.value)).collect())
}

fn beside(first: &Group, other: &Group) -> Beside {
    let values = |g: &Group, metric: &str| -> BTreeMap<u64, f64> {
        g.runs.iter().filter_map(|r| Some((r.seed, *r.metrics.get(metric)?))).collect()
    };
    let mut names: Vec<&String> =
        first.runs.iter().chain(&other.runs).flat_map(|r| r.metrics.keys()).collect();
    names.sort();
    names.dedup();
    let (mut metrics, mut not_compared) = (Vec::new(), Vec::new());
    for name in names {
        let (a, b) = (values(first, name), values(other, name));
        if a.is_empty() || b.is_empty() {
            not_compared.push(name.clone());
            continue;
        }
        let spread = |v: &BTreeMap<u64, f64>| Spread::of(&v.values().copied().collect::<Vec<_>>());
        let pairs: Vec<f64> = a.iter().filter_map(|(seed, a)| Some(b.get(seed)? - a)).collect();
        let (a, b) = (spread(&a), spread(&b));
        let (difference, paired) = (b.mean - a.mean, Paired::of(&pairs));
        metrics.push(Delta { metric: name.clone(), first: a, other: b, difference, paired });
    }
    let recipe = changes(&first.resolved, &other.resolved);
    Beside { hash: other.hash.clone(), recipe, metrics, not_compared }
}

/// Returns the values that differ between two resolved recipes, by path; seeds and names are ignored.
pub fn changes(first: &str, other: &str) -> Vec<Change> {
    let mut found = all_changes(first, other);
    found.retain(|c| !["name", "train.seed"].contains(&c.path.as_str()));
    found
}

/// Returns the values that differ between two resolved recipes, by path.
pub(crate) fn all_changes(first: &str, other: &str) -> Vec<Change> {
    let (Some(a), Some(b)) = (recipe_text::parse(first), recipe_text::parse(other)) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    walk(String::new(), (first, Some(&a)), (other, Some(&b)), &mut found);
    found
}

fn text(side: (&str, Option<&Node>)) -> Option<String> {
    let words: Vec<&str> = side.0[side.1?.span.clone()].split_whitespace().collect();
    Some(words.join(" "))
}

/// Returns the text before the brackets of a component.
fn head<'a>(side: (&'a str, &Node)) -> &'a str {
    let whole = &side.0[side.1.span.clone()];
    whole.split(['(', '[']).next().unwrap_or(whole).trim()
}

fn walk(path: String, a: (&str, Option<&Node>), b: (&str, Option<&Node>), found: &mut Vec<Change>) {
    if let ((at, Some(x)), (bt, Some(y))) = (a, b)
        && head((at, x)) == head((bt, y))
    {
        match (&x.parts, &y.parts) {
            (Parts::Fields(xs), Parts::Fields(ys)) => {
                let mut names: Vec<&str> = xs.iter().map(|f| f.name.as_str()).collect();
                let more = ys.iter().map(|f| f.name.as_str()).filter(|n| xs.iter().all(|x| x.name != *n));
                names.extend(more);
                for name in names {
                    let of = |fields: &[recipe_text::Field]| fields.iter().position(|f| f.name == name);
                    let (i, j) = (of(xs).map(|i| &xs[i].value), of(ys).map(|j| &ys[j].value));
                    let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
                    walk(path, (at, i), (bt, j), found);
                }
                return;
            }
            (Parts::Items(xs), Parts::Items(ys)) if has_parts(xs) || has_parts(ys) => {
                for i in 0..xs.len().max(ys.len()) {
                    walk(format!("{path}[{i}]"), (at, xs.get(i)), (bt, ys.get(i)), found);
                }
                return;
            }
            _ => {}
        }
    }
    let (first, other) = (text(a), text(b));
    if first != other {
        found.push(Change { path, first, other });
    }
}

/// Returns whether a list has structured items; lists of plain values are compared as a whole.
fn has_parts(items: &[Node]) -> bool {
    items.iter().any(|n| n.parts != Parts::Scalar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn recipes_differ_where_their_values_do() {
        let a = r#"Recipe(name: "a", train: (seed: 1, epochs: 5), k: [1, 2], objective: [(term: InfoNce(t: 0.2)), (term: X())])"#;
        let b = r#"Recipe(name: "b", train: (seed: 2,
            epochs: 6), k: [1, 3], objective: [(term: InfoNce(t: 0.1))], queue: 5)"#;
        let found: Vec<String> = changes(a, b)
            .into_iter()
            .map(|c| format!("{} {} {}", c.path, c.first.unwrap_or_default(), c.other.unwrap_or_default()))
            .collect();
        let want = [
            "train.epochs 5 6",
            "k [1, 2] [1, 3]",
            "objective[0].term.t 0.2 0.1",
            "objective[1] (term: X()) ",
            "queue  5",
        ];
        assert_eq!(found, want);
        assert_eq!(changes(a, a), []);
        let other_term = a.replace("X()", "Y(z: 1)");
        assert_eq!(changes(a, &other_term)[0].path, "objective[1].term");
    }

    fn run(folder: &Path, name: &str, seed: u64, hash: &str, knn: f64) -> PathBuf {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).unwrap();
        let info = format!(
            r#"{{"name":"r","hash":"{hash}","seed":{seed},"status":"finished","version":"0","device":"cpu","threads":1,"simd":"x","platform":"y","data":"d","recipe":"r.ron"}}"#
        );
        std::fs::write(path.join("run.json"), info).unwrap();
        std::fs::write(path.join("recipe.resolved.ron"), format!("Recipe(lr: {})", hash.len())).unwrap();
        let probe = |subject: &str, v: f64| {
            format!(
                r#"{{"event":"probe","step":1,"epoch":1,"seconds":1,"subject":"{subject}","metrics":[{{"name":"knn","value":{v}}}]}}"#
            ) + "\n"
        };
        let log = probe("trained", 0.1) + &probe("trained", knn) + &probe("raw_pixels", 0.9);
        std::fs::write(path.join("metrics.jsonl"), log).unwrap();
        path
    }

    #[test]
    fn seeds_of_one_recipe_are_paired() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        for (seed, a, b) in [(0, 0.50, 0.55), (1, 0.60, 0.67), (2, 0.40, 0.46)] {
            run(&at.join("a"), &format!("seed{seed}"), seed, "aa", a);
            run(&at.join("b"), &format!("seed{seed}"), seed, "bbb", b);
        }
        let c = compare(&[at.join("a"), at.join("b")]).unwrap();
        let d = &c.beside[0].metrics[0];
        // Three values that sum to 1.5: their mean, and differences to it.
        assert_within!(d.first.mean, 0.5, tolerance::f64(4, 1.5));
        assert_within!(d.first.sd, 0.1, tolerance::f64(8, 1.5));
        assert_within!(d.difference, 0.06, tolerance::f64(8, 1.5));
        // Differences 0.05, 0.07, 0.06: t = 0.06/(0.01/√3) = 6√3 with 2 degrees of freedom, whose two-sided
        // probability is 1 − t/√(t² + 2).
        let t: f64 = 6.0 * 3f64.sqrt();
        let paired = d.paired.as_ref().unwrap();
        // A difference of values near 0.6 has their rounding error, which matters for a deviation of 0.01.
        let within = t * tolerance::f64(8, 1.2 / 0.01);
        assert_within!(paired.t, t, within);
        // p falls by 2/(t² + 2)^1.5 with t.
        let slope = 2.0 / (t * t + 2.0).powf(1.5);
        let want = 1.0 - t / (t * t + 2.0).sqrt();
        assert_within!(
            paired.p,
            want,
            slope * within + crate::statistics::off_by(want) + tolerance::f64(4, 1.0)
        );
        assert_eq!(c.beside[0].recipe[0].path, "lr");
        assert_eq!((c.beyond(0.07).len(), c.beyond(0.05).len()), (0, 1));
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let a = run(at, "a", 0, "aa", 0.5);
        let again = run(at, "again", 0, "aa", 0.5);
        let b = run(at, "b", 1, "aa", 0.5);
        let said = |runs: &[PathBuf]| compare(runs).unwrap_err().to_string();
        assert!(said(&[a.clone(), again]).contains("same recipe and seed"));
        assert!(said(&[a.clone(), b]).contains("nothing to compare"));
        assert!(said(&[a, at.join("none")]).contains("not a run"));
    }
}
