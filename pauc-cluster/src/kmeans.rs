//! k-means.

use crate::host_clusterer::{checked, enough};
use crate::lloyd::{Fit, Lloyd, report};
use crate::seeding::{Init, gather, some_of};
use crate::{HostClusterer, unit_rows};
use pauc_kernels::distance::{Packed, nearest};
use pauc_traits::clusterer::{FitContext, FitReport, RowsOnDevice};
use pauc_traits::probe::RowsView;
use pauc_traits::rng::{Purpose, stream};
use pauc_traits::{
    Clusterer, Clustering, Compute, Count, Error, Features, NonNegative, Result, TrainingSpan, component,
};

component! {
    /// k-means: prototypes that minimise Σ‖x − c‖² over the samples, one clustering for each k.
    ///
    /// Lloyd's algorithm. A cluster that runs empty is refilled by splitting another (drawn with probability ∝ its
    /// size − 1; coordinates times 1 ± 1/1024 alternately), as in faiss. Every sample ends with its nearest final
    /// centroid. k equal to the number of samples gives copies of them; a larger k is an error. All samples are
    /// used unless `max_points_per_centroid` says otherwise.
    ///
    /// With `spherical`, centroids are scaled to unit length after each update; a centroid that is zero stays zero,
    /// and a zero sample goes to the lowest-numbered of its equally near centroids.
    ///
    /// # Shapes
    /// features (N, D) → for each k: centroids (k, D), N assignments
    ///
    /// Source: Lloyd 1982; Johnson, Douze & Jégou 2017 (faiss), whose defaults PCL uses.
    pub struct KMeans: Clusterer {
        /// The number of prototypes of each level.
        pub k: Vec<Count>,
        /// Updates at most; ends earlier where an update changes nothing.
        pub iterations: Count = Count::lit(20),
        /// Fits from different starts; the one with the lowest objective is kept.
        pub redos: Count = Count::lit(1),
        /// How the first centroids are chosen: KMeansPlusPlus or Random.
        pub init: Init = Init::KMeansPlusPlus,
        /// Whether centroids have unit length.
        pub spherical: bool = false,
        /// Ends when an update lowers the objective by no more than this share of it.
        pub tolerance: NonNegative = NonNegative::lit(0.0),
        /// Whether the first fit of each level starts from the last clustering of the same size.
        pub warm_start: bool = false,
        /// Refuses to fit with fewer samples a prototype.
        pub min_points_per_centroid: Option<Count> = None,
        /// Fits on a random subset of so many samples a prototype (the objectives reported are the subset's), then
        /// assigns all.
        pub max_points_per_centroid: Option<Count> = None,
        /// When the first clustering happens.
        pub start: TrainingSpan = TrainingSpan::epochs(2),
        /// How long a clustering is kept.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl<D: Compute> Clusterer<D> for KMeans {
    fn fit(&self, features: Features<'_, D>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        let data = features.device.host_view(features.data)?;
        let rows = checked(&data, features.rows, features.cols)?;
        self.levels(rows, context, &|rows| features.device.rows_on_device(rows.data, rows.cols))
    }
    fn prototypes(&self) -> Vec<Option<usize>> {
        self.k.iter().map(|k| Some(k.get())).collect()
    }
    fn start(&self) -> TrainingSpan {
        self.start
    }
    fn every(&self) -> TrainingSpan {
        self.every
    }
}

impl HostClusterer for KMeans {
    fn fit_rows(&self, rows: RowsView<'_>, context: FitContext<'_>) -> Result<Vec<Clustering>> {
        self.levels(rows, context, &|_| Ok(None))
    }
}

/// Takes rows into a device's memory; none where the host does the work.
type Lend<'a> = &'a dyn Fn(RowsView<'_>) -> Result<Option<Box<dyn RowsOnDevice>>>;

/// What the random numbers of one fit are for.
const SEEDING: u64 = 0;
const SPLITS: u64 = 1;
const SUBSET: u64 = 2;

impl KMeans {
    /// k-means for these k with the defaults of a recipe.
    pub fn with(k: Vec<Count>) -> Self {
        KMeans::new(k)
    }

    fn levels(&self, rows: RowsView<'_>, context: FitContext<'_>, lend: Lend<'_>) -> Result<Vec<Clustering>> {
        if self.k.is_empty() {
            return Err(Error::config(
                "k is an empty list: name at least one number of prototypes, such as k: [100]",
            ));
        }
        // Without a subset all levels work on the same rows.
        let mut whole = if self.max_points_per_centroid.is_none() { lend(rows)? } else { None };
        let level =
            |(level, k): (usize, &Count)| self.level(rows, context, (level, k.get()), (lend, whole.as_mut()));
        self.k.iter().enumerate().map(level).collect()
    }

    fn level(
        &self,
        rows: RowsView<'_>,
        context: FitContext<'_>,
        (level, k): (usize, usize),
        (lend, whole): (Lend<'_>, Option<&mut Box<dyn RowsOnDevice>>),
    ) -> Result<Clustering> {
        enough(rows, k)?;
        let (n, dim) = (rows.rows, rows.cols);
        if let Some(least) = self.min_points_per_centroid.map(Count::get)
            && n < least.saturating_mul(k)
        {
            return Err(Error::config(format!(
                "{k} prototypes of at least {least} samples need {}, but there are {n}: lower k or min_points_per_centroid",
                least.saturating_mul(k)
            )));
        }
        let random = |redo: usize, what: u64| {
            stream(context.seed, Purpose::Cluster, context.epoch, level as u64, redo as u64 * 3 + what)
        };
        if k == n {
            let mut centroids = rows.data.to_vec();
            if self.spherical {
                unit_rows(&mut centroids, dim);
            }
            let own = |i: usize| &centroids[i * dim..(i + 1) * dim];
            let objective = rows
                .iter()
                .enumerate()
                .map(|(i, x)| pauc_kernels::distance::squared_distance(x, own(i)) as f64);
            let objective = vec![objective.sum()];
            let assignments: Vec<Option<u32>> = (0..n as u32).map(Some).collect();
            let report = report(objective, 0, assignments.iter().copied(), k);
            return Ok(Clustering { k, dim, centroids, assignments, report });
        }
        let subset = self.max_points_per_centroid.map(|most| most.get().saturating_mul(k)).filter(|m| *m < n);
        let sampled = subset.map(|size| gather(rows, &some_of(n, size, &mut random(0, SUBSET))));
        let fitted = sampled.as_deref().map_or(rows, |data| RowsView::new(data, dim));
        let lloyd = Lloyd {
            iterations: self.iterations.get(),
            spherical: self.spherical,
            tolerance: self.tolerance.get(),
        };
        let warm = context.previous.iter().find(|c| self.warm_start && c.k == k && c.dim == dim);
        let mut own = if whole.is_none() { lend(fitted)? } else { None };
        let mut on = match whole {
            Some(whole) => Some(whole),
            None => own.as_mut(),
        };
        let mut run = |redo: usize| -> Result<Fit> {
            let start = match warm {
                Some(last) if redo == 0 => last.centroids.clone(),
                _ => {
                    let mut rng = random(redo, SEEDING);
                    let chosen = match &mut on {
                        Some(on) => self.init.choose_on(&mut ***on, fitted, k, &mut rng)?,
                        None => self.init.choose(fitted, k, &mut rng),
                    };
                    gather(fitted, &chosen)
                }
            };
            let mut rng = random(redo, SPLITS);
            match &mut on {
                Some(on) => lloyd.run_on(&mut ***on, dim, start, &mut rng),
                None => Ok(lloyd.run(fitted, start, &mut rng)),
            }
        };
        let mut best = run(0)?;
        for redo in 1..self.redos.get() {
            let fit = run(redo)?;
            if fit.objective.last() < best.objective.last() {
                best = fit;
            }
        }
        let Fit { centroids, mut index, objective, moved, splits, .. } = best;
        if sampled.is_some() {
            // The subset makes room for all.
            drop(own);
            index = match lend(rows)? {
                Some(mut all) => all.nearest(&centroids)?.0,
                None => {
                    let mut index = vec![0; n];
                    nearest(rows.data, &Packed::new(&centroids, dim), &mut index, &mut vec![0.0; n]);
                    index
                }
            };
        }
        let assignments: Vec<Option<u32>> = index.into_iter().map(Some).collect();
        let report = report(objective, splits.iter().sum(), assignments.iter().copied(), k);
        let report = FitReport { moved, splits_at: splits, ..report };
        Ok(Clustering { k, dim, centroids, assignments, report })
    }
}
