//! k-means.

use crate::lloyd::{Fit, Lloyd, report};
use crate::nearest::nearest;
use crate::on_ranks::Rows;
use crate::seeding::{Init, some_of};
use crate::unit_rows;
use pauc_kernels::distance::{Packed, squared_distance};
use pauc_traits::clusterer::{ClustersOnDevice, FitContext, FitReport, RowsOnDevice};
use pauc_traits::probe::RowsView;
use pauc_traits::rng::{Purpose, Stream, stream};
use pauc_traits::{Clusterer, Clustering, Count, Error, NonNegative, Result, TrainingSpan, component};

component! {
    /// k-means: prototypes that minimize the inertia Σ‖x − c‖² over the samples, one clustering per k.
    ///
    /// Lloyd's algorithm. An empty cluster is refilled by splitting another (drawn with probability ∝ its
    /// size − 1; coordinates times 1 ± 1/1024 alternately), as in faiss. Every sample ends with its nearest
    /// final centroid. If k is the number of samples, the centroids are copies of them; a larger k is an
    /// error. All samples are used unless `max_points_per_centroid` is set.
    ///
    /// With `spherical`, centroids are scaled to unit length after each update. A centroid that is zero stays
    /// zero, and a sample of zeros goes to the lowest-numbered of equally near centroids.
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    ///
    /// Source: Lloyd 1982; Johnson, Douze & Jégou 2017 (faiss), whose defaults PCL uses.
    pub struct KMeans: Clusterer {
        /// The number of prototypes of each level. A recipe that leaves it out gets numbers that follow its
        /// images and its batch.
        pub k: Vec<Count> = Vec::new(),
        /// The maximum number of iterations. The fit stops early at convergence.
        pub iterations: Count = Count::lit(20),
        /// The number of restarts (scikit-learn's `n_init`). The fit with the lowest inertia is kept.
        pub redos: Count = Count::lit(1),
        /// How the first centroids are chosen: KMeansPlusPlus or Random.
        pub init: Init = Init::KMeansPlusPlus,
        /// Whether centroids are scaled to unit length.
        pub spherical: bool = false,
        /// Stops when an iteration lowers the inertia by no more than this fraction.
        pub tolerance: NonNegative = NonNegative::lit(0.0),
        /// Whether the first fit of each level starts from the last clustering of the same size.
        pub warm_start: bool = false,
        /// The minimum number of samples per prototype; with fewer, the fit fails.
        pub min_points_per_centroid: Option<Count> = None,
        /// The maximum number of samples per prototype. With more, the fit uses a random subset (the reported
        /// objectives are those of the subset) and then assigns all samples.
        pub max_points_per_centroid: Option<Count> = None,
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// The interval between clusterings.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl KMeans {
    /// Creates a k-means for these k, with the defaults of a recipe.
    ///
    /// # Examples
    ///
    /// ```
    /// use pauc_cluster::KMeans;
    /// use pauc_traits::clusterer::{Clusterer, FitContext};
    /// use pauc_traits::{Count, probe::RowsView};
    ///
    /// // Five samples of one dimension, in two groups.
    /// let rows = RowsView::new(&[0.0, 0.2, 9.0, 0.1, 9.3], 1);
    /// let levels = KMeans::with(vec![Count::lit(2)]).fit(rows, FitContext::new(0))?;
    ///
    /// let assignments: Vec<u32> = levels[0].assignments.iter().flatten().copied().collect();
    /// println!("{assignments:?}");
    /// assert!(assignments == [0, 0, 1, 0, 1] || assignments == [1, 1, 0, 1, 0]);
    /// # Ok::<(), pauc_traits::Error>(())
    /// ```
    pub fn with(k: Vec<Count>) -> Self {
        KMeans { k, ..KMeans::default() }
    }
}

impl Clusterer for KMeans {
    fn fit_checked(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let rows = &Rows::of(rows, &context)?;
        // Without subsets, all levels share one copy of the rows on the device.
        let mut shared = match self.max_points_per_centroid {
            None => Some(PlacedRows::new(rows.clone(), context.device)?),
            Some(_) => None,
        };
        let mut levels = Vec::with_capacity(self.k.len());
        for (level, k) in (0..).zip(&self.k) {
            let fit = LevelFit { options: self, rows, context, level, k: k.get() };
            levels.push(fit.run(shared.as_mut())?);
        }
        Ok(levels)
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        self.k.iter().map(|k| Some(k.get())).collect()
    }
    fn shares_rows(&self) -> bool {
        true
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

/// Rows, and the host or device memory that they are searched in.
struct PlacedRows<'a> {
    rows: Rows<'a>,
    device: Option<Box<dyn RowsOnDevice + 'a>>,
}

impl<'a> PlacedRows<'a> {
    /// Copies rows to the device if there is one and it accepts them.
    fn new(rows: Rows<'a>, device: Option<&'a dyn ClustersOnDevice>) -> Result<Self> {
        let device = device.map(|device| device.rows(rows.own())).transpose()?.flatten();
        Ok(PlacedRows { rows, device })
    }

    /// Chooses the first k centroids.
    fn choose(&mut self, init: Init, k: usize, rng: &mut Stream) -> Result<Vec<f32>> {
        let chosen = match &mut self.device {
            Some(device) => init.choose_on(&mut **device, &self.rows, k, rng)?,
            None => init.choose(self.rows.own(), k, rng)?,
        };
        self.rows.gather(&chosen)
    }

    /// Runs Lloyd's iteration from given centroids.
    fn iterate(&mut self, lloyd: Lloyd, centroids: Vec<f32>, rng: &mut Stream) -> Result<Fit> {
        match &mut self.device {
            Some(device) => lloyd.run_on(&mut **device, self.rows.cols(), centroids, rng),
            None => lloyd.run(self.rows.own(), centroids, rng),
        }
    }

    /// Returns the nearest centroid of each row.
    fn assign(&mut self, centroids: &[f32]) -> Result<Vec<u32>> {
        if let Some(device) = &mut self.device {
            device.begin();
            return Ok(device.nearest(centroids)?.0);
        }
        let rows = self.rows.own();
        let RowsView { rows: n, cols, .. } = rows;
        let mut labels = vec![0; n];
        let packed = Packed::new(centroids, cols);
        nearest(rows, &packed, centroids.len() / cols, &mut labels, &mut vec![0.0; n])?;
        Ok(labels)
    }
}

/// One level of a fit.
struct LevelFit<'a> {
    options: &'a KMeans,
    rows: &'a Rows<'a>,
    context: FitContext<'a>,
    level: u64,
    k: usize,
}

/// The purposes of a level's random numbers.
#[derive(Clone, Copy)]
enum Draw {
    Seeding,
    Splits,
    Subset,
}

impl LevelFit<'_> {
    /// Fits the level to the `shared` rows, or to its own subset.
    fn run(&self, shared: Option<&mut PlacedRows<'_>>) -> Result<Clustering> {
        self.check_size()?;
        if self.k == self.rows.len() {
            return self.copies();
        }
        if let Some(rows) = shared {
            return Ok(self.clustering(self.best_of(rows)?));
        }
        let device = self.context.device;
        match self.subset() {
            None => Ok(self.clustering(self.best_of(&mut PlacedRows::new(self.rows.clone(), device)?)?)),
            Some(subset) => {
                let subset = Rows::of(RowsView::new(&subset, self.rows.cols()), &self.context)?;
                // The subset must leave the device before all rows are copied there.
                let fit = self.best_of(&mut PlacedRows::new(subset, device)?)?;
                let labels = PlacedRows::new(self.rows.clone(), device)?.assign(&fit.centroids)?;
                Ok(self.clustering(Fit { labels, ..fit }))
            }
        }
    }

    /// Checks that there are enough samples per prototype.
    fn check_size(&self) -> Result<()> {
        let Some(least) = self.options.min_points_per_centroid.map(Count::get) else { return Ok(()) };
        let (k, n, needed) = (self.k, self.rows.len(), least.saturating_mul(self.k));
        if n < needed {
            return Err(Error::config(format!(
                "{k} prototypes of at least {least} samples need {needed}, but there are {n}: lower k or \
                 min_points_per_centroid"
            )));
        }
        Ok(())
    }

    fn random(&self, restart: usize, draw: Draw) -> Stream {
        let view = restart as u64 * 3 + draw as u64;
        stream(self.context.seed, Purpose::Cluster, self.context.epoch, self.level, view)
    }

    /// Returns each sample as a prototype of its own.
    fn copies(&self) -> Result<Clustering> {
        let (k, dim) = (self.k, self.rows.cols());
        let rows = self.rows.all()?;
        let mut centroids = rows.to_vec();
        if self.options.spherical {
            unit_rows(&mut centroids, dim);
        }
        let pairs = rows.chunks_exact(dim).zip(centroids.chunks_exact(dim));
        let objective = vec![pairs.map(|(x, c)| squared_distance(x, c) as f64).sum()];
        let assignments: Vec<Option<u32>> = (0..k as u32).map(Some).collect();
        let report = report(objective, 0, assignments.iter().copied(), k);
        Ok(Clustering { k, dim, centroids, assignments, report })
    }

    /// Returns those samples to fit to that this process holds, row-major. `None`: the fit uses all samples.
    fn subset(&self) -> Option<Vec<f32>> {
        let size = self.options.max_points_per_centroid?.get().saturating_mul(self.k);
        let n = self.rows.len();
        (size < n).then(|| self.rows.part(&some_of(n, size, &mut self.random(0, Draw::Subset))))
    }

    /// Returns the fit with the lowest inertia among the restarts.
    fn best_of(&self, rows: &mut PlacedRows<'_>) -> Result<Fit> {
        let mut best = self.fit_from(rows, 0)?;
        for restart in 1..self.options.redos.get() {
            let fit = self.fit_from(rows, restart)?;
            if fit.objective.last() < best.objective.last() {
                best = fit;
            }
        }
        Ok(best)
    }

    /// Runs one fit from its own start.
    fn fit_from(&self, rows: &mut PlacedRows<'_>, restart: usize) -> Result<Fit> {
        let options = self.options;
        let lloyd = Lloyd {
            iterations: options.iterations.get(),
            spherical: options.spherical,
            tolerance: options.tolerance.get(),
        };
        let centroids = match self.warm_start().filter(|_| restart == 0) {
            Some(previous) => previous.centroids.clone(),
            None => rows.choose(options.init, self.k, &mut self.random(restart, Draw::Seeding))?,
        };
        rows.iterate(lloyd, centroids, &mut self.random(restart, Draw::Splits))
    }

    /// Returns the previous clustering to start from, if any.
    fn warm_start(&self) -> Option<&Clustering> {
        let fits = |c: &&Clustering| c.k == self.k && c.dim == self.rows.cols();
        self.context.previous.iter().find(fits).filter(|_| self.options.warm_start)
    }

    fn clustering(&self, fit: Fit) -> Clustering {
        let Fit { centroids, labels, objective, reassigned, empty_splits, .. } = fit;
        let assignments: Vec<Option<u32>> = labels.into_iter().map(Some).collect();
        let report = report(objective, empty_splits.iter().sum(), assignments.iter().copied(), self.k);
        let report = FitReport { reassigned, empty_splits, ..report };
        Clustering { k: self.k, dim: self.rows.cols(), centroids, assignments, report }
    }
}
