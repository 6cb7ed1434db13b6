//! Second moments of row vectors and their spectra, in double precision.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Side};
use pauc_traits::probe::RowsView;
use pauc_traits::{Error, Result, stop};
use rayon::prelude::*;

// The partition is fixed and parts are summed in order, so that results do not depend on the number of
// threads.
const PARTS: usize = 8;
const TILE: usize = 256;

/// Returns the mean of the rows.
///
/// # Shapes
/// rows (N, D) → D
pub fn mean(rows: RowsView<'_>) -> Vec<f64> {
    let mut mean = vec![0.0; rows.cols];
    for row in rows.iter() {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += *v as f64);
    }
    mean.iter_mut().for_each(|m| *m /= rows.rows.max(1) as f64);
    mean
}

/// Returns Σ (x − c)(x − c)ᵀ over the rows. Shape (D, D). If the run is asked to stop, the remaining rows are skipped:
/// callers have to call [`stop::check`].
pub fn scatter(rows: RowsView<'_>, center: &[f64]) -> Mat<f64> {
    let dim = rows.cols;
    let share = rows.rows.div_ceil(PARTS).max(1) * dim;
    let stop = stop::flag();
    let partial = |part: &[f32]| {
        let mut sum = Mat::<f64>::zeros(dim, dim);
        let mut tile = Vec::with_capacity(TILE * dim);
        for rows in part.chunks(TILE * dim) {
            if stop.is_set() {
                break;
            }
            tile.clear();
            tile.extend(
                rows.chunks_exact(dim).flat_map(|r| r.iter().zip(center).map(|(v, c)| *v as f64 - c)),
            );
            let x = MatRef::from_row_major_slice(&tile, rows.len() / dim, dim);
            matmul(&mut sum, Accum::Add, x.transpose(), x, 1.0, Par::Seq);
        }
        sum
    };
    let parts: Vec<Mat<f64>> = rows.data.par_chunks(share).map(partial).collect();
    parts.into_iter().fold(Mat::zeros(dim, dim), |sum, part| sum + part)
}

/// Returns the singular values of the matrix of rows, largest first. Shape min(N, D).
///
/// # Errors
/// If the decomposition does not converge, which does not happen with finite values.
pub fn singular_values(rows: RowsView<'_>) -> Result<Vec<f64>> {
    let gram = if rows.rows >= rows.cols {
        scatter(rows, &vec![0.0; rows.cols])
    } else {
        let x = Mat::from_fn(rows.rows, rows.cols, |i, j| rows.row(i)[j] as f64);
        &x * x.transpose()
    };
    stop::check()?;
    let values = stop::detached(move || gram.self_adjoint_eigenvalues(Side::Lower))?;
    let values = values.map_err(|e| failed(&e))?;
    Ok(values.iter().rev().map(|v| v.max(0.0).sqrt()).collect())
}

/// Converts the error of a decomposition.
pub(crate) fn failed(error: &impl std::fmt::Debug) -> Error {
    Error::NonFinite { what: "an eigenvalue decomposition".into(), place: Some(format!("{error:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::irregular;
    use pauc_testing::{assert_within, tolerance};

    fn wavy(rows: usize, dim: usize) -> Vec<f32> {
        irregular(rows * dim, 0.1).iter().map(|v| v + 0.3).collect()
    }

    #[test]
    fn scatter_equals_its_definition_across_tiles() {
        let (n, d) = (PARTS * TILE + 300, 5);
        let data = wavy(n, d);
        let rows = RowsView::new(&data, d);
        let center = mean(rows);
        let got = scatter(rows, &center);
        for a in 0..d {
            for b in 0..d {
                let term = |r: &[f32]| (r[a] as f64 - center[a]) * (r[b] as f64 - center[b]);
                let want: f64 = rows.iter().map(term).sum();
                let magnitude: f64 = rows.iter().map(|r| term(r).abs()).sum();
                assert_within!(got[(a, b)], want, tolerance::f64(n + 2, magnitude), "{a} {b}");
            }
        }
    }

    #[test]
    fn singular_values_of_wide_and_tall_matrices_agree_with_the_decomposition() {
        for (n, d) in [(40, 6), (6, 40)] {
            let data = wavy(n, d);
            let want = Mat::from_fn(n, d, |i, j| data[i * d + j] as f64).singular_values().unwrap();
            let largest = want[0];
            for (g, w) in singular_values(RowsView::new(&data, d)).unwrap().iter().zip(want) {
                // σ² is off by the rounding of the products and of the decomposition, relative to the
                // largest.
                assert_within!(*g, w, tolerance::f64(n * d, largest.powi(2)) / w);
            }
        }
    }
}
