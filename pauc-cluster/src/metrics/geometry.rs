//! Scores of a clustering without labels.

use crate::lloyd::{Members, labels_with_noise, means};
use pauc_kernels::distance::squared_distance;
use pauc_traits::probe::RowsView;
use pauc_traits::rng::{Purpose, stream};
use rayon::prelude::*;

/// Returns the mean silhouette (b − a)/max(a, b). a is the mean Euclidean distance of a sample to its
/// cluster, and b the same to the nearest other cluster. A sample that is alone in its cluster has 0. The
/// range is −1 to 1.
///
/// With more than `most` samples, a random subset of that size is scored as if it were all (O(most²·D)).
/// Noise is left out. `None` with fewer than two clusters.
///
/// # Shapes
/// rows (N, D), assignments N
///
/// Source: Rousseeuw 1987.
pub fn silhouette(rows: RowsView<'_>, assignments: &[Option<u32>], most: usize, seed: u64) -> Option<f64> {
    let mut used: Vec<(usize, u32)> =
        assignments.iter().take(rows.rows).enumerate().filter_map(|(i, a)| a.map(|a| (i, a))).collect();
    if used.len() > most {
        let rng = &mut stream(seed, Purpose::Probe, 0, 0, 0);
        let mut kept = rand::seq::index::sample(rng, used.len(), most).into_vec();
        kept.sort_unstable();
        used = kept.into_iter().map(|i| used[i]).collect();
    }
    let k = used.iter().map(|u| u.1 as usize + 1).max()?;
    let mut sizes = vec![0usize; k];
    used.iter().for_each(|u| sizes[u.1 as usize] += 1);
    if sizes.iter().filter(|s| **s > 0).count() < 2 {
        return None;
    }
    let scores: Vec<f64> = used
        .par_iter()
        .map(|&(i, own)| {
            let (own, mut sums) = (own as usize, vec![0.0f64; k]);
            if sizes[own] == 1 {
                return 0.0;
            }
            for &(j, cluster) in &used {
                sums[cluster as usize] += (squared_distance(rows.row(i), rows.row(j)) as f64).sqrt();
            }
            let inside = sums[own] / (sizes[own] - 1) as f64;
            let others = (0..k).filter(|c| *c != own && sizes[*c] > 0).map(|c| sums[c] / sizes[c] as f64);
            let outside = others.fold(f64::INFINITY, f64::min);
            match inside.max(outside) {
                0.0 => 0.0,
                larger => (outside - inside) / larger,
            }
        })
        .collect();
    Some(scores.iter().sum::<f64>() / scores.len() as f64)
}

/// Returns the Davies–Bouldin index: the mean over clusters of max_j (s_i + s_j)/‖μ_i − μ_j‖, where s is the
/// mean distance of a cluster's samples to its mean μ. Lower is better. Pairs of clusters with equal means
/// are skipped.
///
/// Noise is left out. `None` with fewer than two clusters.
///
/// # Shapes
/// rows (N, D), assignments N
///
/// Source: Davies & Bouldin 1979.
pub fn davies_bouldin(rows: RowsView<'_>, assignments: &[Option<u32>]) -> Option<f64> {
    let (dim, k) = (rows.cols, assignments.iter().flatten().max().map_or(0, |m| *m as usize + 1));
    let labels = labels_with_noise(assignments, k);
    let mut centroids = vec![0.0; (k + 1) * dim];
    means(rows, &labels, &mut centroids);
    let members = Members::new(&labels, k + 1);
    let mean = |c: usize| &centroids[c * dim..(c + 1) * dim];
    let distance = |a: &[f32], b: &[f32]| (squared_distance(a, b) as f64).sqrt();
    let occupied: Vec<(usize, f64)> = (0..k)
        .filter(|c| !members.of(*c).is_empty())
        .map(|c| {
            let own = members.of(c);
            let sum: f64 = own.iter().map(|i| distance(rows.row(*i as usize), mean(c))).sum();
            (c, sum / own.len() as f64)
        })
        .collect();
    if occupied.len() < 2 {
        return None;
    }
    let worst = |&(a, spread): &(usize, f64)| {
        let others = occupied.iter().filter(|(b, _)| *b != a);
        let ratios = others.map(|(b, other)| match distance(mean(a), mean(*b)) {
            0.0 => 0.0,
            apart => (spread + other) / apart,
        });
        ratios.fold(0.0, f64::max)
    };
    let worst: Vec<f64> = occupied.par_iter().map(worst).collect();
    Some(worst.iter().sum::<f64>() / worst.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn some(a: &[u32]) -> Vec<Option<u32>> {
        a.iter().map(|a| Some(*a)).collect()
    }

    #[test]
    fn silhouette_equals_the_value_by_hand() {
        let data = [0.0, 1.0, 10.0, 12.0, 50.0];
        let rows = RowsView::new(&data, 1);
        // a = 1, 1, 2, 2; b is the mean distance to the other pair.
        let want = (10.0 / 11.0 + 9.0 / 10.0 + (9.5 - 2.0) / 9.5 + (11.5 - 2.0) / 11.5 + 0.0) / 5.0;
        let got = silhouette(rows, &some(&[0, 0, 1, 1, 2]), 100, 0).unwrap();
        // Distances are integers and exact. Each score has five roundings and their mean six, all of numbers
        // below 1.
        assert_within!(got, want, tolerance::f64(11, 1.0));
        assert_eq!(silhouette(rows, &some(&[3; 5]), 100, 0), None);
        assert_eq!(silhouette(rows, &[None; 5], 100, 0), None);
        assert_eq!(silhouette(RowsView::new(&[1.0; 4], 1), &some(&[0, 0, 1, 1]), 100, 0), Some(0.0));
        let sampled = silhouette(rows, &some(&[0, 0, 1, 1, 2]), 4, 0).unwrap();
        assert!((-1.0..=1.0).contains(&sampled));
    }

    #[test]
    fn davies_bouldin_equals_the_value_by_hand() {
        let data = [0.0, 2.0, 10.0, 14.0, 99.0];
        let mut assignments = some(&[0, 0, 1, 1, 0]);
        assignments[4] = None;
        // Spreads 1 and 2, means 1 and 12.
        let got = davies_bouldin(RowsView::new(&data, 1), &assignments).unwrap();
        // Spreads and means are integers and exact.
        assert_within!(got, 3.0 / 11.0, tolerance::f64(3, 3.0 / 11.0));
        assert_eq!(davies_bouldin(RowsView::new(&data, 1), &some(&[0; 5])), None);
        assert_eq!(davies_bouldin(RowsView::new(&[1.0; 4], 1), &some(&[0, 0, 1, 1])), Some(0.0));
    }
}
