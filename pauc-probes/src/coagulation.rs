//! Coagulation of the training split around its prototypes.

use crate::{ProbeTime, Space, finite, when};
use pauc_cluster::coagulation;
use pauc_traits::probe::{Metric, ProbeContext, When};
use pauc_traits::{Probe, Result, TrainingSpan, component};

component! {
    /// Diversity inside prototypes and distance between them, for each level of the current clustering.
    ///
    /// Prototypes coagulate if the cosine within them and their effective rank go to 1 while the cosine
    /// between them stays low and accuracy no longer rises. Samples are the training split's current vectors,
    /// with the assignments of the last clustering. If the data has labels, classes are measured in the same
    /// way. Before the first clustering, only classes are measured.
    ///
    /// Metrics: `coagulation/k100/intra_cosine`, `…/inter_cosine_mean`, `…/within_rank` and so on, and
    /// `coagulation/classes/…`. A second level with the same k is named `k100#2`. Undefined quantities are
    /// left out.
    /// Source: Mo, Sun & Li 2022 for the phenomenon; the quantities are our interpretation.
    pub struct Coagulation: Probe {
        /// The vectors that were clustered: `Embeddings`, or `Features` before the projector.
        pub space: Space = Space::Embeddings,
        /// How often it runs during training, such as `Epochs(1)`; it also runs at the end.
        pub every: Option<TrainingSpan> = None,
        /// `End`: it runs at the end of the run.
        pub at: ProbeTime = ProbeTime::End,
    }
}

impl Probe for Coagulation {
    fn when(&self) -> When {
        when(self.every, self.at)
    }

    fn needs_labels(&self) -> bool {
        false
    }

    fn reads_test_split(&self) -> bool {
        false
    }

    fn reads_prototypes(&self) -> bool {
        true
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let samples = self.space.rows(&context.train);
        if samples.rows == 0 {
            return Ok(Vec::new());
        }
        finite("coagulation", samples)?;
        let mut metrics = Vec::new();
        for (l, level) in context.levels.iter().enumerate() {
            let concentration = context.concentrations.get(l).map_or(&[][..], Vec::as_slice);
            let before = context.levels[..l].iter().filter(|other| other.k == level.k).count();
            let name = match before {
                0 => format!("coagulation/k{}", level.k),
                n => format!("coagulation/k{}#{}", level.k, n + 1),
            };
            let state = coagulation::Coagulation::of_clustering(samples, level, concentration)?;
            metrics.extend(state.metrics(&name));
        }
        if let Some(labels) = context.train.labels {
            let state = coagulation::Coagulation::of_labels(samples, labels)?;
            metrics.extend(state.metrics("coagulation/classes"));
        }
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::Clustering;
    use pauc_traits::probe::{RowsView, SplitView};

    fn measure(embeddings: &[f32], labels: Option<&[u32]>, levels: &[Clustering]) -> Result<Vec<Metric>> {
        let (embeddings, features) = (RowsView::new(embeddings, 2), RowsView::new(&[1.0], 1));
        let train = SplitView { features, embeddings, labels, images: None };
        let context = ProbeContext {
            train,
            test: None,
            classes: 2,
            levels,
            concentrations: &[],
            seed: 0,
            network: None,
            device: None,
        };
        Coagulation::default().measure(&context)
    }

    fn level() -> Clustering {
        let assignments = vec![Some(0), Some(0), Some(1), Some(1)];
        let centroids = vec![1.0, 0.0, 0.0, 1.0];
        Clustering { k: 2, dim: 2, centroids, assignments, report: Default::default() }
    }

    #[test]
    fn collapsed_prototypes_at_right_angles_show_the_signature() {
        let embeddings = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0];
        let metrics = measure(&embeddings, Some(&[0, 1, 0, 1]), &[level(), level()]).unwrap();
        let value = |name: &str| metrics.iter().find(|m| m.name == name).map(|m| m.value);
        for prefix in ["coagulation/k2", "coagulation/k2#2"] {
            assert_eq!(value(&format!("{prefix}/intra_cosine")), Some(1.0));
            assert_eq!(value(&format!("{prefix}/inter_cosine_mean")), Some(0.0));
        }
        // Classes cut across the prototypes: each has one sample on either axis, at cosine √½ to their mean.
        let intra = value("coagulation/classes/intra_cosine").unwrap();
        // A mean of two rows, its length (two squares, a sum, a root and a quotient), and a product of two
        // terms.
        assert_within!(intra, 0.5f64.sqrt(), tolerance::f32(2 + 5 + 2, 0.5f64.sqrt()));
    }

    #[test]
    fn without_clustering_and_labels_there_is_nothing_to_measure() {
        assert_eq!(measure(&[1.0, 0.0], None, &[]).unwrap(), []);
        let error = measure(&[1.0, 0.0], None, &[level()]).unwrap_err().to_string();
        assert!(error.contains("4 assignments for 1 samples"), "{error}");
    }
}
