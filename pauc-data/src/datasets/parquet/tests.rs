use super::*;
use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

/// Writes a file like Hugging Face's `datasets`: images, their original paths, class labels; null for `None`.
fn write(path: &Path, rows: &[(Option<Vec<u8>>, Option<i64>)], names: Option<&str>, group: usize) {
    let schema = "message schema { OPTIONAL GROUP image { OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (UTF8); } \
                  OPTIONAL INT64 label; }";
    let metadata = names.map(|n| {
        let text = format!(
            "{{\"info\": {{\"features\": {{\"label\": {{\"names\": {n}, \"_type\": \"ClassLabel\"}}}}}}}}"
        );
        vec![KeyValue::new("huggingface".to_string(), text)]
    });
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_key_value_metadata(metadata)
        .build();
    let file = std::fs::File::create(path).unwrap();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for rows in rows.chunks(group) {
        let mut out = file.next_row_group().unwrap();
        let bytes: Vec<ByteArray> = rows.iter().filter_map(|r| r.0.clone().map(ByteArray::from)).collect();
        let levels: Vec<i16> = rows.iter().map(|r| if r.0.is_some() { 2 } else { 1 }).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&bytes, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().filter_map(|r| r.1).collect();
        let levels: Vec<i16> = rows.iter().map(|r| i16::from(r.1.is_some())).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&levels), None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    file.close().unwrap();
}

/// An image of one color as PNG.
fn picture(shade: u8) -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(5, 4, image::Rgb([shade, 1, 2]))
        .write_to(&mut out, image::ImageFormat::Png)
        .unwrap();
    out.into_inner()
}

fn rows(shades: std::ops::Range<u8>) -> Vec<(Option<Vec<u8>>, Option<i64>)> {
    shades.map(|s| (Some(picture(s)), Some(i64::from(s % 3)))).collect()
}

fn open(fields: &str, base: &Path) -> Result<Splits> {
    let set: Parquet = pauc_traits::component_ron::options().from_str(&format!("Parquet({fields})")).unwrap();
    set.open(&Place::at(base))
}

#[test]
fn images_labels_and_names_are_read_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let names = Some("[\"ant\", \"bee\", \"cow\", \"dog\"]");
    write(&folder.path().join("train-00000-of-00002.parquet"), &rows(0..10), names, 4);
    write(&folder.path().join("train-00001-of-00002.parquet"), &rows(10..12), names, 4);
    write(&folder.path().join("test-00000-of-00001.parquet"), &rows(100..103), names, 4);
    let splits = open("root: \".\"", folder.path()).unwrap();
    // The metadata has a class that no row has.
    assert_eq!(splits.classes, ["ant", "bee", "cow", "dog"]);
    let test = splits.test.unwrap();
    assert_eq!((splits.train.len(), test.len()), (12, 3));
    for i in 0..12 {
        let image = splits.train.image(i).unwrap();
        assert_eq!((image.shape.height, image.shape.width, &image.pixels[..3]), (4, 5, &[i as u8, 1, 2][..]));
        assert_eq!(splits.train.labels().unwrap()[i], i as u32 % 3);
    }
    assert_eq!(test.labels().unwrap(), [1, 2, 0]);
    assert!(
        splits.train.name(11).ends_with("train-00001-of-00002.parquet row 1"),
        "{}",
        splits.train.name(11)
    );
}

#[test]
fn one_file_without_names_is_split() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("all.parquet"), &rows(0..30), None, 100);
    let splits = open("root: \"all.parquet\", test_fraction: 0.2", folder.path()).unwrap();
    assert_eq!((splits.train.len(), splits.test.unwrap().len()), (24, 6));
    assert_eq!(splits.classes, ["0", "1", "2"]);
}

#[test]
fn errors_name_the_row_or_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.parquet");
    let error =
        |fields: &str| open(&format!("root: \".\"{fields}"), folder.path()).err().unwrap().to_string();
    assert!(error("").contains("has no Parquet files"));
    let mut damaged = rows(0..6);
    damaged[4].0 = None;
    write(&path, &damaged, None, 4);
    assert!(error("").contains("row 4 has no value in column image.bytes"), "{}", error(""));
    damaged = rows(0..6);
    damaged[2].1 = None;
    write(&path, &damaged, None, 4);
    assert!(error("").contains("row 2 has no value in column label"), "{}", error(""));
    write(&path, &rows(0..6), Some("[\"only\"]"), 4);
    assert!(error("").contains("label 1 is not among 1 classes"), "{}", error(""));
    write(&path, &rows(0..6), None, 4);
    let text = error(", image: \"picture\"");
    assert!(
        text.contains("no image column `picture`") && text.contains("image.bytes, image.path, label"),
        "{text}"
    );
    assert!(error(", label: \"class\"").contains("no label column `class`"));
    // More than the limit, in bytes that hardly compress.
    let noise: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    write(&path, &[(Some(noise), Some(0)), (Some(picture(1)), Some(0))], None, 4);
    assert!(error(", encoded_limit: 1").contains("encoded_limit"), "{}", error(", encoded_limit: 1"));
    // A file truncated anywhere is an error, not a panic.
    write(&path, &rows(0..6), None, 4);
    let complete = std::fs::read(&path).unwrap();
    for cut in (0..complete.len()).step_by(7) {
        std::fs::write(&path, &complete[..cut]).unwrap();
        assert!(open("root: \".\"", folder.path()).is_err(), "{cut}");
    }
}
