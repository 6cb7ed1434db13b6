//! Principal components in two dimensions, for pictures.

use crate::finite;
use crate::spectrum::{failed, mean, scatter};
use faer::Side;
use pauc_traits::probe::RowsView;
use pauc_traits::{Error, Result, stop};

/// Rows projected on their two directions of largest variance.
#[derive(Clone, Debug, PartialEq)]
pub struct Pca2 {
    /// The coordinates of each row along the first and the second direction, centered.
    pub points: Vec<[f32; 2]>,
    /// The fraction of the total variance along each direction; zero without variance.
    pub explained: [f64; 2],
}

/// Projects the rows on the first two principal components of their covariance.
///
/// The sign of a direction is chosen such that its entry of largest magnitude is positive. Ties go to the
/// first entry.
///
/// # Shapes
/// (N, D) → N points; with D = 1 the second coordinate is 0
///
/// # Errors
/// If there are no rows, or a value is NaN or infinite.
pub fn pca2(rows: RowsView<'_>) -> Result<Pca2> {
    if rows.rows == 0 {
        return Err(Error::config("principal components: there are no rows"));
    }
    finite("principal components", rows)?;
    let center = mean(rows);
    let scatter = scatter(rows, &center);
    stop::check()?;
    let eigen = stop::detached(move || scatter.self_adjoint_eigen(Side::Lower))?.map_err(|e| failed(&e))?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    let total: f64 = (0..rows.cols).map(|d| values[d].max(0.0)).sum();
    let mut directions = [vec![0.0; rows.cols], vec![0.0; rows.cols]];
    let mut explained = [0.0; 2];
    for (rank, direction) in directions.iter_mut().enumerate().take(rows.cols) {
        let column = rows.cols - 1 - rank;
        explained[rank] = if total > 0.0 { values[column].max(0.0) / total } else { 0.0 };
        let largest = (0..rows.cols).fold(0, |best, d| {
            // A small margin, so that rounding does not decide between equal entries.
            if vectors[(d, column)].abs() > vectors[(best, column)].abs() + 1e-9 { d } else { best }
        });
        let sign = vectors[(largest, column)].signum();
        direction.iter_mut().enumerate().for_each(|(d, v)| *v = sign * vectors[(d, column)]);
    }
    let coordinate = |row: &[f32], direction: &[f64]| {
        row.iter().zip(&center).zip(direction).map(|((x, c), v)| (*x as f64 - c) * v).sum::<f64>() as f32
    };
    let points =
        rows.iter().map(|row| [coordinate(row, &directions[0]), coordinate(row, &directions[1])]).collect();
    Ok(Pca2 { points, explained })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn a_flat_cloud_is_found_with_its_variances_and_signs() {
        // x = m + a·u + b·v with orthonormal u, v; a has variance 4·½, b has variance 1·½, uncorrelated over a circle.
        let (u, v) = ([0.6, 0.8, 0.0], [0.0, 0.0, -1.0]);
        let angle = |i: usize| i as f64 / 100.0 * std::f64::consts::TAU;
        let data: Vec<f32> = (0..100)
            .flat_map(|i| {
                let (a, b) = (2.0 * angle(i).cos(), angle(i).sin());
                (0..3).map(move |d| (5.0 + a * u[d] + b * v[d]) as f32)
            })
            .collect();
        let got = pca2(RowsView::new(&data, 3)).unwrap();
        // Values of at most 6.6 are rounded, which moves a row by at most ε. Deviations along the axes, √2
        // and √½, move by as much, their squares by 2ε times the deviation, and the total square, 5/2, by
        // 2ε·√(5/2).
        let epsilon = 3f64.sqrt() * tolerance::f32(1, 6.6);
        let share = 2.0 * epsilon * (2f64.sqrt() + 0.8 * 2.5f64.sqrt()) / 2.5;
        assert_within!(got.explained[0], 0.8, share);
        assert_within!(got.explained[1], 0.2, share);
        // A point moves with its row and with the mean. An axis turns by 2ε√2 over the gap of the variances,
        // 3/2, and coordinates along the other axis reach 2.
        let place = epsilon * (2.0 + 2.0 * 2f64.sqrt() / 1.5 * 2.0) + tolerance::f32(1, 2.0);
        for (i, p) in got.points.iter().enumerate() {
            // The largest entry of u is positive. The only entry of v is negative, so the second axis is
            // flipped.
            assert_within!(p[0], 2.0 * angle(i).cos(), place, "{i}");
            assert_within!(p[1], -angle(i).sin(), place, "{i}");
        }
    }

    #[test]
    fn rows_without_variance_and_single_columns_are_points() {
        let same = pca2(RowsView::new(&[1.0, 2.0, 1.0, 2.0], 2)).unwrap();
        assert_eq!((same.points, same.explained), (vec![[0.0, 0.0]; 2], [0.0, 0.0]));
        let line = pca2(RowsView::new(&[1.0, 3.0], 1)).unwrap();
        assert_eq!((line.points, line.explained), (vec![[-1.0, 0.0], [1.0, 0.0]], [1.0, 0.0]));
        assert!(pca2(RowsView::new(&[], 4)).is_err());
    }
}
