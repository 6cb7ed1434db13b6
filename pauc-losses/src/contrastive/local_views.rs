//! Views in addition to the first two, which predict targets and have none themselves.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A number of views in addition to the first two: at most 14.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "usize", into = "usize")]
pub struct LocalViews(usize);

/// All views that a term may read.
const VIEWS: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

impl LocalViews {
    /// The first two views only.
    pub(super) const NONE: LocalViews = LocalViews(0);

    /// Returns all views that predict.
    pub(super) fn queries(self) -> &'static [usize] {
        &VIEWS[..2 + self.0]
    }

    /// Returns the views after the first two.
    pub(super) fn views(self) -> Range<usize> {
        2..2 + self.0
    }

    /// Returns the share of one prediction in the mean: the targets of each of two views are predicted from all other
    /// views.
    pub(super) fn share(self) -> f64 {
        0.5 / (1 + self.0) as f64
    }
}

impl TryFrom<usize> for LocalViews {
    type Error = String;
    fn try_from(n: usize) -> Result<Self, String> {
        let most = VIEWS.len() - 2;
        if n <= most {
            Ok(LocalViews(n))
        } else {
            Err(format!("must be a whole number of at most {most}, got {n}"))
        }
    }
}

impl From<LocalViews> for usize {
    fn from(n: LocalViews) -> usize {
        n.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fourteen_views_are_the_most() {
        let most = LocalViews::try_from(14).unwrap();
        assert_eq!((most.queries().len(), most.views()), (16, 2..16));
        assert_eq!(LocalViews::try_from(15).unwrap_err(), "must be a whole number of at most 14, got 15");
    }
}
