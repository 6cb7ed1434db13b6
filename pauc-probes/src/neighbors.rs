//! Exact nearest rows by cosine, groups of near-duplicates, and outliers.

use crate::knn::{Bank, QUERIES, offer, unit_rows};
use crate::{finite, same_width};
use pauc_traits::probe::{Neighbors, RowsView};
use pauc_traits::{Error, Result, progress, stop};
use rayon::prelude::*;
use std::sync::Mutex;

/// What the bank is called in errors.
pub const BANK: &str = "nearest rows, bank";

/// What a search looks for.
#[derive(Clone, Copy, Debug)]
pub struct SearchOptions {
    /// The number of nearest rows of each query.
    pub k: usize,
    /// Rows of at least this cosine are near-duplicates; `None` to look for none.
    pub duplicates: Option<f32>,
}

/// The result of a search.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The nearest rows of each query, nearest first: cosine and row.
    pub nearest: Vec<Neighbors>,
    /// The number of near-duplicates of each query.
    pub close: Vec<u32>,
    /// Groups of near-duplicates, by their first row, if the rows were searched among themselves: a row
    /// belongs to the group of each of its near-duplicates.
    pub groups: Vec<Vec<u32>>,
}

/// Finds the nearest rows of each query in `bank`, or, without one, among the other queries. The search is
/// exact; ties go to the lower row. Memory is that of one copy of both matrices, and of the result.
///
/// A cosine is rounded to `f32`: copies of a row may be 10⁻⁶ below 1. Rows of zeros have cosine 0 to all.
///
/// # Shapes
/// queries (M, D), bank (N, D) → M lists
///
/// # Errors
/// If `k` is 0, rows have different widths, a value is NaN or infinite, or the run was asked to stop.
pub fn search(queries: RowsView<'_>, bank: Option<RowsView<'_>>, options: SearchOptions) -> Result<Found> {
    finite("nearest rows, queries", queries)?;
    if let Some(bank) = bank {
        finite(BANK, bank)?;
        same_width("nearest rows", bank, queries)?;
    }
    if options.k == 0 {
        return Err(Error::config("nearest rows: k is 0; ask for at least 1"));
    }
    let units = unit_rows(queries);
    let bank_units = bank.map(unit_rows);
    let is_self = bank_units.is_none();
    let search = Search {
        bank: Bank::of_cosines(bank_units.as_deref().unwrap_or(&units), queries.cols),
        options,
        groups: is_self.then(|| Mutex::new(Groups::new(queries.rows))),
    };
    let mut found = Found { nearest: vec![Vec::new(); queries.rows], ..Found::default() };
    found.close = vec![0; queries.rows];
    let stop = stop::flag();
    let task = progress::task("nearest neighbors", queries.rows as u64);
    let lists = found.nearest.par_chunks_mut(QUERIES).zip(found.close.par_chunks_mut(QUERIES));
    lists.zip(units.par_chunks(QUERIES * queries.cols)).enumerate().for_each(
        |(b, ((nearest, close), block))| {
            if !stop.is_set() {
                search.block(b * QUERIES, block, nearest, close);
                task.advance(nearest.len() as u64);
            }
        },
    );
    stop.check()?;
    found.groups = search
        .groups
        .map(|groups| groups.into_inner().unwrap_or_else(|e| e.into_inner()).sorted())
        .unwrap_or_default();
    Ok(found)
}

/// Returns the mean cosine of each row to its nearest rows, which is low for outliers. Rows without any have
/// none.
///
/// # Shapes
/// N lists → N
pub fn typicality(nearest: &[Neighbors]) -> Vec<Option<f64>> {
    let mean = |list: &Neighbors| {
        let sum: f64 = list.iter().map(|(cosine, _)| f64::from(*cosine)).sum();
        (!list.is_empty()).then(|| sum / list.len() as f64)
    };
    nearest.iter().map(mean).collect()
}

struct Search<'a> {
    bank: Bank<'a>,
    options: SearchOptions,
    /// If queries are searched among themselves.
    groups: Option<Mutex<Groups>>,
}

impl Search<'_> {
    /// Searches a block of queries, the first of which is row `first`.
    fn block(&self, first: usize, queries: &[f32], nearest: &mut [Neighbors], close: &mut [u32]) {
        let is_self = self.groups.is_some();
        // A row is its own nearest, unless copies of it come before it.
        let k = self.options.k.saturating_add(usize::from(is_self)).min(self.bank.len());
        let mut pairs = Vec::new();
        self.bank.for_each_tile(queries, |query, start, scores| {
            offer(&mut nearest[query], k, start, scores);
            let Some(least) = self.options.duplicates else { return };
            let row = first + query;
            let others = |(i, score): (usize, &f32)| {
                (*score >= least && !(is_self && start + i == row)).then_some(start + i)
            };
            let found = scores.iter().enumerate().filter_map(others);
            if let Some(groups) = &self.groups {
                pairs.clear();
                pairs.extend(found);
                close[query] += pairs.len() as u32;
                // Each pair is found from both of its rows.
                pairs.retain(|other| *other < row);
                if !pairs.is_empty() {
                    let mut groups = groups.lock().unwrap_or_else(|e| e.into_inner());
                    pairs.iter().for_each(|other| groups.join(row, *other));
                }
            } else {
                close[query] += found.count() as u32;
            }
        });
        if is_self {
            for (query, list) in nearest.iter_mut().enumerate() {
                list.retain(|(_, row)| *row as usize != first + query);
                list.truncate(self.options.k);
            }
        }
    }
}

/// Disjoint sets of rows.
struct Groups {
    /// A row of the same set, lower than this row, or the row itself if it is the lowest.
    parent: Vec<u32>,
}

impl Groups {
    fn new(rows: usize) -> Self {
        Groups { parent: (0..rows as u32).collect() }
    }

    /// Returns the lowest row of the set of `row`.
    fn root(&mut self, mut row: usize) -> usize {
        while self.parent[row] as usize != row {
            // Halves the path for later calls.
            self.parent[row] = self.parent[self.parent[row] as usize];
            row = self.parent[row] as usize;
        }
        row
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b) as u32;
    }

    /// Returns the sets of more than one row, with ascending rows, by their first.
    fn sorted(mut self) -> Vec<Vec<u32>> {
        let mut place = vec![u32::MAX; self.parent.len()];
        let mut sets: Vec<Vec<u32>> = Vec::new();
        for row in 0..self.parent.len() {
            let root = self.root(row);
            if root == row {
                continue;
            }
            if place[root] == u32::MAX {
                place[root] = sets.len() as u32;
                sets.push(vec![root as u32]);
            }
            sets[place[root] as usize].push(row as u32);
        }
        sets.sort();
        sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::inputs::irregular;
    use pauc_testing::{assert_within, tolerance};

    /// All cosines of one row in f64, by a loop.
    fn cosines(query: &[f32], bank: &[f32], dim: usize) -> Vec<f64> {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        bank.chunks(dim).map(|row| dot(query, row) / (dot(query, query) * dot(row, row)).sqrt()).collect()
    }

    fn options(k: usize, duplicates: Option<f32>) -> SearchOptions {
        SearchOptions { k, duplicates }
    }

    #[test]
    fn nearest_rows_equal_those_of_a_loop() {
        let (n, m, dim, k) = (1500, 300, 7, 5);
        let (bank, queries) = (irregular(n * dim, 1.0), irregular(m * dim, 2.0));
        let rounding = tolerance::f32(dim + 2, 1.0);
        for is_self in [false, true] {
            let view = RowsView::new(&bank, dim);
            let found = match is_self {
                true => search(view, None, options(k, None)).unwrap(),
                false => search(RowsView::new(&queries, dim), Some(view), options(k, None)).unwrap(),
            };
            let rows = if is_self { &bank } else { &queries };
            for (q, query) in rows.chunks(dim).enumerate() {
                let mut want = cosines(query, &bank, dim);
                if is_self {
                    want[q] = f64::NEG_INFINITY;
                }
                let mut sorted = want.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                assert_eq!(found.nearest[q].len(), k);
                for (place, (cosine, row)) in found.nearest[q].iter().enumerate() {
                    assert_within!(f64::from(*cosine), want[*row as usize], rounding, "query {q}, row {row}");
                    assert_within!(want[*row as usize], sorted[place], 2.0 * rounding, "query {q}");
                }
            }
            assert!(found.groups.is_empty() && found.close.iter().all(|n| *n == 0));
        }
    }

    #[test]
    fn near_duplicates_are_grouped_over_tiles() {
        // Directions in degrees: 1 degree apart within a chain, at least 5 degrees otherwise.
        let degrees: [f32; 12] = [300., 305., 310., 315., 320., 325., 330., 90., 200., 200., 91., 92.];
        let rows: Vec<f32> =
            degrees.iter().flat_map(|d| [d.to_radians().cos(), d.to_radians().sin()]).collect();
        let least = 1.5f32.to_radians().cos();
        let found = search(RowsView::new(&rows, 2), None, options(2, Some(least))).unwrap();
        // 90 and 92 degrees are in one group through the row between them.
        assert_eq!(found.groups, [vec![7, 10, 11], vec![8, 9]]);
        assert_eq!(found.close, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 1]);
        let copies: Vec<f32> =
            (0..2100).flat_map(|i| if i % 1050 == 3 { [0.0, 1.0] } else { [1.0, i as f32 / -9.0] }).collect();
        let found = search(RowsView::new(&copies, 2), None, options(1, Some(0.999_999))).unwrap();
        // The copies are in different tiles.
        assert!(found.groups.contains(&vec![3, 1053]), "{:?}", found.groups);
        assert_eq!(found.nearest[1053][0].1, 3);
        // Against a bank, near-duplicates are counted.
        let found =
            search(RowsView::new(&rows[14..16], 2), Some(RowsView::new(&rows, 2)), options(1, Some(least)));
        assert_eq!(found.unwrap().close, [2]);
    }

    #[test]
    fn outliers_have_the_lowest_mean_cosine() {
        let near = [vec![(0.9, 1), (0.7, 2)], vec![(0.25, 0), (-0.25, 2)], vec![]];
        let got = typicality(&near);
        assert_within!(got[0].unwrap(), 0.8, tolerance::f32(2, 1.0));
        assert_eq!(got[1..], [Some(0.0), None]);
    }

    #[test]
    fn few_rows_zeros_and_mistakes() {
        let rows = [1.0, 0.0, 0.0, 0.0, 2.0, 0.0];
        let found = search(RowsView::new(&rows, 2), None, options(9, Some(0.5))).unwrap();
        assert_eq!(found.nearest[0].iter().map(|n| n.1).collect::<Vec<_>>(), [2, 1]);
        assert_eq!((found.groups, found.nearest[1].len()), (vec![vec![0, 2]], 2));
        let alone = search(RowsView::new(&rows[..2], 2), None, options(1, None)).unwrap();
        assert_eq!(alone.nearest, [vec![]]);
        let refused = |queries: &[f32], cols, k| {
            search(RowsView::new(queries, cols), Some(RowsView::new(&rows, 2)), options(k, None)).unwrap_err()
        };
        assert!(refused(&rows, 2, 0).to_string().contains("at least 1"));
        assert!(refused(&rows, 3, 1).to_string().contains('3'));
        assert!(refused(&[f32::NAN, 0.0], 2, 1).to_string().contains("queries"));
    }
}
