//! Clusterers, the concentration of prototypes, clustering metrics and the diagnostics of coagulation.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! Each clusterer is a module of its own: [`kmeans`], [`dbscan`] and so on; `pauc-cli list clusterer` says what each of
//! them does. The others hold what they share, and what is done with their results:
//!
//! | module | what lives there |
//! |---|---|
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

// What they share, and what is done with their results.
pub mod coagulation;
pub mod concentration;
mod csv_file;
pub mod feature_files;
pub mod inverted_file;
pub mod lloyd;
pub mod matching;
pub mod metrics;
pub mod nearest;
#[cfg(test)]
mod oracle;
#[cfg(feature = "parquet")]
mod parquet;
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
