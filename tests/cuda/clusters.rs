//! Clustering.

use crate::{device, pattern};
use pauc::dfdx::prelude::*;
use pauc::traits::clusterer::{ClustersOnDevice, FitContext};
use pauc::traits::probe::RowsView;
use pauc::traits::registry::kind;
use pauc::traits::{Clustering, Compute, Configured};
use pauc_testing::{assert_within, tolerance};

/// Rows around `k` distant centers.
fn clustered(rows: usize, dim: usize, k: usize) -> Vec<f32> {
    let noise = pattern(rows * dim, 0.7);
    let center = |c: usize, d: usize| 8.0 * ((1 + c) as f32 * 1.3 + d as f32 * 2.1).sin();
    (0..rows * dim).map(|i| center(i / dim % k, i % dim) + 0.5 * noise[i]).collect()
}

#[test]
fn k_means_equals_the_cpus() {
    fn fit<D: Compute>(dev: &D, text: &str, rows: RowsView<'_>) -> Vec<Clustering> {
        let clusterer = Configured::<kind::Clusterer>::parse(text).unwrap();
        let context = FitContext { epoch: 1, device: dev.clusters_on_device(), ..FitContext::new(4) };
        clusterer.fit(rows, context).unwrap()
    }
    let (dim, data) = (17, clustered(180, 17, 9));
    let rows = RowsView::new(&data, dim);
    for text in [
        "KMeans(k: [9, 20], iterations: 6)",
        "KMeans(k: [12], spherical: true, init: Random, redos: 2, iterations: 4)",
        "KMeans(k: [5], max_points_per_centroid: 20, iterations: 4)",
        "KMeans(k: [180])",
        // These start from k-means.
        "Agglomerative(k: [9, 4], leaves: 30)",
        "Sinkhorn(k: [9])",
        "GaussianMixture(k: [9])",
        "MiniBatchKMeans(k: [6])",
    ] {
        let (cuda, cpu) = (fit(&device(), text, rows), fit(&Cpu::default(), text, rows));
        assert_eq!(cuda.len(), cpu.len());
        for (got, want) in cuda.iter().zip(&cpu) {
            // No row is so close to two centroids that rounding could decide.
            assert_eq!(got.assignments, want.assignments, "{text}, k {}", got.k);
            // Both devices add the same rows in `f64`, in the same order, and round once.
            assert!(got.centroids == want.centroids, "{text}, k {}", got.k);
            let last = |c: &Clustering| *c.report.objective.last().unwrap();
            // A distance is a sum of `dim` squared differences with three roundings each, on either device.
            let allowed = 2.0 * tolerance::f32(dim + 3, last(want));
            assert_within!(last(got), last(want), allowed, "{text}, k {}", got.k);
        }
    }
}

/// The device computes the distances, and the same rows are drawn as on the CPU.
#[test]
fn k_means_starts_from_the_same_rows_as_on_the_cpu() {
    use pauc::cluster::on_ranks::Rows;
    use pauc::cluster::seeding::Init;
    use pauc::traits::rng::{Purpose, stream};
    let (dim, data) = (11, clustered(100, 11, 20));
    let rows = RowsView::new(&data, dim);
    let device = device();
    let mut on = ClustersOnDevice::rows(&device, rows).unwrap().unwrap();
    let mut sq_dist = vec![f32::INFINITY; 100];
    sq_dist[20] = 0.25;
    on.lower(&data[..5 * dim], &mut sq_dist).unwrap();
    on.lower(&data[40 * dim..70 * dim], &mut sq_dist).unwrap();
    for (i, (x, got)) in rows.iter().zip(&sq_dist).enumerate() {
        let to = |c: usize| -> f64 {
            x.iter().zip(rows.row(c)).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
        };
        let want = (0..5).chain(40..70).map(to).fold(f64::INFINITY, f64::min);
        let want = if i == 20 { want.min(0.25) } else { want };
        // No second row is as close, so the correct row's differences are squared. Each is rounded once,
        // which its square doubles, and the sum in `f64` is rounded once more.
        assert_within!(*got, want, tolerance::f32(3, want), "row {i}");
    }
    assert!(
        on.lower(&data[..dim], &mut sq_dist[..9]).unwrap_err().to_string().contains("9 distances for 100")
    );
    for seed in 0..2 {
        let rng = || stream(seed, Purpose::Cluster, 0, 0, 0);
        // A draw falls between the two devices' shares of a row less than once in 10⁵ draws.
        let got = Init::KMeansPlusPlus.choose_on(&mut *on, &Rows::alone(rows), 80, &mut rng()).unwrap();
        assert_eq!(got, Init::KMeansPlusPlus.choose(rows, 80, &mut rng()).unwrap());
    }
}
