//! Counts of pairs: how many samples have label a and cluster b.

use pauc_traits::{Error, Result};

/// Which samples two partitions have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Contingency {
    /// (row, column, count) of the cells that are not empty, sorted; rows and columns are numbered without gaps.
    pub cells: Vec<(usize, usize, usize)>,
    /// Samples in each row (label).
    pub rows: Vec<usize>,
    /// Samples in each column (cluster).
    pub cols: Vec<usize>,
    /// All samples.
    pub total: usize,
    /// The cluster each column stands for; `None` is noise.
    pub columns: Vec<Option<u32>>,
    /// The label each row stands for; `None` is noise.
    pub labels: Vec<Option<u32>>,
}

impl Contingency {
    /// Counts labels against clusters. Noise is one cluster more: leaving it out would reward a clusterer that
    /// calls all difficult samples noise.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn new(labels: &[u32], clusters: &[Option<u32>]) -> Result<Self> {
        Self::between(&labels.iter().copied().map(Some).collect::<Vec<_>>(), clusters)
    }

    /// Counts one clustering against another; noise is one cluster more in either.
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
        let known = |values: &[Option<u32>]| {
            let mut known = values.to_vec();
            known.sort_unstable();
            known.dedup();
            known
        };
        let (labels_known, columns) = (known(labels), known(clusters));
        let place = |known: &[Option<u32>], v: &Option<u32>| known.partition_point(|k| k < v);
        let mut pairs: Vec<(usize, usize)> =
            labels.iter().zip(clusters).map(|(a, b)| (place(&labels_known, a), place(&columns, b))).collect();
        pairs.sort_unstable();
        let (mut rows, mut cols) = (vec![0; labels_known.len()], vec![0; columns.len()]);
        let mut cells: Vec<(usize, usize, usize)> = Vec::new();
        for (a, b) in pairs {
            rows[a] += 1;
            cols[b] += 1;
            match cells.last_mut() {
                Some(last) if (last.0, last.1) == (a, b) => last.2 += 1,
                _ => cells.push((a, b, 1)),
            }
        }
        Ok(Contingency { cells, rows, cols, total: labels.len(), columns, labels: labels_known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_keeps_noise() {
        let c = Contingency::new(&[7, 7, 2, 2], &[Some(4), None, Some(4), Some(4)]).unwrap();
        assert_eq!(c.cells, [(0, 1, 2), (1, 0, 1), (1, 1, 1)]);
        assert_eq!((c.rows, c.cols, c.total), (vec![2, 2], vec![1, 3], 4));
        assert_eq!((c.labels, c.columns), (vec![Some(2), Some(7)], vec![None, Some(4)]));
        let text = Contingency::new(&[1], &[]).unwrap_err().to_string();
        assert!(text.contains("1 labels for 0 clustered samples"), "{text}");
    }
}
