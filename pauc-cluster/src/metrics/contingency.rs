//! Counts of pairs: the number of samples with label a and cluster b.

use pauc_traits::{Error, Result};

/// The samples that a row and a column have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// The row's number.
    pub row: usize,
    /// The column's number.
    pub column: usize,
    /// The number of samples they share.
    pub count: usize,
}

/// The samples that two partitions have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Contingency {
    /// The nonempty cells, sorted. Rows and columns are numbered without gaps.
    pub cells: Vec<Cell>,
    /// The number of samples in each row (label).
    pub rows: Vec<usize>,
    /// The number of samples in each column (cluster).
    pub cols: Vec<usize>,
    /// The number of all samples.
    pub total: usize,
    /// The cluster of each column; `None` is noise.
    pub columns: Vec<Option<u32>>,
    /// The label of each row; `None` is noise.
    pub labels: Vec<Option<u32>>,
}

impl Contingency {
    /// Counts labels against clusters. Noise is one additional cluster: leaving it out would reward a
    /// clusterer that calls all difficult samples noise.
    ///
    /// # Shapes
    /// `labels` and `clusters`: (n), one entry per sample; `None` is noise.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn new(labels: &[u32], clusters: &[Option<u32>]) -> Result<Self> {
        Self::between(&labels.iter().copied().map(Some).collect::<Vec<_>>(), clusters)
    }

    /// Counts one clustering against another. Noise is one additional cluster in each.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn between(labels: &[Option<u32>], clusters: &[Option<u32>]) -> Result<Self> {
        if labels.len() != clusters.len() {
            return Err(Error::shape(
                "contingency",
                format!("{} labels for {} clustered samples", labels.len(), clusters.len()),
            ));
        }
        let distinct = |values: &[Option<u32>]| {
            let mut distinct = values.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            distinct
        };
        let (row_labels, columns) = (distinct(labels), distinct(clusters));
        let place = |distinct: &[Option<u32>], v: &Option<u32>| distinct.partition_point(|d| d < v);
        let mut pairs: Vec<(usize, usize)> =
            labels.iter().zip(clusters).map(|(a, b)| (place(&row_labels, a), place(&columns, b))).collect();
        pairs.sort_unstable();
        let (mut rows, mut cols) = (vec![0; row_labels.len()], vec![0; columns.len()]);
        let mut cells: Vec<Cell> = Vec::new();
        for (row, column) in pairs {
            rows[row] += 1;
            cols[column] += 1;
            match cells.last_mut() {
                Some(last) if (last.row, last.column) == (row, column) => last.count += 1,
                _ => cells.push(Cell { row, column, count: 1 }),
            }
        }
        Ok(Contingency { cells, rows, cols, total: labels.len(), columns, labels: row_labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_keeps_noise() {
        let c = Contingency::new(&[7, 7, 2, 2], &[Some(4), None, Some(4), Some(4)]).unwrap();
        let cells: Vec<_> = c.cells.iter().map(|cell| (cell.row, cell.column, cell.count)).collect();
        assert_eq!(cells, [(0, 1, 2), (1, 0, 1), (1, 1, 1)]);
        assert_eq!((c.rows, c.cols, c.total), (vec![2, 2], vec![1, 3], 4));
        assert_eq!((c.labels, c.columns), (vec![Some(2), Some(7)], vec![None, Some(4)]));
        let text = Contingency::new(&[1], &[]).unwrap_err().to_string();
        assert!(text.contains("1 labels for 0 clustered samples"), "{text}");
    }
}
