//! A probe.

use pauc_traits::probe::{Metric, ProbeContext, RowsView, SplitView, When};
use pauc_traits::{Probe, Result, TrainingSpan, component};

component! {
    /// Accuracy of a nearest-mean classifier on the features.
    ///
    /// Each class is represented by the mean of its training features. A test feature is assigned to the class
    /// of the nearest mean in Euclidean distance; ties go to the lower label. Without labels or without a test
    /// split, nothing is measured.
    ///
    /// Metrics: `ProbeTemplate/accuracy`, a fraction of the test split. Always guessing the largest class
    /// gives the chance level.
    ///
    /// Source: the paper or code that this follows.
    pub struct ProbeTemplate: Probe {
        /// The interval between measurements. There is also one at the end of the run.
        pub every: TrainingSpan = TrainingSpan::epochs(1),
    }
}

impl Probe for ProbeTemplate {
    fn when(&self) -> When {
        When::Every(self.every)
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        let Some(test) = &context.test else { return Ok(Vec::new()) };
        let (Some(train_labels), Some(test_labels)) = (context.train.labels, test.labels) else {
            return Ok(Vec::new());
        };
        let means = class_means(context.train.features, train_labels, context.classes);
        Ok(vec![Metric::accuracy("ProbeTemplate/accuracy", accuracy(test, test_labels, &means))])
    }
}

/// Returns the mean of each class; `None` for a class without rows.
fn class_means(rows: RowsView<'_>, labels: &[u32], classes: usize) -> Vec<Option<Vec<f64>>> {
    let mut sums = vec![vec![0.0; rows.cols]; classes];
    let mut sizes = vec![0usize; classes];
    for (row, label) in rows.iter().zip(labels) {
        sizes[*label as usize] += 1;
        sums[*label as usize].iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    let mean = |(sum, size): (Vec<f64>, usize)| {
        (size > 0).then(|| sum.into_iter().map(|v| v / size as f64).collect())
    };
    sums.into_iter().zip(sizes).map(mean).collect()
}

/// Returns the fraction of rows for which the nearest mean is that of their class.
fn accuracy(split: &SplitView<'_>, labels: &[u32], means: &[Option<Vec<f64>>]) -> f64 {
    let distance = |row: &[f32], mean: &[f64]| -> f64 {
        row.iter().zip(mean).map(|(v, m)| (f64::from(*v) - m).powi(2)).sum()
    };
    let nearest = |row: &[f32]| {
        let known = means.iter().enumerate().filter_map(|(class, mean)| Some((class, mean.as_ref()?)));
        let distances = known.map(|(class, mean)| (class, distance(row, mean)));
        distances.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(class, _)| class)
    };
    let hits =
        split.features.iter().zip(labels).filter(|(row, label)| nearest(row) == Some(**label as usize));
    hits.count() as f64 / split.features.rows.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAIN: [f32; 8] = [0.0, 0.0, 2.0, 0.0, 9.0, 9.0, 11.0, 9.0];
    const LABELS: [u32; 4] = [0, 0, 1, 1];

    fn split<'a>(data: &'a [f32], labels: Option<&'a [u32]>) -> SplitView<'a> {
        let rows = RowsView::new(data, 2);
        SplitView { features: rows, embeddings: rows, labels, images: None }
    }

    fn measure(test: Option<SplitView<'_>>) -> Vec<Metric> {
        let context = ProbeContext {
            train: split(&TRAIN, Some(&LABELS)),
            test,
            // The third class has no training rows.
            classes: 3,
            levels: &[],
            concentrations: &[],
            seed: 0,
            network: None,
            device: None,
        };
        ProbeTemplate { every: TrainingSpan::epochs(1) }.measure(&context).unwrap()
    }

    #[test]
    fn the_accuracy_equals_a_count_by_hand() {
        // The means are (1, 0) and (10, 9): the third row is nearer to the mean of the other class.
        let test = [1.0, 1.0, 10.0, 8.0, 2.0, 1.0, 9.0, 9.0];
        let found = measure(Some(split(&test, Some(&[0, 1, 1, 1]))));
        assert_eq!(found, [Metric::accuracy("ProbeTemplate/accuracy", 0.75)]);
    }

    #[test]
    fn without_a_labeled_test_split_nothing_is_measured() {
        assert!(measure(None).is_empty());
        assert!(measure(Some(split(&[1.0, 1.0], None))).is_empty());
    }
}
