//! The matching between the prototypes of two clusterings.

use crate::metrics::{Cell, Contingency};
use pauc_traits::{Clustering, Result};

/// Returns the one-to-one pairs of rows and columns that share the most samples, sorted. Uses the Hungarian
/// method with potentials: O(min²·max) in the worst case, and near min·max if most rows already have their
/// own column. Pairs without a common sample are left out.
pub fn best_pairs(c: &Contingency) -> Vec<Cell> {
    let transposed = c.rows.len() > c.cols.len();
    let (short, long) = if transposed { (c.cols.len(), c.rows.len()) } else { (c.rows.len(), c.cols.len()) };
    let mut counts = vec![0i64; short * long];
    for cell in &c.cells {
        let (s, l) = if transposed { (cell.column, cell.row) } else { (cell.row, cell.column) };
        counts[s * long + l] = cell.count as i64;
    }
    let pair = |(s, l): (usize, usize)| {
        let (row, column) = if transposed { (l, s) } else { (s, l) };
        Cell { row, column, count: counts[s * long + l] as usize }
    };
    let assigned = assign(&counts, short, long).into_iter().enumerate();
    let mut pairs: Vec<Cell> = assigned.map(pair).filter(|pair| pair.count > 0).collect();
    pairs.sort_unstable();
    pairs
}

/// Assigns a column to each row such that the sum of `gain` is largest.
///
/// # Shapes
/// gain (rows, cols), row-major, with rows ≤ cols → rows
fn assign(gain: &[i64], rows: usize, cols: usize) -> Vec<usize> {
    const FREE: usize = usize::MAX;
    // Costs are −gain; the potentials keep cost − row − col ≥ 0, with equality on matched pairs.
    let (mut row_potential, mut col_potential) = (vec![0i64; rows], vec![0i64; cols]);
    let (mut column_of, mut row_of) = (vec![FREE; rows], vec![FREE; cols]);
    for r in 0..rows {
        let best = (0..cols).max_by_key(|c| (gain[r * cols + c], std::cmp::Reverse(*c))).unwrap_or(0);
        row_potential[r] = -gain[r * cols + best];
        if row_of[best] == FREE {
            (column_of[r], row_of[best]) = (best, r);
        }
    }
    for start in 0..rows {
        if column_of[start] != FREE {
            continue;
        }
        // Dijkstra over columns along alternating paths.
        let (mut distance, mut from) = (vec![i64::MAX; cols], vec![FREE; cols]);
        let mut done = vec![false; cols];
        let (mut row, mut base) = (start, 0i64);
        let end = loop {
            for c in (0..cols).filter(|c| !done[*c]) {
                let reduced = base - gain[row * cols + c] - row_potential[row] - col_potential[c];
                if reduced < distance[c] {
                    (distance[c], from[c]) = (reduced, row);
                }
            }
            let next = (0..cols).filter(|c| !done[*c]).min_by_key(|c| distance[*c]);
            let Some(next) = next else { break FREE };
            done[next] = true;
            base = distance[next];
            if row_of[next] == FREE {
                break next;
            }
            row = row_of[next];
        };
        if end == FREE {
            // More rows than columns: the callers above rule this out.
            continue;
        }
        row_potential[start] += base;
        for c in (0..cols).filter(|c| done[*c] && *c != end) {
            let lead = base - distance[c];
            row_potential[row_of[c]] += lead;
            col_potential[c] -= lead;
        }
        let mut column = end;
        loop {
            let row = from[column];
            let freed = std::mem::replace(&mut column_of[row], column);
            row_of[column] = row;
            if row == start {
                break;
            }
            column = freed;
        }
    }
    column_of
}

/// How the prototypes of one clustering continue in the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Matching {
    /// The earlier prototype that each later prototype continues, by the one-to-one matching that keeps the
    /// most samples. `None` if they share no sample or the earlier prototype is matched to another.
    pub previous: Vec<Option<u32>>,
    /// The fraction of samples whose prototype does not continue their earlier one. Noise continues noise.
    pub churn: f64,
}

/// Matches the prototypes of two clusterings of the same samples.
///
/// # Errors
/// If they have different numbers of samples.
pub fn match_prototypes(before: &Clustering, after: &Clustering) -> Result<Matching> {
    let mut previous = vec![None; after.k];
    let (mut kept, mut total) = (0usize, 0usize);
    // Noise has no prototype, so it only continues noise.
    let counts = Contingency::between(&before.assignments, &after.assignments)?;
    let mut prototypes = counts.clone();
    prototypes.cells.retain(|cell| {
        total += cell.count;
        let noise = (counts.labels[cell.row].is_none(), counts.columns[cell.column].is_none());
        kept += if noise == (true, true) { cell.count } else { 0 };
        noise == (false, false)
    });
    for pair in best_pairs(&prototypes) {
        if let (Some(a), Some(b)) = (counts.labels[pair.row], counts.columns[pair.column]) {
            previous[b as usize] = Some(a);
            kept += pair.count;
        }
    }
    let churn = if total == 0 { 0.0 } else { 1.0 - kept as f64 / total as f64 };
    Ok(Matching { previous, churn })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use proptest::prelude::*;

    fn exhaustive(gain: &[i64], rows: usize, cols: usize, row: usize, used: &mut Vec<bool>) -> i64 {
        if row == rows {
            return 0;
        }
        let mut best = i64::MIN;
        for c in 0..cols {
            if !used[c] {
                used[c] = true;
                best = best.max(gain[row * cols + c] + exhaustive(gain, rows, cols, row + 1, used));
                used[c] = false;
            }
        }
        best
    }

    proptest! {
        #![proptest_config(pauc_testing::property::cases(256))]
        #[test]
        fn no_other_assignment_is_better(rows in 1usize..6, extra in 0usize..3, values in prop::collection::vec(0i64..7, 48)) {
            let cols = rows + extra;
            let gain = &values[..rows * cols];
            let assigned = assign(gain, rows, cols);
            let mut seen = assigned.clone();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), rows, "columns are used once");
            let total: i64 = assigned.iter().enumerate().map(|(r, c)| gain[r * cols + c]).sum();
            prop_assert_eq!(total, exhaustive(gain, rows, cols, 0, &mut vec![false; cols]));
        }
    }

    fn clustering(k: usize, assignments: &[i32]) -> Clustering {
        Clustering {
            k,
            dim: 1,
            centroids: vec![0.0; k],
            assignments: assignments.iter().map(|a| u32::try_from(*a).ok()).collect(),
            report: Default::default(),
        }
    }

    #[test]
    fn renamed_prototypes_are_recognized() {
        let before = clustering(4, &[0, 0, 1, 1, 1, 2, 3, -1, -1]);
        let after = clustering(3, &[2, 2, 0, 0, 0, 1, 1, -1, 0]);
        let m = match_prototypes(&before, &after).unwrap();
        assert_eq!((m.previous[0], m.previous[2]), (Some(1), Some(0)));
        assert!(matches!(m.previous[1], Some(2 | 3)));
        // A division and a subtraction from 1.
        assert_within!(m.churn, 2.0 / 9.0, tolerance::f64(2, 1.0));
        assert_eq!(match_prototypes(&before, &before).unwrap().churn, 0.0);
        assert!(match_prototypes(&before, &clustering(1, &[0])).is_err());
    }
}
