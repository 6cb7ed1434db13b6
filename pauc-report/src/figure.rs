//! A figure of the report, and the section it belongs to.

/// A section of the report; the variants are in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The last steps before NaN or infinity.
    Postmortem,
    /// Objective, terms, weights, learning rate.
    Training,
    /// The gradients of single terms at the embeddings.
    TermGradients,
    /// Health and time, per epoch.
    Health,
    /// Accuracies, RankMe.
    Probes,
    /// The state of the prototypes.
    Coagulation,
    /// The clusterings.
    Clustering,
    /// The embeddings in two dimensions.
    Embedding,
    /// Test images that are in the training split.
    Leaks,
    /// Labels that are likely wrong.
    Labels,
}

impl Section {
    /// Returns the section's heading.
    pub fn title(self) -> &'static str {
        match self {
            Section::Postmortem => "The last steps",
            Section::Training => "Training",
            Section::TermGradients => "Gradients of the terms",
            Section::Health => "Health and time",
            Section::Probes => "Probes over epochs",
            Section::Coagulation => "Coagulation",
            Section::Clustering => "Clustering",
            Section::Embedding => "Embeddings",
            Section::Leaks => "Near-duplicates across the splits",
            Section::Labels => "Likely wrong labels",
        }
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The name of its file.
    pub name: String,
    /// Its section.
    pub section: Section,
    /// The SVG text, which uses the page's CSS variables.
    pub svg: String,
}
