//! Retrieval: are the nearest images of the same class?

use crate::knn::{products, unit_rows};
use crate::{ProbeTime, Space, check, when};
use pauc_traits::dataset::Splits;
use pauc_traits::probe::{Metric, ProbeContext, ProbesOnDevice, RowsView, When};
use pauc_traits::{Error, Probe, Result, TrainingSpan, component, progress, stop};
use rayon::prelude::*;

component! {
    /// Retrieval among the images of the test split by cosine: P@1, R-precision and MAP@R.
    ///
    /// Each image is a query to all others. R is the number of other images of the query's class. P@1 is the
    /// fraction of queries whose nearest image has their class. R-precision is the fraction of that class
    /// among the R nearest. MAP@R is the mean over the R nearest of the precision up to each hit; misses
    /// count 0. Queries that are alone in their class are left out. Ties between cosines go to the lower
    /// sample index. Without a test split, nothing is measured.
    ///
    /// Metrics: `retrieval/cos/p@1`, `retrieval/cos/r_precision`, `retrieval/cos/map@r`, fractions.
    /// Source: Musgrave et al. 2020 (a metric learning reality check).
    pub struct Retrieval: Probe {
        /// The vectors compared: `Features` before the projector, or its outputs, `Embeddings`.
        pub space: Space = Space::Features,
        /// How often it runs during training, such as `Epochs(1)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for Retrieval {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn check_splits(&self, splits: &Splits) -> Result<()> {
        let Some(labels) = splits.test.as_ref().and_then(|test| test.labels()) else { return Ok(()) };
        let mut sorted = labels.to_vec();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) { Ok(()) } else { Err(nothing_to_retrieve()) }
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let Some(test) = &context.test else { return Ok(Vec::new()) };
        let Some(labels) = test.labels else { return Ok(Vec::new()) };
        let scores = retrieval_on(context.device, self.space.rows(test), labels, context.classes)?;
        let name = |what: &str| format!("retrieval/cos/{what}{}", self.space.suffix());
        Ok(vec![
            Metric::new(name("p@1"), scores.first),
            Metric::new(name("r_precision"), scores.r_precision),
            Metric::new(name("map@r"), scores.map_at_r),
        ])
    }
}

/// The number of queries compared with all rows in one product.
const QUERIES: usize = 64;

/// The quality of retrieval; means over the queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retrieved {
    /// Precision at 1.
    pub first: f64,
    /// Precision at R.
    pub r_precision: f64,
    /// Mean average precision at R.
    pub map_at_r: f64,
}

/// Evaluates retrieval with each row as a query to all others.
///
/// # Shapes
/// (N, D), labels N
///
/// # Errors
/// If rows and labels do not match, a value is NaN or infinite, or no class has two rows.
pub fn retrieval(rows: RowsView<'_>, labels: &[u32], classes: usize) -> Result<Retrieved> {
    retrieval_on(None, rows, labels, classes)
}

/// As [`retrieval`], with comparison and selection on a device, if given.
///
/// # Shapes
/// rows (N, D), labels N
///
/// # Errors
/// As [`retrieval`], or if the device fails.
pub fn retrieval_on(
    device: Option<&dyn ProbesOnDevice>,
    rows: RowsView<'_>,
    labels: &[u32],
    classes: usize,
) -> Result<Retrieved> {
    check("retrieval", rows, labels, classes)?;
    let mut sizes = vec![0usize; classes];
    labels.iter().for_each(|l| sizes[*l as usize] += 1);
    let (unit, dim) = (unit_rows(rows), rows.cols);
    // One more than the largest R, because a query also finds itself.
    let most = sizes.iter().copied().max().unwrap_or(0);
    let queries = Queries { labels, sizes };
    let unit_view = RowsView::new(&unit, dim);
    let lists = device.map_or(Ok(None), |device| device.highest(unit_view, unit_view, None, most))?;
    let stop = stop::flag();
    let task = progress::task("retrieval", rows.rows as u64);
    // A block of queries is compared with all rows in one product.
    let block = |(b, block): (usize, &[f32])| -> Vec<[f64; 3]> {
        if stop.is_set() {
            return Vec::new();
        }
        let (count, mut near) = (block.len() / dim, Vec::with_capacity(rows.rows));
        let cosines = products(block, &unit, dim);
        task.advance(count as u64);
        let row = |i: usize| &cosines[i * rows.rows..(i + 1) * rows.rows];
        (0..count).filter_map(|i| queries.score_cosines(b * QUERIES + i, row(i), &mut near)).collect()
    };
    let scores: Vec<[f64; 3]> = match lists {
        Some(lists) => {
            lists.into_par_iter().enumerate().filter_map(|(q, near)| queries.score_list(q, near)).collect()
        }
        None => unit.par_chunks(QUERIES * dim).enumerate().flat_map_iter(block).collect(),
    };
    stop.check()?;
    if scores.is_empty() {
        return Err(nothing_to_retrieve());
    }
    let mean = |m: usize| scores.iter().map(|s| s[m]).sum::<f64>() / scores.len() as f64;
    Ok(Retrieved { first: mean(0), r_precision: mean(1), map_at_r: mean(2) })
}

fn nothing_to_retrieve() -> Error {
    Error::config("retrieval: no class has two images in this split, so there is nothing to retrieve")
}

/// Samples as queries to all others.
struct Queries<'a> {
    labels: &'a [u32],
    /// The number of samples of each class.
    sizes: Vec<usize>,
}

impl Queries<'_> {
    /// Returns R of a query: the number of other samples of its class.
    fn others(&self, query: usize) -> usize {
        self.sizes[self.labels[query] as usize] - 1
    }

    /// Returns the scores of a query for its R nearest, best first: P@1, R-precision and average precision.
    fn score(&self, query: usize, nearest: &[(f32, u32)]) -> [f64; 3] {
        let r = self.others(query) as f64;
        let is_hit = |sample: &u32| self.labels[*sample as usize] == self.labels[query];
        let (mut hits, mut precisions) = (0.0, 0.0);
        for (place, (_, sample)) in nearest.iter().enumerate() {
            if is_hit(sample) {
                hits += 1.0;
                precisions += hits / (place + 1) as f64;
            }
        }
        let first = nearest.first().is_some_and(|(_, sample)| is_hit(sample));
        [f64::from(u8::from(first)), hits / r, precisions / r]
    }

    /// Returns the scores of a query for a list of more than R nearest, best first, which includes the query
    /// itself; `None` if the query is alone in its class.
    fn score_list(&self, query: usize, list: Vec<(f32, u32)>) -> Option<[f64; 3]> {
        let r = self.others(query);
        let nearest: Vec<_> = list.into_iter().filter(|(_, i)| *i as usize != query).take(r).collect();
        (r > 0).then(|| self.score(query, &nearest))
    }

    /// As [`Queries::score_list`], from the cosines with all samples. `nearest` is scratch memory.
    fn score_cosines(
        &self,
        query: usize,
        cosines: &[f32],
        nearest: &mut Vec<(f32, u32)>,
    ) -> Option<[f64; 3]> {
        let r = self.others(query);
        if r == 0 {
            return None;
        }
        nearest.clear();
        nearest.extend(cosines.iter().copied().zip(0..).filter(|(_, i)| *i as usize != query));
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if nearest.len() > r {
            nearest.select_nth_unstable_by(r - 1, order);
            nearest.truncate(r);
        }
        nearest.sort_unstable_by(order);
        Some(self.score(query, nearest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};

    /// Returns points on a circle, given their angles.
    fn circle(degrees: &[f32]) -> Vec<f32> {
        degrees.iter().flat_map(|d| [3.0 * d.to_radians().cos(), 3.0 * d.to_radians().sin()]).collect()
    }

    #[test]
    fn scores_are_those_counted_by_hand() {
        // Query 0 (class 0, R = 2) finds 1 and 2, of the classes 1 and 0: P@1 0, R-precision 1/2, MAP@R
        // (1/2)/2.
        let data = circle(&[0.0, 10.0, 25.0, 90.0]);
        let got = retrieval(RowsView::new(&data, 2), &[0, 1, 0, 0], 2).unwrap();
        // Query 2 finds 1 (miss) and 0 (hit), like query 0. Query 3 finds 2 (hit) and 1 (miss): 1, 1/2, 1/2.
        // Query 1 is alone.
        // Means of three values, each a sum of at most two quotients.
        assert_within!(got.first, 1.0 / 3.0, tolerance::f64(4, 1.0 / 3.0));
        assert_within!(got.r_precision, 0.5, tolerance::f64(6, 0.5));
        assert_within!(got.map_at_r, (0.25 + 0.25 + 0.5) / 3.0, tolerance::f64(6, 1.0 / 3.0));
    }

    #[test]
    fn scores_equal_a_full_sort_in_double_precision() {
        let (n, dim) = (83, 5);
        let data: Vec<f32> = (0..n * dim).map(|i| (1.7 * i as f32 + (0.3 * i as f32).cos()).sin()).collect();
        let labels: Vec<u32> = (0..n as u32).map(|i| i * i % 5 % 4).collect();
        let got = retrieval(RowsView::new(&data, dim), &labels, 4).unwrap();
        let row = |i: usize| &data[i * dim..(i + 1) * dim];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| *x as f64 * *y as f64).sum::<f64>();
        let (mut want, mut queries) = ([0.0; 3], 0.0);
        for q in 0..n {
            let cosine = |i: usize| dot(row(q), row(i)) / (dot(row(q), row(q)) * dot(row(i), row(i))).sqrt();
            let mut order: Vec<usize> = (0..n).filter(|i| *i != q).collect();
            order.sort_by(|a, b| cosine(*b).total_cmp(&cosine(*a)));
            let same = |i: &usize| labels[*i] == labels[q];
            let r = order.iter().filter(|i| same(i)).count();
            if r == 0 {
                continue;
            }
            let gap = order[..=r].windows(2).map(|w| cosine(w[0]) - cosine(w[1])).fold(f64::MAX, f64::min);
            assert!(gap > 2.0 * tolerance::f32(dim + 2, 1.0), "rounding decides about query {q}: {gap}");
            queries += 1.0;
            want[0] += f64::from(u8::from(same(&order[0])));
            want[1] += order[..r].iter().filter(|i| same(i)).count() as f64 / r as f64;
            for k in 1..=r {
                if same(&order[k - 1]) {
                    want[2] += order[..k].iter().filter(|i| same(i)).count() as f64 / k as f64 / r as f64;
                }
            }
        }
        for (got, want) in [got.first, got.r_precision, got.map_at_r].iter().zip(want) {
            // At most n queries, each with a sum of at most n quotients of quotients.
            assert_within!(*got, want / queries, tolerance::f64(2 * n + 4, 1.0));
        }
    }

    #[test]
    fn classes_of_one_image_have_nothing_to_find() {
        let error = retrieval(RowsView::new(&[1.0, 0.0, 0.0, 1.0], 2), &[0, 1], 2).unwrap_err().to_string();
        assert!(error.contains("no class has two images"), "{error}");
    }
}
