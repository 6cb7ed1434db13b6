//! Some of the images of a split, as a probe around another one needs them.

use pauc_data::datasets::subset::Picked;
use pauc_traits::dataset::ImageSource;
use pauc_traits::probe::{RowsView, SplitView};
use pauc_traits::{Error, Result};
use std::sync::Arc;

/// Chosen images of a split: their rows, labels and pixels.
pub(crate) struct Part {
    features: (Vec<f32>, usize),
    embeddings: (Vec<f32>, usize),
    labels: Option<Vec<u32>>,
    images: Option<Arc<dyn ImageSource>>,
}

impl Part {
    /// Copies what belongs to the images `ids`.
    pub fn of(split: &SplitView<'_>, ids: &[u32]) -> Part {
        let rows = |all: RowsView<'_>| {
            (ids.iter().flat_map(|i| all.row(*i as usize)).copied().collect::<Vec<f32>>(), all.cols)
        };
        Part {
            features: rows(split.features),
            embeddings: rows(split.embeddings),
            labels: split.labels.map(|labels| ids.iter().map(|i| labels[*i as usize]).collect()),
            images: split.images.map(|source| images(source, ids)),
        }
    }

    /// Returns the part as a split.
    pub fn view(&self) -> SplitView<'_> {
        SplitView {
            features: RowsView::new(&self.features.0, self.features.1),
            embeddings: RowsView::new(&self.embeddings.0, self.embeddings.1),
            labels: self.labels.as_deref(),
            images: self.images.as_ref(),
        }
    }
}

/// Returns the images `ids` of a source.
pub(crate) fn images(source: &Arc<dyn ImageSource>, ids: &[u32]) -> Arc<dyn ImageSource> {
    Arc::new(Picked::new(source.clone(), ids.iter().map(|i| *i as usize).collect()))
}

/// Returns the number of rows of a split.
///
/// # Errors
/// If the split has another number of labels.
pub(crate) fn row_count(probe: &str, split: &SplitView<'_>) -> Result<usize> {
    let rows = split.features.rows.min(split.embeddings.rows);
    match split.labels.map(<[u32]>::len) {
        Some(labels) if labels != rows => {
            Err(Error::shape(probe, format!("{rows} rows but {labels} labels")))
        }
        _ => Ok(rows),
    }
}
