//! t-SNE: pictures in two dimensions that preserve neighborhoods. [`tsne()`] is exact, for a few thousand rows;
//! [`sparse`] approximates it for up to some hundred thousand.

mod descent;
mod quadtree;
pub mod sparse;

pub use quadtree::along_curve;

use crate::finite;
use crate::pca::pca2;
use descent::{Descent, EARLY, LATE, Phase};
use pauc_kernels::distance::dot;
use pauc_kernels::neighbor_forces::{Forces, forces};
use pauc_traits::probe::RowsView;
use pauc_traits::{Error, Result, progress, stop};
use rayon::prelude::*;

/// The options of t-SNE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TsneOptions {
    /// The approximate number of neighbors of each point; limited to a third of the other points.
    pub perplexity: f64,
    /// The number of steps with affinities twelve times as large (early exaggeration), and the number of
    /// steps after those.
    pub iterations: [usize; 2],
}

impl Default for TsneOptions {
    fn default() -> Self {
        TsneOptions { perplexity: 30.0, iterations: [250, 500] }
    }
}

/// The two-dimensional picture of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Tsne {
    /// The position of each row, centered. The unit has no meaning.
    pub points: Vec<[f32; 2]>,
    /// The perplexity that was used.
    pub perplexity: f64,
    /// The Kullback–Leibler divergence between the affinities of the rows and those of the picture, in nats.
    pub divergence: f64,
}

/// Places rows in two dimensions such that KL(P‖Q) is small. p_ij are the symmetrized Gaussian affinities of
/// the rows, each with the width that gives the perplexity, and q_ij ∝ 1/(1 + ‖y_i − y_j‖²).
///
/// Exact, over all pairs, so it is meant for a few thousand rows. It starts from the first two principal
/// components. Nothing in it is random or depends on the number of threads. Neighborhoods in the picture are
/// meaningful; distances between groups, and their sizes and densities, are not.
/// # Shapes
/// (N, D) → N points
///
/// # Errors
/// If there are no rows, a value is NaN or infinite, there is too little memory for N² values, or the run was asked
/// to stop.
///
/// Source: van der Maaten & Hinton 2008. Initialization, the learning rate max(N/48, 50) and gains are
/// scikit-learn's.
pub fn tsne(rows: RowsView<'_>, options: TsneOptions) -> Result<Tsne> {
    if rows.rows == 0 {
        return Err(Error::config("t-SNE: there are no rows"));
    }
    finite("t-SNE", rows)?;
    let n = rows.rows;
    let perplexity = limited(options.perplexity, n);
    let affinities = affinities(rows, perplexity)?;
    let start = pca2(rows)?.points;
    let mut descent = Descent::from(&start);
    let [early, late] = options.iterations;
    let task = progress::task("t-SNE", (early + late) as u64);
    for step in 0..early + late {
        stop::check()?;
        let phase: Phase = if step < early { EARLY } else { LATE };
        let gradient = gradient(&affinities, &descent.points, phase.exaggeration);
        descent.step(&gradient, phase.momentum);
        task.advance(1);
    }
    let divergence = divergence(&affinities, &descent.points);
    Ok(Tsne { divergence, points: descent.centered(), perplexity })
}

/// Returns the perplexity for `n` rows: at most a third of the other rows, and at least 1.
fn limited(perplexity: f64, n: usize) -> f64 {
    perplexity.min((n.max(2) - 1) as f64 / 3.0).max(1.0)
}

/// Computes p_ij, row by row. Their sum is 1, and p_ii = 0.
fn affinities(rows: RowsView<'_>, perplexity: f64) -> Result<Vec<f32>> {
    let n = rows.rows;
    let squares: Vec<f32> = rows.iter().map(|r| dot(r, r)).collect();
    let mut conditional = square(n)?;
    conditional.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        let distance = |j: usize| (squares[i] + squares[j] - 2.0 * dot(rows.row(i), rows.row(j))).max(0.0);
        row.iter_mut().enumerate().for_each(|(j, d)| *d = if j == i { f32::INFINITY } else { distance(j) });
        gaussian(row, perplexity);
    });
    let mut joint = square(n)?;
    let share = 0.5 / n as f32;
    joint.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        row.iter_mut().enumerate().for_each(|(j, p)| {
            *p = share * (conditional[i * n + j] + conditional[j * n + i]);
        });
    });
    Ok(joint)
}

/// Returns n² zeros, or an error if there is too little memory, which would end the process otherwise.
fn square(n: usize) -> Result<Vec<f32>> {
    let mut zeros = Vec::new();
    let reserved = n.checked_mul(n).is_some_and(|values| zeros.try_reserve_exact(values).is_ok());
    if !reserved {
        return Err(Error::config(format!("t-SNE: too little memory for the affinities of {n} rows")));
    }
    zeros.resize(n * n, 0.0);
    Ok(zeros)
}

/// Turns squared distances into shares exp(−β·d²)/Σ, with β such that the entropy of the shares is
/// ln(perplexity).
fn gaussian(row: &mut [f32], perplexity: f64) {
    let nearest = row.iter().copied().fold(f32::INFINITY, f32::min);
    if !nearest.is_finite() {
        row.fill(0.0);
        return;
    }
    let shares = |row: &[f32], beta: f64| -> (f64, f64) {
        // Σ and Σ·(mean of β·d²), with distances relative to the nearest.
        row.iter().filter(|d| d.is_finite()).fold((0.0, 0.0), |(total, mean), d| {
            let e = beta * (*d as f64 - nearest as f64);
            let w = (-e).exp();
            (total + w, mean + w * e)
        })
    };
    let spread = row.iter().filter(|d| d.is_finite()).fold(0.0f64, |m, d| m.max(*d as f64 - nearest as f64));
    let (mut low, mut high, mut beta) = (0.0, f64::INFINITY, if spread > 0.0 { 1.0 / spread } else { 1.0 });
    // If all distances are equal, the shares are equal for any width.
    for _ in 0..if spread > 0.0 { 100 } else { 0 } {
        let (total, mean) = shares(row, beta);
        let entropy = total.ln() + mean / total;
        let off = entropy - perplexity.ln();
        if off.abs() < 1e-6 {
            break;
        }
        if off > 0.0 {
            low = beta;
            beta = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * beta };
        } else {
            high = beta;
            beta = 0.5 * (low + high);
        }
    }
    let (total, _) = shares(row, beta);
    for d in row {
        *d = if d.is_finite() { ((-beta * (*d as f64 - nearest as f64)).exp() / total) as f32 } else { 0.0 };
    }
}

/// Computes ∂KL/∂y_i = 4·Σ_j (c·p_ij − q_ij)·(y_i − y_j)/(1 + ‖y_i − y_j‖²), where c is the exaggeration.
fn gradient(affinities: &[f32], points: &[Vec<f32>; 2], exaggeration: f32) -> Vec<[f32; 2]> {
    let forces = all_forces(affinities, points);
    let total: f64 = forces.iter().map(|f| f.total as f64 - 1.0).sum();
    // A single point has no repulsion.
    let push = if total > 0.0 { (1.0 / total) as f32 } else { 0.0 };
    let slope = |f: &Forces, d: usize| 4.0 * (exaggeration * f.pull[d] - push * f.push[d]);
    forces.iter().map(|f| [slope(f, 0), slope(f, 1)]).collect()
}

fn all_forces(affinities: &[f32], [xs, ys]: &[Vec<f32>; 2]) -> Vec<Forces> {
    let on_point = |(i, row): (usize, &[f32])| forces([xs[i], ys[i]], row, xs, ys);
    affinities.par_chunks(xs.len()).enumerate().map(on_point).collect()
}

/// Computes Σ p·ln(p/q).
fn divergence(affinities: &[f32], points: &[Vec<f32>; 2]) -> f64 {
    let [xs, ys] = points;
    let total: f64 = all_forces(affinities, points).iter().map(|f| f.total as f64 - 1.0).sum();
    let row = |(i, row): (usize, &[f32])| -> f64 {
        let term = |(j, p): (usize, &f32)| {
            let (dx, dy) = ((xs[i] - xs[j]) as f64, (ys[i] - ys[j]) as f64);
            let q = 1.0 / (1.0 + dx * dx + dy * dy) / total;
            if *p > 0.0 { *p as f64 * (*p as f64 / q).ln() } else { 0.0 }
        };
        row.iter().enumerate().map(term).sum()
    };
    let rows: Vec<f64> = affinities.par_chunks(xs.len()).enumerate().map(row).collect();
    rows.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::wave;
    use pauc_testing::{assert_within, tolerance};

    /// Returns four groups of points in eight dimensions.
    fn groups(n: usize) -> (Vec<f32>, Vec<usize>) {
        let value = |i: usize, d: usize| {
            let noise = (1.7 * (8 * i + d) as f64 + (0.3 * (i * d) as f64).cos()).sin();
            (if d == i % 4 { 3.0 } else { 0.0 }) + noise
        };
        ((0..8 * n).map(|j| value(j / 8, j % 8) as f32).collect(), (0..n).map(|i| i % 4).collect())
    }

    #[test]
    fn each_point_has_as_many_neighbors_as_it_should() {
        let (data, _) = groups(60);
        let rows = RowsView::new(&data, 8);
        for i in [0, 17, 59] {
            let d2 =
                |j: usize| rows.row(i).iter().zip(rows.row(j)).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            let mut row: Vec<f32> = (0..60).map(|j| if j == i { f32::INFINITY } else { d2(j) }).collect();
            gaussian(&mut row, 12.0);
            let entropy: f64 =
                row.iter().filter(|p| **p > 0.0).map(|p| -(*p as f64) * (*p as f64).ln()).sum();
            // The search ends within 1e-6 of the entropy. Rounding of a share p moves its −p·ln p by u·p·(1 +
            // |ln p|).
            let off = 1e-6 + tolerance::f32(1, 1.0 + 12f64.ln());
            assert_within!(entropy.exp(), 12.0, 12.0 * off.exp_m1());
            // Each share is rounded, and 60 of them are summed.
            assert_within!(row.iter().sum::<f32>(), 1.0, tolerance::f32(1 + 60, 1.0));
            assert_eq!(row[i], 0.0);
        }
        let p = affinities(rows, 12.0).unwrap();
        // Two shares are rounded, added, and multiplied by 1/2n, which is also rounded.
        assert_within!(p.iter().map(|p| *p as f64).sum::<f64>(), 1.0, tolerance::f32(4, 1.0));
        assert!((0..60).all(|i| (0..60).all(|j| p[i * 60 + j] == p[j * 60 + i])));
    }

    #[test]
    fn the_gradient_is_that_of_differences_of_the_divergence() {
        let n = 30;
        let (data, _) = groups(n);
        let p = affinities(RowsView::new(&data, 8), 5.0).unwrap();
        let points = [0.1, 2.0].map(|phase| wave(n, phase, 1.3));
        let wide = points.each_ref().map(|v| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        // In double precision: the unnormalized q, their sum, and Σ p·ln(p/q).
        let q = |[xs, ys]: &[Vec<f64>; 2], i: usize, j: usize| {
            1.0 / (1.0 + (xs[i] - xs[j]).powi(2) + (ys[i] - ys[j]).powi(2))
        };
        let total = |points: &[Vec<f64>; 2]| -> f64 {
            (0..n * n).filter(|k| k / n != k % n).map(|k| q(points, k / n, k % n)).sum()
        };
        let exact = |points: &[Vec<f64>; 2]| -> f64 {
            let total = total(points);
            let term = |(k, p): (usize, &f32)| match f64::from(*p) {
                0.0 => 0.0,
                p => p * (p * total / q(points, k / n, k % n)).ln(),
            };
            p.iter().enumerate().map(term).sum()
        };
        // A q takes six operations in f32. The sum over n of them, including a point's own 1, is in f32, and
        // the sum over all points in f64. Its relative error is the absolute error of its logarithm.
        let sum = total(&wide);
        let of_sum = |operations| tolerance::f32(operations, (sum + n as f64) / sum);
        assert_within!(divergence(&p, &points), exact(&wide), of_sum(n + 6));
        let (step, got) = (1e-4, gradient(&p, &points, 1.0));
        for i in [0, 7, 29] {
            for d in [0, 1] {
                let shifted = |h: f64| {
                    let mut points = wide.clone();
                    points[d][i] += h;
                    exact(&points)
                };
                let want = (shifted(step) - shifted(-step)) / (2.0 * step);
                // With points in a square of side 2, the third derivatives of Σ p·ln(1 + d²) and of the
                // logarithm of the sum are below 3 and 5. The terms p·|ln p|, p·ln(1 + d²) and the logarithm
                // sum to less than 20.
                let differences = tolerance::central_difference(step, 8.0, n * n + 10, 20.0);
                // 4·Σ p·q·(y_i − y_j) and 4·Σ q²·(y_i − y_j)/sum: nine and fifteen operations per term, and
                // the sums.
                let (mut pull, mut push) = (0.0, 0.0);
                for j in 0..n {
                    let (q, by) = (q(&wide, i, j), (wide[d][i] - wide[d][j]).abs());
                    pull += 4.0 * f64::from(p[i * n + j]) * q * by;
                    push += 4.0 * q * q * by / sum;
                }
                let rounding = tolerance::f32(n + 9 + 3, pull) + push * of_sum(n + 15 + n + 6 + 4);
                assert_within!(got[i][d], want, differences + rounding, "{i} {d}");
            }
        }
    }

    // scikit-learn 1.9.1 on the same data:
    //   value = lambda i, d: (3 if d == i % 4 else 0) + math.sin(1.7*(8*i + d) + math.cos(.3*i*d))
    //   x = np.float32([[value(i, d) for d in range(8)] for i in range(200)])
    //   TSNE(perplexity=30, init='pca', method='exact', max_iter=750).fit(x).kl_divergence_
    #[test]
    fn groups_stay_together_and_the_divergence_is_as_small_as_that_of_scikit_learn() {
        let (data, group) = groups(200);
        let got = tsne(RowsView::new(&data, 8), TsneOptions::default()).unwrap();
        // Rounding leads to a different picture after 750 steps, but its divergence differs by much less than
        // 2 %.
        assert!(got.divergence < 1.02 * SKLEARN, "{} for {SKLEARN}", got.divergence);
        let nearest = |i: usize| {
            let d = |j: usize| (0..2).map(|d| (got.points[i][d] - got.points[j][d]).powi(2)).sum::<f32>();
            (0..200).filter(|j| *j != i).min_by(|a, b| d(*a).total_cmp(&d(*b))).unwrap()
        };
        let together = (0..200).filter(|i| group[nearest(*i)] == group[*i]).count();
        assert!(together > 190, "{together} of 200 points are next to a point of their group");
    }
    const SKLEARN: f64 = 0.150_384;

    #[test]
    fn degenerate_rows_are_pictures_too_and_threads_change_nothing() {
        let quick = TsneOptions { perplexity: 30.0, iterations: [20, 20] };
        for (data, dim) in [(vec![1.0], 1), (vec![1.0, 2.0], 1), (vec![0.5; 40], 4), (vec![1.0, 1.0, 5.0], 1)]
        {
            let got = tsne(RowsView::new(&data, dim), quick).unwrap();
            assert_eq!(got.points.len(), data.len() / dim);
            assert!(got.points.iter().flatten().all(|v| v.is_finite()), "{:?}", got.points);
        }
        assert!(tsne(RowsView::new(&[], 2), quick).is_err());
        let (data, _) = groups(70);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| tsne(RowsView::new(&data, 8), quick).unwrap())
        };
        assert_eq!(run(1), run(3));
    }
}
