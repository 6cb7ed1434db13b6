//! The two columns of a Parquet file that matter.

use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::{ByteArray, DataType};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::schema::types::SchemaDescriptor;
use pauc_traits::{Error, Result};
use std::fs::File;
use std::path::Path;

/// Which columns are asked for; `None`: the usual ones.
pub(super) struct Columns<'a> {
    pub image: Option<&'a str>,
    pub label: Option<&'a str>,
}

/// What a file holds.
pub(super) struct Table {
    /// All encoded pictures, one after the other.
    pub bytes: Vec<u8>,
    /// Their lengths.
    pub lengths: Vec<u64>,
    /// Their labels as text.
    pub labels: Option<Vec<String>>,
    /// The names of the classes, in the order of their numbers, if the file has them.
    pub names: Option<Vec<String>>,
}

/// Reads a file; takes the bytes of its pictures off `left`.
///
/// # Errors
/// If it is no Parquet file, has no such columns, a row lacks its picture or label, or there are more bytes than `left`.
pub(super) fn read(path: &Path, columns: &Columns<'_>, left: &mut u64) -> Result<Table> {
    let damaged = |e: ParquetError| Error::damaged(path, format!("cannot be read as a Parquet file: {e}"));
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let metadata = reader.metadata().file_metadata();
    let schema = metadata.schema_descr();
    let missing = |what: &str, asked: Option<&str>| {
        let known: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        let asked = asked.map_or(String::new(), |a| format!(" `{a}`"));
        let message =
            format!("has no {what} column{asked}; it has {}; name it with `{what}: …`", known.join(", "));
        Error::damaged(path, message)
    };
    let usual = |asked: Option<&str>, usual: &[&str], within: &[&str]| match asked {
        Some(name) => find(schema, name, within),
        None => usual.iter().find_map(|name| find(schema, name, within)),
    };
    let image = usual(columns.image, &["image", "img"], &["", ".bytes"]);
    let image = image.ok_or_else(|| missing("image", columns.image))?;
    let label = usual(columns.label, &["label", "labels", "fine_label"], &[""]);
    if let (None, Some(asked)) = (label, columns.label) {
        return Err(missing("label", Some(asked)));
    }
    let names = label.and_then(|l| {
        let entries = metadata.key_value_metadata()?;
        let text = entries.iter().find(|e| e.key == "huggingface")?.value.as_deref()?;
        class_names(text, &schema.column(l).path().string())
    });
    let mut table =
        Table { bytes: Vec::new(), lengths: Vec::new(), labels: label.map(|_| Vec::new()), names };
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(damaged)?;
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let column = |at: usize| group.get_column_reader(at).map_err(damaged);
        let of = |at: usize| schema.column(at).path().string();
        let first = table.lengths.len();
        let ColumnReader::ByteArrayColumnReader(pictures) = column(image)? else {
            return Err(Error::damaged(path, format!("its column {} has no binary values", of(image))));
        };
        // A part at a time, so that a file that lies about its size cannot take more than the limit.
        each(path, &of(image), pictures, rows, first, |picture: &ByteArray| {
            let len = picture.len() as u64;
            *left = left.checked_sub(len).ok_or_else(|| {
                Error::damaged(
                    path,
                    "has more bytes of pictures than encoded_limit; raise it, or unpack the files",
                )
            })?;
            table.lengths.push(len);
            table.bytes.extend_from_slice(picture.data());
            Ok(())
        })?;
        let (Some(label), Some(texts)) = (label, &mut table.labels) else { continue };
        let mut push = |text: String| {
            texts.push(text);
            Ok(())
        };
        match column(label)? {
            ColumnReader::Int32ColumnReader(r) => {
                each(path, &of(label), r, rows, first, |v: &i32| push(v.to_string()))?;
            }
            ColumnReader::Int64ColumnReader(r) => {
                each(path, &of(label), r, rows, first, |v: &i64| push(v.to_string()))?;
            }
            ColumnReader::ByteArrayColumnReader(r) => {
                let text = |v: &ByteArray| String::from_utf8_lossy(v.data()).into_owned();
                each(path, &of(label), r, rows, first, |v| push(text(v)))?;
            }
            _ => {
                let message = format!("its column {} has neither whole numbers nor texts", of(label));
                return Err(Error::damaged(path, message));
            }
        }
    }
    Ok(table)
}

/// The column of that name, or within a struct of that name; one that repeats is none.
fn find(schema: &SchemaDescriptor, name: &str, within: &[&str]) -> Option<usize> {
    let fits = |path: &str| within.iter().any(|w| path.strip_prefix(name) == Some(w));
    schema.columns().iter().position(|c| fits(&c.path().string()) && c.max_rep_level() == 0)
}

/// Calls `take` with each of the column's `rows` values, of which `first` came before.
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
        let (records, found, _) = column
            .read_records(want, Some(&mut levels), None, &mut values)
            .map_err(|e| Error::damaged(path, format!("its column {name} cannot be read: {e}")))?;
        if records == 0 {
            let message = format!("its column {name} ends after {} rows", first + done);
            return Err(Error::damaged(path, message));
        }
        if found != records {
            let most = levels.iter().max().copied().unwrap_or(0);
            let row = first + done + levels.iter().position(|l| *l < most).unwrap_or(0);
            return Err(Error::damaged(path, format!("row {row} has nothing in its column {name}")));
        }
        values.iter().try_for_each(&mut take)?;
        done += records;
    }
    Ok(())
}

/// The names of a `ClassLabel` in the description that Hugging Face's `datasets` writes.
fn class_names(text: &str, column: &str) -> Option<Vec<String>> {
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = json.get("info")?.get("features")?.get(column)?.get("names")?;
    names.as_array()?.iter().map(|n| Some(n.as_str()?.to_string())).collect()
}
