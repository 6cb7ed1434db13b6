//! A survey of a dataset: what a recipe for it has to know.

use crate::inspect;
use pauc_traits::dataset::{ImageSource, Skipped, Splits};
use pauc_traits::{Image, progress};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How much of a dataset is read.
#[derive(Clone, Copy, Debug)]
pub struct SurveyOptions {
    /// The largest number of images.
    pub images: usize,
    /// The time after which no further images are read.
    pub time: Duration,
}

impl Default for SurveyOptions {
    fn default() -> Self {
        SurveyOptions { images: 5000, time: Duration::from_secs(10) }
    }
}

/// The smallest number, the median and the largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The smallest.
    pub least: usize,
    /// The median.
    pub median: usize,
    /// The largest.
    pub most: usize,
}

impl Range {
    /// Returns the range of some numbers; zeros if there are none.
    pub fn of(mut numbers: Vec<usize>) -> Self {
        numbers.sort_unstable();
        let at = |i: usize| numbers.get(i).copied().unwrap_or(0);
        Range { least: at(0), median: at(numbers.len() / 2), most: at(numbers.len().saturating_sub(1)) }
    }
}

/// What is known about a dataset. Counts are exact; the rest comes from the images that were read.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Survey {
    /// The dataset's own description.
    pub description: String,
    /// The number of training images.
    pub train: usize,
    /// The number of test images.
    pub test: usize,
    /// The number of training images of each class; empty without labels.
    pub classes: Vec<usize>,
    /// Whether the test images have labels.
    pub test_is_labeled: bool,
    /// The number of images that were read, evenly spaced over all.
    pub read: usize,
    /// Those that cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// Their heights in pixels.
    pub heights: Range,
    /// Their widths in pixels.
    pub widths: Range,
    /// Their shorter sides in pixels.
    pub short_sides: Range,
    /// Whether all of them have one height and one width.
    pub is_one_size: bool,
    /// The number of channels that views see: 1 or 3.
    pub channels: usize,
    /// The fraction of them without colors.
    pub gray: f64,
    /// How many of them are copies of others, pixel by pixel.
    pub copies: usize,
    /// How many of these copies are in the other split.
    pub shared: usize,
    /// Seconds to read and decode an image on one thread.
    pub seconds_per_image: f64,
    /// Bytes of a decoded image.
    pub bytes_per_image: f64,
}

/// An image that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its path.
    pub path: String,
    /// Why it cannot be read.
    pub reason: String,
}

impl Survey {
    /// Returns the number of images in both splits.
    pub fn images(&self) -> usize {
        self.train + self.test
    }

    /// Returns whether every image was read.
    pub fn is_complete(&self) -> bool {
        self.read == self.images()
    }

    /// Returns whether the training images have labels.
    pub fn is_labeled(&self) -> bool {
        !self.classes.is_empty()
    }
}

/// An image that was read.
struct Reading {
    height: usize,
    width: usize,
    channels: usize,
    is_gray: bool,
    bytes: usize,
    hash: blake3::Hash,
    is_test: bool,
    seconds: f64,
}

/// Images that are read between two looks at the clock.
const AT_ONCE: usize = 64;

/// Surveys listed splits; see [`Dataset::list`](pauc_traits::Dataset::list).
pub fn survey(splits: &Splits, options: SurveyOptions) -> Survey {
    let (train, test) = (splits.train.len(), splits.test.as_ref().map_or(0, |t| t.len()));
    let mut classes = vec![0; splits.classes.len()];
    for label in splits.train.labels().unwrap_or_default() {
        if let Some(count) = classes.get_mut(*label as usize) {
            *count += 1;
        }
    }
    let mut found = Survey {
        description: splits.description.clone(),
        train,
        test,
        classes,
        test_is_labeled: splits.test.as_ref().is_some_and(|t| t.labels().is_some()),
        ..Survey::default()
    };
    let ids = evenly_spaced(train + test, options.images);
    let task = progress::task("reading images", ids.len() as u64);
    let began = Instant::now();
    let mut readings = Vec::new();
    for some in ids.chunks(AT_ONCE) {
        if found.read > 0 && began.elapsed() >= options.time {
            break;
        }
        let outcomes: Vec<_> = some.par_iter().map(|id| read(splits, *id)).collect();
        for outcome in outcomes {
            match outcome {
                Ok(reading) => readings.push(reading),
                Err(Skipped { path, reason }) => found.unreadable.push(Unreadable { path, reason }),
            }
        }
        found.read += some.len();
        task.advance(some.len() as u64);
    }
    found.unreadable.sort_by(|a, b| a.path.cmp(&b.path));
    summarize(&mut found, &readings);
    found
}

/// Returns up to `most` of `count` indices, such that every beginning of the list is spread over all of them.
fn evenly_spaced(count: usize, most: usize) -> Vec<usize> {
    if count <= 1 {
        return (0..count.min(most)).collect();
    }
    // Multiples of a step that has no common divisor with the count visit every index once; near the golden section,
    // they spread.
    let divides = |step: usize| {
        let (mut a, mut b) = (count, step);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    let golden = (count as f64 * 0.618_033_988_75).round() as usize;
    let step = (golden.max(1)..count).chain(1..2).find(|step| divides(*step)).unwrap_or(1);
    (0..count.min(most)).map(|i| (i as u128 * step as u128 % count as u128) as usize).collect()
}

fn read(splits: &Splits, id: usize) -> Result<Reading, Skipped> {
    let train = splits.train.len();
    let (source, index): (&dyn ImageSource, usize) = match &splits.test {
        Some(test) if id >= train => (&**test, id - train),
        _ => (&*splits.train, id),
    };
    let began = Instant::now();
    let image =
        source.image(index).map_err(|e| Skipped { path: source.name(index), reason: e.to_string() })?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Reading {
        height: image.shape.height,
        width: image.shape.width,
        channels: image.shape.channels,
        is_gray: is_gray(&image),
        bytes: image.pixels.len(),
        hash: inspect::hash_of(&image),
        is_test: id >= train,
        seconds,
    })
}

/// The largest difference of the channels of a gray pixel, on average. JPEG files may store gray as almost equal channels.
const ALMOST_EQUAL: u64 = 2;

fn is_gray(image: &Image<'_>) -> bool {
    if image.shape.channels == 1 {
        return true;
    }
    let (pixels, _) = image.pixels.as_chunks::<3>();
    let difference = |[r, g, b]: &[u8; 3]| u64::from(r.abs_diff(*g).max(g.abs_diff(*b)));
    pixels.iter().map(difference).sum::<u64>() <= ALMOST_EQUAL * pixels.len() as u64
}

fn summarize(found: &mut Survey, readings: &[Reading]) {
    let range = |side: fn(&Reading) -> usize| Range::of(readings.iter().map(side).collect());
    found.heights = range(|r| r.height);
    found.widths = range(|r| r.width);
    found.short_sides = range(|r| r.height.min(r.width));
    found.is_one_size = found.heights.least == found.heights.most && found.widths.least == found.widths.most;
    found.channels = readings.iter().map(|r| r.channels).max().unwrap_or(3);
    let count = readings.len().max(1) as f64;
    let mean = |of: fn(&Reading) -> f64| readings.iter().map(of).sum::<f64>() / count;
    found.gray = mean(|r| f64::from(u8::from(r.is_gray)));
    found.seconds_per_image = mean(|r| r.seconds);
    found.bytes_per_image = mean(|r| r.bytes as f64);
    // Whether the first image with these pixels is in the test split.
    let mut first: HashMap<blake3::Hash, bool> = HashMap::new();
    for reading in readings {
        match first.get(&reading.hash) {
            Some(is_test) => {
                found.copies += 1;
                found.shared += usize::from(*is_test != reading.is_test);
            }
            None => {
                first.insert(reading.hash, reading.is_test);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryImages;
    use pauc_traits::{Error, ImageShape, Result};
    use std::sync::Arc;

    #[test]
    fn every_index_occurs_once_and_beginnings_are_spread() {
        for count in [0usize, 1, 2, 3, 10, 97, 100, 4096, 5001] {
            let mut all = evenly_spaced(count, usize::MAX);
            let some = evenly_spaced(count, 10);
            assert_eq!(some, all[..count.min(10)]);
            // No tenth of the indices is left out by more than two of the first ten.
            if count >= 97 {
                let mut tenths: Vec<usize> = some.iter().map(|i| i * 10 / count).collect();
                tenths.sort_unstable();
                tenths.dedup();
                assert!(tenths.len() >= 8, "{count}: {some:?}");
            }
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    fn splits(train: &[[u8; 6]], test: &[[u8; 6]]) -> Splits {
        let shape = ImageShape { height: 1, width: 2, channels: 3 };
        let images = |pixels: &[[u8; 6]]| {
            let labels = (0..pixels.len() as u32).map(|i| i % 2).collect();
            Arc::new(MemoryImages::new(shape, pixels.concat(), Some(labels)).unwrap())
        };
        Splits {
            train: images(train),
            test: Some(images(test)),
            classes: vec!["a".into(), "b".into()],
            statistics: vec![(0.5, 0.25); 3],
            description: "six".into(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn gray_images_and_copies_are_counted() {
        let (gray, red, blue) = ([7, 7, 7, 90, 91, 90], [200, 0, 0, 9, 0, 0], [0, 0, 200, 0, 0, 9]);
        let found = survey(&splits(&[gray, red, gray, blue, red], &[blue]), SurveyOptions::default());
        assert_eq!((found.train, found.test, found.classes.clone()), (5, 1, vec![3, 2]));
        assert!(found.is_complete() && found.is_labeled() && found.test_is_labeled && found.is_one_size);
        assert_eq!((found.gray, found.channels, found.bytes_per_image), (2.0 / 6.0, 3, 6.0));
        // A second gray one, a second red one, and a second blue one, in the other split.
        assert_eq!((found.copies, found.shared), (3, 1));
        assert_eq!(found.short_sides, Range { least: 1, median: 1, most: 1 });
        let two = survey(&splits(&[gray, red, gray], &[]), SurveyOptions { images: 2, ..Default::default() });
        assert!(two.read == 2 && !two.is_complete());
    }

    #[test]
    fn unreadable_images_are_named_and_left_out() {
        struct Odd;
        impl ImageSource for Odd {
            fn len(&self) -> usize {
                100
            }
            fn shape(&self) -> Option<ImageShape> {
                None
            }
            fn image(&self, index: usize) -> Result<Image<'_>> {
                if index % 10 == 3 {
                    return Err(Error::config("torn"));
                }
                let shape = ImageShape { height: 10 + index, width: 50, channels: 1 };
                Ok(Image::new(shape, vec![0; shape.len()]))
            }
            fn labels(&self) -> Option<&[u32]> {
                None
            }
        }
        let data = Splits { train: Arc::new(Odd), test: None, classes: Vec::new(), ..splits(&[], &[[0; 6]]) };
        let found = survey(&data, SurveyOptions::default());
        assert_eq!((found.unreadable.len(), &*found.unreadable[0].path), (10, "image 13"));
        assert_eq!(found.heights, Range { least: 10, median: 60, most: 109 });
        assert_eq!(found.short_sides.most, 50);
        assert!(!found.is_labeled() && !found.is_one_size && found.gray == 1.0);
    }
}
