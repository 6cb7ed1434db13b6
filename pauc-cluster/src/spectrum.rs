//! Effective rank: exp of the entropy of normalized singular values.

use faer::{Mat, Side};
use pauc_traits::{Error, Result};

/// Returns exp(H(σ/Σσ)) of the rows minus their mean, where σ are the singular values. It is 1 if the rows
/// are one point or lie on a line. The singular values are roots of the eigenvalues of the smaller Gram
/// matrix. Those below the rounding error of the largest count as zero.
///
/// # Errors
/// If the eigenvalues cannot be computed.
pub(crate) fn centered_rank(rows: &[&[f32]], dim: usize) -> Result<f64> {
    let n = rows.len();
    let mut mean = vec![0.0f64; dim];
    for row in rows {
        mean.iter_mut().zip(*row).for_each(|(m, v)| *m += *v as f64 / n as f64);
    }
    let centered = Mat::from_fn(dim, n, |l, i| rows[i][l] as f64 - mean[l]);
    let gram = if n <= dim { centered.transpose() * &centered } else { &centered * centered.transpose() };
    let squares =
        gram.self_adjoint_eigenvalues(Side::Lower).map_err(|e| Error::device(("eigenvalues", e)))?;
    let largest = squares.iter().cloned().fold(0.0, f64::max);
    // Features are f32, so anything below 1e-7 of the largest singular value is rounding.
    let singular: Vec<f64> = squares.into_iter().filter(|s| *s > 1e-14 * largest).map(f64::sqrt).collect();
    let total: f64 = singular.iter().sum();
    let entropy: f64 = singular.iter().map(|s| s / total).map(|p| -p * p.ln()).sum();
    Ok(entropy.exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn ranks_of_simple_shapes() {
        let rank = |rows: &[&[f32]]| centered_rank(rows, rows[0].len()).unwrap();
        assert_eq!(rank(&[&[1.0, 2.0], &[1.0, 2.0]]), 1.0, "one point");
        // Rounding in f64 is far below the limit under which squares count as zero.
        assert_eq!(rank(&[&[0.0, 0.0, 1.0], &[1.0, 2.0, 1.0], &[3.0, 6.0, 1.0]]), 1.0, "a line");
        // The entropy is largest if both are equal, so first-order errors of the singular values cancel. What
        // remains is the rounding of two terms p·ln p of size ln 2/2, of their sum, and of exp.
        let tolerance = tolerance::f64(8, 2.0);
        let cross: [&[f32]; 4] = [&[1.0, 0.0], &[-1.0, 0.0], &[0.0, 1.0], &[0.0, -1.0]];
        assert_within!(rank(&cross), 2.0, tolerance, "two equal directions");
        // n ≤ D and n > D give the same result: a zero column adds nothing.
        let wide: Vec<Vec<f32>> = cross.iter().map(|r| [r, &[0.0; 5][..]].concat()).collect();
        let wide: Vec<&[f32]> = wide.iter().map(Vec::as_slice).collect();
        assert_within!(rank(&wide), 2.0, tolerance, "wide");
    }
}
