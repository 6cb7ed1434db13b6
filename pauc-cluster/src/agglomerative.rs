//! Ward's method on the centroids of a fine k-means.

use crate::KMeans;
use crate::lloyd::clustering_of;
use crate::on_ranks::Rows;
use pauc_kernels::distance::squared_distance;
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::{Clusterer, Clustering, Count, Error, Result, TrainingSpan, component, progress, stop};
use serde::{Deserialize, Serialize};

component! {
    /// Nested levels, from fine to coarse: Ward's method merges the clusters of a fine k-means two by two.
    ///
    /// Each merge is the one that raises Σ‖x − c‖² least, by n_a·n_b/(n_a + n_b)·‖c_a − c_b‖². The fine
    /// k-means has `leaves` clusters; if there are fewer samples, every sample is a leaf. Centroids are the
    /// means of the samples. The cost is O(leaves²·D) in addition to the k-means.
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    ///
    /// Source: Ward 1963.
    pub struct Agglomerative: Clusterer {
        /// The number of prototypes of each level. A recipe that leaves it out gets numbers that follow its
        /// images and its batch.
        pub k: Vec<Count> = Vec::new(),
        /// The number of clusters of the fine k-means.
        pub leaves: Count = Count::lit(1000),
        /// The maximum number of iterations of the fine k-means.
        pub iterations: Count = Count::lit(20),
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for Agglomerative {
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let shared = Rows::of(rows, &context)?;
        let leaves = self.leaves.get().min(shared.len());
        if let Some(k) = self.k.iter().find(|k| k.get() > leaves) {
            return Err(Error::config(format!(
                "{k} prototypes cannot be merged from {leaves} leaves: lower k or raise leaves to at most {}",
                shared.len()
            )));
        }
        let fine = KMeans {
            iterations: self.iterations,
            ..KMeans::with(vec![Count::try_from(leaves).map_err(Error::config)?])
        };
        let fine = fine.fit_checked(rows, context)?.swap_remove(0);
        let assigned: Vec<u32> = fine.assignments.iter().flatten().copied().collect();
        let all = shared.all()?;
        let rows = RowsView::new(&all, rows.cols);
        let means = clustering_of(rows, fine.assignments, leaves, Vec::new());
        let mut sizes = vec![0usize; leaves];
        assigned.iter().for_each(|a| sizes[*a as usize] += 1);
        let merges = ward(RowsView::new(&means.centroids, rows.cols), &sizes)?;
        let level = |k: &Count| {
            let cluster_of_leaf = cut(leaves, &merges, k.get());
            let assignments = assigned.iter().map(|leaf| Some(cluster_of_leaf[*leaf as usize])).collect();
            clustering_of(rows, assignments, k.get(), Vec::new())
        };
        Ok(self.k.iter().map(level).collect())
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        self.k.iter().map(|k| Some(k.get())).collect()
    }
    fn shares_rows(&self) -> bool {
        true
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

/// One merge. `b` goes into `a` (a < b); each is named by its lowest leaf. It raises Σ‖x − c‖² by `cost`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merge {
    /// The lowest leaf of the cluster that remains.
    pub a: usize,
    /// The lowest leaf of the cluster that disappears.
    pub b: usize,
    /// The increase of Σ‖x − c‖².
    pub cost: f64,
}

/// Computes all merges of Ward's method, cheapest first, until one cluster is left. Leaves without samples
/// cost nothing.
///
/// # Shapes
/// centroids (M, D), sizes M → M − 1 merges
///
/// # Errors
/// If the run was asked to stop.
pub fn ward(centroids: RowsView<'_>, sizes: &[usize]) -> Result<Vec<Merge>> {
    let (m, dim) = (centroids.rows, centroids.cols);
    let mut centers: Vec<f32> = centroids.data.to_vec();
    let mut weights: Vec<f64> = sizes.iter().map(|s| *s as f64).collect();
    let mut alive: Vec<usize> = (0..m).collect();
    let cost = |centers: &[f32], weights: &[f64], a: usize, b: usize| -> f64 {
        let both = weights[a] + weights[b];
        if both == 0.0 {
            return 0.0;
        }
        let sq_dist = squared_distance(&centers[a * dim..(a + 1) * dim], &centers[b * dim..(b + 1) * dim]);
        weights[a] * weights[b] / both * sq_dist as f64
    };
    let closest = |centers: &[f32], weights: &[f64], alive: &[usize], a: usize| -> (f64, usize) {
        let others = alive.iter().filter(|b| **b != a).map(|b| (cost(centers, weights, a, *b), *b));
        others.min_by(|x, y| x.0.total_cmp(&y.0).then(x.1.cmp(&y.1))).unwrap_or((f64::INFINITY, a))
    };
    let mut nearest: Vec<(f64, usize)> = (0..m)
        .map(|a| {
            stop::check()?;
            Ok(closest(&centers, &weights, &alive, a))
        })
        .collect::<Result<_>>()?;
    let mut merges = Vec::with_capacity(m.saturating_sub(1));
    let task = progress::task("merging clusters", m.saturating_sub(1) as u64);
    while alive.len() > 1 {
        stop::check()?;
        let best = alive.iter().min_by(|x, y| nearest[**x].0.total_cmp(&nearest[**y].0).then(x.cmp(y)));
        let Some(&first) = best else { break };
        let (cost, second) = nearest[first];
        let (a, b) = (first.min(second), first.max(second));
        merges.push(Merge { a, b, cost });
        task.advance(1);
        let both = weights[a] + weights[b];
        if both > 0.0 {
            for l in 0..dim {
                let sum = weights[a] * centers[a * dim + l] as f64 + weights[b] * centers[b * dim + l] as f64;
                centers[a * dim + l] = (sum / both) as f32;
            }
        }
        weights[a] = both;
        alive.retain(|c| *c != b);
        // A merged cluster is never nearer to a third than the nearer of its parts was. So only clusters
        // whose nearest neighbor was one of the parts have to search again.
        for &c in &alive {
            if c == a || nearest[c].1 == a || nearest[c].1 == b {
                nearest[c] = closest(&centers, &weights, &alive, c);
            }
        }
    }
    Ok(merges)
}

/// Returns the cluster of each leaf once `k` clusters are left, numbered in the order of their lowest leaves.
///
/// # Shapes
/// merges as returned by [`ward`] for the leaves → one number in 0..k per leaf
pub fn cut(leaves: usize, merges: &[Merge], k: usize) -> Vec<u32> {
    let mut parent: Vec<usize> = (0..leaves).collect();
    merges.iter().take(leaves - k.min(leaves)).for_each(|m| parent[m.b] = m.a);
    let (mut number, mut next) = (vec![0u32; leaves], 0);
    for leaf in 0..leaves {
        // The parent is lower than the child, so it already has its number.
        if parent[leaf] == leaf {
            number[leaf] = next;
            next += 1;
        } else {
            number[leaf] = number[parent[leaf]];
        }
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::tolerance;
    use proptest::prelude::*;

    /// Σ‖x − mean‖² of a group of points.
    fn scatter(points: &[f32], dim: usize, group: &[usize]) -> f64 {
        let of_column = |l: usize| {
            let values = group.iter().map(|i| f64::from(points[i * dim + l]));
            let mean = values.clone().sum::<f64>() / group.len() as f64;
            values.map(|v| (v - mean).powi(2)).sum::<f64>()
        };
        (0..dim).map(of_column).sum()
    }

    /// The error bound of a computed cost against the increase of the sum of squares, if centers are off by
    /// `off` in each coordinate: a square of differences, and the centers in it.
    fn error_of_cost(points: &[f32], dim: usize, pair: [&[usize]; 2], off: f64) -> f64 {
        let mean = |group: &[usize], l: usize| {
            group.iter().map(|i| f64::from(points[i * dim + l])).sum::<f64>() / group.len() as f64
        };
        let (mut sq_dist, mut moved) = (0.0, 0.0);
        for l in 0..dim {
            let apart = (mean(pair[0], l) - mean(pair[1], l)).abs();
            sq_dist += apart.powi(2);
            moved += 2.0 * apart * 2.0 * off + (2.0 * off).powi(2);
        }
        let [a, b] = pair.map(|group| group.len() as f64);
        // Each square has three roundings, and the squares are summed. The weight is f64.
        a * b / (a + b) * (moved + tolerance::f32(dim + 3, sq_dist + moved))
    }

    proptest! {
        #![proptest_config(pauc_testing::property::cases(24))]
        #[test]
        fn equals_the_definition(points in prop::collection::vec(-5.0f32..5.0, 36), k in 1usize..12) {
            let (n, dim) = (12, 3);
            let merges = ward(RowsView::new(&points, dim), &[1; 12]).unwrap();
            prop_assert_eq!(merges.len(), n - 1);
            let mut groups: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
            let alive = |groups: &[Vec<usize>]| (0..n).filter(|i| !groups[*i].is_empty()).collect::<Vec<_>>();
            let largest = points.iter().fold(0.0, |most, v| f64::from(v.abs()).max(most));
            let (mut worst, mut before) = (0.0f64, 0.0);
            for (done, merge) in merges.iter().enumerate() {
                if n - done == k {
                    let got = cut(n, &merges, k);
                    prop_assert_eq!(got.iter().max().unwrap() + 1, k as u32);
                    for group in groups.iter().filter(|g| !g.is_empty()) {
                        prop_assert!(group.iter().all(|i| got[*i] == got[group[0]]), "{group:?} {got:?}");
                    }
                }
                // The weighted mean of two centers is off by at most the error of the centers, and is
                // rounded.
                let off = tolerance::f32(done, largest);
                let left = alive(&groups);
                prop_assert!(merge.a < merge.b && left.contains(&merge.a) && left.contains(&merge.b), "{merge:?}");
                let rise = |a: usize, b: usize| {
                    let both = [&groups[a][..], &groups[b][..]].concat();
                    let parts = scatter(&points, dim, &groups[a]) + scatter(&points, dim, &groups[b]);
                    scatter(&points, dim, &both) - parts
                };
                let (mut least, own) = (f64::INFINITY, rise(merge.a, merge.b));
                for (place, a) in left.iter().enumerate() {
                    for b in &left[place + 1..] {
                        least = least.min(rise(*a, *b));
                        worst = worst.max(error_of_cost(&points, dim, [&groups[*a], &groups[*b]], off));
                    }
                }
                let of_rise = tolerance::f64(4 * n, scatter(&points, dim, &(0..n).collect::<Vec<_>>()));
                let of_cost = error_of_cost(&points, dim, [&groups[merge.a], &groups[merge.b]], off);
                prop_assert!((merge.cost - own).abs() <= of_cost + of_rise, "{merge:?} should cost {own}");
                // Both sides of the comparison are off by `worst`. Each earlier merge that was not quite the
                // cheapest may have brought a cluster that much nearer to a third than its parts were.
                let room = 2.0 * (done + 1) as f64 * (worst + of_rise);
                prop_assert!(own <= least + room, "{merge:?} costs {own}, another merge {least}");
                prop_assert!(before <= own + room, "{merge:?} costs {own}, the merge before it {before}");
                before = own;
                let gone = std::mem::take(&mut groups[merge.b]);
                groups[merge.a].extend(gone);
            }
            prop_assert_eq!(cut(n, &merges, 1), vec![0; n]);
        }
    }

    #[test]
    fn levels_are_nested() {
        let data: Vec<f32> = (0..600).map(|i| 10.0 * (i / 2 % 5) as f32 + (i as f32 * 1.3).sin()).collect();
        let rows = RowsView::new(&data, 2);
        let context = FitContext::new(0);
        let configured = |k: &[usize], leaves| Agglomerative {
            k: k.iter().map(|k| Count::try_from(*k).unwrap()).collect(),
            leaves: Count::try_from(leaves).unwrap(),
            iterations: Count::lit(20),
            start: TrainingSpan::epochs(0),
            every: TrainingSpan::epochs(1),
        };
        for leaves in [40, 1000] {
            let levels = configured(&[20, 5, 1], leaves).fit(rows, context).unwrap();
            let truth: Vec<u32> = (0..300).map(|i| i % 5).collect();
            let agreement = crate::metrics::Agreement::new(&truth, &levels[1].assignments).unwrap();
            assert_eq!(agreement.ari, 1.0);
            for (fine, coarse) in levels[0].assignments.iter().zip(&levels[1].assignments) {
                let of_fine = levels[0].assignments.iter().position(|a| a == fine).unwrap();
                assert_eq!(levels[1].assignments[of_fine], *coarse);
            }
            assert!(levels.iter().all(|l| l.report.empty == 0 && l.centroids.len() == 2 * l.k));
        }
        let text = configured(&[50], 40).fit(rows, context).unwrap_err().to_string();
        assert!(text.contains("50 prototypes cannot be merged from 40 leaves"), "{text}");
    }
}
