//! Learned positions of a grid of patches, for grids of other sizes.

/// Rows and columns of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// The rows.
    pub rows: usize,
    /// The columns.
    pub columns: usize,
}

impl Grid {
    /// Returns the number of patches.
    pub fn patches(self) -> usize {
        self.rows * self.columns
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.rows, self.columns)
    }
}

/// Resizes a grid of vectors, row-major, as timm's `resample_abs_pos_embed`: bicubic with antialiasing, by which
/// PyTorch means Pillow's filters.
pub(crate) fn resize(values: &[f32], from: Grid, to: Grid, width: usize) -> Vec<f32> {
    let (rows, columns) = (cubic_weights(from.rows, to.rows), cubic_weights(from.columns, to.columns));
    let mut out = Vec::with_capacity(to.rows * to.columns * width);
    for (row, column) in rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c))) {
        let mut sums = vec![0.0; width];
        for (y, wy) in row {
            for (x, wx) in column {
                let vector = &values[(y * from.columns + x) * width..][..width];
                sums.iter_mut().zip(vector).for_each(|(sum, v)| *sum += wy * wx * f64::from(*v));
            }
        }
        out.extend(sums.into_iter().map(|v| v as f32));
    }
    out
}

/// Returns the matrix that computes what [`resize`] does, with `others` vectors before the grid that it keeps.
///
/// # Shapes
/// (others + patches of `to`, others + patches of `from`), row-major
pub(crate) fn matrix(others: usize, from: Grid, to: Grid) -> Vec<f32> {
    let (rows, columns) = (cubic_weights(from.rows, to.rows), cubic_weights(from.columns, to.columns));
    let width = others + from.patches();
    let mut matrix = vec![0.0; (others + to.patches()) * width];
    (0..others).for_each(|i| matrix[i * width + i] = 1.0);
    let outputs = rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c)));
    for ((row, column), out) in outputs.zip(matrix[others * width..].chunks_exact_mut(width)) {
        for (y, wy) in row {
            column.iter().for_each(|(x, wx)| out[others + y * from.columns + x] = (wy * wx) as f32);
        }
    }
    matrix
}

/// Returns the inputs and weights of each of `to` outputs along an axis of `from` inputs. The filter is the cubic
/// kernel of Keys (1981) with a = −1/2, stretched when the axis shrinks.
fn cubic_weights(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let weights = |output: usize| {
        let center = scale * (output as f64 + 0.5);
        let first = (center - 2.0 * stretch + 0.5).max(0.0) as usize;
        let end = ((center + 2.0 * stretch + 0.5) as usize).min(from);
        let weight = |input: usize| cubic((input as f64 - center + 0.5) / stretch);
        let sum: f64 = (first..end).map(weight).sum();
        (first..end).map(|input| (input, weight(input) / sum)).collect()
    };
    (0..to).map(weights).collect()
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    #[test]
    fn cubic_filters_keep_constants_and_lines() {
        for (from, to) in [(3, 7), (14, 7), (5, 5), (1, 4)] {
            let weights = cubic_weights(from, to);
            assert_eq!(weights.len(), to);
            for (output, all) in weights.iter().enumerate() {
                assert_within!(all.iter().map(|(_, w)| w).sum::<f64>(), 1.0, 1e-12);
                // Away from the border, a line is interpolated exactly.
                let center = (output as f64 + 0.5) * from as f64 / to as f64 - 0.5;
                let reach = 2.0 * (from as f64 / to as f64).max(1.0);
                if center - reach >= 0.0 && center + reach <= from as f64 - 1.0 {
                    let mean: f64 = all.iter().map(|(input, w)| *input as f64 * w).sum();
                    assert_within!(mean, center, 1e-12);
                }
            }
        }
    }

    #[test]
    fn the_matrix_resizes_and_keeps_what_is_before_the_grid() {
        let (from, to, width) = (Grid { rows: 3, columns: 4 }, Grid { rows: 5, columns: 2 }, 2);
        let values: Vec<f32> = (0..(2 + from.patches()) * width).map(|i| (0.7 * i as f32).sin()).collect();
        let want = [&values[..2 * width], &resize(&values[2 * width..], from, to, width)].concat();
        let columns = 2 + from.patches();
        let matrix = matrix(2, from, to);
        assert_eq!(matrix.len(), (2 + to.patches()) * columns);
        for (i, want) in want.iter().enumerate() {
            let row = &matrix[i / width * columns..][..columns];
            let sum: f64 = row
                .iter()
                .zip(values[i % width..].iter().step_by(width))
                .map(|(m, v)| f64::from(*m) * f64::from(*v))
                .sum();
            // Weights and results are rounded once each; the weights of an output have a sum of absolute values below 2.
            assert_within!(sum, *want, tolerance::f32(2, 2.0));
        }
    }
}
