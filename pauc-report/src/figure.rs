//! A drawing of the report, and the part of the report where it belongs.

/// A part of the report, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Objective, terms, weights, learning rate.
    Training,
    /// Health and time, epoch by epoch.
    Health,
    /// Accuracies, RankMe.
    Probes,
    /// The state of the prototypes.
    Coagulation,
    /// The clusterings.
    Clustering,
    /// The picture of the embeddings.
    Embedding,
}

/// One drawing.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// A name for its file.
    pub name: String,
    /// Where it belongs.
    pub section: Section,
    /// The drawing, with the page's CSS variables.
    pub svg: String,
}
