//! Agreement of a clustering with labels, with another clustering, and with the geometry of the samples.
//!
//! | module | contents |
//! |---|---|
//! | [`contingency`] | counts of label × cluster, the basis of all scores of agreement |
//! | [`agreement`] | [`agreement::Agreement`]: NMI, AMI, ARI, homogeneity, completeness, V, purity, matched accuracy |
//! | [`geometry`] | silhouette and Davies–Bouldin |

pub mod agreement;
pub mod contingency;
pub mod geometry;

pub use agreement::Agreement;
pub use contingency::{Cell, Contingency};
pub use geometry::{davies_bouldin, silhouette};
pub use pauc_traits::clusterer::imbalance;
