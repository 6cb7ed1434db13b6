//! Images in tar archives.

mod index;
mod scan;

use super::compressed;
use super::pictures::locator::{Archive, Content, Locator, Shared};
use super::pictures::{Files, Listed, Pictures, number_labels, picture_set};
use index::Index;
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Count, Dataset, Error, Result, UnitInterval};
pub use scan::{Bytes, Item, items};
use std::path::{Path, PathBuf};
use std::sync::Arc;

picture_set! {
    /// Images in one or more tar archives, plain or compressed with gzip.
    ///
    /// There are two naming schemes. In WebDataset's, `000017.jpg` and `000017.cls` share the name up to the
    /// first dot, and the second file holds the label as text. Otherwise an image's class is the name of its
    /// folder, and a folder `train`, `val`, `validation` or `test` above it gives the split. Images with
    /// neither have no labels.
    ///
    /// Plain archives are read in place. The position of every image is written to `index` once; archives
    /// whose size or modification time has changed are indexed again. The encoded images of compressed
    /// archives are kept in memory.
    pub struct Tar {
        /// An archive, or a folder of archives: files ending in `.tar`, `.tar.gz` or `.tgz`, in the order of their
        /// names.
        pub root: PathBuf,
        /// The archive, or folder of archives, of the test images.
        pub test: Option<PathBuf> = None,
        /// The fraction of each class that is held out for testing if no split is given; 0 for none.
        pub test_fraction: UnitInterval = UnitInterval::lit(0.1),
        /// The index file; by default `.pauc-index.json` beside the archives, if that is writable.
        pub index: Option<PathBuf> = None,
        /// The largest uncompressed size of a compressed archive, in MiB.
        pub unpacked_limit: Count = Count::lit(4096),
    }
}

/// Returns the archives of a path, sorted by name.
fn archives(root: &Path) -> Result<Vec<PathBuf>> {
    let remedy = "set `root` to a .tar, .tar.gz or .tgz file or a folder of them".to_string();
    if root.is_file() {
        return Ok(vec![root.to_path_buf()]);
    }
    let Ok(entries) = std::fs::read_dir(root) else {
        return Err(Error::NotFound { path: root.to_path_buf(), remedy });
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|e| Error::io(root, e))?.path());
    }
    paths.retain(|p| compressed(p).is_some() && p.is_file());
    paths.sort();
    if paths.is_empty() {
        return Err(Error::damaged(root, format!("has no archives; {remedy}")));
    }
    Ok(paths)
}

/// An image, its label, and whether its name puts it into the test split.
struct Picture {
    locator: Locator,
    label: Option<String>,
    test: bool,
}

impl Tar {
    /// Returns the images of all archives of `root`.
    fn pictures(&self, root: &Path, index: &mut Index) -> Result<Vec<Picture>> {
        let mut pictures = Vec::new();
        for path in archives(root)? {
            let (content, items) = if compressed(&path) == Some(true) {
                let (bytes, items) = {
                    let largest = crate::decode::max_file_size(self.reading().pixel_limit);
                    scan::unpack(&path, (self.unpacked_limit.get() as u64).saturating_mul(1 << 20), largest)?
                };
                (Content::Unpacked(bytes), items)
            } else {
                let (file, items) = index.open(&path)?;
                (Content::Plain(Shared::new(file)), items)
            };
            let archive = Arc::new(Archive { path, content });
            pictures.extend(items.into_iter().map(|Item { name, at, len, label }| {
                let mut folders: Vec<&str> = name.split('/').filter(|p| !matches!(*p, "" | ".")).collect();
                folders.pop();
                let split =
                    folders.iter().position(|f| matches!(*f, "train" | "val" | "validation" | "test"));
                let test = split.is_some_and(|i| folders[i] != "train");
                let class = folders.last().filter(|_| split != Some(folders.len() - 1));
                let label = label.or(class.map(|c| c.to_string()));
                let locator = Locator::Part { archive: archive.clone(), name, offset: at, len };
                Picture { locator, label, test }
            }));
        }
        if pictures.is_empty() {
            return Err(Error::damaged(root, "has no images in its archives"));
        }
        let labeled = pictures.iter().filter(|p| p.label.is_some()).count();
        if labeled != 0 && labeled != pictures.len() {
            let without = pictures.iter().find(|p| p.label.is_none());
            let without = without.map(|p| p.locator.path().display().to_string());
            let message = format!(
                "has {} images without a label beside {labeled} with one, such as {}",
                pictures.len() - labeled,
                without.unwrap_or_default()
            );
            return Err(Error::damaged(root, message));
        }
        Ok(pictures)
    }
}

impl Dataset for Tar {
    fn open(&self, place: &Place) -> Result<Splits> {
        self.listed(place)?.open(&self.reading(), place)
    }

    fn list(&self, place: &Place) -> Result<Splits> {
        Ok(self.listed(place)?.list(&self.reading()))
    }
}

impl Tar {
    fn listed(&self, place: &Place) -> Result<Listed> {
        let root = place.resolve(&self.root);
        let folder = if root.is_dir() { root.clone() } else { root.parent().unwrap_or(&root).to_path_buf() };
        let mut index = match &self.index {
            Some(path) => Index::read(&place.resolve(path)),
            None => Index::read(&folder.join(".pauc-index.json")),
        };
        let mut train = self.pictures(&root, &mut index)?;
        let mut test = match &self.test {
            Some(path) => self.pictures(&place.resolve(path), &mut index)?,
            None => {
                let (test, others) = train.into_iter().partition::<Vec<_>, _>(|p| p.test);
                train = others;
                test
            }
        };
        if train.is_empty() {
            std::mem::swap(&mut train, &mut test); // the archive has only a folder `test`
        }
        let mut notes = index.finish(self.index.is_some())?;
        let texts = |pictures: &[Picture]| -> Option<Vec<String>> {
            pictures.iter().map(|p| p.label.clone()).collect()
        };
        let (train_texts, test_texts) = (texts(&train), texts(&test));
        let (mut classes, mut train_labels, mut test_labels) = (Vec::new(), None, None);
        if let (Some(a), Some(b)) = (&train_texts, &test_texts) {
            let (names, mut labels) = number_labels(&[a, b]);
            (classes, test_labels, train_labels) = (names, labels.pop(), labels.pop());
        } else if train_texts.is_some() || test_texts.is_some() {
            notes.push("labels ignored, since only one of the splits has them".into());
        }
        let files = |pictures: Vec<Picture>, labels| Files {
            locators: pictures.into_iter().map(|p| p.locator).collect(),
            labels,
            other_labels: None,
        };
        let tests = (!test.is_empty()).then(|| files(test, test_labels));
        let train = files(train, train_labels);
        let (train, test) = match tests {
            Some(tests) => (train, Some(tests)),
            None => train.split(self.test_fraction.get()),
        };
        let pictures = Pictures { train, test, classes, notes };
        Ok(Listed { title: root.display().to_string(), origin: root, pictures })
    }
}

#[cfg(test)]
mod tests;
