//! Inspection of whole datasets: their content, whether it is readable, and whether it changed.

use crate::memory::Moments;
use pauc_traits::dataset::{ImageSource, Skipped, Splits};
use pauc_traits::{Error, Image, Result, atomic, progress};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// One image of a dataset in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `train` or `test`.
    pub split: String,
    /// Its name: the path, or its index.
    pub name: String,
    /// The BLAKE3 hash of its shape and decoded pixels.
    pub hash: String,
    /// Its class.
    pub class: Option<String>,
}

/// The content of a dataset at the time it was indexed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// The version of this format.
    pub version: u32,
    /// The dataset's own description.
    pub description: String,
    /// The hash of all records, which detects a truncated or edited file.
    pub check: String,
    /// All images, training images first.
    pub images: Vec<Record>,
}

const VERSION: u32 = 1;

/// Returns the splits with their names.
fn splits_of(splits: &Splits) -> Vec<(&'static str, &dyn ImageSource)> {
    let mut named: Vec<(&'static str, &dyn ImageSource)> = vec![("train", &*splits.train)];
    named.extend(splits.test.as_ref().map(|t| ("test", &**t)));
    named
}

/// Reads every image. Returns the images that were skipped on opening, followed by the unreadable ones in
/// order.
pub fn verify(splits: &Splits) -> Vec<Skipped> {
    let mut bad = splits.skipped.clone();
    let task = reading(splits);
    for (_, source) in splits_of(splits) {
        let errors: Vec<Option<Skipped>> = (0..source.len())
            .into_par_iter()
            .map(|i| {
                task.advance(1);
                source.image(i).err().map(|e| Skipped { path: source.name(i), reason: e.to_string() })
            })
            .collect();
        bad.extend(errors.into_iter().flatten());
    }
    bad
}

/// Begins the task of reading every image.
fn reading(splits: &Splits) -> progress::Task {
    let images: usize = splits_of(splits).iter().map(|(_, source)| source.len()).sum();
    progress::task("reading images", images as u64)
}

fn hash(source: &dyn ImageSource, i: usize) -> Result<blake3::Hash> {
    Ok(hash_of(&source.image(i)?))
}

/// Returns the hash of an image's shape and pixels.
pub(crate) fn hash_of(image: &Image<'_>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for side in [image.shape.height, image.shape.width, image.shape.channels] {
        hasher.update(&(side as u64).to_le_bytes());
    }
    hasher.update(&image.pixels).finalize()
}

fn digest(images: &[Record]) -> String {
    let mut hasher = blake3::Hasher::new();
    for r in images {
        for part in [&r.split, &r.name, &r.hash, r.class.as_deref().unwrap_or("\0")] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Hashes every image.
///
/// # Errors
/// If an image cannot be read.
pub fn index(splits: &Splits) -> Result<Index> {
    let mut images = Vec::new();
    let task = reading(splits);
    for (split, source) in splits_of(splits) {
        let record = |i: usize| -> Result<Record> {
            let class = source.labels().map(|l| l[i]);
            let class =
                class.map(|l| splits.classes.get(l as usize).cloned().unwrap_or_else(|| l.to_string()));
            let hash = hash(source, i)?.to_hex().to_string();
            task.advance(1);
            Ok(Record { split: split.into(), name: source.name(i), hash, class })
        };
        let records: Vec<Result<Record>> = (0..source.len()).into_par_iter().map(record).collect();
        images.extend(records.into_iter().collect::<Result<Vec<_>>>()?);
    }
    let (check, description) = (digest(&images), splits.description.clone());
    Ok(Index { version: VERSION, description, check, images })
}

impl Index {
    /// Writes the index atomically.
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| Error::Other(e.into()))?;
        text.push(b'\n');
        atomic::write(path, &text)
    }

    /// Reads an index.
    ///
    /// # Errors
    /// If it is missing, has another version, or is truncated or edited.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound {
                path: path.to_path_buf(),
                remedy: "create it with `pauc-cli data index`".into(),
            },
            _ => Error::io(path, e),
        })?;
        let remedy = "create it again with `pauc-cli data index`";
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|e| Error::damaged(path, format!("is a truncated or damaged index ({e}); {remedy}")))?;
        if index.version != VERSION || index.check != digest(&index.images) {
            let message = format!("is an index of another version, or was edited; {remedy}");
            return Err(Error::damaged(path, message));
        }
        Ok(index)
    }

    /// Lists how `now` differs from this index, one line per difference.
    pub fn differences(&self, now: &Index) -> Vec<String> {
        let by_name = |index: &Index| -> BTreeMap<(String, String), Record> {
            index.images.iter().map(|r| ((r.split.clone(), r.name.clone()), r.clone())).collect()
        };
        let (before, after) = (by_name(self), by_name(now));
        let mut differences = Vec::new();
        for (key, old) in &before {
            let named = format!("{} {}", key.0, key.1);
            match after.get(key) {
                None => differences.push(format!("{named}: missing")),
                Some(new) if new.hash != old.hash => differences.push(format!("{named}: different image")),
                Some(new) if new.class != old.class => {
                    let name = |c: &Option<String>| c.clone().unwrap_or_else(|| "none".into());
                    differences.push(format!(
                        "{named}: class changed from {} to {}",
                        name(&old.class),
                        name(&new.class)
                    ));
                }
                Some(_) => {}
            }
        }
        differences.extend(
            after.keys().filter(|k| !before.contains_key(*k)).map(|k| format!("{} {}: new", k.0, k.1)),
        );
        differences
    }
}

/// Statistics of one split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitStats {
    /// `train` or `test`.
    pub split: String,
    /// The number of images.
    pub images: usize,
    /// Mean and standard deviation of each channel over all pixels of all images, in 0..1.
    pub channels: Vec<(f32, f32)>,
    /// The number of images of each class.
    pub classes: BTreeMap<String, usize>,
    /// Smallest, median and largest height.
    pub heights: [usize; 3],
    /// Smallest, median and largest width.
    pub widths: [usize; 3],
}

/// Statistics of a dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    /// The dataset's own description.
    pub description: String,
    /// Each split.
    pub splits: Vec<SplitStats>,
    /// Groups of images with identical pixels: the names in each group, in order.
    pub duplicates: Vec<Vec<String>>,
    /// The number of groups with images of both splits.
    pub shared_groups: usize,
}

/// Computes the statistics of a whole dataset.
///
/// # Errors
/// If an image cannot be read.
pub fn stats(data: &Splits) -> Result<Stats> {
    let mut splits = Vec::new();
    let mut groups = BTreeMap::<[u8; 32], Vec<(usize, String)>>::new();
    let task = reading(data);
    for (s, (split, source)) in splits_of(data).into_iter().enumerate() {
        let measure = |i: usize| -> Result<_> {
            let image = source.image(i)?;
            let moments = Moments::of(&image.pixels, image.shape.channels);
            task.advance(1);
            Ok((moments, image.shape.height, image.shape.width, hash(source, i)?))
        };
        let measured: Vec<Result<_>> = (0..source.len()).into_par_iter().map(measure).collect();
        let (mut total, mut heights, mut widths) = (Moments::none(), Vec::new(), Vec::new());
        for (i, image) in measured.into_iter().enumerate() {
            let (moments, height, width, hash) = image?;
            total = total.join(moments);
            heights.push(height);
            widths.push(width);
            groups.entry(*hash.as_bytes()).or_default().push((s, format!("{split} {}", source.name(i))));
        }
        let range = |mut sides: Vec<usize>| {
            sides.sort_unstable();
            let side = |i: usize| sides.get(i).copied().unwrap_or(0);
            [side(0), side(sides.len() / 2), side(sides.len().saturating_sub(1))]
        };
        let mut classes: BTreeMap<String, usize> = data.classes.iter().map(|c| (c.clone(), 0)).collect();
        for label in source.labels().unwrap_or_default() {
            let name = data.classes.get(*label as usize).cloned().unwrap_or_else(|| label.to_string());
            *classes.entry(name).or_default() += 1;
        }
        splits.push(SplitStats {
            split: split.into(),
            images: source.len(),
            channels: total.statistics(),
            classes,
            heights: range(heights),
            widths: range(widths),
        });
    }
    let mut groups: Vec<Vec<(usize, String)>> = groups.into_values().filter(|g| g.len() > 1).collect();
    groups.sort();
    let shared_groups = groups.iter().filter(|g| g.iter().any(|m| m.0 != g[0].0)).count();
    let duplicates = groups.into_iter().map(|g| g.into_iter().map(|m| m.1).collect()).collect();
    Ok(Stats { description: data.description.clone(), splits, duplicates, shared_groups })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryImages;
    use pauc_testing::{assert_within, tolerance};
    use pauc_traits::ImageShape;
    use std::sync::Arc;

    fn data(train: &[u8], test: &[u8]) -> Splits {
        let shape = ImageShape { height: 1, width: 2, channels: 1 };
        let images = |values: &[u8]| {
            let pixels = values.iter().flat_map(|v| [*v, 2 * *v]).collect();
            let labels = values.iter().map(|v| u32::from(*v % 2)).collect();
            Arc::new(MemoryImages::new(shape, pixels, Some(labels)).unwrap())
        };
        Splits {
            train: images(train),
            test: Some(images(test)),
            classes: vec!["even".into(), "odd".into()],
            statistics: vec![(0.0, 1.0)],
            description: "numbers".into(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn stats_cover_all_pixels_and_find_duplicates() {
        let stats = stats(&data(&[1, 4, 1, 5], &[4, 7])).unwrap();
        let train = &stats.splits[0];
        let values = [1.0, 2.0, 4.0, 8.0, 1.0, 2.0, 5.0, 10.0].map(|v: f64| v / 255.0);
        let mean = values.iter().sum::<f64>() / 8.0;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 8.0;
        // Computed in `f64` and rounded once.
        assert_within!(train.channels[0].0, mean, tolerance::f32(1, mean));
        assert_within!(train.channels[0].1, variance.sqrt(), tolerance::f32(1, variance.sqrt()));
        assert_eq!((train.classes["odd"], train.classes["even"], train.widths), (3, 1, [2; 3]));
        let twice = [vec!["train image 0", "train image 2"], vec!["train image 1", "test image 0"]];
        assert_eq!(
            (stats.duplicates, stats.shared_groups),
            (twice.map(|g| g.into_iter().map(String::from).collect()).to_vec(), 1)
        );
    }

    #[test]
    fn an_index_shows_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.json");
        let before = index(&data(&[1, 4, 3], &[4])).unwrap();
        before.write(&path).unwrap();
        assert_eq!(Index::read(&path).unwrap(), before);
        assert!(before.differences(&before).is_empty());
        let after = index(&data(&[1, 6], &[4, 9])).unwrap();
        assert_eq!(
            before.differences(&after),
            ["train image 1: different image", "train image 2: missing", "test image 1: new"]
        );
        let mut relabeled = before.clone();
        relabeled.images[0].class = None;
        assert_eq!(before.differences(&relabeled), ["train image 0: class changed from odd to none"]);
    }

    #[test]
    fn a_truncated_or_edited_index_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.json");
        assert!(Index::read(&path).unwrap_err().to_string().contains("data index"));
        index(&data(&[1, 4], &[4])).unwrap().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for cut in 0..text.len() - 1 {
            std::fs::write(&path, &text[..cut]).unwrap();
            if cut < text.trim_end().len() {
                assert!(Index::read(&path).is_err(), "{cut}");
            }
        }
        std::fs::write(&path, text.replace("\"odd\"", "\"even\"")).unwrap();
        assert!(Index::read(&path).unwrap_err().to_string().contains("was edited"));
    }
}
