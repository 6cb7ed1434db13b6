//! Reads the image and label columns of a Parquet file.

use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::schema::types::SchemaDescriptor;
use pauc_traits::{Error, Result};
use std::fs::File;
use std::path::Path;

/// The requested columns; `None`: the usual ones.
pub(super) struct Columns<'a> {
    pub image: Option<&'a str>,
    pub label: Option<&'a str>,
}

/// The content of a file.
pub(super) struct Table {
    /// All encoded images, concatenated.
    pub bytes: Vec<u8>,
    /// The length of each encoded image.
    pub lengths: Vec<u64>,
    /// The labels as text.
    pub labels: Option<Vec<String>>,
    /// The class names in numeric order, if the file has them.
    pub names: Option<Vec<String>>,
}

/// The usual names of the image column, and the possible endings of its path.
const IMAGE: Usual = Usual { what: "image", names: &["image", "img"], endings: &["", ".bytes"] };
/// The usual names of the label column.
const LABEL: Usual = Usual { what: "label", names: &["label", "labels", "fine_label"], endings: &[""] };

/// How to find a column.
struct Usual {
    /// The field of the recipe that names it.
    what: &'static str,
    names: &'static [&'static str],
    endings: &'static [&'static str],
}

impl Usual {
    /// Returns the requested column, or else the first of the usual ones.
    fn find(&self, schema: &SchemaDescriptor, asked: Option<&str>) -> Option<usize> {
        match asked {
            Some(name) => find(schema, name, self.endings),
            None => self.names.iter().find_map(|name| find(schema, name, self.endings)),
        }
    }

    fn missing(&self, schema: &SchemaDescriptor, asked: Option<&str>, path: &Path) -> Error {
        let columns: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let (what, asked) = (self.what, asked.map_or(String::new(), |a| format!(" `{a}`")));
        let message = format!(
            "has no {what} column{asked}; its columns are {}; choose one with `{what}: …`",
            columns.join(", ")
        );
        Error::damaged(path, message)
    }
}

/// Reads a file and subtracts the bytes of its images from `left`.
///
/// # Errors
/// If it is not a Parquet file, lacks the columns, a row lacks its image or label, or there are more bytes
/// than `left`.
pub(super) fn read(path: &Path, columns: &Columns<'_>, left: &mut u64) -> Result<Table> {
    let damaged = |e: ParquetError| Error::damaged(path, format!("is not a valid Parquet file: {e}"));
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let metadata = reader.metadata().file_metadata();
    let schema = metadata.schema_descr();
    let image = IMAGE.find(schema, columns.image);
    let image = image.ok_or_else(|| IMAGE.missing(schema, columns.image, path))?;
    let label = LABEL.find(schema, columns.label);
    if label.is_none() && columns.label.is_some() {
        return Err(LABEL.missing(schema, columns.label, path));
    }
    let names = label.and_then(|l| {
        let entries = metadata.key_value_metadata()?;
        let text = entries.iter().find(|e| e.key == "huggingface")?.value.as_deref()?;
        class_names(text, &schema.column(l).path().string())
    });
    let labels = label.map(|_| Vec::new());
    let mut table = Table { bytes: Vec::new(), lengths: Vec::new(), labels, names };
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let first = table.lengths.len();
        let column = |number: usize| -> Result<Column<'_>> {
            let name = schema.column(number).path().string();
            let reader = group.get_column_reader(number).map_err(damaged)?;
            Ok(Column { path, name, reader, rows, first })
        };
        column(image)?.pictures(&mut table, left)?;
        if let (Some(label), Some(texts)) = (label, &mut table.labels) {
            column(label)?.labels(texts)?;
        }
    }
    Ok(table)
}

/// A column of a row group.
struct Column<'a> {
    path: &'a Path,
    name: String,
    reader: ColumnReader,
    /// The number of rows in the group, and of rows before it.
    rows: usize,
    first: usize,
}

impl Column<'_> {
    /// Appends encoded images to the table. It reads them in parts, so that a file with a false size cannot
    /// exceed the limit.
    fn pictures(self, table: &mut Table, left: &mut u64) -> Result<()> {
        let Column { path, name, reader, rows, first } = self;
        let ColumnReader::ByteArrayColumnReader(reader) = reader else {
            return Err(Error::damaged(path, format!("column {name} is not binary")));
        };
        each(path, &name, reader, rows, first, |picture: &ByteArray| {
            let len = picture.len() as u64;
            *left = left.checked_sub(len).ok_or_else(|| {
                let message = "has more bytes of images than encoded_limit; raise it, or unpack the files";
                Error::damaged(path, message)
            })?;
            table.lengths.push(len);
            table.bytes.extend_from_slice(picture.data());
            Ok(())
        })
    }

    /// Appends labels as text.
    fn labels(self, texts: &mut Vec<String>) -> Result<()> {
        let Column { path, name, reader, rows, first } = self;
        let mut push = |text: String| {
            texts.push(text);
            Ok(())
        };
        match reader {
            ColumnReader::Int32ColumnReader(reader) => {
                each(path, &name, reader, rows, first, |v: &i32| push(v.to_string()))
            }
            ColumnReader::Int64ColumnReader(reader) => {
                each(path, &name, reader, rows, first, |v: &i64| push(v.to_string()))
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                let text = |v: &ByteArray| String::from_utf8_lossy(v.data()).into_owned();
                each(path, &name, reader, rows, first, |v| push(text(v)))
            }
            _ => {
                let message = format!("column {name} has neither integers nor strings");
                Err(Error::damaged(path, message))
            }
        }
    }
}

/// Returns the column of that name, or the one within a struct of that name. Repeated columns do not count.
fn find(schema: &SchemaDescriptor, name: &str, endings: &[&str]) -> Option<usize> {
    let fits = |path: &str| endings.iter().any(|e| path.strip_prefix(name) == Some(e));
    schema.columns().iter().position(|c| fits(&c.path().string()) && c.max_rep_level() == 0)
}

/// Calls `take` with each of the column's `rows` values; `first` rows precede them in the file.
fn each<T: DataType>(
    path: &Path,
    name: &str,
    mut column: ColumnReaderImpl<T>,
    rows: usize,
    first: usize,
    mut take: impl FnMut(&T::T) -> Result<()>,
) -> Result<()> {
    const AT_ONCE: usize = 256;
    let (mut values, mut levels, mut done) = (Vec::new(), Vec::new(), 0);
    while done < rows {
        values.clear();
        levels.clear();
        let want = AT_ONCE.min(rows - done);
        let (records, present, _) = column
            .read_records(want, Some(&mut levels), None, &mut values)
            .map_err(|e| Error::damaged(path, format!("column {name} cannot be read: {e}")))?;
        if records == 0 {
            let message = format!("column {name} ends after {} rows", first + done);
            return Err(Error::damaged(path, message));
        }
        if present != records {
            let most = levels.iter().max().copied().unwrap_or(0);
            let row = first + done + levels.iter().position(|l| *l < most).unwrap_or(0);
            return Err(Error::damaged(path, format!("row {row} has no value in column {name}")));
        }
        values.iter().try_for_each(&mut take)?;
        done += records;
    }
    Ok(())
}

/// Returns the names of a `ClassLabel` from the description that Hugging Face's `datasets` writes.
fn class_names(text: &str, column: &str) -> Option<Vec<String>> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = json.get("info")?.get("features")?.get(column)?.get("names")?;
    names.as_array()?.iter().map(|n| Some(n.as_str()?.to_string())).collect()
}
