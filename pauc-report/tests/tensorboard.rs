//! Reads event files with the reader below, and with TensorBoard's if it is installed.

// Helpers may unwrap, like the tests themselves.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // this test needs only the events
mod synthetic;

use pauc_report::tensorboard::{EventFile, scalars};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Values by tag and step.
type Scalars = BTreeMap<String, BTreeMap<u64, f32>>;

/// An event file of a complete run, and its expected values.
fn written(folder: &Path) -> (std::path::PathBuf, Scalars) {
    let mut file = EventFile::create(folder).unwrap();
    let mut want = Scalars::new();
    for event in synthetic::events() {
        file.append(&event).unwrap();
        if let Some((step, values)) = scalars(&event) {
            for (tag, value) in values {
                want.entry(tag).or_default().insert(step, value as f32);
            }
        }
    }
    for tag in [
        "train/loss",
        "chance/InfoNce",
        "health/spread",
        "stages/forward_share",
        "loader/read_images_per_second",
    ] {
        assert!(want.contains_key(tag), "{tag}: {:?}", want.keys());
    }
    (file.path().to_path_buf(), want)
}

/// CRC32C with a table, as a check of the writer's bitwise version.
fn crc(data: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|byte| (0..8).fold(byte, |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 }))
        .collect();
    !data.iter().fold(!0, |c: u32, b| c >> 8 ^ table[((c ^ *b as u32) & 255) as usize])
}

fn masked(data: &[u8]) -> u32 {
    crc(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The fields of a protocol buffer: field number, and the bytes or the bits of the value.
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(data: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                return value;
            }
        }
    }
    let mut fields = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, varint(&mut data).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut data) as usize,
            5 => 4,
            kind => panic!("wire type {kind}"),
        };
        fields.push((key >> 3, data[..length].to_vec()));
        data = &data[length..];
    }
    fields
}

#[test]
fn every_record_is_framed_and_holds_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let (path, want) = written(folder.path());
    let bytes = std::fs::read(path).unwrap();
    let (mut offset, mut got, mut records) = (0, Scalars::new(), 0);
    let word = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
    while offset < bytes.len() {
        let length = u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap()) as usize;
        assert_eq!(word(offset + 8), masked(&bytes[offset..offset + 8]));
        let data = &bytes[offset + 12..offset + 12 + length];
        assert_eq!(word(offset + 12 + length), masked(data));
        offset += 16 + length;
        let event: BTreeMap<u64, Vec<u8>> = fields(data).into_iter().collect();
        assert!(f64::from_le_bytes(event[&1][..].try_into().unwrap()) > 1e9, "a time");
        if records == 0 {
            assert_eq!(event[&3], b"brain.Event:2");
        } else {
            let step = u64::from_le_bytes(event[&2][..].try_into().unwrap());
            for (_, value) in fields(&event[&5]) {
                let value: BTreeMap<u64, Vec<u8>> = fields(&value).into_iter().collect();
                let tag = String::from_utf8(value[&1].clone()).unwrap();
                let number = f32::from_le_bytes(value[&2][..].try_into().unwrap());
                got.entry(tag).or_default().insert(step, number);
            }
        }
        records += 1;
    }
    assert!(records > 1000 && got == want);
}

const READER: &str = r#"
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
events.Reload()
tags = events.Tags()["scalars"]
print(json.dumps({tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags}))
"#;

/// Returns a Python with TensorBoard: `PAUC_PYTHON`, or `python3`.
fn python() -> Option<String> {
    let python = std::env::var("PAUC_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = Command::new(&python).args(["-c", "import tensorboard"]).output();
    output.is_ok_and(|o| o.status.success()).then_some(python)
}

#[test]
fn tensorboard_reads_what_was_written() {
    let Some(python) = python() else {
        println!("skipped: no Python with tensorboard; set PAUC_PYTHON");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (path, want) = written(folder.path());
    let read = Command::new(python).args(["-c", READER]).arg(path).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let got: Scalars = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    assert!(got == want);
}
