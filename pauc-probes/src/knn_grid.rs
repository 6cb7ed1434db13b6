//! Nearest neighbors at many settings with one search.

use crate::knn::{Distance, Neighbors, neighbors_on, weight};
use crate::{ProbeTime, Space, largest, when};
use pauc_traits::probe::{Metric, ProbeContext, When};
use pauc_traits::{Count, Error, Positive, Probe, Result, TrainingSpan, component};
use rayon::prelude::*;

component! {
    /// Accuracies of nearest-neighbor votes on the test split at every k, temperature and distance.
    ///
    /// There is one search per distance. With `Cosine`, `Knn` votes at each k and temperature.
    /// With `Euclidean`, each of the k training samples with the smallest ‖x − y‖ has one vote, so the
    /// temperatures do not matter. Ties between distances go to the lower sample index, ties between votes to
    /// the lower class. All settings are reported, since choosing the best one on the test split would be
    /// biased: use the grid to see how sensitive a comparison is, and report the setting you chose
    /// beforehand.
    ///
    /// Metrics: `knn_grid/cos/k20/t0.07` and `knn_grid/l2/k20`, fractions; the chance level is the fraction
    /// of the most frequent class.
    /// Source: Wu et al. 2018 (instance discrimination) for the weighted vote.
    pub struct KnnGrid: Probe {
        /// The numbers of neighbors.
        pub k: Vec<Count> = [1, 5, 10, 20, 50, 100, 200].map(Count::lit).to_vec(),
        /// The temperatures T of the weights.
        pub temperature: Vec<Positive> = [0.02, 0.07, 0.2, 1.0].map(Positive::lit).to_vec(),
        /// The distances: `Cosine`, `Euclidean`.
        pub distance: Vec<Distance> = vec![Distance::Cosine, Distance::Euclidean],
        /// The vectors compared: `Features` before the projector, or its outputs, `Embeddings`.
        pub space: Space = Space::Features,
        /// How often it runs during training, such as `Epochs(1)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for KnnGrid {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn check(&self) -> Result<()> {
        if self.k.is_empty() || self.distance.is_empty() {
            return Err(Error::config("KnnGrid: `k` or `distance` is empty; give at least one value"));
        }
        if self.temperature.is_empty() && self.distance.contains(&Distance::Cosine) {
            return Err(Error::config(
                "KnnGrid: `temperature` is empty; give at least one value, or set `distance: [Euclidean]`",
            ));
        }
        Ok(())
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        self.check()?;
        let Some(splits) = self.space.labeled(context) else { return Ok(Vec::new()) };
        splits.check("KnnGrid", context.classes)?;
        let mut k: Vec<usize> = self.k.iter().map(|k| k.get()).collect();
        k.sort_unstable();
        k.dedup();
        let Some(&most) = k.last() else { return Ok(Vec::new()) };
        let suffix = self.space.suffix();
        let mut metrics = Vec::new();
        for &distance in &self.distance {
            let nearest = neighbors_on(context.device, splits.train, splits.test, most, distance)?;
            let votes: Vec<Vote> = match distance {
                Distance::Cosine => self.temperature.iter().map(|t| Vote::Weighted(t.get())).collect(),
                Distance::Euclidean => vec![Vote::Equal],
            };
            let accuracies =
                |vote| accuracies(&nearest, splits.labels, splits.test_labels, &k, vote, context.classes);
            let columns: Vec<Vec<f64>> = votes.iter().map(|vote| accuracies(*vote)).collect();
            for (i, k) in k.iter().enumerate() {
                for (vote, column) in votes.iter().zip(&columns) {
                    let name = match vote {
                        Vote::Weighted(t) => format!("knn_grid/cos/k{k}/t{t}{suffix}"),
                        Vote::Equal => format!("knn_grid/l2/k{k}{suffix}"),
                    };
                    metrics.push(Metric::grid_accuracy(name, column[i]));
                }
            }
        }
        Ok(metrics)
    }
}

/// The weight of a neighbor's vote.
#[derive(Clone, Copy, Debug)]
enum Vote {
    /// exp(cos/T).
    Weighted(f64),
    /// 1.
    Equal,
}

/// Returns the accuracy at each of the ascending numbers `k`, from one pass over each list of neighbors.
fn accuracies(
    nearest: &[Neighbors],
    labels: &[u32],
    test_labels: &[u32],
    k: &[usize],
    vote: Vote,
    classes: usize,
) -> Vec<f64> {
    let right = |(nearest, label): (&Neighbors, &u32)| -> Vec<bool> {
        let mut votes = vec![0.0; classes];
        let mut counted = 0;
        let mut is_right_with = |&k: &usize| {
            for (cosine, index) in &nearest[counted..k.min(nearest.len())] {
                votes[labels[*index as usize] as usize] += match vote {
                    Vote::Weighted(t) => weight(*cosine, nearest[0].0, t),
                    Vote::Equal => 1.0,
                };
            }
            counted = k.min(nearest.len());
            largest(&votes) == *label as usize
        };
        k.iter().map(&mut is_right_with).collect()
    };
    let rows: Vec<Vec<bool>> = nearest.par_iter().zip(test_labels).map(right).collect();
    (0..k.len()).map(|i| rows.iter().filter(|r| r[i]).count() as f64 / rows.len() as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knn::{knn_accuracy, neighbors};
    use crate::testing;
    use pauc_testing::inputs::irregular_f64;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::probe::RowsView;

    fn wave(rows: usize, phase: f64) -> Vec<f32> {
        irregular_f64(rows * 3, phase).iter().map(|v| *v as f32 + 2.0).collect()
    }

    fn measure(probe: &KnnGrid, train: &[f32], labels: &[u32], test: &[f32], tests: &[u32]) -> Vec<Metric> {
        testing::measure(probe, (3, 4, 0), (train, labels), (test, tests)).unwrap()
    }

    fn case() -> (Vec<f32>, Vec<u32>, Vec<f32>, Vec<u32>) {
        let labels = |n: u32, step: u32| (0..n).map(|i| (i * step + i / 3) % 4).collect();
        (wave(60, 0.1), labels(60, 3), wave(40, 0.7), labels(40, 5))
    }

    fn value(metrics: &[Metric], name: &str) -> f64 {
        metrics.iter().find(|m| m.name == name).map(|m| m.value).unwrap()
    }

    #[test]
    fn every_cell_equals_the_single_probe() {
        let (train, labels, test, tests) = case();
        let probe: KnnGrid = pauc_traits::component_ron::options()
            .from_str("(k: [20, 1, 7, 100], temperature: [0.01, 0.5], distance: [Cosine])")
            .unwrap();
        let got = measure(&probe, &train, &labels, &test, &tests);
        assert_eq!(got.len(), 8);
        assert_eq!(got[0].name, "knn_grid/cos/k1/t0.01");
        for k in [1, 7, 20, 100] {
            for t in [0.01, 0.5] {
                let (train, test) = (RowsView::new(&train, 3), RowsView::new(&test, 3));
                let want = knn_accuracy(train, &labels, test, &tests, k, t, 4).unwrap();
                assert_eq!(value(&got, &format!("knn_grid/cos/k{k}/t{t}")), want);
            }
        }
    }

    // scikit-learn 1.9.1 on the same data. The k-th and the next squared distance differ by 1.8e-5, more than
    // rounding:
    //   wave = lambda rows, phase: np.float32([math.sin(phase + 1.3*n + math.cos(.37*n)) for n in range(rows*3)]
    //                                         ).reshape(-1, 3) + np.float32(2)
    //   labels = lambda n, step: np.array([(i*step + i//3) % 4 for i in range(n)])
    //   for k in 1, 5, 10, 20: KNeighborsClassifier(k, algorithm='brute').fit(wave(60, .1), labels(60, 3)).score(
    //       wave(40, .7), labels(40, 5))
    #[test]
    fn euclidean_votes_are_those_of_scikit_learn() {
        let (train, labels, test, tests) = case();
        let probe: KnnGrid = pauc_traits::component_ron::options().from_str("(k: [1, 5, 10, 20])").unwrap();
        let got = measure(&probe, &train, &labels, &test, &tests);
        for (k, want) in [(1, 0.2), (5, 0.25), (10, 0.275), (20, 0.4)] {
            assert_eq!(value(&got, &format!("knn_grid/l2/k{k}")), want, "k {k}");
        }
    }

    #[test]
    fn euclidean_neighbors_are_those_of_loops_far_from_the_origin() {
        // A mean of 100 with distances of 1: without centering, single precision would lose them.
        let (train, test) = (wave(2100, 0.1), wave(30, 0.7));
        let far = |v: &[f32]| v.iter().map(|x| x + 100.0).collect::<Vec<f32>>();
        let (train, test) = (far(&train), far(&test));
        let (train, test) = (RowsView::new(&train, 3), RowsView::new(&test, 3));
        let got = neighbors(train, test, 5, Distance::Euclidean).unwrap();
        // A score is x·y − ‖y‖²/2 of centered rows of three values of at most 1.2. Centering rounds each
        // factor, the product is rounded three times, and the shift once more. Squared distances are twice a
        // score, and two rows may be swapped.
        let rounding = 4.0 * tolerance::f32(2 + 3 + 2, 1.5 * 3.0 * 1.2f64.powi(2));
        for (q, got) in test.iter().zip(got) {
            let d = |i: usize| {
                train.row(i).iter().zip(q).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum::<f64>()
            };
            let mut all: Vec<usize> = (0..train.rows).collect();
            all.sort_by(|a, b| d(*a).total_cmp(&d(*b)));
            for (place, (_, i)) in got.iter().enumerate() {
                assert_within!(d(*i as usize), d(all[place]), rounding, "place {place}");
            }
        }
    }

    #[test]
    fn an_empty_grid_is_an_error() {
        let probe: KnnGrid = pauc_traits::component_ron::options().from_str("(k: [])").unwrap();
        let (train, labels) = (wave(4, 0.1), [0, 1, 2, 3]);
        let got = testing::measure(&probe, (3, 4, 0), (&train, &labels), (&train, &labels));
        assert!(got.unwrap_err().to_string().contains("`k` or `distance` is empty"));
    }
}
