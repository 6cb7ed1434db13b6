//! k-means as a recipe uses it: configured in RON, on the host and on a device, with edge cases.

#![allow(clippy::unwrap_used)]

use pauc_cluster::KMeans;
use pauc_cluster::nearest::Nearest;
use pauc_cluster::on_ranks::OnRanks;
use pauc_distributed::{Communicator, Threads};
use pauc_testing::{assert_within, tolerance};
use pauc_traits::clusterer::{ClustersOnDevice, FitContext, RowsOnDevice};
use pauc_traits::probe::RowsView;
use pauc_traits::registry::kind;
use pauc_traits::{Clusterer, Clustering, Configured, Count, Result, TrainingSpan};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

type Registered = Configured<kind::Clusterer>;

fn fit_with(text: &str, data: &[f32], cols: usize, context: FitContext<'_>) -> Result<Vec<Clustering>> {
    Registered::parse(text).unwrap().fit(RowsView::new(data, cols), context)
}

fn context() -> FitContext<'static> {
    FitContext { epoch: 3, ..FitContext::new(5) }
}

fn fit(text: &str, data: &[f32], cols: usize) -> Result<Vec<Clustering>> {
    fit_with(text, data, cols, context())
}

fn noise(n: usize, seed: u64) -> Vec<f32> {
    use rand_distr::{Distribution, StandardNormal};
    let rng = &mut pauc_traits::rng::stream(seed, pauc_traits::rng::Purpose::Data, 0, 0, 0);
    (0..n).map(|_| StandardNormal.sample(rng)).collect()
}

fn blobs(per: usize, count: usize, dim: usize) -> Vec<f32> {
    let (centers, around) = (noise(count * dim, 1), noise(per * count * dim, 2));
    (0..per * count * dim)
        .map(|i| 10.0 * centers[i / dim % count * dim + i % dim] + 0.1 * around[i])
        .collect()
}

fn sq_dist(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum()
}

/// Returns the range of each column.
fn ranges(data: &[f32], dim: usize) -> Vec<(f64, f64)> {
    let column = |l: usize| data.iter().skip(l).step_by(dim).map(|v| f64::from(*v));
    (0..dim)
        .map(|l| (column(l).fold(f64::INFINITY, f64::min), column(l).fold(-f64::INFINITY, f64::max)))
        .collect()
}

/// The error bound of twice the score (‖c‖² − ‖m‖²)/2 − x·(c − m) that selects the nearest centroid: a
/// difference and a product per coordinate, their sum, the first part, and a subtraction. The origin m is the
/// mean of some samples, and so within their `ranges`.
fn undecided(x: &[f32], c: &[f32], ranges: &[(f64, f64)]) -> f64 {
    let mut magnitude = 0.0;
    for ((x, c), (low, high)) in x.iter().zip(c).zip(ranges) {
        let (x, c) = (f64::from(*x), f64::from(*c));
        let (apart, sum) = ((c - low).abs().max((high - c).abs()), c.abs() + low.abs().max(high.abs()));
        magnitude += apart * (x.abs() + sum / 2.0);
    }
    2.0 * tolerance::f32(x.len() + 4, magnitude)
}

/// Checks that every sample belongs to its nearest final centroid and that the report is consistent. Returns
/// how much lower the objective could be if rounding did not decide between centroids, and whether it decides
/// anywhere.
fn check(c: &Clustering, data: &[f32]) -> (f64, bool) {
    assert_eq!(c.centroids.len(), c.k * c.dim);
    assert_eq!(c.assignments.len(), data.len() / c.dim);
    let ranges = ranges(data, c.dim);
    let (mut sizes, mut objective) = (vec![0usize; c.k], 0.0);
    let (mut lower, mut decides) = (0.0, false);
    for (x, a) in data.chunks(c.dim).zip(&c.assignments) {
        let a = a.unwrap() as usize;
        let all = c.centroids.chunks(c.dim).map(|c| (sq_dist(x, c), undecided(x, c, &ranges)));
        let all: Vec<(f64, f64)> = all.collect();
        let (own, error) = all[a];
        let mut room = 0.0f64;
        for (other, (sq_dist, of_other)) in all.iter().enumerate() {
            assert!(own <= sq_dist + error + of_other, "{own} for {sq_dist}");
            room = room.max(own - sq_dist);
            decides |= other != a && own + error >= sq_dist - of_other;
        }
        lower += room;
        sizes[a] += 1;
        objective += own;
    }
    let last = *c.report.objective.last().unwrap();
    // Squares of differences have three roundings each, and are summed.
    assert_within!(last, objective, tolerance::f32(c.dim + 3, objective));
    assert_eq!(c.report.empty, sizes.iter().filter(|s| **s == 0).count());
    let squares: f64 = sizes.iter().map(|s| (s * s) as f64).sum();
    let imbalance = c.k as f64 * squares / (c.assignments.len() as f64).powi(2);
    // A quotient of integers that f64 represents exactly.
    assert_within!(c.report.imbalance, imbalance, tolerance::f64(1, imbalance));
    (lower, decides)
}

#[test]
fn blobs_are_found_at_every_level() {
    let data = blobs(30, 8, 5);
    let levels = fit("KMeans(k: [8, 3], redos: 3)", &data, 5).unwrap();
    assert_eq!((levels.len(), levels[0].k, levels[1].k), (2, 8, 3));
    for level in &levels {
        check(level, &data);
    }
    let truth: Vec<u32> = (0..240).map(|i| i % 8).collect();
    let scores = pauc_cluster::metrics::Agreement::new(&truth, &levels[0].assignments).unwrap();
    assert_eq!(scores.ari, 1.0);
    // Between blobs this far apart, an update lowers the objective by more than rounding, or changes nothing.
    assert!(levels[0].report.objective.windows(2).all(|w| w[1] <= w[0]));
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let data = noise(3000 * 17, 4);
    let text = "KMeans(k: [40], iterations: 6)";
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fit(text, &data, 17)).unwrap()
    };
    let alone = with(1);
    assert_eq!(alone, with(2));
    assert_eq!(alone, with(4));
    check(&alone[0], &data);
    assert_ne!(alone, fit_with(text, &data, 17, FitContext { seed: 6, ..context() }).unwrap());
    assert_ne!(alone, fit_with(text, &data, 17, FitContext { epoch: 4, ..context() }).unwrap());
}

#[test]
fn as_many_prototypes_as_samples_are_copies() {
    let data = noise(12 * 3, 1);
    let c = &fit("KMeans(k: [12])", &data, 3).unwrap()[0];
    assert_eq!(c.centroids, data);
    assert_eq!(c.assignments, (0..12).map(Some).collect::<Vec<_>>());
    assert_eq!((c.report.objective.as_slice(), c.report.imbalance, c.report.empty), (&[0.0][..], 1.0, 0));
}

#[test]
fn more_prototypes_than_samples_are_refused() {
    let text = fit("KMeans(k: [2, 13])", &noise(36, 1), 3).unwrap_err().to_string();
    assert_eq!(
        text,
        "13 prototypes need at least as many samples, but there are 12: lower k to 12 or less, or use more data"
    );
    let text = fit("KMeans(k: [4], min_points_per_centroid: 5)", &noise(36, 1), 3).unwrap_err().to_string();
    assert!(text.contains("need 20, but there are 12"), "{text}");
    assert!(fit("KMeans(k: [])", &noise(36, 1), 3).unwrap_err().to_string().contains("empty list"));
    assert!(fit("KMeans(k: [1])", &[], 3).unwrap_err().to_string().contains("nothing to cluster"));
    assert!(Registered::parse("KMeans(k: [0])").unwrap_err().to_string().contains("at least 1"));
}

#[test]
fn a_feature_that_is_not_finite_is_named() {
    let mut data = noise(36, 1);
    data[17] = f32::NAN;
    for clusterer in ["KMeans(k: [2])", "Dbscan(radius: 1.0)", "GaussianMixture(k: [2])", "Hdbscan()"] {
        let text = fit(clusterer, &data, 3).unwrap_err().to_string();
        assert!(text.contains("row 5, column 2: NaN"), "{clusterer}: {text}");
    }
    let rust = KMeans::with(vec![Count::lit(2)]).fit(RowsView::new(&data, 3), context());
    assert!(rust.unwrap_err().to_string().contains("row 5, column 2: NaN"));
}

/// A device that computes as the host does, and counts how often rows are copied to it.
#[derive(Default)]
struct Device {
    copies: RefCell<Vec<usize>>,
    held: Rc<Cell<bool>>,
}

struct Copied {
    data: Vec<f32>,
    cols: usize,
    held: Rc<Cell<bool>>,
}

impl ClustersOnDevice for Device {
    fn rows(&self, rows: RowsView<'_>) -> Result<Option<Box<dyn RowsOnDevice>>> {
        self.copies.borrow_mut().push(rows.rows);
        assert!(!self.held.replace(true), "two copies of the rows on the device");
        Ok(Some(Box::new(Copied { data: rows.data.to_vec(), cols: rows.cols, held: self.held.clone() })))
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.held.set(false);
    }
}

impl RowsOnDevice for Copied {
    fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)> {
        let nearest = Nearest::find(RowsView::new(&self.data, self.cols), centroids).unwrap();
        Ok((nearest.labels, nearest.sq_dist))
    }
    fn lower(&mut self, centroids: &[f32], sq_dist: &mut [f32]) -> Result<()> {
        let (_, all) = self.nearest(centroids)?;
        sq_dist.iter_mut().zip(all).for_each(|(least, d)| *least = least.min(d));
        Ok(())
    }
    fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()> {
        let mut labels = vec![0; order.len()];
        for (c, bounds) in (0..).zip(starts.windows(2)) {
            order[bounds[0]..bounds[1]].iter().for_each(|i| labels[*i as usize] = c);
        }
        pauc_cluster::lloyd::means(RowsView::new(&self.data, self.cols), &labels, centroids);
        Ok(())
    }
}

#[test]
fn a_device_gets_the_rows_once_and_gives_what_the_host_gives() {
    // No row of this noise is so near a border that rounding could decide.
    let data = noise(240 * 4, 7);
    for (text, copies) in [
        ("KMeans(k: [6, 3, 9], redos: 2)", &[240][..]),
        ("KMeans(k: [5], spherical: true, init: Random)", &[240]),
        // A subset of 40 is fitted, and then all samples are assigned. The second level would need 300.
        ("KMeans(k: [4, 30], max_points_per_centroid: 10)", &[40, 240, 240]),
        ("Agglomerative(k: [6], leaves: 20)", &[240]),
        ("Sinkhorn(k: [6, 3])", &[240]),
        ("GaussianMixture(k: [6])", &[240]),
        ("MiniBatchKMeans(k: [6], batch: 50)", &[]),
        ("HierarchicalKMeans(k: [3, 6])", &[]),
    ] {
        let device = Device::default();
        let on_device = fit_with(text, &data, 4, FitContext { device: Some(&device), ..context() }).unwrap();
        assert_eq!(*device.copies.borrow(), copies, "{text}");
        assert!(!device.held.get(), "{text}");
        for (got, want) in on_device.iter().zip(&fit(text, &data, 4).unwrap()) {
            assert_eq!(got.assignments, want.assignments, "{text}");
            assert_eq!(got.centroids, want.centroids, "{text}");
        }
    }
}

#[test]
fn degenerate_samples_neither_hang_nor_fail() {
    for init in ["KMeansPlusPlus", "Random"] {
        for data in [vec![0.0; 60], vec![2.5; 60]] {
            let c = &fit(&format!("KMeans(k: [7], init: {init})"), &data, 3).unwrap()[0];
            let (lower, _) = check(c, &data);
            // The halves of a split differ by 1/1024.
            let most: f64 = data.iter().map(|v| (*v as f64 / 1024.0).powi(2)).sum();
            let last = *c.report.objective.last().unwrap();
            assert!(last <= most + lower + tolerance::f32(3 + 3, most + lower), "{last} for {most}, {lower}");
        }
        let line: Vec<f32> = (0..50).map(|i| (i % 5) as f32).collect();
        let c = &fit(&format!("KMeans(k: [5], init: {init}, iterations: 60)"), &line, 1).unwrap()[0];
        check(c, &line);
        let single = &fit(&format!("KMeans(k: [1], init: {init})"), &line, 1).unwrap()[0];
        assert_eq!((single.centroids.as_slice(), single.report.objective.last()), (&[2.0][..], Some(&100.0)));
    }
}

#[test]
fn precision_is_kept_far_from_the_origin() {
    let near = blobs(30, 6, 4);
    let far: Vec<f32> = near.iter().map(|v| v + 1000.0).collect();
    // Objectives of the same blobs are comparable.
    let truth: Vec<u32> = (0..180).map(|i| i % 6).collect();
    let objective = |data: &[f32]| {
        let c = fit("KMeans(k: [6], redos: 4)", data, 4).unwrap().swap_remove(0);
        assert_eq!(pauc_cluster::metrics::Agreement::new(&truth, &c.assignments).unwrap().ari, 1.0);
        *c.report.objective.last().unwrap()
    };
    let largest = far.iter().fold(0.0, |most, v| f64::from(v.abs()).max(most));
    let (values, near, far) = (far.len() as f64, objective(&near), objective(&far));
    // Far from the origin, a sample and its mean are rounded, and the mean is that of rounded samples. Each x
    // − c is off by at most e, and Σ|x − c| ≤ √(values·objective). Each objective has dim + 3 roundings of
    // squares.
    let e = tolerance::f32(3, largest);
    let moved = 2.0 * e * (values * near).sqrt() + values * e * e;
    assert_within!(far, near, moved + tolerance::f32(2 * (4 + 3), near + moved));
}

#[test]
fn spherical_centroids_have_unit_length_or_are_zero() {
    let mut data = noise(200 * 6, 9);
    pauc_cluster::unit_rows(&mut data, 6);
    data[..12].fill(0.0);
    let c = &fit("KMeans(k: [9], spherical: true)", &data, 6).unwrap()[0];
    check(c, &data);
    for centroid in c.centroids.chunks(6) {
        let length = centroid.iter().map(|v| v * v).sum::<f32>();
        // Each coordinate is rounded, which moves its square by 2u. A product of length 6 follows.
        assert!((f64::from(length) - 1.0).abs() <= tolerance::f32(2 + 6, 1.0) || length == 0.0, "{length}");
    }
    let zeros = &fit("KMeans(k: [3], spherical: true)", &[0.0; 40], 4).unwrap()[0];
    assert!(zeros.centroids.iter().all(|v| *v == 0.0));
    assert!(zeros.assignments.iter().all(|a| *a == Some(0)));
}

#[test]
fn a_warm_start_begins_where_the_last_fit_ended() {
    let data = noise(500 * 4, 3);
    let cold = fit("KMeans(k: [11], iterations: 15, warm_start: true)", &data, 4).unwrap();
    // The distances are computed with another origin, but no sample is so near a border that rounding
    // decides.
    let (_, decides) = check(&cold[0], &data);
    assert!(!decides);
    let again = FitContext { previous: &cold, epoch: 4, ..context() };
    let warm = fit_with("KMeans(k: [11], iterations: 15, warm_start: true)", &data, 4, again).unwrap();
    assert_eq!(warm[0].report.objective[0], *cold[0].report.objective.last().unwrap());
    let ignored = fit_with("KMeans(k: [11], iterations: 15)", &data, 4, again).unwrap();
    assert!(ignored[0].report.objective[0] > warm[0].report.objective[0]);
}

#[test]
fn redos_keep_the_best_and_subsets_assign_all_samples() {
    let data = noise(400 * 3, 8);
    let last = |text: &str| *fit(text, &data, 3).unwrap()[0].report.objective.last().unwrap();
    assert!(last("KMeans(k: [20], redos: 5)") <= last("KMeans(k: [20])"));
    let c = &fit("KMeans(k: [4], max_points_per_centroid: 10)", &data, 3).unwrap()[0];
    assert_eq!(c.assignments.len(), 400);
    let sizes: f64 = c.report.objective[0];
    assert!(sizes < fit("KMeans(k: [4])", &data, 3).unwrap()[0].report.objective[0] / 3.0, "of 40 samples");
}

#[test]
fn defaults_are_documented() {
    let clusterer = Registered::parse("KMeans(k: [100, 250])").unwrap();
    assert_eq!(clusterer.prototypes(), [Some(100), Some(250)]);
    assert_eq!(clusterer.start(), TrainingSpan::epochs(2));
    assert_eq!(clusterer.every(), TrainingSpan::epochs(1));
    assert!(!clusterer.needs_labels());
    let options = pauc_traits::component_ron::options();
    let in_code = KMeans::with(vec![Count::lit(100), Count::lit(250)]);
    assert_eq!(
        options.to_string(&clusterer).unwrap(),
        format!("KMeans{}", options.to_string(&in_code).unwrap())
    );
    assert!(KMeans::FIELDS.iter().all(|f| !f.doc.trim().is_empty()));
}

/// Asserts that a fit on several ranks has the bits of a fit on one process, which the fit before may start from.
fn assert_ranks_agree(text: &str, data: &[f32], cols: usize, sizes: &[usize]) {
    let previous = fit(text, data, cols).unwrap();
    let from = FitContext { previous: &previous, ..context() };
    let want = fit_with(text, data, cols, from).unwrap();
    for size in sizes {
        let fits = Threads::run(*size, |ranks| {
            // Shares of different sizes; the last rank may have none.
            let (rank, rows) = (ranks.rank(), data.len() / cols);
            let start = |rank: usize| (rows.div_ceil(*size) * rank + 3 * rank).min(rows) * cols;
            let end = if rank + 1 == *size { data.len() } else { start(rank + 1) };
            let ranks = OnRanks(&ranks);
            let context = FitContext { device: Some(&ranks), previous: &previous, ..context() };
            fit_with(text, &data[start(rank).min(end)..end], cols, context)
        });
        for got in fits {
            assert_eq!(got.unwrap(), want, "{text} on {size} ranks");
        }
    }
}

#[test]
fn ranks_cluster_together_to_the_same_bits() {
    let data = noise(240 * 4, 9);
    for text in [
        "KMeans(k: [6, 3, 19], redos: 2)",
        "KMeans(k: [30], init: Random, iterations: 50)",
        "KMeans(k: [5], spherical: true, tolerance: 1e-3)",
        "KMeans(k: [4, 30], max_points_per_centroid: 10)",
        "KMeans(k: [6], warm_start: true)",
        "Agglomerative(k: [6], leaves: 20)",
        "GaussianMixture(k: [6])",
        "MiniBatchKMeans(k: [6], batch: 50)",
        "HierarchicalKMeans(k: [3, 6])",
        "KMeans(k: [240])",
        "Dbscan(radius: 1.5, min_points: 3)",
    ] {
        assert_ranks_agree(text, &data, 4, &[1, 2, 3, 4]);
    }
    // More ranks than rows.
    assert_ranks_agree("KMeans(k: [2])", &data[..12], 4, &[5]);
    // Rows for all ranks, also where they are divided in large blocks.
    let data = noise(40_000 * 2, 10);
    for text in ["HierarchicalKMeans(k: [5, 40, 300])", "HierarchicalKMeans(k: [600])", "KMeans(k: [20])"] {
        assert_ranks_agree(text, &data, 2, &[2, 3]);
    }
}
