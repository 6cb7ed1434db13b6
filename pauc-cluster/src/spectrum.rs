//! Effective ranks: exp of the entropy of normalised singular values.

use faer::{Mat, MatRef, Side};
use pauc_traits::probe::Rows;
use pauc_traits::{Error, Result};

/// RankMe of features: exp(−Σ p ln p) with p = σ/Σσ + 1e-7, σ the singular values of the features, not centred.
///
/// Between 1 and min(N, D); near 1 when all features lie on one line through the origin; 0 when all are zero.
/// Takes O(N·D·min(N, D)) in `f64`.
///
/// # Errors
/// If there are no features, or they are not finite.
///
/// Source: Garrido et al. 2023.
pub fn rank_me(features: Rows<'_>) -> Result<f64> {
    rank_me_of(Mat::from_fn(features.rows, features.cols, |i, j| features.row(i)[j] as f64).as_ref())
}

fn rank_me_of(features: MatRef<'_, f64>) -> Result<f64> {
    if features.nrows() == 0 || features.ncols() == 0 {
        return Err(Error::config("RankMe of no features: give at least one sample"));
    }
    for j in 0..features.ncols() {
        if let Some(i) = (0..features.nrows()).find(|i| !features[(*i, j)].is_finite()) {
            return Err(Error::NonFinite {
                what: "a feature of RankMe".into(),
                place: Some(format!("row {i}, column {j}")),
            });
        }
    }
    let singular = features.singular_values().map_err(|e| Error::device(("singular values", e)))?;
    let total: f64 = singular.iter().sum();
    if total == 0.0 {
        return Ok(0.0);
    }
    let entropy: f64 = singular.iter().map(|s| s / total + 1e-7).map(|p| -p * p.ln()).sum();
    Ok(entropy.exp())
}

/// exp(H(σ/Σσ)) of the rows after their mean is taken off, σ their singular values: 1 when the rows are one point or
/// lie on a line. The singular values are roots of the smaller Gram matrix's eigenvalues; those below the rounding
/// of the largest are taken as zero.
///
/// # Errors
/// If the eigenvalues cannot be computed.
pub(crate) fn centred_rank(rows: &[&[f32]], dim: usize) -> Result<f64> {
    let n = rows.len();
    let mut mean = vec![0.0f64; dim];
    for row in rows {
        mean.iter_mut().zip(*row).for_each(|(m, v)| *m += *v as f64 / n as f64);
    }
    let centred = Mat::from_fn(dim, n, |l, i| rows[i][l] as f64 - mean[l]);
    let gram = if n <= dim { centred.transpose() * &centred } else { &centred * centred.transpose() };
    let squares =
        gram.self_adjoint_eigenvalues(Side::Lower).map_err(|e| Error::device(("eigenvalues", e)))?;
    let largest = squares.iter().cloned().fold(0.0, f64::max);
    // Features are f32: what is 1e-7 of the largest singular value is rounding.
    let singular: Vec<f64> = squares.into_iter().filter(|s| *s > 1e-14 * largest).map(f64::sqrt).collect();
    let total: f64 = singular.iter().sum();
    let entropy: f64 = singular.iter().map(|s| s / total).map(|p| -p * p.ln()).sum();
    Ok(entropy.exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn rank_me_agrees_with_the_reference() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/metrics.json")).unwrap();
        let rows: Vec<Vec<f64>> = serde_json::from_value(golden["rank_me"]["features"].clone()).unwrap();
        let want = golden["rank_me"]["value"].as_f64().unwrap();
        let features = Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j]);
        let got = rank_me_of(features.as_ref()).unwrap();
        assert!((got - want).abs() < 1e-9, "{got} for {want}");
        let single: Vec<f32> = rows.iter().flatten().map(|v| *v as f32).collect();
        assert!((rank_me(Rows::new(&single, rows[0].len())).unwrap() - want).abs() < 1e-4);
    }

    #[test]
    fn ranks_of_simple_shapes() {
        // Four orthogonal unit rows have four equal singular values.
        let eye: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
        assert!((rank_me(Rows::new(&eye, 4)).unwrap() - 4.0).abs() < 1e-4);
        assert_eq!(rank_me(Rows::new(&[0.0; 6], 3)).unwrap(), 0.0);
        assert!(rank_me(Rows { data: &[], rows: 0, cols: 3 }).is_err());
        assert!(rank_me(Rows::new(&[1.0, f32::NAN], 2)).unwrap_err().to_string().contains("row 0, column 1"));
        let rank = |rows: &[&[f32]]| centred_rank(rows, rows[0].len()).unwrap();
        assert_eq!(rank(&[&[1.0, 2.0], &[1.0, 2.0]]), 1.0, "one point");
        assert!((rank(&[&[0.0, 0.0, 1.0], &[1.0, 2.0, 1.0], &[3.0, 6.0, 1.0]]) - 1.0).abs() < 1e-6, "a line");
        let cross: [&[f32]; 4] = [&[1.0, 0.0], &[-1.0, 0.0], &[0.0, 1.0], &[0.0, -1.0]];
        assert!((rank(&cross) - 2.0).abs() < 1e-12, "two equal directions");
        // n ≤ D and n > D give the same: a zero column adds nothing.
        let wide: Vec<Vec<f32>> = cross.iter().map(|r| [r, &[0.0; 5][..]].concat()).collect();
        let wide: Vec<&[f32]> = wide.iter().map(Vec::as_slice).collect();
        assert!((rank(&wide) - 2.0).abs() < 1e-12);
    }
}
