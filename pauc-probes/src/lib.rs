//! Probes: evaluation of a frozen representation, independent of the loss that trained it.
//!
//! Internal to pauc: any release may change it. Programs depend on `pauc`, components on `pauc-traits`.
//!
//! Each probe has its own file; `pauc-cli list probe` describes them. The other modules are:
//!
//! | module | contents |
//! |---|---|
//! | [`pca`], [`mod@tsne`] | [`pca2`], [`tsne()`], [`sparse_tsne`]: pictures of the embeddings in two dimensions |
//! | [`neighbors`], [`label_votes`](mod@label_votes) | nearest rows, near-duplicates, outliers and labels that are likely wrong |
//! | [`head`], [`lbfgs`], [`spectrum`] | classifiers, optimizer and matrices behind the probes |
//!
//! A recipe says when a probe runs: `Knn(k: 20, every: Epochs(1))` at the end of every epoch and of the run,
//! `Linear(at: End)` only at the end of the run. Results do not depend on the number of threads.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![forbid(unsafe_code)]

pub mod align_uniform;
pub mod clusters;
pub mod coagulation;
pub mod fine_tune;
pub mod head;
pub mod held_out;
pub mod knn;
pub mod knn_grid;
pub mod label_votes;
pub mod lbfgs;
pub mod linear;
pub mod linear_sgd;
pub mod low_shot;
pub mod neighbors;
mod part;
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
pub use held_out::HeldOut;
pub use knn::{Knn, knn_accuracy};
pub use knn_grid::KnnGrid;
pub use label_votes::{LabelVote, label_votes, likely_wrong};
pub use linear::{Linear, LinearOptions, LinearProbe, linear_probe};
pub use linear_sgd::LinearSgd;
pub use low_shot::LowShot;
pub use pca::{Pca2, pca2};
pub use rank::{Rank, rank_me};
pub use retrieval::{Retrieval, retrieval};
pub use tsne::sparse::sparse_tsne;
pub use tsne::{Tsne, TsneOptions, tsne};

use pauc_traits::dataset::{ImageSource, Splits};
use pauc_traits::probe::{ProbeContext, RowsView, SplitView, When};
use pauc_traits::{Error, Result, TrainingSpan};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A single time of a run at which a probe may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeTime {
    /// The end of the run.
    #[default]
    End,
}

/// The vectors that a probe reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Space {
    /// Features, before the projector.
    #[default]
    Features,
    /// Outputs of the projector, scaled to unit length.
    Embeddings,
}

impl Space {
    /// Returns the rows of a split in this space.
    ///
    /// # Shapes
    /// (N, D)
    pub fn rows<'a>(self, split: &SplitView<'a>) -> RowsView<'a> {
        match self {
            Space::Features => split.features,
            Space::Embeddings => split.embeddings,
        }
    }

    /// Returns the data of a probe that learns from labels; `None` without a test split, or if a split has no
    /// labels.
    fn labeled<'a>(self, context: &ProbeContext<'a>) -> Option<Labeled<'a>> {
        let test = context.test.as_ref()?;
        Some(Labeled {
            train: self.rows(&context.train),
            labels: context.train.labels?,
            test: self.rows(test),
            test_labels: test.labels?,
        })
    }

    /// Returns the suffix of a metric's name: empty for features, the usual case.
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

/// Returns the split that probes without training measure: the test split, or the training split without one.
fn scored(splits: &Splits) -> &Arc<dyn ImageSource> {
    splits.test.as_ref().unwrap_or(&splits.train)
}

/// Checks that rows of both splits have the same width.
fn same_width(what: &str, train: RowsView<'_>, test: RowsView<'_>) -> Result<()> {
    if train.cols == test.cols {
        return Ok(());
    }
    let message = format!("training rows have width {}, but test rows have width {}", train.cols, test.cols);
    Err(Error::shape(what, message))
}

/// Returns the index of the largest value. Ties go to the first.
fn largest<T: PartialOrd>(values: &[T]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// Returns the schedule of the fields `every` and `at`. Every interval also includes the end of the run, so
/// `every` alone decides.
fn when(every: Option<TrainingSpan>, at: ProbeTime) -> When {
    match (every, at) {
        (Some(span), ProbeTime::End) => When::Every(span),
        (None, ProbeTime::End) => When::End,
    }
}

/// Checks that rows and labels match, and that values are finite.
fn check(what: &str, rows: RowsView<'_>, labels: &[u32], classes: usize) -> Result<()> {
    if rows.rows == 0 {
        return Err(Error::config(format!("{what}: there are no rows to measure")));
    }
    if rows.rows != labels.len() {
        return Err(Error::shape(what, format!("{} rows but {} labels", rows.rows, labels.len())));
    }
    if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| **l as usize >= classes) {
        return Err(Error::config(format!(
            "{what}: sample {i} has label {label}; expected less than {classes}, the number of classes"
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

    /// Returns a probe's metrics for labeled rows of a few values, which serve as features and embeddings.
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
        assert_eq!(
            text(&[0, 7], 2),
            "bank: sample 1 has label 7; expected less than 2, the number of classes"
        );
        assert_eq!(text(&[0], 2), "bank: 2 rows but 1 labels");
    }
}
