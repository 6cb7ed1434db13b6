//! Nearest centroids in `f64` for tests: exact if rounding in `f32` cannot decide, and a panic if it can.

use pauc_testing::{Rounded, tolerance};

/// Returns ‖x − c‖².
pub fn sq_dist(x: &[f32], c: &[f64]) -> f64 {
    x.iter().zip(c).map(|(x, c)| (f64::from(*x) - c).powi(2)).sum()
}

/// Converts numbers to `f64`.
pub fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Returns the largest absolute value.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, v| most.max(v.abs()))
}

/// Returns the mean of rows of length `dim`.
pub fn mean_of_rows(rows: &[f64], dim: usize) -> Vec<f64> {
    let n = (rows.len() / dim) as f64;
    (0..dim).map(|l| rows.iter().skip(l).step_by(dim).sum::<f64>() / n).collect()
}

/// Centroids, and the error bound of the tested code's centroids.
pub struct Centroids {
    /// K·D coordinates.
    pub values: Vec<f64>,
    /// The origin that the code subtracts before it multiplies.
    pub origin: Vec<f64>,
    /// The error bound of each coordinate in the code.
    pub off: f64,
}

impl Centroids {
    /// Creates centroids that are exact in `f32`, with their mean as origin.
    pub fn exact(values: &[f32], dim: usize) -> Self {
        let values = widened(values);
        Centroids { origin: mean_of_rows(&values, dim), values, off: 0.0 }
    }

    /// Returns centroid `c`.
    pub fn row(&self, c: usize) -> &[f64] {
        let dim = self.origin.len();
        &self.values[c * dim..][..dim]
    }

    fn count(&self) -> usize {
        self.values.len() / self.origin.len()
    }

    /// Returns ‖x − c‖² as the code sums it from differences. Each square has three roundings, followed by a
    /// sum of `dim` terms. A coordinate that is off by e changes (x − c)² by at most 2·|x − c|·e + e².
    pub fn sq_dist(&self, x: &[f32], c: usize) -> Rounded {
        let exact = sq_dist(x, self.row(c));
        let moved = 2.0 * self.shift(x, c);
        Rounded::within(exact, moved + tolerance::f32(x.len() + 3, exact + moved))
    }

    /// The change of ‖x − c‖²/2 due to the error of the code's centroid.
    fn shift(&self, x: &[f32], c: usize) -> f64 {
        let apart: f64 = x.iter().zip(self.row(c)).map(|(x, c)| (f64::from(*x) - c).abs()).sum();
        (apart + x.len() as f64 * self.off) * self.off
    }

    /// The error bound of the score (‖c‖² − ‖m‖²)/2 − x·(c − m), where m is the origin: a difference and a
    /// product per coordinate, their sum, the rounding of the first part, and the last subtraction.
    pub fn error_of_score(&self, x: &[f32], c: usize) -> f64 {
        let (mut products, mut first) = (0.0, 0.0);
        for ((x, c), m) in x.iter().zip(self.row(c)).zip(&self.origin) {
            products += f64::from(x.abs()) * ((c - m).abs() + 2.0 * self.off);
            first += (c * c - m * m) / 2.0;
        }
        self.shift(x, c) + tolerance::f32(x.len() + 4, products + first.abs())
    }

    /// Returns the nearest of all centroids, and the squared distance to it.
    ///
    /// # Panics
    /// If another centroid is so near that rounding may prefer it.
    pub fn nearest(&self, x: &[f32]) -> (usize, Rounded) {
        self.nearest_among(x, 0..self.count())
    }

    /// Returns the nearest of some centroids.
    ///
    /// # Panics
    /// As [`Centroids::nearest`].
    pub fn nearest_among(&self, x: &[f32], among: impl IntoIterator<Item = usize>) -> (usize, Rounded) {
        let half = |c: usize| sq_dist(x, self.row(c)) / 2.0;
        // The code compares either scores or sums of differences.
        let error = |c: usize| self.error_of_score(x, c).max(self.sq_dist(x, c).error / 2.0);
        let some: Vec<usize> = among.into_iter().collect();
        let best = some.iter().copied().min_by(|a, b| half(*a).total_cmp(&half(*b)));
        let best = best.unwrap_or_else(|| panic!("there are no centroids"));
        let least = half(best) + error(best);
        for other in some.into_iter().filter(|c| *c != best) {
            assert!(
                least < half(other) - error(other),
                "the data leave it to rounding whether {best} or {other} is nearest to {x:?}: {} and {}",
                half(best),
                half(other)
            );
        }
        (best, self.sq_dist(x, best))
    }
}
