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

/// Returns the imbalance K·Σ size² / (Σ size)²: 1 if all clusters have the same size (or all are empty), K if
/// one cluster has all samples. `sizes` has the number of samples of each of the K clusters.
pub fn imbalance(sizes: &[usize]) -> f64 {
    let total: f64 = sizes.iter().map(|s| *s as f64).sum();
    if total == 0.0 {
        return 1.0;
    }
    sizes.len() as f64 * sizes.iter().map(|s| (*s as f64).powi(2)).sum::<f64>() / (total * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imbalance_runs_from_one_to_k() {
        assert_eq!(imbalance(&[3, 3, 3]), 1.0);
        assert_eq!(imbalance(&[9, 0, 0]), 3.0);
        assert_eq!(imbalance(&[2, 1]), 2.0 * 5.0 / 9.0);
        assert_eq!(imbalance(&[0, 0]), 1.0);
    }
}
