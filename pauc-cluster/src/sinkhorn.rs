//! Prototypes of equal size by entropic optimal transport.

use crate::KMeans;
use crate::lloyd::clustering_of;
use pauc_kernels::gemm::{Strides, gemm};
use pauc_traits::clusterer::FitContext;
use pauc_traits::probe::RowsView;
use pauc_traits::{Clusterer, Clustering, Count, Positive, Result, TrainingSpan, component};
use rayon::prelude::*;

component! {
    /// k-means with balanced assignments, by entropic optimal transport.
    ///
    /// Samples are transported to prototypes of equal capacity, with the cost ½‖x − c‖².
    ///
    /// P = diag(u)·exp(−½‖x − c‖²/ε)·diag(v) with row sums 1/N and column sums 1/K, by Sinkhorn's alternating
    /// scaling of rows and columns. A sample goes to the prototype with the largest value in its row of P.
    /// Centroids are then the means of their samples. Sizes are nearly equal; more rounds and a larger ε make
    /// them more equal. For unit vectors, ε means the same as in SwAV (logits cos/ε).
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    ///
    /// Source: Cuturi 2013; Asano et al. 2020; Caron et al. 2020 (SwAV).
    pub struct Sinkhorn: Clusterer {
        /// The number of prototypes of each level. A recipe that leaves it out gets numbers that follow its
        /// images and its batch.
        pub k: Vec<Count> = Vec::new(),
        /// ε, the strength of the entropy, in units of a squared distance.
        pub epsilon: Positive = Positive::lit(0.05),
        /// The number of scaling rounds.
        pub rounds: Count = Count::lit(10),
        /// The maximum number of iterations of the k-means.
        pub iterations: Count = Count::lit(20),
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Clusterer for Sinkhorn {
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let k_means = KMeans { iterations: self.iterations, ..KMeans::with(self.k.clone()) };
        let fitted = k_means.fit_checked(rows, context)?;
        let balance = |level: Clustering| {
            let centroids = RowsView::new(&level.centroids, rows.cols);
            let labels = balanced(rows, centroids, self.epsilon.get(), self.rounds.get());
            clustering_of(rows, labels.into_iter().map(Some).collect(), level.k, level.report.objective)
        };
        Ok(fitted.into_iter().map(balance).collect())
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        self.k.iter().map(|k| Some(k.get())).collect()
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

/// Rows per task. Fixed, so that sums do not depend on the number of threads.
const TASK: usize = 256;

/// Returns the prototype of each row after the given number of rounds.
fn balanced(rows: RowsView<'_>, centroids: RowsView<'_>, epsilon: f64, rounds: usize) -> Vec<u32> {
    let (n, k) = (rows.rows, centroids.rows);
    // Only the scaling of columns is stored, as ln v. Each round recomputes the rest block by block.
    let mut ln_v = vec![0.0f64; k];
    for _ in 0..rounds {
        let parts: Vec<Vec<f64>> = rows
            .data
            .par_chunks(TASK * rows.cols)
            .map(|block| {
                let mut sums = vec![0.0f64; k];
                let mut logits = logits(block, centroids, epsilon, &ln_v);
                for row in logits.chunks_exact_mut(k) {
                    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    row.iter_mut().for_each(|l| *l = (*l - largest).exp());
                    let total: f64 = row.iter().map(|p| *p as f64).sum();
                    sums.iter_mut().zip(&*row).for_each(|(s, p)| *s += *p as f64 / total);
                }
                sums
            })
            .collect();
        for (j, ln_v) in ln_v.iter_mut().enumerate() {
            let column: f64 = parts.iter().map(|p| p[j]).sum();
            // The sum of a column far from all rows underflows. The clamp lets later rounds raise it.
            *ln_v -= (column * k as f64 / n as f64).max(1e-30).ln();
        }
    }
    let choose = |block: &[f32]| -> Vec<u32> {
        let logits = logits(block, centroids, epsilon, &ln_v);
        let largest = |row: &[f32]| {
            let better = |best: usize, j: usize| if row[j] > row[best] { j } else { best };
            (0..k).fold(0, better) as u32
        };
        logits.chunks_exact(k).map(largest).collect()
    };
    rows.data.par_chunks(TASK * rows.cols).flat_map_iter(choose).collect()
}

/// Returns (x·c − ½‖c‖²)/ε + ln v, which is −½‖x − c‖²/ε + ln v up to a constant of the row.
fn logits(block: &[f32], centroids: RowsView<'_>, epsilon: f64, ln_v: &[f64]) -> Vec<f32> {
    let (m, k, dim) = (block.len() / centroids.cols, centroids.rows, centroids.cols);
    let bias: Vec<f32> = centroids
        .iter()
        .zip(ln_v)
        .map(|(c, ln_v)| {
            let sq_norm: f64 = c.iter().map(|v| *v as f64 * *v as f64).sum();
            (ln_v - sq_norm / 2.0 / epsilon) as f32
        })
        .collect();
    let mut logits: Vec<f32> = bias.iter().copied().cycle().take(m * k).collect();
    gemm(
        (m, k, dim),
        (1.0 / epsilon) as f32,
        (block, Strides::row_major(dim)),
        (centroids.data, Strides::transposed(dim)),
        1.0,
        (&mut logits, Strides::row_major(k)),
    );
    logits
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    fn lopsided(n: usize) -> Vec<f32> {
        (0..n * 2).map(|i| (i as f32 * 0.7).sin() + if i / 2 % 4 == 0 { 1.0 } else { 0.0 }).collect()
    }

    /// The logarithm of the relative error of a sum of positive terms, given the error of each term's
    /// logarithm.
    fn off(terms: impl Iterator<Item = (f64, f64)>) -> f64 {
        let (exact, most) =
            terms.fold((0.0, 0.0), |(a, b), (term, error)| (a + term, b + term * error.exp()));
        (most / exact).ln()
    }

    /// Sinkhorn with plain loops on the whole matrix, in f64. Returns the matrix, and the error bound of the
    /// logarithm of each element of the code's matrix.
    ///
    /// A round of the code starts from its ln v, which has the errors of the rounds before. If these are at
    /// most e, they remain at most e after the round, since it changes sums of positive terms by factors of
    /// at most exp(e). The round adds its own errors.
    fn naive(x: &[f32], c: &[f32], dim: usize, epsilon: f64, rounds: usize) -> [Vec<Vec<f64>>; 2] {
        let (n, k) = (x.len() / dim, c.len() / dim);
        let sum = |a: &[f32], b: &[f32], f: &dyn Fn(f64, f64) -> f64| -> f64 {
            a.iter().zip(b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).sum()
        };
        let mut p: Vec<Vec<f64>> = x
            .chunks(dim)
            .map(|x| {
                let square = |c: &[f32]| sum(x, c, &|x, c| (x - c).powi(2));
                c.chunks(dim).map(|c| (-square(c) / 2.0 / epsilon).exp()).collect()
            })
            .collect();
        let mut ln_v = vec![0.0; k];
        // A logit is a sum of dim products, times 1/ε, plus a rounded part.
        let logits = |ln_v: &[f64]| -> Vec<Vec<f64>> {
            let logit = |x: &[f32], c: &[f32], ln_v: f64| {
                let bias = ln_v - sum(c, c, &|a, b| a * b) / 2.0 / epsilon;
                tolerance::f32(dim + 4, sum(x, c, &|x, c| (x * c).abs()) / epsilon + bias.abs())
            };
            let of_row = |x| c.chunks(dim).zip(ln_v).map(|(c, ln_v)| logit(x, c, *ln_v)).collect();
            x.chunks(dim).map(of_row).collect()
        };
        let mut error = 0.0;
        for _ in 0..rounds {
            let mut errors = logits(&ln_v);
            for (row, errors) in p.iter_mut().zip(&mut errors) {
                let (total, largest) = (row.iter().sum::<f64>(), row.iter().cloned().fold(0.0, f64::max));
                row.iter_mut().for_each(|v| *v /= total * n as f64);
                // The largest logit is subtracted, and exp is accurate to one unit in the last place.
                for (v, error) in row.iter().zip(errors.iter_mut()) {
                    let difference = (largest / (total * n as f64) / v).ln();
                    *error += tolerance::f32(1, difference) + tolerance::f32(2, 1.0);
                }
                let of_total = off(row.iter().copied().zip(errors.iter().copied()));
                errors.iter_mut().for_each(|e| *e += of_total);
            }
            let mut added = 0.0f64;
            for j in 0..k {
                let total: f64 = p.iter().map(|r| r[j]).sum();
                added = added.max(off(p.iter().zip(&errors).map(|(p, e)| (p[j], e[j]))));
                p.iter_mut().for_each(|r| r[j] /= total * k as f64);
                ln_v[j] -= (total * k as f64).ln();
            }
            error += added;
        }
        let mut errors = logits(&ln_v);
        errors.iter_mut().flatten().for_each(|e| *e += error);
        [p, errors]
    }

    #[test]
    fn equals_the_plain_loops() {
        let (x, c) = (lopsided(300), vec![0.0, 0.5, 1.2, 1.0, -0.6, -0.2]);
        for rounds in [1, 3, 10] {
            let got = balanced(RowsView::new(&x, 2), RowsView::new(&c, 2), 0.1, rounds);
            let [p, errors] = naive(&x, &c, 2, 0.1, rounds);
            for (i, (row, errors)) in p.iter().zip(&errors).enumerate() {
                let best = (0..row.len()).fold(0, |best, j| if row[j] > row[best] { j } else { best });
                let own = got[i] as usize;
                let below = (row[best] / row[own]).ln();
                assert_within!(below, 0.0, errors[best] + errors[own], "row {i}: {row:?}, got {own}");
            }
        }
    }

    #[test]
    fn sizes_are_more_equal_than_those_of_k_means() {
        let x = lopsided(1000);
        let context = FitContext::new(0);
        let k = vec![Count::lit(5)];
        let plain = KMeans::with(k.clone()).fit(RowsView::new(&x, 2), context).unwrap();
        let sinkhorn = Sinkhorn {
            k,
            epsilon: Positive::lit(0.05),
            rounds: Count::lit(50),
            iterations: Count::lit(20),
            start: TrainingSpan::epochs(0),
            every: TrainingSpan::epochs(1),
        };
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sinkhorn.fit(RowsView::new(&x, 2), FitContext::new(0))).unwrap()
        };
        let fit = with(1);
        assert_eq!(fit, with(3));
        // Measured: 1.002, and 1.14 for k-means. The bound allows for single rows that change prototypes.
        assert!(fit[0].report.imbalance < plain[0].report.imbalance && fit[0].report.imbalance < 1.02);
        let same = sinkhorn.fit(RowsView::new(&[1.0; 40], 2), context).unwrap();
        assert_eq!(same[0].assignments.len(), 20, "identical samples");
    }
}
