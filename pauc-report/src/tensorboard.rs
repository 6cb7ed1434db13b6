//! Writes TensorBoard event files: `Event` protocol buffers in TensorFlow's record framing.
//!
//! A record consists of its length (u64), the masked CRC32C of the length, the data, and the masked CRC32C of
//! the data, all little-endian. An `Event` holds `wall_time` (1, double), `step` (2, int64), and
//! `file_version` (3, string) or `summary` (5). A summary holds values (1), each with `tag` (1, string) and
//! `simple_value` (2, float).

use crate::events::{Event, Stages, Subject};
use crate::protobuf::Message;
use pauc_traits::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file of a run. A resumed run starts another file in the same folder. TensorBoard reads them
/// together; for steps in both, the later file wins.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Creates the file `events.out.tfevents.<seconds>.pauc.<process>` in a folder.
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let time = now();
        let name = format!("events.out.tfevents.{:010}.pauc.{}", time as u64, std::process::id());
        let path = folder.join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let mut this = EventFile { file: file.map_err(|e| Error::io(&path, e))?, path };
        this.write(&record(Message::new().double(1, time).text(3, "brain.Event:2").bytes()))?;
        Ok(this)
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the numbers of an event in one write; events without numbers are skipped.
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub fn append(&mut self, event: &Event) -> Result<()> {
        match scalars(event) {
            Some((step, values)) if !values.is_empty() => self.write(&summary(now(), step, &values)),
            _ => Ok(()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Returns the step of an event and its numbers with their tags, without NaN and infinite numbers.
pub fn scalars(event: &Event) -> Option<(u64, Vec<(String, f64)>)> {
    let mut values: Vec<(String, f64)> = Vec::new();
    let mut put = |tag: String, value: f64| values.push((tag, value));
    let step = match event {
        Event::Step(e) => {
            put("train/loss".into(), e.loss);
            put("train/lr".into(), e.lr);
            put("train/gradient_norm".into(), e.grad_norm);
            put("train/images_per_second".into(), e.images_per_second);
            for t in &e.terms {
                put(format!("term/{}", t.name), t.value.unwrap_or(f64::NAN));
                put(format!("chance/{}", t.name), t.chance.unwrap_or(f64::NAN));
            }
            e.step
        }
        Event::Gradients(e) => {
            e.terms.iter().for_each(|t| put(format!("gradient/{}", t.name), t.norm));
            put("gradient/total".into(), e.total);
            e.pairs().for_each(|(a, b, cosine)| put(format!("gradient_cosine/{a}/{b}"), cosine));
            e.step
        }
        Event::Clustering(e) => {
            for l in &e.levels {
                let tag = |what: &str| format!("clusters/k{}/{what}", l.k);
                put(tag("objective"), l.objective);
                put(tag("imbalance"), l.imbalance);
                put(tag("empty"), l.empty as f64);
                put(tag("concentration"), l.concentration_mean);
                put(tag("churn"), l.churn.unwrap_or(f64::NAN));
            }
            e.step
        }
        Event::Probe(e) => {
            let who = match e.subject {
                Subject::Trained => "probe",
                Subject::RandomInit => "probe_of_random_init",
                Subject::RawPixels => "probe_of_raw_pixels",
            };
            e.metrics.iter().for_each(|m| put(format!("{who}/{}", m.name), m.value));
            e.step
        }
        Event::Health(e) => {
            put("health/spread".into(), e.spread);
            put("health/effective_rank".into(), e.rank);
            for t in &e.terms {
                put(format!("health/epochs_at_chance/{}", t.name), t.epochs_at_chance as f64);
            }
            e.step
        }
        Event::Stages(e) => {
            put_stages(e, put);
            e.step
        }
        _ => return None,
    };
    values.retain(|(_, v)| v.is_finite());
    Some((step, values))
}

/// Adds the time of each stage of an epoch.
fn put_stages(e: &Stages, mut put: impl FnMut(String, f64)) {
    put("stages/images_per_second".into(), e.images_per_second);
    for s in &e.stages {
        put(format!("stages/{}_share", s.name.replace(' ', "_")), s.seconds / e.seconds);
    }
    if let Some(bytes) = e.peak_memory_bytes {
        put("stages/peak_memory_mib".into(), bytes as f64 / f64::from(1 << 20));
    }
    for l in e.loader.iter().filter(|l| l.images > 0) {
        for (what, seconds) in l.parts() {
            put(format!("loader/{what}_images_per_second"), l.images as f64 / seconds);
        }
    }
}

fn summary(time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::new();
    for (tag, number) in values {
        summary.message(1, Message::new().text(1, tag).float(2, *number as f32));
    }
    record(Message::new().double(1, time).integer(2, step as i64).message(5, &summary).bytes())
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

/// Masks a checksum by rotating and adding a constant, because checksums of data that contains checksums are
/// weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Computes CRC32C (Castagnoli) bit by bit; events are short.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the standard check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_event_is_the_bytes_that_protocol_buffers_prescribe() {
        let got = summary(1.5, 300, &[("a".into(), 0.5)]);
        let value = [0x0a, 1, b'a', 0x15, 0, 0, 0, 0x3f];
        let mut event = vec![0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0x10, 0xac, 2, 0x2a, 10, 0x0a, 8];
        event.extend(value);
        assert_eq!(got[..8], (event.len() as u64).to_le_bytes());
        assert_eq!(got[12..12 + event.len()], event);
        assert_eq!(got.len(), 12 + event.len() + 4);
    }

    #[test]
    fn gradients_have_norms_their_total_and_the_cosines_that_exist() {
        let term = |name: &str, cosines| events::TermGradient { name: name.into(), norm: 0.5, cosines };
        let terms = vec![term("A", vec![]), term("B", vec![-0.25]), term("C", vec![f64::NAN, 1.0])];
        let event = Event::Gradients(events::Gradients { step: 8, epoch: 0.5, terms, total: 0.75 });
        let want = [
            ("gradient/A", 0.5),
            ("gradient/B", 0.5),
            ("gradient/C", 0.5),
            ("gradient/total", 0.75),
            ("gradient_cosine/A/B", -0.25),
            ("gradient_cosine/B/C", 1.0),
        ];
        assert_eq!(scalars(&event), Some((8, want.map(|(tag, v)| (tag.to_string(), v)).to_vec())));
    }

    #[test]
    fn numbers_that_are_none_are_left_out_and_the_file_grows() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(folder.path()).unwrap();
        let length = |f: &EventFile| std::fs::metadata(f.path()).unwrap().len();
        let begun = length(&file);
        file.append(&Event::Warning(events::Warning { step: 1, text: "w".into() })).unwrap();
        assert_eq!(length(&file), begun);
        let metric = |name: &str, value| pauc_traits::probe::Metric::new(name, value).into();
        let metrics = vec![metric("knn", 0.5), metric("none", f64::NAN)];
        let probe = events::Probe { step: 7, epoch: 1.0, seconds: 1.0, subject: Subject::RawPixels, metrics };
        let event = Event::Probe(probe);
        assert_eq!(scalars(&event), Some((7, vec![("probe_of_raw_pixels/knn".to_string(), 0.5)])));
        file.append(&event).unwrap();
        assert_eq!(
            length(&file),
            begun + summary(0.0, 7, &[("probe_of_raw_pixels/knn".into(), 0.5)]).len() as u64
        );
    }
}
