//! What all datasets of image files share: fields, reading, skipping, splitting.

pub(super) mod locator;
mod source;

use crate::disk_cache::{DiskCache, Store};
use crate::memory::Moments;
use locator::Locator;
use pauc_traits::dataset::{ImageSource, Place, Skipped, Splits};
use pauc_traits::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use source::{Reader, Source};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How an unreadable image is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum OnError {
    /// The run fails.
    Fail,
    /// It is skipped and listed, if there are at most `max`. All files are decoded once when the dataset is
    /// opened, so the skipped images do not depend on the course of the run.
    Skip {
        /// The maximum number of skipped images.
        max: usize,
    },
}

/// Declares a dataset of image files: its own fields and the shared ones.
macro_rules! picture_set {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident {
            $( $(#[doc = $fdoc:literal])* pub $field:ident : $ty:ty $(= $default:expr)?, )*
        }
    ) => {
        pauc_traits::component! {
            $(#[doc = $doc])*
            pub struct $name: Dataset {
                $( $(#[doc = $fdoc])* pub $field: $ty $(= $default)?, )*
                /// `Fail`: stop at the first unreadable image. `Skip(max: n)`: leave out up to n of them;
                /// they are listed in `data_errors.jsonl` of the run.
                pub on_error: $crate::datasets::OnError = $crate::datasets::OnError::Fail,
                /// Larger images are shrunk so that the shorter side has this many pixels. More of them then
                /// fit into the cache.
                pub shorter_side: Option<pauc_traits::Count> = None,
                /// The RGB background of transparent images.
                pub background: (u8, u8, u8) = (255, 255, 255),
                /// The memory for decoded images in MiB. Images that do not fit are read again each time.
                pub cache: usize = 2048,
                /// Also cache decoded images on disk, such as `(folder: "cache", budget: 20000)`, in MiB.
                /// Useful for large images with `shorter_side`.
                pub disk_cache: Option<$crate::disk_cache::DiskCache> = None,
                /// The largest number of pixels. A larger image is an error, which protects against files
                /// made to exhaust memory.
                pub pixel_limit: pauc_traits::Count = pauc_traits::Count::lit($crate::decode::PIXEL_LIMIT),
            }
        }

        impl $name {
            fn reading(&self) -> $crate::datasets::pictures::Reading<'_> {
                $crate::datasets::pictures::Reading {
                    on_error: self.on_error,
                    shorter_side: self.shorter_side.map(pauc_traits::Count::get),
                    background: self.background,
                    cache: self.cache,
                    disk_cache: self.disk_cache.as_ref(),
                    pixel_limit: self.pixel_limit.get(),
                }
            }
        }
    };
}
pub(super) use picture_set;

/// The fields that all datasets of image files share.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub on_error: OnError,
    pub shorter_side: Option<usize>,
    pub background: (u8, u8, u8),
    pub cache: usize,
    pub disk_cache: Option<&'a DiskCache>,
    pub pixel_limit: usize,
}

/// Images in order, with their labels.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub locators: Vec<Locator>,
    pub labels: Option<Vec<u32>>,
    pub other_labels: Option<Vec<u32>>,
}

/// The images of a dataset, before any is read.
#[derive(Debug, Default)]
pub(super) struct Pictures {
    pub train: Files,
    pub test: Option<Files>,
    pub classes: Vec<String>,
    /// Notes for the reader of the report.
    pub notes: Vec<String>,
}

/// The number of training images that the statistics come from.
const SAMPLED: usize = 512;

/// The images of a dataset and what to call it.
pub(super) struct Listed {
    /// The beginning of its description.
    pub title: String,
    /// Its folder or file.
    pub origin: PathBuf,
    pub pictures: Pictures,
}

impl Listed {
    /// Determines shapes and statistics, and makes splits.
    pub fn open(self, reading: &Reading<'_>, place: &Place) -> Result<Splits> {
        open(&self.title, &self.origin, self.pictures, reading, place)
    }

    /// Makes splits without reading an image.
    pub fn list(self, reading: &Reading<'_>) -> Splits {
        let Pictures { train, test, classes, notes } = self.pictures;
        let reader = Arc::new(Reader::new(&Reading { cache: 0, ..*reading }, None));
        let train = Source::new(train, reader.clone());
        let test = test.map(|files| Source::new(files, reader));
        let tests = test.as_ref().map_or(0, Source::len);
        let description = describe(&self.title, [train.len(), tests], classes.len(), &notes);
        let test = test.filter(|t| !t.is_empty()).map(|t| Arc::new(t) as Arc<_>);
        let statistics = vec![(0.5, 0.25); 3];
        Splits { train: Arc::new(train), test, classes, statistics, description, skipped: Vec::new() }
    }
}

fn describe(title: &str, [train, tests]: [usize; 2], classes: usize, notes: &[String]) -> String {
    let notes: String = notes.iter().map(|n| format!(", {n}")).collect();
    format!("{title}: {train} training and {tests} test images in {classes} classes{notes}")
}

/// Determines shapes and statistics, and makes splits of the images of `origin`.
fn open(
    title: &str,
    origin: &Path,
    mut pictures: Pictures,
    reading: &Reading<'_>,
    place: &Place,
) -> Result<Splits> {
    let disk = reading
        .disk_cache
        .map(|c| Store::open(&place.resolve(&c.folder), (c.budget.get() as u64).saturating_mul(1 << 20)));
    let reader = Arc::new(Reader::new(reading, disk.transpose()?));
    let mut train = Source::new(pictures.train, reader.clone());
    let mut test = pictures.test.map(|files| Source::new(files, reader));
    let mut skipped = Vec::new();
    if let OnError::Skip { max } = reading.on_error {
        skipped = train.drop_unreadable();
        skipped.extend(test.iter_mut().flat_map(Source::drop_unreadable));
        if let Some(first) = skipped.first().filter(|_| skipped.len() > max) {
            return Err(Error::damaged(
                origin,
                format!(
                    "{} images cannot be read, more than on_error: Skip(max: {max}); first: {}: {}",
                    skipped.len(),
                    first.path,
                    first.reason
                ),
            ));
        }
        if !skipped.is_empty() {
            pictures.notes.push(format!("{} unreadable images skipped", skipped.len()));
        }
    }
    if train.is_empty() {
        return Err(Error::damaged(origin, "has no readable training images"));
    }
    train.find_shape()?;
    test.iter_mut().try_for_each(Source::find_shape)?;
    let statistics = statistics(&train)?;
    let tests = test.as_ref().map_or(0, Source::len);
    let description = describe(title, [train.len(), tests], pictures.classes.len(), &pictures.notes);
    let test = test.filter(|t| !t.is_empty()).map(|t| Arc::new(t) as Arc<_>);
    Ok(Splits { train: Arc::new(train), test, classes: pictures.classes, statistics, description, skipped })
}

/// Computes mean and deviation over evenly spaced images.
fn statistics(train: &Source) -> Result<Vec<(f32, f32)>> {
    let count = train.len().min(SAMPLED);
    let moments = (0..count).into_par_iter().map(|i| {
        let image = train.image(i * train.len() / count)?;
        Ok(Moments::of(&image.pixels, image.shape.channels))
    });
    // Collected before the errors are checked, so that always the first one is reported.
    let moments: Vec<Result<Moments>> = moments.collect();
    let total = moments.into_iter().try_fold(Moments::none(), |a, b| Ok::<_, Error>(a.join(b?)))?;
    Ok(total.statistics())
}

/// Returns how many images of a class are held out for testing.
pub fn held_out(images: usize, fraction: f64) -> usize {
    (fraction * images as f64 + 0.5) as usize
}

/// Returns which images of one class, given by `names`, are held out for testing: the ⌊fraction·n + ½⌋ whose
/// names have the smallest hashes. New images then move few old ones between the splits.
pub(super) fn kept_for_testing(names: &[String], fraction: f64) -> Vec<bool> {
    let hashes: Vec<[u8; 32]> = names.iter().map(|n| *blake3::hash(n.as_bytes()).as_bytes()).collect();
    let mut sorted = hashes.clone();
    sorted.sort_unstable();
    let tests = held_out(names.len(), fraction);
    let limit = sorted.get(tests); // the first hash that stays in training; none if all are held out
    hashes.iter().map(|h| limit.is_none_or(|l| h < l)).collect()
}

impl Files {
    fn pick(self, keep: impl Fn(usize) -> bool) -> Files {
        fn filtered<T>(all: Vec<T>, keep: &impl Fn(usize) -> bool) -> Vec<T> {
            all.into_iter().enumerate().filter(|p| keep(p.0)).map(|p| p.1).collect()
        }
        Files {
            locators: filtered(self.locators, &keep),
            labels: self.labels.map(|l| filtered(l, &keep)),
            other_labels: self.other_labels.map(|l| filtered(l, &keep)),
        }
    }

    /// Splits into training and test images, class by class if there are labels.
    pub fn split(self, fraction: f64) -> (Files, Option<Files>) {
        let mut groups = std::collections::BTreeMap::<u32, Vec<usize>>::new();
        for i in 0..self.locators.len() {
            groups.entry(self.labels.as_ref().map_or(0, |l| l[i])).or_default().push(i);
        }
        let mut test = vec![false; self.locators.len()];
        for group in groups.values() {
            let names: Vec<String> = group.iter().map(|i| self.locators[*i].key()).collect();
            kept_for_testing(&names, fraction).into_iter().zip(group).for_each(|(t, i)| test[*i] = t);
        }
        let copy = Files {
            locators: self.locators.clone(),
            labels: self.labels.clone(),
            other_labels: self.other_labels.clone(),
        };
        let tests = copy.pick(|i| test[i]);
        (self.pick(|i| !test[i]), (!tests.locators.is_empty()).then_some(tests))
    }
}

/// Numbers text labels: classes in the order of their names, or by value if all are numbers.
pub(super) fn number_labels(texts: &[&[String]]) -> (Vec<String>, Vec<Vec<u32>>) {
    let mut classes: Vec<&String> = texts.iter().flat_map(|t| t.iter()).collect();
    classes.sort_unstable();
    classes.dedup();
    if let Ok(mut numbers) =
        classes.iter().map(|c| c.parse::<u64>().map(|n| (n, *c))).collect::<Result<Vec<_>, _>>()
    {
        numbers.sort_unstable();
        classes = numbers.into_iter().map(|n| n.1).collect();
    }
    let index: std::collections::HashMap<&String, u32> =
        classes.iter().zip(0u32..).map(|(c, i)| (*c, i)).collect();
    let labels = texts.iter().map(|t| t.iter().map(|l| index[l]).collect()).collect();
    (classes.into_iter().cloned().collect(), labels)
}

/// Returns the list entry of an unreadable image.
fn skip(name: String, error: &Error) -> Skipped {
    let text = error.to_string();
    let reason = text.strip_prefix(&format!("{name}: ")).unwrap_or(&text).to_string();
    Skipped { path: name, reason }
}
