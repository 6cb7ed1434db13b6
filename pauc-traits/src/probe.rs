//! Probes: what is measured of a representation, beside the loss.

use crate::dataset::ImageSource;
use crate::registry::Component;
use crate::{Clustering, Count, Result, TrainingSpan};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// When a probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum When {
    /// After every so many epochs or steps, rounded up to the end of an epoch, and at the end.
    Every(TrainingSpan),
    /// Only at the end of the run.
    End,
}

/// A number with the protocol in its name, such as `knn/cos/k20/t0.07`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What was measured and how.
    pub name: String,
    /// The value; accuracies are fractions between 0 and 1.
    pub value: f64,
    /// What readers do with it.
    pub kind: MetricKind,
}

/// What a metric is to those who read it: tables, plots and warnings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// The share of the test split that is classified correctly. Closing tables, sweeps and reports show it, beside
    /// that of untrained representations.
    Accuracy,
    /// An accuracy at one of many settings. Only a table of all of them says something.
    GridAccuracy,
    /// Says more about the metric whose name its own name extends by `/` and one word, such as `/l2`.
    Detail,
    /// A detail: 1 if the fit behind a metric converged, 0 if it stopped before, which reports warn about.
    Converged,
    /// Any other number.
    Quantity,
}

impl MetricKind {
    /// The kind of a metric in a log that was written without kinds. Those logs hold the metrics of the probes of their
    /// time, whose names tell the kind.
    pub fn of_stored_name(name: &str) -> Self {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p));
        if name.ends_with("/converged") {
            MetricKind::Converged
        } else if begins(&["knn_grid/"]) {
            MetricKind::GridAccuracy
        } else if !begins(&["knn/", "linear/", "finetune/"]) {
            MetricKind::Quantity
        } else if name.ends_with("/l2") || name.ends_with("/lr") {
            MetricKind::Detail
        } else {
            MetricKind::Accuracy
        }
    }
}

impl Metric {
    /// A [`MetricKind::Quantity`].
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Metric { name: name.into(), value, kind: MetricKind::Quantity }
    }

    /// A [`MetricKind::Accuracy`], a fraction.
    pub fn accuracy(name: impl Into<String>, value: f64) -> Self {
        Metric { name: name.into(), value, kind: MetricKind::Accuracy }
    }

    /// A [`MetricKind::GridAccuracy`], a fraction.
    pub fn grid_accuracy(name: impl Into<String>, value: f64) -> Self {
        Metric { name: name.into(), value, kind: MetricKind::GridAccuracy }
    }

    /// A [`MetricKind::Detail`] `word` of the metric called `name`.
    pub fn detail(name: &str, word: &str, value: f64) -> Self {
        Metric { name: format!("{name}/{word}"), value, kind: MetricKind::Detail }
    }

    /// Whether the fit behind the metric called `name` converged: a [`MetricKind::Converged`].
    pub fn converged(name: &str, converged: bool) -> Self {
        let value = f64::from(u8::from(converged));
        Metric { name: format!("{name}/converged"), value, kind: MetricKind::Converged }
    }

    /// The name with `protocol` added to it. A detail's word stays last: `linear/l2` becomes `linear/protocol/l2`.
    pub fn with_protocol(mut self, protocol: &str) -> Self {
        let is_detail = matches!(self.kind, MetricKind::Detail | MetricKind::Converged);
        self.name = match self.name.rsplit_once('/').filter(|_| is_detail) {
            Some((metric, word)) => format!("{metric}/{protocol}/{word}"),
            None => format!("{}/{protocol}", self.name),
        };
        self
    }
}

/// Row vectors on the host: `rows` rows of `cols` values.
#[derive(Clone, Copy, Debug)]
pub struct RowsView<'a> {
    /// The values, row-major.
    pub data: &'a [f32],
    /// The number of rows.
    pub rows: usize,
    /// The length of a row.
    pub cols: usize,
}

impl<'a> RowsView<'a> {
    /// Rows over given values.
    ///
    /// # Shapes
    /// data rows·cols, row-major
    ///
    /// # Panics
    /// If the number of values is no multiple of `cols`: a bug of the caller.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} values in rows of {cols}", data.len());
        RowsView { data, rows: data.len() / cols, cols }
    }

    /// Row `i`.
    ///
    /// # Shapes
    /// cols
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// All rows.
    ///
    /// # Shapes
    /// rows slices of cols
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        self.data.chunks_exact(self.cols)
    }
}

/// One split as a probe sees it.
#[derive(Clone, Copy, Debug)]
pub struct SplitView<'a> {
    /// Features before the projector, from the evaluation view.
    pub features: RowsView<'a>,
    /// Projector outputs of the same images, unit length.
    pub embeddings: RowsView<'a>,
    /// Class labels, if there are any.
    pub labels: Option<&'a [u32]>,
    /// The images behind the rows, in their order, where they are at hand.
    pub images: Option<&'a Arc<dyn ImageSource>>,
}

/// What a probe may read.
#[derive(Clone, Copy, Debug)]
pub struct ProbeContext<'a> {
    /// The training split.
    pub train: SplitView<'a>,
    /// The test split, if there is one.
    pub test: Option<SplitView<'a>>,
    /// The number of classes.
    pub classes: usize,
    /// The current clusterings of the training split; empty before the first.
    pub levels: &'a [Clustering],
    /// Their concentrations φ, level by level.
    pub concentrations: &'a [Vec<f32>],
    /// The run's seed.
    pub seed: u64,
    /// The network that made the rows; none where they are no network's, such as pixels.
    pub network: Option<&'a dyn ProbedNetwork>,
    /// The device that takes the long computations over; none where the host does them.
    pub device: Option<&'a dyn ProbesOnDevice>,
}

/// The rows nearest to a query, nearest first: how near each is, and its number.
pub type Neighbors = Vec<(f32, u32)>;

/// What a device does for probes: the two computations that take longest. The rows come from the host, and results go back to it,
/// so that a probe is written for the host, and asks here first. Where the answer is `None`, it goes on as without a device.
pub trait ProbesOnDevice {
    /// The `k` rows of the bank with the highest score for each query: q·r, plus the row's `shift` where there is one. The
    /// highest comes first, and of equal ones the one with the lower number. All rows of a bank of fewer. `None` if the device
    /// does not take such a `k`.
    ///
    /// # Shapes
    /// queries (M, D), bank (N, D), shift N → M lists of scores and numbers
    ///
    /// # Errors
    /// If the device fails.
    fn highest(
        &self,
        queries: RowsView<'_>,
        bank: RowsView<'_>,
        shift: Option<&[f32]>,
        k: usize,
    ) -> Result<Option<Vec<Neighbors>>>;

    /// Takes a copy of labelled rows for softmax regression. `None` if the device has not the memory.
    ///
    /// # Shapes
    /// rows (N, D), labels N
    ///
    /// # Errors
    /// If the device fails.
    fn regression(
        &self,
        rows: RowsView<'_>,
        labels: &[u32],
        classes: usize,
    ) -> Result<Option<Box<dyn RegressionOnDevice>>>;
}

impl std::fmt::Debug for dyn ProbesOnDevice + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("device")
    }
}

/// N labelled rows of D values in a device's memory, and softmax regression on them: the logits of C classes are W·x + b. Weights
/// are the C rows of W, then b.
pub trait RegressionOnDevice {
    /// Σ x·xᵀ over all rows.
    ///
    /// # Shapes
    /// (D, D)
    ///
    /// # Errors
    /// If the device fails.
    fn scatter(&self) -> Result<Vec<f64>>;

    /// Σ −log softmax(W·x + b), at each label, over a range of rows; its gradient is written.
    ///
    /// # Shapes
    /// weights and gradient C·D + C
    ///
    /// # Errors
    /// If the device fails.
    fn loss(&self, rows: Range<usize>, weights: &[f32], gradient: &mut [f64]) -> Result<f64>;

    /// How many rows of a range have their largest logit, the first of equals, at their label.
    ///
    /// # Shapes
    /// weights C·D + C
    ///
    /// # Errors
    /// If the device fails.
    fn right(&self, rows: Range<usize>, weights: &[f32]) -> Result<usize>;
}

/// The views that a probe passes images through the network in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Views {
    /// The one deterministic view of evaluation.
    Evaluation,
    /// Random crops and flips as in the recipe's first view, without its other steps; another draw in every epoch.
    CropFlip,
}

impl Views {
    /// What the views add to a metric's name: nothing for the evaluation view, the usual case.
    pub fn suffix(self) -> &'static str {
        match self {
            Views::Evaluation => "",
            Views::CropFlip => "/crop-flip",
        }
    }
}

/// The network that is probed, for probes that pass images through it themselves. It stays as it is.
pub trait ProbedNetwork {
    /// The features of one epoch's views of all images, in their order.
    ///
    /// # Shapes
    /// N images → (N, F), row-major
    ///
    /// # Errors
    /// If an image cannot be read, the views do not fit the network, or the device fails.
    fn features(
        &self,
        images: &Arc<dyn ImageSource>,
        views: Views,
        seed: u64,
        epoch: u64,
    ) -> Result<Vec<f32>>;

    /// A copy of the encoder to be trained on shuffled batches of these images, none of its parameters frozen. Where
    /// there are fewer images than `batch`, a batch has all of them; an incomplete last batch of an epoch is left out.
    ///
    /// # Errors
    /// As [`ProbedNetwork::features`].
    fn tune(
        &self,
        images: &Arc<dyn ImageSource>,
        views: Views,
        batch: Count,
        epochs: u64,
        seed: u64,
    ) -> Result<Box<dyn Tuning>>;
}

impl std::fmt::Debug for dyn ProbedNetwork + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("network")
    }
}

/// A copy of an encoder while it is trained: [`Tuning::forward`], [`Tuning::backward`], and so on.
pub trait Tuning {
    /// Batches of an epoch.
    fn steps_per_epoch(&self) -> u64;

    /// The next batch through the encoder in training mode: the places of its images, and their features (B, F).
    ///
    /// # Errors
    /// If the batches are used up, an image cannot be read, or the device fails.
    fn forward(&mut self) -> Result<(Vec<u64>, Vec<f32>)>;

    /// Carries the gradient at the features of the last batch back through the encoder, and takes a step of stochastic
    /// gradient descent: v ← 0.9·v + g + `weight_decay`·w, w ← w − `lr`·v.
    ///
    /// # Shapes
    /// (B, F)
    ///
    /// # Errors
    /// If there was no batch, or the device fails.
    fn backward(&mut self, gradient: Vec<f32>, lr: f64, weight_decay: f64) -> Result<()>;

    /// The features of evaluation views, as they are by now.
    ///
    /// # Shapes
    /// N images → (N, F), row-major
    ///
    /// # Errors
    /// If an image cannot be read, or the device fails.
    fn features(&mut self, images: &Arc<dyn ImageSource>) -> Result<Vec<f32>>;
}

/// A registered probe.
pub trait Probe: Component {
    /// When it runs.
    fn when(&self) -> When;

    /// Whether it needs class labels; a run without labels refuses such a probe before it starts.
    fn needs_labels(&self) -> bool;

    /// Whether it reads the clusterings of the training split, [`ProbeContext::levels`].
    fn reads_prototypes(&self) -> bool {
        false
    }

    /// Whether its settings go together: asked before a run starts, that it does not fail at its end.
    ///
    /// # Errors
    /// What does not, and what to do.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Measures. A probe with nothing to measure yet (no clustering, say) returns nothing.
    ///
    /// # Errors
    /// If the settings cannot be used, rows and labels do not fit, a value is not finite, or the network or
    /// the device fails.
    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_stored_metrics_follow_from_their_names() {
        let names = [
            "knn/cos/k20/t0.07",
            "linear/lbfgs/standardised",
            "linear/lbfgs/standardised/l2",
            "linear/lbfgs/standardised/labels1%/converged",
            "rankme/features",
            "linear/sgd/e100/b256/step0.1/lr",
            "finetune/e20/b256/step0.2/crop-flip/lr0.01/head0.1/wd0.0005/labels1%",
            "knn_grid/l2/k20/t0.07",
            "clusters/k10/accuracy",
        ];
        use MetricKind::{Accuracy, Converged, Detail, GridAccuracy, Quantity};
        let want =
            [Accuracy, Accuracy, Detail, Converged, Quantity, Detail, Accuracy, GridAccuracy, Quantity];
        assert_eq!(names.map(MetricKind::of_stored_name), want);
    }

    #[test]
    fn a_protocol_stands_before_the_word_of_a_detail() {
        let named = |metric: Metric| metric.with_protocol("labels1%").name;
        assert_eq!(named(Metric::accuracy("linear", 0.5)), "linear/labels1%");
        assert_eq!(named(Metric::detail("linear", "l2", 0.1)), "linear/labels1%/l2");
        assert_eq!(named(Metric::converged("linear", true)), "linear/labels1%/converged");
        assert_eq!(named(Metric::grid_accuracy("knn_grid/l2", 0.5)), "knn_grid/l2/labels1%");
    }
}
