//! Evaluation probes: what a frozen representation is worth, beside the loss that made it.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! Each probe has a file of its own; `pauc-cli list probe` tells what they measure. The other modules are:
//!
//! | module | what lives there |
//! |---|---|
//! | [`pca`], [`mod@tsne`] | [`pca2`], [`tsne()`]: pictures of the embeddings in two dimensions |
//! | [`head`], [`lbfgs`], [`spectrum`] | classifiers, optimizer and matrices behind the probes |
//!
//! Every probe says in a recipe when it runs: `Knn(k: 20, every: Epochs(1))` at the end of every epoch and of the
//! run, `Linear(at: End)` at the end of the run only. Nothing here depends on the number of threads.
#![forbid(unsafe_code)]

pub mod align_uniform;
pub mod clusters;
pub mod coagulation;
pub mod fine_tune;
pub mod head;
pub mod knn;
pub mod knn_grid;
pub mod lbfgs;
pub mod linear;
pub mod linear_sgd;
pub mod low_shot;
pub mod pca;
pub mod rank;
pub mod retrieval;
pub mod spectrum;
pub mod tsne;

pub use align_uniform::{AlignUniform, align_uniform};
pub use clusters::Clusters;
pub use coagulation::Coagulation;
pub use fine_tune::FineTune;
pub use head::Decay;
pub use knn::{Knn, knn_accuracy};
pub use knn_grid::KnnGrid;
pub use linear::{Linear, LinearOptions, LinearProbe, linear_probe};
pub use linear_sgd::LinearSgd;
pub use low_shot::LowShot;
pub use pca::{Pca2, pca2};
pub use rank::{Rank, rank_me};
pub use retrieval::{Retrieval, retrieval};
pub use tsne::{Tsne, TsneOptions, tsne};

use pauc_traits::probe::{ProbeContext, RowsView, SplitView, When};
use pauc_traits::{Error, Result, TrainingSpan};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// A single moment of a run at which a probe may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeTime {
    /// The end of the run.
    #[default]
    End,
}

/// Which vectors a probe reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// Backbone features, before the projector.
    #[default]
    Features,
    /// Unit-length projector outputs.
    Embeddings,
}

impl Space {
    /// The rows of a split in this space.
    ///
    /// # Shapes
    /// (N, D)
    pub fn rows<'a>(self, split: &SplitView<'a>) -> RowsView<'a> {
        match self {
            Space::Features => split.features,
            Space::Embeddings => split.embeddings,
        }
    }

    /// What a probe that learns from labels reads; none without a test split, or where a split has no labels.
    fn labeled<'a>(self, context: &ProbeContext<'a>) -> Option<Labeled<'a>> {
        let test = context.test.as_ref()?;
        Some(Labeled {
            train: self.rows(&context.train),
            labels: context.train.labels?,
            test: self.rows(test),
            test_labels: test.labels?,
        })
    }

    /// What the space adds to a metric's name: nothing for features, the usual case.
    pub fn suffix(self) -> &'static str {
        match self {
            Space::Features => "",
            Space::Embeddings => "/embeddings",
        }
    }
}

/// The rows of both splits with their labels.
struct Labeled<'a> {
    train: RowsView<'a>,
    labels: &'a [u32],
    test: RowsView<'a>,
    test_labels: &'a [u32],
}

impl Labeled<'_> {
    /// Checks both splits.
    fn check(&self, what: &str, classes: usize) -> Result<()> {
        check(&format!("{what}, training split"), self.train, self.labels, classes)?;
        check(&format!("{what}, test split"), self.test, self.test_labels, classes)?;
        same_width(what, self.train, self.test)
    }
}

/// Checks that rows of both splits are equally long.
fn same_width(what: &str, train: RowsView<'_>, test: RowsView<'_>) -> Result<()> {
    if train.cols == test.cols {
        return Ok(());
    }
    let message = format!("training rows of {} values, test rows of {}", train.cols, test.cols);
    Err(Error::shape(what, message))
}

/// The place of the largest value, the first of equals.
fn largest<T: PartialOrd>(values: &[T]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The schedule behind the fields `every` and `at`: every span also ends with the run, so `every` alone decides.
fn when(every: Option<TrainingSpan>, at: ProbeTime) -> When {
    match (every, at) {
        (Some(span), ProbeTime::End) => When::Every(span),
        (None, ProbeTime::End) => When::End,
    }
}

/// Checks that rows and labels belong together and hold usable values.
fn check(what: &str, rows: RowsView<'_>, labels: &[u32], classes: usize) -> Result<()> {
    if rows.rows == 0 {
        return Err(Error::config(format!("{what}: there are no rows to probe")));
    }
    if rows.rows != labels.len() {
        return Err(Error::shape(what, format!("{} rows but {} labels", rows.rows, labels.len())));
    }
    if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| **l as usize >= classes) {
        return Err(Error::config(format!(
            "{what}: label {label} of sample {i}, but only {classes} classes"
        )));
    }
    finite(what, rows)
}

/// Checks that every value is finite.
fn finite(what: &str, rows: RowsView<'_>) -> Result<()> {
    let bad = |row: &[f32]| row.iter().any(|v| !v.is_finite());
    match rows.data.par_chunks(rows.cols).position_first(bad) {
        Some(i) => {
            Err(Error::NonFinite { what: what.into(), place: Some(format!("the vector of sample {i}")) })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod testing {
    use pauc_traits::Probe;
    use pauc_traits::probe::{Metric, ProbeContext, RowsView, SplitView};

    /// What a probe measures on labeled rows of a few values that are features and embeddings at once.
    pub fn measure(
        probe: &impl Probe,
        (dim, classes, seed): (usize, usize, u64),
        (train, labels): (&[f32], &[u32]),
        (test, test_labels): (&[f32], &[u32]),
    ) -> pauc_traits::Result<Vec<Metric>> {
        let split = |rows, labels| {
            let rows = RowsView::new(rows, dim);
            SplitView { features: rows, embeddings: rows, labels: Some(labels), images: None }
        };
        probe.measure(&ProbeContext {
            train: split(train, labels),
            test: Some(split(test, test_labels)),
            classes,
            levels: &[],
            concentrations: &[],
            seed,
            network: None,
            device: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::Configured;
    use pauc_traits::registry::kind;

    #[test]
    fn recipes_say_when_a_probe_runs() {
        for (text, want) in [
            ("Knn(k: 20, every: Epochs(1))", When::Every(TrainingSpan::epochs(1))),
            ("Linear(at: End)", When::End),
            ("Knn()", When::End),
            ("Coagulation(every: Epochs(1))", When::Every(TrainingSpan::epochs(1))),
            ("Rank(every: Steps(500), at: End)", When::Every(TrainingSpan::Steps(500))),
        ] {
            let probe = Configured::<kind::Probe>::parse(text).unwrap();
            assert_eq!(probe.when(), want, "{text}");
            let written = pauc_traits::component_ron::options().to_string(&probe).unwrap();
            assert_eq!(Configured::<kind::Probe>::parse(&written).unwrap().when(), want, "{written}");
        }
        let error = Configured::<kind::Probe>::parse("Knn(at: Start)").unwrap_err().to_string();
        assert!(error.contains("Start"), "{error}");
    }

    #[test]
    fn unusable_input_is_an_error_that_says_where() {
        let rows = RowsView::new(&[1.0, 0.0, f32::NAN, 1.0], 2);
        let text = |labels: &[u32], classes| check("bank", rows, labels, classes).unwrap_err().to_string();
        assert_eq!(text(&[0, 1], 2), "bank is not finite (the vector of sample 1)");
        assert_eq!(text(&[0, 7], 2), "bank: label 7 of sample 1, but only 2 classes");
        assert_eq!(text(&[0], 2), "bank: 2 rows but 1 labels");
    }
}
