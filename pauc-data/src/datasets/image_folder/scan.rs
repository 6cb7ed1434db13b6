//! Assigns files to classes and splits.

use super::super::pictures::{Files, Pictures, kept_for_testing, locator::Locator};
use crate::decode::EXTENSIONS;
use pauc_traits::progress::{self, Task};
use pauc_traits::{Error, Result};
use std::path::{Path, PathBuf};

/// A class: its name, and its files in the order of their paths.
type Class = (String, Vec<PathBuf>);

/// The maximum depth of nested folders; deeper nesting is a cyclic link.
const DEPTH: usize = 32;

/// Finds the images of a folder. With `only`, finds those of the given classes and fails if one is missing.
pub(in super::super) fn scan(root: &Path, test_fraction: f64, only: Option<&[&str]>) -> Result<Pictures> {
    if !root.is_dir() {
        let remedy = "set `root` to a folder of images, or of folders of images".to_string();
        return Err(Error::NotFound { path: root.to_path_buf(), remedy });
    }
    let mut walk = Walk::new();
    let train = root.join("train");
    let has_train = train.is_dir();
    let folder = if has_train { &train } else { root };
    let (labeled, mut classes) = classes(folder, &mut walk)?;
    select(folder, &mut classes, only)?;
    let names: Vec<String> = classes.iter().filter(|_| labeled).map(|c| c.0.clone()).collect();
    let test_folder = ["val", "validation", "test"].map(|n| root.join(n)).into_iter().find(|p| p.is_dir());
    let (train, test) = match test_folder.filter(|_| has_train) {
        Some(folder) => {
            let (test_labeled, mut test) = self::classes(&folder, &mut walk)?;
            if test_labeled {
                select(&folder, &mut test, only)?;
            }
            if test_labeled != labeled {
                let message = "only one of the folders of training and test images has class folders";
                return Err(Error::damaged(&folder, message));
            }
            let is_trained_on = |c: &Class| !labeled || names.contains(&c.0);
            if let Some((name, _)) = test.iter().find(|c| !is_trained_on(c)) {
                return Err(Error::damaged(
                    folder.join(name),
                    "this class has no training images; add some or remove it from the test images",
                ));
            }
            (classes, test)
        }
        None => classes
            .into_iter()
            .map(|(name, files)| {
                let (train, test) = split(root, files, test_fraction);
                ((name.clone(), train), (name, test))
            })
            .unzip(),
    };
    let files = |classes: Vec<Class>| {
        let label = |name: &String| names.iter().position(|n| n == name).unwrap_or(0) as u32;
        let labels = classes.iter().flat_map(|(name, files)| std::iter::repeat_n(label(name), files.len()));
        let labels = labeled.then(|| labels.collect());
        let paths = classes.into_iter().flat_map(|(_, files)| files);
        Files { labels, locators: paths.map(|p| Locator::file(p, root)).collect(), other_labels: None }
    };
    let (train, test) = (files(train), files(test));
    let notes = (walk.ignored > 0).then(|| format!("{} other files ignored", walk.ignored));
    let notes = notes.into_iter().collect();
    Ok(Pictures { train, test: (!test.locators.is_empty()).then_some(test), classes: names, notes })
}

/// Returns whether the folder has class folders, and the classes sorted by name. Loose files form one class.
fn classes(folder: &Path, walk: &mut Walk) -> Result<(bool, Vec<Class>)> {
    let mut loose = Vec::new();
    let mut classes = Vec::new();
    for entry in walk.entries(folder)? {
        let path = entry.path;
        if entry.is_folder {
            let mut files = Vec::new();
            walk.collect(&path, DEPTH, &mut files)?;
            files.sort();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if !files.is_empty() {
                classes.push((name, files));
            }
        } else if is_picture(&path) {
            loose.push(path);
        } else {
            walk.ignore(path);
        }
    }
    match (loose.len(), classes.len()) {
        (0, 0) => Err(Error::damaged(
            folder,
            format!("has no images; expected files ending in {}{}", EXTENSIONS.join(", "), walk.hint()),
        )),
        (_, 0) => {
            loose.sort();
            Ok((false, vec![(String::new(), loose)]))
        }
        (0, _) => {
            classes.sort();
            Ok((true, classes))
        }
        (n, m) => Err(Error::damaged(
            folder,
            format!(
                "has {n} images beside {m} folders of images; move the images into folders, or move the folders elsewhere"
            ),
        )),
    }
}

/// An entry of a folder.
struct Entry {
    path: PathBuf,
    /// Whether it is a folder, or a link to one.
    is_folder: bool,
}

/// What was met on the way through the folders.
struct Walk {
    /// The number of files that are not images.
    ignored: usize,
    /// One of them that can be converted to images.
    convertible: Option<PathBuf>,
    task: Task,
}

impl Walk {
    fn new() -> Self {
        Walk { ignored: 0, convertible: None, task: progress::task("listing files", 0) }
    }

    fn ignore(&mut self, path: PathBuf) {
        self.ignored += 1;
        if super::super::remedy(&path).is_some()
            && self.convertible.as_ref().is_none_or(|other| path < *other)
        {
            self.convertible = Some(path);
        }
    }

    /// Says how to get images out of other files, if there are any for that.
    fn hint(&self) -> String {
        let Some(path) = &self.convertible else { return String::new() };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let remedy = super::super::remedy(path).unwrap_or_default();
        format!("; it has {} other files, such as {name}: {remedy}", self.ignored)
    }

    /// Returns the entries of a folder that are not hidden.
    fn entries(&self, folder: &Path) -> Result<Vec<Entry>> {
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::PermissionDenied => Error::damaged(
                folder,
                format!("cannot be listed: {e}; make it readable with `chmod -R u+rX`, or move it elsewhere"),
            ),
            _ => Error::io(folder, e),
        };
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            // The type of an entry comes with its name; only links need another look.
            let is_folder = match entry.file_type() {
                Ok(kind) if !kind.is_symlink() => kind.is_dir(),
                _ => path.is_dir(),
            };
            entries.push(Entry { path, is_folder });
            self.task.advance(1);
        }
        Ok(entries)
    }

    fn collect(&mut self, folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
        if depth == 0 {
            return Err(Error::damaged(
                folder,
                format!("is nested more than {DEPTH} folders deep; check for a cyclic link"),
            ));
        }
        for Entry { path, is_folder } in self.entries(folder)? {
            if is_folder {
                self.collect(&path, depth - 1, files)?;
            } else if is_picture(&path) {
                files.push(path);
            } else {
                self.ignore(path);
            }
        }
        Ok(())
    }
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    extension.is_some_and(|e| EXTENSIONS.contains(&&*e))
}

/// Holds out a fraction of a class for testing.
fn split(root: &Path, files: Vec<PathBuf>, fraction: f64) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let names: Vec<String> = files.iter().map(|p| Locator::file(p.clone(), root).key()).collect();
    let pairs = files.into_iter().zip(kept_for_testing(&names, fraction));
    let (test, train): (Vec<_>, Vec<_>) = pairs.partition(|(_, test)| *test);
    let paths = |pairs: Vec<(PathBuf, bool)>| pairs.into_iter().map(|p| p.0).collect();
    (paths(train), paths(test))
}

/// Keeps the classes of `only`.
fn select(folder: &Path, classes: &mut Vec<Class>, only: Option<&[&str]>) -> Result<()> {
    let Some(only) = only else { return Ok(()) };
    let missing: Vec<&str> = only.iter().copied().filter(|o| !classes.iter().any(|c| c.0 == *o)).collect();
    if let Some(first) = missing.first() {
        let message = format!(
            "has no folder with images for {} of {} classes, such as {first}",
            missing.len(),
            only.len()
        );
        return Err(Error::damaged(folder, message));
    }
    classes.retain(|c| only.contains(&&*c.0));
    Ok(())
}
