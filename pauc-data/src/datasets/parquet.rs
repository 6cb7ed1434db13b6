//! Images in Parquet files.

mod read;

use super::pictures::locator::{Archive, Content, Locator};
use super::pictures::{Files, Listed, Pictures, number_labels, picture_set};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Count, Dataset, Error, Result, UnitInterval};
use read::{Columns, Table};
use std::path::{Path, PathBuf};
use std::sync::Arc;

picture_set! {
    /// Images in Parquet files, in Hugging Face's layout: a column of encoded images, and a column of labels.
    ///
    /// Images are the binary column `image`, or the field `bytes` of the struct `image`. Labels are strings,
    /// or integers whose names come from the file's metadata if they are a `ClassLabel`. Files whose names
    /// begin with `train`, `test`, `validation` or `val` belong to that split. The encoded images are kept in
    /// memory. Files may be uncompressed or compressed with Snappy.
    pub struct Parquet {
        /// A file, or a folder of files ending in `.parquet`, in the order of their names.
        pub root: PathBuf,
        /// The column of images; by default `image` or `img`.
        pub image: Option<String> = None,
        /// The column of labels; by default `label`, `labels` or `fine_label` if there is one.
        pub label: Option<String> = None,
        /// The fraction of each class that is held out for testing if no file name gives a split; 0 for none.
        pub test_fraction: UnitInterval = UnitInterval::lit(0.1),
        /// The largest total size of the encoded images, in MiB.
        pub encoded_limit: Count = Count::lit(4096),
    }
}

/// Returns the Parquet files of a path, sorted by name.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let remedy = "set `root` to a .parquet file or a folder of them";
    if root.is_file() {
        return Ok(vec![root.to_path_buf()]);
    }
    let entries = std::fs::read_dir(root)
        .map_err(|_| Error::NotFound { path: root.to_path_buf(), remedy: remedy.into() })?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(root, e))?.path();
        let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(Error::damaged(root, format!("has no Parquet files; {remedy}")));
    }
    Ok(paths)
}

/// Whether a file name marks test images.
fn is_test(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    ["test", "val"].iter().any(|split| name.starts_with(split))
}

/// Images and their labels as text.
#[derive(Default)]
struct Rows {
    locators: Vec<Locator>,
    labels: Vec<String>,
}

impl Rows {
    fn add(&mut self, path: &Path, table: Table) {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let archive = Arc::new(Archive { path: path.to_path_buf(), content: Content::Unpacked(table.bytes) });
        let mut offset = 0;
        for (row, len) in table.lengths.iter().enumerate() {
            // Contains the file name, because the hash of the name decides whether an image is held out for
            // testing.
            let name = format!("{name} row {row}");
            self.locators.push(Locator::Part { archive: archive.clone(), name, offset, len: *len });
            offset += len;
        }
        self.labels.extend(table.labels.unwrap_or_default());
    }
}

impl Dataset for Parquet {
    fn open(&self, place: &Place) -> Result<Splits> {
        self.listed(place)?.open(&self.reading(), place)
    }

    fn list(&self, place: &Place) -> Result<Splits> {
        Ok(self.listed(place)?.list(&self.reading()))
    }
}

impl Parquet {
    fn listed(&self, place: &Place) -> Result<Listed> {
        let root = place.resolve(&self.root);
        let columns = Columns { image: self.image.as_deref(), label: self.label.as_deref() };
        let (mut train, mut test, mut names, mut labeled) = (Rows::default(), Rows::default(), None, None);
        let mut left = (self.encoded_limit.get() as u64) << 20;
        for path in files(&root)? {
            let table = read::read(&path, &columns, &mut left)?;
            if labeled.is_some_and(|l| l != table.labels.is_some()) {
                return Err(Error::damaged(
                    &path,
                    "differs from another file in whether it has labels; all files need them, or none",
                ));
            }
            labeled = Some(table.labels.is_some());
            names = names.or_else(|| table.names.clone());
            if is_test(&path) { &mut test } else { &mut train }.add(&path, table);
        }
        if train.locators.is_empty() {
            std::mem::swap(&mut train, &mut test); // there are only test files
        }
        let (mut classes, mut labels) = (Vec::new(), [None, None]);
        if labeled == Some(true) {
            let (names_of_classes, numbers) = number_labels(&[&train.labels, &test.labels]);
            classes = names_of_classes;
            let mut numbers = numbers.into_iter().map(Some);
            labels = [numbers.next().flatten(), numbers.next().flatten()];
            if let Some(names) = names {
                (classes, labels) = name(&root, classes, labels, names)?;
            }
        }
        let [train_labels, test_labels] = labels;
        let files = |rows: Rows, labels| Files { locators: rows.locators, labels, other_labels: None };
        let tests = (!test.locators.is_empty()).then(|| files(test, test_labels));
        let train = files(train, train_labels);
        let (train, test) = match tests {
            Some(tests) => (train, Some(tests)),
            None => train.split(self.test_fraction.get()),
        };
        let pictures = Pictures { train, test, classes, notes: Vec::new() };
        Ok(Listed { title: root.display().to_string(), origin: root, pictures })
    }
}

type Labels = [Option<Vec<u32>>; 2];

/// Maps labels from indices into `classes`, whose entries are numbers, to indices into `names`.
fn name(
    root: &Path,
    classes: Vec<String>,
    mut labels: Labels,
    names: Vec<String>,
) -> Result<(Vec<String>, Labels)> {
    let number = |c: &String| {
        let number = c.parse::<u32>().ok().filter(|n| (*n as usize) < names.len());
        number.ok_or_else(|| Error::damaged(root, format!("label {c} is not among {} classes", names.len())))
    };
    let numbers = classes.iter().map(number).collect::<Result<Vec<u32>>>()?;
    labels.iter_mut().flatten().flatten().for_each(|l| *l = numbers[*l as usize]);
    Ok((names, labels))
}

#[cfg(test)]
mod tests;
