//! Other probes with few labels.

use crate::part::{Part, row_count};
use pauc_traits::probe::{Metric, ProbeContext, When};
use pauc_traits::registry::kind;
use pauc_traits::{Configured, Error, LabelFraction, Probe, Result, component};

component! {
    /// Runs another probe with the labels of a fixed fraction of the training split only.
    ///
    /// The samples are those of `Subset` with the same fraction of the same data. They are the same in every
    /// run and for every seed, and larger fractions contain the smaller ones. The test split is whole.
    /// `LowShot(labels: Percent1, probe: Linear())` and `LowShot(labels: Percent10, probe: Linear())` are the
    /// usual protocols. The inner probe's own schedule applies. With fewer than five samples per class,
    /// `Linear` has nothing to hold out and uses its largest λ.
    ///
    /// Metrics: those of the inner probe, with `/labels1%`, `/labels10%` or `/labels5perclass` after their
    /// protocol. Source: Hénaff et al. 2020, Chen et al. 2020 (SimCLR), which use 1 % and 10 % of ImageNet's
    /// labels with other lists of images.
    pub struct LowShot: Probe {
        /// The inner probe. It must read labels: `Knn(…)`, `Linear(…)`, `LinearSgd(…)` or `FineTune(…)`.
        pub probe: Configured<kind::Probe>,
        /// The fraction of the labels: `Percent1`, `Percent10` or `PerClass(n)`.
        pub labels: LabelFraction = LabelFraction::Percent1,
    }
}

impl Probe for LowShot {
    fn when(&self) -> When {
        self.probe.when()
    }

    fn needs_labels(&self) -> bool {
        true
    }

    fn reads_test_split(&self) -> bool {
        self.probe.reads_test_split()
    }

    fn check(&self) -> Result<()> {
        if !self.probe.needs_labels() {
            let message = format!(
                "LowShot: the probe `{}` reads no labels; use Knn, Linear, LinearSgd or FineTune",
                self.probe.name()
            );
            return Err(Error::config(message));
        }
        self.probe.check()
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        self.check()?;
        let Some(labels) = context.train.labels else { return Ok(Vec::new()) };
        let rows = row_count("LowShot", &context.train)?;
        let chosen = Part::of(&context.train, &self.labels.choose(Some(labels), rows));
        // Clusterings are of the whole split, so leave them out.
        let part = ProbeContext { train: chosen.view(), levels: &[], concentrations: &[], ..*context };
        let protocol = self.labels.protocol();
        Ok(self.probe.measure(&part)?.into_iter().map(|m| m.with_protocol(&protocol)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::probe::{MetricKind, RowsView, SplitView};

    fn context<'a>(
        train: &'a [f32],
        labels: &'a [u32],
        test: &'a [f32],
        tests: &'a [u32],
    ) -> ProbeContext<'a> {
        let split = |rows, labels| SplitView {
            features: RowsView::new(rows, 2),
            embeddings: RowsView::new(rows, 2),
            labels: Some(labels),
            images: None,
        };
        let (train, test) = (split(train, labels), Some(split(test, tests)));
        ProbeContext {
            train,
            test,
            classes: 2,
            levels: &[],
            concentrations: &[],
            seed: 0,
            network: None,
            device: None,
        }
    }

    fn measure(text: &str, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        Configured::<kind::Probe>::parse(text).unwrap().measure(context)
    }

    /// Only the chosen samples of each class point in the direction of their class. All others point in the
    /// opposite one.
    #[test]
    fn nothing_but_the_chosen_samples_is_read() {
        let labels: Vec<u32> = (0..400).map(|i| i % 2).collect();
        let chosen = LabelFraction::Percent1.choose(Some(&labels), 400);
        assert_eq!(chosen.len(), 4);
        let row = |i: u32| {
            let right = chosen.contains(&i);
            if i.is_multiple_of(2) == right {
                [1.0, 0.02 * (i % 5) as f32]
            } else {
                [0.02 * (i % 5) as f32, 1.0]
            }
        };
        let train: Vec<f32> = (0..400).flat_map(row).collect();
        let (test, tests) = ([1.0, 0.1, 0.1, 1.0], [0, 1]);
        let context = context(&train, &labels, &test, &tests);
        for probe in ["Knn(k: 1)", "Linear()"] {
            let all = measure(probe, &context).unwrap();
            let few = measure(&format!("LowShot(probe: {probe})"), &context).unwrap();
            let accuracy =
                |metrics: Vec<Metric>| metrics.into_iter().find(|m| m.kind == MetricKind::Accuracy).unwrap();
            let (all, few) = (accuracy(all), accuracy(few));
            assert_eq!((all.value, few.value), (0.0, 1.0), "{probe}");
            assert_eq!(few.name, format!("{}/labels1%", all.name));
        }
    }

    #[test]
    fn details_stay_details() {
        let context = context(&[1.0, 0.0, 0.0, 1.0], &[0, 1], &[1.0, 0.0, 0.0, 1.0], &[0, 1]);
        let metrics = measure("LowShot(probe: Linear(), labels: PerClass(1))", &context).unwrap();
        let found: Vec<_> = metrics.iter().map(|m| (&*m.name, m.kind)).collect();
        let want = [
            ("linear/lbfgs/standardised/labels1perclass/l2", MetricKind::Detail),
            ("linear/lbfgs/standardised/labels1perclass/converged", MetricKind::Converged),
            ("linear/lbfgs/standardised/labels1perclass", MetricKind::Accuracy),
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn probes_without_labels_are_refused() {
        let context = context(&[1.0, 0.0], &[0], &[1.0, 0.0], &[0]);
        let text = measure("LowShot(probe: Rank())", &context).unwrap_err().to_string();
        assert!(text.contains("`Rank` reads no labels"), "{text}");
    }
}
