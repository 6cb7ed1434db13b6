//! Picture files in folders.

mod scan;
mod source;

use crate::memory::Moments;
use pauc_traits::dataset::{ImageSource, Place, Splits};
use pauc_traits::{Count, Dataset, Error, Result, UnitInterval, component};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use source::{Reader, Source};
use std::path::PathBuf;
use std::sync::Arc;

/// What happens with a picture that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnError {
    /// The run stops at it.
    Fail,
    /// It is left out, if there are no more than this many. All files are decoded once when the set is opened,
    /// so that what is left out does not depend on the course of the run.
    Skip(usize),
}

component! {
    /// Your own pictures: JPEG, PNG, WebP, BMP and GIF files in a folder.
    ///
    /// Folders within `root` are the classes, in the order of their names; without folders there are no labels. If
    /// `root` has a folder `train`, that one is read, and `val`, `validation` or `test` beside it holds the test
    /// images; otherwise a share of each class, the same in every run, is kept for testing. Hidden files and files
    /// with other endings are passed over. All images become RGB, upright as the camera noted. The statistics for
    /// normalisation are those of up to 512 evenly spaced training images.
    pub struct ImageFolder: Dataset {
        /// The folder.
        pub root: PathBuf,
        /// The share of each class that is kept for testing where there is no folder for it; 0 for none.
        pub test_fraction: UnitInterval = UnitInterval::lit(0.1),
        /// `Fail` to stop at a picture that cannot be read, `Skip(n)` to leave out up to n of them.
        pub on_error: OnError = OnError::Fail,
        /// Pictures whose shorter side is longer than this many pixels are shrunk to it when they are read, so that
        /// more of them stay in memory.
        pub shorter_side: Option<Count> = None,
        /// The memory for decoded pictures in MiB. Those that find room stay; the others are read again every time.
        pub cache: usize = 2048,
        /// The largest picture in pixels. A larger one is an error: its file may be made to exhaust memory.
        pub pixel_limit: Count = Count::lit(100_000_000),
    }
}

/// How many training images the statistics are taken of.
const SAMPLED: usize = 512;

impl Dataset for ImageFolder {
    fn open(&self, place: &Place) -> Result<Splits> {
        let root = place.resolve(&self.root);
        let mut found = scan::scan(&root, self.test_fraction.get())?;
        let reader = Arc::new(Reader::new(
            self.pixel_limit.get(),
            self.shorter_side.map(Count::get),
            self.cache.saturating_mul(1 << 20),
        ));
        let mut train = Source::new(found.train, reader.clone());
        let mut test = found.test.map(|files| Source::new(files, reader));
        if let OnError::Skip(most) = self.on_error {
            let mut skipped = train.drop_unreadable();
            skipped.extend(test.iter_mut().flat_map(Source::drop_unreadable));
            if let Some(first) = skipped.first().filter(|_| skipped.len() > most) {
                return Err(Error::damaged(
                    &root,
                    format!(
                        "{} pictures cannot be read, more than on_error: Skip({most}); first: {first}",
                        skipped.len()
                    ),
                ));
            }
            if !skipped.is_empty() {
                found.notes.push(format!("{} unreadable pictures left out", skipped.len()));
            }
        }
        if train.is_empty() {
            return Err(Error::damaged(&root, "has no training images that can be read"));
        }
        train.find_shape()?;
        test.iter_mut().try_for_each(Source::find_shape)?;
        let statistics = statistics(&train)?;
        let tests = test.as_ref().map_or(0, Source::len);
        let notes: String = found.notes.iter().map(|n| format!(", {n}")).collect();
        let description = format!(
            "{}: {} training and {tests} test images in {} classes{notes}",
            root.display(),
            train.len(),
            found.classes.len()
        );
        let test = test.filter(|t| !t.is_empty()).map(|t| Arc::new(t) as Arc<_>);
        Ok(Splits { train: Arc::new(train), test, classes: found.classes, statistics, description })
    }
}

/// Mean and deviation of evenly spaced images.
fn statistics(train: &Source) -> Result<Vec<(f32, f32)>> {
    let count = train.len().min(SAMPLED);
    let moments = (0..count).into_par_iter().map(|i| {
        let image = train.image(i * train.len() / count)?;
        Ok(Moments::of(&image.pixels, image.shape.channels))
    });
    // Collected before the errors are looked at, so that it is always the first one that is reported.
    let moments: Vec<Result<Moments>> = moments.collect();
    let total = moments.into_iter().try_fold(Moments::none(), |a, b| Ok::<_, Error>(a.join(b?)))?;
    Ok(total.statistics())
}

#[cfg(test)]
mod tests;
