//! Clusterers, the concentration of prototypes, clustering metrics and the diagnostics of coagulation.
//!
//! | module | what lives there |
//! |---|---|
//! | [`kmeans`] | [`KMeans`]: Lloyd's algorithm, one clustering for each k |
//! | [`minibatch`], [`hierarchical`] | [`MiniBatchKMeans`]; [`HierarchicalKMeans`], nested from coarse to fine |
//! | [`agglomerative`] | [`Agglomerative`]: Ward's method on a fine k-means, nested from fine to coarse |
//! | [`mixture`], [`sinkhorn`] | [`GaussianMixture`], diagonal; [`Sinkhorn`], prototypes of equal size |
//! | [`dbscan`], [`mod@hdbscan`], [`labels`] | [`Dbscan`] and [`Hdbscan`], with noise; [`Labels`], the oracle |
//! | [`lloyd`], [`seeding`], [`nearest`] | the iteration behind k-means, where it starts, and its assignments |
//! | [`inverted_file`] | assignments among the prototypes that lie near a row |
//! | [`feature_files`] | features and labels from files |
//! | [`mod@concentration`] | φ of each prototype, and unit rows |
//! | [`matching`] | which prototype of one clustering is which of the next, and churn |
//! | [`metrics`] | NMI, AMI, ARI, purity, matched accuracy, silhouette, Davies–Bouldin, imbalance |
//! | [`coagulation`] | what tells a healthy prototype from a collapsed one |
//!
//! Everything gives the same bits for every number of threads.
#![forbid(unsafe_code)]

#[macro_use]
mod host_clusterer;
pub mod agglomerative;
pub mod coagulation;
pub mod concentration;
pub mod dbscan;
pub mod feature_files;
pub mod hdbscan;
pub mod hierarchical;
pub mod inverted_file;
pub mod kmeans;
pub mod labels;
pub mod lloyd;
pub mod matching;
pub mod metrics;
pub mod minibatch;
pub mod mixture;
pub mod nearest;
#[cfg(test)]
mod oracle;
#[cfg(feature = "parquet")]
mod parquet;
pub mod seeding;
pub mod sinkhorn;
mod spectrum;

pub use agglomerative::Agglomerative;
pub use concentration::{ConcentrationKind, concentration, unit_rows};
pub use dbscan::Dbscan;
pub use hdbscan::Hdbscan;
pub use hierarchical::HierarchicalKMeans;
pub use host_clusterer::HostClusterer;
pub use kmeans::KMeans;
pub use labels::Labels;
pub use matching::match_prototypes;
pub use minibatch::MiniBatchKMeans;
pub use mixture::GaussianMixture;
pub use sinkhorn::Sinkhorn;
