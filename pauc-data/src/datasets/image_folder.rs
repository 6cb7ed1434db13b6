//! Picture files in folders.

pub(super) mod scan;

use super::pictures::{self, picture_set};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Dataset, Result, UnitInterval};
use std::path::PathBuf;

picture_set! {
    /// Your own pictures: JPEG, PNG, WebP, BMP and GIF files in a folder.
    ///
    /// Folders within `root` are the classes, in the order of their names; without folders there are no labels. If
    /// `root` has a folder `train`, that one is read, and `val`, `validation` or `test` beside it holds the test
    /// images; otherwise a share of each class, the same in every run, is kept for testing. Hidden files and files
    /// with other endings are passed over. All images become RGB, upright as the camera noted. The statistics for
    /// normalization are those of up to 512 evenly spaced training images.
    pub struct ImageFolder {
        /// The folder.
        pub root: PathBuf,
        /// The share of each class that is kept for testing where there is no folder for it; 0 for none.
        pub test_fraction: UnitInterval = UnitInterval::lit(0.1),
    }
}

impl Dataset for ImageFolder {
    fn open(&self, place: &Place) -> Result<Splits> {
        let root = place.resolve(&self.root);
        let pictures = scan::scan(&root, self.test_fraction.get(), None)?;
        pictures::open(&root.display().to_string(), &root, pictures, &self.reading(), place)
    }
}

#[cfg(test)]
mod tests;
