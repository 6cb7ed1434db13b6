//! Clusters as dense regions, and noise.

use crate::lloyd::clustering_of;
use pauc_kernels::distance::{dot, squared_distance};
use pauc_kernels::gemm::{Strides, gemm};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::{
    Clusterer, Clustering, Count, Error, Positive, Result, TrainingSpan, component, progress, stop,
};
use rayon::prelude::*;

component! {
    /// DBSCAN: clusters are the connected regions of dense samples. Other samples are noise.
    ///
    /// A sample is dense if at least `min_points` samples (itself included) are within distance `radius`.
    /// Dense samples within `radius` of each other share a cluster. Any other sample within `radius` of a
    /// dense one goes to the nearest dense sample's cluster. Clusters are numbered by their first dense
    /// sample, and centroids are means. Noise has no prototype; it is an error if all samples are noise. The
    /// result is exact, in O(N²·D).
    ///
    /// # Shapes
    /// features (N, D) → centroids (K, D), N assignments; K follows from the data
    ///
    /// Source: Ester et al. 1996.
    pub struct Dbscan: Clusterer {
        /// The radius of a neighborhood, a Euclidean distance. Unit vectors are at most 2 apart.
        pub radius: Positive,
        /// The minimum number of samples in a dense neighborhood.
        pub min_points: Count = Count::lit(5),
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for Dbscan {
    fn fit_checked(&self, rows: RowsView<'_>, _: FitContext<'_>) -> Result<Vec<Clustering>> {
        let (assignments, k) = dense_regions(rows, self.radius.get(), self.min_points.get())?;
        if k == 0 {
            return Err(Error::config(format!(
                "all {} samples are noise: none has {} samples within {}; raise radius or lower min_points",
                rows.rows, self.min_points, self.radius
            )));
        }
        Ok(vec![clustering_of(rows, assignments, k, Vec::new())])
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        vec![None]
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

/// Rows per task, and the number of tasks whose neighbors are in memory at once.
const TASK: usize = 32;
const WAVE: usize = 16;

fn dense_regions(rows: RowsView<'_>, radius: f64, min_points: usize) -> Result<(Vec<Option<u32>>, usize)> {
    let n = rows.rows;
    let near = Neighbors::new(rows, radius);
    let mut dense = Vec::with_capacity(n);
    near.visit(|_, own| own.len() >= min_points, |_, is_dense| dense.push(is_dense))?;
    let mut parent: Vec<u32> = (0..n as u32).collect();
    let mut nearest_dense: Vec<Option<u32>> = vec![None; n];
    // Dense samples keep their earlier dense neighbors; other samples keep their nearest dense one.
    let look = |i: usize, own: &[u32]| -> Vec<u32> {
        let dense_near = own.iter().copied().filter(|j| dense[*j as usize]);
        if dense[i] {
            return dense_near.filter(|j| (*j as usize) < i).collect();
        }
        let distance = |j: u32| squared_distance(rows.row(i), rows.row(j as usize));
        let nearest =
            dense_near.map(|j| (distance(j), j)).min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        nearest.map(|(_, j)| j).into_iter().collect()
    };
    near.visit(look, |i, dense_near| {
        if !dense[i] {
            nearest_dense[i] = dense_near.first().copied();
            return;
        }
        for j in dense_near {
            let (a, b) = (root(&mut parent, i as u32), root(&mut parent, j));
            // The lower number is the root, so a cluster is named by its first dense sample.
            parent[a.max(b) as usize] = a.min(b);
        }
    })?;
    let (mut number, mut k) = (vec![0u32; n], 0u32);
    let mut assignments = vec![None; n];
    for i in 0..n {
        if dense[i] {
            let top = root(&mut parent, i as u32) as usize;
            if top == i {
                number[i] = k;
                k += 1;
            }
            assignments[i] = Some(number[top]);
        }
    }
    for i in 0..n {
        if let Some(dense) = nearest_dense[i] {
            assignments[i] = assignments[dense as usize];
        }
    }
    Ok((assignments, k as usize))
}

fn root(parent: &mut [u32], mut i: u32) -> u32 {
    while parent[i as usize] != i {
        parent[i as usize] = parent[parent[i as usize] as usize];
        i = parent[i as usize];
    }
    i
}

/// Finds the samples within a radius of each sample by matrix products, block by block.
struct Neighbors<'a> {
    rows: RowsView<'a>,
    /// ‖x‖² of each row.
    squares: Vec<f32>,
    /// radius², and the largest error of a squared distance computed by a matrix product.
    limit: f64,
    error: f64,
}

impl<'a> Neighbors<'a> {
    fn new(rows: RowsView<'a>, radius: f64) -> Self {
        let squares: Vec<f32> = rows.iter().map(|x| dot(x, x)).collect();
        let largest = squares.iter().copied().fold(0.0, f32::max) as f64;
        let error = 4.0 * (rows.cols + 8) as f64 * f32::EPSILON as f64 * largest;
        Neighbors { rows, squares, limit: radius * radius, error }
    }

    /// Calls `find` on any thread with every sample and its neighbors (itself included, ascending), and then
    /// `take` with the results, in the order of the samples.
    fn visit<T: Send>(
        &self,
        find: impl Fn(usize, &[u32]) -> T + Sync,
        mut take: impl FnMut(usize, T),
    ) -> Result<()> {
        let (n, dim) = (self.rows.rows, self.rows.cols);
        let task = |first: usize| -> Vec<T> {
            let m = TASK.min(n - first);
            let mut products = vec![0.0f32; m * n];
            gemm(
                (m, n, dim),
                -2.0,
                (self.rows.data, Strides::row_major(dim).from(first * dim)),
                (self.rows.data, Strides::transposed(dim)),
                0.0,
                (&mut products, Strides::row_major(n)),
            );
            let mut own = Vec::new();
            let neighbors_of_row = |(r, products): (usize, &[f32])| {
                let i = first + r;
                own.clear();
                for (j, product) in products.iter().enumerate() {
                    let sq_dist = self.squares[i] as f64 + self.squares[j] as f64 + *product as f64;
                    // Distances so near the radius that rounding could decide are computed from differences.
                    let inside = if (sq_dist - self.limit).abs() <= self.error {
                        squared_distance(self.rows.row(i), self.rows.row(j)) as f64 <= self.limit
                    } else {
                        sq_dist <= self.limit
                    };
                    if inside {
                        own.push(j as u32);
                    }
                }
                find(i, &own)
            };
            products.chunks_exact(n).enumerate().map(neighbors_of_row).collect()
        };
        let shown = progress::task("finding neighbors", n as u64);
        for wave in (0..n).step_by(WAVE * TASK) {
            stop::check()?;
            let last = (wave + WAVE * TASK).min(n);
            let starts: Vec<usize> = (wave..last).step_by(TASK).collect();
            let results: Vec<Vec<T>> = starts.into_par_iter().map(task).collect();
            for (i, result) in (wave..).zip(results.into_iter().flatten()) {
                take(i, result);
            }
            shown.advance((last - wave) as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition with plain loops: grow each cluster from its first dense sample.
    fn naive(x: &[f32], dim: usize, radius: f64, min_points: usize) -> Vec<Option<u32>> {
        let n = x.len() / dim;
        let sq_dist = |i: usize, j: usize| -> f64 {
            (0..dim).map(|l| (x[i * dim + l] as f64 - x[j * dim + l] as f64).powi(2)).sum()
        };
        let near = |i: usize| (0..n).filter(move |j| sq_dist(i, *j) <= radius * radius);
        let dense: Vec<bool> = (0..n).map(|i| near(i).count() >= min_points).collect();
        let (mut assigned, mut next) = (vec![None; n], 0);
        for seed in 0..n {
            if !dense[seed] || assigned[seed].is_some() {
                continue;
            }
            let mut queue = vec![seed];
            while let Some(i) = queue.pop() {
                assigned[i] = Some(next);
                queue.extend(near(i).filter(|j| dense[*j] && assigned[*j].is_none()));
            }
            next += 1;
        }
        for i in (0..n).filter(|i| !dense[*i]) {
            let hosts = near(i).filter(|j| dense[*j]);
            let nearest = hosts.min_by(|a, b| sq_dist(i, *a).total_cmp(&sq_dist(i, *b)));
            assigned[i] = nearest.and_then(|j| assigned[j]);
        }
        assigned
    }

    /// Samples on a grid, so that distances are exact in f32 and the code must agree with the plain loops,
    /// including ties and distances of exactly one radius. Away from the origin, products are not exact.
    fn on_a_grid() -> impl Strategy<Value = Vec<f32>> {
        // In units of 1/64, coordinates and squared distances are integers below 2²⁴.
        let origin = prop_oneof![Just(0i32), 0..500, 0..100_000];
        let steps = prop::sample::select(vec![1i32, 4, 16]);
        (origin, steps, prop::collection::vec(-192i32..192, 160)).prop_map(|(origin, step, places)| {
            places.into_iter().map(|p| (origin + p / step * step) as f32 / 64.0).collect()
        })
    }

    proptest! {
        #![proptest_config(pauc_testing::property::cases(40))]
        #[test]
        fn equals_the_definition(
            x in on_a_grid(),
            radius in prop_oneof![0.2f64..1.5, (12u32..96).prop_map(|r| f64::from(r) / 64.0)],
            min_points in 1usize..7,
        ) {
            let want = naive(&x, 2, radius, min_points);
            let (got, k) = dense_regions(RowsView::new(&x, 2), radius, min_points).unwrap();
            prop_assert_eq!(k, want.iter().flatten().max().map_or(0, |m| *m as usize + 1));
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn rounding_does_not_decide() {
        // On a grid far from the origin, neighbors are exactly one radius apart.
        let x: Vec<f32> = (0..25).flat_map(|i| [1000.0 + (i % 5) as f32, 2000.0 + (i / 5) as f32]).collect();
        let (got, k) = dense_regions(RowsView::new(&x, 2), 1.0, 5).unwrap();
        assert_eq!(k, 1);
        assert_eq!(got.iter().filter(|a| a.is_none()).count(), 4, "the corners touch no inner sample");
    }

    #[test]
    fn noise_has_no_prototype_and_only_noise_is_refused() {
        let dbscan = Dbscan {
            radius: Positive::lit(0.5),
            min_points: Count::lit(3),
            start: TrainingSpan::epochs(0),
            every: TrainingSpan::epochs(1),
        };
        let context = FitContext::new(0);
        let x: Vec<f32> =
            (0..41).map(|i| if i == 7 { 99.0 } else { 10.0 * (i % 2) as f32 + 0.01 * i as f32 }).collect();
        let c = &dbscan.fit(RowsView::new(&x, 1), context).unwrap()[0];
        assert_eq!((c.k, c.report.noise, c.report.empty, c.assignments[7]), (2, 1, 0, None));
        let apart: Vec<f32> = (0..10).map(|i| 5.0 * i as f32).collect();
        let text = dbscan.fit(RowsView::new(&apart, 1), context).unwrap_err().to_string();
        assert!(text.contains("all 10 samples are noise") && text.contains("raise radius"), "{text}");
    }
}
