//! Clusterers: features in, prototypes out.

use crate::registry::Component;
use crate::{Compute, Result, TrainingSpan};

/// The features to cluster: N rows of D values in the device's memory, row-major.
#[derive(Clone, Copy)]
pub struct Features<'a, D: Compute> {
    /// The device that holds them.
    pub device: &'a D,
    /// The N·D values.
    pub data: D::View<'a>,
    /// N.
    pub rows: usize,
    /// D.
    pub cols: usize,
}

/// One clustering of N samples into K prototypes.
#[derive(Clone, Debug, PartialEq)]
pub struct Clustering {
    /// K.
    pub k: usize,
    /// D.
    pub dim: usize,
    /// The K·D centroids as the clusterer left them (not unit length unless it says so).
    pub centroids: Vec<f32>,
    /// Each sample's prototype; `None` for noise, which prototype terms leave out.
    pub assignments: Vec<Option<u32>>,
    /// How the fit went.
    pub report: FitReport,
}

/// How a fit went.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct FitReport {
    /// The objective Σ‖x − c‖² before each update, and at the end.
    pub objective: Vec<f64>,
    /// Samples whose prototype changed since the update before, at each update (all at the first). Empty where the
    /// method does not follow it.
    pub moved: Vec<usize>,
    /// Empty clusters refilled at each update. Empty where the method does not follow it.
    pub splits_at: Vec<usize>,
    /// Empty clusters refilled by splitting a large one, over all iterations.
    pub splits: usize,
    /// K·Σ size² / n²: 1 when all prototypes have the same size.
    pub imbalance: f64,
    /// Prototypes without samples at the end.
    pub empty: usize,
    /// Samples that belong to no prototype.
    pub noise: usize,
}

/// Rows in a device's memory, and what is done with them there for a clusterer that otherwise works on the host.
pub trait RowsOnDevice {
    /// Each row's nearest centroid, the lowest among equals, and its squared distance.
    ///
    /// # Shapes
    /// centroids (K, D), row-major → N numbers, N distances
    ///
    /// # Errors
    /// If the device fails.
    fn nearest(&mut self, centroids: &[f32]) -> Result<(Vec<u32>, Vec<f32>)>;

    /// Lowers each row's `square` to the squared distance to the nearest of these centroids, where that is lower.
    ///
    /// # Shapes
    /// centroids (K, D), row-major; square N
    ///
    /// # Errors
    /// If the device fails.
    fn lower(&mut self, centroids: &[f32], square: &mut [f32]) -> Result<()>;

    /// Replaces each centroid that has rows by their mean. The rows of centroid c are `order[starts[c]..starts[c + 1]]`, and
    /// are summed in that order.
    ///
    /// # Errors
    /// If the device fails.
    fn means(&mut self, order: &[u32], starts: &[usize], centroids: &mut [f32]) -> Result<()>;
}

/// What a fit starts from.
#[derive(Clone, Copy, Debug)]
pub struct FitContext<'a> {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, so that every fit has random numbers of its own.
    pub epoch: u64,
    /// The clusterings of the fit before, for a warm start; empty the first time.
    pub previous: &'a [Clustering],
    /// Class labels, where the data has them and the clusterer asks for them.
    pub labels: Option<&'a [u32]>,
}

/// A registered clusterer.
pub trait Clusterer<D: Compute>: Component {
    /// Clusters the features, once for each level.
    ///
    /// The result does not depend on the number of threads.
    ///
    /// # Shapes
    /// features (N, D) → one [`Clustering`] for each level
    ///
    /// # Errors
    /// If there are fewer samples than prototypes, a feature is not finite, or the device fails.
    fn fit(&self, features: Features<'_, D>, context: FitContext<'_>) -> Result<Vec<Clustering>>;

    /// The number of prototypes of each level, as far as known before a fit.
    fn prototypes(&self) -> Vec<Option<usize>>;

    /// Whether [`FitContext::labels`] are needed.
    fn needs_labels(&self) -> bool {
        false
    }

    /// When the first clustering happens.
    fn start(&self) -> TrainingSpan;

    /// How long a clustering is kept.
    fn every(&self) -> TrainingSpan;
}

/// What is asked of a clusterer before it fits anything: the same on every device.
impl crate::Configured<crate::registry::kind::Clusterer> {
    fn anywhere(&self) -> &dyn Clusterer<dfdx::prelude::Cpu> {
        dfdx::prelude::Cpu::clusterer(&*self.value)
    }

    /// [`Clusterer::prototypes`].
    pub fn prototypes(&self) -> Vec<Option<usize>> {
        self.anywhere().prototypes()
    }

    /// [`Clusterer::needs_labels`].
    pub fn needs_labels(&self) -> bool {
        self.anywhere().needs_labels()
    }

    /// [`Clusterer::start`].
    pub fn start(&self) -> TrainingSpan {
        self.anywhere().start()
    }

    /// [`Clusterer::every`].
    pub fn every(&self) -> TrainingSpan {
        self.anywhere().every()
    }
}
