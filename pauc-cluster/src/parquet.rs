//! Features from Parquet files.

use crate::feature_files::NAMES;
use crate::sample_columns::SampleColumns;
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;
use pauc_traits::{Error, Result};
use std::fs::File;
use std::path::Path;

/// Reads a matrix. Either every column of floats is a dimension, or one column of lists of floats has one row
/// per list. `column` names the column to read; others, such as labels and file names, are skipped. Returns
/// the values, row by row, and the number of dimensions.
///
/// # Errors
/// If the file is damaged, has no floats, a value is null, or lists differ in length.
pub fn read(path: &Path, file: File, column: Option<&str>) -> Result<(Vec<f32>, usize)> {
    let wrong = |why: String| Error::damaged(path, why);
    let damaged = |e: ParquetError| wrong(format!("not a readable Parquet file: {e}"));
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr();
    let columns = choose(schema, column).map_err(&wrong)?;
    let is_list = schema.column(columns[0]).max_rep_level() > 0;
    let (mut values, mut cols) = (Vec::new(), if is_list { 0 } else { columns.len() });
    for g in 0..metadata.num_row_groups() {
        let group = reader.get_row_group(g).map_err(damaged)?;
        let rows = usize::try_from(metadata.row_group(g).num_rows()).unwrap_or(0);
        let first = values.len();
        if !is_list {
            values.resize(first + rows * cols, 0.0f32);
        }
        for (at, leaf) in columns.iter().enumerate() {
            let name = schema.column(*leaf).name().to_string();
            let got = match group.get_column_reader(*leaf).map_err(damaged)? {
                ColumnReader::FloatColumnReader(c) => floats(c, rows, |v| v),
                ColumnReader::DoubleColumnReader(c) => floats(c, rows, |v| v as f32),
                _ => return Err(wrong(format!("column `{name}` does not hold floats"))),
            };
            let got = got.map_err(damaged)?;
            if is_list {
                let lengths = got.lengths(rows).map_err(|why| wrong(format!("column `{name}`: {why}")))?;
                cols = if g == 0 || cols == 0 { lengths } else { cols };
                if lengths != cols && rows > 0 {
                    return Err(wrong(format!(
                        "column `{name}` has lists of {cols} and of {lengths} values"
                    )));
                }
                values.extend(got.values);
            } else if got.values.len() != rows {
                let nulls = rows - got.values.len().min(rows);
                return Err(wrong(format!("column `{name}` has {nulls} nulls; fill or drop them")));
            } else {
                let places = values[first + at..].iter_mut().step_by(cols);
                places.zip(got.values).for_each(|(to, v)| *to = v);
            }
        }
    }
    if values.is_empty() || cols == 0 {
        return Err(wrong("has no rows".into()));
    }
    Ok((values, cols))
}

/// Reads the columns `ids` and `labels` of 64-bit integers, and `names` of text, as far as there are any.
///
/// # Errors
/// If the file is damaged, or one of them has nulls or is not UTF-8.
pub fn samples(path: &Path, file: File) -> Result<SampleColumns> {
    let wrong = |why: String| Error::damaged(path, why);
    let damaged = |e: ParquetError| wrong(format!("not a readable Parquet file: {e}"));
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let pairs = reader.metadata().file_metadata().key_value_metadata().into_iter().flatten();
    let split = pairs.filter(|pair| pair.key == "split").find_map(|pair| pair.value.clone());
    let mut columns = SampleColumns { split, ..SampleColumns::default() };
    for leaf in 0..schema.num_columns() {
        let column = schema.column(leaf);
        let name = column.path().string();
        if column.max_rep_level() > 0 {
            continue;
        }
        match (name.as_str(), column.physical_type()) {
            ("ids", Type::INT64) => columns.ids = Some(whole::<Int64Type>(path, &reader, leaf)?),
            ("labels", Type::INT64) => columns.labels = Some(whole::<Int64Type>(path, &reader, leaf)?),
            ("names", Type::BYTE_ARRAY) => {
                let texts = whole::<ByteArrayType>(path, &reader, leaf)?;
                let texts = texts.iter().map(|text| text.as_utf8().map(str::to_string));
                columns.names = Some(texts.collect::<std::result::Result<_, _>>().map_err(damaged)?);
            }
            _ => {}
        }
    }
    Ok(columns)
}

/// Reads a column of type `T`, which must be that of the file, without nulls.
fn whole<T: DataType>(path: &Path, reader: &SerializedFileReader<File>, leaf: usize) -> Result<Vec<T::T>> {
    let wrong = |why: String| Error::damaged(path, why);
    let damaged = |e: ParquetError| wrong(format!("not a readable Parquet file: {e}"));
    let mut values = Vec::new();
    for g in 0..reader.metadata().num_row_groups() {
        let column = reader.get_row_group(g).and_then(|group| group.get_column_reader(leaf));
        let column = get_typed_column_reader::<T>(column.map_err(damaged)?);
        let rows = usize::try_from(reader.metadata().row_group(g).num_rows()).unwrap_or(0);
        let before = values.len();
        read_records(column, rows, &mut values).map_err(damaged)?;
        if values.len() - before != rows {
            let name = reader.metadata().file_metadata().schema_descr().column(leaf).name().to_string();
            return Err(wrong(format!("column `{name}` has nulls; fill or drop them")));
        }
    }
    Ok(values)
}

/// Chooses the leaf columns that form a row.
fn choose(schema: &SchemaDescriptor, column: Option<&str>) -> std::result::Result<Vec<usize>, String> {
    let root = |leaf: usize| schema.column(leaf).path().parts().first().cloned().unwrap_or_default();
    let is_float = |leaf: &usize| matches!(schema.column(*leaf).physical_type(), Type::FLOAT | Type::DOUBLE);
    let all = 0..schema.num_columns();
    // As in safetensors files: what `embed` writes needs no choice.
    let is_list = |leaf: usize| is_float(&leaf) && schema.column(leaf).max_rep_level() > 0;
    let is_there = |name: &str| all.clone().any(|leaf| is_list(leaf) && root(leaf) == name);
    let column = column.or_else(|| NAMES.into_iter().find(|name| is_there(name)));
    let chosen: Vec<usize> =
        all.clone().filter(is_float).filter(|leaf| column.is_none_or(|name| root(*leaf) == name)).collect();
    let known: Vec<String> =
        all.map(|leaf| format!("{} ({})", root(leaf), schema.column(leaf).physical_type())).collect();
    let known = known.join(", ");
    let lists: Vec<String> = chosen
        .iter()
        .filter(|leaf| schema.column(**leaf).max_rep_level() > 0)
        .map(|leaf| root(*leaf))
        .collect();
    match (chosen.len(), lists.len()) {
        (0, _) => Err(match column {
            Some(name) => format!("has no column `{name}` of floats; it holds: {known}"),
            None => format!("has no column of floats; it holds: {known}"),
        }),
        (_, 0) | (1, 1) => Ok(chosen),
        _ => Err(format!(
            "has lists of floats in {}; choose one of these columns with --tensor",
            lists.join(", ")
        )),
    }
}

/// The values of a column in one row group.
struct Column {
    values: Vec<f32>,
    /// For lists: 0 at each value that begins a new list. Otherwise empty.
    repetition: Vec<i16>,
}

impl Column {
    /// Returns the common length of the lists.
    fn lengths(&self, rows: usize) -> std::result::Result<usize, String> {
        if self.values.len() != self.repetition.len() {
            return Err("has nulls or empty lists; fill or drop them".into());
        }
        let starts: Vec<usize> = (0..self.repetition.len()).filter(|i| self.repetition[*i] == 0).collect();
        let length = self.values.len().checked_div(rows).unwrap_or(0);
        let odd = starts.iter().enumerate().position(|(row, start)| *start != row * length);
        match odd {
            None if starts.len() == rows && length * rows == self.values.len() => Ok(length),
            Some(row) => {
                Err(format!("the list of row {} has another length than the others", row.saturating_sub(1)))
            }
            None => Err("lists differ in length".into()),
        }
    }
}

fn floats<T: DataType>(
    column: ColumnReaderImpl<T>,
    rows: usize,
    value: impl Fn(T::T) -> f32,
) -> std::result::Result<Column, ParquetError> {
    let mut read = Vec::new();
    let repetition = read_records(column, rows, &mut read)?;
    Ok(Column { values: read.into_iter().map(value).collect(), repetition })
}

/// Reads up to `rows` records of a column into `values`, and returns their repetition levels.
fn read_records<T: DataType>(
    mut column: ColumnReaderImpl<T>,
    rows: usize,
    values: &mut Vec<T::T>,
) -> std::result::Result<Vec<i16>, ParquetError> {
    let (mut definition, mut repetition, mut left) = (Vec::new(), Vec::new(), rows);
    while left > 0 {
        let (records, ..) =
            column.read_records(left, Some(&mut definition), Some(&mut repetition), values)?;
        if records == 0 {
            break;
        }
        left -= records;
    }
    Ok(repetition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{DoubleType, FloatType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    enum Leaf {
        Floats(Vec<f32>, Vec<i16>, Vec<i16>),
        Doubles(Vec<f64>),
        Integers(Vec<i64>),
    }

    /// Writes a file of row groups, each of leaf columns with definition and repetition levels.
    fn write(schema: &str, groups: Vec<Vec<Leaf>>) -> tempfile::TempPath {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
        for leaves in groups {
            let mut group = writer.next_row_group().unwrap();
            for leaf in leaves {
                let mut column = group.next_column().unwrap().unwrap();
                match leaf {
                    Leaf::Floats(v, d, r) => {
                        let levels = |l: Vec<i16>| (!l.is_empty()).then_some(l);
                        let (d, r) = (levels(d), levels(r));
                        column.typed::<FloatType>().write_batch(&v, d.as_deref(), r.as_deref()).unwrap();
                    }
                    Leaf::Doubles(v) => {
                        column.typed::<DoubleType>().write_batch(&v, None, None).unwrap();
                    }
                    Leaf::Integers(v) => {
                        column.typed::<Int64Type>().write_batch(&v, None, None).unwrap();
                    }
                }
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
        path
    }

    fn open(path: &Path, column: Option<&str>) -> Result<(Vec<f32>, usize)> {
        read(path, File::open(path).unwrap(), column)
    }

    const LISTS: &str = "message m { required int64 label; required group embedding (LIST) { repeated group list { required float element; } } }";

    #[test]
    fn columns_of_floats_are_dimensions() {
        let schema = "message m { required float a; required int64 label; required double b; }";
        let floats = |v: &[f32]| Leaf::Floats(v.to_vec(), Vec::new(), Vec::new());
        let groups = vec![
            vec![floats(&[1.0, 2.0]), Leaf::Integers(vec![7, 8]), Leaf::Doubles(vec![-1.0, -2.0])],
            vec![floats(&[3.0]), Leaf::Integers(vec![9]), Leaf::Doubles(vec![-3.0])],
        ];
        let path = write(schema, groups);
        assert_eq!(open(&path, None).unwrap(), (vec![1.0, -1.0, 2.0, -2.0, 3.0, -3.0], 2));
        assert_eq!(open(&path, Some("b")).unwrap(), (vec![-1.0, -2.0, -3.0], 1));
        let text = open(&path, Some("label")).unwrap_err().to_string();
        assert!(text.contains("no column `label` of floats") && text.contains("a (FLOAT)"), "{text}");
    }

    #[test]
    fn lists_of_one_length_are_rows() {
        let group = |v: &[f32], r: &[i16]| {
            let rows = r.iter().filter(|r| **r == 0).count() as i64;
            vec![Leaf::Integers((0..rows).collect()), Leaf::Floats(v.to_vec(), vec![1; r.len()], r.to_vec())]
        };
        let good =
            write(LISTS, vec![group(&[1.0, 2.0, 3.0, 4.0], &[0, 1, 0, 1]), group(&[5.0, 6.0], &[0, 1])]);
        assert_eq!(open(&good, None).unwrap(), (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2));
        let both = LISTS.replace("int64 label; ", "int64 label; required group features (LIST) { repeated group list { required float element; } } ")
            .replace("embedding ", "embeddings ");
        let lists = |v: &[f32]| Leaf::Floats(v.to_vec(), vec![1; 2], vec![0, 1]);
        let both = write(&both, vec![vec![Leaf::Integers(vec![0]), lists(&[7.0, 8.0]), lists(&[1.0, 2.0])]]);
        assert_eq!(open(&both, None).unwrap().0, [1.0, 2.0]);
        assert_eq!(open(&both, Some("features")).unwrap().0, [7.0, 8.0]);
        let ragged = write(LISTS, vec![group(&[1.0, 2.0, 3.0, 4.0], &[0, 1, 1, 0])]);
        assert!(open(&ragged, None).unwrap_err().to_string().contains("row 0 has another length"));
        let other = write(LISTS, vec![group(&[1.0, 2.0], &[0, 1]), group(&[5.0], &[0])]);
        assert!(open(&other, None).unwrap_err().to_string().contains("lists of 2 and of 1"));
    }

    #[test]
    fn nulls_and_damage_are_errors() {
        let schema = "message m { optional float a; }";
        let path = write(schema, vec![vec![Leaf::Floats(vec![1.0], vec![1, 0], Vec::new())]]);
        assert!(open(&path, None).unwrap_err().to_string().contains("1 nulls"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        assert!(open(&path, None).unwrap_err().to_string().contains("not a readable Parquet file"));
    }
}
