//! Probes: what is measured of a representation, beside the loss.

use crate::registry::Component;
use crate::{Clustering, Result, Span};
use serde::{Deserialize, Serialize};

/// When a probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum When {
    /// After every so many epochs or steps, rounded up to the end of an epoch, and at the end.
    Every(Span),
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
}

impl Metric {
    /// A metric of that name.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Metric { name: name.into(), value }
    }
}

/// Row vectors on the host: `rows` rows of `cols` values.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The values, row-major.
    pub data: &'a [f32],
    /// The number of rows.
    pub rows: usize,
    /// The length of a row.
    pub cols: usize,
}

impl<'a> Rows<'a> {
    /// Rows over given values.
    ///
    /// # Panics
    /// If the number of values is no multiple of `cols`: a bug of the caller.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} values in rows of {cols}", data.len());
        Rows { data, rows: data.len() / cols, cols }
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// All rows.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        self.data.chunks_exact(self.cols)
    }
}

/// One split as a probe sees it.
#[derive(Clone, Copy, Debug)]
pub struct SplitView<'a> {
    /// Features before the projector, from the evaluation view.
    pub features: Rows<'a>,
    /// Projector outputs of the same images, unit length.
    pub embeddings: Rows<'a>,
    /// Class labels, if there are any.
    pub labels: Option<&'a [u32]>,
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
}

/// A registered probe.
pub trait Probe: Component {
    /// When it runs.
    fn when(&self) -> When;

    /// Whether it needs class labels; a run without labels refuses such a probe before it starts.
    fn needs_labels(&self) -> bool;

    /// Measures. A probe with nothing to measure yet (no clustering, say) returns nothing.
    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>>;
}
