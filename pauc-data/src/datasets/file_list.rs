//! Images listed in a table.

use super::cannot_open;
use super::pictures::{Files, Listed, Pictures, locator::Locator, number_labels, picture_set};
use pauc_traits::dataset::{Place, Splits};
use pauc_traits::{Dataset, Error, Result, UnitInterval};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

picture_set! {
    /// Your own images, listed in a table with one row per image: path and label.
    ///
    /// The table is CSV, or TSV if its first line has a tab. The columns are path, label and fine label; the
    /// last two are optional. A header line (`path`, `label`, `fine`, `split`) may change the order and add
    /// the split of each image: `train` or `test` (`val` and `validation` mean the same). Paths are relative
    /// to the table's folder. Classes are numbered in the order of their names, or by value if all labels are
    /// numbers. Without a column `split` and a table `test`, a fraction of each class is held out for
    /// testing, the same in every run.
    pub struct FileList {
        /// The table.
        pub list: PathBuf,
        /// The table of the test images.
        pub test: Option<PathBuf> = None,
        /// The folder that paths are relative to; by default the table's folder.
        pub root: Option<PathBuf> = None,
        /// The fraction of each class that is held out for testing if no split is given; 0 for none.
        pub test_fraction: UnitInterval = UnitInterval::lit(0.1),
    }
}

/// The rows of a table.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table {
    paths: Vec<String>,
    labels: Option<Vec<String>>,
    fine: Option<Vec<String>>,
    test: Option<Vec<bool>>,
}

/// The indices of a table's columns.
#[derive(Default)]
struct Columns {
    path: usize,
    label: Option<usize>,
    fine: Option<usize>,
    split: Option<usize>,
}

impl Columns {
    /// Returns the columns that a header line names; `None` if the line names no path column, and so is not a
    /// header.
    fn named(line: &csv::StringRecord) -> Option<Self> {
        let column =
            |names: &[&str]| line.iter().position(|c| names.contains(&c.trim().to_lowercase().as_str()));
        Some(Columns {
            path: column(&["path", "file", "filename", "file_name", "image"])?,
            label: column(&["label", "class", "coarse"]),
            fine: column(&["fine", "fine_label"]),
            split: column(&["split"]),
        })
    }

    fn plain(width: usize) -> Self {
        Columns { path: 0, label: (width > 1).then_some(1), fine: (width > 2).then_some(2), split: None }
    }
}

/// Reads a table; `origin` is its name in errors.
pub(super) fn read_table(text: impl Read, origin: &Path) -> Result<Table> {
    let mut text = BufReader::new(text);
    let start = text.fill_buf().map_err(|e| Error::io(origin, e))?;
    let first = start.split(|b| *b == b'\n').next().unwrap_or_default();
    let delimiter = if first.contains(&b'\t') { b'\t' } else { b',' };
    let mut lines = csv::ReaderBuilder::new()
        .has_headers(false)
        .delimiter(delimiter)
        .trim(csv::Trim::All)
        .from_reader(text);
    let mut table = Table::default();
    let mut columns: Option<Columns> = None;
    for record in lines.records() {
        let record =
            record.map_err(|e| Error::damaged(origin, format!("is not a valid CSV or TSV table: {e}")))?;
        let line = record.position().map_or(0, csv::Position::line);
        let columns = match &columns {
            Some(columns) => columns,
            None => {
                let named = Columns::named(&record);
                let header = named.is_some();
                let chosen = named.unwrap_or_else(|| Columns::plain(record.len()));
                table.labels = chosen.label.map(|_| Vec::new());
                table.fine = chosen.fine.map(|_| Vec::new());
                table.test = chosen.split.map(|_| Vec::new());
                let chosen = columns.insert(chosen);
                if header {
                    continue;
                }
                chosen
            }
        };
        let cell = |column: usize, what: &str| match record.get(column).map(str::trim) {
            Some(text) if !text.is_empty() => Ok(text.to_string()),
            _ => Err(Error::damaged(origin, format!("line {line} has no {what}"))),
        };
        table.paths.push(cell(columns.path, "path")?);
        if let (Some(label), Some(labels)) = (columns.label, &mut table.labels) {
            labels.push(cell(label, "label")?);
        }
        if let (Some(fine), Some(fine_labels)) = (columns.fine, &mut table.fine) {
            fine_labels.push(cell(fine, "fine label")?);
        }
        if let (Some(split), Some(test)) = (columns.split, &mut table.test) {
            test.push(match cell(split, "split")?.to_lowercase().as_str() {
                "train" => false,
                "test" | "val" | "validation" => true,
                other => {
                    let message = format!(
                        "line {line} has the split {other:?}; expected `train`, `test`, `val` or `validation`"
                    );
                    return Err(Error::damaged(origin, message));
                }
            });
        }
    }
    if table.paths.is_empty() {
        return Err(Error::damaged(origin, "lists no images; write one path and label per line"));
    }
    Ok(table)
}

impl Table {
    fn open(path: &Path) -> Result<Self> {
        let remedy = "write a table of images there, with one line `path,label` per image";
        read_table(File::open(path).map_err(|e| cannot_open(path, e, remedy))?, path)
    }

    fn part(&self, test: bool) -> Table {
        let keep = |i: &usize| self.test.as_ref().is_some_and(|t| t[*i] == test);
        let chosen: Vec<usize> = (0..self.paths.len()).filter(keep).collect();
        let pick = |all: &Vec<String>| chosen.iter().map(|i| all[*i].clone()).collect::<Vec<_>>();
        Table {
            paths: pick(&self.paths),
            labels: self.labels.as_ref().map(pick),
            fine: self.fine.as_ref().map(pick),
            test: None,
        }
    }
}

impl Dataset for FileList {
    fn open(&self, place: &Place) -> Result<Splits> {
        self.listed(place)?.open(&self.reading(), place)
    }

    fn list(&self, place: &Place) -> Result<Splits> {
        Ok(self.listed(place)?.list(&self.reading()))
    }
}

impl FileList {
    fn listed(&self, place: &Place) -> Result<Listed> {
        let list = place.resolve(&self.list);
        let table = Table::open(&list)?;
        let (train, test) = match (&self.test, &table.test) {
            (Some(_), Some(_)) => {
                return Err(Error::damaged(
                    &list,
                    "has a column `split`, and `test` names a second table; remove one of the two",
                ));
            }
            (Some(path), None) => (table, Some(Table::open(&place.resolve(path))?)),
            (None, Some(_)) => (table.part(false), Some(table.part(true))),
            (None, None) => (table, None),
        };
        let root = match (&self.root, list.parent()) {
            (Some(root), _) => place.resolve(root),
            (None, Some(folder)) => folder.to_path_buf(),
            (None, None) => place.base.clone(),
        };
        let pictures = self.number(&list, &root, train, test)?;
        Ok(Listed { title: list.display().to_string(), origin: list, pictures })
    }
}

impl FileList {
    fn number(&self, list: &Path, root: &Path, train: Table, test: Option<Table>) -> Result<Pictures> {
        let empty = Vec::new();
        let columns = |column: fn(&Table) -> &Option<Vec<String>>| -> Option<[&Vec<String>; 2]> {
            let tests = test.as_ref().map_or(Some(&empty), |t| column(t).as_ref());
            Some([column(&train).as_ref()?, tests?])
        };
        let numbered = |column| {
            columns(column).map(|[a, b]| {
                let (names, mut labels) = number_labels(&[a, b]);
                (names, labels.pop().unwrap_or_default(), labels.pop().unwrap_or_default())
            })
        };
        if test.as_ref().is_some_and(|t| t.labels.is_some() != train.labels.is_some()) {
            return Err(Error::damaged(
                list,
                "only one of the tables of training and test images has labels",
            ));
        }
        let (classes, test_labels, train_labels) =
            numbered(|t| &t.labels).map_or((Vec::new(), None, None), |n| (n.0, Some(n.1), Some(n.2)));
        if let (Some(train), Some(test)) = (&train_labels, &test_labels)
            && let Some(unknown) = test.iter().find(|l| !train.contains(l))
        {
            let message = format!(
                "has test images of class {:?}, but no training images of it",
                classes[*unknown as usize]
            );
            return Err(Error::damaged(list, message));
        }
        let (test_fine, train_fine) = numbered(|t| &t.fine).map_or((None, None), |n| (Some(n.1), Some(n.2)));
        let files = |table: &Table, labels, other_labels| Files {
            locators: table.paths.iter().map(|p| Locator::file(root.join(p), root)).collect(),
            labels,
            other_labels,
        };
        let train = files(&train, train_labels, train_fine);
        let (train, test) = match &test {
            Some(table) => (train, Some(files(table, test_labels, test_fine))),
            None => train.split(self.test_fraction.get()),
        };
        Ok(Pictures { train, test, classes, notes: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_traits::component_ron::options;
    use pauc_traits::dataset::ImageSource;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..10u8 {
            let picture = image::RgbImage::from_pixel(3, 2, image::Rgb([i, 0, 0]));
            picture.save(folder.path().join(format!("{i}.png"))).unwrap();
        }
        folder
    }

    fn open(folder: &Path, fields: &str) -> Result<Splits> {
        let set: FileList = options().from_str(&format!("FileList(list: \"list.csv\", {fields})")).unwrap();
        set.open(&Place::at(folder))
    }

    fn reds(source: &dyn ImageSource) -> Vec<u8> {
        (0..source.len()).map(|i| source.image(i).unwrap().pixels[0]).collect()
    }

    #[test]
    fn images_come_in_the_order_of_the_lines() {
        let folder = folder();
        let write = |text: &str| std::fs::write(folder.path().join("list.csv"), text).unwrap();
        write("\u{feff}3.png,dog\n1.png,\"cat, small\"\r\n\n2.png,dog\n");
        let splits = open(folder.path(), "test_fraction: 0").unwrap();
        assert_eq!(
            (reds(&*splits.train), splits.classes),
            (vec![3, 1, 2], vec!["cat, small".into(), "dog".into()])
        );
        assert_eq!(splits.train.labels().unwrap(), [1, 0, 1]);
        assert!(splits.train.name(0).ends_with("3.png"));
        assert_eq!(splits.train.path(0).unwrap(), "3.png");
        write("5.png\t10\t7\n6.png\t9\t8\n");
        let splits = open(folder.path(), "test_fraction: 0").unwrap();
        assert_eq!(splits.classes, ["9", "10"], "numbers are ordered as numbers");
        assert_eq!(
            (splits.train.labels().unwrap(), splits.train.fine_labels().unwrap()),
            (&[1, 0][..], &[0, 1][..])
        );
        write("4.png\n7.png\n");
        assert_eq!(open(folder.path(), "test_fraction: 0").unwrap().train.labels(), None);
        let table: String = (0..10).map(|i| format!("{i}.png,{}\n", i % 2)).collect();
        write(&table);
        let splits = open(folder.path(), "test_fraction: 0.2").unwrap();
        let mut labels = splits.test.unwrap().labels().unwrap().to_vec();
        labels.sort_unstable();
        assert_eq!((splits.train.len(), labels), (8, vec![0, 1]));
    }

    #[test]
    fn a_header_line_names_the_columns() {
        let folder = folder();
        let text = "split,label,path\ntrain,a,1.png\nval,a,2.png\ntrain,b,3.png\n";
        std::fs::write(folder.path().join("list.csv"), text).unwrap();
        let splits = open(folder.path(), "").unwrap();
        assert_eq!((reds(&*splits.train), reds(&**splits.test.as_ref().unwrap())), (vec![1, 3], vec![2]));
        std::fs::create_dir(folder.path().join("tables")).unwrap();
        std::fs::write(folder.path().join("list.csv"), "path,label\n1.png,a\n").unwrap();
        std::fs::write(folder.path().join("tables/t.tsv"), "2.png\ta\n").unwrap();
        let splits = open(folder.path(), "test: \"tables/t.tsv\", root: \".\"").unwrap();
        assert_eq!(reds(&*splits.test.unwrap()), [2]);
    }

    #[test]
    fn errors_give_the_line_number() {
        let folder = folder();
        let error = |text: &str| {
            std::fs::write(folder.path().join("list.csv"), text).unwrap();
            open(folder.path(), "test_fraction: 0").err().unwrap().to_string()
        };
        assert!(error("1.png,a\n2.png\n").contains("line: 2"), "{}", error("1.png,a\n2.png\n"));
        assert!(error("1.png,a\n2.png,\n").contains("line 2 has no label"));
        assert!(error("path,split\n1.png,left\n").contains("line 2 has the split \"left\""));
        assert!(error("").contains("lists no images"));
        assert!(
            error("path,split,label\n1.png,train,a\n2.png,test,b\n").contains("test images of class \"b\"")
        );
        assert!(error("1.png,a\nnone.png,a\n").contains("none.png"));
        assert!(error("1.png,\u{0}\n2.png,\n").contains("line 2"));
        let table = folder.path().join("list.csv");
        std::fs::remove_file(&table).unwrap();
        assert!(open(folder.path(), "").err().unwrap().to_string().contains("not found"));
    }
}
