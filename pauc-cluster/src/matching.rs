//! The matching between the prototypes of two clusterings.

use crate::metrics::{Cell, Contingency};
use pauc_traits::{Clustering, Result, stop};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Returns the one-to-one pairs of rows and columns that share the most samples, sorted. Pairs without a common
/// sample are left out.
///
/// Uses the Hungarian method with potentials on the nonempty cells: O(rows · cells · log cells) in the worst case, and
/// near the number of cells if most rows already have their own column.
///
/// # Errors
/// If the run was asked to stop.
pub fn best_pairs(c: &Contingency) -> Result<Vec<Cell>> {
    let mut matcher = Matcher::new(c);
    matcher.match_freely();
    for row in 0..c.rows.len() {
        stop::check()?;
        if matcher.column_of[row] == FREE {
            matcher.augment(row);
        }
    }
    let pair = |cell: &&Cell| matcher.column_of[cell.row] == cell.column;
    Ok(c.cells.iter().filter(pair).copied().collect())
}

/// The partner of a row or column that has none.
const FREE: usize = usize::MAX;

/// A matching that grows row by row. Each row also has a column of its own, at which it shares no sample.
///
/// The cost of a cell is minus its count. The potentials keep cost − row − column ≥ 0, with equality on matched pairs.
struct Matcher<'a> {
    cells: &'a [Cell],
    /// The first cell of each row, and the number of all cells.
    starts: Vec<usize>,
    /// The number of columns that rows share.
    shared: usize,
    row_potential: Vec<i64>,
    column_potential: Vec<i64>,
    column_of: Vec<usize>,
    row_of: Vec<usize>,
    search: Search,
}

/// A search for the shortest alternating path from a free row to a free column.
struct Search {
    /// The length of the shortest path found to each column, and the row before it.
    distance: Vec<i64>,
    from: Vec<usize>,
    /// The columns with a path.
    reached: Vec<usize>,
    /// The columns whose shortest path is known, in the order of its length.
    done: Vec<usize>,
    is_done: Vec<bool>,
    next: BinaryHeap<Reverse<(i64, usize)>>,
}

impl Search {
    fn new(columns: usize) -> Self {
        Search {
            distance: vec![i64::MAX; columns],
            from: vec![FREE; columns],
            reached: Vec::new(),
            done: Vec::new(),
            is_done: vec![false; columns],
            next: BinaryHeap::new(),
        }
    }

    fn clear(&mut self) {
        for column in self.reached.drain(..) {
            self.distance[column] = i64::MAX;
            self.is_done[column] = false;
        }
        self.done.clear();
        self.next.clear();
    }

    /// Adds a path to `column` over `row`, unless its shortest path is known.
    fn reach(&mut self, column: usize, row: usize, distance: i64) {
        if self.is_done[column] {
            return;
        }
        if self.distance[column] == i64::MAX {
            self.reached.push(column);
        }
        if distance < self.distance[column] {
            (self.distance[column], self.from[column]) = (distance, row);
            self.next.push(Reverse((distance, column)));
        }
    }

    /// Returns the column with the shortest path among those that are not done.
    fn nearest(&mut self) -> Option<usize> {
        while let Some(Reverse((_, column))) = self.next.pop() {
            if !std::mem::replace(&mut self.is_done[column], true) {
                self.done.push(column);
                return Some(column);
            }
        }
        None
    }
}

impl<'a> Matcher<'a> {
    fn new(c: &'a Contingency) -> Self {
        let (rows, columns) = (c.rows.len(), c.cols.len() + c.rows.len());
        let start = |row| c.cells.partition_point(|cell| cell.row < row);
        Matcher {
            cells: &c.cells,
            starts: (0..=rows).map(start).collect(),
            shared: c.cols.len(),
            row_potential: vec![0; rows],
            column_potential: vec![0; columns],
            column_of: vec![FREE; rows],
            row_of: vec![FREE; columns],
            search: Search::new(columns),
        }
    }

    /// Returns the columns of a row, with their costs.
    fn costs(&self, row: usize) -> impl Iterator<Item = (usize, i64)> + use<'a> {
        let cells = &self.cells[self.starts[row]..self.starts[row + 1]];
        let own = (self.shared + row, 0);
        cells.iter().map(|cell| (cell.column, -(cell.count as i64))).chain([own])
    }

    /// Gives each row its best column, if no row before it has that.
    fn match_freely(&mut self) {
        for row in 0..self.column_of.len() {
            let best = self.costs(row).min_by_key(|(column, cost)| (*cost, *column));
            let Some((column, cost)) = best else { continue };
            self.row_potential[row] = cost;
            if self.row_of[column] == FREE {
                (self.column_of[row], self.row_of[column]) = (column, row);
            }
        }
    }

    /// Gives a free row a column, and other rows other columns if that costs less: Dijkstra's algorithm.
    fn augment(&mut self, start: usize) {
        self.search.clear();
        let (mut row, mut length) = (start, 0);
        let end = loop {
            for (column, cost) in self.costs(row) {
                let reduced = cost - self.row_potential[row] - self.column_potential[column];
                self.search.reach(column, row, length + reduced);
            }
            // The row's own column always has a path.
            let Some(column) = self.search.nearest() else { return };
            length = self.search.distance[column];
            match self.row_of[column] {
                FREE => break column,
                matched => row = matched,
            }
        };
        self.row_potential[start] += length;
        for column in self.search.done.iter().copied().filter(|column| *column != end) {
            let lead = length - self.search.distance[column];
            self.row_potential[self.row_of[column]] += lead;
            self.column_potential[column] -= lead;
        }
        let mut column = end;
        loop {
            let row = self.search.from[column];
            let freed = std::mem::replace(&mut self.column_of[row], column);
            self.row_of[column] = row;
            if row == start {
                return;
            }
            column = freed;
        }
    }
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
/// If they have different numbers of samples, or the run was asked to stop.
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
    for pair in best_pairs(&prototypes)? {
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
        fn no_other_assignment_is_better(rows in 1usize..6, cols in 1usize..7, values in prop::collection::vec(0usize..7, 48)) {
            let cell = |i: usize| Cell { row: i / cols, column: i % cols, count: values[i] };
            let counts = contingency(rows, cols, (0..rows * cols).map(cell));
            let pairs = best_pairs(&counts).unwrap();
            let distinct = |side: fn(&Cell) -> usize| pairs.iter().map(side).collect::<std::collections::BTreeSet<_>>();
            prop_assert_eq!(distinct(|p| p.row).len(), pairs.len(), "rows are used once");
            prop_assert_eq!(distinct(|p| p.column).len(), pairs.len(), "columns are used once");
            prop_assert!(pairs.is_sorted() && pairs.iter().all(|p| counts.cells.contains(p)));
            // The search over all assignments needs a column for each row.
            let (short, long) = (rows.min(cols), rows.max(cols));
            let gain = |s: usize, l: usize| if rows <= cols { values[s * cols + l] } else { values[l * cols + s] };
            let gains: Vec<i64> = (0..short * long).map(|i| gain(i / long, i % long) as i64).collect();
            let total: usize = pairs.iter().map(|p| p.count).sum();
            prop_assert_eq!(total as i64, exhaustive(&gains, short, long, 0, &mut vec![false; long]));
        }
    }

    /// Returns the counts of partitions whose nonempty cells are given.
    fn contingency(rows: usize, cols: usize, cells: impl Iterator<Item = Cell>) -> Contingency {
        let (mut of_rows, mut of_cols) = (vec![0; rows], vec![0; cols]);
        let cells: Vec<Cell> = cells.filter(|cell| cell.count > 0).collect();
        for cell in &cells {
            of_rows[cell.row] += cell.count;
            of_cols[cell.column] += cell.count;
        }
        let number = |n: usize| (0..n as u32).map(Some).collect();
        let total = of_rows.iter().sum();
        Contingency {
            cells,
            rows: of_rows,
            cols: of_cols,
            total,
            columns: number(cols),
            labels: number(rows),
        }
    }

    #[test]
    fn memory_grows_with_the_nonempty_cells() {
        // A table of all cells would take 80 GB.
        let n = 100_000u32;
        let shifted: Vec<Option<u32>> = (0..n).map(|i| Some(i ^ 1)).collect();
        let counts = Contingency::new(&(0..n).collect::<Vec<_>>(), &shifted).unwrap();
        assert_eq!(best_pairs(&counts).unwrap().len(), n as usize);
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
