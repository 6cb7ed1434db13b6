//! What an archive holds, and where.

use crate::decode::EXTENSIONS;
use flate2::read::MultiGzDecoder;
use pauc_traits::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A picture in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// Its first byte in the archive, or among the pictures that were unpacked.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
    /// What a `.cls` file beside it says.
    pub label: Option<String>,
}

/// The longest text of a label in bytes.
const LABEL: u64 = 256;

/// What belongs together in WebDataset's naming: the name up to the first dot of its last part.
fn stem(name: &str) -> &str {
    let start = name.rfind('/').map_or(0, |p| p + 1);
    name[start..].find('.').map_or(name, |dot| &name[..start + dot])
}

fn extension(name: &str) -> String {
    name[stem(name).len()..].rsplit('.').next().unwrap_or_default().to_lowercase()
}

/// The pictures of an archive. `unpacked` collects their bytes; without it only their places are noted, which have
/// to lie within `size`.
///
/// # Errors
/// If the archive is damaged, or lies about a length.
pub fn items(
    stream: impl Read,
    size: u64,
    mut unpacked: Option<&mut Vec<u8>>,
    origin: &Path,
) -> Result<Vec<Item>> {
    let damaged = |e: std::io::Error| {
        Error::damaged(origin, format!("cannot be read as a tar archive ({e}); fetch or make it again"))
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
            let message =
                format!("is truncated: {name} of {len} bytes at {offset} ends after its {size} bytes");
            return Err(Error::damaged(origin, message));
        }
        let extension = extension(&name);
        if extension == "cls" {
            let mut text = String::new();
            entry.take(LABEL + 1).read_to_string(&mut text).map_err(damaged)?;
            if text.len() as u64 > LABEL {
                return Err(Error::damaged(
                    origin.join(&name),
                    format!("is a label of more than {LABEL} bytes"),
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

/// The pictures of a compressed archive and their places among them.
pub(super) fn unpack(path: &Path, limit: u64) -> Result<(Vec<u8>, Vec<Item>)> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut stream = MultiGzDecoder::new(std::io::BufReader::new(file)).take(limit);
    let mut bytes = Vec::new();
    let items = items(&mut stream, u64::MAX, Some(&mut bytes), path);
    if stream.limit() == 0 {
        let message = format!(
            "unpacks to more than unpacked_limit: {} MiB; raise it, or unpack the archive with gunzip to have it read \
             in place",
            limit >> 20
        );
        return Err(Error::damaged(path, message));
    }
    let items = items?;
    // Reading on checks gzip's checksum, which lies behind the archive.
    std::io::copy(&mut stream, &mut std::io::sink())
        .map_err(|e| Error::damaged(path, format!("is damaged at its end ({e}); fetch it again")))?;
    Ok((bytes, items))
}
