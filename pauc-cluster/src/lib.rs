//! Clusterers, the concentration of prototypes, clustering metrics and the diagnostics of coagulation.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! Each clusterer is a module of its own: [`kmeans`], [`dbscan`] and so on. `pauc-cli list clusterer`
//! describes them. The other modules are shared by clusterers or work on their results:
//!
//! | module | contents |
//! |---|---|
//! | [`lloyd`], [`seeding`], [`nearest`] | k-means: iteration, first centroids, assignments |
//! | [`on_ranks`] | rows that several ranks search together |
//! | [`inverted_file`] | assignments among the prototypes near a row |
//! | [`feature_files`] | features and labels from files |
//! | [`mod@concentration`] | φ of each prototype, and unit rows |
//! | [`matching`] | the matching between the prototypes of two clusterings, and churn |
//! | [`metrics`] | NMI, AMI, ARI, purity, matched accuracy, silhouette, Davies–Bouldin, imbalance |
//! | [`coagulation`] | diagnostics that tell healthy prototypes from collapsed ones |
//!
//! All results are bitwise identical for every number of threads.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

// The clusterers.
pub mod agglomerative;
pub mod dbscan;
pub mod hdbscan;
pub mod hierarchical;
pub mod kmeans;
pub mod labels;
pub mod minibatch;
pub mod mixture;
pub mod sinkhorn;

// Shared by the clusterers, or working on their results.
pub mod coagulation;
pub mod concentration;
mod csv_file;
pub mod feature_files;
pub mod inverted_file;
pub mod lloyd;
pub mod matching;
pub mod metrics;
pub mod nearest;
pub mod on_ranks;
#[cfg(test)]
mod oracle;
#[cfg(feature = "parquet")]
mod parquet;
pub mod sample_columns;
pub mod seeding;
mod spectrum;

pub use agglomerative::Agglomerative;
pub use concentration::{ConcentrationKind, concentration, unit_rows};
pub use dbscan::Dbscan;
pub use hdbscan::Hdbscan;
pub use hierarchical::HierarchicalKMeans;
pub use kmeans::KMeans;
pub use labels::Labels;
pub use matching::match_prototypes;
pub use minibatch::MiniBatchKMeans;
pub use mixture::GaussianMixture;
pub use sinkhorn::Sinkhorn;
