//! Clusterers: features in, prototypes out.

use crate::probe::RowsView;
use crate::registry::Component;
use crate::{Error, Result, TrainingSpan};

/// One clustering of N samples into K prototypes.
#[derive(Clone, Debug, PartialEq)]
pub struct Clustering {
    /// K.
    pub k: usize,
    /// D.
    pub dim: usize,
    /// The K·D values of the centroids, as computed by the clusterer (not unit length unless it says so).
    pub centroids: Vec<f32>,
    /// The prototype of each sample; `None` for noise, which prototype terms leave out.
    pub assignments: Vec<Option<u32>>,
    /// The report of the fit.
    pub report: FitReport,
}

/// A report on a fit.
///
/// Checkpoints and logs store it as JSON, with older names for two fields.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct FitReport {
    /// What the method minimizes, such as the inertia Σ‖x − c‖²: before the first iteration, and after each one.
    pub objective: Vec<f64>,
    /// The number of samples whose prototype changed since the previous update, per update (all at the
    /// first). Empty if the method does not count them.
    #[serde(rename = "moved")]
    pub reassigned: Vec<usize>,
    /// The number of empty clusters refilled, per update. Empty if the method does not count them.
    #[serde(rename = "splits_at")]
    pub empty_splits: Vec<usize>,
    /// The number of empty clusters refilled by splitting a large one, over all iterations.
    pub splits: usize,
    /// K·Σ size² / n²: 1 when all prototypes have the same size.
    pub imbalance: f64,
    /// The number of prototypes without samples at the end.
    pub empty: usize,
    /// The number of samples without a prototype.
    pub noise: usize,
}

impl FitReport {
    /// Returns a report with an objective and the sizes of the prototypes: imbalance, empty ones and noise.
    ///
    /// # Shapes
    /// N assignments, each below `k` or `None`
    ///
    /// # Panics
    /// If an assignment is not below `k`.
    pub fn new(objective: Vec<f64>, assignments: impl IntoIterator<Item = Option<u32>>, k: usize) -> Self {
        let (mut sizes, mut noise) = (vec![0usize; k], 0);
        for assignment in assignments {
            match assignment {
                Some(c) => sizes[c as usize] += 1,
                None => noise += 1,
            }
        }
        let empty = sizes.iter().filter(|size| **size == 0).count();
        FitReport { objective, imbalance: imbalance(&sizes), empty, noise, ..FitReport::default() }
    }
}

/// Returns the imbalance K·Σ size² / (Σ size)²: 1 if all clusters have the same size (or all are empty), K if
/// one cluster has all samples.
///
/// # Shapes
/// the number of samples of each of the K clusters → scalar
pub fn imbalance(sizes: &[usize]) -> f64 {
    let total: f64 = sizes.iter().map(|s| *s as f64).sum();
    if total == 0.0 {
        return 1.0;
    }
    sizes.len() as f64 * sizes.iter().map(|s| (*s as f64).powi(2)).sum::<f64>() / (total * total)
}

/// The operations of a device for clusterers: it keeps a copy of the rows and searches them.
///
/// A clusterer is written for the host. It may ask the device for the work that grows with the number of
/// samples, and continues on the host if the answer is `None`.
pub trait ClustersOnDevice {
    /// Copies rows to the device, or lends them to it. Returns `None` if they do not fit into its memory.
    ///
    /// # Shapes
    /// rows (N, D)
    ///
    /// # Errors
    /// If the device fails.
    fn rows<'a>(&'a self, rows: RowsView<'a>) -> Result<Option<Box<dyn RowsOnDevice + 'a>>>;

    /// Returns the rank of this process among those that cluster together, and their number. By default, the process is
    /// alone.
    ///
    /// If there are several, each passes its share of the rows to [`Clusterer::fit`]. The shares are in the order of
    /// the ranks.
    fn place(&self) -> (usize, usize) {
        (0, 1)
    }

    /// Gathers what each of these processes has computed, in the order of their ranks.
    ///
    /// # Errors
    /// If another process has failed.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    /// Sends bytes to the next of these processes, and returns those of the previous one. All send equally many. The
    /// first process follows the last.
    ///
    /// # Errors
    /// If another process has failed.
    fn shift(&self, own: &[u8]) -> Result<Vec<u8>> {
        Ok(own.to_vec())
    }
}

impl std::fmt::Debug for dyn ClustersOnDevice + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("device")
    }
}

/// N rows of D values on a device.
pub trait RowsOnDevice {
    /// Announces that the next centroids have nothing to do with those before; by default, nothing follows from that.
    fn begin(&mut self) {}

    /// Returns the nearest centroid of each row (ties go to the lowest index) and its squared distance.
    ///
    /// # Shapes
    /// centroids (K, D), row-major → N labels in 0..K, N squared distances
    ///
    /// # Errors
    /// If the device fails.
    fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)>;

    /// Lowers the `sq_dist` of each row to its squared distance to the nearest centroid, if that is lower.
    ///
    /// # Shapes
    /// centroids (K, D), row-major; sq_dist N
    ///
    /// # Errors
    /// If the device fails.
    fn lower(&mut self, centroids: &[f32], sq_dist: &mut [f32]) -> Result<()>;

    /// Replaces each centroid that has rows by their mean. The rows of centroid c are
    /// `order[starts[c]..starts[c + 1]]`, ascending, and are summed in that order.
    ///
    /// # Shapes
    /// order N row indices, starts K + 1, centroids (K, D), row-major
    ///
    /// # Errors
    /// If the device fails.
    fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()>;
}

/// The context of a fit.
#[derive(Clone, Copy, Debug)]
pub struct FitContext<'a> {
    /// The seed of the run.
    pub seed: u64,
    /// The epoch, so that every fit has its own random numbers.
    pub epoch: u64,
    /// The clusterings of the previous fit, for a warm start; empty for the first fit.
    pub previous: &'a [Clustering],
    /// Class labels, if the data has them and the clusterer needs them.
    pub labels: Option<&'a [u32]>,
    /// The device for the long computations; `None` to use the host.
    pub device: Option<&'a dyn ClustersOnDevice>,
}

impl FitContext<'_> {
    /// Returns the context of the first fit of a run: epoch 0, no previous fit, no labels, on the host.
    pub const fn new(seed: u64) -> Self {
        FitContext { seed, epoch: 0, previous: &[], labels: None, device: None }
    }
}

/// A registered clusterer. Call [`fit`](Clusterer::fit), but implement [`fit_checked`](Clusterer::fit_checked).
pub trait Clusterer: Component {
    /// Checks the rows, and clusters them once per level.
    ///
    /// The result does not depend on the number of threads. On several ranks (see [`ClustersOnDevice::place`]), each
    /// passes its share of the rows and gets the whole result.
    ///
    /// # Shapes
    /// rows (N, D) → one [`Clustering`] per level
    ///
    /// # Errors
    /// If there are no rows or fewer rows than prototypes, there is no level, a feature is NaN or infinite, a row is too long
    /// for distances in `f32`, or [`fit_checked`](Clusterer::fit_checked) fails.
    fn fit(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let share = Share::of(rows, &context)?;
        check_rows(rows, share)?;
        let levels = self.prototypes();
        if levels.is_empty() {
            return Err(Error::config(
                "k is an empty list: give the number of prototypes of at least one level, such as k: [100]",
            ));
        }
        levels.into_iter().flatten().try_for_each(|k| check_count(k, share.of))?;
        match context.device.filter(|device| device.place().1 > 1 && !self.shares_rows()) {
            None => self.fit_checked(rows, context),
            Some(device) => {
                let all = all_values(device, rows)?;
                self.fit_checked(RowsView::new(&all, rows.cols), FitContext { device: None, ..context })
            }
        }
    }

    /// Clusters rows that [`fit`](Clusterer::fit) has checked: there are at least as many as
    /// [`prototypes`](Clusterer::prototypes), and all distances between them are finite in `f32`. They are all rows,
    /// unless [`shares_rows`](Clusterer::shares_rows) allows a share of them.
    ///
    /// # Shapes
    /// rows (N, D) → one [`Clustering`] per level
    ///
    /// # Errors
    /// If the settings do not fit the data, or the device fails.
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>>;

    /// Returns the number of prototypes of each level; `None` if it depends on the data.
    fn prototypes(&self) -> Vec<Option<usize>>;

    /// Returns whether [`FitContext::labels`] are needed.
    fn needs_labels(&self) -> bool {
        false
    }

    /// Returns whether [`fit_checked`](Clusterer::fit_checked) works on several ranks, each with its share of the rows.
    /// Otherwise every rank gets all rows, in its own memory, and clusters them alone.
    fn shares_rows(&self) -> bool {
        false
    }

    /// Returns the time of the first clustering.
    fn start(&self) -> TrainingSpan;

    /// Returns the interval between clusterings.
    fn every(&self) -> TrainingSpan;
}

/// The rows of one process among all that are clustered.
#[derive(Clone, Copy)]
struct Share {
    /// The number of the first row.
    first: usize,
    /// The number of all rows.
    of: usize,
}

impl Share {
    fn of(rows: RowsView<'_>, context: &FitContext<'_>) -> Result<Self> {
        let Some(device) = context.device.filter(|device| device.place().1 > 1) else {
            return Ok(Share { first: 0, of: rows.rows });
        };
        let counts = device.gather(&rows.rows.to_le_bytes())?;
        let counts = counts.into_iter().map(|bytes| bytes.try_into().map_or(0, usize::from_le_bytes));
        let counts: Vec<usize> = counts.collect();
        Ok(Share { first: counts.iter().take(device.place().0).sum(), of: counts.iter().sum() })
    }
}

/// Returns the values of the rows of all ranks, in their order.
fn all_values(device: &dyn ClustersOnDevice, rows: RowsView<'_>) -> Result<Vec<f32>> {
    let own: Vec<u8> = rows.data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let values = |bytes: Vec<u8>| bytes.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    let parts: Vec<Vec<f32>> = device.gather(&own)?.into_iter().map(values).collect();
    Ok(parts.concat())
}

/// Checks that there are rows, and that their distances are finite in `f32`.
fn check_rows(rows: RowsView<'_>, share: Share) -> Result<()> {
    let RowsView { data, rows: n, cols } = rows;
    if share.of == 0 || cols == 0 {
        return Err(Error::config(format!(
            "there is nothing to cluster: the features are {n}×{cols}; provide at least one sample and one column"
        )));
    }
    if n.checked_mul(cols) != Some(data.len()) {
        return Err(Error::shape("cluster", format!("{} values for features of {n}×{cols}", data.len())));
    }
    if share.of > u32::MAX as usize {
        let message = format!("{} samples are too many; expected at most {}", share.of, u32::MAX);
        return Err(Error::config(message));
    }
    // The distance between two rows is at most the sum of their lengths, so no squared distance exceeds four
    // times this.
    let limit = f64::from(f32::MAX) / 8.0;
    // NaN fails this test, too.
    let fits = |row: &[f32]| squared_length(row) <= limit;
    let bad = rows.iter().position(|row| !fits(row));
    let Some(place) = bad else { return Ok(()) };
    let (row, bad) = (rows.row(place), share.first + place);
    match row.iter().position(|v| !v.is_finite()) {
        Some(column) => Err(Error::NonFinite {
            what: "a feature to cluster".into(),
            place: Some(format!(
                "row {bad}, column {column}: {}; look for a diverged encoder or damaged input",
                row[column]
            )),
        }),
        None => Err(Error::config(format!(
            "row {bad} of the features is too long for distances in f32 (their squares overflow); normalize the \
             features"
        ))),
    }
}

/// Returns ‖x‖², in eight independent sums.
fn squared_length(row: &[f32]) -> f64 {
    let (chunks, rest) = row.as_chunks::<8>();
    let mut sums = [0.0f64; 8];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
}

/// Checks that `k` prototypes can be fitted to `n` samples.
fn check_count(k: usize, n: usize) -> Result<()> {
    if k > n {
        return Err(Error::config(format!(
            "{k} prototypes need at least as many samples, but there are {n}: lower k to {n} or less, or use more data"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clusterer without checks of its own.
    #[derive(Debug, serde::Serialize)]
    struct First(usize);

    impl Clusterer for First {
        fn fit_checked(&self, rows: RowsView<'_>, _: FitContext<'_>) -> Result<Vec<Clustering>> {
            Ok(vec![Clustering {
                k: 1,
                dim: rows.cols,
                centroids: rows.row(0).to_vec(),
                assignments: vec![Some(0); rows.rows],
                report: FitReport::default(),
            }])
        }
        fn prototypes(&self) -> Vec<Option<usize>> {
            vec![None, Some(self.0)]
        }
        fn start(&self) -> TrainingSpan {
            TrainingSpan::epochs(0)
        }
        fn every(&self) -> TrainingSpan {
            TrainingSpan::epochs(1)
        }
    }

    fn error(data: &[f32], rows: usize, cols: usize) -> String {
        let context = FitContext::new(0);
        First(1).fit(RowsView { data, rows, cols }, context).unwrap_err().to_string()
    }

    #[test]
    fn imbalance_runs_from_one_to_k() {
        assert_eq!(imbalance(&[3, 3, 3]), 1.0);
        assert_eq!(imbalance(&[9, 0, 0]), 3.0);
        assert_eq!(imbalance(&[2, 1]), 2.0 * 5.0 / 9.0);
        assert_eq!(imbalance(&[0, 0]), 1.0);
    }

    #[test]
    fn a_report_counts_sizes() {
        let report = FitReport::new(vec![5.0], [Some(0), None, Some(2), Some(0)], 4);
        // Sizes 2, 0, 1, 0.
        let imbalance = 4.0 * 5.0 / 9.0;
        let expected =
            FitReport { objective: vec![5.0], imbalance, empty: 2, noise: 1, ..FitReport::default() };
        assert_eq!(report, expected);
    }

    #[test]
    fn bad_features_are_named_for_any_clusterer() {
        assert!(error(&[], 0, 3).contains("nothing to cluster"));
        assert!(error(&[], 3, 0).contains("3×0"));
        assert!(error(&[0.0; 5], 2, 3).contains("5 values for features of 2×3"));
        assert!(error(&[0.0, 1.0, 2.0, f32::NAN], 2, 2).contains("row 1, column 1: NaN"));
        assert!(error(&[0.0, 1.0, f32::INFINITY, 0.0], 2, 2).contains("row 1, column 0: inf"));
        // In the remainder after the groups of eight, and within a group.
        for column in [3, 8] {
            let mut data = [0.0; 9];
            data[column] = f32::NAN;
            assert!(error(&data, 1, 9).contains(&format!("row 0, column {column}: NaN")));
        }
        assert!(error(&[1e30, 1.0], 1, 2).contains("normalize"));
        assert!(error(&[1.5e19, -1.5e19], 2, 1).contains("normalize"), "their squares are finite");
        let rows = RowsView { data: &[1.0; 6], rows: 2, cols: 3 };
        assert_eq!(First(2).fit(rows, FitContext::new(0)).unwrap()[0].centroids, [1.0; 3]);
        let text = First(3).fit(rows, FitContext::new(0)).unwrap_err().to_string();
        assert!(text.contains("3 prototypes need at least as many samples, but there are 2"), "{text}");
    }

    #[test]
    fn a_report_keeps_the_names_that_it_is_stored_under() {
        let stored = r#"{"objective":[2.0],"moved":[3],"splits_at":[1],"splits":1,"imbalance":1.0,"empty":0,"noise":0}"#;
        let report: FitReport = serde_json::from_str(stored).unwrap();
        assert_eq!((&report.reassigned[..], &report.empty_splits[..]), (&[3][..], &[1][..]));
        assert_eq!(serde_json::to_string(&report).unwrap(), stored);
        let older: FitReport = serde_json::from_str("{}").unwrap();
        assert_eq!(older, FitReport::default());
    }
}
