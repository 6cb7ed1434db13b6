//! k-means within k-means.

use crate::HostClusterer;
use crate::host::enough;
use crate::lloyd::{Lloyd, members, refill_from, report};
use crate::restricted::{Restricted, nearest_lists};
use crate::seeding::{Init, gather};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::Rows;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{Clustering, Count, Error, Result, Span, component};
use rayon::prelude::*;
use std::borrow::Cow;

component! {
    /// Nested levels, from coarse to fine: each prototype of a level is divided by k-means among its own samples.
    ///
    /// A prototype gets a share of the next level's k in proportion to its size: at least one, at most its number
    /// of samples. Then come `refinements`: a sample is compared with the `probes`·k/parents prototypes nearest to its
    /// parent, whosever children they are, and prototypes become the means of their samples (one without samples is refilled by
    /// splitting another, as in KMeans). That takes `probes`/parents of
    /// the time of comparing all. Levels are nested: two samples that share a prototype share its parents. So a coarse
    /// prototype of the result is the mean of its descendants' samples.
    ///
    /// Without refinements, a sample's prototype is the nearest among its parent's children; on features without coarse
    /// structure that costs a third of the objective.
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
        /// Divides a prototype by k-means on so many of its samples a child, drawn at random. The refinements use all.
        pub max_points_per_centroid: Option<Count> = Some(Count::lit(32)),
        /// Updates with samples that may leave their parents.
        pub refinements: usize = 4,
        /// With how many parents' worth of prototypes a sample is compared in a refinement.
        pub probes: Count = Count::lit(8),
        /// When the first clustering happens.
        pub start: Span = Span::epochs(2),
        /// How long a clustering is kept.
        pub every: Span = Span::epochs(1),
    }
}

clusterer_on_host!(HierarchicalKMeans, |this| this.k.iter().map(|k| Some(k.get())).collect());

impl HostClusterer for HierarchicalKMeans {
    fn fit_rows(&self, rows: Rows<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        if self.k.is_empty() {
            return Err(Error::config(
                "k is an empty list: name the numbers of prototypes from coarse to fine, such as k: [100, 10000]",
            ));
        }
        if let Some(pair) = self.k.windows(2).find(|w| w[0] >= w[1]) {
            return Err(Error::config(format!(
                "the levels of a hierarchy grow from coarse to fine, but k has {} before {}: order k upwards",
                pair[0], pair[1]
            )));
        }
        let mut levels: Vec<Level> = Vec::new();
        for (number, k) in self.k.iter().map(|k| k.get()).enumerate() {
            enough(rows, k)?;
            let level = self.level(rows, levels.last(), k, context, number as u64);
            levels.push(level);
        }
        if self.refinements > 0 {
            nest(rows, &mut levels);
        }
        Ok(levels.into_iter().map(|level| level.clustering(rows.cols)).collect())
    }
}

/// One level of a fit.
struct Level {
    centroids: Vec<f32>,
    /// Of which prototype of the level above each is a child.
    parent: Vec<u32>,
    /// Each sample's prototype.
    index: Vec<u32>,
    objective: f64,
    splits: usize,
}

impl Level {
    fn clustering(self, dim: usize) -> Clustering {
        let k = self.centroids.len() / dim;
        let assignments: Vec<Option<u32>> = self.index.into_iter().map(Some).collect();
        let report = report(vec![self.objective], self.splits, assignments.iter().copied(), k);
        Clustering { k, dim, centroids: self.centroids, assignments, report }
    }
}

impl HierarchicalKMeans {
    fn level(
        &self,
        rows: Rows<'_>,
        above: Option<&Level>,
        k: usize,
        context: FitContext<'_>,
        number: u64,
    ) -> Level {
        let dim = rows.cols;
        let all_in_one: Vec<u32>;
        let cells = match above {
            Some(above) => &above.index,
            None => {
                all_in_one = vec![0; rows.rows];
                &all_in_one
            }
        };
        let count = above.map_or(1, |above| above.centroids.len() / dim);
        let (order, starts) = members(cells, count);
        let sizes: Vec<usize> = starts.windows(2).map(|w| w[1] - w[0]).collect();
        let shares = shares(&sizes, k);
        let divided: Vec<(Vec<f32>, usize)> = (0..count)
            .into_par_iter()
            .map(|cell| {
                let own = &order[starts[cell]..starts[cell + 1]];
                self.divide(rows, own, (cell, count), shares[cell], context, number)
            })
            .collect();
        drop(order);
        let mut parent: Vec<u32> =
            shares.iter().enumerate().flat_map(|(cell, share)| vec![cell as u32; *share]).collect();
        let mut splits: usize = divided.iter().map(|d| d.1).sum();
        let mut centroids = Vec::with_capacity(k * dim);
        divided.into_iter().for_each(|(own, _)| centroids.extend(own));
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); count];
        parent.iter().enumerate().for_each(|(child, cell)| lists[*cell as usize].push(child as u32));
        let refinements = if above.is_some() { self.refinements } else { 0 };
        let mut restricted = Restricted::new(rows, cells);
        for pass in 0..=refinements {
            if let (Some(above), true) = (above, refinements > 0) {
                let width = (self.probes.get().saturating_mul(k)).div_ceil(count).min(k);
                lists = nearest_lists(&above.centroids, &centroids, dim, width);
            }
            restricted.assign(&centroids, &lists);
            if pass < refinements {
                let mut sizes = restricted.update(&mut centroids);
                let rng = &mut stream(
                    context.seed,
                    Purpose::Cluster,
                    context.epoch,
                    number,
                    (2 << 40) + pass as u64,
                );
                let filled = refill_from(&mut centroids, dim, &mut sizes, rng);
                filled.iter().for_each(|(empty, donor)| parent[*empty] = parent[*donor]);
                splits += filled.len();
            }
        }
        let Restricted { index, objective, .. } = restricted;
        Level { centroids, parent, index, objective, splits }
    }

    /// The children of one prototype of the level above, by k-means among its samples `own`, and the splits it took.
    fn divide(
        &self,
        rows: Rows<'_>,
        own: &[u32],
        (cell, count): (usize, usize),
        share: usize,
        context: FitContext<'_>,
        number: u64,
    ) -> (Vec<f32>, usize) {
        if share == 0 {
            return (Vec::new(), 0);
        }
        let random = |what: u64| {
            // The third stream stands apart, so that the first two are those of a fit on all samples.
            let view = if what < 2 { 2 * cell as u64 + what } else { (1 << 40) + cell as u64 };
            stream(context.seed, Purpose::Cluster, context.epoch, number, view)
        };
        let most = self.max_points_per_centroid.map_or(usize::MAX, |most| most.get().saturating_mul(share));
        let data = if most < own.len() {
            let mut chosen = rand::seq::index::sample(&mut random(2), own.len(), most).into_vec();
            chosen.sort_unstable();
            Cow::Owned(chosen.iter().flat_map(|i| rows.row(own[*i] as usize)).copied().collect())
        } else if count == 1 {
            // All rows, which may be a mapped file larger than memory: no copy.
            Cow::Borrowed(rows.data)
        } else {
            Cow::Owned(gather(rows, own))
        };
        let inside = Rows::new(&data, rows.cols);
        let lloyd = Lloyd { iterations: self.iterations.get(), spherical: false, tolerance: 0.0 };
        let start = gather(inside, &self.init.choose(inside, share, &mut random(0)));
        let fit = lloyd.run(inside, start, &mut random(1));
        (fit.centroids, fit.splits.iter().sum())
    }
}

/// Gives each coarse prototype the samples of its children, and their mean; finer levels first.
fn nest(rows: Rows<'_>, levels: &mut [Level]) {
    for at in (1..levels.len()).rev() {
        let (coarse, fine) = levels.split_at_mut(at);
        let (coarse, fine) = (&mut coarse[at - 1], &fine[0]);
        coarse.index.iter_mut().zip(&fine.index).for_each(|(c, f)| *c = fine.parent[*f as usize]);
        coarse.objective = crate::restricted::means(rows, &coarse.index, &mut coarse.centroids);
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
            refinements: 0,
            probes: Count::lit(2),
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

    /// Samples without coarse structure: a border between parents is near to nearly all of them.
    #[test]
    fn refinements_come_close_to_flat_and_keep_levels_nested() {
        use rand_distr::{Distribution, StandardNormal};
        let rng = &mut stream(2, Purpose::Data, 0, 0, 0);
        let data: Vec<f32> = (0..3000 * 16).map(|_| StandardNormal.sample(rng)).collect();
        let rows = Rows::new(&data, 16);
        let objective = |levels: &[Clustering]| levels[levels.len() - 1].report.objective[0];
        let plain = configured(&[10, 100]).fit_rows(rows, CONTEXT).unwrap();
        let refined = HierarchicalKMeans { refinements: 3, probes: Count::lit(4), ..configured(&[10, 100]) };
        let levels = refined.fit_rows(rows, CONTEXT).unwrap();
        let rng = &mut stream(0, Purpose::Cluster, 0, 0, 0);
        let start = gather(rows, &Init::KMeansPlusPlus.choose(rows, 100, rng));
        let flat = Lloyd { iterations: 30, spherical: false, tolerance: 0.0 }.run(rows, start, rng);
        let flat = flat.objective[flat.objective.len() - 1];
        assert!(objective(&levels) < 1.03 * flat, "{} for {flat}", objective(&levels));
        assert!(objective(&levels) < 0.97 * objective(&plain), "for {}", objective(&plain));
        let mut parent = vec![None; 100];
        for (coarse, fine) in levels[0].assignments.iter().zip(&levels[1].assignments) {
            let seen = &mut parent[fine.unwrap() as usize];
            assert!(seen.is_none() || *seen == *coarse, "a child with two parents");
            *seen = *coarse;
        }
        let again = crate::lloyd::clustering_of(rows, levels[0].assignments.clone(), 10, Vec::new());
        assert_eq!(again.centroids, levels[0].centroids, "a coarse prototype is the mean of its samples");
        let (got, want) = (levels[0].report.objective[0], again.report.objective[0]);
        assert!((got - want).abs() < 1e-5 * want, "{got} for {want}");
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
        let text = configured(&[]).fit_rows(Rows::new(&[0.0; 40], 1), CONTEXT).unwrap_err().to_string();
        assert!(text.contains("empty list"), "{text}");
    }
}
