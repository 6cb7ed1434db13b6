//! k-means within k-means.

use crate::HostClusterer;
use crate::host::enough;
use crate::lloyd::{Lloyd, members, report};
use crate::seeding::{Init, gather};
use pauc_kernels::distance::{Packed, nearest};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::Rows;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Clustering, Count, Error, Result, Span, component};
use std::borrow::Cow;

component! {
    /// Nested levels, from coarse to fine: each prototype of a level is divided by k-means among its own samples.
    ///
    /// A prototype gets a share of the next level's k in proportion to its size: at least one, at most its number
    /// of samples. Two samples that share a prototype share its parents. So a sample's prototype is the nearest
    /// among its parent's children, not always among all.
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    pub struct HierarchicalKMeans: Clusterer {
        /// The number of prototypes of each level, increasing.
        pub k: Vec<Count>,
        /// Updates at most in each k-means.
        pub iterations: Count = Count::lit(20),
        /// How centroids are first chosen: KMeansPlusPlus or Random.
        pub init: Init = Init::KMeansPlusPlus,
        /// Divides a prototype by k-means on so many of its samples a child, drawn at random; then assigns all. Saves most
        /// where children are few and samples many.
        pub max_points_per_centroid: Option<Count> = None,
        /// When the first clustering happens.
        pub start: Span = Span::epochs(2),
        /// How long a clustering is kept.
        pub every: Span = Span::epochs(1),
    }
}

clusterer_on_host!(HierarchicalKMeans, |this| this.k.iter().map(|k| Some(k.get())).collect());

impl HostClusterer for HierarchicalKMeans {
    fn fit_rows(&self, rows: Rows<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        if let Some(pair) = self.k.windows(2).find(|w| w[0] >= w[1]) {
            return Err(Error::config(format!(
                "the levels of a hierarchy grow from coarse to fine, but k has {} before {}: order k upwards",
                pair[0], pair[1]
            )));
        }
        let mut levels: Vec<Clustering> = Vec::new();
        let mut parents = vec![0u32; rows.rows];
        let mut parent_count = 1;
        for (level, k) in self.k.iter().map(|k| k.get()).enumerate() {
            enough(rows, k)?;
            let clustering = self.divide(rows, &parents, parent_count, k, context, level as u64);
            parents = clustering.assignments.iter().map(|a| a.unwrap_or(0)).collect();
            parent_count = k;
            levels.push(clustering);
        }
        Ok(levels)
    }
}

impl HierarchicalKMeans {
    fn divide(
        &self,
        rows: Rows<'_>,
        parents: &[u32],
        parent_count: usize,
        k: usize,
        context: FitContext<'_>,
        level: u64,
    ) -> Clustering {
        let dim = rows.cols;
        let (order, starts) = members(parents, parent_count);
        let sizes: Vec<usize> = starts.windows(2).map(|w| w[1] - w[0]).collect();
        let mut centroids = Vec::with_capacity(k * dim);
        let mut index = vec![0u32; rows.rows];
        let (mut objective, mut splits) = (0.0f64, 0);
        for (parent, share) in shares(&sizes, k).into_iter().enumerate() {
            let own = &order[starts[parent]..starts[parent + 1]];
            if share == 0 {
                continue;
            }
            // The first level is of all rows: no copy, so that they may be a mapped file larger than memory.
            let data =
                if parent_count == 1 { Cow::Borrowed(rows.data) } else { Cow::Owned(gather(rows, own)) };
            let inside = Rows::new(&data, dim);
            let random = |what: u64| {
                // The third stream stands apart, so that the first two are those of a fit on all samples.
                let view = if what < 2 { 2 * parent as u64 + what } else { (1 << 40) + parent as u64 };
                stream(context.seed, Purpose::Cluster, context.epoch, level, view)
            };
            let lloyd = Lloyd { iterations: self.iterations.get(), spherical: false, tolerance: 0.0 };
            let most =
                self.max_points_per_centroid.map_or(usize::MAX, |most| most.get().saturating_mul(share));
            let sampled = (most < own.len()).then(|| {
                let mut chosen = rand::seq::index::sample(&mut random(2), own.len(), most).into_vec();
                chosen.sort_unstable();
                chosen.iter().flat_map(|i| inside.row(*i)).copied().collect::<Vec<f32>>()
            });
            let fitted = sampled.as_deref().map_or(inside, |data| Rows::new(data, dim));
            let start = gather(fitted, &self.init.choose(fitted, share, &mut random(0)));
            let mut fit = lloyd.run(fitted, start, &mut random(1));
            if sampled.is_some() {
                let n = own.len();
                (fit.index, fit.square) = (vec![0; n], vec![0.0; n]);
                let packed = Packed::new(&fit.centroids, dim);
                nearest(inside.data, &packed, &mut fit.index, &mut fit.square);
            }
            let first = (centroids.len() / dim) as u32;
            for (i, child) in own.iter().zip(&fit.index) {
                index[*i as usize] = first + child;
            }
            objective += fit.square.iter().map(|s| *s as f64).sum::<f64>();
            centroids.extend(fit.centroids);
            splits += fit.splits.iter().sum::<usize>();
        }
        let assignments: Vec<Option<u32>> = index.into_iter().map(Some).collect();
        let report = report(vec![objective], splits, assignments.iter().copied(), k);
        Clustering { k, dim, centroids, assignments, report }
    }
}

/// Divides k among parents in proportion to their sizes: at least one to each that has samples, at most its size,
/// by the largest remaining claim (size per child so far). k lies between the number of such parents and the samples.
fn shares(sizes: &[usize], k: usize) -> Vec<usize> {
    let mut shares: Vec<usize> = sizes.iter().map(|s| (*s > 0) as usize).collect();
    let mut claims: std::collections::BinaryHeap<_> =
        sizes.iter().enumerate().filter(|(_, s)| **s > 1).map(|(p, s)| claim(*s, 1, p)).collect();
    for _ in shares.iter().sum::<usize>()..k {
        let Some((_, std::cmp::Reverse(p))) = claims.pop() else { break };
        shares[p] += 1;
        if shares[p] < sizes[p] {
            claims.push(claim(sizes[p], shares[p], p));
        }
    }
    shares
}

/// Size per child in fixed point, larger first; among equals the lower number.
fn claim(size: usize, share: usize, parent: usize) -> (u128, std::cmp::Reverse<usize>) {
    (((size as u128) << 64) / share as u128, std::cmp::Reverse(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(k: &[usize]) -> HierarchicalKMeans {
        HierarchicalKMeans {
            k: k.iter().map(|k| Count::try_from(*k).unwrap()).collect(),
            iterations: Count::lit(30),
            init: Init::KMeansPlusPlus,
            max_points_per_centroid: None,
            start: Span::epochs(0),
            every: Span::epochs(1),
        }
    }

    const CONTEXT: FitContext<'static> = FitContext { seed: 0, epoch: 0, previous: &[], labels: None };

    /// Three far groups of four near groups.
    fn nested() -> Vec<f32> {
        let angle = |i: usize| 1.7 * i as f32;
        let at = |group: usize, part: usize, i: usize| {
            let (x, y) = (100.0 * group as f32, 5.0 * (part % 2) as f32);
            [x + 0.1 * angle(i).sin() + 5.0 * (part / 2) as f32, y + 0.1 * angle(i * i).cos()]
        };
        (0..240).flat_map(|i| at(i % 3, i / 3 % 4, i)).collect()
    }

    #[test]
    fn levels_are_nested_and_find_nested_groups() {
        let data = nested();
        let levels = configured(&[3, 12, 40]).fit_rows(Rows::new(&data, 2), CONTEXT).unwrap();
        let truth: Vec<u32> = (0..240).map(|i| i % 3).collect();
        let agreement = crate::metrics::Agreement::new(&truth, &levels[0].assignments).unwrap();
        assert!((agreement.ari - 1.0).abs() < 1e-12);
        for pair in levels.windows(2) {
            let mut parent = vec![None; pair[1].k];
            for (coarse, fine) in pair[0].assignments.iter().zip(&pair[1].assignments) {
                let seen = &mut parent[fine.unwrap() as usize];
                assert!(seen.is_none() || *seen == *coarse, "a child with two parents");
                *seen = *coarse;
            }
            assert!(pair[1].report.objective[0] <= pair[0].report.objective[0]);
        }
        for level in &levels {
            assert_eq!(level.centroids.len(), level.k * 2);
            let total: f64 = data
                .chunks(2)
                .zip(&level.assignments)
                .map(|(x, a)| {
                    let c = &level.centroids[a.unwrap() as usize * 2..][..2];
                    ((x[0] - c[0]) as f64).powi(2) + ((x[1] - c[1]) as f64).powi(2)
                })
                .sum();
            assert!((total - level.report.objective[0]).abs() < 1e-4 * (1.0 + total));
        }
    }

    #[test]
    fn a_fit_on_a_part_comes_close_and_assigns_all_to_the_nearest_child() {
        let data = nested();
        let rows = Rows::new(&data, 2);
        let whole = configured(&[3, 12]).fit_rows(rows, CONTEXT).unwrap();
        let most = Some(Count::lit(8));
        let part = HierarchicalKMeans { max_points_per_centroid: most, ..configured(&[3, 12]) };
        let part = part.fit_rows(rows, CONTEXT).unwrap();
        let objective = |levels: &[Clustering]| levels[1].report.objective[0];
        assert!(objective(&part) < 1.5 * objective(&whole), "{} for {}", objective(&part), objective(&whole));
        assert_ne!(part[1].centroids, whole[1].centroids);
        assert!(part[1].assignments.len() == 240 && part[1].report.empty == 0);
    }

    #[test]
    fn shares_follow_sizes_within_their_bounds() {
        assert_eq!(shares(&[60, 30, 10], 10), [6, 3, 1]);
        assert_eq!(shares(&[97, 1, 0, 2], 20), [18, 1, 0, 1]);
        assert_eq!(shares(&[3, 3], 6), [3, 3], "as many as there are samples");
        assert_eq!(shares(&[5, 5, 5], 3), [1, 1, 1]);
    }

    #[test]
    fn levels_that_do_not_grow_are_refused() {
        let text = configured(&[10, 10]).fit_rows(Rows::new(&[0.0; 40], 1), CONTEXT).unwrap_err().to_string();
        assert!(text.contains("10 before 10"), "{text}");
        let all_same = configured(&[2, 8]).fit_rows(Rows::new(&[1.0; 40], 1), CONTEXT).unwrap();
        assert_eq!(all_same[1].centroids.len(), 8);
    }
}
