//! Writes tables of numbers as Parquet files.

use parquet::data_type::{FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use pauc_traits::{Error, Result, atomic};
use std::path::Path;
use std::sync::Arc;

/// The cells of a column.
#[derive(Clone, Copy, Debug)]
pub enum Cells<'a> {
    /// One integer per row.
    Integers(&'a [i64]),
    /// A list of `width` numbers per row, row by row.
    Lists {
        /// All rows, concatenated.
        values: &'a [f32],
        /// The number of elements per row.
        width: usize,
    },
}

impl Cells<'_> {
    fn rows(&self) -> usize {
        match self {
            Cells::Integers(v) => v.len(),
            Cells::Lists { values, width } => values.len() / (*width).max(1),
        }
    }
}

/// Writes named columns of equal length and metadata as one Parquet file, atomically. Lists become
/// three-level lists without nulls, which pandas, PyArrow and Polars can read.
///
/// # Errors
/// If columns differ in length, a name is not an identifier, or the disk cannot be written.
pub fn write(path: &Path, columns: &[(&str, Cells<'_>)], metadata: &[(&str, String)]) -> Result<()> {
    let rows = columns.first().map_or(0, |(_, cells)| cells.rows());
    if let Some((name, cells)) = columns.iter().find(|(_, cells)| cells.rows() != rows) {
        let message = format!("column `{name}` has {} rows, but `{}` has {rows}", cells.rows(), columns[0].0);
        return Err(Error::shape("table", message));
    }
    let bytes = encode(columns, metadata).map_err(|e| Error::Other(e.into()))?;
    atomic::write(path, &bytes)
}

fn encode(
    columns: &[(&str, Cells<'_>)],
    metadata: &[(&str, String)],
) -> std::result::Result<Vec<u8>, ParquetError> {
    let field = |(name, cells): &(&str, Cells<'_>)| match cells {
        Cells::Integers(_) => format!("REQUIRED INT64 {name};"),
        Cells::Lists { .. } => {
            format!("REQUIRED GROUP {name} (LIST) {{ REPEATED GROUP list {{ REQUIRED FLOAT element; }} }}")
        }
    };
    let fields: Vec<String> = columns.iter().map(field).collect();
    let schema = parse_message_type(&format!("message rows {{ {} }}", fields.join(" ")))?;
    let pairs = metadata.iter().map(|(k, v)| KeyValue::new((*k).to_string(), v.clone())).collect();
    let properties = WriterProperties::builder().set_key_value_metadata(Some(pairs)).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for (_, cells) in columns {
        let Some(mut column) = group.next_column()? else { break };
        match cells {
            Cells::Integers(v) => {
                column.typed::<Int64Type>().write_batch(v, None, None)?;
            }
            Cells::Lists { values, width } => {
                // All values are present. The first value of a row begins a list, the others continue it.
                let defined = vec![1; values.len()];
                let repeated: Vec<i16> = (0..values.len()).map(|i| i16::from(i % width != 0)).collect();
                column.typed::<FloatType>().write_batch(values, Some(&defined), Some(&repeated))?;
            }
        }
        column.close()?;
    }
    group.close()?;
    writer.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Field, RowAccessor};

    #[test]
    fn written_values_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let values: Vec<f32> = (0..15).map(|i| i as f32 / 7.0).collect();
        let ids = [4, -5, 6];
        let columns =
            [("ids", Cells::Integers(&ids)), ("vectors", Cells::Lists { values: &values, width: 5 })];
        write(&path, &columns, &[("recipe", "0a1b".to_string())]).unwrap();
        let file = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        let pairs = file.metadata().file_metadata().key_value_metadata().unwrap();
        assert!(pairs.iter().any(|p| p.key == "recipe" && p.value.as_deref() == Some("0a1b")));
        let rows: Vec<_> = file.get_row_iter(None).unwrap().map(|r| r.unwrap()).collect();
        assert_eq!(rows.len(), 3);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row.get_long(0).unwrap(), ids[i]);
            let list = row.get_list(1).unwrap().elements().to_vec();
            let want: Vec<_> = values[5 * i..5 * i + 5].iter().map(|v| Field::Float(*v)).collect();
            assert_eq!(list, want);
        }
    }

    #[test]
    fn columns_of_different_lengths_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let columns = [("a", Cells::Integers(&[1, 2])), ("b", Cells::Integers(&[1]))];
        let why = write(&path, &columns, &[]).unwrap_err().to_string();
        assert!(why.contains("column `b` has 1 rows, but `a` has 2"), "{why}");
        assert!(!path.exists());
    }
}
