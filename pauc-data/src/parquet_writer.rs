//! Writes tables of numbers and names as Parquet files.

use base64::Engine;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int64Type};
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
    /// One text per row.
    Texts(&'a [String]),
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
            Cells::Texts(v) => v.len(),
            Cells::Lists { values, width } => values.len() / (*width).max(1),
        }
    }
}

/// Writes named columns of equal length and metadata as one Parquet file, atomically. Lists become
/// three-level lists without nulls. The metadata `ARROW:schema` says that they have one size, so that Arrow's
/// readers (PyArrow, pandas, Polars, DuckDB) see vectors.
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
        Cells::Texts(_) => format!("REQUIRED BINARY {name} (STRING);"),
        Cells::Lists { .. } => {
            format!("REQUIRED GROUP {name} (LIST) {{ REPEATED GROUP list {{ REQUIRED FLOAT element; }} }}")
        }
    };
    let fields: Vec<String> = columns.iter().map(field).collect();
    let schema = parse_message_type(&format!("message rows {{ {} }}", fields.join(" ")))?;
    let arrow =
        ("ARROW:schema", base64::engine::general_purpose::STANDARD.encode(arrow_schema(columns, metadata)));
    let pairs = metadata.iter().chain([&arrow]);
    let pairs = pairs.map(|(k, v)| KeyValue::new((*k).to_string(), v.clone())).collect();
    let properties = WriterProperties::builder().set_key_value_metadata(Some(pairs)).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    for (_, cells) in columns {
        let Some(mut column) = group.next_column()? else { break };
        match cells {
            Cells::Integers(v) => {
                column.typed::<Int64Type>().write_batch(v, None, None)?;
            }
            Cells::Texts(v) => {
                let texts: Vec<ByteArray> = v.iter().map(|text| text.as_str().into()).collect();
                column.typed::<ByteArrayType>().write_batch(&texts, None, None)?;
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

/// Slots of the tables in Arrow's flatbuffers, as offsets into their vtables: a slot's number × 2 + 4.
/// Source: <https://github.com/apache/arrow/blob/main/format/Schema.fbs> and `Message.fbs` beside it.
mod slot {
    use flatbuffers::VOffsetT;

    pub const MESSAGE_VERSION: VOffsetT = 4;
    pub const MESSAGE_HEADER_TYPE: VOffsetT = 6;
    pub const MESSAGE_HEADER: VOffsetT = 8;
    pub const SCHEMA_FIELDS: VOffsetT = 6;
    pub const SCHEMA_METADATA: VOffsetT = 8;
    pub const PAIR_KEY: VOffsetT = 4;
    pub const PAIR_VALUE: VOffsetT = 6;
    pub const FIELD_NAME: VOffsetT = 4;
    pub const FIELD_NULLABLE: VOffsetT = 6;
    pub const FIELD_TYPE_TYPE: VOffsetT = 8;
    pub const FIELD_TYPE: VOffsetT = 10;
    pub const FIELD_CHILDREN: VOffsetT = 14;
    /// Bits of an integer, precision of a float, size of a list.
    pub const TYPE_SIZE: VOffsetT = 4;
    pub const INT_IS_SIGNED: VOffsetT = 6;
}

/// A table of any type.
type Table = WIPOffset<flatbuffers::TableFinishedWIPOffset>;

/// Returns the schema of columns as Arrow's Parquet writers store it: an encapsulated IPC message. Arrow's readers
/// take the metadata from there.
fn arrow_schema(columns: &[(&str, Cells<'_>)], metadata: &[(&str, String)]) -> Vec<u8> {
    // Members of the enumerations `MetadataVersion` and `MessageHeader`.
    const V5: i16 = 4;
    const SCHEMA: u8 = 1;
    let mut b = FlatBufferBuilder::new();
    let fields: Vec<Table> = columns.iter().map(|(name, cells)| arrow_column(&mut b, name, cells)).collect();
    let fields = b.create_vector(&fields);
    let pairs: Vec<Table> = metadata.iter().map(|(key, value)| arrow_pair(&mut b, key, value)).collect();
    let pairs = b.create_vector(&pairs);
    let start = b.start_table();
    b.push_slot_always(slot::SCHEMA_FIELDS, fields);
    b.push_slot_always(slot::SCHEMA_METADATA, pairs);
    let schema = b.end_table(start);
    let start = b.start_table();
    b.push_slot_always(slot::MESSAGE_VERSION, V5);
    b.push_slot_always(slot::MESSAGE_HEADER_TYPE, SCHEMA);
    b.push_slot_always(slot::MESSAGE_HEADER, schema);
    let message = b.end_table(start);
    b.finish_minimal(message);
    // A message begins with a mark and its length, which is a multiple of 8.
    let mut bytes = b.finished_data().to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let length = (bytes.len() as u32).to_le_bytes();
    [&[0xff; 4], &length[..], &bytes].concat()
}

fn arrow_pair(b: &mut FlatBufferBuilder<'_>, key: &str, value: &str) -> Table {
    let (key, value) = (b.create_string(key), b.create_string(value));
    let start = b.start_table();
    b.push_slot_always(slot::PAIR_KEY, key);
    b.push_slot_always(slot::PAIR_VALUE, value);
    b.end_table(start)
}

/// Adds the description of a column.
fn arrow_column(b: &mut FlatBufferBuilder<'_>, name: &str, cells: &Cells<'_>) -> Table {
    // Members of the enumerations `Type` and `Precision`.
    const INT: u8 = 2;
    const FLOATING_POINT: u8 = 3;
    const UTF8: u8 = 5;
    const FIXED_SIZE_LIST: u8 = 16;
    const SINGLE: i16 = 1;
    match cells {
        Cells::Integers(_) => {
            let start = b.start_table();
            b.push_slot_always(slot::TYPE_SIZE, 64i32);
            b.push_slot_always(slot::INT_IS_SIGNED, true);
            let integer = b.end_table(start);
            arrow_field(b, name, (INT, integer), &[])
        }
        Cells::Texts(_) => {
            let start = b.start_table();
            let text = b.end_table(start);
            arrow_field(b, name, (UTF8, text), &[])
        }
        Cells::Lists { width, .. } => {
            let start = b.start_table();
            b.push_slot_always(slot::TYPE_SIZE, SINGLE);
            let float = b.end_table(start);
            let element = arrow_field(b, "element", (FLOATING_POINT, float), &[]);
            let start = b.start_table();
            b.push_slot_always(slot::TYPE_SIZE, *width as i32);
            let list = b.end_table(start);
            arrow_field(b, name, (FIXED_SIZE_LIST, list), &[element])
        }
    }
}

fn arrow_field(b: &mut FlatBufferBuilder<'_>, name: &str, kind: (u8, Table), children: &[Table]) -> Table {
    let name = b.create_string(name);
    let children = b.create_vector(children);
    let start = b.start_table();
    b.push_slot_always(slot::FIELD_NAME, name);
    b.push_slot_always(slot::FIELD_NULLABLE, false);
    b.push_slot_always(slot::FIELD_TYPE_TYPE, kind.0);
    b.push_slot_always(slot::FIELD_TYPE, kind.1);
    b.push_slot_always(slot::FIELD_CHILDREN, children);
    b.end_table(start)
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
        let names = ["a/ü.png".to_string(), String::new(), "c,\n".into()];
        let columns = [
            ("ids", Cells::Integers(&ids)),
            ("names", Cells::Texts(&names)),
            ("vectors", Cells::Lists { values: &values, width: 5 }),
        ];
        write(&path, &columns, &[("recipe", "0a1b".to_string())]).unwrap();
        let file = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
        let pairs = file.metadata().file_metadata().key_value_metadata().unwrap();
        assert!(pairs.iter().any(|p| p.key == "recipe" && p.value.as_deref() == Some("0a1b")));
        let rows: Vec<_> = file.get_row_iter(None).unwrap().map(|r| r.unwrap()).collect();
        assert_eq!(rows.len(), 3);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row.get_long(0).unwrap(), ids[i]);
            assert_eq!(row.get_string(1).unwrap(), &names[i]);
            let list = row.get_list(2).unwrap().elements().to_vec();
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
