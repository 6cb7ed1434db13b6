//! Finds the images in an archive.

use crate::decode::EXTENSIONS;
use flate2::read::MultiGzDecoder;
use pauc_traits::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// An image in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// The offset of its first byte in the archive, or in the unpacked images.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The content of the `.cls` file beside it.
    pub label: Option<String>,
}

/// The maximum length of a label in bytes.
const LABEL: u64 = 256;

/// Returns the sample name in WebDataset's scheme: the name up to the first dot of its last part.
fn stem(name: &str) -> &str {
    let start = name.rfind('/').map_or(0, |p| p + 1);
    name[start..].find('.').map_or(name, |dot| &name[..start + dot])
}

fn extension(name: &str) -> String {
    name[stem(name).len()..].rsplit('.').next().unwrap_or_default().to_lowercase()
}

/// Returns the images of an archive. `unpacked` collects their bytes; without it, only their positions are
/// recorded, which must be within `size`.
///
/// # Errors
/// If the archive is damaged or contains a false length.
pub fn items(
    stream: impl Read,
    size: u64,
    mut unpacked: Option<&mut Vec<u8>>,
    origin: &Path,
) -> Result<Vec<Item>> {
    let damaged = |e: std::io::Error| {
        Error::damaged(origin, format!("is not a valid tar archive ({e}); download or create it again"))
    };
    let mut archive = ::tar::Archive::new(stream);
    let (mut items, mut labels) = (Vec::new(), HashMap::new());
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name.rsplit('/').next().is_some_and(|n| n.starts_with('.')) {
            continue;
        }
        let (offset, len) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let message = format!(
                "is truncated: {name}, {len} bytes at {offset}, ends after the archive's {size} bytes"
            );
            return Err(Error::damaged(origin, message));
        }
        let extension = extension(&name);
        if extension == "cls" {
            let mut text = String::new();
            entry.take(LABEL + 1).read_to_string(&mut text).map_err(damaged)?;
            if text.len() as u64 > LABEL {
                return Err(Error::damaged(
                    origin.join(&name),
                    format!("is a label longer than {LABEL} bytes"),
                ));
            }
            labels.insert(stem(&name).to_string(), text.trim().to_string());
        } else if EXTENSIONS.contains(&&*extension) {
            let offset = match &mut unpacked {
                None => offset,
                Some(bytes) => {
                    let before = bytes.len() as u64;
                    entry.read_to_end(bytes).map_err(damaged)?;
                    if bytes.len() as u64 - before != len {
                        return Err(Error::damaged(origin, format!("is truncated within {name}")));
                    }
                    before
                }
            };
            items.push(Item { name, at: offset, len, label: None });
        }
    }
    items.iter_mut().for_each(|i| i.label = labels.get(stem(&i.name)).cloned());
    Ok(items)
}

/// Unpacks a compressed archive: the bytes of its images, and their positions.
pub(super) fn unpack(path: &Path, limit: u64) -> Result<(Vec<u8>, Vec<Item>)> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut stream = MultiGzDecoder::new(std::io::BufReader::new(file)).take(limit);
    let mut bytes = Vec::new();
    let items = items(&mut stream, u64::MAX, Some(&mut bytes), path);
    if stream.limit() == 0 {
        let message = format!(
            "unpacks to more than unpacked_limit: {} MiB; raise it, or unpack the archive with gunzip, so that it \
             is read in place",
            limit >> 20
        );
        return Err(Error::damaged(path, message));
    }
    let items = items?;
    // Reading to the end verifies gzip's checksum, which follows the archive.
    std::io::copy(&mut stream, &mut std::io::sink())
        .map_err(|e| Error::damaged(path, format!("is damaged at its end ({e}); download it again")))?;
    Ok((bytes, items))
}
