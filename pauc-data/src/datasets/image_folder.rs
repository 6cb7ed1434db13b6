//! Image files in folders.

pub(super) mod scan;

use super::pictures::{Listed, picture_set};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Dataset, Result, UnitInterval};
use std::path::PathBuf;

picture_set! {
    /// Your own images: JPEG, PNG, WebP, BMP and GIF files in a folder.
    ///
    /// Folders within `root` are the classes, in the order of their names; without folders there are no
    /// labels. If `root` has a folder `train`, it holds the training images, and a folder `val`, `validation`
    /// or `test` beside it holds the test images. Otherwise a fraction of each class is held out for testing,
    /// the same in every run. Hidden files and files with other extensions are ignored. All images are
    /// converted to RGB and rotated by their EXIF orientation. The statistics for normalization come from up
    /// to 512 evenly spaced training images.
    pub struct ImageFolder {
        /// The folder.
        pub root: PathBuf,
        /// The fraction of each class that is held out for testing if there is no test folder; 0 for none.
        pub test_fraction: UnitInterval = UnitInterval::lit(0.1),
    }
}

impl Dataset for ImageFolder {
    fn open(&self, place: &Place) -> Result<Splits> {
        self.listed(place)?.open(&self.reading(), place)
    }

    fn list(&self, place: &Place) -> Result<Splits> {
        Ok(self.listed(place)?.list(&self.reading()))
    }
}

impl ImageFolder {
    fn listed(&self, place: &Place) -> Result<Listed> {
        let origin = place.resolve(&self.root);
        let pictures = scan::scan(&origin, self.test_fraction.get(), None)?;
        Ok(Listed { title: origin.display().to_string(), origin, pictures })
    }
}

#[cfg(test)]
mod tests;
