//! Agreement between labels and clusters.

use super::{Cell, Contingency};
use crate::matching::best_pairs;
use pauc_traits::probe::Metric;
use pauc_traits::{Result, stop};
use std::collections::BTreeMap;

/// The agreement of two partitions. Each score is 1 for equal partitions. NMI, AMI, ARI, homogeneity,
/// completeness and V are as in scikit-learn, edge cases included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Mutual information divided by the arithmetic mean of the entropies.
    pub nmi: f64,
    /// Mutual information adjusted for chance (Vinh et al. 2010), arithmetic mean; about 0 for random clusters.
    pub ami: f64,
    /// Rand index adjusted for chance (Hubert & Arabie 1985); about 0 for random clusters.
    pub ari: f64,
    /// 1 − H(label | cluster)/H(label).
    pub homogeneity: f64,
    /// 1 − H(cluster | label)/H(cluster).
    pub completeness: f64,
    /// The harmonic mean of homogeneity and completeness; equal to `nmi`.
    pub v_measure: f64,
    /// The fraction of samples with the majority label of their cluster.
    pub purity: f64,
    /// The fraction of samples that agree under the best one-to-one matching of clusters to labels (Hungarian
    /// method).
    pub hungarian_accuracy: f64,
}

impl Agreement {
    /// Compares labels with clusters; noise counts as a cluster of its own.
    ///
    /// # Shapes
    /// `labels` and `clusters`: (n), one entry per sample; `None` is noise.
    ///
    /// # Errors
    /// If the lengths differ, or the run was asked to stop.
    pub fn new(labels: &[u32], clusters: &[Option<u32>]) -> Result<Self> {
        Agreement::of(&Contingency::new(labels, clusters)?)
    }

    /// Computes the scores from counts.
    ///
    /// # Errors
    /// If the run was asked to stop.
    pub fn of(c: &Contingency) -> Result<Self> {
        if c.total == 0 {
            return Ok(Agreement {
                nmi: 1.0,
                ami: 1.0,
                ari: 1.0,
                homogeneity: 1.0,
                completeness: 1.0,
                v_measure: 1.0,
                purity: 1.0,
                hungarian_accuracy: 1.0,
            });
        }
        let (mutual, h_label, h_cluster) = (mutual_information(c), entropy(&c.rows), entropy(&c.cols));
        let both_whole = c.rows.len() == 1 && c.cols.len() == 1;
        let mean = (h_label + h_cluster) / 2.0;
        let share = |entropy: f64| if entropy > 0.0 { mutual / entropy } else { 1.0 };
        let (homogeneity, completeness) = (share(h_label), share(h_cluster));
        let v_measure = match homogeneity + completeness {
            0.0 => 0.0,
            sum => 2.0 * homogeneity * completeness / sum,
        };
        let nmi = if both_whole {
            1.0
        } else if mutual > 0.0 {
            mutual / mean
        } else {
            0.0
        };
        let ami = if both_whole {
            1.0
        } else {
            let expected = expected_mutual_information(c)?;
            let room = mean - expected;
            let room = if room < 0.0 { room.min(-f64::EPSILON) } else { room.max(f64::EPSILON) };
            (mutual - expected) / room
        };
        let mut majority = vec![0; c.cols.len()];
        c.cells.iter().for_each(|cell| majority[cell.column] = majority[cell.column].max(cell.count));
        let matched: usize = best_pairs(c)?.iter().map(|cell| cell.count).sum();
        let n = c.total as f64;
        Ok(Agreement {
            nmi,
            ami,
            ari: adjusted_rand(c),
            homogeneity,
            completeness,
            v_measure,
            purity: majority.iter().sum::<usize>() as f64 / n,
            hungarian_accuracy: matched as f64 / n,
        })
    }

    /// Returns the scores as metrics named `prefix/nmi` and so on.
    pub fn metrics(&self, prefix: &str) -> Vec<Metric> {
        [
            ("nmi", self.nmi),
            ("ami", self.ami),
            ("ari", self.ari),
            ("homogeneity", self.homogeneity),
            ("completeness", self.completeness),
            ("v_measure", self.v_measure),
            ("purity", self.purity),
            ("hungarian_accuracy", self.hungarian_accuracy),
        ]
        .map(|(name, value)| Metric::new(format!("{prefix}/{name}"), value))
        .into()
    }
}

/// Returns the entropy, in nats, of a distribution given by the count of each outcome. Without any counts it is 0.
pub fn entropy(counts: &[usize]) -> f64 {
    let total: f64 = counts.iter().map(|c| *c as f64).sum();
    let shares = counts.iter().filter(|c| **c > 0).map(|c| *c as f64 / total);
    shares.map(|p| -p * p.ln()).sum::<f64>().max(0.0)
}

/// Σ n_ab/n · ln(n·n_ab / (n_a·n_b)), in nats.
fn mutual_information(c: &Contingency) -> f64 {
    let n = c.total as f64;
    let term = |cell: &Cell| {
        let p = cell.count as f64 / n;
        p * (p.ln() - (c.rows[cell.row] as f64 / n).ln() - (c.cols[cell.column] as f64 / n).ln())
    };
    let sum: f64 = c.cells.iter().map(term).sum();
    // Independent partitions have no mutual information, so remove the rounding error.
    if sum.abs() < f64::EPSILON { 0.0 } else { sum.max(0.0) }
}

/// Returns the mean mutual information of random partitions with the same sizes (hypergeometric model).
fn expected_mutual_information(c: &Contingency) -> Result<f64> {
    let n = c.total;
    // ln i! with a compensated sum, because the probabilities below are exponentials of small differences.
    let (mut ln_factorial, mut sum, mut lost) = (vec![0.0f64], 0.0f64, 0.0f64);
    for i in 1..=n {
        let step = (i as f64).ln() - lost;
        let next = sum + step;
        lost = (next - sum) - step;
        sum = next;
        ln_factorial.push(sum);
    }
    // Equal sizes give equal terms, so compute each only once.
    let distinct = |sizes: &[usize]| {
        let mut counts = BTreeMap::<usize, usize>::new();
        sizes.iter().for_each(|s| *counts.entry(*s).or_default() += 1);
        counts
    };
    let mut total = 0.0;
    for (a, times_a) in distinct(&c.rows) {
        stop::check()?;
        for (b, times_b) in distinct(&c.cols) {
            let mut of_pair = 0.0;
            for both in (a + b).saturating_sub(n).max(1)..=a.min(b) {
                let f = |i: usize| ln_factorial[i];
                let ln_p = f(a) + f(b) + f(n - a) + f(n - b)
                    - f(n)
                    - f(both)
                    - f(a - both)
                    - f(b - both)
                    - f(n + both - a - b);
                let information = (n as f64 * both as f64).ln() - (a as f64).ln() - (b as f64).ln();
                of_pair += both as f64 / n as f64 * information * ln_p.exp();
            }
            total += (times_a * times_b) as f64 * of_pair;
        }
    }
    Ok(total)
}

/// Returns the adjusted Rand index, from counts of pairs.
fn adjusted_rand(c: &Contingency) -> f64 {
    let squares = |counts: &mut dyn Iterator<Item = usize>| counts.map(|x| (x as f64).powi(2)).sum::<f64>();
    let n = c.total as f64;
    let both = squares(&mut c.cells.iter().map(|cell| cell.count));
    let (rows, cols) = (squares(&mut c.rows.iter().copied()), squares(&mut c.cols.iter().copied()));
    let together = both - n;
    let (only_cluster, only_label) = (cols - both, rows - both);
    let apart = n * n - both - only_cluster - only_label;
    if only_cluster == 0.0 && only_label == 0.0 {
        return 1.0;
    }
    2.0 * (together * apart - only_label * only_cluster)
        / ((together + only_label) * (only_label + apart)
            + (together + only_cluster) * (only_cluster + apart))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use serde_json::Value;

    /// The error bound of a mutual information or entropy. Each cell has up to three logarithms of fractions,
    /// at most ln n in size, and eight roundings. The fractions sum to 1.
    fn of_information(c: &Contingency) -> f64 {
        tolerance::f64(c.cells.len() + 8, 3.0 * (c.total as f64).ln())
    }

    /// The error bound of the expected information. A probability is the exponential of nine logarithms of
    /// factorials, each at most ln n! in size, with two roundings; their error is the relative error of the
    /// probability. The sum has up to n terms for each pair of sizes.
    fn of_expected(c: &Contingency, expected: f64) -> f64 {
        let of_factorials: f64 = 9.0 * (1..=c.total).map(|i| (i as f64).ln()).sum::<f64>();
        let terms = c.total + c.rows.len() * c.cols.len() + 8;
        expected * (tolerance::f64(9 + 2, of_factorials) + tolerance::f64(terms, 1.0))
    }

    /// The error bound of each score.
    fn of_score(c: &Contingency, score: &Metric) -> f64 {
        let (mutual, entropies) = (of_information(c), [entropy(&c.rows), entropy(&c.cols)]);
        match score.name.rsplit('/').next().unwrap_or_default() {
            // Quotients of integers that f64 represents exactly.
            "ari" | "purity" | "hungarian_accuracy" => tolerance::f64(3, 1.0),
            "ami" => {
                let expected = expected_mutual_information(c).unwrap();
                let room = (entropies[0] + entropies[1]) / 2.0 - expected;
                // Both the numerator and the denominator are off, relative to the score.
                (mutual + of_expected(c, expected)) * (1.0 + score.value.abs()) / room.abs()
            }
            // Fractions of the entropies, at most 1, and their harmonic mean. A fraction of an entropy of 0
            // is exact.
            _ => {
                let least = entropies.into_iter().filter(|h| *h > 0.0).fold(f64::INFINITY, f64::min);
                4.0 * mutual / least + tolerance::f64(4, 1.0)
            }
        }
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/metrics.json")).unwrap();
        let cases = golden["clustering"].as_array().unwrap();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let list = |name: &str| -> Vec<u32> {
                case[name].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
            };
            let clusters: Vec<Option<u32>> = list("clusters").into_iter().map(Some).collect();
            let counts = Contingency::new(&list("labels"), &clusters).unwrap();
            for metric in Agreement::of(&counts).unwrap().metrics("") {
                let want = case[&metric.name[1..]].as_f64().unwrap();
                assert_within!(
                    metric.value,
                    want,
                    of_score(&counts, &metric),
                    "{}{}",
                    case["case"],
                    metric.name
                );
            }
        }
    }

    #[test]
    fn expected_information_is_the_mean_over_permutations() {
        let labels = [0u32, 0, 0, 1, 1, 2];
        let clusters = [0u32, 0, 1, 1, 1, 1];
        let (mut order, mut sum, mut count) = (vec![0, 1, 2, 3, 4, 5], 0.0, 0);
        fn permute(order: &mut Vec<usize>, from: usize, visit: &mut dyn FnMut(&[usize])) {
            if from == order.len() {
                return visit(order);
            }
            for i in from..order.len() {
                order.swap(from, i);
                permute(order, from + 1, visit);
                order.swap(from, i);
            }
        }
        permute(&mut order, 0, &mut |order| {
            let moved: Vec<Option<u32>> = order.iter().map(|i| Some(clusters[*i])).collect();
            sum += mutual_information(&Contingency::new(&labels, &moved).unwrap());
            count += 1;
        });
        assert_eq!(count, 720);
        let original: Vec<Option<u32>> = clusters.iter().map(|c| Some(*c)).collect();
        let counts = Contingency::new(&labels, &original).unwrap();
        let (got, want) = (expected_mutual_information(&counts).unwrap(), sum / 720.0);
        // The mean of 720 numbers.
        let of_mean = of_information(&counts) + tolerance::f64(720, want);
        assert_within!(got, want, of_expected(&counts, want) + of_mean);
    }

    #[test]
    fn names_of_clusters_do_not_matter_and_nothing_agrees_with_nothing() {
        let labels = [0, 0, 1, 1, 2];
        let counts = Contingency::new(&labels, &[Some(0), Some(1), Some(1), None, Some(2)]).unwrap();
        let a = Agreement::of(&counts).unwrap();
        let b = Agreement::new(&labels, &[Some(9), Some(4), Some(4), Some(7), Some(0)]).unwrap();
        for (a, b) in a.metrics("").iter().zip(b.metrics("")) {
            assert_within!(a.value, b.value, of_score(&counts, a), "{}", a.name);
        }
        assert_eq!(Agreement::new(&[], &[]).unwrap().ari, 1.0);
    }
}
