//! Comparison of a run's metrics with stored ones.

use pauc_traits::{Error, Result, atomic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The stored metrics of a recipe: `recipes/expected/NAME.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// The first digits of the recipe's hash.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// The version of pauc.
    pub version: String,
    /// The instruction set; others round differently.
    pub simd: String,
    /// The metrics of the trained encoder.
    pub metrics: BTreeMap<String, Expected>,
}

/// An expected value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// The value.
    pub value: f64,
    /// The largest allowed difference.
    pub tolerance: f64,
}

/// A metric that differs from the stored value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The metric.
    pub metric: String,
    /// The stored value; `None` if there is none.
    pub expected: Option<f64>,
    /// The measured value; `None` if the run did not measure it.
    pub got: Option<f64>,
    /// The largest allowed difference.
    pub tolerance: f64,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.metric;
        match (self.expected, self.got) {
            (Some(e), Some(g)) => {
                let (by, most) = (g - e, self.tolerance);
                write!(f, "{name}: expected {e:.4}, got {g:.4}, off by {by:+.4}, allowed {most:.4}")
            }
            (Some(e), None) => write!(f, "{name}: expected {e:.4}, but the run did not measure it"),
            (None, got) => {
                let got = got.unwrap_or(f64::NAN);
                write!(f, "{name}: got {got:.4}, but no value is stored; `--update` stores it")
            }
        }
    }
}

/// Returns the path of a recipe's stored metrics: `expected/NAME.json` beside it.
pub fn path_beside(recipe: &Path) -> PathBuf {
    let mut name = recipe.file_stem().unwrap_or_default().to_os_string();
    name.push(".json");
    recipe.parent().unwrap_or(Path::new("")).join("expected").join(name)
}

impl Expectation {
    /// Reads stored metrics.
    ///
    /// # Errors
    /// If the file does not exist or cannot be parsed.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound {
                path: path.to_path_buf(),
                remedy: "no metrics are stored for this recipe yet; `--update` stores those of this run"
                    .into(),
            },
            _ => Error::io(path, e),
        })?;
        serde_json::from_slice(&text).map_err(|e| Error::damaged(path, e.to_string()))
    }

    /// Writes the file, and its folder if necessary.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&self, path: &Path) -> Result<()> {
        path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|e| Error::io(path, e))?;
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Other(e.into()))?;
        atomic::write(path, (text + "\n").as_bytes())
    }

    /// Returns a copy with these metrics. A metric keeps its tolerance from `before`; others get the larger
    /// of 0.02 and 5 % of their value. Metrics that are NaN or infinite are left out.
    pub fn of(&self, metrics: &BTreeMap<String, f64>, before: Option<&Expectation>) -> Self {
        let expected = |(name, value): (&String, &f64)| {
            let known = before.and_then(|b| b.metrics.get(name)).map(|e| e.tolerance);
            let tolerance = known.unwrap_or((0.05 * value.abs()).max(0.02));
            (name.clone(), Expected { value: *value, tolerance })
        };
        let finite = metrics.iter().filter(|(_, v)| v.is_finite());
        Expectation { metrics: finite.map(expected).collect(), ..self.clone() }
    }

    /// Returns the metrics that differ from the stored values.
    pub fn differences(&self, got: &BTreeMap<String, f64>) -> Vec<Difference> {
        let mut found = Vec::new();
        for (name, e) in &self.metrics {
            let value = got.get(name).copied();
            if value.is_none_or(|v| v.is_nan() || (v - e.value).abs() > e.tolerance) {
                let (metric, expected) = (name.clone(), Some(e.value));
                found.push(Difference { metric, expected, got: value, tolerance: e.tolerance });
            }
        }
        for (name, value) in got.iter().filter(|(n, v)| v.is_finite() && !self.metrics.contains_key(*n)) {
            let metric = name.clone();
            found.push(Difference { metric, expected: None, got: Some(*value), tolerance: 0.0 });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn metrics(of: &[(&str, f64)]) -> BTreeMap<String, f64> {
        of.iter().map(|(n, v)| (n.to_string(), *v)).collect()
    }

    #[test]
    fn what_differs_is_named_and_the_rest_is_not() {
        let from = Expectation {
            recipe: "aa".into(),
            seed: 0,
            version: "0".into(),
            simd: "x".into(),
            metrics: BTreeMap::new(),
        };
        let stored = from.of(&metrics(&[("knn", 0.8), ("rank", 100.0), ("none", f64::NAN)]), None);
        assert_within!(stored.metrics["knn"].tolerance, 0.04, tolerance::f64(1, 0.04));
        assert_eq!(stored.metrics["rank"].tolerance, 5.0);
        assert_eq!(stored.metrics.len(), 2);
        assert_eq!(stored.differences(&metrics(&[("knn", 0.83), ("rank", 96.0)])), []);
        let found = stored.differences(&metrics(&[("knn", 0.7), ("new", 1.0)]));
        let text: Vec<String> = found.iter().map(Difference::to_string).collect();
        assert_eq!(text[0], "knn: expected 0.8000, got 0.7000, off by -0.1000, allowed 0.0400");
        assert!(text[1].starts_with("rank: expected 100.0000, but") && text[2].starts_with("new: got 1"));
        assert_eq!(stored.differences(&metrics(&[("knn", f64::NAN), ("rank", 100.0)])).len(), 1);
        // A tolerance set by hand is kept.
        let mut narrow = stored.clone();
        narrow.metrics.insert("knn".into(), Expected { value: 0.8, tolerance: 0.001 });
        assert_eq!(from.of(&metrics(&[("knn", 0.9)]), Some(&narrow)).metrics["knn"].tolerance, 0.001);
        assert_eq!(path_beside(Path::new("recipes/a.b.ron")), Path::new("recipes/expected/a.b.json"));
    }
}
