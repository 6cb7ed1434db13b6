//! Other probes on held-out training images.

use crate::part::{Part, images, row_count};
use pauc_traits::dataset::Splits;
use pauc_traits::label_fraction::held_out_fifth;
use pauc_traits::probe::{HELD_OUT, Metric, ProbeContext, When};
use pauc_traits::registry::kind;
use pauc_traits::{Configured, Error, Probe, Result, component};

component! {
    /// Runs another probe with a held-out fifth of the training split in place of the test split.
    ///
    /// Settings chosen by such a metric are chosen without the test split. Of the n training images of each class,
    /// ⌊n/5⌋ are held out: those whose indices have the largest hashes. They are the same in every run and for every
    /// seed. `Percent1` and `Percent10` of the same training split contain none of them. Without labels, all images
    /// count as one class.
    ///
    /// Only the inner probe's labels are held out: it learns from the other four fifths and is scored on the fifth.
    /// The encoder trains on all training images, and clusterings contain all of them. Images that the encoder has
    /// seen are easier than those of the test split, so the values are comparable with each other only. The inner
    /// probe's own schedule applies.
    ///
    /// Metrics: those of the inner probe, with `/heldout` after their protocol.
    pub struct HeldOut: Probe {
        /// The inner probe. It must read the test split, as all but `Rank(…)` and `Coagulation(…)` do.
        pub probe: Configured<kind::Probe>,
    }
}

impl HeldOut {
    /// Returns the splits of the inner probe.
    fn splits(&self, whole: &Splits) -> Result<Splits> {
        let (rest, fifth) = held_out_fifth(whole.train.labels(), whole.train.len());
        enough(&fifth)?;
        let test = Some(images(&whole.train, &fifth));
        Ok(Splits { train: images(&whole.train, &rest), test, ..whole.clone() })
    }
}

/// Checks that there is an image to score.
fn enough(fifth: &[u32]) -> Result<()> {
    if fifth.is_empty() {
        return Err(Error::config(
            "HeldOut: no class has five training images, so there are none to hold out",
        ));
    }
    Ok(())
}

impl Probe for HeldOut {
    fn when(&self) -> When {
        self.probe.when()
    }

    fn needs_labels(&self) -> bool {
        self.probe.needs_labels()
    }

    fn reads_test_split(&self) -> bool {
        false
    }

    fn check(&self) -> Result<()> {
        if !self.probe.reads_test_split() {
            let name = self.probe.name();
            let message = format!("HeldOut: the probe `{name}` does not read the test split; list it alone");
            return Err(Error::config(message));
        }
        self.probe.check()
    }

    fn check_settings(&self, splits: &Splits) -> Result<()> {
        self.splits(splits).map_or(Ok(()), |splits| self.probe.check_settings(&splits))
    }

    fn check_splits(&self, splits: &Splits) -> Result<()> {
        self.probe.check_splits(&self.splits(splits)?)
    }

    fn measure(&self, context: &ProbeContext<'_>) -> Result<Vec<Metric>> {
        self.check()?;
        let train = &context.train;
        let (rest, fifth) = held_out_fifth(train.labels, row_count("HeldOut", train)?);
        enough(&fifth)?;
        let (rest, fifth) = (Part::of(train, &rest), Part::of(train, &fifth));
        // Clusterings are of the whole split, so leave them out.
        let part = ProbeContext {
            train: rest.view(),
            test: Some(fifth.view()),
            levels: &[],
            concentrations: &[],
            ..*context
        };
        Ok(self.probe.measure(&part)?.into_iter().map(|m| m.with_protocol(HELD_OUT)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::probe::{MetricKind, RowsView, SplitView, may_read_test_split};

    fn measure(probe: &str, rows: &[f32], labels: Option<&[u32]>) -> Result<Vec<Metric>> {
        let rows = RowsView::new(rows, 2);
        let split = SplitView { features: rows, embeddings: rows, labels, images: None };
        // The test split contradicts everything: a probe that reads it is wrong.
        let wrong: Vec<u32> = labels.unwrap_or(&[]).iter().map(|l| 1 - l).collect();
        let test = SplitView { labels: labels.map(|_| &wrong[..]), ..split };
        Configured::<kind::Probe>::parse(probe).unwrap().measure(&ProbeContext {
            train: split,
            test: Some(test),
            classes: 2,
            levels: &[],
            concentrations: &[],
            seed: 0,
            network: None,
            device: None,
        })
    }

    /// The held-out images point in the direction of their class only in the second half of the indices, and the others
    /// always do.
    #[test]
    fn the_fifth_is_scored_and_the_rest_is_learned() {
        let labels: Vec<u32> = (0..100).map(|i| i % 2).collect();
        let (_, fifth) = held_out_fifth(Some(&labels), 100);
        let right = |i: u32| !fifth.contains(&i) || i >= 50;
        let row = |i: u32| {
            if i.is_multiple_of(2) == right(i) {
                [1.0, 0.01 * (i % 5) as f32]
            } else {
                [0.01 * (i % 5) as f32, 1.0]
            }
        };
        let rows: Vec<f32> = (0..100).flat_map(row).collect();
        let want = fifth.iter().filter(|i| right(**i)).count() as f64 / 20.0;
        assert!(fifth.len() == 20 && (0.2..0.8).contains(&want));
        for probe in ["Knn(k: 5)", "Linear()"] {
            let metrics = measure(&format!("HeldOut(probe: {probe})"), &rows, Some(&labels)).unwrap();
            let accuracy = metrics.iter().find(|m| m.kind == MetricKind::Accuracy).unwrap();
            assert_eq!(accuracy.value, want, "{probe}");
            assert!(accuracy.name.ends_with("/heldout"), "{}", accuracy.name);
            assert!(metrics.iter().all(|m| !may_read_test_split(&m.name)), "{metrics:?}");
        }
        let few =
            measure("HeldOut(probe: LowShot(probe: Linear(), labels: PerClass(2)))", &rows, Some(&labels));
        let names: Vec<String> = few.unwrap().into_iter().map(|m| m.name).collect();
        let name = "linear/lbfgs/standardised/labels2perclass/heldout";
        assert_eq!(names, [format!("{name}/l2"), format!("{name}/converged"), name.to_string()]);
    }

    #[test]
    fn names_say_what_reads_the_test_split() {
        let rows: Vec<f32> = (0..100).map(|i| (i as f32).sin()).collect();
        let labels: Vec<u32> = (0..50).map(|i| i % 2).collect();
        for probe in
            ["Knn()", "Linear()", "Clusters()", "Retrieval()", "AlignUniform()", "Rank()", "Coagulation()"]
        {
            let reads = Configured::<kind::Probe>::parse(probe).unwrap().reads_test_split();
            for metric in measure(probe, &rows, Some(&labels)).unwrap() {
                assert_eq!(may_read_test_split(&metric.name), reads, "{}", metric.name);
            }
        }
    }

    #[test]
    fn nothing_to_hold_out_and_other_probes_are_refused() {
        let text = |probe: &str, rows: &[f32], labels| measure(probe, rows, labels).unwrap_err().to_string();
        let error = text("HeldOut(probe: Rank())", &[1.0, 0.0], Some(&[0]));
        assert!(error.contains("`Rank` does not read the test split"), "{error}");
        let error = text("HeldOut(probe: Knn())", &[1.0, 0.0, 0.0, 1.0], Some(&[0, 1]));
        assert!(error.contains("no class has five training images"), "{error}");
        let error = text("HeldOut(probe: Knn())", &[1.0, 0.0, 0.0, 1.0], Some(&[0]));
        assert!(error.contains("2 rows but 1 labels"), "{error}");
        // Without labels, all images are one class.
        let rows: Vec<f32> = (0..10).flat_map(|i| [(i as f32).cos(), (i as f32).sin()]).collect();
        let names: Vec<String> = measure("HeldOut(probe: AlignUniform())", &rows, None)
            .unwrap()
            .into_iter()
            .map(|m| m.name)
            .collect();
        assert_eq!(names, ["uniformity/t2/embeddings/heldout"]);
    }
}
