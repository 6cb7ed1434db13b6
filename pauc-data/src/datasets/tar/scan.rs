//! Finds the images in an archive.

use crate::decode::EXTENSIONS;
use flate2::read::MultiGzDecoder;
use pauc_traits::{Error, Result, progress};
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

/// Where the bytes of an archive's images go.
pub enum Bytes<'a> {
    /// They stay in the archive, which has this size.
    InPlace(u64),
    /// They are appended to the buffer, up to `largest` bytes per image.
    Unpacked {
        /// The buffer.
        buffer: &'a mut Vec<u8>,
        /// The size of the largest image.
        largest: u64,
    },
}

impl Bytes<'_> {
    /// Returns where the bytes of an image begin, after unpacking them if they do not stay in the archive.
    fn take(&mut self, entry: &mut ::tar::Entry<'_, impl Read>, name: &str, origin: &Path) -> Result<u64> {
        let len = entry.size();
        match self {
            Bytes::InPlace(_) => Ok(entry.raw_file_position()),
            Bytes::Unpacked { largest, .. } if len > *largest => {
                let message = format!(
                    "has {len} bytes, more than the {largest} of an image within the pixel limit; raise `pixel_limit`"
                );
                Err(Error::damaged(origin.join(name), message))
            }
            Bytes::Unpacked { buffer, .. } => {
                let before = buffer.len() as u64;
                entry.read_to_end(buffer).map_err(|e| not_tar(origin, &e))?;
                if buffer.len() as u64 - before != len {
                    return Err(Error::damaged(origin, format!("is truncated within {name}")));
                }
                Ok(before)
            }
        }
    }
}

fn not_tar(origin: &Path, e: &std::io::Error) -> Error {
    Error::damaged(origin, format!("is not a valid tar archive ({e}); download or create it again"))
}

/// Returns the images of an archive. As when tar unpacks it, a hard link has the content of the file that it
/// names, and of two files with one name the last counts.
///
/// # Errors
/// If the archive is damaged, contains a false length, or has an image that is too large to unpack.
pub fn items(stream: impl Read, mut bytes: Bytes<'_>, origin: &Path) -> Result<Vec<Item>> {
    let damaged = |e: std::io::Error| not_tar(origin, &e);
    let mut archive = ::tar::Archive::new(stream);
    let mut items: Vec<Item> = Vec::new();
    let (mut labels, mut positions) = (HashMap::new(), HashMap::new());
    let task = progress::task("listing an archive", 0);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        task.advance(1);
        let kind = entry.header().entry_type();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_hidden = name.rsplit('/').next().is_some_and(|n| n.starts_with('.'));
        if is_hidden || !(kind.is_file() || kind.is_hard_link()) {
            continue;
        }
        let extension = extension(&name);
        if kind.is_hard_link() {
            let target = entry.link_name_bytes().map(|n| String::from_utf8_lossy(&n).into_owned());
            // GNU tar writes a link for each further name of a file.
            if let Some(&i) = target.and_then(|target| positions.get(&target))
                && EXTENSIONS.contains(&&*extension)
            {
                let Item { at, len, .. } = items[i];
                put(&mut items, &mut positions, Item { name, at, len, label: None });
            }
            continue;
        }
        let (offset, len) = (entry.raw_file_position(), entry.size());
        if let Bytes::InPlace(size) = bytes
            && offset.checked_add(len).is_none_or(|end| end > size)
        {
            let message = format!(
                "is truncated: {name}, {len} bytes at {offset}, ends after the archive's {size} bytes"
            );
            return Err(Error::damaged(origin, message));
        }
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
            let at = bytes.take(&mut entry, &name, origin)?;
            put(&mut items, &mut positions, Item { name, at, len, label: None });
        }
    }
    items.iter_mut().for_each(|i| i.label = labels.get(stem(&i.name)).cloned());
    Ok(items)
}

/// Adds an image, or replaces an earlier one of the same name.
fn put(items: &mut Vec<Item>, positions: &mut HashMap<String, usize>, item: Item) {
    match positions.get(&item.name) {
        Some(&i) => items[i] = item,
        None => {
            positions.insert(item.name.clone(), items.len());
            items.push(item);
        }
    }
}

/// Unpacks a compressed archive, up to `limit` bytes in all and `largest` per image: the bytes of its images,
/// and their positions.
pub(super) fn unpack(path: &Path, limit: u64, largest: u64) -> Result<(Vec<u8>, Vec<Item>)> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut stream = MultiGzDecoder::new(std::io::BufReader::new(file)).take(limit);
    let mut bytes = Vec::new();
    let items = items(&mut stream, Bytes::Unpacked { buffer: &mut bytes, largest }, path);
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
