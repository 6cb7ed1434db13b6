//! Probes: measurements of a representation, in addition to the loss.

use crate::dataset::{ImageSource, Splits};
use crate::registry::Component;
use crate::{Clustering, Count, DecayFactor, Result, TrainingSpan};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// The times at which a probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum When {
    /// At this interval, rounded up to the end of an epoch, and at the end.
    Every(TrainingSpan),
    /// Only at the end of the run.
    End,
}

/// A number whose name includes the protocol, such as `knn/cos/k20/t0.07`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What was measured, and how.
    pub name: String,
    /// The value; accuracies are fractions between 0 and 1.
    pub value: f64,
    /// How readers treat it.
    pub kind: MetricKind,
}

/// How tables, plots and warnings treat a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// The fraction of the test split, or of held-out training images, that is classified correctly. Closing tables,
    /// sweeps and reports show it, beside that of untrained representations.
    Accuracy,
    /// An accuracy at one of many settings. Only the table of all settings is meaningful.
    GridAccuracy,
    /// A detail of another metric. Its name is that metric's name, `/` and one word, such as `/l2`.
    Detail,
    /// A detail: 1 if the fit behind a metric converged, 0 if it stopped earlier. Reports warn about the
    /// latter.
    Converged,
    /// Any other number.
    Quantity,
}

/// The word in the name of a metric that was measured on held-out training images.
pub const HELD_OUT: &str = "heldout";

/// Returns whether the metric of this name may depend on the test split. Metrics of `HeldOut`, `Rank` and
/// `Coagulation` do not. Every other name counts as one that does, also if the data has no test split.
pub fn may_read_test_split(metric: &str) -> bool {
    let mut parts = metric.split('/');
    let reads_training_split =
        parts.next().is_some_and(|probe| ["rankme", "spread", "coagulation"].contains(&probe));
    !reads_training_split && !parts.any(|part| part == HELD_OUT)
}

impl MetricKind {
    /// Returns the kind of a metric in a log that was written without kinds. Such logs contain metrics of the
    /// probes of their time, whose names determine the kind.
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
    /// Returns a [`MetricKind::Quantity`].
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Metric { name: name.into(), value, kind: MetricKind::Quantity }
    }

    /// Returns a [`MetricKind::Accuracy`], a fraction.
    pub fn accuracy(name: impl Into<String>, value: f64) -> Self {
        Metric { name: name.into(), value, kind: MetricKind::Accuracy }
    }

    /// Returns a [`MetricKind::GridAccuracy`], a fraction.
    pub fn grid_accuracy(name: impl Into<String>, value: f64) -> Self {
        Metric { name: name.into(), value, kind: MetricKind::GridAccuracy }
    }

    /// Returns the [`MetricKind::Detail`] `word` of the metric `name`.
    pub fn detail(name: &str, word: &str, value: f64) -> Self {
        Metric { name: format!("{name}/{word}"), value, kind: MetricKind::Detail }
    }

    /// Returns whether the fit behind the metric `name` converged, as a [`MetricKind::Converged`].
    pub fn converged(name: &str, converged: bool) -> Self {
        let value = f64::from(u8::from(converged));
        Metric { name: format!("{name}/converged"), value, kind: MetricKind::Converged }
    }

    /// Adds `protocol` to the name. The word of a detail stays last: `linear/l2` becomes
    /// `linear/protocol/l2`.
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
    /// Builds rows from values.
    ///
    /// # Shapes
    /// data rows·cols values, row-major
    ///
    /// # Panics
    /// If the number of values is not a multiple of `cols`, which is a bug of the caller.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} values in rows of {cols}", data.len());
        RowsView { data, rows: data.len() / cols, cols }
    }

    /// Returns row `i`.
    ///
    /// # Shapes
    /// cols values
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// Iterates over all rows.
    ///
    /// # Shapes
    /// rows slices of cols values
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        self.data.chunks_exact(self.cols)
    }
}

/// One split of a dataset, as a probe sees it.
#[derive(Clone, Copy, Debug)]
pub struct SplitView<'a> {
    /// Features before the projector, from the evaluation view.
    pub features: RowsView<'a>,
    /// Projector outputs of the same images, unit length.
    pub embeddings: RowsView<'a>,
    /// Class labels, if there are any.
    pub labels: Option<&'a [u32]>,
    /// The images of the rows, in the same order, if they are available.
    pub images: Option<&'a Arc<dyn ImageSource>>,
}

/// The inputs of a probe.
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
    /// The seed of the run.
    pub seed: u64,
    /// The network that computed the rows; `None` if there is none, as for pixels.
    pub network: Option<&'a dyn ProbedNetwork>,
    /// The device for the long computations; `None` to use the host.
    pub device: Option<&'a dyn ProbesOnDevice>,
}

/// The nearest rows of a query, nearest first: the score and the index of each.
pub type Neighbors = Vec<(f32, u32)>;

/// The operations of a device for probes: the two computations that take longest. Rows come from the host,
/// and results return to it. A probe is written for the host and asks the device first; if the answer is
/// `None`, it continues on the host.
pub trait ProbesOnDevice {
    /// Returns the `k` rows of the bank with the highest score for each query: q·r, plus the `shift` of the
    /// row if there is one. The highest score comes first; ties go to the lower index. A bank with fewer rows
    /// returns all of them. Returns `None` if the device does not support this `k`.
    ///
    /// # Shapes
    /// queries (M, D), bank (N, D), shift N → M lists of scores and indices
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

    /// Copies labeled rows to the device for softmax regression. Returns `None` if its memory is too small.
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

/// N labeled rows of D values on a device, and softmax regression on them: the logits of C classes are W·x +
/// b. Weights are the C rows of W, then b.
pub trait RegressionOnDevice {
    /// Returns Σ x·xᵀ over all rows.
    ///
    /// # Shapes
    /// (D, D)
    ///
    /// # Errors
    /// If the device fails.
    fn scatter(&self) -> Result<Vec<f64>>;

    /// Returns Σ −log softmax(W·x + b), at each label, over a range of rows, and writes its gradient.
    ///
    /// # Shapes
    /// weights and gradient C·D + C values
    ///
    /// # Errors
    /// If the device fails.
    fn loss(&self, rows: Range<usize>, weights: &[f32], gradient: &mut [f64]) -> Result<f64>;

    /// Returns the number of rows in a range whose largest logit, the first if tied, is at their label.
    ///
    /// # Shapes
    /// weights C·D + C values
    ///
    /// # Errors
    /// If the device fails.
    fn right(&self, rows: Range<usize>, weights: &[f32]) -> Result<usize>;
}

/// The views in which a probe passes images through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Views {
    /// The deterministic evaluation view.
    Evaluation,
    /// Random crops and flips as in the recipe's first view, without its other steps; drawn anew in every
    /// epoch.
    CropFlip,
}

impl Views {
    /// Returns the suffix for a metric's name: nothing for the evaluation view, the usual case.
    pub fn suffix(self) -> &'static str {
        match self {
            Views::Evaluation => "",
            Views::CropFlip => "/crop-flip",
        }
    }
}

/// The probed network, for probes that pass images through it themselves. It is not changed.
pub trait ProbedNetwork {
    /// Returns the features of all images in the views of one epoch, in order.
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

    /// Returns a copy of the encoder for training on shuffled batches of these images, with no parameter
    /// frozen. If there are fewer images than `batch`, a batch contains all of them. An incomplete last batch
    /// of an epoch is left out.
    ///
    /// # Errors
    /// The errors of [`ProbedNetwork::features`], or if there is a `layer_decay` and the encoder does not say how deep
    /// its layers are.
    fn tune(&self, images: &Arc<dyn ImageSource>, options: TuningOptions) -> Result<Box<dyn Tuning>>;
}

/// How a copy of the encoder is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuningOptions {
    /// The views of the images.
    pub views: Views,
    /// The number of images in a batch.
    pub batch: Count,
    /// Passes through all images.
    pub epochs: u64,
    /// The factor between the learning rates of adjacent layers; see [`LayerDepths`].
    ///
    /// [`LayerDepths`]: crate::encoder::LayerDepths
    pub layer_decay: DecayFactor,
    /// The seed of the views, the order and the encoder's random decisions.
    pub seed: u64,
}

impl std::fmt::Debug for dyn ProbedNetwork + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("network")
    }
}

/// A copy of an encoder during training: alternate [`Tuning::forward`] and [`Tuning::backward`].
pub trait Tuning {
    /// Returns the number of batches per epoch.
    fn steps_per_epoch(&self) -> u64;

    /// Passes the next batch through the encoder in training mode. Returns the indices of its images, and
    /// their features (B, F).
    ///
    /// # Errors
    /// If no batches are left, an image cannot be read, or the device fails.
    fn forward(&mut self) -> Result<(Vec<u64>, Vec<f32>)>;

    /// Propagates the gradient at the features of the last batch back through the encoder, and takes a step
    /// of stochastic gradient descent: v ← 0.9·v + g + `weight_decay`·w, w ← w − `lr`·v.
    ///
    /// # Shapes
    /// (B, F)
    ///
    /// # Errors
    /// If there was no batch, or the device fails.
    fn backward(&mut self, gradient: Vec<f32>, lr: f64, weight_decay: f64) -> Result<()>;

    /// Returns the features of evaluation views, with the current weights.
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
    /// Returns the times at which it runs.
    fn when(&self) -> When;

    /// Returns whether it needs class labels. A run without labels rejects such a probe before it starts.
    fn needs_labels(&self) -> bool;

    /// Returns whether it reads the clusterings of the training split, [`ProbeContext::levels`].
    fn reads_prototypes(&self) -> bool {
        false
    }

    /// Returns whether it reads the test split, [`ProbeContext::test`].
    fn reads_test_split(&self) -> bool {
        true
    }

    /// Checks the settings before the run, so that bad settings fail early.
    ///
    /// # Errors
    /// If settings conflict; the error names them and the remedy.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Checks the settings against the sizes of the splits, so that settings that cannot work fail early.
    ///
    /// # Errors
    /// If a setting does not fit the splits; the error names it and the remedy.
    fn check_settings(&self, _splits: &Splits) -> Result<()> {
        Ok(())
    }

    /// Checks whether these splits are large enough, so that a recipe is warned of a probe that will measure nothing.
    ///
    /// # Errors
    /// If [`measure`](Probe::measure) would fail because of the number of images or of their labels.
    fn check_splits(&self, _splits: &Splits) -> Result<()> {
        Ok(())
    }

    /// Measures. A probe with nothing to measure yet (for example, no clustering) returns nothing.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if these rows cannot be measured: a run leaves the probe out, with a
    /// warning. Other errors end the run: rows and labels do not fit, a value is NaN or infinite, the network or the
    /// device fails.
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
    fn a_protocol_precedes_the_word_of_a_detail() {
        let named = |metric: Metric| metric.with_protocol("labels1%").name;
        assert_eq!(named(Metric::accuracy("linear", 0.5)), "linear/labels1%");
        assert_eq!(named(Metric::detail("linear", "l2", 0.1)), "linear/labels1%/l2");
        assert_eq!(named(Metric::converged("linear", true)), "linear/labels1%/converged");
        assert_eq!(named(Metric::grid_accuracy("knn_grid/l2", 0.5)), "knn_grid/l2/labels1%");
    }
}
